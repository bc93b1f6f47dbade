//! Routes: what happens to a request, and in which order they are asked.

use std::cmp::Reverse;
use std::sync::Arc;

use jiff::Timestamp;
use mesh_common::resource::{
    CorsFilter, DirectResponseSpec, GrpcMethodMatch, GrpcRouteMatch, HeaderFilter, HttpRouteMatch, MatchType, Metadata,
    NamedMatch, PathMatchType, RequestRedirectFilter,
};

use super::policy::Policy;
use super::{FaultRule, Name};

/// Routes of a service port.
#[derive(Debug, Default)]
pub struct Routes {
    /// In order: the first that matches decides. `None`: no object is attached, so requests go to the service itself.
    pub http: Option<Vec<Route>>,
    /// Where streams of TLS go by their server name, those of the oldest object first; no name is in two of them. Empty: no
    /// object is attached, so such streams are as others.
    pub tls: Vec<TlsStreams>,
    /// Where byte streams go. `None`: to the service itself.
    pub tcp: Option<Vec<Backend>>,
    /// Where datagrams go, of a UDP port. `None`: to the service itself.
    pub udp: Option<Vec<Backend>>,
}

impl Routes {
    /// No object is attached.
    pub fn is_empty(&self) -> bool {
        self.http.is_none() && self.tls.is_empty() && self.tcp.is_none() && self.udp.is_none()
    }
}

/// Streams of TLS that ask for one of these server names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsStreams {
    /// In lower case; `*.example.com` stands for every name that ends so.
    pub server_names: Vec<String>,
    pub backends: Vec<Backend>,
}

#[derive(Debug, PartialEq)]
pub struct Route {
    /// `<kind>/<namespace>/<name>/<rule index>`
    pub name: String,
    pub matches: RouteMatch,
    pub action: Action,
    pub request_headers: HeaderFilter,
    pub response_headers: HeaderFilter,
    pub cors: Option<Arc<CorsFilter>>,
    pub policy: Policy,
    pub faults: Vec<Arc<FaultRule>>,
}

/// Every part must match.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RouteMatch {
    pub path: PathMatch,
    pub method: Option<&'static str>,
    pub headers: Vec<NamedMatch>,
    pub query: Vec<NamedMatch>,
    /// Only gRPC requests.
    pub grpc: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathMatch {
    Exact(String),
    /// Without a slash at its end; "" is every path.
    Prefix(String),
    Regex(String),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Forward(Box<Forward>),
    Redirect(RequestRedirectFilter),
    /// The proxy answers.
    Direct(Arc<DirectResponseSpec>),
    /// None of the backends exists: 500, as Gateway API wants it.
    Fail,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Forward {
    pub backends: Vec<Backend>,
    pub rewrite_path: Option<PathRewrite>,
    pub rewrite_host: Option<String>,
    pub mirrors: Vec<Mirror>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    Full(String),
    /// Instead of the prefix that matched.
    Prefix(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    pub service: Name,
    pub port: u16,
    pub weight: u32,
    /// The service and the port exist, and the route may use them. Else what would go there fails.
    pub found: bool,
    pub request_headers: HeaderFilter,
    pub response_headers: HeaderFilter,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    pub service: Name,
    pub port: u16,
    pub parts_per_million: u32,
}

impl Default for RouteMatch {
    fn default() -> Self {
        let path = PathMatch::Prefix(String::new());
        Self { path, method: None, headers: Vec::new(), query: Vec::new(), grpc: false }
    }
}

impl From<&HttpRouteMatch> for RouteMatch {
    fn from(matched: &HttpRouteMatch) -> Self {
        let path = matched.path.clone().unwrap_or_default();
        let value = path.value.unwrap_or_else(|| "/".to_owned());
        Self {
            path: match path.match_type.unwrap_or_default() {
                PathMatchType::Exact => PathMatch::Exact(value),
                PathMatchType::PathPrefix => PathMatch::Prefix(value.trim_end_matches('/').to_owned()),
                PathMatchType::RegularExpression => PathMatch::Regex(value),
            },
            method: matched.method.map(|m| m.as_str()),
            headers: matched.headers.clone(),
            query: matched.query_params.clone(),
            grpc: false,
        }
    }
}

impl From<&GrpcRouteMatch> for RouteMatch {
    fn from(matched: &GrpcRouteMatch) -> Self {
        let path = matched.method.as_ref().map_or(PathMatch::Prefix(String::new()), grpc_path);
        Self { path, headers: matched.headers.clone(), grpc: true, ..Self::default() }
    }
}

/// gRPC calls `/package.Service/Method`.
fn grpc_path(method: &GrpcMethodMatch) -> PathMatch {
    let regular = method.match_type == Some(MatchType::RegularExpression);
    match (&method.service, &method.method) {
        (None, None) => PathMatch::Prefix(String::new()),
        (Some(service), None) if !regular => PathMatch::Prefix(format!("/{service}")),
        (Some(service), Some(method)) if !regular => PathMatch::Exact(format!("/{service}/{method}")),
        (service, method) => {
            let part = |text: &Option<String>| match text {
                Some(text) if regular => format!("(?:{text})"),
                Some(text) => regex::escape(text),
                None => "[^/]+".to_owned(),
            };
            PathMatch::Regex(format!("/{}/{}", part(service), part(method)))
        }
    }
}

/// How old an object is. Of two that want different things the older one wins, then the one whose name comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Age {
    unknown: bool,
    created: Option<Timestamp>,
    name: String,
}

impl Age {
    pub fn of(metadata: &Metadata) -> Self {
        let created = metadata.creation_timestamp.as_ref().and_then(|text| text.parse().ok());
        let name = format!("{}/{}", metadata.namespace_or_default(), metadata.name);
        Self { unknown: created.is_none(), created, name }
    }
}

/// Gateway API's order of precedence: exact paths, regular expressions, then prefixes, the longer ones first; a method;
/// the number of headers, then of query parameters; age and name of the object; place in the object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Precedence {
    class: u8,
    path: Reverse<usize>,
    /// Only the gRPC method is named, not the service.
    method_only: Reverse<usize>,
    grpc: Reverse<bool>,
    method: Reverse<bool>,
    headers: Reverse<usize>,
    query: Reverse<usize>,
    age: Age,
    place: (usize, usize),
}

impl Precedence {
    pub fn http(matched: &RouteMatch, age: &Age, place: (usize, usize)) -> Self {
        let (class, length) = match &matched.path {
            PathMatch::Exact(path) => (0, path.len()),
            PathMatch::Regex(pattern) => (1, pattern.len()),
            PathMatch::Prefix(prefix) => (2, prefix.len()),
        };
        Self {
            class,
            path: Reverse(length),
            method_only: Reverse(0),
            grpc: Reverse(matched.grpc),
            method: Reverse(matched.method.is_some()),
            headers: Reverse(matched.headers.len()),
            query: Reverse(matched.query.len()),
            age: age.clone(),
            place,
        }
    }

    /// A method without a service is matched by a regular expression, but comes after every service that is named.
    pub fn grpc(method: Option<&GrpcMethodMatch>, matched: &RouteMatch, age: &Age, place: (usize, usize)) -> Self {
        let plain = Self::http(matched, age, place);
        match method {
            Some(GrpcMethodMatch { match_type, service: None, method: Some(name) })
                if *match_type != Some(MatchType::RegularExpression) =>
            {
                Self { class: 2, path: Reverse(0), method_only: Reverse(name.len()), ..plain }
            }
            _ => plain,
        }
    }
}
