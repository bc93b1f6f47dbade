use std::sync::atomic::{AtomicU64, Ordering};

use super::outlier::Reason;

/// Counts of all clusters, for the metrics.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// In the order of [`Reason::ALL`].
    ejections: [AtomicU64; 3],
    passed: AtomicU64,
    failed: AtomicU64,
}

/// Why an endpoint gets no requests for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shunned {
    /// It fails its health checks.
    Failing,
    /// It has not been checked yet.
    Unknown,
    Ejected,
}

impl Shunned {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Failing => "failing its health check",
            Self::Unknown => "not checked yet",
            Self::Ejected => "ejected",
        }
    }
}

/// What is known of the health of the endpoints that this proxy talks to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct HealthReport {
    /// By reason, since the proxy began.
    pub ejections: [(&'static str, u64); 3],
    /// Likewise by result.
    pub checks: [(&'static str, u64); 2],
    /// Endpoints that are ejected now, and those that fail their checks.
    pub ejected: usize,
    pub failing: usize,
}

impl Tally {
    pub(super) fn ejected(&self, reason: Reason) {
        self.ejections[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn checked(&self, passed: bool) {
        let count = if passed { &self.passed } else { &self.failed };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn report(&self) -> HealthReport {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        HealthReport {
            ejections: Reason::ALL.map(|reason| (reason.as_str(), of(&self.ejections[reason as usize]))),
            checks: [("success", of(&self.passed)), ("failure", of(&self.failed))],
            ejected: 0,
            failing: 0,
        }
    }
}
