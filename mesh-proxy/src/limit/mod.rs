//! RateLimits on requests to the application: token buckets, and who has one.
//!
//! In: the limit of the port, who calls, and the clock. Out: whether the request may pass, and what the client is told about the
//! rest. Buckets are kept by the name of what is limited, across configurations.
//!
//! A bucket is one number: the moment at which it will be full again (the "theoretical arrival time" of the generic cell rate
//! algorithm). It holds what it holds less what flows in until then, so nothing has to fill it. A request costs one lock, which is
//! held for some tens of nanoseconds; a port without a limit costs neither.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderMap;
use mesh_common::identity::Identity;
use mesh_common::names::LIMIT_KEYS;

use crate::config::{LimitBy, RequestLimit};

mod admit;
mod places;
mod quota;

pub(crate) use admit::{connection, identified, pacer, request, size};
pub use places::{Full, Occupancy, Place, Places};
pub use quota::Quota;

/// Keys whose buckets are full again are forgotten at most so often, however many new ones come.
const SWEEP_INTERVAL: u64 = 1_000_000_000;

/// What refused something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitHit {
    Requests,
    Connections,
    ConnectionsPerCaller,
    ConcurrentRequests,
    ConcurrentRequestsPerCaller,
    SizeHeaders,
    SizeBody,
}

impl LimitHit {
    /// As metrics say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Connections => "connections",
            Self::ConnectionsPerCaller => "connections_per_caller",
            Self::ConcurrentRequests => "concurrent_requests",
            Self::ConcurrentRequestsPerCaller => "concurrent_requests_per_caller",
            Self::SizeHeaders => "size_headers",
            Self::SizeBody => "size_body",
        }
    }
}

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds for one request, rounded up: the rate is never exceeded.
    interval: u64,
    burst: u32,
    /// As it was said: so many within this time.
    filled: u32,
    window: Duration,
}

impl Rate {
    /// `filled` requests within `window`, `burst` at once. `None` if one of them is zero, or the window has no end.
    pub fn new(filled: u32, window: Duration, burst: u32) -> Option<Self> {
        let nanos = u64::try_from(window.as_nanos()).ok()?;
        let useful = filled > 0 && burst > 0 && nanos > 0;
        useful.then(|| Self { interval: nanos.div_ceil(u64::from(filled)), burst, filled, window })
    }

    /// Takes one request out of a bucket that is full at `full`. Times are nanoseconds.
    fn take(&self, full: &mut u64, now: u64) -> Quota {
        let depth = self.interval.saturating_mul(u64::from(self.burst));
        // A bucket that was emptied under a slower rate is not longer empty than one of this rate can be.
        *full = (*full).min(now.saturating_add(depth));
        let after = (*full).max(now).saturating_add(self.interval);
        let missing = after - now;
        let allowed = missing <= depth;
        let (remaining, wait) = match allowed {
            true => ((depth - missing) / self.interval, missing),
            false => (0, missing - depth),
        };
        if allowed {
            *full = after;
        }
        Quota {
            allowed,
            remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
            seconds: wait.div_ceil(1_000_000_000),
            limit: self.filled,
            window: self.window.as_secs().max(1),
        }
    }
}

/// The buckets of all that is limited.
#[derive(Debug)]
pub struct RateLimits {
    began: Instant,
    hasher: RandomState,
    by_name: Mutex<HashMap<String, Buckets>>,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self { began: Instant::now(), hasher: RandomState::new(), by_name: Mutex::default() }
    }
}

impl RateLimits {
    /// Takes a request to `name` at the time `now`.
    pub fn take(
        &self,
        name: &str,
        limit: &RequestLimit,
        identity: Option<&Identity>,
        headers: &HeaderMap,
        now: Instant,
    ) -> Quota {
        // A key is remembered by its hash, so that long ones take no memory. Two whose hashes are equal would share a bucket, and
        // nobody can look for such: the hash has a random seed.
        let key = match &limit.by {
            LimitBy::Nobody => None,
            LimitBy::Identity => identity.map(|identity| self.hasher.hash_one(identity)),
            LimitBy::Header(name) => headers.get(name).map(|value| self.hasher.hash_one(value.as_bytes())),
        };
        let now = u64::try_from(now.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX);
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        let buckets = match by_name.get_mut(name) {
            Some(buckets) => buckets,
            None => by_name.entry(name.to_owned()).or_default(),
        };
        limit.rate.take(buckets.of(key, now), now)
    }
}

/// When each bucket is full again.
#[derive(Debug, Default)]
struct Buckets {
    /// Of requests without a key.
    shared: u64,
    by_key: HashMap<u64, u64>,
    /// Of the keys that found no place.
    overflow: u64,
    swept: Option<u64>,
}

impl Buckets {
    fn of(&mut self, key: Option<u64>, now: u64) -> &mut u64 {
        let Some(key) = key else { return &mut self.shared };
        if !self.by_key.contains_key(&key) && !self.has_place(now) {
            return &mut self.overflow;
        }
        self.by_key.entry(key).or_default()
    }

    /// A bucket that is full is like one that was never there.
    fn has_place(&mut self, now: u64) -> bool {
        let full = |it: &Self| it.by_key.len() >= LIMIT_KEYS as usize;
        if full(self) && self.swept.is_none_or(|at| now.saturating_sub(at) >= SWEEP_INTERVAL) {
            self.swept = Some(now);
            self.by_key.retain(|_, full| *full > now);
        }
        !full(self)
    }
}

#[cfg(test)]
mod tests;
