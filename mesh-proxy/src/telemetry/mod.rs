//! What happened, for people, for Prometheus and for the control plane. In: one record for each request and each byte
//! stream, and decisions about access. Out: metrics, lines of the access log and the audit log, spans, what is reported, and
//! what taps want to see.
//! Nothing here ever makes the data path wait.

mod access_log;
mod audit;
mod metrics;
mod record;
mod report;
mod series;
mod udp;
mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mesh_common::identity::Identity;
use mesh_common::proto::telemetry::Series;

pub use access_log::{AccessLog, AccessLogError};
pub use audit::{Asked, AuditLog, AuditOptions, AuditTo, Decision, Event};
pub use metrics::{ActiveConnection, DnsResult, StreamMetrics};
pub(crate) use record::cut;
pub use record::{Protocol, RequestRecord, TcpRecord};
pub use udp::{UdpDrop, UdpMetrics};

use crate::tap::Taps;
use crate::trace::Exporter;
use access_log::Log;
use metrics::Metrics;

/// Lines about failed connections in the program's own log, for each second.
const LOG_ALLOWANCE: u32 = 10;

/// Who this proxy speaks for.
#[derive(Clone, Debug, Default)]
pub struct LocalWorkload {
    pub workload: String,
    pub namespace: String,
    /// Empty when it serves nothing.
    pub service: String,
    pub version: String,
    pub identity: Option<Identity>,
}

#[derive(Clone, Debug)]
pub struct TelemetryOptions {
    pub local: LocalWorkload,
    pub access_log: AccessLog,
    /// Where access log lines go; standard output when there is none.
    pub access_log_file: Option<PathBuf>,
    /// `None`: decisions about access are not written down.
    pub audit_log: Option<AuditOptions>,
    /// Time series for requests and byte streams; what would be more is counted under the label value `overflow`.
    pub max_series: usize,
}

impl Default for TelemetryOptions {
    fn default() -> Self {
        Self {
            local: LocalWorkload::default(),
            access_log: AccessLog::Off,
            access_log_file: None,
            audit_log: None,
            max_series: 10_000,
        }
    }
}

/// Handle to metrics, access log and audit log. Cheap to clone, never waits.
#[derive(Clone, Debug)]
pub struct Telemetry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    metrics: Metrics,
    access_log: Option<Log>,
    audit_log: Option<AuditLog>,
    spans: Exporter,
    taps: Taps,
    log_allowance: AtomicU32,
}

impl Telemetry {
    /// # Errors
    ///
    /// When the file of the access log or the audit log cannot be opened.
    pub fn new(options: TelemetryOptions) -> io::Result<Self> {
        let access_log = Log::start(options.access_log, options.access_log_file.as_deref())?;
        let start = |audit| AuditLog::start(audit, options.local.clone());
        let audit_log = options.audit_log.map(start).transpose()?;
        let spans = Exporter::new(options.local.clone());
        let taps = Taps::new(options.local.clone());
        let metrics = Metrics::new(options.local, options.max_series);
        let log_allowance = AtomicU32::new(LOG_ALLOWANCE);
        Ok(Self { inner: Arc::new(Inner { metrics, access_log, audit_log, spans, taps, log_allowance }) })
    }

    /// Where decisions about access are written down, if anywhere.
    pub fn audit_log(&self) -> Option<&AuditLog> {
        self.inner.audit_log.as_ref()
    }

    /// Makes the `metrics` macros of the whole process count here. Only the first call in a process has an effect.
    pub fn install(&self) {
        if ::metrics::set_global_recorder(self.inner.metrics.recorder()).is_err() {
            tracing::debug!("the process has a metrics recorder already");
        }
    }

    /// A request ended, well or not.
    pub fn request(&self, record: &RequestRecord<'_>) {
        self.inner.metrics.request(record);
        if let Some(log) = &self.inner.access_log {
            log.request(record);
        }
        self.inner.taps.request(record);
    }

    /// A policy on trial would have refused something; `policy` is empty if that is because no policy allows it.
    pub fn would_refuse(&self, policy: &str) {
        self.inner.metrics.would_refuse(policy);
    }

    /// Somebody else was asked about a request.
    pub fn asked_elsewhere(&self, outcome: crate::ext_authz::Outcome) {
        self.inner.metrics.asked_elsewhere(outcome);
    }

    /// A limit of the application's port refused something.
    pub fn limit_hit(&self, what: crate::limit::LimitHit) {
        self.inner.metrics.limit_hit(what);
    }

    /// A fault was injected.
    pub fn fault(&self, what: crate::fault::Injected) {
        self.inner.metrics.fault(what);
    }

    /// A stream has to wait because of a limit on the bandwidth of the application's port.
    pub fn limit_delayed(&self, way: crate::pace::Way) {
        self.inner.metrics.limit_delayed(way);
    }

    /// A byte stream reached its upstream. Bytes are counted while they flow, through the handle.
    pub fn tcp_opened(&self, record: &TcpRecord<'_>) -> StreamMetrics {
        self.inner.metrics.stream_opened(record)
    }

    /// A byte stream ended, or never reached an upstream.
    pub fn tcp_closed(&self, record: &TcpRecord<'_>) {
        self.inner.metrics.stream_closed(record);
        if let Some(log) = &self.inner.access_log {
            log.stream(record);
        }
        self.inner.taps.stream(record);
    }

    /// Counts a downstream connection as active until the guard is dropped.
    pub fn connection(&self, direction: crate::listen::Direction) -> ActiveConnection {
        self.inner.metrics.connection(direction)
    }

    /// Counts a session of datagrams as active until the guard is dropped.
    pub fn udp_session(&self) -> ActiveConnection {
        self.inner.metrics.udp_session()
    }

    /// A session of datagrams got an endpoint.
    pub(crate) fn udp_upstream(
        &self,
        downstream: &crate::listen::Downstream,
        endpoint: &crate::config::Endpoint,
        cluster: &str,
    ) -> UdpMetrics {
        self.inner.metrics.udp_upstream(downstream, endpoint, cluster)
    }

    /// A datagram goes nowhere.
    pub fn udp_dropped(&self, why: UdpDrop) {
        self.inner.metrics.udp_dropped(why);
    }

    pub fn dns(&self, result: DnsResult) {
        self.inner.metrics.dns(result);
    }

    /// What is known of the health of upstream endpoints.
    pub fn upstream_health(&self, report: &crate::upstream::HealthReport) {
        self.inner.metrics.upstream_health(report);
    }

    pub fn overloaded(&self, what: crate::overload::Scarce, is_so: bool) {
        self.inner.metrics.overloaded(what, is_so);
    }

    pub fn xds_connected(&self, connected: bool) {
        self.inner.metrics.xds_connected(connected);
    }

    /// End of the certificate's validity, in Unix seconds.
    pub fn certificate_expiry(&self, unix_seconds: i64) {
        self.inner.metrics.certificate_expiry(unix_seconds);
    }

    /// The metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        let access_lines = self.inner.access_log.as_ref().map_or(0, Log::dropped);
        let audit_lines = self.inner.audit_log.as_ref().map_or(0, AuditLog::dropped);
        self.inner.metrics.render(access_lines, audit_lines, self.inner.spans.exported())
    }

    /// Who wants to see single requests.
    pub fn taps(&self) -> &Taps {
        &self.inner.taps
    }

    /// Where spans go.
    pub(crate) fn spans(&self) -> &Exporter {
        &self.inner.spans
    }

    /// Sends the spans that wait, at most for `timeout`. For the end of the process: later ones are dropped.
    pub async fn end_spans(&self, timeout: Duration) {
        self.inner.spans.end(timeout).await;
    }

    /// Requests and byte streams since this was last called, for the control plane.
    pub fn take_report(&self) -> Vec<Series> {
        self.inner.metrics.take_report()
    }

    /// Keeps the metrics' memory small. Run it as a task of its own for as long as the process lives.
    pub async fn upkeep(self) {
        let mut every = tokio::time::interval(Duration::from_secs(1));
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            self.inner.metrics.upkeep();
            self.inner.log_allowance.store(LOG_ALLOWANCE, Ordering::Relaxed);
        }
    }

    /// Whether one more failure may go to the program's own log in this second. The access log has all of them.
    pub fn may_log(&self) -> bool {
        let one_less = |left: u32| left.checked_sub(1);
        self.inner.log_allowance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }

    /// Waits until the lines of both logs so far are written, at most `timeout` for each. Blocks: for the end of the process.
    pub fn flush(&self, timeout: Duration) {
        if let Some(log) = &self.inner.access_log {
            log.flush(timeout);
        }
        if let Some(log) = &self.inner.audit_log {
            log.flush(timeout);
        }
    }
}

#[cfg(test)]
mod tests;
