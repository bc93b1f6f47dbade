//! The demo's data folder: made new at each start, and never somebody else's.

use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::failure::Failure;

/// Marks a folder as a demo's, and is locked while one runs.
const MARK: &str = "demo.lock";

pub(super) struct Folder {
    pub(super) path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Empties the folder of an earlier demo. Refuses a folder with anything else in it.
    pub(super) fn prepare(given: Option<PathBuf>) -> Result<Self, Failure> {
        let path = match given {
            Some(path) => path,
            None => default(env::var_os("HOME").map(PathBuf::from))?,
        };
        let failed =
            |error: io::Error| Failure::new(format!("The data folder {} cannot be used: {error}.", path.display()));
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
        // Sockets and file names are handed to programs that run elsewhere.
        let path = path.canonicalize().map_err(failed)?;
        let mark = path.join(MARK);
        if !mark.exists() && fs::read_dir(&path).map_err(failed)?.next().is_some() {
            return Err(Failure::new(format!("{} holds something that is no demo's.", path.display()))
                .hint("Name an empty or a new folder with --data."));
        }
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&mark).map_err(failed)?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Failure::new(format!("Another demo is running in {}.", path.display()))
                .hint("End it with Ctrl-C, or give this one a folder (--data) and a port (--port) of its own."));
        }
        empty(&path).map_err(failed)?;
        Ok(Self { path, _lock: lock })
    }

    /// Writes a file, readable by its owner only.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<PathBuf, Failure> {
        let path = self.path.join(name);
        let write = || -> io::Result<()> {
            fs::create_dir_all(path.parent().unwrap_or(&self.path))?;
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path)?;
            io::Write::write_all(&mut file, text.as_bytes())
        };
        write().map_err(|error| Failure::new(format!("Cannot write {}: {error}.", path.display())))?;
        Ok(path)
    }
}

fn default(home: Option<PathBuf>) -> Result<PathBuf, Failure> {
    home.map(|home| home.join(".mesh/demo"))
        .ok_or_else(|| Failure::usage("There is no home folder (HOME is not set).").hint("Name a folder with --data."))
}

fn empty(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false if entry.file_name() != MARK => fs::remove_file(entry.path())?,
            false => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_demos_folder_is_emptied() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("demo");
        let folder = Folder::prepare(Some(path.clone())).unwrap();
        folder.write("logs/old.log", "x").unwrap();
        assert!(Folder::prepare(Some(path.clone())).is_err_and(|failure| failure.message.contains("running")));
        drop(folder);
        let again = Folder::prepare(Some(path)).unwrap();
        assert!(!again.path.join("logs").exists());

        let other = root.path().join("home");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("thesis.tex"), "").unwrap();
        assert!(Folder::prepare(Some(other.clone())).is_err());
        assert!(other.join("thesis.tex").exists());
    }
}
