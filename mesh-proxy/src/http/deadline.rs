//! When a request has taken too long: the route's timeout, that of one try, a gRPC client's own, and silence.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use super::request_body::Upload;
use super::timer::{Timer, Timers};
use crate::error::Kind;

/// Zero durations mean none.
#[derive(Debug)]
pub(crate) struct Deadline {
    timers: Timers,
    timer: Option<Timer>,
    /// From the end of the request to the end of the response.
    timeout: Duration,
    /// From the end of the request, or the beginning of the try, to the head of the response.
    per_try: Duration,
    /// Without anything going either way.
    idle: Duration,
    /// The client's own.
    client: Option<Instant>,
    start: Instant,
    /// When something came from upstream, or a try began.
    last: Instant,
    try_began: Instant,
}

impl Deadline {
    pub(crate) fn none(timers: &Timers, start: Instant) -> Self {
        Self::new(timers, start, Duration::ZERO, Duration::ZERO, None)
    }

    pub(crate) fn new(
        timers: &Timers,
        start: Instant,
        timeout: Duration,
        idle: Duration,
        client: Option<Instant>,
    ) -> Self {
        let timers = timers.clone();
        Self {
            timers,
            timer: None,
            timeout,
            per_try: Duration::ZERO,
            idle,
            client,
            start,
            last: start,
            try_began: start,
        }
    }

    pub(crate) fn begin_try(&mut self, per_try: Duration, now: Instant) {
        (self.per_try, self.try_began, self.last) = (per_try, now, now);
    }

    /// The try is over, well or not.
    pub(crate) fn end_try(&mut self, now: Instant) {
        (self.per_try, self.last) = (Duration::ZERO, now);
    }

    /// How long the client still waits, if it said so.
    pub(crate) fn client_waits(&self, now: Instant) -> Option<Duration> {
        Some(self.client?.saturating_duration_since(now))
    }

    /// What has run out by now.
    pub(crate) fn passed(&self, upload: Option<&Upload>, now: Instant) -> Option<Kind> {
        self.next(upload).filter(|(at, _)| *at <= now).map(|(_, kind)| kind)
    }

    /// Something came from upstream. The clock is only read when silence matters.
    pub(crate) fn moved(&mut self, now: impl FnOnce() -> Instant) {
        if !self.idle.is_zero() {
            self.last = now();
        }
    }

    /// Runs the future to its end or to the deadline.
    pub(crate) async fn limit<F: Future>(&mut self, upload: Option<&Upload>, future: F) -> Result<F::Output, Kind> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => self.poll(upload, cx).map(Err),
        })
        .await
    }

    /// Ready with what ran out.
    pub(crate) fn poll(&mut self, upload: Option<&Upload>, cx: &mut Context<'_>) -> Poll<Kind> {
        loop {
            let Some((at, kind)) = self.next(upload) else { return Poll::Pending };
            let timer = match &mut self.timer {
                Some(timer) => {
                    timer.set(at);
                    timer
                }
                none => none.insert(self.timers.at(at)),
            };
            ready!(timer.poll(cx));
            // The body may have moved the deadline since the timer was set.
            if self.next(upload).is_none_or(|(now, _)| now <= at) {
                return Poll::Ready(kind);
            }
        }
    }

    fn next(&self, upload: Option<&Upload>) -> Option<(Instant, Kind)> {
        let (ended, last) = match upload {
            None => (Some(self.start), self.last),
            Some(upload) => (upload.ended(), self.last.max(upload.last())),
        };
        let after = |from: Option<Instant>, duration: Duration, kind: Kind| {
            let at = from?.checked_add(duration)?;
            (!duration.is_zero()).then_some((at, kind))
        };
        let all = [
            after(ended, self.timeout, Kind::Timeout),
            self.client.map(|at| (at, Kind::Timeout)),
            after(ended.map(|at| at.max(self.try_began)), self.per_try, Kind::PerTryTimeout),
            after(Some(last), self.idle, Kind::StreamIdle),
        ];
        all.into_iter().flatten().min_by_key(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    async fn runs_out(deadline: &mut Deadline) -> (Kind, u64) {
        let start = tokio::time::Instant::now();
        let kind = deadline.limit(None, std::future::pending::<()>()).await.unwrap_err();
        (kind, start.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_to_run_out_decides() {
        let timers = Timers::default();
        let now = || tokio::time::Instant::now().into_std();
        let mut deadline = Deadline::new(&timers, now(), 10 * SECOND, 5 * SECOND, Some(now() + 7 * SECOND));
        deadline.begin_try(3 * SECOND, now());
        assert_eq!(deadline.passed(None, now()), None);
        assert_eq!(deadline.passed(None, now() + 3 * SECOND), Some(Kind::PerTryTimeout));
        assert_eq!(runs_out(&mut deadline).await, (Kind::PerTryTimeout, 3));
        deadline.end_try(now());
        // Three seconds have gone; silence counts from now.
        assert_eq!(runs_out(&mut deadline).await, (Kind::Timeout, 4));
        let mut deadline = Deadline::new(&timers, now(), 60 * SECOND, 5 * SECOND, None);
        assert_eq!(runs_out(&mut deadline).await, (Kind::StreamIdle, 5));
        deadline.moved(now);
        assert_eq!(runs_out(&mut deadline).await, (Kind::StreamIdle, 5));
        assert_eq!(runs_out(&mut deadline).await.0, Kind::StreamIdle);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_timeout_nothing_runs_out() {
        let mut deadline = Deadline::none(&Timers::default(), Instant::now());
        let patient = tokio::time::timeout(1_000_000 * SECOND, runs_out(&mut deadline)).await;
        assert!(patient.is_err());
        assert!(deadline.timer.is_none());
    }
}
