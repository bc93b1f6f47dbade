//! How much of a cluster is in use, and its circuit breakers: what would go beyond a limit is refused at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::config::Limits;
use crate::error::{Error, Kind};

/// Counts of one cluster, over all its endpoints.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    requests: AtomicU32,
    pending: AtomicU32,
    retries: AtomicU32,
    connections: AtomicU32,
    /// Told when a connection is closed.
    freed: Notify,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Requests,
    Pending,
    Retries,
    Connections,
}

/// One unit in use, until it is dropped.
#[derive(Debug)]
pub(crate) struct InUse {
    usage: Arc<Usage>,
    what: What,
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.usage.count(self.what).fetch_sub(1, Ordering::AcqRel);
        if matches!(self.what, What::Connections) {
            self.usage.freed.notify_one();
        }
    }
}

/// A connection of a cluster that is one of a pool, until it is dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    _in_use: InUse,
    of_pool: Arc<AtomicU32>,
}

impl Drop for Connection {
    /// Before whoever waits for it is told.
    fn drop(&mut self) {
        self.of_pool.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Usage {
    fn count(&self, what: What) -> &AtomicU32 {
        match what {
            What::Requests => &self.requests,
            What::Pending => &self.pending,
            What::Retries => &self.retries,
            What::Connections => &self.connections,
        }
    }

    fn take(self: &Arc<Self>, what: What, limit: u32) -> Option<InUse> {
        let count = self.count(what);
        if count.fetch_add(1, Ordering::AcqRel) >= limit {
            count.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(InUse { usage: self.clone(), what })
    }

    pub(crate) fn request(self: &Arc<Self>, limits: &Limits) -> Result<InUse, Error> {
        let refused = || Error::because(Kind::Overflow, "the cluster's limit of parallel requests is reached");
        self.take(What::Requests, limits.max_requests).ok_or_else(refused)
    }

    /// A request that waits for a connection.
    pub(super) fn pending(self: &Arc<Self>, limits: &Limits) -> Result<InUse, Error> {
        let refused = || Error::because(Kind::Overflow, "the cluster's limit of waiting requests is reached");
        self.take(What::Pending, limits.max_pending).ok_or_else(refused)
    }

    /// `None` while the budget or the limit of parallel retries is used up.
    pub(crate) fn retry(self: &Arc<Self>, limits: &Limits) -> Option<InUse> {
        let limit = limits.retry_budget.map_or(limits.max_retries, |budget| {
            let requests = u64::from(self.requests.load(Ordering::Acquire));
            let share = requests * u64::from(budget.percent) / 100;
            u32::try_from(share).unwrap_or(u32::MAX).max(budget.min_concurrency)
        });
        self.take(What::Retries, limit)
    }

    pub(super) fn connection(self: &Arc<Self>, limits: &Limits) -> Option<InUse> {
        self.take(What::Connections, limits.max_connections)
    }

    /// For a pool that has none. It may always have one, as with Envoy: those of other endpoints, or of the other HTTP version,
    /// must not keep it from serving.
    pub(super) fn first_connection(self: &Arc<Self>) -> InUse {
        self.connections.fetch_add(1, Ordering::AcqRel);
        InUse { usage: self.clone(), what: What::Connections }
    }

    /// For a pool whose connections `of_pool` counts.
    pub(super) fn connection_of(self: &Arc<Self>, of_pool: &Arc<AtomicU32>, limits: &Limits) -> Option<Connection> {
        let in_use = match self.connection(limits) {
            Some(in_use) => {
                of_pool.fetch_add(1, Ordering::AcqRel);
                in_use
            }
            None => {
                of_pool.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire).ok()?;
                self.first_connection()
            }
        };
        Some(Connection { _in_use: in_use, of_pool: of_pool.clone() })
    }

    /// Ready when a connection of the cluster has been closed since the last time.
    pub(super) fn connection_freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// For somebody else who waits for [`connection_freed`](Self::connection_freed).
    pub(super) fn pass_on(&self) {
        self.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RetryBudget;

    const LIMITS: Limits =
        Limits { max_connections: 1, max_pending: 0, max_requests: 2, max_retries: 1, retry_budget: None };

    #[test]
    fn a_limit_holds_until_something_is_given_back() {
        let usage = Arc::new(Usage::default());
        let first = usage.request(&LIMITS).unwrap();
        let _second = usage.request(&LIMITS).unwrap();
        assert_eq!(usage.request(&LIMITS).unwrap_err().kind, Kind::Overflow);
        drop(first);
        assert!(usage.request(&LIMITS).is_ok());
    }

    #[test]
    fn a_pool_may_always_have_one_connection() {
        let usage = Arc::new(Usage::default());
        let [a, b] = [Arc::default(), Arc::default()];
        let first = usage.connection_of(&a, &LIMITS).unwrap();
        assert!(usage.connection_of(&a, &LIMITS).is_none());
        let second = usage.connection_of(&b, &LIMITS).unwrap();
        assert!(usage.connection_of(&b, &LIMITS).is_none());
        drop(second);
        assert!(usage.connection_of(&a, &LIMITS).is_none(), "the limit is used up by the first");
        drop(first);
        assert!(usage.connection_of(&a, &LIMITS).is_some());
        assert_eq!((usage.connections.load(Ordering::Relaxed), a.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn zero_lets_nothing_through() {
        let usage = Arc::new(Usage::default());
        assert_eq!(usage.pending(&LIMITS).unwrap_err().kind, Kind::Overflow);
    }

    #[test]
    fn the_budget_follows_the_number_of_requests() {
        let limits = Limits {
            max_requests: 1000,
            retry_budget: Some(RetryBudget { percent: 20, min_concurrency: 3 }),
            ..LIMITS
        };
        let usage = Arc::new(Usage::default());
        let few: Vec<_> = std::iter::from_fn(|| usage.retry(&limits)).collect();
        assert_eq!(few.len(), 3);
        drop(few);
        let _requests: Vec<_> = (0..100).map(|_| usage.request(&limits).unwrap()).collect();
        let many: Vec<_> = std::iter::from_fn(|| usage.retry(&limits)).collect();
        assert_eq!(many.len(), 20);
    }
}
