//! Waiting for what ends a connection without asking about it at each wake-up of the connection.
//!
//! The receiver of a watch channel takes a lock whenever it is polled, one that all connections share. So it is polled
//! with a waker of its own, and again only after that waker was called.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;
use tokio::sync::watch;

use crate::listen::Phase;

pub(crate) struct Drain {
    reached: Pin<Box<dyn Future<Output = ()> + Send>>,
    called: Arc<Called>,
    waker: Waker,
    done: bool,
}

struct Called {
    flag: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Called {
    fn wake(self: Arc<Self>) {
        self.flag.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl Drain {
    pub(crate) fn new(phase: watch::Receiver<Phase>, wanted: Phase) -> Self {
        Self::when(reached(phase, wanted))
    }

    pub(crate) fn when(reached: impl Future<Output = ()> + Send + 'static) -> Self {
        let called = Arc::new(Called { flag: AtomicBool::new(true), task: AtomicWaker::new() });
        Self { reached: Box::pin(reached), waker: called.clone().into(), called, done: false }
    }

    /// Whether it has been ready.
    pub(crate) fn is_over(&self) -> bool {
        self.done
    }

    /// Ready once, when it is so.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.called.task.register(cx.waker());
        if self.done || !self.called.flag.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        let ready = self.reached.as_mut().poll(&mut Context::from_waker(&self.waker));
        self.done = ready.is_ready();
        ready
    }
}

/// Ends when the proxy has come that far.
pub(crate) async fn reached(mut phase: watch::Receiver<Phase>, wanted: Phase) {
    // A sender that is gone will never say so: then there is nothing to wait for.
    if phase.wait_for(|phase| *phase >= wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn ready_once_when_told() {
        let (sender, receiver) = watch::channel(Phase::Serving);
        let mut drain = Drain::new(receiver, Phase::Draining);
        assert!(poll_fn(|cx| Poll::Ready(drain.poll(cx).is_pending())).await);
        let told = tokio::spawn(async move {
            poll_fn(|cx| drain.poll(cx)).await;
            drain
        });
        tokio::task::yield_now().await;
        sender.send_replace(Phase::Closing);
        let mut drain = told.await.unwrap();
        assert!(poll_fn(|cx| Poll::Ready(drain.poll(cx).is_pending())).await);
    }

    #[tokio::test]
    async fn never_ready_when_the_sender_is_gone() {
        let (_, receiver) = watch::channel(Phase::Serving);
        let mut drain = Drain::new(receiver, Phase::Draining);
        assert!(poll_fn(|cx| Poll::Ready(drain.poll(cx).is_pending())).await);
    }
}
