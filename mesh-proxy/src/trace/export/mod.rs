//! Takes spans to where they are gathered. In: spans of requests that have ended. Out: batches over OTLP or in Zipkin's JSON.
//!
//! A request only ever puts its spans into a queue. What the queue has no room for is dropped and counted, and so is what the
//! backend does not take: one that hangs, refuses or is not there slows nobody.

mod otlp;
mod send;
mod zipkin;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Span;
use crate::config::Provider;
use crate::control::Backoff;
use crate::telemetry::LocalWorkload;
use crate::upstream::Upstreams;
use send::{Backend, Failure};

/// Spans that wait at most.
const QUEUE: usize = 2048;
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const GATHERING: Duration = Duration::from_secs(1);
/// How often a batch is sent at most, and the waits between.
const TRIES: u32 = 3;
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));
/// A backend to which nothing goes any more is forgotten after that time.
const IDLE: Duration = Duration::from_secs(600);
/// Backends at a time: that of the configuration in force, and those of connections that have an older one.
const BACKENDS: usize = 8;

/// What became of spans, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    pub taken: u64,
    /// There was no room for them.
    pub queue_full: u64,
    /// The backend would not have them.
    pub refused: u64,
    /// It did not answer in time, or was not there.
    pub unavailable: u64,
}

#[derive(Debug, Default)]
struct Counts {
    taken: AtomicU64,
    queue_full: AtomicU64,
    refused: AtomicU64,
    unavailable: AtomicU64,
}

fn add(counter: &AtomicU64, number: usize) {
    counter.fetch_add(number as u64, Ordering::Relaxed);
}

/// The queues of all backends. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Exporter {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    local: LocalWorkload,
    queues: ArcSwap<Vec<Arc<Queue>>>,
    /// Held while the queues change.
    changing: Mutex<()>,
    ended: AtomicBool,
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Queue {
    provider: Arc<Provider>,
    spans: mpsc::Sender<Span>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Exporter {
    /// For the spans of this workload.
    pub fn new(local: LocalWorkload) -> Self {
        let inner = Inner {
            local,
            queues: ArcSwap::default(),
            changing: Mutex::default(),
            ended: AtomicBool::new(false),
            counts: Arc::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Puts the spans into their queue, or drops them.
    pub(crate) fn put(&self, provider: &Arc<Provider>, upstreams: &Upstreams, spans: Vec<Span>) {
        let queues = self.inner.queues.load();
        let queue = queues.iter().find(|queue| queue.is_of(provider)).cloned();
        let Some(queue) = queue.or_else(|| self.open(provider, upstreams)) else {
            return add(&self.inner.counts.queue_full, spans.len());
        };
        for span in spans {
            if queue.spans.try_send(span).is_err() {
                add(&self.inner.counts.queue_full, 1);
            }
        }
    }

    fn open(&self, provider: &Arc<Provider>, upstreams: &Upstreams) -> Option<Arc<Queue>> {
        let runtime = Handle::try_current().ok()?;
        let _changing = self.inner.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let queues = self.inner.queues.load_full();
        if let Some(queue) = queues.iter().find(|queue| queue.is_of(provider)) {
            return Some(queue.clone());
        }
        if queues.len() >= BACKENDS || self.inner.ended.load(Ordering::Relaxed) {
            return None;
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        let backend = Backend::new(provider.clone(), upstreams.clone(), self.inner.local.clone());
        let owner = Arc::downgrade(&self.inner);
        let task = runtime.spawn(run(receiver, backend, self.inner.counts.clone(), owner));
        let queue = Arc::new(Queue { provider: provider.clone(), spans: sender, task: Mutex::new(Some(task)) });
        self.inner.queues.store(Arc::new(queues.iter().cloned().chain([queue.clone()]).collect()));
        Some(queue)
    }

    pub fn exported(&self) -> Exported {
        let counts = &self.inner.counts;
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Exported {
            taken: of(&counts.taken),
            queue_full: of(&counts.queue_full),
            refused: of(&counts.refused),
            unavailable: of(&counts.unavailable),
        }
    }

    /// Sends what waits, for at most `timeout`. From here on nothing is taken.
    pub async fn end(&self, timeout: Duration) {
        let queues = {
            let _changing = self.inner.changing.lock().unwrap_or_else(PoisonError::into_inner);
            self.inner.ended.store(true, Ordering::Relaxed);
            self.inner.queues.swap(Arc::default())
        };
        let take = |queue: &Arc<Queue>| queue.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        let tasks: Vec<_> = queues.iter().filter_map(take).collect();
        // With the senders, so that the tasks come to an end.
        drop(queues);
        let all = async {
            for task in tasks {
                let _ = task.await;
            }
        };
        let _ = tokio::time::timeout(timeout, all).await;
    }
}

impl Inner {
    fn forget(&self, provider: &Provider) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let queues = self.queues.load();
        let others = queues.iter().filter(|queue| *queue.provider != *provider).cloned().collect();
        self.queues.store(Arc::new(others));
    }
}

impl Queue {
    fn is_of(&self, provider: &Arc<Provider>) -> bool {
        Arc::ptr_eq(&self.provider, provider) || self.provider == *provider
    }
}

/// Sends what comes, until nobody can send anything any more.
async fn run(mut spans: mpsc::Receiver<Span>, backend: Backend, counts: Arc<Counts>, owner: Weak<Inner>) {
    let mut works = None;
    let mut batch = Vec::new();
    loop {
        match tokio::time::timeout(IDLE, spans.recv()).await {
            Ok(Some(span)) => batch.push(span),
            Ok(None) => return,
            Err(_) => {
                if let Some(owner) = owner.upgrade() {
                    owner.forget(&backend.provider);
                }
                continue;
            }
        }
        gather(&mut spans, &mut batch).await;
        let (number, outcome) = (batch.len(), deliver(&backend, &batch).await);
        batch.clear();
        match &outcome {
            Ok(rejected) => {
                let rejected = usize::try_from(*rejected).unwrap_or(number).min(number);
                add(&counts.taken, number - rejected);
                add(&counts.refused, rejected);
            }
            Err(failure) => add(if failure.again { &counts.unavailable } else { &counts.refused }, number),
        }
        tell(&backend.provider.cluster, &mut works, outcome.err());
    }
}

/// Waits for more spans until there are enough, or it takes too long.
async fn gather(spans: &mut mpsc::Receiver<Span>, batch: &mut Vec<Span>) {
    let due = tokio::time::Instant::now() + GATHERING;
    while batch.len() < BATCH {
        let more = spans.recv_many(batch, BATCH - batch.len());
        if !matches!(tokio::time::timeout_at(due, more).await, Ok(1..)) {
            return;
        }
    }
}

/// How many of the spans the backend has rejected, or why it has none of them.
async fn deliver(backend: &Backend, batch: &[Span]) -> Result<u64, Failure> {
    let body = backend.encode(batch);
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let mut number = 1;
    loop {
        match backend.send(body.clone()).await {
            Err(failure) if failure.again && number < TRIES => {
                tokio::time::sleep(backoff.next(fastrand::f64())).await;
                number += 1;
            }
            outcome => return outcome,
        }
    }
}

/// Once for each time that it ceases to work, or works again.
fn tell(cluster: &str, works: &mut Option<bool>, failure: Option<Failure>) {
    let before = works.replace(failure.is_none());
    match failure {
        Some(failure) if before != Some(false) => {
            tracing::warn!(cluster, reason = failure.reason, "spans do not reach their backend, and are dropped");
        }
        None if before == Some(false) => tracing::info!(cluster, "spans reach their backend again"),
        _ => (),
    }
}

#[cfg(test)]
mod tests;
