//! Counters for reports to the control plane, beside those for Prometheus: these can be read, and tell one route and one
//! caller from another. A request costs one atomic addition more, and looks nothing up for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh_common::metrics::DURATION_BUCKETS;
use mesh_common::proto::telemetry::{Counts, Direction as Side, Labels, Protocol, Series};
use mesh_common::reports::{MAX_SERIES, beyond};

use super::metrics::{Metrics, UNKNOWN, service_name, service_of_cluster};
use super::series::{Destination, Key};
use crate::listen::{Direction, Security};

const BUCKETS: usize = DURATION_BUCKETS.len() + 1;

/// Requests by how long they took, since they were last taken.
#[derive(Debug, Default)]
pub(super) struct RequestCounts([AtomicU64; BUCKETS]);

impl RequestCounts {
    pub(super) fn add(&self, seconds: f64) {
        let bucket = DURATION_BUCKETS.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.0.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Byte streams, since they were last taken.
#[derive(Debug, Default)]
pub(super) struct StreamCounts {
    opened: AtomicU64,
    closed: AtomicU64,
}

impl StreamCounts {
    pub(super) fn open(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn close(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Reads without writing where there is nothing: the line is the data path's.
fn take(count: &AtomicU64) -> u64 {
    if count.load(Ordering::Relaxed) == 0 { 0 } else { count.swap(0, Ordering::Relaxed) }
}

/// What is being taken, with single workloads of a destination put together.
#[derive(Default)]
struct Taken(HashMap<Labels, Sum>);

#[derive(Default)]
struct Sum {
    requests: [u64; BUCKETS],
    opened: u64,
    closed: u64,
}

impl Taken {
    fn requests(&mut self, labels: impl FnOnce() -> Labels, counts: &RequestCounts) {
        let taken = counts.0.each_ref().map(take);
        if taken.iter().any(|count| *count > 0) {
            self.of(labels()).requests.iter_mut().zip(taken).for_each(|(sum, count)| *sum += count);
        }
    }

    fn streams(&mut self, labels: impl FnOnce() -> Labels, counts: &StreamCounts) {
        let (opened, closed) = (take(&counts.opened), take(&counts.closed));
        if opened + closed > 0 {
            let sum = self.of(labels());
            sum.opened += opened;
            sum.closed += closed;
        }
    }

    fn of(&mut self, labels: Labels) -> &mut Sum {
        let full = self.0.len() >= MAX_SERIES && !self.0.contains_key(&labels);
        let labels = if full { beyond(labels.direction(), labels.protocol()) } else { labels };
        self.0.entry(labels).or_default()
    }

    fn into_series(self) -> Vec<Series> {
        let series = |(labels, sum): (Labels, Sum)| {
            let (buckets, requests) = (0..).zip(sum.requests).filter(|(_, count)| *count > 0).unzip();
            let counts = Counts { buckets, requests, opened: sum.opened, closed: sum.closed };
            Series { labels: Some(labels), counts: Some(counts) }
        };
        self.0.into_iter().map(series).collect()
    }
}

impl Metrics {
    /// What has been counted since this was last called.
    pub(super) fn take_report(&self) -> Vec<Series> {
        let mut taken = Taken::default();
        self.requests.for_each(|key, it| taken.requests(|| labels(key, Protocol::Http), &it.counts));
        self.streams.for_each(|key, it| taken.streams(|| labels(key, Protocol::Tcp), &it.counts));
        for direction in [Direction::Inbound, Direction::Outbound] {
            let (requests, streams) = &self.beyond[direction as usize];
            taken.requests(|| beyond(side(direction), Protocol::Http), requests);
            taken.streams(|| beyond(side(direction), Protocol::Tcp), streams);
        }
        taken.into_series()
    }
}

fn side(direction: Direction) -> Side {
    match direction {
        Direction::Outbound => Side::Outbound,
        Direction::Inbound => Side::Inbound,
    }
}

fn labels(key: &Key<'_>, protocol: Protocol) -> Labels {
    let known = |name: metrics::SharedString| if name == UNKNOWN { String::new() } else { name.into_owned() };
    let (service, version) = match key.destination {
        Destination::Local => (String::new(), String::new()),
        Destination::Workload(it) => (known(service_name(&it.service, &it.namespace)), it.version.clone()),
        Destination::Cluster(name) => (known(service_of_cluster(name)), String::new()),
    };
    Labels {
        direction: side(key.direction).into(),
        protocol: protocol.into(),
        caller: key.source.map(ToString::to_string).unwrap_or_default(),
        service,
        version,
        route: key.route.to_owned(),
        mutual_tls: key.security == Security::MutualTls,
        status: key.status.into(),
        grpc_status: key.grpc_status,
        flags: key.flags.to_owned(),
    }
}
