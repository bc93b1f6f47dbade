//! Peak EWMA: how long an endpoint takes to answer, as a moving average that follows a rise at once and a fall slowly, so
//! that an endpoint that becomes slow is left alone from its first slow answer on.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a request to an endpoint costs that has one in flight and has never answered, in seconds: more than any that has.
const UNKNOWN: f64 = 60.0;

/// The latency of an endpoint. Only clusters that balance by it take the lock.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Latency(Mutex<Option<Estimate>>);

#[derive(Clone, Copy, Debug)]
struct Estimate {
    seconds: f64,
    at: Instant,
}

impl Estimate {
    /// An endpoint that is not asked is thought to become faster with time, so that it is tried again some day.
    fn decayed(self, now: Instant, decay: Duration) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.seconds * (-passed / decay.as_secs_f64()).exp()
    }
}

impl Latency {
    /// It answered after that time.
    pub(in crate::upstream) fn answered(&self, after: Duration, now: Instant, decay: Duration) {
        self.observe(after.as_secs_f64(), now, decay);
    }

    /// It failed after that time, which makes it no better: failing may be quicker than answering.
    pub(in crate::upstream) fn failed(&self, after: Duration, now: Instant, decay: Duration) {
        let known = self.estimate(now, decay).unwrap_or(UNKNOWN);
        self.observe(after.as_secs_f64().max(known), now, decay);
    }

    fn observe(&self, sample: f64, now: Instant, decay: Duration) {
        let mut estimate = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = match *estimate {
            Some(known) if sample < known.seconds => {
                let passed = now.saturating_duration_since(known.at).as_secs_f64();
                let kept = (-passed / decay.as_secs_f64()).exp();
                known.seconds * kept + sample * (1.0 - kept)
            }
            _ => sample,
        };
        *estimate = Some(Estimate { seconds, at: now });
    }

    /// In seconds; `None` before the first answer.
    fn estimate(&self, now: Instant, decay: Duration) -> Option<f64> {
        let estimate = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        estimate.map(|known| known.decayed(now, decay))
    }

    /// What one more request costs beside those in flight. One that has never answered is asked once, and then no more until
    /// it has.
    pub(in crate::upstream) fn cost(&self, load: f64, now: Instant, decay: Duration) -> f64 {
        match self.estimate(now, decay) {
            Some(seconds) => seconds * (load + 1.0),
            None => UNKNOWN * load,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECAY: Duration = Duration::from_secs(10);

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_rise_counts_at_once_and_a_fall_with_time() {
        let (latency, start) = (Latency::default(), Instant::now());
        latency.answered(ms(10), start, DECAY);
        latency.answered(ms(500), start + ms(1), DECAY);
        let slow = latency.estimate(start + ms(1), DECAY).unwrap();
        assert!((slow - 0.5).abs() < 1e-9, "{slow}");
        latency.answered(ms(10), start + ms(2), DECAY);
        assert!(latency.estimate(start + ms(2), DECAY).unwrap() > 0.49, "one quick answer proves little");
        latency.answered(ms(10), start + 2 * DECAY, DECAY);
        let later = latency.estimate(start + 2 * DECAY, DECAY).unwrap();
        assert!((0.05..0.1).contains(&later), "{later}");
    }

    #[test]
    fn failing_quickly_is_no_merit_and_failing_slowly_counts() {
        let (latency, start) = (Latency::default(), Instant::now());
        latency.answered(ms(100), start, DECAY);
        latency.failed(ms(1), start, DECAY);
        assert!((latency.estimate(start, DECAY).unwrap() - 0.1).abs() < 1e-9);
        latency.failed(ms(900), start, DECAY);
        assert!((latency.estimate(start, DECAY).unwrap() - 0.9).abs() < 1e-9);
    }

    #[test]
    fn the_unknown_is_asked_once() {
        let (known, unknown, now) = (Latency::default(), Latency::default(), Instant::now());
        known.answered(ms(20), now, DECAY);
        assert!(unknown.cost(0.0, now, DECAY) < known.cost(0.0, now, DECAY));
        assert!(unknown.cost(1.0, now, DECAY) > known.cost(100.0, now, DECAY));
        assert!(known.cost(3.0, now, DECAY) > known.cost(2.0, now, DECAY));
        assert!(known.cost(0.0, now + 10 * DECAY, DECAY) < 1e-3, "it is tried again some day");
    }
}
