use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};

use super::Verified;

/// Entries of one generation.
const ENTRIES: usize = 256;
/// Longer tokens are checked each time. Envoy's default.
const MAX_TOKEN: usize = 4096;

/// Tokens whose signature was right, by the hash of all of it: a forged one never finds another's entry, and no token is kept.
/// It lives with the keys that it was checked with, so new keys begin with none. Whether the time is right is asked each time.
///
/// Two generations: when the newer is full, it becomes the older, and what was not used since goes with that.
#[derive(Default)]
pub struct Cache(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    newer: HashMap<Key, Arc<Verified>>,
    older: HashMap<Key, Arc<Verified>>,
}

pub(super) type Key = [u8; 32];

impl Cache {
    pub(super) fn key(token: &str) -> Key {
        let mut key = [0; 32];
        key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        key
    }

    pub(super) fn find(&self, key: &Key) -> Option<Arc<Verified>> {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(verified) = generations.newer.get(key) {
            return Some(verified.clone());
        }
        let verified = generations.older.remove(key)?;
        generations.keep(*key, verified.clone());
        Some(verified)
    }

    pub(super) fn keep(&self, key: Key, length: usize, verified: &Arc<Verified>) {
        if length <= MAX_TOKEN {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).keep(key, verified.clone());
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let generations = self.0.lock().unwrap();
        generations.newer.len() + generations.older.len()
    }
}

impl Generations {
    fn keep(&mut self, key: Key, verified: Arc<Verified>) {
        if self.newer.len() >= ENTRIES {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(key, verified);
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cache")
    }
}
