//! Clusters: how the workloads of a service port, or one of them, or the application itself, are spoken to.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::thresholds::RetryBudget;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbPolicy, TransportSocketMatch,
};
use envoy_types::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster};
use envoy_types::pb::envoy::config::core::v3::{Http1ProtocolOptions, Http2ProtocolOptions};
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
};
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::{Struct, Value, value};
use mesh_common::identity::Identity;
use mesh_common::names;

use super::build::{ads, any, duration, one, uint32};
use super::endpoints::host;
use super::target::{Target, Upstream};
use super::{ClientKind, Scope, balancing, endpoint_health, tls};
use crate::model::{Endpoint, Model, Policy, Protocol};

/// Envoy's name of the options.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// For the application on the same machine.
const LOCAL_CONNECT: Duration = Duration::from_secs(1);

pub(super) fn cluster(model: &Model, scope: &Scope, name: &str, target: &Target) -> Cluster {
    match target {
        Target::Upstream(upstream) => outbound(scope, name, upstream),
        Target::Inbound(port, protocol) => inbound(model, scope, name, *port, *protocol),
        Target::Passthrough => Cluster {
            name: name.to_owned(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32)),
            lb_policy: LbPolicy::ClusterProvided as i32,
            connect_timeout: duration(Policy::default().connect_timeout()),
            circuit_breakers: Some(limits(&Policy::default())),
            // Ports that nobody named may carry HTTP between our own proxies.
            typed_extension_protocol_options: match scope.client {
                ClientKind::Mesh => one(HTTP_OPTIONS, any(as_downstream())),
                ClientKind::Envoy | ClientKind::Grpc => Default::default(),
            },
            ..Cluster::default()
        },
    }
}

fn outbound(scope: &Scope, name: &str, upstream: &Upstream) -> Cluster {
    let policy = &upstream.port.policy;
    let base = Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: ads(), ..EdsClusterConfig::default() }),
        connect_timeout: duration(policy.connect_timeout()),
        circuit_breakers: Some(limits(policy)),
        outlier_detection: policy.outlier_detection().map(endpoint_health::outliers),
        ..Cluster::default()
    };
    let base = balancing::balanced(scope, policy, base);
    if scope.client == ClientKind::Grpc {
        return base;
    }
    let endpoints = upstream.endpoints();
    let identity = |endpoint| Endpoint::identity(endpoint).filter(|_| !upstream.is_udp());
    let identities: BTreeSet<&Identity> = endpoints.iter().filter_map(identity).collect();
    let identities: Vec<&Identity> = identities.into_iter().collect();
    let alpn = if upstream.stream { names::ALPN_TCP } else { names::ALPN_H2 };
    let sockets = if identities.is_empty() {
        Vec::new()
    } else {
        vec![
            TransportSocketMatch {
                name: "mesh".to_owned(),
                r#match: Some(mesh_mode()),
                transport_socket: Some(tls::upstream(&identities, alpn, &upstream.service.fqdn)),
            },
            TransportSocketMatch {
                name: "plaintext".to_owned(),
                r#match: Some(Struct::default()),
                transport_socket: Some(tls::plaintext()),
            },
        ]
    };
    let options = (!upstream.stream).then(|| http_options(scope.client, upstream.port.protocol, &endpoints));
    let over_http2 = options.as_ref().is_some_and(is_http2);
    // A UDP port accepts no connection that it could be checked by.
    let check = policy.health_check().filter(|_| !upstream.is_udp()).and_then(|it| {
        // What is a byte stream here can only be connected to.
        endpoint_health::check(it, &upstream.service.fqdn, over_http2).filter(|_| !upstream.stream || it.tcp.is_some())
    });
    Cluster {
        health_checks: check.into_iter().collect(),
        transport_socket_matches: sockets,
        typed_extension_protocol_options: options.map(|o| one(HTTP_OPTIONS, any(o))).unwrap_or_default(),
        ..base
    }
}

fn inbound(model: &Model, scope: &Scope, name: &str, port: u16, protocol: Protocol) -> Cluster {
    let endpoint = LbEndpoint { host_identifier: host(IpAddr::V4(Ipv4Addr::LOCALHOST), port), ..LbEndpoint::default() };
    let locality = LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..LocalityLbEndpoints::default() };
    let assignment = ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![locality],
        ..ClusterLoadAssignment::default()
    };
    let options = match (protocol, scope.client) {
        (Protocol::Http2 | Protocol::Grpc, _) => http2(),
        // Requests come over HTTP/2 whatever the caller spoke, and Envoy can't know what that was.
        (_, ClientKind::Envoy) => http1(),
        _ => as_downstream(),
    };
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        load_assignment: Some(assignment),
        common_lb_config: Some(CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: 0.0 }),
            ..CommonLbConfig::default()
        }),
        connect_timeout: duration(LOCAL_CONNECT),
        circuit_breakers: Some(limits(&Policy::of_requests(at_a_time(model, scope, port)))),
        typed_extension_protocol_options: match protocol {
            Protocol::Tcp | Protocol::Udp => Default::default(),
            _ => one(HTTP_OPTIONS, any(options)),
        },
        ..Cluster::default()
    }
}

/// Where nothing else limits how many requests the application has at a time.
fn at_a_time(model: &Model, scope: &Scope, port: u16) -> Option<u32> {
    let limit = super::inbound::limit_of(model, scope, port, |policy| policy.concurrency_limit.as_ref());
    limit.filter(|_| !scope.limits)?.max
}

/// Without a policy there is no limit but the one on retries. (Envoy's own defaults would fail requests beyond 1024.)
fn limits(policy: &Policy) -> CircuitBreakers {
    let (percent, least) = policy.retry_budget();
    let limit = |value: Option<u32>| uint32(value.unwrap_or(u32::MAX));
    let thresholds = Thresholds {
        max_connections: limit(policy.max_connections),
        max_pending_requests: limit(policy.max_pending),
        max_requests: limit(policy.max_requests),
        max_retries: limit(policy.max_retries),
        retry_budget: policy.max_retries.is_none().then(|| RetryBudget {
            budget_percent: Some(Percent { value: f64::from(percent) }),
            min_retry_concurrency: uint32(least),
            ..RetryBudget::default()
        }),
        ..Thresholds::default()
    };
    CircuitBreakers { thresholds: vec![thresholds], ..CircuitBreakers::default() }
}

/// What marks an endpoint that has a proxy, and what picks the TLS socket for it.
pub(super) fn mesh_mode() -> Struct {
    let mode = Value { kind: Some(value::Kind::StringValue("mesh".to_owned())) };
    Struct { fields: one("tlsMode", mode) }
}

fn http_options(client: ClientKind, protocol: Protocol, endpoints: &[Endpoint]) -> HttpProtocolOptions {
    let mesh = endpoints.iter().filter(|endpoint| endpoint.workload.identity_at(endpoint.port).is_some()).count();
    match protocol {
        Protocol::Http2 | Protocol::Grpc => http2(),
        // `mesh-proxy` speaks HTTP/2 to every proxy, whatever the rest of the endpoints get.
        _ if mesh == endpoints.len() && mesh > 0 => http2(),
        _ if mesh > 0 && client == ClientKind::Envoy => http2(),
        _ => as_downstream(),
    }
}

/// To every endpoint.
fn is_http2(options: &HttpProtocolOptions) -> bool {
    *options == http2()
}

fn http1() -> HttpProtocolOptions {
    explicit(ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default()))
}

fn http2() -> HttpProtocolOptions {
    explicit(ProtocolConfig::Http2ProtocolOptions(upgradable()))
}

fn explicit(config: ProtocolConfig) -> HttpProtocolOptions {
    let explicit = ExplicitHttpConfig { protocol_config: Some(config) };
    HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)),
        ..HttpProtocolOptions::default()
    }
}

fn as_downstream() -> HttpProtocolOptions {
    let config = UseDownstreamHttpConfig {
        http_protocol_options: Some(Http1ProtocolOptions::default()),
        http2_protocol_options: Some(upgradable()),
        ..UseDownstreamHttpConfig::default()
    };
    HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)),
        ..HttpProtocolOptions::default()
    }
}

/// Upgrades go through as extended CONNECT, RFC 8441.
pub(super) fn upgradable() -> Http2ProtocolOptions {
    Http2ProtocolOptions { allow_connect: true, ..Http2ProtocolOptions::default() }
}
