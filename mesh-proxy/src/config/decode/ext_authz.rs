//! Envoy's external authorization filter -> [`Authorizer`].

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::grpc_service::TargetSpecifier;
use envoy_types::pb::envoy::config::core::v3::http_uri::HttpUpstreamType;
use envoy_types::pb::envoy::config::core::v3::{ApiVersion, GrpcService};
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::ext_authz::Services;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::{BufferSettings, ExtAuthz, HttpService};
use envoy_types::pb::envoy::r#type::matcher::v3::metadata_matcher::path_segment::Segment;
use envoy_types::pb::envoy::r#type::matcher::v3::value_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{ListStringMatcher, MetadataMatcher};
use envoy_types::pb::google::protobuf::{Any, Duration as PbDuration};
use http::uri::{Authority, PathAndQuery};
use http::{StatusCode, Uri};
use mesh_common::names::{FILTER_RBAC, SHADOW_POLICY};

use super::{At, Decoded, Rejected, duration_or, each, is_true, matching, unless, unpack};
use crate::config::{AskedBody, Authorizer, AuthorizerProtocol, Condition, Policy, StringMatch};
use crate::http::REPLAY_LIMIT;

/// Envoy's default.
const TIMEOUT: Duration = Duration::from_millis(200);

/// What it is asked about.
pub(super) enum Asks {
    /// All requests; by a policy that is made up for that.
    All(Policy),
    /// What those shadow rules match whose names begin so in the metadata of the RBAC filter.
    Matched(String),
}

/// Without its policies; `None` if it is another filter.
pub(super) fn http(any: &Any) -> Option<Decoded<(Authorizer, Asks)>> {
    Some(unpack::<ExtAuthz>(any)?.and_then(authorizer))
}

fn authorizer(pb: ExtAuthz) -> Decoded<(Authorizer, Asks)> {
    unless(pb.transport_api_version != ApiVersion::V3 as i32, "transport_api_version", "only V3 is supported")?;
    unless(pb.clear_route_cache, "clear_route_cache", "is not needed: routes are found afterwards")?;
    let contexts = [&pb.metadata_context_namespaces, &pb.typed_metadata_context_namespaces];
    unless(contexts.iter().any(|it| !it.is_empty()), "metadata_context_namespaces", "is not supported")?;
    let contexts = [&pb.route_metadata_context_namespaces, &pb.route_typed_metadata_context_namespaces];
    unless(contexts.iter().any(|it| !it.is_empty()), "route_metadata_context_namespaces", "is not supported")?;
    unless(pb.filter_enabled.is_some(), "filter_enabled", "is not supported")?;
    unless(pb.deny_at_disable.is_some(), "deny_at_disable", "is not supported")?;
    unless(pb.include_peer_certificate, "include_peer_certificate", "is not supported")?;
    unless(!pb.bootstrap_metadata_labels_key.is_empty(), "bootstrap_metadata_labels_key", "is not supported")?;
    unless(pb.disallowed_headers.is_some(), "disallowed_headers", "is not supported")?;
    unless(pb.include_tls_session, "include_tls_session", "is not supported")?;
    unless(pb.encode_raw_headers, "encode_raw_headers", "is not supported")?;
    unless(pb.decoder_header_mutation_rules.is_some(), "decoder_header_mutation_rules", "is not supported")?;
    unless(is_true(&pb.enable_dynamic_metadata_ingestion), "enable_dynamic_metadata_ingestion", "is not supported")?;
    unless(pb.max_denied_response_body_bytes > 0, "max_denied_response_body_bytes", "is not supported")?;
    unless(pb.shadow_mode, "shadow_mode", "is not supported")?;
    let (cluster, authority, timeout, protocol) = match pb.services {
        Some(Services::GrpcService(grpc)) => by_grpc(grpc).at("grpc_service")?,
        Some(Services::HttpService(http)) => by_http(http).at("http_service")?,
        None => return Err(Rejected::new("one of grpc_service and http_service is needed")),
    };
    let status_on_error = match pb.status_on_error {
        None => StatusCode::FORBIDDEN,
        Some(status) => {
            let code = u16::try_from(status.code).ok().and_then(|code| StatusCode::from_u16(code).ok());
            let code = code.filter(|it| it.is_client_error() || it.is_server_error());
            code.ok_or_else(|| Rejected::field("status_on_error", "is from 400 to 599"))?
        }
    };
    let asks = match pb.filter_enabled_metadata {
        Some(matcher) => Asks::Matched(prefix(matcher).at("filter_enabled_metadata")?),
        None => {
            let name = if pb.stat_prefix.is_empty() { "ext_authz".to_owned() } else { pb.stat_prefix };
            Asks::All(Policy { name, permissions: vec![Condition::Any], principals: vec![Condition::Any] })
        }
    };
    let authorizer = Authorizer {
        policies: Vec::new(),
        cluster,
        authority,
        timeout,
        protocol,
        headers: pb.allowed_headers.map(|it| names(it).at("allowed_headers")).transpose()?,
        body: pb.with_request_body.map(|it| body(it).at("with_request_body")).transpose()?,
        fail_open: pb.failure_mode_allow,
        marks_failure: pb.failure_mode_allow_header_add,
        status_on_error,
    };
    Ok((authorizer, asks))
}

type Service = (String, Authority, Duration, AuthorizerProtocol);

fn by_grpc(pb: GrpcService) -> Decoded<Service> {
    unless(!pb.initial_metadata.is_empty(), "initial_metadata", "is not supported")?;
    unless(pb.retry_policy.is_some(), "retry_policy", "is not supported")?;
    let timeout = timeout(&pb.timeout)?;
    let Some(TargetSpecifier::EnvoyGrpc(envoy)) = pb.target_specifier else {
        return Err(Rejected::field("target_specifier", "only envoy_grpc is supported"));
    };
    unless(envoy.cluster_name.is_empty(), "envoy_grpc.cluster_name", "must not be empty")?;
    let host = if envoy.authority.is_empty() { &envoy.cluster_name } else { &envoy.authority };
    let host =
        host.parse().map_err(|_| Rejected::field("envoy_grpc.authority", format_args!("{host:?} is not a host")))?;
    Ok((envoy.cluster_name, host, timeout, AuthorizerProtocol::Grpc))
}

fn by_http(pb: HttpService) -> Decoded<Service> {
    unless(!pb.path_override.is_empty(), "path_override", "is not supported")?;
    unless(pb.retry_policy.is_some(), "retry_policy", "is not supported")?;
    if let Some(request) = pb.authorization_request {
        #[allow(deprecated)]
        unless(request.allowed_headers.is_some(), "authorization_request.allowed_headers", "is not supported")?;
        unless(!request.headers_to_add.is_empty(), "authorization_request.headers_to_add", "is not supported")?;
    }
    let response = pb.authorization_response.unwrap_or_default();
    for (field, unsupported) in [
        ("allowed_upstream_headers_to_append", response.allowed_upstream_headers_to_append.is_some()),
        ("allowed_client_headers_on_success", response.allowed_client_headers_on_success.is_some()),
        ("dynamic_metadata_from_headers", response.dynamic_metadata_from_headers.is_some()),
    ] {
        unless(unsupported, &format!("authorization_response.{field}"), "is not supported")?;
    }
    let prefix = pb.path_prefix;
    let rooted = prefix.is_empty() || (prefix.starts_with('/') && prefix.parse::<PathAndQuery>().is_ok());
    unless(!rooted || prefix.contains(['?', '#']), "path_prefix", "must be empty or a path")?;
    let uri = pb.server_uri.ok_or_else(|| Rejected::field("server_uri", "is needed"))?;
    let timeout = timeout(&uri.timeout).at("server_uri")?;
    let Some(HttpUpstreamType::Cluster(cluster)) =
        uri.http_upstream_type.filter(|HttpUpstreamType::Cluster(it)| !it.is_empty())
    else {
        return Err(Rejected::field("server_uri.cluster", "must not be empty"));
    };
    let host = uri.uri.parse::<Uri>().ok().and_then(|it| it.authority().cloned());
    let host = host.ok_or_else(|| Rejected::field("server_uri.uri", format_args!("{:?} has no host", uri.uri)))?;
    let field = |it: Option<ListStringMatcher>, name: &str| {
        it.map(|it| names(it).at(format_args!("authorization_response.{name}"))).transpose()
    };
    let to_upstream = field(response.allowed_upstream_headers, "allowed_upstream_headers")?.unwrap_or_default();
    let to_client = field(response.allowed_client_headers, "allowed_client_headers")?;
    Ok((cluster, host, timeout, AuthorizerProtocol::Http { prefix, to_upstream, to_client }))
}

fn timeout(pb: &Option<PbDuration>) -> Decoded<Duration> {
    let timeout = duration_or("timeout", pb, TIMEOUT)?;
    unless(timeout.is_zero(), "timeout", "must be more than zero")?;
    Ok(timeout)
}

fn names(pb: ListStringMatcher) -> Decoded<Vec<StringMatch>> {
    each("patterns", &pb.patterns, matching::string)
}

fn body(pb: BufferSettings) -> Decoded<AskedBody> {
    let max = usize::try_from(pb.max_request_bytes).unwrap_or(usize::MAX);
    unless(!(1..=REPLAY_LIMIT).contains(&max), "max_request_bytes", "must be 1 to 65536")?;
    Ok(AskedBody { max, partial: pb.allow_partial_message, as_bytes: pb.pack_as_bytes })
}

/// That the shadow rules of an RBAC filter match is all that can be asked.
fn prefix(pb: MetadataMatcher) -> Decoded<String> {
    const SUPPORTED: &str = "only that `PREFIXshadow_effective_policy_id` is there, of the RBAC filter, is supported";
    let present = Some(MatchPattern::PresentMatch(true));
    let fits = pb.filter == FILTER_RBAC && !pb.invert && pb.value.and_then(|it| it.match_pattern) == present;
    let key = match pb.path.as_slice() {
        [step] if fits => step.segment.as_ref().map(|Segment::Key(key)| key.as_str()),
        _ => None,
    };
    let prefix = key.and_then(|key| key.strip_suffix(SHADOW_POLICY)).filter(|it| !it.is_empty());
    prefix.map(str::to_owned).ok_or_else(|| Rejected::new(SUPPORTED))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use envoy_types::pb::envoy::config::core::v3::HttpUri;
    use envoy_types::pb::envoy::config::core::v3::grpc_service::EnvoyGrpc;
    use envoy_types::pb::envoy::config::listener::v3::Listener as PbListener;
    use envoy_types::pb::envoy::config::rbac::v3::permission::Rule;
    use envoy_types::pb::envoy::config::rbac::v3::principal::Identifier;
    use envoy_types::pb::envoy::config::rbac::v3::rbac::Action;
    use envoy_types::pb::envoy::config::rbac::v3::{Permission, Policy as PbPolicy, Principal, Rbac};
    use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::AuthorizationResponse;
    use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
    use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
    use envoy_types::pb::envoy::r#type::matcher::v3::metadata_matcher::PathSegment;
    use envoy_types::pb::envoy::r#type::matcher::v3::{ValueMatcher, string_matcher};
    use envoy_types::pb::envoy::r#type::v3::HttpStatus;
    use envoy_types::util::pack_any;
    use prost::Message;

    use super::super::{decode, tests};
    use super::*;
    use crate::config::{HttpManager, NetworkFilter};
    use crate::snapshot::{Resource, Type};

    fn grpc() -> ExtAuthz {
        let envoy = EnvoyGrpc { cluster_name: "opa".to_owned(), ..EnvoyGrpc::default() };
        let target_specifier = Some(TargetSpecifier::EnvoyGrpc(envoy));
        ExtAuthz {
            transport_api_version: ApiVersion::V3 as i32,
            services: Some(Services::GrpcService(GrpcService { target_specifier, ..GrpcService::default() })),
            ..ExtAuthz::default()
        }
    }

    fn by_http(change: impl Fn(&mut HttpService)) -> ExtAuthz {
        let uri = HttpUri {
            uri: "http://opa:1".to_owned(),
            http_upstream_type: Some(HttpUpstreamType::Cluster("opa".to_owned())),
            ..HttpUri::default()
        };
        let mut service = HttpService { server_uri: Some(uri), ..HttpService::default() };
        change(&mut service);
        ExtAuthz { services: Some(Services::HttpService(service)), ..grpc() }
    }

    fn matched(key: &str) -> MetadataMatcher {
        MetadataMatcher {
            filter: FILTER_RBAC.to_owned(),
            path: vec![PathSegment { segment: Some(Segment::Key(key.to_owned())) }],
            value: Some(ValueMatcher { match_pattern: Some(MatchPattern::PresentMatch(true)) }),
            ..MetadataMatcher::default()
        }
    }

    fn list(name: &str) -> Option<ListStringMatcher> {
        let pattern = Some(string_matcher::MatchPattern::Exact(name.to_owned()));
        let matcher =
            envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher { match_pattern: pattern, ..Default::default() };
        Some(ListStringMatcher { patterns: vec![matcher] })
    }

    fn read(pb: ExtAuthz) -> Decoded<(Authorizer, Asks)> {
        http(&pack_any(pb)).unwrap()
    }

    #[test]
    fn without_more_it_has_envoys_defaults_and_is_asked_about_all() {
        let (it, asks) = read(grpc()).unwrap();
        assert_eq!((it.cluster.as_str(), it.authority.as_str(), it.timeout), ("opa", "opa", TIMEOUT));
        assert_eq!((it.fail_open, it.status_on_error, it.body), (false, StatusCode::FORBIDDEN, None));
        assert!(matches!(asks, Asks::All(policy) if policy.name == "ext_authz"));
        assert!(http(&Any::default()).is_none());
    }

    #[test]
    fn over_http_headers_are_named() {
        let response = AuthorizationResponse {
            allowed_upstream_headers: list("x-user"),
            allowed_client_headers: list("location"),
            ..AuthorizationResponse::default()
        };
        let pb = by_http(|it| {
            it.path_prefix = "/check".to_owned();
            it.authorization_response = Some(response.clone());
        });
        let pb = ExtAuthz { filter_enabled_metadata: Some(matched("a_shadow_effective_policy_id")), ..pb };
        let (it, asks) = read(pb).unwrap();
        let AuthorizerProtocol::Http { prefix, to_upstream, to_client } = it.protocol else { panic!() };
        assert_eq!(prefix, "/check");
        assert!(matches!(to_upstream.as_slice(), [StringMatch::Exact(name)] if name == "x-user"));
        assert!(matches!(to_client.as_deref(), Some([StringMatch::Exact(name)]) if name == "location"));
        assert!(matches!(asks, Asks::Matched(prefix) if prefix == "a_"));
    }

    /// What would let in more, or others, than was meant.
    #[test]
    fn what_is_not_done_is_refused() {
        let zero = || Some(PbDuration::default());
        let inverted = MetadataMatcher { invert: true, ..matched("a_shadow_effective_policy_id") };
        let foreign = MetadataMatcher { filter: "x".to_owned(), ..matched("a_shadow_effective_policy_id") };
        for (pb, field) in [
            (ExtAuthz { services: None, ..grpc() }, ""),
            (ExtAuthz { transport_api_version: 0, ..grpc() }, "transport_api_version"),
            (ExtAuthz { filter_enabled: Some(Default::default()), ..grpc() }, "filter_enabled"),
            (ExtAuthz { deny_at_disable: Some(Default::default()), ..grpc() }, "deny_at_disable"),
            (ExtAuthz { disallowed_headers: list("a"), ..grpc() }, "disallowed_headers"),
            (ExtAuthz { include_peer_certificate: true, ..grpc() }, "include_peer_certificate"),
            (ExtAuthz { shadow_mode: true, ..grpc() }, "shadow_mode"),
            (
                ExtAuthz { decoder_header_mutation_rules: Some(Default::default()), ..grpc() },
                "decoder_header_mutation_rules",
            ),
            (ExtAuthz { status_on_error: Some(HttpStatus { code: 200 }), ..grpc() }, "status_on_error"),
            (
                ExtAuthz { with_request_body: Some(BufferSettings::default()), ..grpc() },
                "with_request_body.max_request_bytes",
            ),
            (ExtAuthz { filter_enabled_metadata: Some(matched("x")), ..grpc() }, "filter_enabled_metadata"),
            (
                ExtAuthz { filter_enabled_metadata: Some(matched("shadow_effective_policy_id")), ..grpc() },
                "filter_enabled_metadata",
            ),
            (ExtAuthz { filter_enabled_metadata: Some(inverted), ..grpc() }, "filter_enabled_metadata"),
            (ExtAuthz { filter_enabled_metadata: Some(foreign), ..grpc() }, "filter_enabled_metadata"),
            (
                ExtAuthz { services: Some(Services::GrpcService(GrpcService::default())), ..grpc() },
                "grpc_service.target_specifier",
            ),
            (by_http(|it| it.server_uri = None), "http_service.server_uri"),
            (by_http(|it| it.server_uri.as_mut().unwrap().timeout = zero()), "http_service.server_uri.timeout"),
            (by_http(|it| it.server_uri.as_mut().unwrap().uri.clear()), "http_service.server_uri.uri"),
            (by_http(|it| it.path_prefix = "a".to_owned()), "http_service.path_prefix"),
            (by_http(|it| it.path_override = "/a".to_owned()), "http_service.path_override"),
        ] {
            let rejected = read(pb).err().unwrap();
            assert_eq!(rejected.field.trim_end_matches('.'), field, "{rejected}");
        }
    }

    /// An RBAC filter with one rule for all, which only looks if there is a prefix.
    fn rbac(prefix: &str, action: Action) -> Any {
        let any = Permission { rule: Some(Rule::Any(true)) };
        let anybody = Principal { identifier: Some(Identifier::Any(true)) };
        let all = PbPolicy { permissions: vec![any], principals: vec![anybody], ..PbPolicy::default() };
        let policies = [(format!("{prefix}0"), all)].into();
        let rules = Some(Rbac { action: action as i32, policies, ..Rbac::default() });
        pack_any(match prefix {
            "" => HttpRbac { rules, ..HttpRbac::default() },
            _ => HttpRbac { shadow_rules: rules, shadow_rules_stat_prefix: prefix.to_owned(), ..HttpRbac::default() },
        })
    }

    fn asks(prefix: &str) -> Any {
        let matched = matched(&format!("{prefix}shadow_effective_policy_id"));
        pack_any(ExtAuthz { filter_enabled_metadata: Some(matched), ..grpc() })
    }

    fn manager_with(filters: Vec<Any>) -> Decoded<Arc<HttpManager>> {
        let filters = filters.into_iter().map(|any| tests::http_filter("f", any)).chain([tests::router()]);
        let manager = HttpConnectionManager { http_filters: filters.collect(), ..tests::manager() };
        let chain = tests::chain_of(vec![tests::network_filter(pack_any(manager))]);
        let listener = PbListener { name: "l".to_owned(), filter_chains: vec![chain], ..PbListener::default() };
        let Resource::Listener(listener) = decode(Type::Listener, &listener.encode_to_vec())? else { panic!() };
        let NetworkFilter::Http(manager) = &listener.chains[0].filter else { panic!() };
        Ok(manager.clone())
    }

    #[test]
    fn each_is_asked_about_what_the_shadow_rules_of_its_prefix_match() {
        let deny = Action::Deny;
        let filters =
            vec![rbac("a_", deny), rbac("c_", deny), asks("a_"), rbac("b_", deny), asks("b_"), rbac("", deny)];
        let manager = manager_with(filters).unwrap();
        let about: Vec<_> = manager.authorizers.iter().map(|it| it.policies[0].name.as_str()).collect();
        assert_eq!(about, ["a_0", "b_0"]);
        // What nobody asks about is a dry run, as it was.
        let gates = manager.authorization.gates.iter().map(|it| (it.policies[0].name.as_str(), it.dry_run));
        assert_eq!(gates.collect::<Vec<_>>(), [("c_0", true), ("0", false)]);
    }

    #[test]
    fn who_would_be_asked_about_something_else_is_refused() {
        let deny = Action::Deny;
        for (filters, at, says) in [
            (vec![asks("a_"), rbac("a_", deny)], 0, "no shadow rules before it"),
            (vec![rbac("a_", deny), asks("b_")], 1, "no shadow rules before it have the prefix \"b_\""),
            // Each is for one.
            (vec![rbac("a_", deny), asks("a_"), asks("a_")], 2, "no shadow rules before it"),
            (vec![rbac("a_", deny), rbac("", deny), asks("a_")], 2, "before RBAC filters that decide"),
            (vec![rbac("", Action::Allow), pack_any(grpc())], 1, "before RBAC filters that decide"),
            (vec![rbac("a_", Action::Allow), asks("a_")], 1, "only shadow rules with the action DENY"),
        ] {
            let rejected = manager_with(filters).unwrap_err().to_string();
            assert!(rejected.contains(&format!("http_filters[{at}].typed_config")), "{rejected}");
            assert!(rejected.contains(says), "{rejected}");
        }
    }
}
