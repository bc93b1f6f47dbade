//! Datagrams: UDP ports of services, and what UDPRoutes make of them.

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::{Listener, listener_filter::ConfigType};
use envoy_types::pb::envoy::extensions::filters::udp::udp_proxy::v3::udp_proxy_config::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::udp::udp_proxy::v3::{Route, UdpProxyConfig};
use envoy_types::pb::envoy::extensions::matching::input_matchers::runtime_fraction::v3::RuntimeFraction;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_list::predicate::{MatchType, single_predicate};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::{MatcherType, OnMatch, on_match};
use mesh_common::names;
use mesh_common::proto::extensions::UdpClusters;
use mesh_common::resource::Kind;

use super::*;

/// Two versions of `echo`, one of them in the mesh, with TCP and UDP at the same port.
const ECHO: &str = "
apiVersion: meshctl.dev/v1alpha1
kind: WorkloadEntry
metadata: {name: echo-v1-a, labels: {meshctl.dev/registered: 'true'}}
spec: {service: echo, version: v1, addresses: [10.0.0.7], ports: [{port: 9001, servicePort: 9000, protocol: udp}, {port: 9000, protocol: http}], serviceAccount: echo}
---
apiVersion: meshctl.dev/v1alpha1
kind: WorkloadEntry
metadata: {name: echo-v2-a}
spec: {service: echo, version: v2, addresses: [10.0.0.8], ports: [{port: 9000, protocol: udp}]}
---
";

fn route(name: &str, backends: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: UDPRoute\nmetadata: {{name: {name}}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: echo}}], rules: [{{backendRefs: [{backends}]}}]}}\n---\n"
    )
}

fn listener(model: &Model, scope: &Scope) -> (Listener, UdpProxyConfig) {
    let address = model.service("default", "echo").unwrap().virtual_addresses[0];
    let listener: Listener = get(model, scope, ResourceType::Listener, &names::udp_listener(address, 9000));
    let [filter] = listener.listener_filters.as_slice() else { panic!("{listener:?}") };
    let Some(ConfigType::TypedConfig(any)) = &filter.config_type else { panic!() };
    let proxy = decode(any);
    (listener, proxy)
}

fn target(on: &OnMatch) -> String {
    let Some(on_match::OnMatch::Action(action)) = &on.on_match else { panic!() };
    let any = action.typed_config.as_ref().unwrap();
    let text = if any.type_url.ends_with("mesh.extensions.v1.UdpClusters") {
        let all: Vec<_> =
            decode::<UdpClusters>(any).clusters.iter().map(|c| format!("{}={}", c.name, c.weight)).collect();
        all.join(" ")
    } else {
        decode::<Route>(any).cluster
    };
    text.replace(".default.svc.cluster.local", "")
}

/// A line for each decision.
fn targets(model: &Model, scope: &Scope) -> Vec<String> {
    let Some(RouteSpecifier::Matcher(matcher)) = listener(model, scope).1.route_specifier else { panic!() };
    let mut lines = Vec::new();
    if let Some(MatcherType::MatcherList(list)) = &matcher.matcher_type {
        for (seed, matcher) in (1..).zip(&list.matchers) {
            let predicate = matcher.predicate.as_ref().unwrap().match_type.as_ref();
            let Some(MatchType::SinglePredicate(single)) = predicate else { panic!() };
            let Some(single_predicate::Matcher::CustomMatch(custom)) = &single.matcher else { panic!() };
            let fraction: RuntimeFraction = decode(custom.typed_config.as_ref().unwrap());
            assert_eq!(fraction.seed, seed);
            let parts = fraction.runtime_fraction.unwrap().default_value.unwrap().numerator;
            lines.push(format!("{parts}: {}", target(matcher.on_match.as_ref().unwrap())));
        }
    }
    lines.push(target(&matcher.on_no_match.unwrap()));
    lines
}

#[test]
fn a_udp_port_has_a_listener_of_its_own() {
    let model = shop(ECHO);
    let (listener, proxy) = listener(&model, &mesh());
    assert_eq!(listener.bind_to_port, super::super::build::boolean(false));
    assert!(listener.udp_listener_config.is_some() && listener.filter_chains.is_empty());
    assert_eq!(proxy.idle_timeout, super::super::build::duration(std::time::Duration::from_secs(60)));
    assert_eq!(targets(&model, &mesh()), ["udp:echo:9000"]);
    // The same number of TCP has nothing to do with it.
    let address = model.service("default", "echo").unwrap().virtual_addresses[0];
    let tcp: Listener = get(&model, &mesh(), ResourceType::Listener, &names::outbound_listener(address, 9000));
    assert!(tcp.udp_listener_config.is_none() && tcp.filter_chains.len() == 1);
    assert!(resource(&model, &mesh(), ResourceType::Listener, &names::udp_listener(address, 9001)).is_none());
    assert!(
        resource(&model, &scope(ClientKind::Grpc), ResourceType::Listener, &names::udp_listener(address, 9000))
            .is_none()
    );
}

#[test]
fn nothing_secures_datagrams_and_no_check_connects() {
    let policy = "apiVersion: meshctl.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p}\nspec: {connectionPool: {maxConnections: 7}, healthCheck: {tcp: {}}, timeouts: {idle: 5s}}\n---\n";
    let model = shop(&format!("{ECHO}{policy}"));
    let name = "udp:echo.default.svc.cluster.local:9000";
    let cluster: Cluster = get(&model, &mesh(), ResourceType::Cluster, name);
    assert!(cluster.transport_socket_matches.is_empty() && cluster.health_checks.is_empty());
    assert!(cluster.typed_extension_protocol_options.is_empty());
    assert_eq!(cluster.circuit_breakers.unwrap().thresholds[0].max_connections, super::super::build::uint32(7));
    assert_eq!(
        listener(&model, &mesh()).1.idle_timeout,
        super::super::build::duration(std::time::Duration::from_secs(5))
    );
    let endpoints: ClusterLoadAssignment = get(&model, &mesh(), ResourceType::Endpoints, name);
    let endpoints: Vec<_> = endpoints.endpoints.iter().flat_map(|it| &it.lb_endpoints).collect();
    assert_eq!(endpoints.len(), 2);
    assert!(endpoints.iter().all(|it| it.metadata.as_ref().unwrap().filter_metadata.is_empty()));
    // Each at its own port: 9001 of the first stands for the service's 9000.
    let text = format!("{endpoints:?}");
    assert!(text.contains("PortValue(9001)") && text.contains("PortValue(9000)"), "{text}");
}

#[test]
fn routes_give_shares_to_each_client_in_its_own_words() {
    let text = format!(
        "{ECHO}{}",
        route(
            "u",
            "{name: echo-v1, port: 9000, weight: 90}, {name: echo-v2, port: 9000, weight: 9}, {name: gone, port: 1}"
        )
    );
    let model = shop(&text);
    assert_eq!(targets(&model, &mesh()), ["udp:echo-v1:9000=90 udp:echo-v2:9000=9 unresolved:udp:gone:1=1"]);
    // 9 of the 10 that are left.
    assert_eq!(
        targets(&model, &scope(ClientKind::Envoy)),
        ["900000: udp:echo-v1:9000", "900000: udp:echo-v2:9000", "unresolved:udp:gone:1"]
    );
    let (envoy, _) = listener(&model, &scope(ClientKind::Envoy));
    assert_eq!(
        (envoy.freebind, envoy.bind_to_port),
        (super::super::build::boolean(true), super::super::build::boolean(true))
    );
    let key = Key::new(Kind::UdpRoute, "default", "u");
    let said = model.warnings(&key);
    assert!(
        said.len() == 1 && said[0].contains("there is no Service default/gone; datagrams to it are dropped"),
        "{said:?}"
    );

    let nothing = shop(&format!("{ECHO}{}", route("u", "{name: echo-v1, port: 9000, weight: 0}")));
    assert_eq!(targets(&nothing, &mesh()), ["unresolved:udp:echo:9000"]);
}

#[test]
fn the_oldest_route_wins_and_the_others_are_told() {
    let text =
        format!("{ECHO}{}{}", route("a", "{name: echo-v1, port: 9000}"), route("b", "{name: echo-v2, port: 9000}"));
    let model = shop(&text);
    assert_eq!(targets(&model, &mesh()), ["udp:echo-v1:9000"]);
    let conflict = model.warnings(&Key::new(Kind::UdpRoute, "default", "b"));
    assert!(conflict[0].contains("older UDPRoute"), "{conflict:?}");
    assert!(model.warnings(&Key::new(Kind::UdpRoute, "default", "a")).is_empty());
    // Of what has no UDP port, a UDPRoute is none's, and so is an HTTPRoute or TCPRoute of a UDP port.
    let web = shop(&route("a", "{name: web, port: 8080}").replace("name: echo}", "name: web}"));
    let said = web.warnings(&Key::new(Kind::UdpRoute, "default", "a"));
    assert!(said.iter().any(|it| it.contains("has no port that this names")), "{said:?}");
    assert!(said.iter().any(|it| it.contains("has no UDP port 8080")), "{said:?}");
}

#[test]
fn declared_ports_find_their_workloads() {
    let declared = "apiVersion: v1\nkind: Service\nmetadata: {name: echo}\nspec: {selector: {app: echo}, ports: [{name: u, port: 9000, targetPort: 9005, protocol: UDP}, {name: h, port: 9000}, {name: s, port: 1, protocol: SCTP}]}\n---\n";
    let model = shop(&format!("{ECHO}{declared}"));
    let service = model.service("default", "echo").unwrap();
    let ports: Vec<_> = service.udp_ports[&9000].endpoints.iter().map(|it| it.port).collect();
    // The workload that says which of its ports is the service's is believed.
    assert_eq!(ports, [9001, 9005]);
    assert_eq!(service.ports.len(), 1);
    let said = model.warnings(&Key::new(Kind::Service, "default", "echo"));
    assert!(said.len() == 1 && said[0].contains("port 1 is SCTP"), "{said:?}");
    // What comes in for the application is not intercepted.
    let inbound = super::super::inbound::ports(
        &model,
        &Scope { service: "echo".to_owned(), workload: "echo-v1-a".to_owned(), ..mesh() },
    );
    assert!(inbound.iter().all(|(port, _)| *port == 9000), "{inbound:?}");
}
