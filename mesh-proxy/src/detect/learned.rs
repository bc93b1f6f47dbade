//! Where servers were seen to speak first, so that nobody waits there for what a client says.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The most destinations that are remembered; what comes beyond it is waited for each time.
const MOST: usize = 1024;

#[derive(Debug, Default)]
pub struct Learned(Mutex<HashSet<SocketAddr>>);

impl Learned {
    pub fn speaks_first(&self, server: SocketAddr) -> bool {
        self.all().contains(&server)
    }

    /// A stream to this destination has begun, with something that the server or the client said. Once a client speaks first
    /// after all, the next one is listened to.
    pub fn saw(&self, destination: SocketAddr, server_first: bool) {
        let mut all = self.all();
        if !server_first {
            all.remove(&destination);
        } else if all.len() < MOST {
            all.insert(destination);
        }
    }

    fn all(&self) -> MutexGuard<'_, HashSet<SocketAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_last_counts_and_memory_is_bounded() {
        let learned = Learned::default();
        let at = |n: usize| SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 3306));
        assert!(!learned.speaks_first(at(0)));
        learned.saw(at(0), true);
        assert!(learned.speaks_first(at(0)) && !learned.speaks_first(at(1)));
        learned.saw(at(0), false);
        assert!(!learned.speaks_first(at(0)));
        (0..2 * MOST).for_each(|n| learned.saw(at(n), true));
        assert!(learned.speaks_first(at(MOST - 1)) && !learned.speaks_first(at(MOST)));
    }
}
