use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener};
use envoy_types::pb::envoy::extensions::filters::http::bandwidth_limit::v3::BandwidthLimit;
use envoy_types::pb::envoy::extensions::filters::http::bandwidth_limit::v3::bandwidth_limit::EnableMode;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter,
};
use mesh_common::names;

use super::*;

fn policy(name: &str, target: &str, requests: &str) -> String {
    format!(
        "apiVersion: meshctl.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}}}\n\
         spec: {{targetRefs: [{{kind: Service, name: {target}}}], limits: {{requests: {requests}}}}}\n---\n"
    )
}

/// The filters for HTTP before the application's port, of every chain.
fn http_filters(text: &str, scope: &Scope) -> Vec<HttpFilter> {
    let listener: Listener = get(&shop(text), scope, ResourceType::Listener, names::LISTENER_INBOUND);
    let filters = listener.filter_chains.iter().flat_map(|chain| &chain.filters);
    let configs = filters.filter_map(|filter| match filter.config_type.as_ref()? {
        envoy_types::pb::envoy::config::listener::v3::filter::ConfigType::TypedConfig(any) => Some(any),
        _ => None,
    });
    let managers = configs.filter(|any| any.type_url.ends_with("HttpConnectionManager"));
    managers.flat_map(|any| decode::<HttpConnectionManager>(any).http_filters).collect()
}

fn config<T: prost::Message + Default>(filter: HttpFilter) -> T {
    match filter.config_type.unwrap() {
        http_filter::ConfigType::TypedConfig(any) => decode(&any),
        other => panic!("{other:?}"),
    }
}

fn limits(text: &str, scope: &Scope) -> Vec<LocalRateLimit> {
    let filters = http_filters(text, scope).into_iter();
    filters.filter(|filter| filter.name == "envoy.filters.http.local_ratelimit").map(config).collect()
}

/// The filter first in each chain to this port.
fn first_filters(text: &str, scope: &Scope) -> Vec<envoy_types::pb::google::protobuf::Any> {
    let listener: Listener = get(&shop(text), scope, ResourceType::Listener, names::LISTENER_INBOUND);
    let to_port = |chain: &&FilterChain| chain.filter_chain_match.as_ref().unwrap().destination_port.is_some();
    let first = listener.filter_chains.iter().filter(to_port).map(|chain| chain.filters[0].clone());
    first
        .map(|filter| match filter.config_type.unwrap() {
            envoy_types::pb::envoy::config::listener::v3::filter::ConfigType::TypedConfig(any) => any,
            other => panic!("{other:?}"),
        })
        .collect()
}

const AT_A_TIME: &str = "apiVersion: meshctl.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: default}\n\
     spec: {limits: {connections: {max: 10, perCaller: 2}, concurrentRequests: {max: 7, perCaller: 3}}}\n---\n";

#[test]
fn what_a_port_takes_at_a_time_is_first_in_each_of_its_chains() {
    let scope = of("reviews", "reviews-v1-a", ClientKind::Mesh);
    let filters = first_filters(AT_A_TIME, &scope);
    assert!(filters.len() >= 2, "{filters:?}");
    for any in filters {
        let limits: mesh_common::proto::extensions::Limits = decode(&any);
        let of = |it: Option<mesh_common::proto::extensions::AtATime>| it.map(|it| (it.max, it.per_caller));
        assert!(limits.name.starts_with("inbound"), "{}", limits.name);
        assert_eq!((of(limits.connections), of(limits.requests)), (Some((10, 2)), Some((7, 3))));
    }
    // A narrower scope turns one of them off.
    let narrower = policy("q", "reviews", "{rate: 1}").replace("requests: {rate: 1}", "connections: {}");
    for any in first_filters(&(AT_A_TIME.to_owned() + &narrower), &scope) {
        let limits: mesh_common::proto::extensions::Limits = decode(&any);
        assert_eq!((limits.connections.is_some(), limits.requests.is_some()), (false, true));
    }
}

const BANDWIDTH: &str = "apiVersion: meshctl.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: default}\n\
     spec: {limits: {bandwidth: {up: 10Mi, perCaller: {up: 1Mi, down: 100k}}}}\n---\n";

#[test]
fn bandwidth_is_of_the_port_both_ways() {
    let scope = of("reviews", "reviews-v1-a", ClientKind::Mesh);
    for any in first_filters(BANDWIDTH, &scope) {
        let limits: mesh_common::proto::extensions::Limits = decode(&any);
        let of = |it: Option<mesh_common::proto::extensions::Bandwidth>| it.map(|it| (it.max, it.per_caller));
        assert_eq!((of(limits.up), of(limits.down)), (Some((10 << 20, 1 << 20)), Some((0, 100_000))));
        assert_eq!((limits.connections, limits.requests), (None, None));
    }
    let off = policy("q", "reviews", "{rate: 1}").replace("requests: {rate: 1}", "bandwidth: {}");
    let limited = first_filters(&(BANDWIDTH.to_owned() + &off), &scope);
    assert!(limited.iter().all(|any| !any.type_url.ends_with("Limits")), "{limited:?}");
}

#[test]
fn envoy_keeps_to_the_bandwidth_of_all_callers() {
    let text = BANDWIDTH.replace("perCaller: {up: 1Mi, down: 100k}", "down: 100k, perCaller: {up: 1Mi}");
    let of_chains = |client| -> Vec<(u64, EnableMode)> {
        let filters = http_filters(&text, &of("reviews", "reviews-v1-a", client)).into_iter();
        let ours = filters.filter(|filter| filter.name.starts_with("envoy.filters.http.bandwidth_limit"));
        let limits = ours.map(config::<BandwidthLimit>);
        limits.map(|limit| (limit.limit_kbps.unwrap().value, limit.enable_mode())).collect()
    };
    // In the chain of each version of HTTP.
    let both = [(10 << 10, EnableMode::Request), (98, EnableMode::Response)];
    assert_eq!(of_chains(ClientKind::Envoy), [both, both].concat());
    assert_eq!(of_chains(ClientKind::Mesh), []);
}

/// It has no word for callers, and a cluster's limit for requests.
#[test]
fn envoy_obeys_what_it_can() {
    let scope = of("reviews", "reviews-v1-a", ClientKind::Envoy);
    let limited = first_filters(AT_A_TIME, &scope);
    let limited: Vec<_> = limited.into_iter().filter(|any| any.type_url.ends_with("ConnectionLimit")).collect();
    assert!(limited.len() >= 3, "{limited:?}");
    for any in limited {
        let limit: ConnectionLimit = decode(&any);
        assert_eq!((limit.max_connections.unwrap().value, limit.stat_prefix.is_empty()), (10, false));
    }
    let most = |scope: &Scope| {
        let cluster: Cluster = get(&shop(AT_A_TIME), scope, ResourceType::Cluster, &names::inbound_cluster(9080));
        cluster.circuit_breakers.unwrap().thresholds[0].max_requests.unwrap().value
    };
    assert_eq!(most(&scope), 7);
    assert_eq!(most(&of("reviews", "reviews-v1-a", ClientKind::Mesh)), u32::MAX);
}

fn of(service: &str, workload: &str, client: ClientKind) -> Scope {
    Scope { service: service.to_owned(), workload: workload.to_owned(), ..scope(client) }
}

#[test]
fn a_limit_is_before_the_service_s_own_workloads() {
    let text = policy("p", "reviews", "{rate: 10, per: 1m, burst: 3}");
    let [limit] = &limits(&text, &of("reviews", "reviews-v1-a", ClientKind::Mesh))[..] else { panic!("no limit") };
    let bucket = limit.token_bucket.as_ref().unwrap();
    assert_eq!((bucket.max_tokens, bucket.tokens_per_fill.unwrap().value), (3, 10));
    assert_eq!(bucket.fill_interval.as_ref().unwrap().seconds, 60);
    assert!(limit.descriptors.is_empty() && limit.rate_limits.is_empty());
    assert_eq!(limits(&text, &mesh()), []);
    // Envoy has a chain for each version of HTTP.
    assert_eq!(limits(&text, &of("reviews", "reviews-v1-a", ClientKind::Envoy)).len(), 2);
}

#[test]
fn a_version_s_own_limit_comes_first() {
    let text = policy("p", "reviews", "{rate: 10}") + &policy("q", "reviews-v2", "{rate: 20}");
    let rate = |workload: &str| {
        let limits = limits(&text, &of("reviews", workload, ClientKind::Mesh));
        limits[0].token_bucket.as_ref().unwrap().tokens_per_fill.unwrap().value
    };
    assert_eq!((rate("reviews-v1-a"), rate("reviews-v2-a")), (10, 20));
}

#[test]
fn a_bucket_for_each_caller_or_value_of_a_header() {
    for (by, extension) in [("{rate: 1, by: CallerIdentity}", true), ("{rate: 1, by: Header, header: x-user}", false)] {
        let [limit] = &limits(&policy("p", "web", by), &mesh())[..] else { panic!("no limit") };
        assert_eq!(limit.descriptors[0].token_bucket, limit.token_bucket);
        assert!(limit.descriptors[0].entries[0].value.is_empty());
        assert!(!limit.always_consume_default_token_bucket.unwrap().value);
        assert_eq!(format!("{:?}", limit.rate_limits).contains("Extension"), extension);
    }
}
