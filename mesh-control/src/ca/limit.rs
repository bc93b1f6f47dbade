//! A token bucket for each identity, with the clock passed in.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesh_common::identity::Identity;

/// Identities remembered at the same time; beyond it, buckets that are full again are forgotten.
const MAX_BUCKETS: usize = 10_000;

pub(super) struct RateLimit {
    burst: f64,
    per_second: f64,
    buckets: Mutex<BTreeMap<Identity, Bucket>>,
}

#[derive(Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl RateLimit {
    pub(super) fn new(burst: u32, per_second: u32) -> Self {
        Self { burst: f64::from(burst), per_second: f64::from(per_second), buckets: Mutex::default() }
    }

    /// Takes one, or says how long to wait for it.
    pub(super) fn take(&self, identity: &Identity, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_BUCKETS && !buckets.contains_key(identity) {
            buckets.retain(|_, bucket| self.filled(*bucket, now) < self.burst);
            if buckets.len() >= MAX_BUCKETS {
                return Err(Duration::from_secs(1));
            }
        }
        let bucket = buckets.entry(identity.clone()).or_insert(Bucket { left: self.burst, at: now });
        let left = self.filled(*bucket, now);
        let fits = left >= 1.0;
        *bucket = Bucket { left: if fits { left - 1.0 } else { left }, at: now };
        if fits { Ok(()) } else { Err(Duration::from_secs_f64((1.0 - left) / self.per_second)) }
    }

    fn filled(&self, bucket: Bucket, now: Instant) -> f64 {
        let grown = now.saturating_duration_since(bucket.at).as_secs_f64() * self.per_second;
        (bucket.left + grown).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let limit = RateLimit::new(3, 2);
        let [a, b] = ["a", "b"].map(|name| Identity::new("mesh.local", "default", name).unwrap());
        let start = Instant::now();
        for _ in 0..3 {
            limit.take(&a, start).unwrap();
        }
        assert_eq!(limit.take(&a, start), Err(Duration::from_millis(500)));
        limit.take(&b, start).unwrap();
        limit.take(&a, start + Duration::from_millis(500)).unwrap();
        assert!(limit.take(&a, start + Duration::from_millis(500)).is_err());
    }
}
