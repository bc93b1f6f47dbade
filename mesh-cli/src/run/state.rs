//! The folder in which a workload's proxy keeps its key and certificate, for as long as the workload runs.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::failure::Failure;

/// `DATA/workloads/NAME`, taken away when dropped: after a start that failed as well as at the end.
#[derive(Debug)]
pub(super) struct State {
    folder: PathBuf,
    /// Ends with this process, however that ends: what a killed one has left is free to be taken.
    _lock: File,
}

impl State {
    pub(super) fn take(data: &Path, workload: &str) -> Result<Self, Failure> {
        let folder = data.join("workloads").join(workload);
        let unusable =
            |error: io::Error| Failure::new(format!("The folder {} cannot be used: {error}.", folder.display()));
        fs::create_dir_all(&folder).map_err(unusable)?;
        let lock = File::open(&folder).map_err(unusable)?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Failure::new(format!("The workload {workload} runs already."))
                .hint("Choose another name with --workload, or leave it out for one that is made up."));
        }
        Ok(Self { folder, _lock: lock })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
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
}
