//! Which endpoints are ejected for the requests that they failed, and for how long.
//!
//! In: what came of each request, and the time. Out: ejections, which end by themselves. Sends nothing and knows no
//! connections. A success costs two loads, and with success rates two increments more; only what makes an ejection
//! possible takes a lock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::config::{OutlierDetection, SuccessRate};
use crate::error::Kind;

/// What a request says of the endpoint that had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    /// The endpoint answers, but fails.
    ServerError,
    /// It cannot be reached, breaks off, takes too long, or says as much itself.
    GatewayFailure,
}

impl Outcome {
    pub(crate) fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            502..=504 => Self::GatewayFailure,
            500.. => Self::ServerError,
            _ => Self::Success,
        }
    }

    /// By the HTTP status that Envoy takes each gRPC status for.
    pub(crate) fn of_grpc(code: u32) -> Self {
        match code {
            // Deadline exceeded, unavailable.
            4 | 14 => Self::GatewayFailure,
            // Unknown, unimplemented, internal, data loss.
            2 | 12 | 13 | 15 => Self::ServerError,
            _ => Self::Success,
        }
    }

    /// `None`: it says nothing of the endpoint.
    pub(crate) fn of_error(kind: Kind) -> Option<Self> {
        let of_endpoint = matches!(
            kind,
            Kind::UpstreamConnect
                | Kind::UpstreamTls
                | Kind::UpstreamResetBeforeRequest
                | Kind::UpstreamReset
                | Kind::UpstreamRefused
                | Kind::UpstreamProtocol
                | Kind::Timeout
                | Kind::PerTryTimeout
        );
        of_endpoint.then_some(Self::GatewayFailure)
    }
}

/// Why an endpoint is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Consecutive5xx,
    ConsecutiveGatewayFailures,
    SuccessRate,
}

impl Reason {
    pub(crate) const ALL: [Self; 3] = [Self::Consecutive5xx, Self::ConsecutiveGatewayFailures, Self::SuccessRate];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "consecutive_5xx",
            Self::ConsecutiveGatewayFailures => "consecutive_gateway_failures",
            Self::SuccessRate => "success_rate",
        }
    }
}

/// An endpoint's record. Outlives configurations.
#[derive(Debug)]
pub(super) struct Record {
    epoch: Instant,
    /// In a row.
    failures: AtomicU32,
    gateway_failures: AtomicU32,
    /// In this interval.
    requests: AtomicU32,
    successes: AtomicU32,
    /// In milliseconds after `epoch`; zero: it never was ejected.
    ejected_until: AtomicU64,
    /// How often it was ejected, less what is forgotten. Written under the lock of the [`Detector`].
    ejections: AtomicU32,
}

impl Record {
    pub(super) fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            failures: AtomicU32::new(0),
            gateway_failures: AtomicU32::new(0),
            requests: AtomicU32::new(0),
            successes: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
        }
    }

    /// The clock is only read of an endpoint that was ejected before.
    pub(super) fn is_ejected(&self, now: impl FnOnce() -> Instant) -> bool {
        let until = self.ejected_until.load(Ordering::Relaxed);
        until > 0 && millis(self.epoch, now()) < until
    }

    /// As if nothing had been.
    pub(super) fn pardon(&self) {
        for count in [&self.failures, &self.gateway_failures, &self.requests, &self.successes, &self.ejections] {
            count.store(0, Ordering::Relaxed);
        }
        self.ejected_until.store(0, Ordering::Relaxed);
    }

    /// The detector that has seen enough.
    fn count(&self, config: &OutlierDetection, outcome: Outcome) -> Option<Reason> {
        let more = |count: &AtomicU32, most: Option<u32>| {
            let most = most?;
            let reached = count.fetch_add(1, Ordering::Relaxed).saturating_add(1) >= most;
            // If it may not be ejected now, it takes as many again.
            reached.then(|| count.store(0, Ordering::Relaxed))
        };
        let clear = |count: &AtomicU32| {
            if count.load(Ordering::Relaxed) != 0 {
                count.store(0, Ordering::Relaxed);
            }
        };
        match outcome {
            Outcome::Success => {
                clear(&self.failures);
                clear(&self.gateway_failures);
                None
            }
            Outcome::ServerError => {
                clear(&self.gateway_failures);
                more(&self.failures, config.consecutive_5xx).map(|()| Reason::Consecutive5xx)
            }
            Outcome::GatewayFailure => {
                let gateway = more(&self.gateway_failures, config.consecutive_gateway_failures);
                let any = more(&self.failures, config.consecutive_5xx);
                gateway.map(|()| Reason::ConsecutiveGatewayFailures).or_else(|| any.map(|()| Reason::Consecutive5xx))
            }
        }
    }

    /// Longer each time, and shorter again for each interval since then.
    fn eject(&self, config: &OutlierDetection, now: Instant) {
        let now = millis(self.epoch, now);
        let before = self.ejected_until.load(Ordering::Relaxed);
        let quiet = if before == 0 { 0 } else { now.saturating_sub(before) / in_millis(config.interval).max(1) };
        let quiet = u32::try_from(quiet).unwrap_or(u32::MAX);
        let times = self.ejections.load(Ordering::Relaxed).saturating_sub(quiet).saturating_add(1);
        let wanted = config.base_ejection_time.saturating_mul(times);
        let ejection = wanted.min(config.max_ejection_time);
        // What makes it no longer need not be forgotten either.
        self.ejections.store(if wanted > ejection { times - 1 } else { times }, Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
        self.gateway_failures.store(0, Ordering::Relaxed);
        self.ejected_until.store(now.saturating_add(in_millis(ejection)).max(1), Ordering::Relaxed);
    }
}

/// An endpoint among those of its cluster.
#[derive(Clone, Copy)]
pub(super) struct Peer<'a> {
    pub(super) record: &'a Record,
    /// It could have requests, if it isn't ejected.
    pub(super) usable: bool,
}

/// What a cluster's endpoints have in common.
#[derive(Debug)]
pub(super) struct Detector {
    epoch: Instant,
    /// When success rates are compared next, in milliseconds after `epoch`; zero: not yet known.
    due: AtomicU64,
    ejecting: Mutex<()>,
}

impl Detector {
    pub(super) fn new(epoch: Instant) -> Self {
        Self { epoch, due: AtomicU64::new(0), ejecting: Mutex::new(()) }
    }

    /// Takes note of what came of a request. `peers` are all endpoints of the cluster with this one; `ejected` is told
    /// which of them are ejected for it.
    pub(super) fn observe<'a>(
        &self,
        config: &OutlierDetection,
        record: &'a Record,
        outcome: Outcome,
        now: Instant,
        peers: impl Fn() -> Vec<Peer<'a>>,
        mut ejected: impl FnMut(&'a Record, Reason),
    ) {
        // What was on its way when it was ejected.
        if record.is_ejected(|| now) {
            return;
        }
        if let Some(rate) = &config.success_rate {
            record.requests.fetch_add(1, Ordering::Relaxed);
            if outcome == Outcome::Success {
                record.successes.fetch_add(1, Ordering::Relaxed);
            }
            if self.is_due(config.interval, now) {
                self.compare(config, rate, &peers(), now, &mut ejected);
            }
        }
        if let Some(reason) = record.count(config, outcome)
            && self.eject(config, record, &peers(), now)
        {
            ejected(record, reason);
        }
    }

    /// True once in each interval in which there are requests.
    fn is_due(&self, interval: Duration, now: Instant) -> bool {
        let due = self.due.load(Ordering::Relaxed);
        let now = millis(self.epoch, now);
        if due != 0 && now < due {
            return false;
        }
        let next = now.saturating_add(in_millis(interval)).max(1);
        let won = self.due.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        won && due != 0
    }

    /// Ejects the endpoints whose success rate is far below that of the others, and begins to count anew.
    fn compare<'a>(
        &self,
        config: &OutlierDetection,
        rate: &SuccessRate,
        peers: &[Peer<'a>],
        now: Instant,
        ejected: &mut impl FnMut(&'a Record, Reason),
    ) {
        let of = |peer: &Peer<'a>| {
            let requests = peer.record.requests.swap(0, Ordering::Relaxed);
            let successes = peer.record.successes.swap(0, Ordering::Relaxed);
            let enough = requests > 0 && requests >= rate.min_requests && !peer.record.is_ejected(|| now);
            enough.then(|| (peer.record, f64::from(successes) / f64::from(requests)))
        };
        let rates: Vec<_> = peers.iter().filter_map(of).collect();
        if rates.len() < rate.min_hosts as usize {
            return;
        }
        let least = least_rate(rates.iter().map(|(_, rate)| *rate), rate.deviations);
        for (record, rate) in rates {
            if rate < least && self.eject(config, record, peers, now) {
                ejected(record, Reason::SuccessRate);
            }
        }
    }

    /// Ejects it if so many may be ejected, and if another one is left.
    fn eject(&self, config: &OutlierDetection, record: &Record, peers: &[Peer<'_>], now: Instant) -> bool {
        let _one_at_a_time = self.ejecting.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ejected = |peer: &&Peer<'_>| peer.record.is_ejected(|| now);
        let ejected = peers.iter().filter(is_ejected).count();
        let share = (ejected as u64 + 1) * 100 <= u64::from(config.max_ejection_percent) * peers.len() as u64;
        let others = peers.iter().filter(|peer| !std::ptr::eq(peer.record, record));
        let one_left = others.filter(|peer| peer.usable).any(|peer| !is_ejected(&peer));
        let may = one_left && (share || config.always_one && ejected == 0) && !record.is_ejected(|| now);
        if may {
            record.eject(config, now);
        }
        may
    }
}

/// The mean, less so many standard deviations.
fn least_rate(rates: impl ExactSizeIterator<Item = f64> + Clone, deviations: f64) -> f64 {
    let count = rates.len().max(1) as f64;
    let mean = rates.clone().sum::<f64>() / count;
    let variance = rates.map(|rate| (rate - mean).powi(2)).sum::<f64>() / count;
    mean - deviations * variance.sqrt()
}

fn millis(epoch: Instant, now: Instant) -> u64 {
    in_millis(now.saturating_duration_since(epoch))
}

fn in_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
