//! Listeners for what the application sends: by virtual address, by a workload's own address, for everything else, and
//! for a gRPC client without a proxy.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::{
    ApiListener, Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, listener_filter,
};
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::CodecType;
use envoy_types::pb::google::protobuf::Any;
use mesh_common::names;

use super::build::{address, any, boolean, duration};
use super::http::{self, Routes};
use super::target::{Upstream, split_port};
use super::tracing::{self, Side};
use super::{ClientKind, Scope, balancing, fault, inbound, route, udp};
use crate::model::{Backend, Destination, Model, Port, Protocol, Service};

/// How long to wait for the first bytes of a connection whose protocol isn't known: of those where the server speaks
/// first, none come.
const DETECTION: Duration = Duration::from_millis(500);

pub(super) fn listener(model: &Model, scope: &Scope, name: &str) -> Option<Listener> {
    if scope.client == ClientKind::Grpc {
        return api(model, scope, name);
    }
    match name {
        names::LISTENER_INBOUND => Some(inbound::listener(model, scope)),
        names::LISTENER_OUTBOUND => Some(everything_else()),
        _ if name.starts_with(names::UDP_PREFIX) => udp::listener(model, scope, name),
        _ => outbound(model, scope, name.parse().ok().filter(|address: &SocketAddr| address.to_string() == name)?),
    }
}

fn outbound(model: &Model, scope: &Scope, at: SocketAddr) -> Option<Listener> {
    let filters = match model.destination(at.ip(), at.port()) {
        None => {
            let (_, service, port) = model.unnamed(at.ip(), at.port())?;
            direct(model, scope, service, port, at)
        }
        Some(Destination::Service(service, number)) => {
            let (service, port) = model.port(service, *number)?;
            of_port(model, scope, service, port)
        }
        Some(Destination::Workload { service, service_port, .. }) => {
            let (service, port) = model.port(service, *service_port)?;
            // A headless service is called at its workloads' addresses, so that is where its routes are needed.
            if service.headless && !port.routes_for(&scope.namespace).is_empty() {
                of_port(model, scope, service, port)
            } else {
                direct(model, scope, service, port, at)
            }
        }
    };
    let base = Listener {
        name: at.to_string(),
        address: address(at.ip(), at.port()),
        bind_to_port: boolean(false),
        traffic_direction: TrafficDirection::Outbound as i32,
        ..Listener::default()
    };
    Some(listening(base, filters))
}

/// The filters for HTTP and for byte streams, as far as the port may carry them.
#[derive(Default)]
struct Filters {
    http: Option<Filter>,
    /// For streams of TLS with these server names.
    tls: Vec<(Vec<String>, Vec<Filter>)>,
    streams: Option<Vec<Filter>>,
    /// Streams of TLS that ask for no name of those in `tls` are refused, instead of being like other streams.
    only_named_tls: bool,
}

/// The listener with a chain for each of these filters.
fn listening(base: Listener, filters: Filters) -> Listener {
    let Filters { http, tls, streams, only_named_tls } = filters;
    let plaintext = |matched: FilterChainMatch| match tls.is_empty() {
        true => matched,
        // Where TLS is told by its names, what it says it carries must not lead it to the chain for HTTP.
        false => FilterChainMatch { transport_protocol: "raw_buffer".to_owned(), ..matched },
    };
    let of_http = |filter: Filter| {
        let matched = FilterChainMatch {
            application_protocols: vec!["http/1.1".to_owned(), "h2c".to_owned()],
            ..FilterChainMatch::default()
        };
        FilterChain { filter_chain_match: Some(plaintext(matched)), ..chain("http", vec![filter]) }
    };
    let of_names = |(server_names, filters): &(Vec<String>, Vec<Filter>)| FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            transport_protocol: "tls".to_owned(),
            server_names: server_names.clone(),
            ..FilterChainMatch::default()
        }),
        // Every name is in one chain only.
        ..chain(&format!("tls:{}", server_names.first().map_or("", String::as_str)), filters.clone())
    };
    let tls_inspector =
        (!tls.is_empty()).then(|| inspector("envoy.filters.listener.tls_inspector", any(TlsInspector::default())));
    let named: Vec<FilterChain> = tls.iter().map(of_names).collect();
    match (http, streams) {
        (Some(http), None) => Listener { filter_chains: vec![chain("http", vec![http])], ..base },
        (None, streams) if named.is_empty() => {
            Listener { filter_chains: streams.map(|filters| chain("tcp", filters)).into_iter().collect(), ..base }
        }
        (http, streams) => {
            let http_inspector = http
                .is_some()
                .then(|| inspector("envoy.filters.listener.http_inspector", any(HttpInspector::default())));
            let streams = streams.map(|filters| chain("tcp", filters));
            let (rest, default_filter_chain) = match streams {
                Some(streams) if only_named_tls => {
                    let matched = Some(plaintext(FilterChainMatch::default()));
                    (Some(FilterChain { filter_chain_match: matched, ..streams }), None)
                }
                streams => (None, streams),
            };
            Listener {
                listener_filters: tls_inspector.into_iter().chain(http_inspector).collect(),
                listener_filters_timeout: duration(DETECTION),
                continue_on_listener_filters_timeout: true,
                filter_chains: named.into_iter().chain(http.map(of_http)).chain(rest).collect(),
                default_filter_chain,
                ..base
            }
        }
    }
}

fn of_port(model: &Model, scope: &Scope, service: &Service, port: &Port) -> Filters {
    let name = names::service_port(&service.name.name, &service.name.namespace, port.number);
    let routes = port.routes_for(&scope.namespace);
    let http = || {
        let traced = tracing::of(model, scope, Side::Outbound);
        http::manager(Routes::Named(name.clone()), CodecType::Auto, http::of_routes(), paths(scope), traced)
    };
    let to = |backends: &[Backend]| {
        let clusters: Vec<_> = backends.iter().map(|to| (stream_cluster(model, to), to.weight)).collect();
        let ports = backends.iter().filter_map(|to| model.port(&to.service, to.port));
        streams(scope, port, &name, &clusters, ports.map(|(_, port)| &port.policy).any(balancing::hashes_source))
    };
    let by_source = balancing::hashes_source(&port.policy);
    let of_streams = || Filters {
        tls: routes.tls.iter().map(|streams| (streams.server_names.clone(), to(&streams.backends))).collect(),
        streams: Some(match &routes.tcp {
            Some(backends) => to(backends),
            None if port.protocol == Protocol::Tcp => streams(scope, port, &name, &[(name.clone(), 1)], by_source),
            None => streams(scope, port, &name, &[(names::tcp_cluster(&name), 1)], by_source),
        }),
        only_named_tls: !routes.tls.is_empty() && routes.tcp.is_none(),
        http: None,
    };
    match port.protocol {
        Protocol::Tcp => of_streams(),
        // Only a TCPRoute is attached: that is what somebody knows of the port.
        Protocol::Detect if routes.tcp.is_some() && routes.http.is_none() => of_streams(),
        Protocol::Detect => Filters { http: Some(http()), ..of_streams() },
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => Filters { http: Some(http()), ..Filters::default() },
        // Not among the ports for connections.
        Protocol::Udp => Filters::default(),
    }
}

/// To one workload, without the routes of its service.
fn direct(model: &Model, scope: &Scope, service: &Service, port: &Port, at: SocketAddr) -> Filters {
    let cluster = names::direct_cluster(at);
    let http = || {
        let config = route::to_cluster(scope, service, port, &cluster);
        let traced = tracing::of(model, scope, Side::Outbound);
        http::manager(Routes::Inline(Box::new(config)), CodecType::Auto, http::of_routes(), paths(scope), traced)
    };
    let streams = |to: String| Some(streams(scope, port, &cluster, &[(to, 1)], false));
    match port.protocol {
        Protocol::Tcp => Filters { streams: streams(cluster.clone()), ..Filters::default() },
        Protocol::Detect => {
            Filters { http: Some(http()), streams: streams(names::tcp_cluster(&cluster)), ..Filters::default() }
        }
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => Filters { http: Some(http()), ..Filters::default() },
        Protocol::Udp => Filters::default(),
    }
}

fn streams(scope: &Scope, port: &Port, stat_prefix: &str, clusters: &[(String, u32)], by_source: bool) -> Vec<Filter> {
    let fault = fault::of_stream(scope, &port.faults);
    fault.into_iter().chain([http::tcp_proxy(stat_prefix, clusters, by_source)]).collect()
}

/// The cluster of a TCPRoute's or TLSRoute's backend.
fn stream_cluster(model: &Model, backend: &Backend) -> String {
    let name = names::service_port(&backend.service.name, &backend.service.namespace, backend.port);
    if !backend.found {
        return names::unresolved_cluster(&name);
    }
    match model.port(&backend.service, backend.port) {
        Some((_, port)) if port.protocol != Protocol::Tcp => names::tcp_cluster(&name),
        _ => name,
    }
}

/// Hands each connection to the listener of its original destination, and passes on the rest.
fn everything_else() -> Listener {
    Listener {
        name: names::LISTENER_OUTBOUND.to_owned(),
        address: address(IpAddr::V4(Ipv4Addr::UNSPECIFIED), names::port::OUTBOUND),
        use_original_dst: boolean(true),
        traffic_direction: TrafficDirection::Outbound as i32,
        default_filter_chain: Some(chain("passthrough", vec![passthrough()])),
        ..Listener::default()
    }
}

fn paths(scope: &Scope) -> http::Paths {
    if scope.client == ClientKind::Envoy { http::Paths::Normal } else { http::Paths::Own }
}

pub(super) fn passthrough() -> Filter {
    http::tcp_proxy(names::CLUSTER_PASSTHROUGH, &[(names::CLUSTER_PASSTHROUGH.to_owned(), 1)], false)
}

pub(super) fn chain(name: &str, filters: Vec<Filter>) -> FilterChain {
    FilterChain { name: name.to_owned(), filters, ..FilterChain::default() }
}

pub(super) fn inspector(name: &str, config: Any) -> ListenerFilter {
    let config_type = Some(listener_filter::ConfigType::TypedConfig(config));
    ListenerFilter { name: name.to_owned(), config_type, ..ListenerFilter::default() }
}

/// For a gRPC client, whose target is a service's name.
fn api(model: &Model, scope: &Scope, name: &str) -> Option<Listener> {
    let (host, number) = split_port(name)?;
    let service = model.service_by_dns(host, &scope.namespace)?;
    let port = service.ports.get(&number).filter(|port| port.protocol.may_be_http())?;
    let full = names::service_port(&service.name.name, &service.name.namespace, port.number);
    debug_assert!(Upstream::service_port(model, &full).is_some(), "{full}");
    let manager = http::bare_manager(Routes::Named(full), http::faults());
    Some(Listener {
        name: name.to_owned(),
        api_listener: Some(ApiListener { api_listener: Some(any(manager)) }),
        ..Listener::default()
    })
}
