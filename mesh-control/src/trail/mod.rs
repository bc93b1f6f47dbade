//! Who has changed what: a trail of all changes of the mesh's configuration, as lines of JSON that are only ever appended to.
//!
//! In: what a change found and what it left, and who made it. Out: the file, and the records in it for whoever asks.

mod query;
mod record;
#[cfg(test)]
mod tests;
mod who;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_common::rotating::RotatingFile;
use tokio::sync::broadcast;

pub use query::{Query, Told};
pub use record::{Record, Subject, Verb};
pub use who::Who;

/// The name of the file in the data folder.
pub const FILE: &str = "audit.log";
/// Bytes of that file and of each full one.
pub const MAX_BYTES: u64 = 64 << 20;
/// Full files beside it.
pub const KEEP: usize = 8;
/// Records that one who follows may be behind.
const BEHIND: usize = 1024;

/// A clone is the same trail.
#[derive(Clone)]
pub struct Trail(Arc<Shared>);

struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    news: broadcast::Sender<Arc<str>>,
}

struct State {
    file: RotatingFile,
    failing: bool,
}

/// Each with how much of it there is to read.
type Files = Vec<(File, u64)>;

impl Trail {
    /// Goes on with the trail that is there.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = RotatingFile::open(path, MAX_BYTES, KEEP)?;
        let state = Mutex::new(State { file, failing: false });
        let (news, _) = broadcast::channel(BEHIND);
        Ok(Self(Arc::new(Shared { path: path.to_owned(), state, news })))
    }

    /// Writes records down; waits for the disk. The change has been made by then, so that one that can't be written is
    /// counted, and the log says so.
    pub fn record(&self, records: &[Record]) {
        let lines: Vec<Arc<str>> = records.iter().map(|record| record.line().into()).collect();
        let mut state = self.state();
        let written = state.file.write_all(lines.concat().as_bytes());
        if let Err(error) = &written {
            metrics::counter!("mesh_control_audit_log_dropped_total").increment(lines.len() as u64);
            if !state.failing {
                tracing::error!(%error, path = %self.0.path.display(), "changes are made and not written down: the audit log cannot be written");
            }
        }
        state.failing = written.is_err();
        // Under the lock, so that who begins to follow is told of each once.
        lines.into_iter().for_each(|line| _ = self.0.news.send(line));
    }

    /// The files as they are now with their lengths, the oldest first, and what comes after that.
    fn now(&self) -> io::Result<(Files, broadcast::Receiver<Arc<str>>)> {
        let _state = self.state();
        let open = |path: PathBuf| {
            let file = File::open(path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let files = RotatingFile::files(&self.0.path).into_iter().map(open).collect::<io::Result<Vec<_>>>()?;
        Ok((files, self.0.news.subscribe()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
