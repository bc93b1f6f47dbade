//! RouteConfiguration -> [`RouteTable`]: what a table, its virtual hosts and its routes say together is put on each
//! route, so that a request looks at one place.

use std::collections::HashSet;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::route::Action as PbAction;
use envoy_types::pb::envoy::config::route::v3::route_action::RequestMirrorPolicy;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, HedgePolicy, RedirectAction, RetryPolicy as PbRetry, Route as PbRoute, RouteConfiguration,
    RouteMatch as PbMatch, VirtualHost as PbHost,
};
use http::{Method, StatusCode};

use super::filters::PerFilter;
use super::{At, Decoded, Rejected, each, matching, parts_per_million, unless};
use crate::config::{
    Action, HeaderMutation, Mirror, PathMatch, Redirect, RedirectPath, Route, RouteMatch, RouteTable, VirtualHost,
};
use crate::fault::Share;

mod forward;

pub(super) fn table(pb: RouteConfiguration) -> Decoded<RouteTable> {
    unless(pb.name.is_empty(), "name", "must not be empty")?;
    inline_table(pb)
}

/// A table within a listener needs no name.
pub(super) fn inline_table(pb: RouteConfiguration) -> Decoded<RouteTable> {
    unless(pb.vhds.is_some(), "vhds", "is not supported")?;
    unless(!pb.vhost_header.is_empty(), "vhost_header", "is not supported")?;
    unless(!pb.route_specifiers.is_empty(), "route_specifiers", "is not supported")?;
    let path_parameters = pb.ignore_path_parameters_in_path_matching;
    unless(path_parameters, "ignore_path_parameters_in_path_matching", "is not supported")?;
    let scope = Scope {
        request_headers: matching::mutation("request", pb.request_headers_to_add, pb.request_headers_to_remove)?,
        response_headers: matching::mutation("response", pb.response_headers_to_add, pb.response_headers_to_remove)?,
        specific_wins: pb.most_specific_header_mutations_wins,
        filters: PerFilter::of(&pb.typed_per_filter_config)?,
        mirrors: each("request_mirror_policies", pb.request_mirror_policies, mirror)?,
        retry: None,
        hedge: None,
    };
    let virtual_hosts = each("virtual_hosts", pb.virtual_hosts, |host| virtual_host(host, &scope))?;
    let mut seen = HashSet::new();
    for domain in virtual_hosts.iter().flat_map(|host| &host.domains) {
        if !seen.insert(domain) {
            let reason = format!("the domain {domain:?} is there twice; it must be in one virtual host only");
            return Err(Rejected::field("virtual_hosts", reason));
        }
    }
    Ok(RouteTable { name: pb.name, virtual_hosts, ignore_port: pb.ignore_port_in_host_matching })
}

/// What a route inherits.
struct Scope {
    request_headers: HeaderMutation,
    response_headers: HeaderMutation,
    specific_wins: bool,
    filters: PerFilter,
    mirrors: Vec<Mirror>,
    retry: Option<PbRetry>,
    hedge: Option<HedgePolicy>,
}

impl Scope {
    /// Envoy applies the changes of a route first and those of the table last, unless told otherwise.
    fn merged(&self, outer: &HeaderMutation, inner: HeaderMutation) -> HeaderMutation {
        if self.specific_wins { outer.clone().then(inner) } else { inner.then(outer.clone()) }
    }
}

fn virtual_host(pb: PbHost, outer: &Scope) -> Decoded<VirtualHost> {
    unless(pb.require_tls != 0, "require_tls", "is not supported")?;
    unless(pb.matcher.is_some(), "matcher", "is not supported")?;
    unless(!pb.rate_limits.is_empty(), "rate_limits", "is not supported")?;
    #[allow(deprecated)]
    unless(pb.cors.is_some(), "cors", "is not supported")?;
    unless(pb.retry_policy_typed_config.is_some(), "retry_policy_typed_config", "is not supported")?;
    unless(!pb.route_specifiers.is_empty(), "route_specifiers", "is not supported")?;
    unless(pb.domains.is_empty(), "domains", "must not be empty")?;
    let request = matching::mutation("request", pb.request_headers_to_add, pb.request_headers_to_remove)?;
    let response = matching::mutation("response", pb.response_headers_to_add, pb.response_headers_to_remove)?;
    let mirrors = each("request_mirror_policies", pb.request_mirror_policies, mirror)?;
    let scope = Scope {
        request_headers: outer.merged(&outer.request_headers, request),
        response_headers: outer.merged(&outer.response_headers, response),
        specific_wins: outer.specific_wins,
        filters: PerFilter::of(&pb.typed_per_filter_config)?.or(&outer.filters),
        mirrors: if mirrors.is_empty() { outer.mirrors.clone() } else { mirrors },
        retry: pb.retry_policy,
        hedge: pb.hedge_policy,
    };
    let domains = each("domains", pb.domains, |it| domain(&it))?;
    let routes = each("routes", pb.routes, |it| Ok(Arc::new(route(it, &scope)?)))?;
    Ok(VirtualHost { name: pb.name, domains, routes })
}

fn domain(text: &str) -> Decoded<String> {
    let stars = text.bytes().filter(|b| *b == b'*').count();
    let well_placed = stars == 0 || stars == 1 && (text.starts_with('*') || text.ends_with('*'));
    if text.is_empty() || !well_placed {
        return Err(Rejected::new(format_args!("{text:?} is not a name, `*.suffix`, `prefix.*` or `*`")));
    }
    Ok(text.to_ascii_lowercase())
}

fn route(pb: PbRoute, scope: &Scope) -> Decoded<Route> {
    unless(!pb.route_specifiers.is_empty(), "route_specifiers", "is not supported")?;
    let matches = route_match(pb.r#match.ok_or_else(|| Rejected::field("match", "is needed"))?).at("match")?;
    let request = matching::mutation("request", pb.request_headers_to_add, pb.request_headers_to_remove)?;
    let response = matching::mutation("response", pb.response_headers_to_add, pb.response_headers_to_remove)?;
    let filters = PerFilter::of(&pb.typed_per_filter_config)?.or(&scope.filters);
    let action = match pb.action {
        Some(PbAction::Route(pb)) => Action::Forward(Box::new(forward::forward(pb, &matches.path, scope).at("route")?)),
        Some(PbAction::Redirect(pb)) => Action::Redirect(redirect(pb).at("redirect")?),
        Some(PbAction::DirectResponse(pb)) => direct(pb).at("direct_response")?,
        Some(PbAction::FilterAction(_)) => return Err(Rejected::field("filter_action", "is not supported")),
        Some(PbAction::NonForwardingAction(_)) => {
            return Err(Rejected::field("non_forwarding_action", "is for gRPC servers without a proxy"));
        }
        None => return Err(Rejected::new("one of route, redirect and direct_response is needed")),
    };
    Ok(Route {
        name: pb.name,
        matches,
        action,
        request_headers: scope.merged(&scope.request_headers, request),
        response_headers: scope.merged(&scope.response_headers, response),
        cors: filters.cors,
        fault: filters.fault,
    })
}

fn route_match(pb: PbMatch) -> Decoded<RouteMatch> {
    unless(pb.tls_context.is_some(), "tls_context", "is not supported")?;
    unless(!pb.dynamic_metadata.is_empty(), "dynamic_metadata", "is not supported")?;
    unless(!pb.filter_state.is_empty(), "filter_state", "is not supported")?;
    if let Some(fraction) = &pb.runtime_fraction {
        let share = fraction.default_value.as_ref().map_or(Ok(0), parts_per_million).at("runtime_fraction")?;
        unless(share < 1_000_000, "runtime_fraction", "other than 100 % is not supported; use weighted_clusters")?;
    }
    let sensitive = pb.case_sensitive.as_ref().is_none_or(|it| it.value);
    let mut method = None;
    let path = match pb.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) if sensitive => PathMatch::Prefix(prefix),
        Some(PathSpecifier::Prefix(prefix)) => {
            PathMatch::Regex(matching::regex(&format!("(?is)^{}.*$", regex::escape(&prefix)))?)
        }
        Some(PathSpecifier::Path(path)) if sensitive => PathMatch::Exact(path),
        Some(PathSpecifier::Path(path)) => {
            PathMatch::Regex(matching::regex(&format!("(?i)^{}$", regex::escape(&path)))?)
        }
        Some(PathSpecifier::SafeRegex(pb)) => PathMatch::Regex(matching::regex_matcher(&pb).at("safe_regex")?),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            unless(!sensitive, "case_sensitive", "must be true beside path_separated_prefix")?;
            let trimmed = prefix.strip_suffix('/').unwrap_or(&prefix);
            PathMatch::SegmentPrefix(trimmed.to_owned())
        }
        Some(PathSpecifier::ConnectMatcher(_)) => {
            method = Some(Method::CONNECT);
            // CONNECT in HTTP/1.1 has no path.
            PathMatch::Prefix(String::new())
        }
        Some(PathSpecifier::PathMatchPolicy(_)) => {
            return Err(Rejected::field("path_match_policy", "is not supported"));
        }
        None => return Err(Rejected::new("a path, prefix or other path specifier is needed")),
    };
    let mut headers = each("headers", pb.headers, matching::header)?;
    headers.extend(each("cookies", pb.cookies, matching::cookie)?);
    let query = each("query_parameters", pb.query_parameters, matching::query)?;
    Ok(RouteMatch { path, method, headers, query, grpc: pb.grpc.is_some() })
}

fn redirect(pb: RedirectAction) -> Decoded<Redirect> {
    let scheme = match pb.scheme_rewrite_specifier {
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".to_owned()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => Some(scheme),
        _ => None,
    };
    let path = match pb.path_rewrite_specifier {
        Some(PathRewriteSpecifier::PathRedirect(path)) => Some(RedirectPath::Full(path)),
        Some(PathRewriteSpecifier::PrefixRewrite(path)) => Some(RedirectPath::Prefix(path)),
        Some(PathRewriteSpecifier::RegexRewrite(_) | PathRewriteSpecifier::PathRewrite(_)) => {
            return Err(Rejected::field("path_rewrite_specifier", "use path_redirect or prefix_rewrite"));
        }
        None => None,
    };
    let port = match pb.port_redirect {
        0 => None,
        port => {
            let port = u16::try_from(port);
            Some(port.map_err(|_| Rejected::field("port_redirect", "must not be more than 65535"))?)
        }
    };
    let status = match RedirectResponseCode::try_from(pb.response_code) {
        Ok(RedirectResponseCode::MovedPermanently) => StatusCode::MOVED_PERMANENTLY,
        Ok(RedirectResponseCode::Found) => StatusCode::FOUND,
        Ok(RedirectResponseCode::SeeOther) => StatusCode::SEE_OTHER,
        Ok(RedirectResponseCode::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
        Ok(RedirectResponseCode::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
        Err(_) => return Err(Rejected::field("response_code", format_args!("{} is not known", pb.response_code))),
    };
    let host = Some(pb.host_redirect).filter(|it| !it.is_empty());
    Ok(Redirect { scheme, host, port, path, strip_query: pb.strip_query, status })
}

fn direct(pb: DirectResponseAction) -> Decoded<Action> {
    unless(pb.body_format.is_some(), "body_format", "is not supported")?;
    let status = u16::try_from(pb.status).ok().filter(|it| (200..600).contains(it));
    let status = status
        .and_then(|it| StatusCode::from_u16(it).ok())
        .ok_or_else(|| Rejected::field("status", format_args!("{} is not a status from 200 to 599", pb.status)))?;
    let body = match pb.body.and_then(|it| it.specifier) {
        None => bytes::Bytes::new(),
        Some(Specifier::InlineBytes(body)) => body.into(),
        Some(Specifier::InlineString(body)) => body.into(),
        Some(_) => return Err(Rejected::field("body", "must be inline")),
    };
    Ok(Action::Direct { status, body })
}

fn mirror(pb: RequestMirrorPolicy) -> Decoded<Mirror> {
    unless(pb.cluster.is_empty(), "cluster", "is needed")?;
    unless(!pb.cluster_header.is_empty(), "cluster_header", "is not supported")?;
    unless(!pb.request_headers_mutations.is_empty(), "request_headers_mutations", "is not supported")?;
    unless(!pb.host_rewrite_literal.is_empty(), "host_rewrite_literal", "is not supported")?;
    let parts_per_million = match pb.runtime_fraction.as_ref().and_then(|it| it.default_value.as_ref()) {
        None => 1_000_000,
        Some(share) => parts_per_million(share).at("runtime_fraction")?,
    };
    Ok(Mirror { cluster: pb.cluster.into(), parts_per_million, share: Share::default() })
}
