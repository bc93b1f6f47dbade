//! A compressed tar file, written part by part, that says at its end what is not in it.

use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use mesh_common::secrets::shown_text;

use crate::failure::Failure;

pub struct Archive {
    path: PathBuf,
    tar: tar::Builder<GzEncoder<BufWriter<File>>>,
    /// The folder that everything is in.
    root: String,
    made: u64,
    parts: Vec<String>,
    missing: Vec<String>,
}

impl Archive {
    /// A file that nobody else may read; one that is there is left alone.
    pub fn create(path: &Path, root: String, now: Timestamp) -> Result<Self, Failure> {
        let file = File::options().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => Failure::new(format!("{} exists already.", path.display()))
                .hint("Name another file with --file, or delete it."),
            _ => Failure::new(format!("Cannot write {}: {error}.", path.display())).hint("Name a file with --file."),
        })?;
        let tar = tar::Builder::new(GzEncoder::new(BufWriter::new(file), Compression::default()));
        let made = u64::try_from(now.as_second()).unwrap_or_default();
        Ok(Self { path: path.to_owned(), tar, root, made, parts: Vec::new(), missing: Vec::new() })
    }

    /// Nothing is no part.
    pub fn add(&mut self, name: &str, text: String) -> Result<(), Failure> {
        if text.is_empty() {
            return Ok(());
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.made);
        let added = self.tar.append_data(&mut header, format!("{}/{name}", self.root), text.as_bytes());
        added.map_err(|error| self.unwritable(&error))?;
        self.parts.push(name.to_owned());
        Ok(())
    }

    /// Remembers why something is not there, or not whole: in one line, and without secrets that may be in somebody's answer.
    pub fn missing(&mut self, what: &str, failure: Option<Failure>) {
        let line = |failure: Failure| {
            let why =
                shown_text(failure.message.trim_end_matches('.')).split_whitespace().collect::<Vec<_>>().join(" ");
            format!("{what}: {why}")
        };
        self.missing.extend(failure.map(line));
    }

    /// Its parts, and what is missing.
    pub fn finish(mut self, about: &str) -> Result<(Vec<String>, Vec<String>), Failure> {
        let missing = self.missing.iter().map(|it| format!("missing: {it}\n")).collect::<String>();
        self.add("about.txt", format!("{about}{missing}"))?;
        let Self { path, tar, parts, missing, .. } = self;
        let written = tar.into_inner().and_then(GzEncoder::finish).and_then(|mut file| file.flush());
        written.map_err(|error| unwritable(&path, &error))?;
        Ok((parts, missing))
    }

    fn unwritable(&self, error: &std::io::Error) -> Failure {
        unwritable(&self.path, error)
    }
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("Cannot write {}: {error}.", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_written_can_be_read_by_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar.gz");
        let mut archive = Archive::create(&path, "report".to_owned(), Timestamp::UNIX_EPOCH).unwrap();
        archive.add("a/b.txt", "text".to_owned()).unwrap();
        archive.add("empty", String::new()).unwrap();
        archive.missing("c", Some(Failure::new("It is\ngone: /a?token=s3cret")));
        archive.missing("d", None);
        let (parts, missing) = archive.finish("about\n").unwrap();
        assert_eq!(
            (parts, missing),
            (vec!["a/b.txt".to_owned(), "about.txt".to_owned()], vec!["c: It is gone: /a?[redacted]".to_owned()])
        );
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let mut read = tar::Archive::new(flate2::read::GzDecoder::new(File::open(&path).unwrap()));
        let files = read.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (entry.path().unwrap().display().to_string(), text)
        });
        let expected =
            [("report/a/b.txt", "text"), ("report/about.txt", "about\nmissing: c: It is gone: /a?[redacted]\n")];
        assert_eq!(files.collect::<Vec<_>>(), expected.map(|(name, text)| (name.to_owned(), text.to_owned())));

        let again = Archive::create(&path, "report".to_owned(), Timestamp::UNIX_EPOCH).err().unwrap();
        assert!(again.message.ends_with("exists already."), "{}", again.message);
    }
}
