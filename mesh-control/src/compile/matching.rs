//! From a route's match to Envoy's.

use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::{ConnectMatcher, GrpcRouteMatchOptions, PathSpecifier};
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, QueryParameterMatcher, RouteMatch as PbMatch};
use mesh_common::resource::{MatchType, NamedMatch};

use super::ClientKind;
use super::build::{exact, regex, string_match};
use crate::model::{PathMatch, RouteMatch};

/// `None` if no request of such a client can match.
pub(super) fn route(matched: &RouteMatch, client: ClientKind) -> Option<PbMatch> {
    let path = match (&matched.path, client) {
        (PathMatch::Exact(path), _) => PathSpecifier::Path(path.clone()),
        (PathMatch::Regex(pattern), _) => PathSpecifier::SafeRegex(regex(pattern)),
        (PathMatch::Prefix(prefix), _) if prefix.is_empty() => PathSpecifier::Prefix("/".to_owned()),
        // A gRPC client knows no prefixes of whole segments.
        (PathMatch::Prefix(prefix), ClientKind::Grpc) => {
            PathSpecifier::SafeRegex(regex(&format!("{}(/.*)?", regex::escape(prefix))))
        }
        (PathMatch::Prefix(prefix), _) => PathSpecifier::PathSeparatedPrefix(prefix.clone()),
    };
    let mut headers: Vec<HeaderMatcher> = matched.headers.iter().map(header).collect();
    let mut path = path;
    match (matched.method, client) {
        (None, _) => {}
        // Its calls are all POST, and it can't match by query.
        (Some("POST"), ClientKind::Grpc) => {}
        (Some(_), ClientKind::Grpc) => return None,
        // Such a request has no path.
        (Some("CONNECT"), _) if matched.path == PathMatch::Prefix(String::new()) => {
            path = PathSpecifier::ConnectMatcher(ConnectMatcher {});
        }
        (Some(method), _) => headers.push(header_match(":method", method)),
    }
    if client == ClientKind::Grpc && !matched.query.is_empty() {
        return None;
    }
    Some(PbMatch {
        path_specifier: Some(path),
        headers,
        query_parameters: matched.query.iter().map(query).collect(),
        grpc: matched.grpc.then_some(GrpcRouteMatchOptions {}),
        ..PbMatch::default()
    })
}

/// CONNECT requests, which no path matches.
pub(super) fn connect() -> PbMatch {
    PbMatch { path_specifier: Some(PathSpecifier::ConnectMatcher(ConnectMatcher {})), ..PbMatch::default() }
}

/// Exactly this path.
pub(super) fn with_path(matched: &PbMatch, path: PathSpecifier) -> PbMatch {
    PbMatch { path_specifier: Some(path), ..matched.clone() }
}

pub(super) fn header(matched: &NamedMatch) -> HeaderMatcher {
    HeaderMatcher {
        name: matched.name.to_ascii_lowercase(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(string_match(
            matched.match_type,
            &matched.value,
        ))),
        ..HeaderMatcher::default()
    }
}

/// Requests with one of these methods only.
pub(super) fn with_methods(matched: &PbMatch, methods: &[&str]) -> PbMatch {
    let any = string_match(Some(MatchType::RegularExpression), &methods.join("|"));
    let method = HeaderMatcher {
        name: ":method".to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(any)),
        ..HeaderMatcher::default()
    };
    let headers = matched.headers.iter().cloned().chain([method]).collect();
    PbMatch { headers, ..matched.clone() }
}

fn header_match(name: &str, value: &str) -> HeaderMatcher {
    let specifier = HeaderMatchSpecifier::StringMatch(exact(value));
    HeaderMatcher { name: name.to_owned(), header_match_specifier: Some(specifier), ..HeaderMatcher::default() }
}

fn query(matched: &NamedMatch) -> QueryParameterMatcher {
    let specifier = QueryParameterMatchSpecifier::StringMatch(string_match(matched.match_type, &matched.value));
    QueryParameterMatcher { name: matched.name.clone(), query_parameter_match_specifier: Some(specifier) }
}
