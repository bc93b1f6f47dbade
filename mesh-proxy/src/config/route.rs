use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};

use super::{Cors, WeightedClusters};
use crate::fault::Share;
use crate::pace::Rate;

/// A route configuration.
#[derive(Debug, Default)]
pub struct RouteTable {
    pub name: String,
    pub virtual_hosts: Vec<VirtualHost>,
    /// Domains are compared with the host without its port.
    pub ignore_port: bool,
}

#[derive(Debug)]
pub struct VirtualHost {
    pub name: String,
    /// Exact names, `*.suffix`, `prefix.*` or `*`, lower case, matched in Envoy's order of precedence.
    pub domains: Vec<String>,
    pub routes: Vec<Arc<Route>>,
}

/// The first route of its virtual host that matches decides.
#[derive(Debug)]
pub struct Route {
    pub name: String,
    pub matches: RouteMatch,
    pub action: Action,
    pub request_headers: HeaderMutation,
    pub response_headers: HeaderMutation,
    pub cors: Option<Arc<Cors>>,
    pub fault: Option<Arc<Fault>>,
}

#[derive(Debug, PartialEq)]
pub struct RouteMatch {
    pub path: PathMatch,
    pub method: Option<Method>,
    pub headers: Vec<HeaderMatch>,
    pub query: Vec<QueryMatch>,
    /// Only requests with `content-type: application/grpc*`.
    pub grpc: bool,
}

#[derive(Debug)]
pub enum PathMatch {
    /// Any path that begins so, as bytes.
    Prefix(String),
    /// The path itself or anything below it: `/a` matches `/a` and `/a/b`, never `/ab`.
    SegmentPrefix(String),
    Exact(String),
    /// The whole path.
    Regex(regex::Regex),
}

impl PartialEq for PathMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Prefix(a), Self::Prefix(b))
            | (Self::SegmentPrefix(a), Self::SegmentPrefix(b))
            | (Self::Exact(a), Self::Exact(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

#[derive(Debug, PartialEq)]
pub struct HeaderMatch {
    /// Lower case; `:method`, `:path` and `:authority` are allowed.
    pub name: String,
    pub matcher: StringMatch,
    pub invert: bool,
}

#[derive(Debug, PartialEq)]
pub struct QueryMatch {
    pub name: String,
    pub matcher: StringMatch,
}

#[derive(Debug)]
pub enum StringMatch {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    Regex(regex::Regex),
    Present(bool),
}

impl PartialEq for StringMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b))
            | (Self::Prefix(a), Self::Prefix(b))
            | (Self::Suffix(a), Self::Suffix(b))
            | (Self::Contains(a), Self::Contains(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            (Self::Present(a), Self::Present(b)) => a == b,
            _ => false,
        }
    }
}

#[derive(Debug)]
pub enum Action {
    Forward(Box<Forward>),
    Redirect(Redirect),
    Direct { status: StatusCode, body: bytes::Bytes },
}

#[derive(Debug)]
pub struct Forward {
    pub clusters: WeightedClusters,
    /// From the end of the request to the end of the response; zero: none.
    pub timeout: Duration,
    pub idle_timeout: Option<Duration>,
    pub retry: RetryPolicy,
    pub rewrite_path: Option<PathRewrite>,
    pub rewrite_host: Option<HeaderValue>,
    pub mirrors: Vec<Mirror>,
    /// What requests have in common that go to the same endpoint, for clusters that balance by that.
    pub hash: Vec<HashPolicy>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashPolicy {
    pub by: HashBy,
    /// If the request has it, the policies after this one do not count; else all are taken together.
    pub terminal: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashBy {
    Header(HeaderName),
    Cookie(HashCookie),
    /// The client's address.
    Source,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashCookie {
    pub name: String,
    /// Of a cookie that is made for a client without; zero: until its session ends. `None`: none is made.
    pub ttl: Option<Duration>,
    pub path: String,
}

#[derive(Clone, Debug)]
pub enum PathRewrite {
    /// Replaces the prefix that matched.
    Prefix(String),
    Full(String),
    Regex {
        pattern: regex::Regex,
        substitution: String,
    },
}

#[derive(Clone, Debug, Default)]
pub struct Redirect {
    pub scheme: Option<String>,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub path: Option<RedirectPath>,
    pub strip_query: bool,
    pub status: StatusCode,
}

#[derive(Clone, Debug)]
pub enum RedirectPath {
    Full(String),
    Prefix(String),
}

#[derive(Clone, Debug)]
pub struct Mirror {
    pub cluster: Arc<str>,
    /// Share of requests, in parts of a million.
    pub parts_per_million: u32,
    /// Chooses them.
    pub share: Share,
}

#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// Tries after the first one; zero: never retry.
    pub retries: u32,
    pub on: RetryOn,
    /// Zero: none.
    pub per_try_timeout: Duration,
    /// A try that has taken that long goes on, beside the next one.
    pub hedges: bool,
    pub backoff_base: Duration,
    pub backoff_max: Duration,
    /// The longest `Retry-After` that a retry waits for. Zero: the header is not looked at.
    pub retry_after_max: Duration,
}

/// Envoy's conditions, `x-envoy-retry-on` and `x-envoy-retry-grpc-on`.
#[derive(Clone, Debug, Default)]
pub struct RetryOn {
    pub connect_failure: bool,
    pub refused_stream: bool,
    /// The connection broke after the request was sent: only safe for idempotent methods.
    pub reset: bool,
    pub reset_before_request: bool,
    pub server_error: bool,
    pub gateway_error: bool,
    pub retriable_4xx: bool,
    pub statuses: Vec<StatusCode>,
    /// gRPC status codes.
    pub grpc: Vec<u32>,
}

#[derive(Clone, Debug, Default)]
pub struct HeaderMutation {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub add: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

impl HeaderMutation {
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }

    /// This and then `next`, as one.
    pub fn then(mut self, next: Self) -> Self {
        let replaced = |name: &HeaderName| next.remove.contains(name) || next.set.iter().any(|(set, _)| set == name);
        self.set.retain(|(name, _)| !replaced(name));
        self.add.retain(|(name, _)| !replaced(name));
        self.set.extend(next.set);
        self.add.extend(next.add);
        self.remove.extend(next.remove);
        self
    }
}

/// Faults of a route or a TCP proxy, in order; every rule that hits applies (a delay, then an abort or reset, or a throttle).
#[derive(Clone, Debug, Default)]
pub struct Fault {
    pub rules: Vec<FaultRule>,
}

#[derive(Clone, Debug)]
pub struct FaultRule {
    pub name: String,
    pub parts_per_million: u32,
    pub kind: FaultKind,
    /// Unix milliseconds; zero: never.
    pub expires_unix_ms: i64,
    pub headers: Arc<Vec<HeaderMatch>>,
    /// Chooses the requests that it hits.
    pub share: Share,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    Delay(Duration),
    /// `grpc` is the status for gRPC requests.
    Abort {
        http: StatusCode,
        grpc: u32,
    },
    Reset,
    /// What comes back.
    Throttle(Rate),
}
