//! CORS filters of HTTPRoutes, in the form of Envoy's filter.

use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::google::protobuf::Any;
use mesh_common::names;
use mesh_common::resource::{CorsFilter, NamedMatch};

use super::build::{any, boolean, exact, regex};
use super::{ClientKind, Scope};
use crate::model::{Route, RouteMatch};

/// How long a browser keeps what it was told, in seconds, if the filter does not say.
const MAX_AGE: i32 = 5;

/// A route's configuration of the CORS filter. Only browsers ask, which a gRPC client is not.
pub(super) fn of_filter(scope: &Scope, route: &Route) -> Option<(&'static str, Any)> {
    let filter = route.cors.as_ref().filter(|_| scope.client != ClientKind::Grpc)?;
    Some((names::FILTER_CORS, any(policy(scope, filter))))
}

/// What the preflights of a route's requests look like, where that is something else than the requests: they have another
/// method, and name the request's.
pub(super) fn preflights(route: &Route) -> Option<RouteMatch> {
    let method = route.matches.method.filter(|method| route.cors.is_some() && *method != "OPTIONS")?;
    let asked =
        NamedMatch { name: "access-control-request-method".to_owned(), value: method.to_owned(), match_type: None };
    let headers = route.matches.headers.iter().cloned().chain([asked]).collect();
    Some(RouteMatch { method: Some("OPTIONS"), headers, ..route.matches.clone() })
}

fn policy(scope: &Scope, filter: &CorsFilter) -> CorsPolicy {
    let credentials = filter.allow_credentials == Some(true);
    let all_methods = filter.allow_methods.iter().any(|method| method == "*");
    // With credentials, a browser takes `*` for the name of a method. mesh-proxy answers with the method that is asked for.
    let spelled_out = all_methods && credentials && scope.client == ClientKind::Envoy;
    CorsPolicy {
        allow_origin_string_match: filter.allow_origins.iter().map(|origin| of_origin(origin)).collect(),
        allow_methods: if spelled_out { ALL_METHODS.to_owned() } else { filter.allow_methods.join(", ") },
        allow_headers: filter.allow_headers.join(", "),
        expose_headers: filter.expose_headers.join(", "),
        max_age: filter.max_age.unwrap_or(MAX_AGE).to_string(),
        allow_credentials: credentials.then(|| boolean(true)).flatten(),
        // The application would be asked what the route has decided.
        forward_not_matching_preflights: boolean(false),
        ..CorsPolicy::default()
    }
}

const ALL_METHODS: &str = "GET, HEAD, POST, PUT, DELETE, CONNECT, OPTIONS, TRACE, PATCH";

/// Browsers write an origin in lower case.
fn of_origin(origin: &str) -> StringMatcher {
    let origin = origin.to_ascii_lowercase();
    // A matcher for this text is Envoy's word for all origins.
    let (before, after) = match origin.split_once('*') {
        Some((before, after)) if origin != "*" => (before, after),
        _ => return exact(&origin),
    };
    // A host of any name, or a part of one; without a port, that is the scheme's own.
    let any_host = if after.is_empty() || after.starts_with(':') { r"([^/:]+|\[[0-9a-f:.]+\])" } else { "[^/:]+" };
    let pattern = format!("{}{any_host}{}", regex::escape(before), regex::escape(after));
    StringMatcher { match_pattern: Some(MatchPattern::SafeRegex(regex(&pattern))), ..StringMatcher::default() }
}
