use envoy_types::pb::envoy::config::core::v3::grpc_service::TargetSpecifier;
use envoy_types::pb::envoy::config::core::v3::http_uri::HttpUpstreamType;
use envoy_types::pb::envoy::config::listener::v3::{Filter, Listener, filter};
use envoy_types::pb::envoy::config::rbac::v3::Rbac;
use envoy_types::pb::envoy::config::rbac::v3::rbac::Action;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::ExtAuthz;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::ext_authz::Services;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use envoy_types::pb::envoy::r#type::matcher::v3::ListStringMatcher;
use envoy_types::pb::envoy::r#type::matcher::v3::metadata_matcher::path_segment::Segment;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::google::protobuf::Duration;
use mesh_common::names::{self, FILTER_EXT_AUTHZ, FILTER_RBAC};

use super::*;

const AUTH: &str = "
apiVersion: meshctl.dev/v1alpha1
kind: WorkloadEntry
metadata: {name: auth-a, labels: {meshctl.dev/registered: 'true'}}
spec: {service: auth, addresses: [10.0.0.9], ports: [{port: 9191, protocol: grpc}, {port: 9192, protocol: http}], serviceAccount: auth}
---
";

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: meshctl.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{namespace: default, name: {name}}}\nspec: {spec}\n---\n"
    )
}

fn custom(name: &str, provider: &str) -> String {
    policy(name, &format!("{{action: CUSTOM, provider: {provider}, rules: [{{to: [{{paths: ['/x/*']}}]}}]}}"))
}

const OVER_GRPC: &str = "{backend: {name: auth, port: 9191}}";

/// The filters of the chain for that ALPN protocol.
fn filters(model: &Model, scope: &Scope, alpn: &str) -> Vec<Filter> {
    let listener: Listener = get(model, scope, ResourceType::Listener, names::LISTENER_INBOUND);
    let is_it = |chain: &&envoy_types::pb::envoy::config::listener::v3::FilterChain| {
        let matched = chain.filter_chain_match.clone().unwrap();
        matched.destination_port.is_some() && matched.application_protocols.iter().any(|it| it == alpn)
    };
    listener.filter_chains.iter().find(is_it).unwrap().filters.clone()
}

fn config(filter: &Filter) -> Any {
    match &filter.config_type {
        Some(filter::ConfigType::TypedConfig(any)) => any.clone(),
        other => panic!("{other:?}"),
    }
}

/// Names and configurations of those before the router that decide about access.
fn http(model: &Model, scope: &Scope) -> Vec<(String, Any)> {
    let filters = filters(model, scope, "mesh-h2");
    let manager: HttpConnectionManager = decode(&config(filters.last().unwrap()));
    let all = manager.http_filters.into_iter().map(|filter| match filter.config_type {
        Some(http_filter::ConfigType::TypedConfig(any)) => (filter.name, any),
        other => panic!("{other:?}"),
    });
    all.filter(|(name, _)| [FILTER_RBAC, FILTER_EXT_AUTHZ].contains(&name.as_str())).collect()
}

fn denies(rules: &Option<Rbac>) -> Vec<&str> {
    let rules = rules.as_ref().unwrap();
    assert_eq!(rules.action, Action::Deny as i32);
    rules.policies.keys().map(String::as_str).collect()
}

/// The prefix of the shadow rules that it is asked about.
fn prefix(filter: &ExtAuthz) -> String {
    let matcher = filter.filter_enabled_metadata.clone().unwrap();
    assert_eq!((matcher.filter.as_str(), matcher.path.len()), (FILTER_RBAC, 1));
    let Some(Segment::Key(key)) = &matcher.path[0].segment else { panic!() };
    key.strip_suffix("shadow_effective_policy_id").unwrap().to_owned()
}

#[test]
fn each_that_asks_is_two_filters_before_those_that_decide() {
    let text = AUTH.to_owned()
        + &policy("a-no", "{action: DENY, rules: [{to: [{methods: [PUT]}]}]}")
        + &custom("ask", OVER_GRPC)
        + &custom("ask-too", OVER_GRPC);
    for client in [ClientKind::Mesh, ClientKind::Envoy] {
        let found = http(&shop(&text), &scope(client));
        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, [FILTER_RBAC, FILTER_EXT_AUTHZ, FILTER_RBAC, FILTER_EXT_AUTHZ, FILTER_RBAC]);
        let mut prefixes = Vec::new();
        for (pair, name) in found.chunks_exact(2).zip(["default/ask[0]", "default/ask-too[0]"]) {
            let (looks, asks): (HttpRbac, ExtAuthz) = (decode(&pair[0].1), decode(&pair[1].1));
            assert_eq!((looks.rules.is_none(), denies(&looks.shadow_rules)), (true, vec![name]));
            assert_eq!(looks.shadow_rules_stat_prefix, prefix(&asks));
            let Some(Services::GrpcService(grpc)) = asks.services else { panic!() };
            assert_eq!(grpc.timeout, Some(Duration { seconds: 1, nanos: 0 }));
            let Some(TargetSpecifier::EnvoyGrpc(envoy)) = grpc.target_specifier else { panic!() };
            assert_eq!(envoy.cluster_name, "auth.default.svc.cluster.local:9191");
            assert_eq!(asks.status_on_error.unwrap().code, 403);
            assert!(!asks.failure_mode_allow && asks.with_request_body.is_none() && asks.allowed_headers.is_none());
            prefixes.push(looks.shadow_rules_stat_prefix);
        }
        assert_ne!(prefixes[0], prefixes[1]);
        let last: HttpRbac = decode(&found[4].1);
        assert_eq!(denies(&last.rules), ["default/a-no[0]"]);
    }
}

#[test]
fn over_http_all_that_is_said_is_there() {
    let provider = "{backend: {name: auth, port: 9192}, protocol: Http, timeout: 250ms, failOpen: true, statusOnError: 503, \
                    http: {pathPrefix: /check, includeHeaders: [X-Token], headersToUpstream: ['x-user*'], headersToDownstream: [location]}, \
                    includeBody: {maxBytes: 100, allowPartial: true}}";
    let found = http(&shop(&(AUTH.to_owned() + &custom("ask", provider))), &mesh());
    let asks: ExtAuthz = decode(&found[1].1);
    let pattern = |list: &Option<ListStringMatcher>| {
        let [matcher] = list.as_ref().unwrap().patterns.as_slice() else { panic!() };
        matcher.match_pattern.clone().unwrap()
    };
    assert_eq!(pattern(&asks.allowed_headers), MatchPattern::Exact("x-token".to_owned()));
    assert!(asks.failure_mode_allow && asks.failure_mode_allow_header_add);
    assert_eq!(asks.status_on_error.unwrap().code, 503);
    let body = asks.with_request_body.unwrap();
    assert_eq!((body.max_request_bytes, body.allow_partial_message, body.pack_as_bytes), (100, true, false));
    let Some(Services::HttpService(http)) = asks.services else { panic!() };
    let uri = http.server_uri.unwrap();
    assert_eq!(uri.timeout, Some(Duration { seconds: 0, nanos: 250_000_000 }));
    let cluster = "auth.default.svc.cluster.local:9192";
    assert_eq!(uri.http_upstream_type, Some(HttpUpstreamType::Cluster(cluster.to_owned())));
    assert_eq!((uri.uri, http.path_prefix), (format!("http://{cluster}"), "/check".to_owned()));
    let response = http.authorization_response.unwrap();
    assert_eq!(pattern(&response.allowed_upstream_headers), MatchPattern::Prefix("x-user".to_owned()));
    assert_eq!(pattern(&response.allowed_client_headers), MatchPattern::Exact("location".to_owned()));
}

/// An old proxy would let in what it does not ask about.
#[test]
fn who_cannot_ask_refuses() {
    let model = shop(&(AUTH.to_owned() + &custom("ask", OVER_GRPC)));
    let found = http(&model, &Scope { asks: false, ..mesh() });
    let [(name, rules)] = found.as_slice() else { panic!("{found:?}") };
    let rules: HttpRbac = decode(rules);
    assert_eq!((name.as_str(), denies(&rules.rules), rules.shadow_rules), (FILTER_RBAC, vec!["default/ask[0]"], None));
}

#[test]
fn a_byte_stream_that_may_be_meant_is_refused() {
    let of_others = "{action: CUSTOM, provider: {backend: {name: auth, port: 9191}}, rules: [{to: [{ports: [9080]}]}]}";
    let model = shop(&(AUTH.to_owned() + &custom("ask", OVER_GRPC) + &policy("ask-others", of_others)));
    for scope in [mesh(), Scope { asks: false, ..mesh() }] {
        let filters = filters(&model, &scope, "mesh-tcp");
        let gates: Vec<NetworkRbac> =
            filters[..filters.len() - 1].iter().map(|filter| decode(&config(filter))).collect();
        assert!(gates.iter().all(|gate| gate.shadow_rules.is_none()));
        let names: Vec<_> = gates.iter().flat_map(|gate| denies(&gate.rules)).collect();
        assert_eq!(names, ["default/ask[0]", "default/ask-others[0]"]);
        // Nothing is known of paths, so that it is about all; and of ports what HTTP has.
        let of = |gate: &NetworkRbac| {
            let rules = gate.rules.as_ref().unwrap();
            format!("{:?}", rules.policies.values().next().unwrap().permissions)
        };
        assert!(of(&gates[0]).contains("Any(true)"), "{}", of(&gates[0]));
        assert!(of(&gates[1]).contains("DestinationPort(9080)"), "{}", of(&gates[1]));
    }
}
