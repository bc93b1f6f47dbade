//! Single requests and byte streams for whoever wants to see them, as they end.
//!
//! In: the taps that the control plane says are open, and a record of each request and stream that ends. Out: events for the
//! stream of reports, no more than each tap's rate and the buffer allow. While no tap is open, a request costs one relaxed load
//! of an atomic. While one is, it never waits for a reader: what there is no room for is counted and not told.

mod bucket;
mod event;
mod filter;
mod noted;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::HeaderMap;
use http::header::HeaderName;
use jiff::Timestamp;
use mesh_common::proto::telemetry::{Tap, TapEvent, TapLoss};
use mesh_common::tap::{Buffer, Limits, MAX_HEADERS, MAX_RATE, MAX_REPORTED, MAX_TAPS, RATE, is_within_limits};
use tokio::sync::Notify;

pub(crate) use noted::Noted;

use crate::config::JwtAuthn;
use crate::telemetry::{LocalWorkload, RequestRecord, TcpRecord};
use bucket::Bucket;
use filter::Filter;

/// What waits for the control plane at most.
const WAITING: Limits = Limits { events: 1_000, bytes: 1 << 20 };
/// What is sent at a time.
const BATCH: Limits = Limits { events: MAX_REPORTED, bytes: 256 << 10 };
/// How long the first event waits for others.
const GATHERING: Duration = Duration::from_millis(100);

/// All open taps. A clone is the same.
#[derive(Clone, Debug)]
pub struct Taps(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    local: LocalWorkload,
    on: AtomicBool,
    open: ArcSwap<All>,
    waiting: Mutex<Buffer>,
    news: Notify,
}

#[derive(Debug)]
struct All {
    taps: Vec<Arc<Open>>,
    /// Headers that some of them show.
    headers: Arc<[HeaderName]>,
}

#[derive(Debug)]
struct Open {
    tap: Tap,
    filter: Filter,
    headers: Vec<HeaderName>,
    bucket: Bucket,
    /// Events that were wanted and are not told.
    lost: AtomicU64,
}

impl Taps {
    /// None is open. `local` is who this proxy speaks for.
    pub fn new(local: LocalWorkload) -> Self {
        let inner = Inner {
            local,
            on: AtomicBool::new(false),
            open: ArcSwap::from_pointee(All::new(Vec::new())),
            waiting: Mutex::new(Buffer::new(WAITING)),
            news: Notify::new(),
        };
        Self(Arc::new(inner))
    }

    /// These are open from now on, and no others. One that was open before goes on with what its rate has left.
    pub fn set(&self, taps: Vec<Tap>, now: Instant) {
        let former = self.0.open.load_full();
        let open = |tap: Tap| match former.taps.iter().find(|it| it.tap == tap) {
            Some(known) => Some(known.clone()),
            None => Open::new(tap, now).map(Arc::new),
        };
        let taps: Vec<_> = taps.into_iter().take(MAX_TAPS).filter_map(open).collect();
        let on = !taps.is_empty();
        self.0.open.store(Arc::new(All::new(taps)));
        self.0.on.store(on, Ordering::Relaxed);
        if !on {
            self.waiting().clear();
        }
    }

    /// What a tap wants to know of a request that begins, if any is open. Requests that began before are not shown.
    #[inline]
    pub(crate) fn begin(&self, headers: &HeaderMap, authn: Option<&JwtAuthn>) -> Option<Box<Noted>> {
        if !self.0.on.load(Ordering::Relaxed) {
            return None;
        }
        let wanted = self.0.open.load().headers.clone();
        Some(Box::new(Noted::begin(wanted, headers, authn)))
    }

    /// A request has ended.
    pub(crate) fn request(&self, record: &RequestRecord<'_>) {
        let Some(noted) = record.noted else { return };
        let wanted = |it: &Open| it.filter.takes_request(record, &self.0.local);
        self.tell(wanted, |it| event::of_request(record, noted, &it.headers, &self.0.local));
    }

    /// A byte stream has ended.
    pub(crate) fn stream(&self, record: &TcpRecord<'_>) {
        if self.0.on.load(Ordering::Relaxed) {
            self.tell(|it| it.filter.takes_stream(record, &self.0.local), |_| event::of_stream(record, &self.0.local));
        }
    }

    fn tell(&self, wanted: impl Fn(&Open) -> bool, event: impl Fn(&Open) -> TapEvent) {
        for open in self.0.open.load().taps.iter().filter(|it| wanted(it)) {
            let told = open.bucket.take(Instant::now()) && {
                let event = event::begun(event(open), open.tap.id, Timestamp::now());
                is_within_limits(&event) && self.waiting().push(event)
            };
            if !told {
                open.lost.fetch_add(1, Ordering::Relaxed);
            }
            self.0.news.notify_one();
        }
    }

    /// Ready when there is something to tell, and it has been gathered for a moment.
    pub async fn due(&self) {
        while !self.has_news() {
            self.0.news.notified().await;
        }
        tokio::time::sleep(GATHERING).await;
    }

    fn has_news(&self) -> bool {
        !self.waiting().is_empty() || self.0.open.load().taps.iter().any(|it| it.lost.load(Ordering::Relaxed) > 0)
    }

    /// As much as is told at a time, and how many events were not told.
    pub fn take(&self) -> (Vec<TapEvent>, Vec<TapLoss>) {
        let mut events = self.waiting().take(BATCH);
        let open = self.0.open.load();
        // One may have come just after its tap had ended.
        events.retain(|event| open.taps.iter().any(|it| it.tap.id == event.tap));
        let lost = open.taps.iter().map(|it| TapLoss { tap: it.tap.id, count: it.lost.swap(0, Ordering::Relaxed) });
        (events, lost.filter(|it| it.count > 0).collect())
    }

    fn waiting(&self) -> MutexGuard<'_, Buffer> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl All {
    fn new(taps: Vec<Arc<Open>>) -> Self {
        let mut headers: Vec<_> = taps.iter().flat_map(|it| it.headers.clone()).collect();
        headers.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        headers.dedup();
        Self { taps, headers: headers.into() }
    }
}

impl Open {
    /// `None` if it asks for what this proxy does not understand: it would show more than it should.
    fn new(tap: Tap, now: Instant) -> Option<Self> {
        let filter = Filter::new(tap.filter.as_ref()?)?;
        let name = |name: &String| HeaderName::try_from(name).ok();
        let headers = tap.headers.iter().take(MAX_HEADERS).map(name).collect::<Option<_>>()?;
        let rate = if tap.max_rate == 0 { RATE } else { tap.max_rate.min(MAX_RATE) };
        Some(Self { filter, headers, bucket: Bucket::new(rate, now), lost: AtomicU64::new(0), tap })
    }
}
