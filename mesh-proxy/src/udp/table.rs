//! Which sessions there are, and until when: a state machine without a clock or a socket.
//!
//! A session is all datagrams between one address of a client and one destination. It ends when none was seen in either
//! direction for its idle timeout. There are never more sessions than the limit, so the table's memory is bounded.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What tells one session from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) client: SocketAddr,
    pub(super) destination: SocketAddr,
}

/// When a session was last used, in milliseconds of the table's clock, and how long it may rest. Shared with whoever carries
/// the session's datagrams.
#[derive(Debug)]
pub(super) struct Life {
    last: AtomicU64,
    idle: AtomicU64,
}

impl Life {
    fn new(now: Duration, idle: Duration) -> Self {
        Self { last: AtomicU64::new(milliseconds(now)), idle: AtomicU64::new(milliseconds(idle)) }
    }

    /// A datagram passed, in either direction.
    pub(super) fn touch(&self, now: Duration) {
        self.last.fetch_max(milliseconds(now), Ordering::Relaxed);
    }

    pub(super) fn set_idle(&self, idle: Duration) {
        self.idle.store(milliseconds(idle), Ordering::Relaxed);
    }

    fn is_over(&self, now: Duration) -> bool {
        let (last, idle) = (self.last.load(Ordering::Relaxed), self.idle.load(Ordering::Relaxed));
        milliseconds(now).saturating_sub(last) >= idle
    }
}

/// Sessions, each with what its datagrams are handed to.
#[derive(Debug)]
pub(super) struct Table<T> {
    sessions: HashMap<Key, (T, Arc<Life>)>,
    max: usize,
    /// Of a session of which no more is known yet.
    idle: Duration,
}

impl<T> Table<T> {
    /// At most `max` sessions at a time.
    pub(super) fn new(max: usize, idle: Duration) -> Self {
        Self { sessions: HashMap::new(), max, idle }
    }

    /// The session that a datagram of the client belongs to, which is used by that. One whose time is over is none.
    pub(super) fn find(&mut self, key: &Key, now: Duration) -> Option<&T> {
        if self.sessions.get(key)?.1.is_over(now) {
            self.sessions.remove(key);
            return None;
        }
        let (value, life) = self.sessions.get(key)?;
        life.touch(now);
        Some(value)
    }

    /// A new session. `None`: there are as many as there may be.
    pub(super) fn begin(&mut self, key: Key, value: T, now: Duration) -> Option<Arc<Life>> {
        if self.sessions.len() >= self.max {
            self.sweep(now);
        }
        if self.sessions.len() >= self.max {
            return None;
        }
        let life = Arc::new(Life::new(now, self.idle));
        self.sessions.insert(key, (value, life.clone()));
        Some(life)
    }

    /// A session ended by itself. Another one under the same key stays.
    pub(super) fn end(&mut self, key: &Key, life: &Arc<Life>) {
        if self.sessions.get(key).is_some_and(|(_, its)| Arc::ptr_eq(its, life)) {
            self.sessions.remove(key);
        }
    }

    /// Ends those whose time is over.
    pub(super) fn sweep(&mut self, now: Duration) {
        self.sessions.retain(|_, (_, life)| !life.is_over(now));
    }

    /// Ends all.
    pub(super) fn clear(&mut self) {
        self.sessions.clear();
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.sessions.len()
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    fn key(client: u16, destination: u16) -> Key {
        let at = |port| SocketAddr::from(([10, 0, 0, 1], port));
        Key { client: at(client), destination: at(destination) }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_session_is_one_client_and_one_destination() {
        let mut table = Table::new(10, IDLE);
        table.begin(key(1, 9), "a", at(0)).unwrap();
        table.begin(key(2, 9), "b", at(0)).unwrap();
        table.begin(key(1, 8), "c", at(0)).unwrap();
        assert_eq!(table.find(&key(1, 9), at(1)), Some(&"a"));
        assert_eq!(table.find(&key(2, 9), at(1)), Some(&"b"));
        assert_eq!(table.find(&key(1, 8), at(1)), Some(&"c"));
        assert_eq!(table.find(&key(2, 8), at(1)), None);
    }

    #[test]
    fn datagrams_of_either_direction_keep_a_session() {
        let mut table = Table::new(10, IDLE);
        let life = table.begin(key(1, 9), (), at(0)).unwrap();
        assert!(table.find(&key(1, 9), at(59)).is_some());
        life.touch(at(118));
        // A clock that was read earlier takes nothing back.
        life.touch(at(100));
        assert!(table.find(&key(1, 9), at(177)).is_some());
        assert!(table.find(&key(1, 9), at(237)).is_none());
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn each_session_has_its_own_timeout() {
        let mut table = Table::new(10, IDLE);
        table.begin(key(1, 9), (), at(0)).unwrap().set_idle(at(5));
        table.begin(key(2, 9), (), at(0)).unwrap();
        table.sweep(at(4));
        assert_eq!(table.len(), 2);
        table.sweep(at(5));
        assert_eq!(table.len(), 1);
        table.sweep(at(60));
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn there_are_never_more_than_the_limit() {
        let mut table = Table::new(3, IDLE);
        for client in 0..3 {
            assert!(table.begin(key(client, 9), (), at(u64::from(client))).is_some());
        }
        for client in 3..1000 {
            assert!(table.begin(key(client, 9), (), at(59)).is_none());
        }
        assert_eq!(table.len(), 3);
        // The first one's time is over, whether anybody looked or not.
        assert!(table.begin(key(7, 9), (), at(60)).is_some());
        assert!(table.begin(key(8, 9), (), at(60)).is_none());
        assert!(table.find(&key(1, 9), at(60)).is_some());
    }

    #[test]
    fn the_end_of_a_session_leaves_its_successor() {
        let mut table = Table::new(3, IDLE);
        let first = table.begin(key(1, 9), 1, at(0)).unwrap();
        assert_eq!(table.find(&key(1, 9), at(61)), None);
        let second = table.begin(key(1, 9), 2, at(61)).unwrap();
        table.end(&key(1, 9), &first);
        assert_eq!(table.find(&key(1, 9), at(62)), Some(&2));
        table.end(&key(1, 9), &second);
        assert_eq!(table.find(&key(1, 9), at(62)), None);
    }
}
