//! The listener for what comes to the application: mutual TLS per port, told apart by ALPN, and plaintext where the policy
//! takes it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch, Listener};
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::direct_response::v3::Config as DirectResponse;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::CodecType;
use mesh_common::names;
use mesh_common::resource::PeerMode;

use super::authorization::{self, Filters};
use super::build::{address, any, boolean, duration, uint32};
use super::http::{self, Paths, Routes};
use super::listener::{chain, inspector, passthrough};
use super::tracing::{self, Side};
use super::{ClientKind, Scope, limit, route, tls};
use crate::model::{Model, Name, Policy, Protocol, Workload};

/// How long to wait for a client's first bytes; where the server speaks first, none come.
const DETECTION: Duration = Duration::from_secs(1);

pub(super) fn listener(model: &Model, scope: &Scope) -> Listener {
    let others = mode(model, scope, 0) == PeerMode::Permissive;
    let filters = authorization::filters(model, scope);
    let mut chains = Vec::new();
    for (port, protocol) in ports(model, scope) {
        chains.extend(mutual(model, scope, Some(port), protocol, &filters));
        if mode(model, scope, port) == PeerMode::Permissive {
            chains.extend(plain(model, scope, port, &filters));
        } else if others && scope.client == ClientKind::Envoy {
            chains.extend(refusing(port));
        }
    }
    if scope.client == ClientKind::Mesh {
        chains.extend(mutual(model, scope, None, Protocol::Detect, &filters));
    }
    Listener {
        name: names::LISTENER_INBOUND.to_owned(),
        address: address(IpAddr::V4(Ipv4Addr::UNSPECIFIED), names::port::INBOUND),
        traffic_direction: TrafficDirection::Inbound as i32,
        listener_filters: vec![
            inspector("envoy.filters.listener.original_dst", any(OriginalDst::default())),
            inspector("envoy.filters.listener.tls_inspector", any(TlsInspector::default())),
        ],
        listener_filters_timeout: duration(DETECTION),
        continue_on_listener_filters_timeout: true,
        // A listener has a chain at least; this one takes no connection, as none comes from port 0.
        filter_chains: if chains.is_empty() && !others { vec![nobody()] } else { chains },
        default_filter_chain: others.then(|| chain("passthrough", guarded(&filters, passthrough()))),
        bind_to_port: boolean(true),
        ..Listener::default()
    }
}

/// The application's ports but those of UDP, and what they speak: those that the workload lists, or its proxy where it lists none, and those
/// where services expect it. A workload that is known is believed before its services.
pub(super) fn ports(model: &Model, scope: &Scope) -> Vec<(u16, Protocol)> {
    let name = Name::new(&scope.namespace, &scope.workload);
    let workload = model.workload(&scope.namespace, &scope.workload);
    let listing = |w: &Workload| w.ports.iter().filter(|p| !p.is_udp()).map(|p| (p.number, p.protocol)).collect();
    let own: Option<Vec<_>> = workload.map(|w| listing(w));
    let listed = || scope.inbound_ports.iter().map(|port| (*port, Protocol::Detect)).collect();
    let targets = model.target_ports(&name);
    let mut ports: BTreeMap<u16, Protocol> = BTreeMap::new();
    for (number, protocol) in own.filter(|ports| !ports.is_empty()).unwrap_or_else(listed).into_iter().chain(targets) {
        let known = ports.entry(number).or_insert(protocol);
        if *known == Protocol::Detect {
            *known = protocol;
        }
    }
    // Of a proxy without a workload, what it serves is known only by its service's name.
    let service = model.service(&scope.namespace, &scope.service);
    for (number, protocol) in &mut ports {
        if *protocol == Protocol::Detect {
            *protocol = service.and_then(|s| s.ports.get(number)).map_or(Protocol::Detect, |port| port.protocol);
        }
    }
    ports.into_iter().collect()
}

fn mode(model: &Model, scope: &Scope, port: u16) -> PeerMode {
    model.peer_mode(&scope.namespace, &scope.workload, &scope.service, &scope.version, port)
}

/// Of a proxy without a workload, what it serves is known only by its service's name.
pub(super) fn limit_of<'a, T>(
    model: &'a Model,
    scope: &Scope,
    port: u16,
    limit: impl Fn(&Policy) -> Option<&T>,
) -> Option<&'a T> {
    let own = model.limit(&Name::new(&scope.namespace, &scope.workload), port, &limit);
    own.or_else(|| limit(&model.service(&scope.namespace, &scope.service)?.ports.get(&port)?.policy))
}

/// What the port takes at a time, how fast, and how much.
fn of_port(model: &Model, scope: &Scope, port: u16) -> Option<Filter> {
    let connections = limit_of(model, scope, port, |policy| policy.connection_limit.as_ref());
    let requests = limit_of(model, scope, port, |policy| policy.concurrency_limit.as_ref());
    let bandwidth = limit_of(model, scope, port, |policy| policy.bandwidth_limit.as_ref());
    let size = limit_of(model, scope, port, |policy| policy.size_limit.as_ref());
    limit::of_port(&names::inbound_cluster(port), scope, connections, requests, bandwidth, size)
}

/// Chains of mutual TLS, for one port or for all that have none of their own.
fn mutual(model: &Model, scope: &Scope, port: Option<u16>, protocol: Protocol, filters: &Filters) -> Vec<FilterChain> {
    let (cluster, label) = match port {
        Some(port) => (names::inbound_cluster(port), port.to_string()),
        None => (names::CLUSTER_PASSTHROUGH.to_owned(), "others".to_owned()),
    };
    let paths = match scope.client {
        // What is only recorded changes nothing of what gets through.
        ClientKind::Envoy if !filters.decides => Paths::Normal,
        ClientKind::Envoy => Paths::Strict,
        _ => Paths::Own,
    };
    let of_port = port.and_then(|port| of_port(model, scope, port));
    let traced = tracing::of(model, scope, Side::Inbound);
    let limited = |filters: Vec<Filter>| of_port.iter().cloned().chain(filters).collect();
    let http = |name: &str, codec: CodecType, alpn: &[&[u8]]| {
        let routes = Routes::Inline(Box::new(route::inbound(&cluster)));
        // Whom a policy refuses takes nothing of a limit.
        let limit = port
            .and_then(|port| limit_of(model, scope, port, |it| it.request_limit.as_ref()))
            .map(|it| limit::filter(&cluster, it));
        let bandwidth = port
            .filter(|_| scope.client == ClientKind::Envoy && !scope.limits)
            .and_then(|port| limit_of(model, scope, port, |it| it.bandwidth_limit.as_ref()))
            .map(|it| limit::bandwidth(&cluster, it));
        let before = filters.jwt.iter().chain(&filters.http).cloned().chain(limit);
        let before = before.chain(bandwidth.into_iter().flatten()).collect();
        let filter = http::manager(routes, codec, before, paths, traced.clone());
        FilterChain {
            filter_chain_match: Some(matching(port, "tls", alpn)),
            transport_socket: Some(tls::downstream(alpn)),
            ..chain(&format!("{name}:{label}"), limited(vec![filter]))
        }
    };
    let stream = FilterChain {
        filter_chain_match: Some(matching(port, "tls", &[names::ALPN_TCP])),
        transport_socket: Some(tls::downstream(&[names::ALPN_TCP])),
        ..chain(&format!("mesh-tcp:{label}"), limited(guarded(filters, to_cluster(&cluster))))
    };
    match (protocol, scope.client) {
        (Protocol::Tcp, _) => vec![stream],
        // Envoy picks its codec by ALPN and knows only the standard names, so each gets a chain with the codec said.
        (_, ClientKind::Envoy) => vec![
            http("mesh-h2", CodecType::Http2, &[names::ALPN_H2]),
            http("mesh-http1", CodecType::Http1, &[names::ALPN_HTTP1]),
            stream,
        ],
        _ => vec![http("mesh-http", CodecType::Auto, &[names::ALPN_H2, names::ALPN_HTTP1]), stream],
    }
}

/// Chains for everything else, passed on as it came.
fn plain(model: &Model, scope: &Scope, port: u16, filters: &Filters) -> [FilterChain; 2] {
    let of_port = of_port(model, scope, port);
    let guarded = || guarded(filters, to_cluster(&names::inbound_cluster(port)));
    [("plaintext", "raw_buffer"), ("tls", "tls")].map(|(name, transport)| FilterChain {
        filter_chain_match: Some(matching(Some(port), transport, &[])),
        ..chain(&format!("{name}:{port}"), of_port.iter().cloned().chain(guarded()).collect())
    })
}

/// Chains that close everything else. In Envoy a strict port would otherwise fall back to the chain for the rest; our own
/// proxy never does for a port that has chains.
fn refusing(port: u16) -> [FilterChain; 2] {
    let close = || Filter {
        name: "envoy.filters.network.direct_response".to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(DirectResponse::default()))),
    };
    [("raw_buffer", "raw_buffer"), ("other-tls", "tls")].map(|(name, transport)| FilterChain {
        filter_chain_match: Some(matching(Some(port), transport, &[])),
        ..chain(&format!("refused-{name}:{port}"), vec![close()])
    })
}

/// A TCP proxy with what decides who may reach it.
fn guarded(filters: &Filters, proxy: Filter) -> Vec<Filter> {
    filters.network.iter().cloned().chain([proxy]).collect()
}

fn to_cluster(cluster: &str) -> Filter {
    http::tcp_proxy(cluster, &[(cluster.to_owned(), 1)], false)
}

fn nobody() -> FilterChain {
    let matched = matching(Some(1), "tls", &[b"mesh-none"]);
    FilterChain { filter_chain_match: Some(matched), ..chain("none", vec![passthrough()]) }
}

fn matching(port: Option<u16>, transport: &str, alpn: &[&[u8]]) -> FilterChainMatch {
    FilterChainMatch {
        destination_port: port.and_then(|port| uint32(u32::from(port))),
        transport_protocol: transport.to_owned(),
        application_protocols: alpn.iter().map(|protocol| String::from_utf8_lossy(protocol).into_owned()).collect(),
        ..FilterChainMatch::default()
    }
}
