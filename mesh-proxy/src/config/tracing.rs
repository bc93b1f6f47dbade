use std::sync::Arc;

use http::uri::{Authority, PathAndQuery};

use crate::trace::TraceId;

/// Of an HTTP connection manager: which requests leave spans, and where these go.
#[derive(Debug)]
pub struct Tracing {
    pub sampling: Sampling,
    pub provider: Arc<Provider>,
}

/// Where spans go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    pub cluster: String,
    pub authority: Authority,
    pub protocol: TraceProtocol,
    /// What this proxy's workload is called in traces; empty: as its service.
    pub service_name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceProtocol {
    OtlpGrpc,
    OtlpHttp(PathAndQuery),
    /// JSON of version 2.
    Zipkin(PathAndQuery),
}

/// A share of traces. The trace's id alone decides, so that everybody with the same share decides alike, and who has a
/// greater one takes those of a smaller one too: OpenTelemetry's consistent probability sampling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// The least value of the id's random part that is taken.
    least: u64,
}

/// The random part of a trace's id is its last 56 bits.
const RANDOM: u64 = 1 << 56;

impl Sampling {
    /// `share` is from 0 to 1; what is outside of it is taken for the nearer end.
    pub fn new(share: f64) -> Self {
        // Of 56 bits an `f64` has 53: what is lost is less than a trace in a thousand million.
        #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)]
        let left_out = ((1.0 - share.clamp(0.0, 1.0)) * RANDOM as f64) as u64;
        Self { least: left_out.min(RANDOM) }
    }

    pub fn takes(self, trace: TraceId) -> bool {
        // The lower half of the id.
        #[allow(clippy::cast_possible_truncation)]
        let random = trace.get() as u64 % RANDOM;
        random >= self.least
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(share: f64) -> usize {
        let mut random = fastrand::Rng::with_seed(7);
        let ids = (0..100_000).map(|_| TraceId::new(random.u128(1..)).unwrap());
        ids.filter(|id| Sampling::new(share).takes(*id)).count()
    }

    #[test]
    fn shares() {
        assert_eq!((taken(0.0), taken(-1.0), taken(f64::MIN_POSITIVE)), (0, 0, 0));
        assert_eq!((taken(1.0), taken(2.0)), (100_000, 100_000));
        assert!((900..1100).contains(&taken(0.01)), "{}", taken(0.01));
        assert!((24_500..25_500).contains(&taken(0.25)), "{}", taken(0.25));
    }

    #[test]
    fn who_takes_more_takes_the_same_and_others() {
        let (few, many) = (Sampling::new(0.1), Sampling::new(0.3));
        let mut random = fastrand::Rng::with_seed(7);
        let mut ids = (0..10_000).map(|_| TraceId::new(random.u128(1..)).unwrap());
        assert!(ids.all(|id| many.takes(id) || !few.takes(id)));
    }
}
