use std::collections::BTreeSet;
use std::net::IpAddr;

use super::super::{
    BackendRef, GATEWAY_GROUP, GrpcFilterType, GrpcMethodMatch, GrpcRouteFilter, GrpcRouteSpec, HttpFilterType,
    HttpPathMatch, HttpPathModifier, HttpRouteFilter, HttpRouteRule, HttpRouteSpec, MESH_GROUP, MatchType,
    ParentReference, PathMatchType, PathModifierType, ReferenceGrantSpec, RequestMirrorFilter, RequestRedirectFilter,
    SessionPersistence, TcpRouteSpec, TlsRouteSpec, UdpRouteSpec, UrlRewriteFilter,
};
use super::fields::{at_most, header_filter, header_matches, hostname, not_zero, query_matches, regex};
use super::{Errors, cors};

const MAX_RULES: usize = 16;
const MAX_MATCHES: usize = 64;
const MAX_MATCHES_TOGETHER: usize = 128;
const MAX_WEIGHT: u32 = 1_000_000;
const MAX_ATTEMPTS: u32 = 100;
const MAX_SERVER_NAMES: usize = 1024;

pub(super) fn http(spec: &HttpRouteSpec, errors: &mut Errors) {
    parents(errors, &spec.parent_refs);
    hostnames(errors, &spec.hostnames);
    rules(errors, spec.rules.iter().map(|r| (r.name.as_deref(), r.matches.len())));
    for (i, rule) in spec.rules.iter().enumerate() {
        http_rule(errors, &format!("spec.rules[{i}]"), rule);
    }
}

fn http_rule(errors: &mut Errors, path: &str, rule: &HttpRouteRule) {
    for (i, matched) in rule.matches.iter().enumerate() {
        let path = format!("{path}.matches[{i}]");
        if let Some(matched) = &matched.path {
            path_match(errors, &format!("{path}.path"), matched);
        }
        header_matches(errors, &format!("{path}.headers"), &matched.headers);
        query_matches(errors, &format!("{path}.queryParams"), &matched.query_params);
    }
    http_filters(errors, &format!("{path}.filters"), &rule.filters);
    let redirect = rule.filters.iter().any(|f| f.filter_type == HttpFilterType::RequestRedirect);
    let rewrite = rule.filters.iter().any(|f| f.filter_type == HttpFilterType::UrlRewrite);
    errors.add_if(redirect && rewrite, format!("{path}.filters"), "a rule redirects or rewrites, not both");
    let both = redirect && !rule.backend_refs.is_empty();
    errors.add_if(both, format!("{path}.backendRefs"), "a rule that redirects has no backends");
    let direct = rule.filters.iter().any(|f| f.filter_type == HttpFilterType::ExtensionRef);
    let elsewhere = direct && (redirect || rewrite || rule.filters.iter().any(|f| f.request_mirror.is_some()));
    let message = "a rule that answers itself neither redirects, rewrites nor mirrors";
    errors.add_if(elsewhere, format!("{path}.filters"), message);
    let both = direct && !rule.backend_refs.is_empty();
    errors.add_if(both, format!("{path}.backendRefs"), "a rule that answers itself has no backends");
    prefix_rewrites(errors, path, rule);
    backends(errors, path, &rule.backend_refs);
    for (i, backend) in rule.backend_refs.iter().enumerate() {
        let path = format!("{path}.backendRefs[{i}].filters");
        http_filters(errors, &path, &backend.filters);
        for (j, filter) in backend.filters.iter().enumerate() {
            use HttpFilterType::{RequestHeaderModifier, ResponseHeaderModifier};
            let fits = matches!(filter.filter_type, RequestHeaderModifier | ResponseHeaderModifier);
            errors.add_if(!fits, format!("{path}[{j}].type"), ON_BACKEND);
        }
    }
    if let Some(timeouts) = &rule.timeouts
        && let (Some(request), Some(backend)) = (timeouts.request, timeouts.backend_request)
    {
        let longer = !request.is_zero() && backend > request;
        let path = format!("{path}.timeouts.backendRequest");
        errors.add_if(longer, path, "one try can't take longer than the whole request (`timeouts.request`)");
    }
    if let Some(retry) = &rule.retry {
        for (i, code) in retry.codes.iter().enumerate() {
            let wrong = !(400..=599).contains(code);
            errors.add_if(wrong, format!("{path}.retry.codes[{i}]"), "a status to retry on is from 400 to 599");
        }
        let many = retry.attempts.is_some_and(|n| n > MAX_ATTEMPTS);
        errors.add_if(many, format!("{path}.retry.attempts"), format!("at most {MAX_ATTEMPTS} retries are allowed"));
        not_zero(errors, &format!("{path}.retry.backoff"), retry.backoff);
    }
    session(errors, path, rule.session_persistence.as_ref());
}

const ON_BACKEND: &str = "of one backend, only headers can be changed; put this filter on the rule";

pub(super) fn grpc(spec: &GrpcRouteSpec, errors: &mut Errors) {
    parents(errors, &spec.parent_refs);
    hostnames(errors, &spec.hostnames);
    rules(errors, spec.rules.iter().map(|r| (r.name.as_deref(), r.matches.len())));
    for (i, rule) in spec.rules.iter().enumerate() {
        let path = format!("spec.rules[{i}]");
        for (j, matched) in rule.matches.iter().enumerate() {
            let path = format!("{path}.matches[{j}]");
            if let Some(method) = &matched.method {
                grpc_method(errors, &format!("{path}.method"), method);
            }
            header_matches(errors, &format!("{path}.headers"), &matched.headers);
        }
        grpc_filters(errors, &format!("{path}.filters"), &rule.filters);
        backends(errors, &path, &rule.backend_refs);
        for (j, backend) in rule.backend_refs.iter().enumerate() {
            let path = format!("{path}.backendRefs[{j}].filters");
            grpc_filters(errors, &path, &backend.filters);
            let mirror = backend.filters.iter().any(|f| f.filter_type == GrpcFilterType::RequestMirror);
            errors.add_if(mirror, path, ON_BACKEND);
        }
        session(errors, &path, rule.session_persistence.as_ref());
    }
}

pub(super) fn tcp(spec: &TcpRouteSpec, errors: &mut Errors) {
    parents(errors, &spec.parent_refs);
    rules(errors, spec.rules.iter().map(|r| (r.name.as_deref(), 0)));
    errors.add_if(
        spec.rules.len() != 1,
        "spec.rules",
        "a TCPRoute needs exactly one rule, as nothing tells streams apart",
    );
    for (i, rule) in spec.rules.iter().enumerate() {
        let path = format!("spec.rules[{i}]");
        errors.add_if(rule.backend_refs.is_empty(), format!("{path}.backendRefs"), "a TCP rule needs a backend");
        backends(errors, &path, &rule.backend_refs);
    }
}

pub(super) fn udp(spec: &UdpRouteSpec, errors: &mut Errors) {
    parents(errors, &spec.parent_refs);
    rules(errors, spec.rules.iter().map(|r| (r.name.as_deref(), 0)));
    errors.add_if(
        spec.rules.len() != 1,
        "spec.rules",
        "a UDPRoute needs exactly one rule, as nothing tells datagrams apart",
    );
    for (i, rule) in spec.rules.iter().enumerate() {
        let path = format!("spec.rules[{i}]");
        errors.add_if(rule.backend_refs.is_empty(), format!("{path}.backendRefs"), "a UDP rule needs a backend");
        backends(errors, &path, &rule.backend_refs);
    }
}

pub(super) fn tls(spec: &TlsRouteSpec, errors: &mut Errors) {
    parents(errors, &spec.parent_refs);
    errors.add_if(spec.hostnames.is_empty(), "spec.hostnames", "a TLSRoute needs the server names that it is for");
    at_most(errors, "spec.hostnames", spec.hostnames.len(), MAX_SERVER_NAMES);
    for (i, name) in spec.hostnames.iter().enumerate() {
        let path = format!("spec.hostnames[{i}]");
        hostname(errors, &path, name, true);
        // RFC 6066 section 3.
        errors.add_if(name.parse::<IpAddr>().is_ok(), path, "a server name is never an IP address");
    }
    rules(errors, spec.rules.iter().map(|r| (r.name.as_deref(), 0)));
    errors.add_if(
        spec.rules.len() != 1,
        "spec.rules",
        "a TLSRoute needs exactly one rule, as only `hostnames` tells its streams from others",
    );
    for (i, rule) in spec.rules.iter().enumerate() {
        let path = format!("spec.rules[{i}]");
        errors.add_if(rule.backend_refs.is_empty(), format!("{path}.backendRefs"), "a TLS rule needs a backend");
        backends(errors, &path, &rule.backend_refs);
    }
}

pub(super) fn grant(spec: &ReferenceGrantSpec, errors: &mut Errors) {
    errors.add_if(spec.from.is_empty(), "spec.from", "at least one entry is needed, or nothing is granted");
    errors.add_if(spec.to.is_empty(), "spec.to", "at least one entry is needed, or nothing is granted");
    at_most(errors, "spec.from", spec.from.len(), 16);
    at_most(errors, "spec.to", spec.to.len(), 16);
    for (i, from) in spec.from.iter().enumerate() {
        errors.add_if(from.kind.is_empty(), format!("spec.from[{i}].kind"), "a kind is needed");
        errors.add_if(from.namespace.is_empty(), format!("spec.from[{i}].namespace"), "a namespace is needed");
    }
    for (i, to) in spec.to.iter().enumerate() {
        errors.add_if(to.kind.is_empty(), format!("spec.to[{i}].kind"), "a kind is needed");
    }
}

fn parents(errors: &mut Errors, parents: &[ParentReference]) {
    at_most(errors, "spec.parentRefs", parents.len(), 32);
    for (i, parent) in parents.iter().enumerate() {
        let path = format!("spec.parentRefs[{i}]");
        let group = parent.group.as_deref().unwrap_or(GATEWAY_GROUP);
        let kind = parent.kind.as_deref().unwrap_or("Gateway");
        if !(matches!(group, "" | "core") && kind == "Service") {
            let message = format!(
                "this refers to a {kind} of the group {group:?}, but only Services can be parents for now: write `group: \"\"` and `kind: Service`"
            );
            errors.add(format!("{path}.kind"), message);
        }
        errors.add_if(parent.name.is_empty(), format!("{path}.name"), "the name of the Service is needed");
        errors.add_if(parent.port == Some(0), format!("{path}.port"), "a port is from 1 to 65535");
        errors.add_if(parents[..i].contains(parent), path, "this parent is named twice");
    }
}

fn hostnames(errors: &mut Errors, names: &[String]) {
    at_most(errors, "spec.hostnames", names.len(), 16);
    for (i, name) in names.iter().enumerate() {
        hostname(errors, &format!("spec.hostnames[{i}]"), name, true);
    }
}

fn rules<'a>(errors: &mut Errors, rules: impl ExactSizeIterator<Item = (Option<&'a str>, usize)>) {
    at_most(errors, "spec.rules", rules.len(), MAX_RULES);
    let mut seen = BTreeSet::new();
    let mut together = 0;
    for (i, (name, matches)) in rules.enumerate() {
        at_most(errors, &format!("spec.rules[{i}].matches"), matches, MAX_MATCHES);
        together += matches;
        let twice = name.is_some_and(|name| !seen.insert(name));
        errors.add_if(twice, format!("spec.rules[{i}].name"), "another rule has this name");
    }
    let many = together > MAX_MATCHES_TOGETHER;
    let message = format!("all rules have {together} matches together, but at most {MAX_MATCHES_TOGETHER} are allowed");
    errors.add_if(many, "spec.rules", message);
}

fn path_match(errors: &mut Errors, path: &str, matched: &HttpPathMatch) {
    let Some(value) = &matched.value else { return };
    let at = format!("{path}.value");
    errors.add_if(value.len() > 1024, &at, "a path of at most 1024 bytes is allowed");
    if matched.match_type == Some(PathMatchType::RegularExpression) {
        return regex(errors, &at, value);
    }
    errors.add_if(!value.starts_with('/'), &at, "a path begins with `/`");
    let odd = ["//", "/./", "/../", "%2f", "%2F", "#", "?"].iter().find(|odd| value.contains(**odd));
    let odd = odd.or_else(|| ["/..", "/."].iter().find(|odd| value.ends_with(**odd)));
    if let Some(odd) = odd {
        errors.add(&at, format!("a path can't have {odd:?} in it, as no normalised path has"));
    }
}

fn grpc_method(errors: &mut Errors, path: &str, method: &GrpcMethodMatch) {
    let neither = method.service.is_none() && method.method.is_none();
    errors.add_if(neither, path, "one of `service` and `method` is needed");
    for (field, value, dots) in [("service", &method.service, true), ("method", &method.method, false)] {
        let Some(value) = value else { continue };
        let path = format!("{path}.{field}");
        if method.match_type == Some(MatchType::RegularExpression) {
            regex(errors, &path, value);
            continue;
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || (dots && c == '.');
        let first = |c: char| c.is_ascii_alphabetic() || c == '_';
        let fits = value.chars().all(allowed) && value.chars().next().is_some_and(first) && value.len() <= 1024;
        errors.add_if(!fits, path, format!("{value:?} is not the name of a gRPC {field}"));
    }
}

fn backends<F>(errors: &mut Errors, path: &str, backends: &[BackendRef<F>]) {
    at_most(errors, &format!("{path}.backendRefs"), backends.len(), 16);
    for (i, backend) in backends.iter().enumerate() {
        let path = format!("{path}.backendRefs[{i}]");
        backend_object(errors, &path, &backend.group, &backend.kind, &backend.name, backend.port);
        let heavy = backend.weight() > MAX_WEIGHT;
        errors.add_if(heavy, format!("{path}.weight"), format!("a weight is at most {MAX_WEIGHT}"));
    }
}

fn backend_object(
    errors: &mut Errors,
    path: &str,
    group: &Option<String>,
    kind: &Option<String>,
    name: &str,
    port: Option<u16>,
) {
    let group = group.as_deref().unwrap_or_default();
    let kind = kind.as_deref().unwrap_or("Service");
    if !(matches!(group, "" | "core") && kind == "Service") {
        errors.add(format!("{path}.kind"), format!("a {kind} can't be a backend; only a Service can"));
    }
    errors.add_if(name.is_empty(), format!("{path}.name"), "the name of the Service is needed");
    match port {
        None => errors.add(format!("{path}.port"), "the port of the Service is needed"),
        Some(port) => errors.add_if(port == 0, format!("{path}.port"), "a port is from 1 to 65535"),
    }
}

fn http_filters(errors: &mut Errors, path: &str, filters: &[HttpRouteFilter]) {
    at_most(errors, path, filters.len(), 16);
    for (i, filter) in filters.iter().enumerate() {
        let path = format!("{path}[{i}]");
        use HttpFilterType as Type;
        let fields = [
            (Type::RequestHeaderModifier, "requestHeaderModifier", filter.request_header_modifier.is_some()),
            (Type::ResponseHeaderModifier, "responseHeaderModifier", filter.response_header_modifier.is_some()),
            (Type::RequestMirror, "requestMirror", filter.request_mirror.is_some()),
            (Type::RequestRedirect, "requestRedirect", filter.request_redirect.is_some()),
            (Type::UrlRewrite, "urlRewrite", filter.url_rewrite.is_some()),
            (Type::Cors, "cors", filter.cors.is_some()),
            (Type::ExtensionRef, "extensionRef", filter.extension_ref.is_some()),
        ];
        union(errors, &path, filter.filter_type, &fields);
        let again = filter.filter_type != Type::RequestMirror
            && filters[..i].iter().any(|f| f.filter_type == filter.filter_type);
        errors.add_if(again, format!("{path}.type"), "a filter of this type is there already");
        if let Some(reference) = &filter.extension_ref {
            let known = reference.group == MESH_GROUP && reference.kind == "DirectResponse";
            let message = format!("only a DirectResponse of the group {MESH_GROUP} can be named here");
            errors.add_if(!known, format!("{path}.extensionRef.kind"), message);
            errors.add_if(reference.name.is_empty(), format!("{path}.extensionRef.name"), "the name is needed");
        }
        for (field, headers) in [
            ("requestHeaderModifier", &filter.request_header_modifier),
            ("responseHeaderModifier", &filter.response_header_modifier),
        ] {
            if let Some(headers) = headers {
                header_filter(errors, &format!("{path}.{field}"), headers);
            }
        }
        if let Some(filter) = &filter.request_mirror {
            mirror(errors, &format!("{path}.requestMirror"), filter);
        }
        if let Some(filter) = &filter.request_redirect {
            redirect(errors, &format!("{path}.requestRedirect"), filter);
        }
        if let Some(filter) = &filter.url_rewrite {
            rewrite(errors, &format!("{path}.urlRewrite"), filter);
        }
        if let Some(filter) = &filter.cors {
            cors::filter(errors, &format!("{path}.cors"), filter);
        }
    }
}

fn grpc_filters(errors: &mut Errors, path: &str, filters: &[GrpcRouteFilter]) {
    at_most(errors, path, filters.len(), 16);
    for (i, filter) in filters.iter().enumerate() {
        let path = format!("{path}[{i}]");
        use GrpcFilterType as Type;
        let fields = [
            (Type::RequestHeaderModifier, "requestHeaderModifier", filter.request_header_modifier.is_some()),
            (Type::ResponseHeaderModifier, "responseHeaderModifier", filter.response_header_modifier.is_some()),
            (Type::RequestMirror, "requestMirror", filter.request_mirror.is_some()),
            (Type::ExtensionRef, "extensionRef", filter.extension_ref.is_some()),
        ];
        union(errors, &path, filter.filter_type, &fields);
        let again = filter.filter_type != Type::RequestMirror
            && filters[..i].iter().any(|f| f.filter_type == filter.filter_type);
        errors.add_if(again, format!("{path}.type"), "a filter of this type is there already");
        let unsupported = filter.filter_type == Type::ExtensionRef;
        errors.add_if(unsupported, format!("{path}.type"), "filters of this type are not supported yet");
        for (field, headers) in [
            ("requestHeaderModifier", &filter.request_header_modifier),
            ("responseHeaderModifier", &filter.response_header_modifier),
        ] {
            if let Some(headers) = headers {
                header_filter(errors, &format!("{path}.{field}"), headers);
            }
        }
        if let Some(filter) = &filter.request_mirror {
            mirror(errors, &format!("{path}.requestMirror"), filter);
        }
    }
}

/// The field that the type names is set, and no other.
fn union<T: Copy + PartialEq>(errors: &mut Errors, path: &str, chosen: T, fields: &[(T, &str, bool)]) {
    for (filter_type, field, set) in fields {
        let at = format!("{path}.{field}");
        if *filter_type == chosen {
            errors.add_if(!set, at, format!("a filter of this type needs `{field}`"));
        } else {
            errors.add_if(*set, at, "this field belongs to a filter of another type");
        }
    }
}

fn mirror(errors: &mut Errors, path: &str, filter: &RequestMirrorFilter) {
    let backend = &filter.backend_ref;
    let at = format!("{path}.backendRef");
    backend_object(errors, &at, &backend.group, &backend.kind, &backend.name, backend.port);
    let both = filter.percent.is_some() && filter.fraction.is_some();
    errors.add_if(both, format!("{path}.fraction"), "`percent` or `fraction`, not both");
    let much = filter.percent.is_some_and(|p| p > 100);
    errors.add_if(much, format!("{path}.percent"), "a percentage is from 0 to 100");
    if let Some(fraction) = filter.fraction {
        let denominator = fraction.denominator.unwrap_or(100);
        let wrong = denominator == 0 || fraction.numerator > denominator;
        errors.add_if(wrong, format!("{path}.fraction"), "a fraction is from 0 to 1");
    }
}

fn redirect(errors: &mut Errors, path: &str, filter: &RequestRedirectFilter) {
    let scheme = filter.scheme.as_deref().unwrap_or("http");
    errors.add_if(!matches!(scheme, "http" | "https"), format!("{path}.scheme"), "a scheme is `http` or `https`");
    if let Some(name) = &filter.hostname {
        hostname(errors, &format!("{path}.hostname"), name, false);
    }
    errors.add_if(filter.port == Some(0), format!("{path}.port"), "a port is from 1 to 65535");
    let status = filter.status_code.unwrap_or(302);
    let wrong = !matches!(status, 301 | 302 | 303 | 307 | 308);
    errors.add_if(wrong, format!("{path}.statusCode"), "a redirect's status is 301, 302, 303, 307 or 308");
    if let Some(modifier) = &filter.path {
        path_modifier(errors, &format!("{path}.path"), modifier);
    }
}

fn rewrite(errors: &mut Errors, path: &str, filter: &UrlRewriteFilter) {
    let empty = filter.hostname.is_none() && filter.path.is_none();
    errors.add_if(empty, path, "nothing to rewrite: set `hostname` or `path`");
    if let Some(name) = &filter.hostname {
        hostname(errors, &format!("{path}.hostname"), name, false);
    }
    if let Some(modifier) = &filter.path {
        path_modifier(errors, &format!("{path}.path"), modifier);
    }
}

fn path_modifier(errors: &mut Errors, path: &str, modifier: &HttpPathModifier) {
    let fields = [
        (PathModifierType::ReplaceFullPath, "replaceFullPath", modifier.replace_full_path.is_some()),
        (PathModifierType::ReplacePrefixMatch, "replacePrefixMatch", modifier.replace_prefix_match.is_some()),
    ];
    union(errors, path, modifier.modifier_type, &fields);
    for (field, value) in
        [("replaceFullPath", &modifier.replace_full_path), ("replacePrefixMatch", &modifier.replace_prefix_match)]
    {
        let Some(value) = value else { continue };
        let begins = value.starts_with('/') || (value.is_empty() && field == "replacePrefixMatch");
        errors.add_if(!begins, format!("{path}.{field}"), "a path begins with `/`");
        let plain = value.len() <= 1024 && value.bytes().all(|b| b.is_ascii_graphic() && !b"?#\\".contains(&b));
        errors.add_if(!plain, format!("{path}.{field}"), "a path has no spaces, `?`, `#` or `\\` (encode them with %)");
    }
}

/// A prefix can only be replaced where one is matched.
fn prefix_rewrites(errors: &mut Errors, path: &str, rule: &HttpRouteRule) {
    let modifiers = rule.filters.iter().enumerate().filter_map(|(i, filter)| {
        let redirect = filter.request_redirect.as_ref().and_then(|f| f.path.as_ref());
        let rewrite = filter.url_rewrite.as_ref().and_then(|f| f.path.as_ref());
        Some((i, redirect.or(rewrite)?))
    });
    let prefix = |m: &super::super::HttpRouteMatch| {
        m.path.as_ref().and_then(|p| p.match_type).unwrap_or_default() == PathMatchType::PathPrefix
    };
    for (i, modifier) in modifiers {
        let wrong = modifier.modifier_type == PathModifierType::ReplacePrefixMatch && !rule.matches.iter().all(prefix);
        let message = "a prefix can be replaced only where all matches of the rule are of type PathPrefix";
        errors.add_if(wrong, format!("{path}.filters[{i}]"), message);
    }
}

fn session(errors: &mut Errors, path: &str, session: Option<&SessionPersistence>) {
    let path = format!("{path}.sessionPersistence");
    errors.add_if(session.is_some(), path, "session persistence is not supported yet; remove it");
}
