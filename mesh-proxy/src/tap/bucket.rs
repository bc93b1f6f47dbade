//! How many events a tap has left.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const SECOND: u64 = 1_000_000_000;

/// So many in a second, and as many at once (GCRA: one number, and no lock).
#[derive(Debug)]
pub(super) struct Bucket {
    began: Instant,
    /// Nanoseconds for each.
    each: u64,
    /// When all that were taken would have been due, in nanoseconds since it began.
    due: AtomicU64,
}

impl Bucket {
    pub(super) fn new(rate: u32, now: Instant) -> Self {
        Self { began: now, each: SECOND / u64::from(rate.max(1)), due: AtomicU64::new(0) }
    }

    /// Whether there is one left.
    pub(super) fn take(&self, now: Instant) -> bool {
        let now = u64::try_from(now.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX);
        let next = |due: u64| {
            let next = due.max(now).saturating_add(self.each);
            (next <= now.saturating_add(SECOND)).then_some(next)
        };
        self.due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn taken(bucket: &Bucket, tries: usize, now: Instant) -> usize {
        (0..tries).filter(|_| bucket.take(now)).count()
    }

    #[test]
    fn a_second_has_so_many_and_what_is_saved_is_no_more() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let bucket = Bucket::new(100, began);
        assert_eq!(taken(&bucket, 1000, began), 100);
        assert_eq!(taken(&bucket, 1000, at(50)), 5);
        assert_eq!(taken(&bucket, 1000, at(59)), 0);
        assert_eq!(taken(&bucket, 1000, at(60)), 1);
        assert_eq!(taken(&bucket, 1000, at(3_600_000)), 100, "an hour saves no more than a second");
        // A clock that another thread has read a little earlier.
        assert_eq!(taken(&bucket, 10, at(3_599_999)), 0);
    }

    #[test]
    fn over_a_long_time_it_is_the_rate() {
        let began = Instant::now();
        let bucket = Bucket::new(7, began);
        let sum: usize = (0..10_000).map(|ms| taken(&bucket, 3, began + Duration::from_millis(ms))).sum();
        assert!((7 + 69..=7 + 70).contains(&sum), "{sum}");
    }
}
