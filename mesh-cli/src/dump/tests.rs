use envoy_types::pb::envoy::config::cluster::v3::cluster::ClusterDiscoveryType;
use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster};
use envoy_types::pb::envoy::config::core::v3::{
    Address, DataSource, Metadata, SocketAddress, TransportSocket, address, data_source, socket_address,
    transport_socket,
};
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch, Listener, filter};
use envoy_types::pb::envoy::config::route::v3::{
    HeaderMatcher, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster, header_matcher,
    route, route_action, route_match, weighted_cluster,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, Rds, http_connection_manager::RouteSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, Secret, UpstreamTlsContext, secret,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher};
use envoy_types::pb::google::protobuf::{Any, BoolValue, Duration, UInt32Value};
use envoy_types::util::pack_any;
use prost::Message;

use super::*;

fn render(part: Part, name: &str, any: Any) -> Vec<String> {
    let config = GenericXdsConfig {
        type_url: any.type_url.clone(),
        name: name.into(),
        xds_config: Some(any),
        config_status: ConfigStatus::Synced.into(),
        ..GenericXdsConfig::default()
    };
    let entries = entries(&Types::load().unwrap(), &[config], part);
    table(part, &entries).render(false, false, None).lines().skip(1).map(str::to_owned).collect()
}

fn socket(name: &str, any: Any) -> Option<TransportSocket> {
    Some(TransportSocket { name: name.into(), config_type: Some(transport_socket::ConfigType::TypedConfig(any)) })
}

fn filter(any: Any) -> Filter {
    Filter { name: String::new(), config_type: Some(filter::ConfigType::TypedConfig(any)) }
}

fn address(host: &str, port: u32) -> Option<Address> {
    let port_specifier = Some(socket_address::PortSpecifier::PortValue(port));
    let socket = SocketAddress { address: host.into(), port_specifier, ..SocketAddress::default() };
    Some(Address { address: Some(address::Address::SocketAddress(socket)) })
}

#[test]
fn listeners_show_each_chain() {
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            route_config_name: "reviews.default.svc.cluster.local:9080".into(),
            ..Rds::default()
        })),
        ..HttpConnectionManager::default()
    };
    let tls = DownstreamTlsContext {
        require_client_certificate: Some(BoolValue { value: true }),
        ..DownstreamTlsContext::default()
    };
    let tcp = TcpProxy {
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster("inbound:9080".into())),
        ..TcpProxy::default()
    };
    let listener = Listener {
        filter_chains: vec![FilterChain {
            filter_chain_match: Some(FilterChainMatch {
                destination_port: Some(UInt32Value { value: 9080 }),
                transport_protocol: "tls".into(),
                application_protocols: vec!["mesh-h2".into()],
                ..FilterChainMatch::default()
            }),
            filters: vec![filter(pack_any(manager))],
            transport_socket: socket("tls", pack_any(tls)),
            ..FilterChain::default()
        }],
        default_filter_chain: Some(FilterChain { filters: vec![filter(pack_any(tcp))], ..FilterChain::default() }),
        ..Listener::default()
    };
    assert_eq!(
        render(Part::Listeners, "inbound", pack_any(listener)),
        [
            "inbound   port 9080, tls, mesh-h2  mutual TLS  HTTP by routes reviews.default:9080  synced",
            "inbound   all others               plaintext   TCP to inbound:9080                  synced",
        ]
    );
}

#[test]
fn routes_show_conditions_shares_and_faults() {
    let exact = |text: &str| StringMatcher {
        match_pattern: Some(string_matcher::MatchPattern::Exact(text.into())),
        ..StringMatcher::default()
    };
    let matched = RouteMatch {
        path_specifier: Some(route_match::PathSpecifier::PathSeparatedPrefix("/api".into())),
        headers: vec![HeaderMatcher {
            name: "end-user".into(),
            header_match_specifier: Some(header_matcher::HeaderMatchSpecifier::StringMatch(exact("jason"))),
            ..HeaderMatcher::default()
        }],
        ..RouteMatch::default()
    };
    let cluster = |name: &str, weight| weighted_cluster::ClusterWeight {
        name: name.into(),
        weight: Some(UInt32Value { value: weight }),
        ..weighted_cluster::ClusterWeight::default()
    };
    let clusters = vec![
        cluster("reviews-v1.default.svc.cluster.local:9080", 90),
        cluster("reviews-v2.default.svc.cluster.local:9080", 10),
    ];
    let weighted = WeightedCluster { clusters, ..WeightedCluster::default() };
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::WeightedClusters(weighted)),
        timeout: Some(Duration { seconds: 2, nanos: 0 }),
        ..RouteAction::default()
    };
    let fault = mesh_common::proto::extensions::Fault {
        rules: vec![mesh_common::proto::extensions::FaultRule {
            parts_per_million: 500_000,
            kind: Some(mesh_common::proto::extensions::fault_rule::Kind::Delay(Default::default())),
            ..Default::default()
        }],
    };
    let fault = Any { type_url: "type.googleapis.com/mesh.extensions.v1.Fault".into(), value: fault.encode_to_vec() };
    let route = Route {
        r#match: Some(matched),
        action: Some(route::Action::Route(action)),
        typed_per_filter_config: [("envoy.filters.http.fault".to_owned(), fault)].into(),
        ..Route::default()
    };
    let config = RouteConfiguration {
        virtual_hosts: vec![VirtualHost { domains: vec!["*".into()], routes: vec![route], ..VirtualHost::default() }],
        ..RouteConfiguration::default()
    };
    assert_eq!(
        render(Part::Routes, "reviews.default.svc.cluster.local:9080", pack_any(config)),
        [
            "reviews.default:9080  path /api/*, header end-user=jason  reviews-v1.default:9080 90 %, reviews-v2.default:9080 10 %  2s       -        fault delay 50 %  synced"
        ]
    );
}

#[test]
fn clusters_show_both_kinds_of_security() {
    let common = CommonTlsContext {
        alpn_protocols: vec!["mesh-h2".into()],
        tls_certificate_sds_secret_configs: vec![Default::default()],
        ..CommonTlsContext::default()
    };
    let tls = UpstreamTlsContext { common_tls_context: Some(common), ..UpstreamTlsContext::default() };
    let matched = |socket| cluster::TransportSocketMatch { transport_socket: socket, ..Default::default() };
    let cluster = Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(cluster::DiscoveryType::Eds.into())),
        transport_socket_matches: vec![matched(socket("tls", pack_any(tls))), matched(None)],
        lb_policy: cluster::LbPolicy::LeastRequest.into(),
        connect_timeout: Some(Duration { seconds: 1, nanos: 0 }),
        ..Cluster::default()
    };
    assert_eq!(
        render(Part::Clusters, "reviews.default.svc.cluster.local:9080", pack_any(cluster)),
        ["reviews.default:9080  EDS   least request  mutual TLS (mesh-h2) or plaintext  -     1s       synced"]
    );
}

#[test]
fn endpoints_show_who_they_are() {
    use envoy_types::pb::google::protobuf::{Struct, Value, value};
    let info = mesh_common::proto::extensions::WorkloadInfo {
        workload: "reviews-v1-x".into(),
        version: "v1".into(),
        ..Default::default()
    };
    let info =
        Any { type_url: "type.googleapis.com/mesh.extensions.v1.WorkloadInfo".into(), value: info.encode_to_vec() };
    let mode = Value { kind: Some(value::Kind::StringValue("mesh".into())) };
    let mode = Struct { fields: [("tlsMode".to_owned(), mode)].into() };
    let metadata = Metadata {
        typed_filter_metadata: [("mesh".to_owned(), info)].into(),
        filter_metadata: [("envoy.transport_socket_match".to_owned(), mode)].into(),
    };
    let endpoint = LbEndpoint {
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(Endpoint {
            address: address("fd00::1", 9080),
            ..Endpoint::default()
        })),
        metadata: Some(metadata),
        ..LbEndpoint::default()
    };
    let locality = LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..LocalityLbEndpoints::default() };
    let some = ClusterLoadAssignment { endpoints: vec![locality], ..ClusterLoadAssignment::default() };
    assert_eq!(
        render(Part::Endpoints, "reviews.default.svc.cluster.local:9080", pack_any(some)),
        ["reviews.default:9080  [fd00::1]:9080  healthy  1       reviews-v1-x  v1       yes   synced"]
    );
    let none = render(Part::Endpoints, "x", pack_any(ClusterLoadAssignment::default()));
    assert_eq!(none, ["x        none     -       -       -         -        -     synced"]);
}

#[test]
fn secrets_without_a_readable_certificate_are_still_listed() {
    let source = DataSource {
        specifier: Some(data_source::Specifier::InlineString("not a certificate".into())),
        ..DataSource::default()
    };
    let context = CertificateValidationContext { trusted_ca: Some(source), ..CertificateValidationContext::default() };
    let secret = Secret { name: "ROOTCA".into(), r#type: Some(secret::Type::ValidationContext(context)) };
    let rows = render(Part::Secrets, "ROOTCA", pack_any(secret));
    assert_eq!(rows, ["ROOTCA  trust bundle  -        -           -            synced"]);
}

/// One table for what an Envoy was sent and for what a mesh-proxy says of itself.
#[test]
fn a_proxys_own_secrets_are_shown_as_those_that_came_over_xds() {
    let unreadable = |name: &str, kind: &str, what: &str| {
        own_secret(serde_json::json!({ "name": name, kind: { what: { "inline_string": "not a certificate" } } }))
    };
    let own = [
        unreadable("default", "tls_certificate", "certificate_chain"),
        unreadable("ROOTCA", "validation_context", "trusted_ca"),
    ];
    let rows = table(Part::Secrets, &own).render(false, false, None);
    let rows: Vec<_> = rows.lines().skip(1).collect();
    assert_eq!(
        rows,
        [
            "default  certificate   -        -           -            own",
            "ROOTCA   trust bundle  -        -           -            own"
        ]
    );
}

#[test]
fn names_and_what_is_missing_are_shown() {
    let name = mesh_common::proto::workload::Name {
        addresses: vec!["240.240.0.5".into()],
        ttl_seconds: 30,
        canonical: "reviews.default.svc.cluster.local".into(),
        ..Default::default()
    };
    let any = Any { type_url: mesh_common::names::TYPE_NAME.into(), value: name.encode_to_vec() };
    assert_eq!(
        render(Part::Names, "reviews", any),
        ["reviews  240.240.0.5  30s  reviews.default.svc.cluster.local  synced"]
    );
}
