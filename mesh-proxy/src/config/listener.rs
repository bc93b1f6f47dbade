use std::sync::Arc;
use std::time::Duration;

use super::{
    Authorization, Authorizer, Fault, JwtAuthn, PortLimits, RequestLimit, RouteTable, Tracing, WeightedClusters,
};

/// A listener: the filter chains that a connection may take.
#[derive(Debug)]
pub struct Listener {
    pub name: String,
    pub chains: Vec<FilterChain>,
    /// Taken when no chain matches. `None`: the connection is closed.
    pub default_chain: Option<FilterChain>,
    /// Of one for datagrams, which has no chains.
    pub udp: Option<Arc<UdpProxy>>,
}

#[derive(Debug)]
pub struct FilterChain {
    pub matches: ChainMatch,
    /// Terminate mutual TLS with the proxy's own certificate. `None`: leave the bytes as they are.
    pub tls: Option<DownstreamTls>,
    pub filter: NetworkFilter,
}

/// Empty fields match anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainMatch {
    pub destination_port: Option<u16>,
    pub transport: Option<Transport>,
    /// What the TLS client hello must ask for one of.
    pub server_names: Vec<ServerName>,
    /// ALPN protocols of the TLS client hello, or for plaintext `http/1.1` or `h2c` as detected.
    pub application_protocols: Vec<String>,
}

/// A server name, or all that end alike; in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerName {
    Exact(String),
    /// Begins with a dot.
    Suffix(String),
}

impl ServerName {
    /// How exactly it stands for `name`, which is in lower case; `None` if it does not.
    pub fn fits(&self, name: &str) -> Option<usize> {
        match self {
            Self::Exact(exact) => (exact == name).then_some(usize::MAX),
            Self::Suffix(suffix) => (name.len() > suffix.len() && name.ends_with(suffix)).then_some(suffix.len()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Raw,
    Tls,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DownstreamTls {
    pub require_client_certificate: bool,
    /// ALPN protocols to offer, in order.
    pub alpn: Vec<Vec<u8>>,
}

#[derive(Clone, Debug)]
pub enum NetworkFilter {
    Http(Arc<HttpManager>),
    Tcp(Arc<TcpProxy>),
}

impl NetworkFilter {
    pub fn limits(&self) -> Option<&Arc<PortLimits>> {
        match self {
            Self::Http(manager) => manager.limits.as_ref(),
            Self::Tcp(proxy) => proxy.limits.as_ref(),
        }
    }
}

/// An HTTP connection manager.
#[derive(Debug)]
pub struct HttpManager {
    pub stat_prefix: String,
    /// `None`: nobody looks at tokens.
    pub jwt: Option<JwtAuthn>,
    /// Who is asked before that, in order; each that refuses has the last word.
    pub authorizers: Vec<Authorizer>,
    pub authorization: Authorization,
    pub routes: RouteSource,
    /// Zero: none.
    pub idle_timeout: Duration,
    pub stream_idle_timeout: Duration,
    pub limit: Option<RequestLimit>,
    pub limits: Option<Arc<PortLimits>>,
    /// `None`: nobody looks at traces.
    pub tracing: Option<Arc<Tracing>>,
}

#[derive(Debug)]
pub enum RouteSource {
    /// Name of a route configuration to subscribe to.
    Rds(String),
    Inline(Arc<RouteTable>),
}

/// Envoy's UDP proxy.
#[derive(Debug)]
pub struct UdpProxy {
    pub stat_prefix: String,
    pub clusters: WeightedClusters,
    /// A session without a datagram in either direction ends after this time. More than zero.
    pub idle_timeout: Duration,
    /// Sessions of the same client go to the same endpoint, for clusters that balance by that.
    pub hash_source: bool,
}

#[derive(Debug)]
pub struct TcpProxy {
    pub stat_prefix: String,
    pub authorization: Authorization,
    pub clusters: WeightedClusters,
    /// Zero: none.
    pub idle_timeout: Duration,
    pub fault: Option<Arc<Fault>>,
    /// Streams of the same client go to the same endpoint, for clusters that balance by that.
    pub hash_source: bool,
    pub limits: Option<Arc<PortLimits>>,
}
