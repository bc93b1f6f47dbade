use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::identity::Identity;

use super::EndpointHealth;

/// An upstream cluster. Its endpoints are a resource of their own when `discovery` is EDS.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub name: String,
    pub discovery: Discovery,
    pub balancer: Balancer,
    pub spread: Spread,
    pub connect_timeout: Duration,
    /// mTLS for endpoints that are in the mesh; ask [`tls_for`](Self::tls_for).
    pub tls: Option<UpstreamTls>,
    /// mTLS for all endpoints, whether they say that they are in the mesh or not.
    pub tls_always: bool,
    /// What the cluster's connections speak when they carry HTTP.
    pub http: UpstreamHttp,
    pub limits: Limits,
    pub health: EndpointHealth,
}

impl Cluster {
    /// How connections to an endpoint are secured. `None`: not at all.
    pub fn tls_for(&self, endpoint: &Endpoint) -> Option<&UpstreamTls> {
        self.tls.as_ref().filter(|_| self.tls_always || endpoint.mesh)
    }
}

#[derive(Clone, Debug)]
pub enum Discovery {
    /// Name of the ClusterLoadAssignment.
    Eds(String),
    Static(Arc<Endpoints>),
    /// Wherever the downstream connection was going.
    OriginalDestination,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balancer {
    RoundRobin,
    Random,
    LeastRequest,
    /// By how long endpoints take to answer; what was seen that long ago counts for a third.
    PeakEwma {
        decay: Duration,
    },
    /// By what requests have in common, on a ring of so many points.
    RingHash {
        min_size: u32,
        max_size: u32,
    },
    /// By what requests have in common, in a table of so many slots, a prime number.
    Maglev {
        size: u32,
    },
}

/// Which endpoints take part in balancing, and with what share.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    pub slow_start: Option<SlowStart>,
    /// All endpoints of a priority are used when less than this share of them is available, and those of other priorities
    /// can't do instead. Zero: never.
    pub panic_percent: u32,
    /// Each locality gets the share of its priority that its own weight says, however many endpoints it has.
    pub locality_weights: bool,
}

/// How the share of a new endpoint rises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    pub window: Duration,
    /// 1: by the same amount in the same time; more: faster in the beginning.
    pub aggression: f64,
    /// What it gets at least.
    pub min_weight_percent: f64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The peer must be one of these. Empty: any workload of the trust domain.
    pub identities: Vec<Identity>,
    pub alpn: Vec<Vec<u8>>,
    pub sni: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamHttp {
    Http1,
    Http2,
    /// What the downstream request spoke.
    Downstream,
}

/// Circuit breaker thresholds (Envoy's defaults are 1024 each, and 3 retries; zero lets nothing through).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub max_connections: u32,
    pub max_pending: u32,
    pub max_requests: u32,
    pub max_retries: u32,
    /// Share of active requests that may be retries, in percent, and the least number always allowed. Replaces
    /// `max_retries` when set.
    pub retry_budget: Option<RetryBudget>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    pub percent: u32,
    pub min_concurrency: u32,
}

/// A ClusterLoadAssignment, flattened.
#[derive(Debug, Default)]
pub struct Endpoints {
    pub name: String,
    pub endpoints: Vec<Arc<Endpoint>>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub weight: u32,
    pub healthy: bool,
    /// The endpoint has a mesh proxy: use the cluster's mTLS.
    pub mesh: bool,
    pub priority: u32,
    pub locality: String,
    /// Of its locality; zero when it has none.
    pub locality_weight: u32,
    pub workload: Option<WorkloadInfo>,
}

impl Endpoint {
    /// One of which nothing is known but where it is.
    pub fn at(address: SocketAddr) -> Self {
        Self {
            address,
            weight: 1,
            healthy: true,
            mesh: false,
            priority: 0,
            locality: String::new(),
            locality_weight: 0,
            workload: None,
        }
    }
}

/// Who an endpoint is, for telemetry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadInfo {
    pub workload: String,
    pub namespace: String,
    pub service: String,
    pub version: String,
    pub identity: String,
}
