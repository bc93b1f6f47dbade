//! What peers have going with the application: requests, byte streams, and connections that bring their first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// A count that is only waited for when the application is to end. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct InFlight {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    count: AtomicUsize,
    waited_for: AtomicBool,
    none: Notify,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Flight(InFlight);

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.over();
    }
}

impl InFlight {
    pub fn flight(&self) -> Flight {
        self.begun();
        Flight(self.clone())
    }

    /// To be followed by [`over`](Self::over).
    pub(crate) fn begun(&self) {
        self.inner.count.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn over(&self) {
        if self.inner.count.fetch_sub(1, Ordering::SeqCst) == 1 && self.inner.waited_for.load(Ordering::SeqCst) {
            self.inner.none.notify_waiters();
        }
    }

    /// Waits until there is nothing.
    pub async fn none(&self) {
        self.inner.waited_for.store(true, Ordering::SeqCst);
        loop {
            let none = self.inner.none.notified();
            if self.inner.count.load(Ordering::SeqCst) == 0 {
                return;
            }
            none.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn waits_for_the_last() {
        let in_flight = InFlight::default();
        in_flight.none().await;
        let (first, second) = (in_flight.flight(), in_flight.flight());
        let waiting = tokio::spawn({
            let in_flight = in_flight.clone();
            async move { in_flight.none().await }
        });
        drop(first);
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(!waiting.is_finished());
        drop(second);
        waiting.await.unwrap();
    }
}
