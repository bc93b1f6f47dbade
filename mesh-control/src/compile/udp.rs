//! Listeners for datagrams to virtual addresses, with Envoy's UDP proxy in them.
//!
//! Sessions are spread over the clusters of a UDPRoute. Envoy's own action names one cluster, so for Envoy the shares are
//! a chain of decisions by the client's port; our own proxy gets the weights as they are.

use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::core::v3::{Address, RuntimeFractionalPercent, address, socket_address};
use envoy_types::pb::envoy::config::listener::v3::{Listener, UdpListenerConfig};
use envoy_types::pb::envoy::extensions::filters::udp::udp_proxy::v3::udp_proxy_config::hash_policy::PolicySpecifier;
use envoy_types::pb::envoy::extensions::filters::udp::udp_proxy::v3::udp_proxy_config::{HashPolicy, RouteSpecifier};
use envoy_types::pb::envoy::extensions::filters::udp::udp_proxy::v3::{Route, UdpProxyConfig};
use envoy_types::pb::envoy::extensions::matching::common_inputs::network::v3::SourcePortInput;
use envoy_types::pb::envoy::extensions::matching::input_matchers::runtime_fraction::v3::RuntimeFraction;
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::xds::core::v3::TypedExtensionConfig;
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_list::predicate::{
    MatchType, SinglePredicate, single_predicate,
};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_list::{FieldMatcher, Predicate};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::{MatcherList, MatcherType, OnMatch, on_match};
use mesh_common::names;
use mesh_common::proto::extensions::{UdpCluster, UdpClusters};

use super::build::{self, any, boolean, duration, fraction, own_any};
use super::listener::inspector;
use super::{ClientKind, Scope, balancing};
use crate::model::{Backend, Model, Port, Service};

/// A session without a datagram in either direction; Envoy's default.
const IDLE: Duration = Duration::from_secs(60);

pub(super) fn listener(model: &Model, scope: &Scope, name: &str) -> Option<Listener> {
    let at: SocketAddr = name.strip_prefix(names::UDP_PREFIX)?.parse().ok()?;
    if names::udp_listener(at.ip(), at.port()) != name {
        return None;
    }
    let (service, port) = model.udp_destination(at.ip(), at.port())?;
    let envoy = scope.client == ClientKind::Envoy;
    Some(Listener {
        name: name.to_owned(),
        address: udp_address(at),
        // Envoy binds each of them, as it has nobody who hands datagrams over: the address is no interface's.
        freebind: envoy.then(|| boolean(true)).flatten(),
        bind_to_port: boolean(envoy),
        udp_listener_config: Some(UdpListenerConfig::default()),
        listener_filters: vec![inspector("envoy.filters.udp_listener.udp_proxy", proxy(model, scope, service, port))],
        traffic_direction: TrafficDirection::Outbound as i32,
        ..Listener::default()
    })
}

fn proxy(model: &Model, scope: &Scope, service: &Service, port: &Port) -> Any {
    let own = names::udp_cluster(&names::service_port(&service.name.name, &service.name.namespace, port.number));
    let (clusters, by_source) = match &port.routes_for(&scope.namespace).udp {
        None => (vec![(own.clone(), 1)], balancing::hashes_source(&port.policy)),
        Some(backends) => {
            let ports = backends
                .iter()
                .filter_map(|to| model.service(&to.service.namespace, &to.service.name)?.udp_ports.get(&to.port));
            let by_source = ports.map(|port| &port.policy).any(balancing::hashes_source);
            (backends.iter().map(|to| (cluster(to), to.weight)).collect(), by_source)
        }
    };
    let hash = HashPolicy { policy_specifier: Some(PolicySpecifier::SourceIp(true)) };
    any(UdpProxyConfig {
        // Zero, which means never elsewhere, would keep every session for ever.
        idle_timeout: duration(port.policy.idle.filter(|idle| !idle.is_zero()).unwrap_or(IDLE)),
        hash_policies: by_source.then_some(hash).into_iter().collect(),
        route_specifier: Some(RouteSpecifier::Matcher(matcher(scope, &own, &clusters))),
        stat_prefix: own,
        ..UdpProxyConfig::default()
    })
}

fn cluster(backend: &Backend) -> String {
    let name = names::service_port(&backend.service.name, &backend.service.namespace, backend.port);
    let name = names::udp_cluster(&name);
    if backend.found { name } else { names::unresolved_cluster(&name) }
}

/// With nothing that has a weight, datagrams go nowhere.
fn matcher(scope: &Scope, own: &str, clusters: &[(String, u32)]) -> Matcher {
    let weighted: Vec<_> = clusters.iter().filter(|(_, weight)| *weight > 0).collect();
    match weighted.as_slice() {
        [] => always(to(&names::unresolved_cluster(own))),
        [(name, _)] => always(to(name)),
        several if scope.client == ClientKind::Envoy => by_port(several),
        several => {
            let clusters = several.iter().map(|(name, weight)| UdpCluster { name: name.clone(), weight: *weight });
            always(action("clusters", own_any(&UdpClusters { clusters: clusters.collect() })))
        }
    }
}

/// The first cluster with its share of all sessions, the second with its share of what is left, and so on. Each decision has
/// a seed of its own: with the same one, the second would only ever see what the first has left of its hashes.
fn by_port(clusters: &[&(String, u32)]) -> Matcher {
    let mut left: u64 = clusters.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let mut matchers = Vec::new();
    let (last, first) = match clusters.split_last() {
        Some((last, first)) => (&last.0, first),
        None => return Matcher::default(),
    };
    for (seed, (name, weight)) in (1..).zip(first) {
        let parts = u64::from(*weight) * 1_000_000 / left;
        left -= u64::from(*weight);
        let fraction = RuntimeFraction {
            runtime_fraction: Some(RuntimeFractionalPercent {
                default_value: fraction(u32::try_from(parts).unwrap_or(1_000_000)),
                ..RuntimeFractionalPercent::default()
            }),
            seed,
        };
        let predicate = SinglePredicate {
            input: extension("envoy.matching.inputs.source_port", any(SourcePortInput {})),
            matcher: extension("envoy.matching.matchers.runtime_fraction", any(fraction))
                .map(single_predicate::Matcher::CustomMatch),
        };
        matchers.push(FieldMatcher {
            predicate: Some(Predicate { match_type: Some(MatchType::SinglePredicate(predicate)) }),
            on_match: Some(to(name)),
        });
    }
    Matcher {
        on_no_match: Some(Box::new(to(last))),
        matcher_type: Some(MatcherType::MatcherList(MatcherList { matchers })),
    }
}

fn always(action: OnMatch) -> Matcher {
    Matcher { on_no_match: Some(Box::new(action)), matcher_type: None }
}

fn to(cluster: &str) -> OnMatch {
    action("route", any(Route { cluster: cluster.to_owned() }))
}

fn action(name: &str, config: Any) -> OnMatch {
    OnMatch { on_match: extension(name, config).map(on_match::OnMatch::Action), ..OnMatch::default() }
}

fn extension(name: &str, config: Any) -> Option<TypedExtensionConfig> {
    Some(TypedExtensionConfig { name: name.to_owned(), typed_config: Some(config) })
}

fn udp_address(at: SocketAddr) -> Option<Address> {
    let mut made = build::address(at.ip(), at.port())?;
    if let Some(address::Address::SocketAddress(socket)) = &mut made.address {
        socket.protocol = socket_address::Protocol::Udp as i32;
    }
    Some(made)
}
