//! When a measure is too high: from a mark on, until it has come well below it again.

use std::time::Duration;

/// Of what it may hold, a process with 90 % is short of memory, and one with 85 % is not.
const HIGH_PERCENT: u64 = 90;
const LOW_PERCENT: u64 = 85;
/// What one measurement of lag counts, in the average.
const SHARE: f64 = 0.3;
/// One measurement counts at most so many times the limit: a machine that stood still is not a busy one.
const MOST: u32 = 2;

#[derive(Debug)]
pub(super) struct Trip {
    high: u64,
    low: u64,
    /// Microseconds.
    average: f64,
    is_on: bool,
}

impl Trip {
    pub(super) fn of_memory(limit: u64) -> Self {
        // Divided first: a limit can be a large number.
        Self { high: limit / 100 * HIGH_PERCENT, low: limit / 100 * LOW_PERCENT, average: 0.0, is_on: false }
    }

    pub(super) fn of_lag(most: Duration) -> Self {
        let high = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        Self { high, low: high / 2, average: 0.0, is_on: false }
    }

    /// Whether it is too much now, if that has changed.
    pub(super) fn take(&mut self, value: u64) -> Option<bool> {
        let is_on = if self.is_on { value >= self.low } else { value >= self.high };
        (std::mem::replace(&mut self.is_on, is_on) != is_on).then_some(is_on)
    }

    /// The same for the average of what comes.
    pub(super) fn take_lag(&mut self, lag: Duration) -> Option<bool> {
        let most = self.high.saturating_mul(u64::from(MOST)) as f64;
        let lag = (lag.as_micros() as f64).min(most);
        self.average += (lag - self.average) * SHARE;
        self.take(self.average as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_short_from_one_mark_on_until_it_falls_below_another() {
        let mut trip = Trip::of_memory(1000);
        let told: Vec<_> = [0, 899, 900, 1000, 899, 850, 849, 899, 900].map(|held| trip.take(held)).to_vec();
        let (on, off) = (Some(true), Some(false));
        assert_eq!(told, [None, None, on, None, None, None, off, None, on]);
        assert_eq!(Trip::of_memory(u64::MAX).take(1 << 40), None);
    }

    #[test]
    fn one_pause_is_no_shortage_but_a_row_of_them_is() {
        let second = Duration::from_secs(1);
        let mut trip = Trip::of_lag(second);
        assert_eq!(trip.take_lag(3600 * second), None);
        assert_eq!(trip.take_lag(Duration::ZERO), None);
        let first = (1..100).find(|_| trip.take_lag(2 * second) == Some(true));
        assert_eq!(first, Some(2));
        // Just below the limit it goes on.
        assert!((0..100).all(|_| trip.take_lag(second * 9 / 10).is_none()));
        let last = (1..100).find(|_| trip.take_lag(Duration::ZERO) == Some(false));
        assert_eq!(last, Some(2));
    }
}
