//! Sessions that clients may resume. A resumed session shows the certificate of its first handshake without it being
//! verified again, so that it must not be resumable for long.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::server::StoresServerSessions;

/// A twelfth of the life of a certificate.
const LIFE: Duration = Duration::from_secs(300);
/// One holds a few kilobytes: the client's certificates.
const CAPACITY: usize = 512;

#[derive(Debug)]
pub(super) struct Sessions {
    now: fn() -> Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    values: HashMap<Vec<u8>, (Instant, Vec<u8>)>,
    /// Oldest first; may name sessions that are gone.
    order: VecDeque<(Instant, Vec<u8>)>,
}

impl Sessions {
    pub(super) fn new(now: fn() -> Instant) -> Self {
        Self { now, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>, now: Instant) {
        while let Some((made, _)) = self.order.front()
            && (self.order.len() >= CAPACITY || now.saturating_duration_since(*made) >= LIFE)
        {
            if let Some((made, key)) = self.order.pop_front()
                && self.values.get(&key).is_some_and(|(at, _)| *at == made)
            {
                self.values.remove(&key);
            }
        }
        self.order.push_back((now, key.clone()));
        self.values.insert(key, (now, value));
    }

    fn get(&self, key: &[u8], now: Instant) -> Option<Vec<u8>> {
        let (made, value) = self.values.get(key)?;
        (now.saturating_duration_since(*made) < LIFE).then(|| value.clone())
    }
}

impl StoresServerSessions for Sessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.state().put(key, value, (self.now)());
        true
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.state().get(key, (self.now)())
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        let mut state = self.state();
        let found = state.get(key, (self.now)());
        state.values.remove(key);
        found
    }

    fn can_cache(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_with_its_time() {
        let start = Instant::now();
        let mut state = State::default();
        state.put(b"k".to_vec(), b"v".to_vec(), start);
        assert_eq!(state.get(b"k", start + LIFE / 2), Some(b"v".to_vec()));
        assert_eq!(state.get(b"k", start + LIFE), None);
        state.put(b"other".to_vec(), b"v".to_vec(), start + LIFE);
        assert_eq!(state.values.len(), 1);
    }

    #[test]
    fn there_are_never_more_than_the_capacity() {
        let start = Instant::now();
        let mut state = State::default();
        for i in 0..3 * CAPACITY {
            state.put(i.to_be_bytes().to_vec(), vec![0], start);
        }
        assert_eq!(state.values.len(), CAPACITY);
        assert_eq!(state.order.len(), CAPACITY);
        assert!(state.get(&0_usize.to_be_bytes(), start).is_none());
    }
}
