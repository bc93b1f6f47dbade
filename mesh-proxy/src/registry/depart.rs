//! The workload's way out of the mesh: peers are told to go elsewhere, the control plane takes the workload out of
//! discovery, and what comes meanwhile is served, until every peer is known to have heard of it.
//!
//! In: somebody who says that the application is to end, or that this proxy is. Out: the phase [`Phase::Draining`], and an
//! answer when nobody calls any more. Whoever says so about the application may be anybody; so nothing happens before the
//! control plane confirms it. A supervisor's signal to the proxy itself needs no confirmation.

use std::future::Future;
use std::time::Duration;

use mesh_common::proto::workload::workload_registry_client::WorkloadRegistryClient;
use mesh_common::proto::workload::{DepartRequest, DepartResponse};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::transport::Channel;

use super::is_refusal;
use crate::control::{Backoff, explain_status};
use crate::listen::{InFlight, Phase};

/// Callers of the drain endpoint who wait at the same time.
const WAITING: usize = 16;
/// How long an application that is to end is kept waiting for peers that do not acknowledge, and the last one of a service for
/// another to become ready.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// The same for a proxy that is to end.
const END_LIMIT: Duration = Duration::from_secs(5);
/// How long a control plane is tried that cannot be reached. Peers that have connections have been told by then.
const UNREACHABLE_LIMIT: Duration = Duration::from_millis(1500);
/// How long the first question is put again that has no answer: a replica of the control plane may be going away, and whoever
/// asks to drain does not ask twice.
const UNCONFIRMED_LIMIT: Duration = Duration::from_secs(3);
/// How long one question may wait for its answer beyond the time that it asks for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// Why the workload stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stays {
    #[error("too many callers wait for this already")]
    Busy,
    #[error("{0}")]
    Refused(String),
    #[error("the control plane cannot confirm that the workload is to end: {0}")]
    Unconfirmed(String),
}

enum Ask {
    /// The application is said to end.
    Drain(oneshot::Sender<Result<(), Stays>>),
    /// The proxy ends.
    End(oneshot::Sender<()>),
}

/// Where to ask. Clones ask the same.
#[derive(Clone, Debug)]
pub struct Departure {
    asks: mpsc::Sender<Ask>,
}

impl Departure {
    pub fn new() -> (Self, Asks) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self { asks: sender }, Asks { receiver, drains: Vec::new(), ends: Vec::new() })
    }

    /// Ready when no peer calls the application any more, or as many as can be known in [`Patience::peers`], and it has answered
    /// what it had.
    pub async fn drain(&self) -> Result<(), Stays> {
        let (reply, answer) = oneshot::channel();
        self.asks.try_send(Ask::Drain(reply)).map_err(|_| Stays::Busy)?;
        answer.await.unwrap_or(Err(Stays::Busy))
    }

    /// The same before the proxy's own end; sooner when nobody could know of it.
    pub async fn end(&self) {
        let (reply, answer) = oneshot::channel();
        if self.asks.send(Ask::End(reply)).await.is_ok() {
            // Without an answer there is nothing to wait for.
            let _ = answer.await;
        }
    }
}

/// What was asked and not answered yet.
pub struct Asks {
    receiver: mpsc::Receiver<Ask>,
    drains: Vec<oneshot::Sender<Result<(), Stays>>>,
    ends: Vec<oneshot::Sender<()>>,
}

impl Asks {
    /// Waits for the next one; false when there can be none any more.
    async fn next(&mut self) -> bool {
        match self.receiver.recv().await {
            None => return false,
            Some(Ask::End(reply)) => self.ends.push(reply),
            Some(Ask::Drain(reply)) if self.drains.len() < WAITING => self.drains.push(reply),
            // Whoever has gone needs no answer.
            Some(Ask::Drain(reply)) => drop(reply.send(Err(Stays::Busy))),
        }
        true
    }

    fn answer(&mut self, outcome: &Result<(), Stays>) {
        for reply in self.drains.drain(..) {
            let _ = reply.send(outcome.clone());
        }
        for reply in self.ends.drain(..) {
            let _ = reply.send(());
        }
    }
}

/// The workload that departs.
pub struct Departing<D> {
    pub workload: String,
    pub dial: D,
    pub phase: watch::Sender<Phase>,
    /// Tells the registration to end, if there is one.
    pub leaving: Option<watch::Sender<bool>>,
    /// Somebody may know of the workload: it has registered, or a platform has told of it.
    pub known: bool,
    pub in_flight: InFlight,
    pub patience: Patience,
}

/// How long an application that is to end is kept waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For peers that do not acknowledge, and before that for another one, if it is the last of its service.
    pub peers: Duration,
    /// To finish what it has.
    pub finish: Duration,
}

impl Patience {
    /// `grace`: whoever ends the application gives it so much time in all, of which some must be left for itself.
    pub fn new(finish: Duration, grace: Option<Duration>) -> Self {
        let grace = grace.unwrap_or(Duration::MAX);
        Self { peers: DRAIN_LIMIT.min(grace / 3), finish: finish.min(grace / 6) }
    }
}

impl<D, F> Departing<D>
where
    D: Fn() -> F,
    F: Future<Output = Result<Channel, String>>,
{
    /// Answers what is asked for as long as anybody may ask.
    pub async fn run(self, mut asks: Asks) {
        let told = loop {
            if !asks.next().await {
                return;
            }
            if !asks.ends.is_empty() {
                break true;
            }
            match self.confirm(&mut asks).await {
                Ok(replaced) => break replaced,
                Err(stays) => {
                    tracing::info!(%stays, "asked to drain, and the workload stays");
                    asks.answer(&Err(stays));
                }
            }
        };
        let began = Instant::now();
        Phase::advance(&self.phase, Phase::Draining);
        if let Some(leaving) = &self.leaving {
            leaving.send_replace(true);
        }
        if self.known && told {
            self.wait_for_peers(&mut asks, began).await;
        }
        self.finish(&mut asks).await;
        asks.answer(&Ok(()));
        while asks.next().await {
            asks.answer(&Ok(()));
        }
    }

    /// The control plane says that the workload is to end, or the proxy is told to end meanwhile.
    /// False: peers go on calling it, since its service has nobody else.
    async fn confirm(&self, asks: &mut Asks) -> Result<bool, Stays> {
        let mut confirming = std::pin::pin!(self.confirmed());
        loop {
            tokio::select! {
                answer = &mut confirming => return answer,
                true = asks.next() => if !asks.ends.is_empty() {
                    return Ok(true);
                },
            }
        }
    }

    /// While a service has nobody else, peers are not told to go elsewhere; another one has some time to become ready.
    async fn confirmed(&self) -> Result<bool, Stays> {
        let deadline = Instant::now() + self.patience.peers;
        let mut answer = self.first_answer().await?;
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        while answer.last && Instant::now() < deadline {
            match self.ask(deadline.saturating_duration_since(Instant::now()), false).await {
                Ok(next) => answer = next,
                // Perhaps another replica knows.
                Err(_) => tokio::time::sleep(backoff.next(fastrand::f64())).await,
            }
        }
        if answer.last {
            tracing::warn!(waited = ?self.patience.peers, "the application is to end, and its service has nobody else");
        }
        Ok(!answer.last)
    }

    /// A refusal is one; anything else may be better at the next attempt.
    async fn first_answer(&self) -> Result<DepartResponse, Stays> {
        let deadline = Instant::now() + UNCONFIRMED_LIMIT;
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        loop {
            let reason = match self.ask(Duration::ZERO, false).await {
                Ok(answer) => return Ok(answer),
                Err(Unanswered::Refused(reason)) => return Err(Stays::Refused(reason)),
                Err(Unanswered::Failed(reason)) => reason,
            };
            let wait = backoff.next(fastrand::f64());
            if Instant::now() + wait >= deadline {
                return Err(Stays::Unconfirmed(reason));
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Until all peers have acknowledged that the workload is gone, or time is up.
    async fn wait_for_peers(&self, asks: &mut Asks, began: Instant) {
        // A proxy that is told to end needs no confirmation.
        let ending = !asks.ends.is_empty();
        let mut deadline = began + if ending { END_LIMIT } else { self.patience.peers };
        let mut waiting = std::pin::pin!(self.until_gone(deadline, ending));
        let told = loop {
            tokio::select! {
                told = &mut waiting => break told,
                true = asks.next() => if !asks.ends.is_empty() {
                    deadline = deadline.min(Instant::now() + END_LIMIT);
                },
                () = tokio::time::sleep_until(deadline) => break Err("time is up".to_owned()),
            }
        };
        let took = began.elapsed();
        match told {
            Ok(()) => tracing::info!(?took, "no peer calls the application any more"),
            Err(reason) => tracing::warn!(?took, reason, "peers may not know yet that the application is to end"),
        }
    }

    /// An application may end without finishing what it has: so it is not told to before it has nothing. A proxy that is
    /// to end looks after that by itself.
    async fn finish(&self, asks: &mut Asks) {
        let mut finished = std::pin::pin!(tokio::time::timeout(self.patience.finish, self.in_flight.none()));
        while asks.ends.is_empty() {
            tokio::select! {
                finished = &mut finished => {
                    if finished.is_err() {
                        tracing::warn!("peers have something open with the application that does not end");
                    }
                    return;
                }
                true = asks.next() => {}
            }
        }
    }

    async fn until_gone(&self, deadline: Instant, ending: bool) -> Result<(), String> {
        let unreachable = Instant::now() + UNREACHABLE_LIMIT;
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let reason = match self.ask(left, ending).await {
                Ok(DepartResponse { gone: true, .. }) => return Ok(()),
                Ok(DepartResponse { waiting_for, .. }) => {
                    if Instant::now() >= deadline {
                        return Err(format!("no acknowledgement from {}", waiting_for.join(", ")));
                    }
                    continue;
                }
                Err(Unanswered::Refused(reason)) => return Err(reason),
                Err(Unanswered::Failed(reason)) => reason,
            };
            let wait = backoff.next(fastrand::f64());
            if Instant::now() + wait >= unreachable.min(deadline) {
                return Err(reason);
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn ask(&self, wait: Duration, ending: bool) -> Result<DepartResponse, Unanswered> {
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let request = DepartRequest { name: self.workload.clone(), wait_ms, ending };
        let asking = async {
            let channel = (self.dial)().await.map_err(Unanswered::Failed)?;
            let answer = WorkloadRegistryClient::new(channel).depart(request).await;
            answer.map(tonic::Response::into_inner).map_err(|status| match is_refusal(status.code()) {
                true => Unanswered::Refused(explain_status(&status)),
                false => Unanswered::Failed(explain_status(&status)),
            })
        };
        let answer = tokio::time::timeout(wait + ANSWER_TIMEOUT, asking).await;
        answer.unwrap_or_else(|_| Err(Unanswered::Failed("the control plane did not answer in time".to_owned())))
    }
}

/// Why there is no answer.
enum Unanswered {
    Refused(String),
    Failed(String),
}
