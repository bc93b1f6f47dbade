//! Byte streams by route: what TLSRoute and TCPRoute make of a port's listener.

use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener, filter::ConfigType};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use mesh_common::names;

use super::*;

fn tls_route(name: &str, parent: &str, hostnames: &str, backends: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {{name: {name}}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: {parent}}}], hostnames: [{hostnames}], rules: [{{backendRefs: [{backends}]}}]}}\n---\n"
    )
}

fn tcp_route(parent: &str, backends: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TCPRoute\nmetadata: {{name: t}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: {parent}}}], rules: [{{backendRefs: [{backends}]}}]}}\n---\n"
    )
}

fn target(chain: &FilterChain) -> String {
    let Some(ConfigType::TypedConfig(any)) = &chain.filters.last().unwrap().config_type else { panic!() };
    if !any.type_url.ends_with("TcpProxy") {
        return "http".to_owned();
    }
    match decode::<TcpProxy>(any).cluster_specifier.unwrap() {
        ClusterSpecifier::Cluster(name) => name,
        ClusterSpecifier::WeightedClusters(all) => {
            let all: Vec<_> = all.clusters.iter().map(|c| format!("{}={}", c.name, c.weight)).collect();
            all.join(" ")
        }
    }
    .replace(".default.svc.cluster.local", "")
}

/// A line for each chain: what it matches, and where it leads.
fn chains(model: &Model, scope: &Scope, service: &str, port: u16) -> Vec<String> {
    let address = model.service("default", service).unwrap().virtual_addresses[0];
    let listener: Listener = get(model, scope, ResourceType::Listener, &names::outbound_listener(address, port));
    let line = |chain: &FilterChain| {
        let matched = chain.filter_chain_match.clone().unwrap_or_default();
        let parts = [vec![matched.transport_protocol], matched.server_names, matched.application_protocols];
        format!("{} -> {}", parts.concat().join(" "), target(chain))
    };
    let rest = listener.default_filter_chain.iter().map(|chain| format!("default -> {}", target(chain)));
    let inspectors = listener.listener_filters.iter().map(|f| f.name.rsplit('.').next().unwrap().to_owned());
    inspectors.chain(listener.filter_chains.iter().map(line)).chain(rest).collect()
}

#[test]
fn tls_streams_are_told_apart_by_their_server_name() {
    let model = shop(
        &(tls_route(
            "a",
            "db",
            "a.example.com, b.example.com",
            "{name: db, port: 5432, weight: 3}, {name: misc, port: 7000}",
        ) + &tls_route("b", "db", "'*.example.com'", "{name: ratings, port: 9081}")),
    );
    for client in [ClientKind::Mesh, ClientKind::Envoy] {
        assert_eq!(
            chains(&model, &scope(client), "db", 5432),
            [
                "tls_inspector",
                "tls a.example.com b.example.com -> db:5432=3 tcp:misc:7000=1",
                "tls *.example.com -> tcp:ratings:9081",
                "raw_buffer -> db:5432",
            ]
        );
    }
    // An HTTP port that streams are sent to has a cluster for them.
    let clusters = super::super::names(&model, &mesh(), ResourceType::Cluster);
    assert!(clusters.iter().any(|name| name == "tcp:ratings.default.svc.cluster.local:9081"));
}

#[test]
fn a_port_of_unknown_protocol_still_finds_http() {
    let named = tls_route("a", "misc", "a.example.com", "{name: db, port: 5432}");
    assert_eq!(
        chains(&shop(&named), &mesh(), "misc", 7000),
        [
            "tls_inspector",
            "http_inspector",
            "tls a.example.com -> db:5432",
            "raw_buffer http/1.1 h2c -> http",
            "raw_buffer -> tcp:misc:7000",
        ]
    );
    // What the TLSRoute is not for follows the TCPRoute.
    let both = named + &tcp_route("misc", "{name: db, port: 5432}");
    assert_eq!(
        chains(&shop(&both), &mesh(), "misc", 7000),
        ["tls_inspector", "tls a.example.com -> db:5432", "default -> db:5432"]
    );
}

#[test]
fn streams_for_what_a_route_may_not_use_go_nowhere() {
    let elsewhere = "apiVersion: v1\nkind: Service\nmetadata: {name: secret, namespace: elsewhere}\nspec: {ports: [{port: 443, appProtocol: tcp}]}\n---\n";
    let backends = "{name: secret, namespace: elsewhere, port: 443, weight: 4}, {name: db, port: 5432}";
    let route = tls_route("a", "db", "a.example.com", backends);
    let text = format!("{elsewhere}{route}");
    let refused = "tls a.example.com -> unresolved:secret.elsewhere.svc.cluster.local:443=4 db:5432=1";
    assert_eq!(chains(&shop(&text), &mesh(), "db", 5432)[1], refused);
    assert!(
        resource(&shop(&text), &mesh(), ResourceType::Cluster, "unresolved:secret.elsewhere.svc.cluster.local:443")
            .is_none()
    );

    let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: elsewhere}\nspec: {from: [{group: gateway.networking.k8s.io, kind: TLSRoute, namespace: default}], to: [{group: '', kind: Service}]}\n---\n";
    let granted = "tls a.example.com -> secret.elsewhere.svc.cluster.local:443=4 db:5432=1";
    assert_eq!(chains(&shop(&format!("{text}{grant}")), &mesh(), "db", 5432)[1], granted);

    // A TCPRoute in the same way, and one backend of weight 0 is none.
    let text = elsewhere.to_owned() + &tcp_route("db", backends);
    assert_eq!(
        chains(&shop(&text), &mesh(), "db", 5432),
        [" -> unresolved:secret.elsewhere.svc.cluster.local:443=4 db:5432=1"]
    );
    let nothing = tls_route("a", "db", "a.example.com", "{name: db, port: 5432, weight: 0}");
    assert_eq!(chains(&shop(&nothing), &mesh(), "db", 5432)[1], "tls a.example.com -> unresolved:db:5432");
}

#[test]
fn a_headless_service_has_its_stream_routes_at_its_workloads() {
    let headless = "apiVersion: v1\nkind: Service\nmetadata: {name: pets}\nspec: {clusterIP: None, selector: {app: db}, ports: [{port: 5432, appProtocol: tcp}]}\n---\n";
    let direct = |text: &str| -> Listener { get(&shop(text), &mesh(), ResourceType::Listener, "10.0.0.4:5432") };
    // The workload's own service speaks for it, so its service is the headless one here.
    let own = "apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec: {clusterIP: None, selector: {app: db}, ports: [{port: 5432, appProtocol: tcp}]}\n---\n";
    assert_eq!(direct(headless).filter_chains.len(), 1);
    let routed = direct(&(own.to_owned() + &tls_route("a", "db", "a.example.com", "{name: misc, port: 7000}")));
    assert_eq!(target(&routed.filter_chains[0]), "tcp:misc:7000");
}
