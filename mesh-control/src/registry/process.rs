//! The process at the other end of a unix socket: whether it is the reason why a stream broke.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process that is killed closes its sockets a little before it has ended.
const ENDING: Duration = Duration::from_secs(1);

/// A process that may have ended since, but is never mistaken for a later one with its number.
#[derive(Debug)]
pub(super) struct Process(AsyncFd<OwnedFd>);

impl Process {
    /// To be called while the process is known to run. `None` where it cannot be watched.
    #[allow(unsafe_code)]
    pub(super) fn watch(pid: i32) -> Option<Self> {
        let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::NONBLOCK).ok()?;
        // SAFETY: an `OwnedFd` is open until it is dropped, and nobody replaces it in there.
        unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.ok().map(Self)
    }

    /// Whether it has ended, or does so now.
    pub(super) async fn has_ended(&self) -> bool {
        matches!(tokio::time::timeout(ENDING, self.0.readable()).await, Ok(Ok(_)))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_process_is_seen() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::watch(child.id().cast_signed()).unwrap();
        let patience = Duration::from_millis(50);
        assert!(tokio::time::timeout(patience, process.has_ended()).await.is_err());
        child.kill().unwrap();
        // Not waited for yet, as that of a parent that is busy, and after.
        assert!(process.has_ended().await);
        child.wait().unwrap();
        assert!(process.has_ended().await);
        assert!(Process::watch(0).is_none());
    }
}
