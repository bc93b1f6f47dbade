use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use http::uri::{Authority, PathAndQuery};

/// How it is found out which endpoints of a cluster are to be passed over.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointHealth {
    pub outliers: Option<OutlierDetection>,
    pub check: Option<Arc<HealthCheck>>,
}

/// From the requests that endpoints get. A detector that is `None` is off.
#[derive(Clone, Debug, PartialEq)]
pub struct OutlierDetection {
    /// Failures in a row: 5xx and gateway failures.
    pub consecutive_5xx: Option<u32>,
    pub consecutive_gateway_failures: Option<u32>,
    pub success_rate: Option<SuccessRate>,
    /// How often success rates are compared, and how long an endpoint must do well for each former ejection to be
    /// forgotten. Not zero.
    pub interval: Duration,
    /// Times the number of ejections. Not zero.
    pub base_ejection_time: Duration,
    /// Not less than the base.
    pub max_ejection_time: Duration,
    pub max_ejection_percent: u32,
    /// One endpoint may be ejected whatever the percentage is.
    pub always_one: bool,
    /// A health check that passes ends an ejection.
    pub ends_with_check: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuccessRate {
    /// Standard deviations below the mean.
    pub deviations: f64,
    /// Endpoints that had enough requests.
    pub min_hosts: u32,
    /// Of an endpoint in an interval.
    pub min_requests: u32,
}

/// By asking them.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthCheck {
    pub kind: CheckKind,
    /// Neither is zero.
    pub interval: Duration,
    pub timeout: Duration,
    /// At most that is added to the interval.
    pub jitter: Duration,
    /// Failures in a row, and successes.
    pub unhealthy_threshold: u32,
    pub healthy_threshold: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub enum CheckKind {
    Http(HttpCheck),
    /// `grpc.health.v1.Health/Check`
    Grpc {
        service: String,
        authority: Authority,
    },
    /// A connection, with its handshake.
    Tcp,
}

#[derive(Clone, Debug, PartialEq)]
pub struct HttpCheck {
    pub path: PathAndQuery,
    pub host: Authority,
    /// What endpoints without a proxy are asked in; the others are asked in HTTP/2 in any case.
    pub http2: bool,
    pub expected: Vec<Range<u16>>,
    /// Other statuses that count as one failure. What is in neither is one failure too many.
    pub retriable: Vec<Range<u16>>,
}
