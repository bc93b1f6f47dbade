//! Route configurations: the routes of one service port.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{DataSource, RuntimeFractionalPercent, data_source};
use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::retry_policy::{
    RateLimitedRetryBackOff, ResetHeader, ResetHeaderFormat, RetryBackOff, RetryHostPredicate, retry_host_predicate,
};
use envoy_types::pb::envoy::config::route::v3::route_action::{
    ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier, MaxStreamDuration, RequestMirrorPolicy,
};
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, RedirectAction, RetryPolicy, Route as PbRoute, RouteAction, RouteConfiguration,
    RouteMatch as PbMatch, VirtualHost, WeightedCluster, route,
};
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use mesh_common::names;
use mesh_common::resource::{Header, HeaderFilter, HttpPathModifier, PathModifierType, RequestRedirectFilter};

use super::build::{any, duration, fraction, header_changes, ordered, regex, uint32};
use super::{ClientKind, Scope, balancing, cors, fault, hedge, matching};
use crate::model::{
    Action, Backend, Forward, Mirror, Model, PathMatch, PathRewrite, Policy, Port, Protocol, Route, Service,
};

/// The routes of a service port.
pub(super) fn of_port(model: &Model, scope: &Scope, service: &Service, port: &Port) -> RouteConfiguration {
    let name = names::service_port(&service.name.name, &service.name.namespace, port.number);
    let routes = match &port.routes_for(&scope.namespace).http {
        Some(routes) => routes.iter().flat_map(|route| of_route(model, scope, port, route)).collect(),
        None => straight(scope, service, port, &name),
    };
    configuration(name, routes)
}

/// Every request to one cluster.
pub(super) fn to_cluster(scope: &Scope, service: &Service, port: &Port, cluster: &str) -> RouteConfiguration {
    configuration(cluster.to_owned(), straight(scope, service, port, cluster))
}

/// The requests of a workload's own port, as they came.
pub(super) fn inbound(cluster: &str) -> RouteConfiguration {
    let action = || RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        timeout: duration(Duration::ZERO),
        ..RouteAction::default()
    };
    let routes = [prefix("/"), matching::connect()].map(|matched| PbRoute {
        name: cluster.to_owned(),
        r#match: Some(matched),
        action: Some(route::Action::Route(action())),
        ..PbRoute::default()
    });
    configuration(cluster.to_owned(), routes.to_vec())
}

fn configuration(name: String, routes: Vec<PbRoute>) -> RouteConfiguration {
    let host = VirtualHost { name: name.clone(), domains: vec!["*".to_owned()], routes, ..VirtualHost::default() };
    RouteConfiguration { name, virtual_hosts: vec![host], ..RouteConfiguration::default() }
}

fn prefix(prefix: &str) -> PbMatch {
    PbMatch { path_specifier: Some(PathSpecifier::Prefix(prefix.to_owned())), ..PbMatch::default() }
}

fn straight(scope: &Scope, service: &Service, port: &Port, cluster: &str) -> Vec<PbRoute> {
    let grpc = port.protocol == Protocol::Grpc;
    let route = |matched: PbMatch| PbRoute {
        name: format!("Service/{}/{}/0", service.name.namespace, service.name.name),
        r#match: Some(matched),
        action: Some(route::Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
            hash_policy: balancing::hash_policies(scope, [&port.policy].into_iter()),
            ..action(scope, &port.policy, grpc)
        })),
        typed_per_filter_config: ordered(fault::of_filter(scope, port.faults.iter(), grpc).into_iter().collect()),
        ..PbRoute::default()
    };
    let connect = (scope.client != ClientKind::Grpc).then(|| route(matching::connect()));
    let all = hedge::apart(scope, &port.policy, None, route(prefix("/")));
    all.into_iter().chain(connect).collect()
}

fn of_route(model: &Model, scope: &Scope, port: &Port, route: &Route) -> Vec<PbRoute> {
    let preflights = cors::preflights(route).and_then(|matches| matching::route(&matches, scope.client));
    let requests = matching::route(&route.matches, scope.client);
    requests.into_iter().chain(preflights).flat_map(|matched| matched_by(matched, model, scope, port, route)).collect()
}

fn matched_by(matched: PbMatch, model: &Model, scope: &Scope, port: &Port, route: &Route) -> Vec<PbRoute> {
    let grpc = route.matches.grpc || port.protocol == Protocol::Grpc;
    let faults = port.faults.iter().chain(&route.faults);
    let made = PbRoute {
        name: route.name.clone(),
        r#match: Some(matched),
        typed_per_filter_config: ordered(
            fault::of_filter(scope, faults, grpc).into_iter().chain(cors::of_filter(scope, route)).collect(),
        ),
        request_headers_to_add: header_changes(&route.request_headers),
        request_headers_to_remove: route.request_headers.remove.clone(),
        response_headers_to_add: header_changes(&route.response_headers),
        response_headers_to_remove: route.response_headers.remove.clone(),
        ..PbRoute::default()
    };
    match &route.action {
        Action::Forward(to) => {
            let action = forward(model, scope, to, &route.matches.path, action(scope, &route.policy, grpc));
            let made = PbRoute { action: Some(route::Action::Route(action)), ..made };
            hedge::apart(scope, &route.policy, route.matches.method, made)
        }
        Action::Redirect(filter) => redirects(made, filter, &route.matches.path),
        Action::Direct(response) => {
            let body = response.body.as_deref().unwrap_or_default();
            let mut made = PbRoute { action: Some(direct(response.status, body)), ..made };
            if !body.is_empty() {
                let content_type = response.content_type.clone().unwrap_or_else(|| "text/plain".to_owned());
                let header = Header { name: "content-type".to_owned(), value: content_type };
                let first = header_changes(&HeaderFilter { set: vec![header], ..HeaderFilter::default() });
                made.response_headers_to_add.splice(0..0, first);
            }
            vec![made]
        }
        Action::Fail => vec![PbRoute { action: Some(direct(500, "no backend of this route exists")), ..made }],
    }
}

fn direct(status: u16, body: &str) -> route::Action {
    let body = (!body.is_empty()).then(|| DataSource {
        specifier: Some(data_source::Specifier::InlineString(body.to_owned())),
        ..DataSource::default()
    });
    route::Action::DirectResponse(DirectResponseAction {
        status: u32::from(status),
        body,
        ..DirectResponseAction::default()
    })
}

/// Timeouts and retries.
fn action(scope: &Scope, policy: &Policy, grpc: bool) -> RouteAction {
    let timeout = policy.request_timeout();
    let stream = MaxStreamDuration { max_stream_duration: duration(timeout), ..MaxStreamDuration::default() };
    let longest = (scope.client == ClientKind::Grpc && !timeout.is_zero()).then_some(stream);
    RouteAction {
        cluster_not_found_response_code: ClusterNotFoundResponseCode::InternalServerError as i32,
        // Envoy's own default would be 15 s.
        timeout: duration(timeout),
        idle_timeout: policy.idle.and_then(duration),
        max_stream_duration: longest,
        retry_policy: retry(scope, policy, grpc),
        ..RouteAction::default()
    }
}

fn retry(scope: &Scope, policy: &Policy, grpc: bool) -> Option<RetryPolicy> {
    let per_try = policy.per_try_timeout();
    let retries = policy.retries();
    let (base, max) = policy.backoff();
    let back_off = RetryBackOff { base_interval: duration(base), max_interval: duration(max) };
    let (codes, mut on): (Vec<String>, Vec<String>) =
        policy.retry_on(grpc).into_iter().partition(|on| on.parse::<u16>().is_ok());
    if scope.client == ClientKind::Grpc {
        // What else there is would make it refuse the policy, or it does without being told.
        let known = ["cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"];
        on.retain(|on| known.contains(&on.as_str()));
        return (retries > 0 && !on.is_empty()).then(|| RetryPolicy {
            retry_on: on.join(","),
            num_retries: uint32(retries),
            retry_back_off: Some(back_off),
            ..RetryPolicy::default()
        });
    }
    if !codes.is_empty() {
        on.push("retriable-status-codes".to_owned());
    }
    let other_host = RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(any(PreviousHostsPredicate {}))),
    };
    let longest = policy.max_retry_after();
    let retry_after = RateLimitedRetryBackOff {
        reset_headers: vec![ResetHeader { name: "retry-after".to_owned(), format: ResetHeaderFormat::Seconds as i32 }],
        max_interval: duration(longest),
    };
    // `mesh-proxy` goes to another host without being told.
    let told = scope.client == ClientKind::Envoy;
    (retries > 0 || !per_try.is_zero()).then(|| RetryPolicy {
        retry_on: on.join(","),
        num_retries: uint32(retries),
        per_try_timeout: (!per_try.is_zero()).then(|| duration(per_try)).flatten(),
        retriable_status_codes: codes.iter().filter_map(|code| code.parse().ok()).collect(),
        retry_back_off: Some(back_off),
        rate_limited_retry_back_off: (!longest.is_zero()).then_some(retry_after),
        retry_host_predicate: if told { vec![other_host] } else { Vec::new() },
        host_selection_retry_max_attempts: if told { 5 } else { 0 },
        ..RetryPolicy::default()
    })
}

fn forward(model: &Model, scope: &Scope, to: &Forward, path: &PathMatch, base: RouteAction) -> RouteAction {
    let mirror = |mirror: &Mirror| RequestMirrorPolicy {
        cluster: names::service_port(&mirror.service.name, &mirror.service.namespace, mirror.port),
        runtime_fraction: Some(RuntimeFractionalPercent {
            default_value: fraction(mirror.parts_per_million),
            ..RuntimeFractionalPercent::default()
        }),
        ..RequestMirrorPolicy::default()
    };
    let of_backend = |to: &Backend| model.port(&to.service, to.port).map(|(_, port)| &port.policy);
    let mut action = RouteAction {
        cluster_specifier: Some(clusters(&to.backends)),
        hash_policy: balancing::hash_policies(scope, to.backends.iter().filter_map(of_backend)),
        request_mirror_policies: to.mirrors.iter().map(mirror).collect(),
        host_rewrite_specifier: to.rewrite_host.clone().map(HostRewriteSpecifier::HostRewriteLiteral),
        ..base
    };
    if scope.client != ClientKind::Grpc {
        rewrite(&mut action, to.rewrite_path.as_ref(), path);
    }
    action
}

fn clusters(backends: &[Backend]) -> ClusterSpecifier {
    let name = |backend: &Backend| {
        let name = names::service_port(&backend.service.name, &backend.service.namespace, backend.port);
        if backend.found { name } else { names::unresolved_cluster(&name) }
    };
    if let [backend] = backends
        && backend.request_headers == Default::default()
        && backend.response_headers == Default::default()
    {
        return ClusterSpecifier::Cluster(name(backend));
    }
    let weight = |backend: &Backend| ClusterWeight {
        name: name(backend),
        weight: uint32(backend.weight),
        request_headers_to_add: header_changes(&backend.request_headers),
        request_headers_to_remove: backend.request_headers.remove.clone(),
        response_headers_to_add: header_changes(&backend.response_headers),
        response_headers_to_remove: backend.response_headers.remove.clone(),
        ..ClusterWeight::default()
    };
    let clusters = backends.iter().map(weight).collect();
    ClusterSpecifier::WeightedClusters(WeightedCluster { clusters, ..WeightedCluster::default() })
}

fn rewrite(action: &mut RouteAction, rewrite: Option<&PathRewrite>, path: &PathMatch) {
    let substitute = |pattern: String, substitution: &str| {
        Some(RegexMatchAndSubstitute { pattern: Some(regex(&pattern)), substitution: substitution.to_owned() })
    };
    match (rewrite, path) {
        (None, _) => {}
        (Some(PathRewrite::Full(full)), _) => action.regex_rewrite = substitute("^.*$".to_owned(), full),
        (Some(PathRewrite::Prefix(to)), path) => match (prefix_of(path), to.trim_end_matches('/')) {
            ("", "") => {}
            ("", to) => action.prefix_rewrite = format!("{to}/"),
            // `/a/b` becomes `/b` and `/a` becomes `/`: the slashes after the prefix go with it.
            (prefix, "") => action.regex_rewrite = substitute(format!("^{}/*", regex::escape(prefix)), "/"),
            (_, to) => action.prefix_rewrite = to.to_owned(),
        },
    }
}

/// Validation lets a prefix be replaced only where one is matched.
fn prefix_of(path: &PathMatch) -> &str {
    match path {
        PathMatch::Prefix(prefix) => prefix,
        _ => "",
    }
}

/// Usually one route; two where the place of the slash depends on what follows the prefix.
fn redirects(made: PbRoute, filter: &RequestRedirectFilter, path: &PathMatch) -> Vec<PbRoute> {
    let redirect = |path_rewrite_specifier: Option<PathRewriteSpecifier>| RedirectAction {
        host_redirect: filter.hostname.clone().unwrap_or_default(),
        port_redirect: port_redirect(filter),
        scheme_rewrite_specifier: filter.scheme.clone().map(SchemeRewriteSpecifier::SchemeRedirect),
        response_code: match filter.status_code {
            Some(301) => RedirectResponseCode::MovedPermanently,
            Some(303) => RedirectResponseCode::SeeOther,
            Some(307) => RedirectResponseCode::TemporaryRedirect,
            Some(308) => RedirectResponseCode::PermanentRedirect,
            _ => RedirectResponseCode::Found,
        } as i32,
        path_rewrite_specifier,
        ..RedirectAction::default()
    };
    let with = |route: &PbRoute, path: Option<PathRewriteSpecifier>| PbRoute {
        action: Some(route::Action::Redirect(redirect(path))),
        ..route.clone()
    };
    let replaced = match &filter.path {
        Some(HttpPathModifier { modifier_type: PathModifierType::ReplaceFullPath, replace_full_path, .. }) => {
            let full = replace_full_path.clone().unwrap_or_default();
            return vec![with(&made, Some(PathRewriteSpecifier::PathRedirect(full)))];
        }
        Some(modifier) => modifier.replace_prefix_match.as_deref().unwrap_or_default().trim_end_matches('/'),
        None => return vec![with(&made, None)],
    };
    match (prefix_of(path), replaced) {
        ("", "") => vec![with(&made, None)],
        ("", to) => vec![with(&made, Some(PathRewriteSpecifier::PrefixRewrite(format!("{to}/"))))],
        (prefix, "") => {
            let at = |path: PathSpecifier| {
                let matched = made.r#match.as_ref().map(|matched| matching::with_path(matched, path));
                PbRoute { r#match: matched, ..made.clone() }
            };
            let exact = at(PathSpecifier::Path(prefix.to_owned()));
            let below = at(PathSpecifier::Prefix(format!("{prefix}/")));
            vec![
                with(&exact, Some(PathRewriteSpecifier::PathRedirect("/".to_owned()))),
                with(&below, Some(PathRewriteSpecifier::PrefixRewrite("/".to_owned()))),
            ]
        }
        (_, to) => vec![with(&made, Some(PathRewriteSpecifier::PrefixRewrite(to.to_owned())))],
    }
}

/// The port that the new scheme has anyway isn't written.
fn port_redirect(filter: &RequestRedirectFilter) -> u32 {
    match (filter.scheme.as_deref(), filter.port) {
        (Some("http"), Some(80)) | (Some("https"), Some(443)) | (_, None) => 0,
        (_, Some(port)) => u32::from(port),
    }
}
