use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};

use super::Cors;
use crate::fault::Share;

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

#[derive(Debug)]
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

#[derive(Debug)]
pub struct HeaderMatch {
    /// Lower case; `:method`, `:path` and `:authority` are allowed.
    pub name: String,
    pub matcher: StringMatch,
    pub invert: bool,
}

#[derive(Debug)]
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

/// Faults of a route or a TCP proxy, in order; every rule that hits applies (a delay, then an abort or reset).
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
}

/// Clusters with weights, chosen by smooth weighted round robin: over as many requests as the sum of the weights
/// (divided by their greatest common divisor), each cluster gets exactly its share.
#[derive(Debug)]
pub struct WeightedClusters {
    choices: Vec<WeightedCluster>,
    total: i64,
    current: Mutex<Vec<i64>>,
}

#[derive(Clone, Debug)]
pub struct WeightedCluster {
    pub cluster: Arc<str>,
    pub weight: u32,
    pub request_headers: HeaderMutation,
    pub response_headers: HeaderMutation,
}

impl WeightedClusters {
    /// Clusters with weight zero are never chosen. With nothing to choose from, [`pick`](Self::pick) returns `None`.
    pub fn new(choices: Vec<WeightedCluster>) -> Self {
        let choices: Vec<_> = choices.into_iter().filter(|c| c.weight > 0).collect();
        let total = choices.iter().map(|c| i64::from(c.weight)).sum();
        let current = Mutex::new(vec![0; choices.len()]);
        Self { choices, total, current }
    }

    pub fn single(cluster: &str) -> Self {
        Self::new(vec![WeightedCluster {
            cluster: cluster.into(),
            weight: 1,
            request_headers: HeaderMutation::default(),
            response_headers: HeaderMutation::default(),
        }])
    }

    pub fn choices(&self) -> &[WeightedCluster] {
        &self.choices
    }

    pub fn pick(&self) -> Option<&WeightedCluster> {
        if self.choices.len() < 2 {
            return self.choices.first();
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let mut best = 0;
        for (i, choice) in self.choices.iter().enumerate() {
            current[i] += i64::from(choice.weight);
            if current[i] > current[best] {
                best = i;
            }
        }
        current[best] -= self.total;
        self.choices.get(best)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn weighted(weights: &[u32]) -> WeightedClusters {
        let choice = |(i, weight): (usize, &u32)| WeightedCluster {
            cluster: i.to_string().into(),
            weight: *weight,
            request_headers: HeaderMutation::default(),
            response_headers: HeaderMutation::default(),
        };
        WeightedClusters::new(weights.iter().enumerate().map(choice).collect())
    }

    #[test]
    fn nothing_to_choose_from() {
        assert!(weighted(&[]).pick().is_none());
        assert!(weighted(&[0, 0]).pick().is_none());
    }

    proptest! {
        #[test]
        fn every_window_of_the_total_has_exact_shares(weights in prop::collection::vec(0u32..60, 1..6), offset in 0usize..500) {
            let total = weights.iter().sum::<u32>() as usize;
            prop_assume!(total > 0);
            let clusters = weighted(&weights);
            for _ in 0..offset {
                clusters.pick();
            }
            let mut counts = vec![0u32; weights.len()];
            for _ in 0..total {
                counts[clusters.pick().unwrap().cluster.parse::<usize>().unwrap()] += 1;
            }
            prop_assert_eq!(counts, weights);
        }
    }
}
