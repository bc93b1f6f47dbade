//! Taps: whoever asks sees single requests and byte streams of the proxies that report here, as they end.
//!
//! In: what is wanted, and events of proxies. Out: what each proxy is told to tell, and the events for whoever has asked. A tap
//! lives as long as its reader takes what comes. Nothing waits for a reader: what there is no room for is counted and dropped. An
//! event is read when it is known that somebody wants it, and no earlier.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderName;
use mesh_common::identity::Identity;
use mesh_common::proto::control::TapRequest;
use mesh_common::proto::telemetry::{Reporter, StatusRange, Tap, TapEvent, TapFilter, TapLoss, TapParty};
use mesh_common::tap::{
    Buffer, ForTap, Limits, MAX_ALTERNATIVES, MAX_EVENT, MAX_HEADERS, MAX_RATE, MAX_REPORTED, MAX_TAPS, RATE,
    is_within_limits, service_in,
};
use prost::Message;
use tokio::sync::{Notify, watch};
use tonic::Status;

/// What waits for a reader at most.
const WAITING: Limits = Limits { events: 10_000, bytes: 4 << 20 };
/// What a reader is given at a time.
const BATCH: Limits = Limits { events: 500, bytes: 1 << 20 };
/// A reader that takes nothing of what waits for so long is gone, or as good as that.
const STALLED: Duration = Duration::from_secs(60);
/// Bytes of a name, a method or a path.
const MAX_TEXT: usize = 1_024;
/// Bytes of a header's name.
const MAX_HEADER: usize = 128;

type List = Arc<Vec<Arc<Open>>>;

/// All that are open. A clone is the same.
#[derive(Clone)]
pub(super) struct Taps(Arc<Inner>);

struct Inner {
    open: watch::Sender<List>,
    next: AtomicU64,
}

/// One that is open.
pub(super) struct Open {
    tap: Tap,
    /// Only proxies of this service or workload are asked.
    whose: Option<TapParty>,
    state: Mutex<State>,
    news: Notify,
}

struct State {
    waiting: Buffer,
    /// Since when something waits.
    since: Option<Instant>,
    lost: u64,
    /// Its reader does not read.
    stalled: bool,
}

/// The reader's side. The tap ends when this is dropped.
pub(super) struct Reader {
    taps: Taps,
    open: Arc<Open>,
}

impl Taps {
    /// The first one has this number.
    pub(super) fn new(first: u64) -> Self {
        Self(Arc::new(Inner { open: watch::Sender::default(), next: AtomicU64::new(first) }))
    }

    /// Opens a tap, or says what is wrong with what is asked for.
    pub(super) fn open(&self, request: TapRequest, now: Instant) -> Result<Reader, Status> {
        let TapRequest { filter, whose, max_rate, headers } = request;
        let mut filter = filter.unwrap_or_default();
        // Only callers are known by these.
        filter.to.iter_mut().for_each(|party| party.identities.clear());
        check(&filter, whose.as_ref(), max_rate, &headers).map_err(Status::invalid_argument)?;
        self.end_stalled(now);
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let max_rate = if max_rate == 0 { RATE } else { max_rate };
        let state = State { waiting: Buffer::new(WAITING), since: None, lost: 0, stalled: false };
        let open = Arc::new(Open {
            tap: Tap { id, filter: Some(filter), max_rate, headers },
            whose,
            state: Mutex::new(state),
            news: Notify::new(),
        });
        let opened = self.0.open.send_if_modified(|list| {
            let room = list.len() < MAX_TAPS;
            if room {
                *list = Arc::new(list.iter().cloned().chain([open.clone()]).collect());
            }
            room
        });
        if !opened {
            let message =
                format!("{MAX_TAPS} taps are open already, which is as many as there may be: end one of them");
            return Err(Status::resource_exhausted(message));
        }
        Ok(Reader { taps: self.clone(), open })
    }

    fn close(&self, id: u64) {
        self.0.open.send_if_modified(|list| {
            let is_there = list.iter().any(|it| it.tap.id == id);
            if is_there {
                *list = Arc::new(list.iter().filter(|it| it.tap.id != id).cloned().collect());
            }
            is_there
        });
    }

    /// Tells when others are open.
    pub(super) fn changes(&self) -> watch::Receiver<List> {
        self.0.open.subscribe()
    }

    /// What this proxy is to tell.
    pub(super) fn of(&self, who: &Reporter) -> Vec<Tap> {
        self.0.open.borrow().iter().filter(|it| it.asks(who)).map(|it| it.tap.clone()).collect()
    }

    /// Hands on what a proxy has told: encoded events, and how many more there were. What no tap asks of it is not even read, and
    /// neither is what is more than a proxy tells.
    pub(super) fn deliver(&self, who: &Reporter, events: &[Vec<u8>], lost: &[TapLoss], now: Instant) {
        let list = self.0.open.borrow().clone();
        let find = |id: u64| list.iter().find(|it| it.tap.id == id && it.asks(who));
        if !list.is_empty() {
            for event in events.iter().take(MAX_REPORTED) {
                if let Some(open) = ForTap::decode(&**event).ok().and_then(|it| find(it.tap)) {
                    open.put(event, who, now);
                }
            }
            for TapLoss { tap, count } in lost.iter().take(MAX_TAPS) {
                if let Some(open) = find(*tap) {
                    open.lose(*count);
                }
            }
        }
        self.end_stalled(now);
    }

    /// Whoever reads nothing has no place that others could have. It is looked whenever a proxy reports, whatever that is, and when
    /// somebody wants a place.
    fn end_stalled(&self, now: Instant) {
        let list = self.0.open.borrow().clone();
        for open in list.iter().filter(|it| it.has_stalled(now)) {
            tracing::info!(tap = open.tap.id, "ended a tap whose reader has stalled");
            self.close(open.tap.id);
        }
    }
}

impl Open {
    fn asks(&self, who: &Reporter) -> bool {
        self.is_about(&who.workload, &who.service, &who.identity)
    }

    fn is_about(&self, workload: &str, service: &str, identity: &str) -> bool {
        self.whose.as_ref().is_none_or(|whose| is_of(whose, workload, service, identity))
    }

    fn put(&self, event: &[u8], who: &Reporter, now: Instant) {
        let event = (event.len() <= MAX_EVENT).then(|| TapEvent::decode(event).ok()).flatten();
        let event = event.filter(is_within_limits).map(|event| TapEvent { reporter: Some(who.clone()), ..event });
        let mut state = self.state();
        if event.is_some_and(|event| state.waiting.push(event)) {
            state.since.get_or_insert(now);
        } else {
            state.lost = state.lost.saturating_add(1);
        }
        self.news.notify_one();
    }

    fn lose(&self, count: u64) {
        let mut state = self.state();
        state.lost = state.lost.saturating_add(count);
        self.news.notify_one();
    }

    fn has_stalled(&self, now: Instant) -> bool {
        let mut state = self.state();
        state.stalled |= state.since.is_some_and(|since| now.saturating_duration_since(since) > STALLED);
        state.stalled
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    pub(super) fn id(&self) -> u64 {
        self.open.tap.id
    }

    pub(super) fn asks(&self, workload: &str, service: &str, identity: &str) -> bool {
        self.open.is_about(workload, service, identity)
    }

    /// Waits for what comes next: events, and how many more there were. An error is the end.
    pub(super) async fn next(&self) -> Result<(Vec<TapEvent>, u64), Status> {
        loop {
            {
                let mut state = self.open.state();
                let (events, lost) = (state.waiting.take(BATCH), std::mem::take(&mut state.lost));
                // The rest waits from now on: its reader is there.
                state.since = (!state.waiting.is_empty()).then(Instant::now);
                match (events.is_empty() && lost == 0, state.stalled) {
                    (false, _) => return Ok((events, lost)),
                    (true, true) => return Err(Status::aborted("the tap was ended, because nobody read what it had")),
                    (true, false) => (),
                }
            }
            self.open.news.notified().await;
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.taps.close(self.open.tap.id);
        tracing::info!(tap = self.open.tap.id, "a tap has ended");
    }
}

/// Whether a proxy is one of this service's, or that of this workload.
fn is_of(whose: &TapParty, workload: &str, service: &str, identity: &str) -> bool {
    let namespace = || identity.parse::<Identity>().map(|it| it.namespace).unwrap_or_default();
    service_in(service) == Some((whose.name.as_str(), whose.namespace.as_str()))
        || (workload == whose.name && namespace() == whose.namespace)
}

fn check(filter: &TapFilter, whose: Option<&TapParty>, max_rate: u32, headers: &[String]) -> Result<(), String> {
    let TapFilter { from, to, namespace, methods, path_prefix, statuses, .. } = filter;
    for (name, number) in
        [("from", from.len()), ("to", to.len()), ("methods", methods.len()), ("statuses", statuses.len())]
    {
        if number > MAX_ALTERNATIVES {
            return Err(format!("filter.{name}: {MAX_ALTERNATIVES} at most"));
        }
    }
    let parties = from.iter().chain(to).chain(whose);
    let names = parties.flat_map(|it| [&it.name, &it.namespace]);
    if names.chain(methods).chain([namespace, path_prefix]).any(|text| text.len() > MAX_TEXT) {
        return Err(format!("a name, a method or a path has {MAX_TEXT} bytes at most"));
    }
    if let Some(StatusRange { first, last }) = statuses.iter().find(|it| it.first > it.last) {
        return Err(format!("filter.statuses: {first} to {last} are none"));
    }
    if max_rate > MAX_RATE {
        return Err(format!("max_rate: {MAX_RATE} at most"));
    }
    if headers.len() > MAX_HEADERS {
        return Err(format!("headers: {MAX_HEADERS} at most"));
    }
    let is_name = |name: &&String| name.len() <= MAX_HEADER && HeaderName::from_lowercase(name.as_bytes()).is_ok();
    match headers.iter().find(|name| !is_name(name)) {
        Some(name) if name.len() > MAX_HEADER => Err(format!("headers: a name has {MAX_HEADER} bytes at most")),
        Some(name) => Err(format!("headers: {name:?} is not the name of a header in lower case")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
