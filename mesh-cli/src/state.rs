//! The folder in which a workload's proxy keeps its key and certificate, for as long as the workload runs.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::FlockOperation;

use crate::failure::Failure;

/// For what a killed one has left to be free, and not just being taken away.
const TRIES: u32 = 10;
const TICK: Duration = Duration::from_millis(20);

/// `DATA/workloads/NAME`, taken away when dropped: after a start that failed as well as at the end.
#[derive(Debug)]
pub struct State {
    folder: PathBuf,
    /// Ends with this process, however that ends: what a killed one has left is free to be taken.
    _lock: File,
}

impl State {
    /// Blocks for some milliseconds if that is what it takes.
    pub fn take(data: &Path, workload: &str) -> Result<Self, Failure> {
        let folder = folders(data).join(workload);
        let unusable =
            |error: io::Error| Failure::new(format!("The folder {} cannot be used: {error}.", folder.display()));
        for _ in 0..TRIES {
            fs::create_dir_all(&folder).map_err(unusable)?;
            if let Some(lock) = lock(&folder) {
                return Ok(Self { folder, _lock: lock });
            }
            thread::sleep(TICK);
        }
        Err(Failure::new(format!("The workload {workload} runs already."))
            .hint("Choose another name with --workload, or leave it out for one that is made up."))
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Takes away what workloads have left that were killed.
pub fn sweep(data: &Path) {
    for entry in fs::read_dir(folders(data)).into_iter().flatten().flatten() {
        if let Some(_lock) = lock(&entry.path()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn folders(data: &Path) -> PathBuf {
    data.join("workloads")
}

/// `None`: somebody else has the folder, or it was taken away meanwhile.
fn lock(folder: &Path) -> Option<File> {
    let lock = File::open(folder).ok()?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
    let (locked, there) = (lock.metadata().ok()?, fs::metadata(folder).ok()?);
    ((locked.dev(), locked.ino()) == (there.dev(), there.ino())).then_some(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_gone_after_and_belongs_to_one() {
        let data = tempfile::tempdir().unwrap();
        let state = State::take(data.path(), "web-x").unwrap();
        let folder = state.folder().to_owned();
        fs::write(folder.join("key.pem"), "").unwrap();
        // A second one of that name takes nothing away from the first.
        assert!(State::take(data.path(), "web-x").is_err());
        assert!(folder.join("key.pem").exists());
        drop(state);
        assert!(!folder.exists());
        // What one that was killed has left is no obstacle.
        fs::create_dir(&folder).unwrap();
        assert!(State::take(data.path(), "web-x").is_ok());
    }

    #[test]
    fn what_a_killed_one_has_left_is_swept_away() {
        let data = tempfile::tempdir().unwrap();
        sweep(data.path());
        let runs = State::take(data.path(), "web-x").unwrap();
        let left = State::take(data.path(), "web-y").unwrap();
        fs::write(left.folder().join("key.pem"), "").unwrap();
        let folder = left.folder().to_owned();
        // As when its process is killed: the lock is gone, and nobody cleans up.
        rustix::fs::flock(&left._lock, FlockOperation::Unlock).unwrap();
        sweep(data.path());
        assert!(!folder.exists() && runs.folder().exists());
    }
}
