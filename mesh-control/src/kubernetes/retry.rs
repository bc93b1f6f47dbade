//! When a watch that broke is tried again.
//!
//! The control plane must have caught up with an API server that is back before a pod can end unnoticed: a proxy whose pod
//! is being deleted waits [`crate::registry::PLATFORM_LAG`] for the control plane to know of it. So the longest pause is shorter than
//! that, and not the half minute that is usual for what nobody waits for.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::Stream;
use kube::Resource;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, watcher};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);
/// After so long without a failure, it begins anew. Anything that went well is no measure: each new listing begins with
/// something that the watcher says by itself.
const CALM: Duration = Duration::from_secs(10);

/// What the API server tells of a kind, and each failure to hear of it.
pub(super) fn events<K>(api: Api<K>) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watcher(api, watcher::Config::default()).backoff(Retry::default())
}

/// Doubling pauses, each cut by up to a half, so that many watches do not come at once.
#[derive(Default)]
struct Retry {
    failures: u32,
    last: Option<Instant>,
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last > CALM) {
            self.failures = 0;
        }
        let pause = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        self.last = Some(now);
        Some(pause.mul_f64(1.0 - fastrand::f64() / 2.0))
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::PLATFORM_LAG;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_stay_shorter_than_a_pod_waits() {
        let mut retry = Retry::default();
        for longest in [100, 200, 400, 800, 1600, 2000, 2000, 2000] {
            let longest = Duration::from_millis(longest);
            let pause = retry.next().unwrap();
            assert!(pause <= longest && pause >= longest / 2, "{pause:?}");
            assert!(pause < PLATFORM_LAG);
            tokio::time::advance(pause).await;
            // What the watcher says before each listing.
            retry.reset();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_while_without_failures_they_are_short_again() {
        let mut retry = Retry::default();
        for _ in 0..40 {
            retry.next();
        }
        tokio::time::advance(CALM).await;
        assert!(retry.next().unwrap() > Duration::from_millis(500));
        tokio::time::advance(CALM + Duration::from_millis(1)).await;
        assert!(retry.next().unwrap() <= FIRST);
    }
}
