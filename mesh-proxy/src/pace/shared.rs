use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mesh_common::identity::Identity;

use super::{Bucket, Pacer};
use crate::config::PortRate;

/// Callers that have nothing under way are forgotten when there are twice as many as there were after the last time.
const FEW: usize = 16;

/// Which way bytes go: to the application, or from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Up,
    Down,
}

/// The buckets of all ports whose bandwidth is limited. Kept by the name of what is limited, across configurations.
#[derive(Debug, Default)]
pub struct Buckets {
    /// A caller is remembered by its hash, as in [`RateLimits`](crate::limit::RateLimits).
    hasher: RandomState,
    by_name: Mutex<HashMap<String, [OneWay; 2]>>,
}

#[derive(Debug, Default)]
struct OneWay {
    all: Option<Arc<Mutex<Bucket>>>,
    by_caller: HashMap<u64, Arc<Mutex<Bucket>>>,
    /// So many callers make it worth looking for those that may be forgotten.
    many: usize,
}

impl Buckets {
    /// What one stream of the caller keeps to; callers without an identity are one.
    pub fn pacer(&self, name: &str, way: Way, rate: &PortRate, caller: Option<&Identity>, now: Instant) -> Pacer {
        let mut pacer = Pacer::default();
        let mut by_name = self.locked();
        let ways = match by_name.get_mut(name) {
            Some(ways) => ways,
            None => by_name.entry(name.to_owned()).or_default(),
        };
        let one = &mut ways[way as usize];
        // The port's turns are in demand, so a caller asks for one when it may use it.
        if let Some(rate) = rate.per_caller {
            pacer.join(one.of_caller(self.hasher.hash_one(caller), now), rate, now);
        }
        if let Some(rate) = rate.max {
            pacer.join(one.all.get_or_insert_with(|| full(now)).clone(), rate, now);
        }
        pacer
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<String, [OneWay; 2]>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn callers(&self, name: &str, way: Way) -> usize {
        self.locked().get(name).map_or(0, |ways| ways[way as usize].by_caller.len())
    }
}

impl OneWay {
    fn of_caller(&mut self, caller: u64, now: Instant) -> Arc<Mutex<Bucket>> {
        if let Some(bucket) = self.by_caller.get(&caller) {
            return bucket.clone();
        }
        if self.by_caller.len() >= self.many.max(FEW) {
            // A bucket that nobody waits at and that is full is like one that was never there.
            let is_in_use = |bucket: &mut Arc<Mutex<Bucket>>| match Arc::get_mut(bucket) {
                Some(bucket) => !bucket.get_mut().unwrap_or_else(PoisonError::into_inner).is_full(now),
                None => true,
            };
            self.by_caller.retain(|_, bucket| is_in_use(bucket));
            self.many = self.by_caller.len().saturating_mul(2);
        }
        self.by_caller.entry(caller).or_insert_with(|| full(now)).clone()
    }
}

fn full(now: Instant) -> Arc<Mutex<Bucket>> {
    Arc::new(Mutex::new(Bucket::full(now)))
}
