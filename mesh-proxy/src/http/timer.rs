//! Deadlines that cost next to nothing while they are not reached.
//!
//! Registering a timer takes the lock of the runtime's timer wheel; doing so for each request would show in a profile.
//! Here a timer is registered once and then only moved in thought: when it fires too early it is registered again, which
//! under load happens once per timeout rather than once per request. Timers that nobody needs wait in their connection.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::time::Sleep;

/// How many unused timers a connection keeps.
const KEEP: usize = 16;

/// The timers of one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timers(Arc<Mutex<Vec<Pin<Box<Sleep>>>>>);

impl Timers {
    pub(crate) fn at(&self, deadline: Instant) -> Timer {
        let unused = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let sleep = unused.unwrap_or_else(|| Box::pin(tokio::time::sleep_until(deadline.into())));
        Timer { sleep: Some(sleep), deadline, home: self.clone() }
    }
}

/// Ready at its deadline, which may be moved at any time.
#[derive(Debug)]
pub(crate) struct Timer {
    /// Registered for some time that is not after the deadline, once polled. `None` only while being dropped.
    sleep: Option<Pin<Box<Sleep>>>,
    deadline: Instant,
    home: Timers,
}

impl Timer {
    pub(crate) fn set(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(sleep) = &mut self.sleep else { return Poll::Ready(()) };
        let deadline = self.deadline.into();
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let Some(sleep) = self.sleep.take() else { return };
        let mut unused = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if unused.len() < KEEP {
            unused.push(sleep);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn fires_at_the_deadline_that_was_set_last() {
        let timers = Timers::default();
        let start = tokio::time::Instant::now();
        let mut timer = timers.at((start + Duration::from_secs(1)).into());
        assert!(poll_fn(|cx| Poll::Ready(timer.poll(cx).is_pending())).await);
        timer.set((start + Duration::from_secs(5)).into());
        poll_fn(|cx| timer.poll(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_used_again_fires_earlier_or_later_than_before() {
        let timers = Timers::default();
        for seconds in [10, 1, 3] {
            let start = tokio::time::Instant::now();
            let mut timer = timers.at((start + Duration::from_secs(seconds)).into());
            poll_fn(|cx| timer.poll(cx)).await;
            assert_eq!(start.elapsed().as_secs(), seconds);
        }
        assert_eq!(timers.0.lock().unwrap().len(), 1);
    }
}
