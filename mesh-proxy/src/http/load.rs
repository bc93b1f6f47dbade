//! How much a client of HTTP/2 makes the proxy hold and do for nothing.
//!
//! The protocol lets one connection have a thousand requests, each with a head of its own, and lets the client take each
//! back as soon as it is sent: both cost the client little and the proxy much. So the heads that a connection may have at
//! once are limited together, and a connection whose requests are nearly all taken back ends.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// Heads of the requests of one connection that are not over: a thousand of 4 KiB.
const MAX_HELD: usize = 4 << 20;
/// Requests among which those that were taken back are counted.
const REQUESTS: u32 = 1000;
/// So many taken back of these end the connection. Hedging takes back one of two.
const TAKEN_BACK: u32 = 750;
/// A request that was waited for longer was meant.
const AT_ONCE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Load {
    held: AtomicUsize,
    requests: AtomicU32,
    taken_back: AtomicU32,
    abused: Notify,
}

impl Load {
    /// A head of this size is held. Returns whether the connection may have it.
    pub(crate) fn hold(&self, bytes: usize) -> bool {
        self.held.fetch_add(bytes, Ordering::Relaxed) + bytes <= MAX_HELD
    }

    /// A request is over. `unanswered`: after so long the client took it back.
    pub(crate) fn over(&self, bytes: usize, unanswered: Option<Duration>) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        if unanswered.is_some_and(|waited| waited < AT_ONCE) {
            self.taken_back.fetch_add(1, Ordering::Relaxed);
        }
        if (self.requests.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(REQUESTS)
            && self.taken_back.swap(0, Ordering::Relaxed) >= TAKEN_BACK
        {
            self.abused.notify_one();
        }
    }

    /// Waits until so many requests were taken back that the connection should end.
    pub(crate) async fn abused(&self) {
        self.abused.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const NOW: Option<Duration> = Some(Duration::ZERO);

    #[test]
    fn heads_are_limited_together_and_given_back() {
        let load = Load::default();
        assert!(load.hold(MAX_HELD));
        assert!(!load.hold(1));
        load.over(MAX_HELD, None);
        load.over(1, None);
        assert!(load.hold(MAX_HELD));
    }

    #[test]
    fn only_a_client_that_takes_nearly_everything_back_at_once_is_cut_off() {
        let ends = |taken_back: u32, waited: Option<Duration>| {
            let load = Load::default();
            (0..REQUESTS).for_each(|i| load.over(0, waited.filter(|_| i < taken_back)));
            load.abused().now_or_never().is_some()
        };
        assert!(ends(TAKEN_BACK, NOW));
        assert!(!ends(TAKEN_BACK - 1, NOW));
        assert!(!ends(REQUESTS, Some(AT_ONCE)));
        assert!(!ends(REQUESTS, None));
    }
}
