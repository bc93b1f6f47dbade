//! The metrics of the proxy, by the names and labels of `docs/reference/metrics.md`.
//!
//! No label has values that a client can choose: sources are identities that were proven, destinations and routes come
//! from the control plane, codes and flags are small sets.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mesh_common::metrics::{self as list, DURATION_BUCKETS};
use mesh_common::names::{OVERFLOW as TOO_MANY, UDP_PREFIX};
use metrics::{Counter, Gauge, Histogram, Label, Level, Metadata, Recorder, SharedString};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use metrics_util::MetricKindMask;

use super::report::{RequestCounts, StreamCounts};
use super::series::{Budget, Cost, Destination, Key, Plan, Table};
use super::udp::{self, UdpMetrics};
use super::{LocalWorkload, RequestRecord, TcpRecord};
use crate::listen::{Direction, Downstream};
use crate::overload::Scarce;
use crate::trace::Exported;
use crate::upstream::HealthReport;

const REQUESTS: &str = "mesh_requests_total";
const DURATION: &str = "mesh_request_duration_seconds";
const REQUEST_BYTES: &str = "mesh_request_bytes_total";
const RESPONSE_BYTES: &str = "mesh_response_bytes_total";
const OPENED: &str = "mesh_tcp_connections_opened_total";
const CLOSED: &str = "mesh_tcp_connections_closed_total";
const SENT: &str = "mesh_tcp_sent_bytes_total";
const RECEIVED: &str = "mesh_tcp_received_bytes_total";
const OVERFLOW: &str = "mesh_proxy_metrics_overflow_total";
const BUILD: &str = "mesh_proxy_build_info";
const ACTIVE: &str = "mesh_proxy_connections_active";
const XDS: &str = "mesh_proxy_xds_connected";
const OVERLOADED: &str = "mesh_proxy_overloaded";
const EXPIRY: &str = "mesh_proxy_certificate_expiry_timestamp_seconds";
const LOG_DROPPED: &str = "mesh_proxy_access_log_dropped_total";
const SPANS: &str = "mesh_trace_spans_exported_total";
const SPANS_DROPPED: &str = "mesh_trace_spans_dropped_total";
const AUDIT_DROPPED: &str = "mesh_proxy_audit_log_dropped_total";
const DNS: &str = "mesh_proxy_dns_queries_total";
const WOULD_REFUSE: &str = "mesh_authorization_dry_run_refused_total";
const ASKED: &str = "mesh_authorization_external_total";
const LIMITS_HIT: &str = "mesh_limits_hit_total";
const FAULTS: &str = "mesh_faults_injected_total";
const LIMITS_DELAYED: &str = "mesh_limits_delayed_total";
const EJECTIONS: &str = "mesh_upstream_ejections_total";
const EJECTED: &str = "mesh_upstream_endpoints_ejected";
const CHECKS: &str = "mesh_upstream_health_checks_total";
const FAILING: &str = "mesh_upstream_endpoints_failing_checks";

/// A histogram's buckets with `+Inf`, its sum and its count, and the two byte counters beside it.
const TRAFFIC_SERIES: usize = DURATION_BUCKETS.len() + 3 + 2;

/// Label sets that were not used for so long are forgotten, in seconds.
const IDLE: u64 = 30 * 60;
/// The recorder forgets later than we do: by then nobody holds a handle to what it drops.
const RECORDER_IDLE: Duration = Duration::from_secs(IDLE + 5 * 60);
/// How often to look for idle label sets, in seconds.
const SWEEP: u64 = 60;

const METADATA: Metadata<'static> = Metadata::new("mesh_proxy", Level::INFO, None);

/// What became of a DNS query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsResult {
    /// Answered with the mesh's addresses.
    Mesh,
    /// A name of the mesh without an address of the kind that was asked for.
    NoData,
    Forwarded,
    /// No resolver answered, or there were too many queries.
    Failed,
    /// Not a DNS query.
    Malformed,
}

#[derive(Debug)]
pub(super) struct Metrics {
    local: Local,
    pub(super) recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    pub(super) requests: Table<RequestHandles>,
    pub(super) streams: Table<StreamMetrics>,
    /// For reports: what is beyond the cap, by direction.
    pub(super) beyond: [(RequestCounts, Arc<StreamCounts>); 2],
    pub(super) udp: Table<UdpMetrics>,
    pub(super) budget: Budget,
    /// Seconds since the start, advanced by [`Metrics::upkeep`].
    now: AtomicU64,
    pub(super) proxy: ProxyHandles,
}

/// Labels of this proxy's own workload.
#[derive(Debug)]
struct Local {
    workload: SharedString,
    service: SharedString,
    version: SharedString,
    identity: SharedString,
}

pub(super) struct RequestHandles {
    requests: Counter,
    duration: Histogram,
    request_bytes: Counter,
    response_bytes: Counter,
    pub(super) counts: RequestCounts,
}

/// Counters of one byte stream's label set.
#[derive(Clone)]
pub struct StreamMetrics {
    opened: Counter,
    closed: Counter,
    received: Counter,
    sent: Counter,
    /// Shared by all streams that are open: while one is, the label set is not idle.
    pub(super) counts: Arc<StreamCounts>,
}

impl StreamMetrics {
    /// Bytes from downstream to upstream.
    pub fn received(&self, bytes: u64) {
        self.received.increment(bytes);
    }

    /// Bytes from upstream to downstream.
    pub fn sent(&self, bytes: u64) {
        self.sent.increment(bytes);
    }
}

#[derive(Clone)]
pub(super) struct ProxyHandles {
    inbound: Gauge,
    pub(super) udp_sessions: Gauge,
    outbound: Gauge,
    xds: Gauge,
    expiry: Gauge,
    build: Gauge,
}

/// Counts as an active connection while it lives.
pub struct ActiveConnection(Gauge);

impl ActiveConnection {
    pub(super) fn of(gauge: &Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for ActiveConnection {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

impl Metrics {
    pub(super) fn new(local: LocalWorkload, max_series: usize) -> Self {
        let recorder = Arc::new(recorder());
        describe(&recorder);
        let handle = recorder.handle();
        let proxy = ProxyHandles {
            inbound: gauge(&recorder, ACTIVE, vec![Label::new("direction", "inbound")]),
            udp_sessions: gauge(&recorder, udp::ACTIVE, vec![]),
            outbound: gauge(&recorder, ACTIVE, vec![Label::new("direction", "outbound")]),
            xds: gauge(&recorder, XDS, vec![]),
            expiry: gauge(&recorder, EXPIRY, vec![]),
            build: gauge(&recorder, BUILD, vec![Label::new("version", env!("CARGO_PKG_VERSION"))]),
        };
        proxy.build.set(1.0);
        proxy.xds.set(0.0);
        Self {
            local: Local::of(local),
            requests: Table::new(),
            streams: Table::new(),
            udp: Table::new(),
            beyond: Default::default(),
            budget: Budget::new(max_series),
            now: AtomicU64::new(0),
            proxy,
            recorder,
            handle,
        }
    }

    pub(super) fn recorder(&self) -> Arc<PrometheusRecorder> {
        self.recorder.clone()
    }

    pub(super) fn request(&self, record: &RequestRecord<'_>) {
        let key = Key {
            direction: record.downstream.direction,
            security: record.security,
            source: source(record.downstream),
            destination: destination(record.downstream, record.endpoint, record.cluster, record.called),
            route: record.route,
            status: record.status,
            grpc_status: record.grpc_status.map(|code| code.min(17)),
            flags: record.flags,
        };
        let now = self.now.load(Ordering::Relaxed);
        let known = self.requests.with(&key, now, &self.budget, || self.plan_request(&key), |it| it.record(record));
        if known.is_none() {
            self.overflowed();
            request_handles(&self.recorder, overflow_labels(), overflow_labels()).record(record);
            self.beyond[key.direction as usize].0.add(record.duration.as_secs_f64());
        }
    }

    pub(super) fn stream_opened(&self, record: &TcpRecord<'_>) -> StreamMetrics {
        let metrics = self.stream(record, "");
        metrics.opened.increment(1);
        metrics.counts.open();
        metrics
    }

    pub(super) fn stream_closed(&self, record: &TcpRecord<'_>) {
        let metrics = self.stream(record, record.flags);
        metrics.closed.increment(1);
        metrics.counts.close();
    }

    fn stream(&self, record: &TcpRecord<'_>, flags: &'static str) -> StreamMetrics {
        let key = Key {
            direction: record.downstream.direction,
            security: record.security,
            source: source(record.downstream),
            destination: destination(record.downstream, record.endpoint, record.cluster, record.called),
            route: "",
            status: 0,
            grpc_status: None,
            flags,
        };
        let now = self.now.load(Ordering::Relaxed);
        self.streams.with(&key, now, &self.budget, || self.plan_stream(&key), StreamMetrics::clone).unwrap_or_else(
            || {
                self.overflowed();
                let counts = self.beyond[key.direction as usize].1.clone();
                stream_handles(&self.recorder, overflow_labels(), overflow_labels(), counts)
            },
        )
    }

    pub(super) fn connection(&self, direction: Direction) -> ActiveConnection {
        let gauge = match direction {
            Direction::Inbound => &self.proxy.inbound,
            Direction::Outbound => &self.proxy.outbound,
        };
        ActiveConnection::of(gauge)
    }

    pub(super) fn dns(&self, result: DnsResult) {
        let result = match result {
            DnsResult::Mesh => "mesh",
            DnsResult::NoData => "no_data",
            DnsResult::Forwarded => "forwarded",
            DnsResult::Failed => "failed",
            DnsResult::Malformed => "malformed",
        };
        counter(&self.recorder, DNS, vec![Label::new("result", result)]).increment(1);
    }

    pub(super) fn would_refuse(&self, policy: &str) {
        // As many as there are policies.
        counter(&self.recorder, WOULD_REFUSE, vec![Label::new("policy", policy.to_owned())]).increment(1);
    }

    pub(super) fn asked_elsewhere(&self, outcome: crate::ext_authz::Outcome) {
        counter(&self.recorder, ASKED, vec![Label::new("result", outcome.as_str())]).increment(1);
    }

    pub(super) fn limit_hit(&self, what: crate::limit::LimitHit) {
        counter(&self.recorder, LIMITS_HIT, vec![Label::new("limit", what.as_str())]).increment(1);
    }

    pub(super) fn fault(&self, what: crate::fault::Injected) {
        counter(&self.recorder, FAULTS, vec![Label::new("fault", what.as_str())]).increment(1);
    }

    pub(super) fn limit_delayed(&self, way: crate::pace::Way) {
        let limit = match way {
            crate::pace::Way::Up => "bandwidth_up",
            crate::pace::Way::Down => "bandwidth_down",
        };
        counter(&self.recorder, LIMITS_DELAYED, vec![Label::new("limit", limit)]).increment(1);
    }

    pub(super) fn upstream_health(&self, report: &HealthReport) {
        for (reason, count) in report.ejections {
            counter(&self.recorder, EJECTIONS, vec![Label::new("reason", reason)]).absolute(count);
        }
        for (result, count) in report.checks {
            counter(&self.recorder, CHECKS, vec![Label::new("result", result)]).absolute(count);
        }
        gauge(&self.recorder, EJECTED, vec![]).set(report.ejected as f64);
        gauge(&self.recorder, FAILING, vec![]).set(report.failing as f64);
    }

    pub(super) fn overloaded(&self, what: Scarce, is_so: bool) {
        gauge(&self.recorder, OVERLOADED, vec![Label::new("resource", what.as_str())]).set(f64::from(u8::from(is_so)));
    }

    pub(super) fn xds_connected(&self, connected: bool) {
        self.proxy.xds.set(f64::from(u8::from(connected)));
    }

    pub(super) fn certificate_expiry(&self, unix_seconds: i64) {
        // Exact for the next 280 million years.
        #[allow(clippy::cast_precision_loss)]
        self.proxy.expiry.set(unix_seconds as f64);
    }

    pub(super) fn render(&self, access_log_dropped: u64, audit_log_dropped: u64, spans: Exported) -> String {
        counter(&self.recorder, LOG_DROPPED, vec![]).absolute(access_log_dropped);
        counter(&self.recorder, AUDIT_DROPPED, vec![]).absolute(audit_log_dropped);
        counter(&self.recorder, SPANS, vec![]).absolute(spans.taken);
        let dropped =
            [("queue_full", spans.queue_full), ("refused", spans.refused), ("unavailable", spans.unavailable)];
        for (reason, number) in dropped {
            counter(&self.recorder, SPANS_DROPPED, vec![Label::new("reason", reason)]).absolute(number);
        }
        // There before the first one, so that its rate is known when it comes.
        counter(&self.recorder, OVERFLOW, vec![]).increment(0);
        process(&self.recorder);
        self.handle.render()
    }

    /// To be called each second.
    pub(super) fn upkeep(&self) {
        // Moves the samples that the histograms gathered into their buckets.
        self.handle.run_upkeep();
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        if now.is_multiple_of(SWEEP) {
            self.forget_idle(now);
        }
    }

    fn forget_idle(&self, now: u64) {
        let oldest = now.saturating_sub(IDLE);
        self.requests.sweep(oldest, &self.budget, |_| false);
        self.streams.sweep(oldest, &self.budget, |stream| {
            let open = Arc::strong_count(&stream.counts) > 1;
            if open {
                // Tells the recorder that the series is in use though no byte flows.
                stream.received.increment(0);
                stream.sent.increment(0);
            }
            open
        });
        self.udp.sweep(oldest, &self.budget, UdpMetrics::is_open);
        // The recorder looks for idle series only when it renders; without a Prometheus nobody else makes it.
        if let Err(error) = self.handle.render_to_write(&mut std::io::sink()) {
            tracing::debug!(%error, "rendering metrics failed");
        }
    }

    #[cfg(test)]
    pub(super) fn series(&self) -> usize {
        self.budget.used()
    }

    /// Since the start.
    pub(super) fn seconds(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    pub(super) fn overflowed(&self) {
        counter(&self.recorder, OVERFLOW, vec![]).increment(1);
    }

    fn plan_request(&self, key: &Key<'_>) -> Plan<'_, RequestHandles> {
        let code = Label::new("response_code", key.status.to_string());
        let mut traffic = self.peers(key, false);
        traffic.push(code.clone());
        let group = self.requests.hash(&traffic);
        let mut all = self.peers(key, true);
        all.push(code);
        all.push(Label::new("response_flags", flags(key.flags)));
        all.push(Label::new("grpc_status", grpc_status(key.grpc_status)));
        all.push(Label::new("route", key.route.to_owned()));
        let cost = Cost { own: 1, shared: TRAFFIC_SERIES, group };
        Plan { cost, make: Box::new(|| request_handles(&self.recorder, all, traffic)) }
    }

    fn plan_stream(&self, key: &Key<'_>) -> Plan<'_, StreamMetrics> {
        let labels = self.peers(key, true);
        let group = self.streams.hash(&labels);
        let mut closed = labels.clone();
        closed.push(Label::new("response_flags", flags(key.flags)));
        let cost = Cost { own: 1, shared: 3, group };
        Plan { cost, make: Box::new(|| stream_handles(&self.recorder, labels, closed, Arc::default())) }
    }

    /// Who talks to whom. Latency and bytes leave the single workload out: they would be most of the series.
    pub(super) fn peers(&self, key: &Key<'_>, workload: bool) -> Vec<Label> {
        let (source_workload, source_identity) = match key.direction {
            Direction::Outbound => (self.local.workload.clone(), self.local.identity.clone()),
            Direction::Inbound => (UNKNOWN, key.source.map_or(UNKNOWN, |it| it.to_string().into())),
        };
        let (service, instance, version): (SharedString, SharedString, SharedString) = match key.destination {
            Destination::Local => (self.local.service.clone(), self.local.workload.clone(), self.local.version.clone()),
            Destination::Workload(it) => {
                (service_name(&it.service, &it.namespace), known(it.workload.clone()), known(it.version.clone()))
            }
            Destination::Cluster(name) => (service_of_cluster(name), UNKNOWN, UNKNOWN),
        };
        let mut labels = vec![
            Label::new("direction", key.direction.as_str()),
            Label::new("source_workload", source_workload),
            Label::new("source_identity", source_identity),
            Label::new("destination_service", service),
            Label::new("destination_version", version),
            Label::new("security", key.security.as_str()),
        ];
        if workload {
            labels.push(Label::new("destination_workload", instance));
        }
        labels
    }
}

impl RequestHandles {
    fn record(&self, record: &RequestRecord<'_>) {
        let seconds = record.duration.as_secs_f64();
        self.requests.increment(1);
        self.duration.record(seconds);
        self.counts.add(seconds);
        self.request_bytes.increment(record.request_bytes);
        self.response_bytes.increment(record.response_bytes);
    }
}

impl Local {
    fn of(local: LocalWorkload) -> Self {
        Self {
            service: service_name(&local.service, &local.namespace),
            workload: known(local.workload),
            version: known(local.version),
            identity: local.identity.map_or(UNKNOWN, |it| it.to_string().into()),
        }
    }
}

impl fmt::Debug for RequestHandles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestHandles").finish_non_exhaustive()
    }
}

impl fmt::Debug for StreamMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamMetrics").finish_non_exhaustive()
    }
}

impl fmt::Debug for ProxyHandles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyHandles").finish_non_exhaustive()
    }
}

/// Value of a label about which nothing is known: an empty one would vanish in Prometheus.
pub(super) const UNKNOWN: SharedString = SharedString::const_str("unknown");

fn known(value: String) -> SharedString {
    if value.is_empty() { UNKNOWN } else { value.into() }
}

pub(super) fn service_name(service: &str, namespace: &str) -> SharedString {
    if service.is_empty() { UNKNOWN } else { mesh_common::names::fqdn(service, namespace).into() }
}

/// The service that a cluster's name says: `tcp:FQDN:port`, `udp:FQDN:port` and `FQDN:port` are `FQDN`.
pub(super) fn service_of_cluster(name: &str) -> SharedString {
    let name = name.strip_prefix("tcp:").or_else(|| name.strip_prefix(UDP_PREFIX)).unwrap_or(name);
    let name = match name.rsplit_once(':') {
        Some((service, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => service,
        _ => name,
    };
    known(name.to_owned())
}

fn source(downstream: &Downstream) -> Option<&mesh_common::identity::Identity> {
    match downstream.direction {
        Direction::Inbound => downstream.identity.as_deref(),
        Direction::Outbound => None,
    }
}

pub(super) fn destination<'a>(
    downstream: &Downstream,
    endpoint: Option<&'a crate::config::Endpoint>,
    cluster: &'a str,
    called: &'a str,
) -> Destination<'a> {
    match (downstream.direction, endpoint.and_then(|it| it.workload.as_ref())) {
        (Direction::Inbound, _) => Destination::Local,
        (Direction::Outbound, Some(workload)) => Destination::Workload(workload),
        // What a fault or a policy ended had no cluster yet.
        (Direction::Outbound, None) if cluster.is_empty() => Destination::Cluster(called),
        (Direction::Outbound, None) => Destination::Cluster(cluster),
    }
}

fn flags(flags: &'static str) -> &'static str {
    if flags.is_empty() { "-" } else { flags }
}

/// An upstream may send any number; what gRPC does not define is one value.
fn grpc_status(code: Option<u32>) -> SharedString {
    match code {
        None => SharedString::const_str("-"),
        Some(code) if code <= 16 => code.to_string().into(),
        Some(_) => UNKNOWN,
    }
}

pub(super) fn overflow_labels() -> Vec<Label> {
    vec![Label::new("source_workload", TOO_MANY), Label::new("destination_service", TOO_MANY)]
}

fn recorder() -> PrometheusRecorder {
    // Gauges say what is, even if it has been so for long.
    let idle = MetricKindMask::COUNTER | MetricKindMask::HISTOGRAM;
    let builder = PrometheusBuilder::new().idle_timeout(idle, Some(RECORDER_IDLE));
    match builder.set_buckets_for_metric(Matcher::Full(DURATION.to_owned()), &DURATION_BUCKETS) {
        Ok(builder) => builder.build_recorder(),
        // Only an empty list of buckets is refused.
        Err(_) => PrometheusBuilder::new().build_recorder(),
    }
}

fn request_handles(recorder: &PrometheusRecorder, all: Vec<Label>, traffic: Vec<Label>) -> RequestHandles {
    RequestHandles {
        requests: counter(recorder, REQUESTS, all),
        duration: recorder.register_histogram(&metrics::Key::from_parts(DURATION, traffic.clone()), &METADATA),
        request_bytes: counter(recorder, REQUEST_BYTES, traffic.clone()),
        response_bytes: counter(recorder, RESPONSE_BYTES, traffic),
        counts: RequestCounts::default(),
    }
}

fn stream_handles(
    recorder: &PrometheusRecorder,
    labels: Vec<Label>,
    closed: Vec<Label>,
    counts: Arc<StreamCounts>,
) -> StreamMetrics {
    StreamMetrics {
        opened: counter(recorder, OPENED, labels.clone()),
        closed: counter(recorder, CLOSED, closed),
        received: counter(recorder, RECEIVED, labels.clone()),
        sent: counter(recorder, SENT, labels),
        counts,
    }
}

pub(super) fn counter(recorder: &PrometheusRecorder, name: &'static str, labels: Vec<Label>) -> Counter {
    recorder.register_counter(&metrics::Key::from_parts(name, labels), &METADATA)
}

fn gauge(recorder: &PrometheusRecorder, name: &'static str, labels: Vec<Label>) -> Gauge {
    recorder.register_gauge(&metrics::Key::from_parts(name, labels), &METADATA)
}

fn describe(recorder: &PrometheusRecorder) {
    for metric in list::of_proxy() {
        let (name, text) = (metric.name.into(), metric.text.into());
        match metric.kind {
            list::Kind::Counter => recorder.describe_counter(name, None, text),
            list::Kind::Gauge => recorder.describe_gauge(name, None, text),
            list::Kind::Histogram => recorder.describe_histogram(name, None, text),
        }
    }
}

/// The process's own use of the machine, for each scrape.
#[allow(clippy::cast_precision_loss)]
fn process(recorder: &PrometheusRecorder) {
    let usage = mesh_common::process::usage();
    if let Some(seconds) = usage.cpu_seconds {
        counter(recorder, "process_cpu_seconds_total", vec![]).absolute(seconds);
    }
    let open = usage.open_files.map(|open| open as u64);
    let gauges = [
        ("process_resident_memory_bytes", usage.resident_bytes),
        ("process_open_fds", open),
        ("process_start_time_seconds", usage.start_time),
    ];
    for (name, value) in gauges {
        if let Some(value) = value {
            gauge(recorder, name, vec![]).set(value as f64);
        }
    }
}
