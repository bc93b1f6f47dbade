//! The last minute, by proxy and series, and what each proxy serves. A state machine: no I/O, and the time is an argument.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use mesh_common::identity::Identity;
use mesh_common::metrics::DURATION_BUCKETS;
use mesh_common::names::served_fqdn;
use mesh_common::proto::control::{Certificate, ListTrafficResponse, Traffic, WorkloadCertificate};
use mesh_common::proto::telemetry::{Counts, Labels, Protocol, Reporter, Series};
use mesh_common::reports::{MAX_SERIES, beyond};

/// What is counted together in time.
const SLOT: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(60);
/// Slots that make up the longest window, and the one that is being filled.
const SLOTS: u64 = LONGEST.as_secs() / SLOT.as_secs() + 1;
/// A proxy that says nothing for longer has nothing to say: its rates go down.
const SILENT: Duration = Duration::from_secs(15);
/// Proxies whose reports are kept; there can be as many streams of configuration.
const MAX_REPORTERS: usize = 20_000;
/// Series of all proxies together. What is beyond that, or beyond [`MAX_SERIES`] of one, is counted in one series for each proxy.
const MAX_SERIES_OF_ALL: usize = 200_000;
/// Bytes of a name, a route's or an identity's.
const MAX_TEXT: usize = 1_024;
/// Reports that all proxies together should send in a second.
const REPORTS_PER_SECOND: u64 = 500;
const INTERVALS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Who reports: an identity that is proven, and the name that the proxy gives its workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    identity: String,
    workload: String,
}

/// One stream of reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StreamId {
    key: Key,
    number: u64,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Refused {
    #[error("the reporter's workload, service and version must have at most {MAX_TEXT} bytes each")]
    LongName,
    #[error("there are {MAX_REPORTERS} proxies that report already; try again later")]
    TooMany,
    #[error("the certificate that it says it serves cannot be read, or is that of another identity")]
    Certificate,
    #[error("it counts what cannot be read, or more than {MAX_SERIES} series")]
    Counted,
    #[error("another stream reports for this workload now")]
    Replaced,
}

pub(super) struct Window {
    began: Instant,
    reporters: HashMap<Key, Proxy>,
    streams: u64,
    series: usize,
    /// The slot in which what is old was last looked for.
    swept: u64,
}

/// What a proxy says of its certificate.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Served {
    pub certificate: Certificate,
    pub since_unix_ms: i64,
    pub failure: String,
}

/// What a report has counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted {
    pub covers_ms: u64,
    pub series: Vec<Series>,
}

/// Some words of somebody else, as far as they are kept.
pub(super) fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}

struct Proxy {
    who: Who,
    served: Option<Served>,
    series: HashMap<Labels, VecDeque<(u64, Sums)>>,
    /// How much time its reports of a slot are about.
    covered: VecDeque<(u64, Duration)>,
    heard: Instant,
    /// The number of its stream, while it is open.
    stream: Option<u64>,
}

/// Whose series are shown together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Who {
    identity: String,
    /// The full name.
    service: String,
    version: String,
}

#[derive(Clone, Debug, Default)]
struct Sums {
    /// By index of bucket, ascending.
    requests: Vec<(u8, u64)>,
    opened: u64,
    closed: u64,
}

impl Sums {
    fn add(&mut self, more: &Sums) {
        for (bucket, count) in &more.requests {
            self.add_requests(*bucket, *count);
        }
        self.opened = self.opened.saturating_add(more.opened);
        self.closed = self.closed.saturating_add(more.closed);
    }

    fn add_requests(&mut self, bucket: u8, count: u64) {
        match self.requests.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(at) => self.requests[at].1 = self.requests[at].1.saturating_add(count),
            Err(at) => self.requests.insert(at, (bucket, count)),
        }
    }

    /// Without buckets that do not exist.
    fn of(counts: &Counts) -> Self {
        let mut sums = Self { requests: Vec::new(), opened: counts.opened, closed: counts.closed };
        for (bucket, count) in counts.buckets.iter().zip(&counts.requests) {
            if let Some(bucket) = u8::try_from(*bucket).ok().filter(|it| usize::from(*it) <= DURATION_BUCKETS.len()) {
                sums.add_requests(bucket, *count);
            }
        }
        sums
    }

    fn begun(&self) -> u64 {
        self.requests.iter().fold(self.opened, |sum, (_, count)| sum.saturating_add(*count))
    }
}

impl Window {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, reporters: HashMap::new(), streams: 0, series: 0, swept: 0 }
    }

    /// A proxy begins to report, or goes on to: one whose stream was lost has another before we may know.
    pub(super) fn open(&mut self, identity: &Identity, who: &Reporter, now: Instant) -> Result<StreamId, Refused> {
        self.sweep(self.slot(now));
        if [&who.workload, &who.service, &who.version].iter().any(|text| text.len() > MAX_TEXT) {
            return Err(Refused::LongName);
        }
        let key = Key { identity: identity.to_string(), workload: who.workload.clone() };
        if self.reporters.len() >= MAX_REPORTERS && !self.reporters.contains_key(&key) {
            return Err(Refused::TooMany);
        }
        // In no other namespace than its certificate's.
        let service = served_fqdn(&who.service, &identity.namespace);
        let who = Who { identity: key.identity.clone(), service, version: who.version.clone() };
        self.streams += 1;
        let stream = StreamId { key, number: self.streams };
        let new = || Proxy {
            who: who.clone(),
            served: None,
            series: HashMap::new(),
            covered: VecDeque::new(),
            heard: now,
            stream: None,
        };
        let proxy = self.reporters.entry(stream.key.clone()).or_insert_with(new);
        if proxy.who != who {
            self.series -= proxy.series.len();
            *proxy = new();
        }
        (proxy.stream, proxy.heard) = (Some(stream.number), now);
        Ok(stream)
    }

    /// `served` is what the report says of the certificate, if it says anything.
    pub(super) fn add(
        &mut self,
        stream: &StreamId,
        counted: Counted,
        served: Option<Served>,
        now: Instant,
    ) -> Result<(), Refused> {
        let slot = self.slot(now);
        self.sweep(slot);
        let mut room = MAX_SERIES_OF_ALL.saturating_sub(self.series);
        let proxy = self.reporters.get_mut(&stream.key).filter(|proxy| proxy.stream == Some(stream.number));
        let proxy = proxy.ok_or(Refused::Replaced)?;
        proxy.heard = now;
        if served.is_some() {
            proxy.served = served;
        }
        let covers = Duration::from_millis(counted.covers_ms);
        // Most of what it tells may be from before the window, if this control plane was away for so long.
        if covers > LONGEST {
            return Ok(());
        }
        match proxy.covered.back_mut() {
            Some((last, covered)) if *last == slot => *covered += covers,
            _ => proxy.covered.push_back((slot, covers)),
        }
        for Series { labels, counts } in counted.series {
            let (labels, counts) = (labels.unwrap_or_default(), counts.unwrap_or_default());
            let sums = Sums::of(&counts);
            let known = proxy.series.contains_key(&labels);
            let too_many = proxy.series.len() >= MAX_SERIES || room == 0;
            let labels = if !known && (too_many || is_long(&labels)) { beyond_of(&labels) } else { labels };
            // The series for what is beyond may be one more.
            room = room.saturating_sub(usize::from(!proxy.series.contains_key(&labels)));
            let slots = proxy.series.entry(labels).or_insert_with(|| {
                self.series += 1;
                VecDeque::new()
            });
            match slots.back_mut() {
                Some((last, sum)) if *last == slot => sum.add(&sums),
                _ => slots.push_back((slot, sums)),
            }
        }
        Ok(())
    }

    /// Its stream has ended. What it has told stays until it is old.
    pub(super) fn close(&mut self, stream: &StreamId) {
        let proxy = self.reporters.get_mut(&stream.key).filter(|proxy| proxy.stream == Some(stream.number));
        if let Some(proxy) = proxy {
            proxy.stream = None;
        }
    }

    /// How many of these have a stream that is open, and who they are. `is_one` looks at workload, service and identity.
    pub(super) fn reporting(&self, is_one: impl Fn(&str, &str, &str) -> bool) -> (usize, Vec<String>) {
        let open = self.reporters.iter().filter(|(_, proxy)| proxy.stream.is_some());
        let (mut number, mut identities) = (0, HashSet::new());
        for (key, _) in open.filter(|(key, proxy)| is_one(&key.workload, &proxy.who.service, &key.identity)) {
            number += 1;
            identities.insert(key.identity.as_str());
        }
        (number, identities.into_iter().map(str::to_owned).collect())
    }

    /// Who this stream is of, as far as that is proven; `None` if another one is by now.
    pub(super) fn reporter(&self, stream: &StreamId) -> Option<Reporter> {
        let proxy = self.reporters.get(&stream.key).filter(|proxy| proxy.stream == Some(stream.number))?;
        Some(reporter(&stream.key, proxy))
    }

    /// How often each proxy should report.
    pub(super) fn interval(&self) -> Duration {
        let streams = u64::try_from(self.reporters.len()).unwrap_or(u64::MAX);
        // In whole seconds: it is told anew whenever it changes.
        Duration::from_secs(streams.div_ceil(REPORTS_PER_SECOND)).clamp(INTERVALS.0, INTERVALS.1)
    }

    pub(super) fn traffic(&mut self, window: Duration, now: Instant) -> ListTrafficResponse {
        let slot = self.slot(now);
        self.sweep(slot);
        let slots = window.as_secs().div_ceil(SLOT.as_secs()).saturating_add(1).min(SLOTS);
        let first = (slot + 1).saturating_sub(slots);
        let mut all: BTreeMap<&Who, HashMap<&Labels, (Sums, f64)>> = BTreeMap::new();
        let mut reporting = HashSet::new();
        let mut proxies = 0;
        for proxy in self.reporters.values() {
            let covered = proxy.covered_since(first, now);
            if proxy.stream.is_none() && covered.is_zero() {
                continue;
            }
            proxies += u32::from(proxy.stream.is_some());
            reporting.insert(&proxy.who.identity);
            for (labels, slots) in &proxy.series {
                let mut sums = Sums::default();
                slots.iter().filter(|(slot, _)| *slot >= first).for_each(|(_, more)| sums.add(more));
                if sums.begun() == 0 && sums.closed == 0 {
                    continue;
                }
                // No number of requests is large enough to matter.
                #[allow(clippy::cast_precision_loss)]
                let rate = sums.begun() as f64 / covered.as_secs_f64().max(0.001);
                let (total, rates) = all.entry(&proxy.who).or_default().entry(labels).or_default();
                total.add(&sums);
                *rates += rate;
            }
        }
        let traffic = all.into_iter().flat_map(|(who, series)| series.into_iter().map(move |it| shown(who, it)));
        let mut reporting: Vec<String> = reporting.into_iter().cloned().collect();
        reporting.sort_unstable();
        ListTrafficResponse { traffic: traffic.collect(), reporting, proxies }
    }

    /// Of proxies whose streams are open, in the order of their names.
    pub(super) fn certificates(&self) -> Vec<WorkloadCertificate> {
        let open = self.reporters.iter().filter(|(_, proxy)| proxy.stream.is_some());
        let mut all: Vec<_> = open.filter_map(|(key, proxy)| certificate(key, proxy)).collect();
        all.sort_unstable_by(|a, b| (&a.id, &a.identity).cmp(&(&b.id, &b.identity)));
        all
    }

    fn slot(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs() / SLOT.as_secs()
    }

    /// Forgets what is older than the longest window.
    fn sweep(&mut self, slot: u64) {
        if self.swept == slot {
            return;
        }
        self.swept = slot;
        let first = (slot + 1).saturating_sub(SLOTS);
        self.reporters.retain(|_, proxy| {
            proxy.covered.retain(|(slot, _)| *slot >= first);
            proxy.series.retain(|_, slots| {
                slots.retain(|(slot, _)| *slot >= first);
                !slots.is_empty()
            });
            proxy.stream.is_some() || !proxy.covered.is_empty()
        });
        self.series = self.reporters.values().map(|proxy| proxy.series.len()).sum();
    }
}

impl Proxy {
    /// How much time what it has told since a slot is about, with the time for which it has said nothing.
    fn covered_since(&self, first: u64, now: Instant) -> Duration {
        let told: Duration = self.covered.iter().filter(|(slot, _)| *slot >= first).map(|(_, covered)| *covered).sum();
        let silent = now.saturating_duration_since(self.heard);
        let between_reports = self.stream.is_some() && silent < SILENT;
        if told.is_zero() || between_reports { told } else { told + silent }
    }
}

fn reporter(key: &Key, proxy: &Proxy) -> Reporter {
    Reporter {
        workload: key.workload.clone(),
        service: proxy.who.service.clone(),
        version: proxy.who.version.clone(),
        identity: key.identity.clone(),
    }
}

fn certificate(key: &Key, proxy: &Proxy) -> Option<WorkloadCertificate> {
    let served = proxy.served.clone()?;
    let identity: Identity = key.identity.parse().ok()?;
    Some(WorkloadCertificate {
        id: format!("{}.{}", key.workload, identity.namespace),
        identity: key.identity.clone(),
        service: proxy.who.service.clone(),
        version: proxy.who.version.clone(),
        certificate: Some(served.certificate),
        since_unix_ms: served.since_unix_ms,
        failure: served.failure,
    })
}

fn shown(who: &Who, (labels, (sums, rate)): (&Labels, (Sums, f64))) -> Traffic {
    let (buckets, requests) = sums.requests.iter().map(|(bucket, count)| (u32::from(*bucket), *count)).unzip();
    let counts = Counts { buckets, requests, opened: sums.opened, closed: sums.closed };
    let reporter = Reporter {
        workload: String::new(),
        service: who.service.clone(),
        version: who.version.clone(),
        identity: who.identity.clone(),
    };
    Traffic {
        reporter: Some(reporter),
        series: Some(Series { labels: Some(labels.clone()), counts: Some(counts) }),
        rate,
    }
}

fn is_long(labels: &Labels) -> bool {
    let Labels { caller, service, version, route, flags, .. } = labels;
    [caller, service, version, route, flags].iter().any(|text| text.len() > MAX_TEXT)
}

/// The series for what is beyond, of no protocol that does not exist.
fn beyond_of(labels: &Labels) -> Labels {
    let protocol = if labels.protocol() == Protocol::Tcp { Protocol::Tcp } else { Protocol::Http };
    beyond(labels.direction(), protocol)
}

#[cfg(test)]
mod tests;
