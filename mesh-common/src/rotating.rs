//! A file of lines that is only ever appended to, and that begins anew when it is full: `audit.log` becomes `audit.log.1`, that
//! becomes `audit.log.2`, and so on; the oldest goes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// For its owner only: who called whom is nobody else's business.
const MODE: u32 = 0o600;

/// Writes whole lines; give it lines that are whole, or the rest of one that it took a part of. A line that could not be
/// written to its end is ended before the next one, so that it spoils no other.
#[derive(Debug)]
pub struct RotatingFile {
    path: PathBuf,
    /// Bytes of one file. A longer line has a file of its own.
    max_bytes: u64,
    /// Files that are full.
    keep: usize,
    file: File,
    size: u64,
    /// The last byte that was written did not end a line.
    within_line: bool,
    /// The rest of that line will not come.
    torn: bool,
}

impl RotatingFile {
    /// Goes on with the file that is there.
    pub fn open(path: &Path, max_bytes: u64, keep: usize) -> io::Result<Self> {
        let file = append(path)?;
        let size = file.metadata()?.len();
        let torn = size > 0 && !ends_a_line(path, size)?;
        Ok(Self { path: path.to_owned(), max_bytes: max_bytes.max(1), keep, file, size, within_line: torn, torn })
    }

    /// The files of such a log, the oldest first.
    pub fn files(path: &Path) -> Vec<PathBuf> {
        let older = (1..).map(|n| numbered(path, n)).take_while(|file| file.exists());
        let mut files: Vec<PathBuf> = older.collect();
        files.reverse();
        files.push(path.to_owned());
        files
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.keep == 0 {
            fs::remove_file(&self.path)?;
        } else {
            for n in (1..self.keep).rev() {
                match fs::rename(numbered(&self.path, n), numbered(&self.path, n + 1)) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            fs::rename(&self.path, numbered(&self.path, 1))?;
        }
        self.file = append(&self.path)?;
        self.size = 0;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes).inspect_err(|_| self.torn = self.within_line)?;
        self.size += written as u64;
        if let Some(last) = written.checked_sub(1).and_then(|at| bytes.get(at)) {
            self.within_line = *last != b'\n';
        }
        Ok(written)
    }

    /// How much of these lines goes into the file that is open: whole lines, unless the first alone is too long.
    fn fitting(&self, lines: &[u8]) -> usize {
        let room = usize::try_from(self.max_bytes.saturating_sub(self.size)).unwrap_or(usize::MAX);
        if lines.len() <= room {
            return lines.len();
        }
        lines[..room].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
    }
}

impl Write for RotatingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.torn {
            self.put(b"\n")?;
            self.torn = false;
        }
        let first = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
        if self.within_line {
            return self.put(&bytes[..first]);
        }
        if self.fitting(bytes) == 0 && self.size > 0 {
            self.rotate()?;
        }
        let fitting = self.fitting(bytes);
        self.put(&bytes[..if fitting == 0 { first } else { fitting }])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(MODE).open(path)
}

fn ends_a_line(path: &Path, size: u64) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let mut last = [0];
    File::open(path)?.read_exact_at(&mut last, size - 1)?;
    Ok(last == *b"\n")
}

fn numbered(path: &Path, n: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn contents(path: &Path) -> Vec<String> {
        RotatingFile::files(path).iter().map(|file| fs::read_to_string(file).unwrap()).collect()
    }

    #[test]
    fn full_files_are_kept_up_to_a_number_and_lines_stay_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut log = RotatingFile::open(&path, 10, 2).unwrap();
        // Blocks of several lines, more than a file takes.
        log.write_all(b"aaa\nbbb\nccc\nddd\n").unwrap();
        assert_eq!(contents(&path), ["aaa\nbbb\n", "ccc\nddd\n"]);
        log.write_all(b"e\n").unwrap();
        assert_eq!(contents(&path), ["aaa\nbbb\n", "ccc\nddd\ne\n"]);
        log.write_all(b"a line that is too long\nf\n").unwrap();
        assert_eq!(contents(&path), ["ccc\nddd\ne\n", "a line that is too long\n", "f\n"]);
        log.write_all(b"gggggggg\n").unwrap();
        assert_eq!(contents(&path), ["a line that is too long\n", "f\n", "gggggggg\n"]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_there_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        RotatingFile::open(&path, 10, 1).unwrap().write_all(b"aaa\n").unwrap();
        // Whoever wrote before was killed within a line.
        fs::write(&path, "aaa\nbb").unwrap();
        let mut log = RotatingFile::open(&path, 10, 1).unwrap();
        log.write_all(b"cc\n").unwrap();
        assert_eq!(contents(&path), ["aaa\nbb\ncc\n"]);
        log.write_all(b"d\n").unwrap();
        assert_eq!(contents(&path), ["aaa\nbb\ncc\n", "d\n"]);
        RotatingFile::open(&path, 10, 0).unwrap().write_all(b"eeeeeeeee\n").unwrap();
        assert_eq!(contents(&path), ["aaa\nbb\ncc\n", "eeeeeeeee\n"]);
    }

    /// `/dev/full` takes nothing, as a full disk.
    #[test]
    fn a_full_disk_is_an_error_and_nothing_more() {
        let mut log = RotatingFile {
            path: PathBuf::from("/dev/full"),
            max_bytes: 10,
            keep: 1,
            file: append(Path::new("/dev/full")).unwrap(),
            size: 0,
            within_line: false,
            torn: false,
        };
        for _ in 0..3 {
            assert_eq!(log.write_all(b"aaa\n").unwrap_err().kind(), ErrorKind::StorageFull);
        }
    }

    #[test]
    fn a_line_that_was_cut_off_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut log = RotatingFile::open(&path, 100, 1).unwrap();
        assert_eq!(log.put(b"half a li").unwrap(), 9);
        log.file = append(Path::new("/dev/full")).unwrap();
        log.write_all(b"ne\n").unwrap_err();
        log.file = append(&path).unwrap();
        log.write_all(b"whole\n").unwrap();
        assert_eq!(contents(&path), ["half a li\nwhole\n"]);
    }
}
