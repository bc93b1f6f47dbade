//! Streams that are slowed down to a rate: by a fault, each for itself, and by a limit, all of a port together.
//!
//! In: how many bytes a stream has, and the clock. Out: how many of them may go, and when. Who has to wait does not read on,
//! which is the backpressure.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::time::Sleep;

use crate::telemetry::Telemetry;

mod bucket;
mod shared;
#[cfg(test)]
mod tests;

pub use bucket::Rate;
use bucket::{Bucket, Turn};
pub use shared::{Buckets, Way};

/// One way of one stream, which has to keep to all of its lanes.
#[derive(Debug, Default)]
pub struct Pacer {
    lanes: Vec<Lane>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Is told, once, that the stream has to wait.
    counted: Option<(Telemetry, Way)>,
}

/// A stream at a bucket.
#[derive(Debug)]
struct Lane {
    bucket: Arc<Mutex<Bucket>>,
    rate: Rate,
    /// Nothing is slowed down any more from then on.
    until: Option<Instant>,
    /// What is left of its turn.
    bytes: usize,
    at: Instant,
}

impl Pacer {
    /// Keeps the stream to a rate of its own.
    pub fn slow_down(&mut self, rate: Rate, until: Option<Instant>, now: Instant) {
        let bucket = Arc::new(Mutex::new(Bucket::empty(now)));
        self.lanes.push(Lane { bucket, rate, until, bytes: 0, at: now });
    }

    /// Keeps the stream to what it shares with others.
    fn join(&mut self, bucket: Arc<Mutex<Bucket>>, rate: Rate, now: Instant) {
        self.lanes.push(Lane { bucket, rate, until: None, bytes: 0, at: now });
    }

    /// Counts the stream when it has to wait.
    pub fn count(&mut self, telemetry: &Telemetry, way: Way) {
        self.counted = Some((telemetry.clone(), way));
    }

    /// How many of the stream's next `want` bytes may go now: one at least, if there is one.
    pub fn poll(&mut self, want: usize, cx: &mut Context<'_>) -> Poll<usize> {
        loop {
            let wake = match self.at(want, tokio::time::Instant::now().into_std()) {
                Ok(bytes) => return Poll::Ready(bytes),
                Err(wake) => wake.into(),
            };
            if let Some((telemetry, way)) = self.counted.take() {
                telemetry.limit_delayed(way);
            }
            let timer = match &mut self.timer {
                Some(timer) => timer,
                none => none.insert(Box::pin(tokio::time::sleep_until(wake))),
            };
            if timer.deadline() != wake {
                timer.as_mut().reset(wake);
            }
            ready!(timer.as_mut().poll(cx));
        }
    }

    /// How many may go, or when to ask again.
    fn at(&mut self, want: usize, now: Instant) -> Result<usize, Instant> {
        self.lanes.retain(|lane| lane.until.is_none_or(|until| until > now));
        let mut bytes = want;
        for lane in &mut self.lanes {
            if lane.bytes == 0 {
                let mut bucket = lane.bucket.lock().unwrap_or_else(PoisonError::into_inner);
                Turn { bytes: lane.bytes, at: lane.at } = bucket.turn(lane.rate, bytes, now);
            }
            if lane.at > now {
                return Err(lane.until.map_or(lane.at, |until| until.min(lane.at)));
            }
            bytes = bytes.min(lane.bytes);
        }
        for lane in &mut self.lanes {
            lane.bytes -= bytes;
        }
        Ok(bytes)
    }
}
