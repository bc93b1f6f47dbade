use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// What a stream is given at a time, where it has the bucket for itself.
pub const TICK: Duration = Duration::from_millis(50);
/// What a bucket holds: so much of its rate. Streams that come so late for their turn lose nothing by it.
pub const BURST: Duration = Duration::from_millis(200);

/// Bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(NonZeroU64);

impl Rate {
    /// `None` if it is zero.
    pub fn new(bytes_per_second: u64) -> Option<Self> {
        NonZeroU64::new(bytes_per_second).map(Self)
    }

    pub fn bytes_in(self, time: Duration) -> usize {
        let bytes = time.as_nanos().saturating_mul(self.0.get().into()) / 1_000_000_000;
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Rounded up: the rate is never exceeded.
    fn time_for(self, bytes: usize) -> Duration {
        let nanos = (bytes as u128).saturating_mul(1_000_000_000).div_ceil(self.0.get().into());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// So many bytes that may go from this moment on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    pub bytes: usize,
    pub at: Instant,
}

/// Gives turns in the order in which they are asked for. One number: the end of the last turn.
#[derive(Debug)]
pub struct Bucket {
    next: Instant,
}

impl Bucket {
    /// One that has saved nothing yet.
    pub fn empty(now: Instant) -> Self {
        Self { next: now }
    }

    /// One that has saved a burst.
    pub fn full(now: Instant) -> Self {
        Self { next: now.checked_sub(BURST).unwrap_or(now) }
    }

    pub fn is_full(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.next) >= BURST
    }

    /// The next turn, for `want` bytes or fewer, one at least. A turn that is not used is lost.
    ///
    /// Turns become shorter the more of them are waited for, so that many streams at a slow bucket hold up none for long: with
    /// n streams, each waits about √n ticks.
    pub fn turn(&mut self, rate: Rate, want: usize, now: Instant) -> Turn {
        let start = now.checked_sub(BURST).map_or(self.next, |oldest| self.next.max(oldest));
        let behind = start.saturating_duration_since(now);
        let share = TICK.mul_f64(TICK.as_secs_f64() / (TICK + behind).as_secs_f64());
        let saved = now.saturating_duration_since(start);
        let bytes = want.min(rate.bytes_in(share.max(saved))).max(1);
        self.next = start.checked_add(rate.time_for(bytes)).unwrap_or(start);
        Turn { bytes, at: self.next }
    }
}
