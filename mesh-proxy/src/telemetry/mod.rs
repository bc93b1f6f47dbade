//! What happened, for people and for Prometheus. In: one record for each request and each byte stream. Out: metrics
//! and access log lines.

mod record;

pub use record::{Protocol, RequestRecord, TcpRecord};

/// Handle to metrics and access log. Cheap to clone, never waits.
#[derive(Clone, Debug)]
pub struct Telemetry {}

impl Telemetry {
    /// A request ended, well or not.
    pub fn request(&self, record: &RequestRecord<'_>) {
        tracing::trace!(?record);
    }

    /// A byte stream reached its upstream.
    pub fn tcp_opened(&self, record: &TcpRecord<'_>) {
        tracing::trace!(?record);
    }

    /// A byte stream ended, or never reached an upstream.
    pub fn tcp_closed(&self, record: &TcpRecord<'_>) {
        tracing::trace!(?record);
    }
}
