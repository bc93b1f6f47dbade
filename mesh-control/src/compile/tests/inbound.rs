use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use mesh_common::names;

use super::*;

fn listener(model: &Model, scope: &Scope) -> Listener {
    get(model, scope, ResourceType::Listener, names::LISTENER_INBOUND)
}

/// `port transport alpn what` of each chain for one port, and whether there is one for all that match none.
fn chains(text: &str, scope: &Scope) -> (Vec<String>, bool) {
    let listener = listener(&shop(text), scope);
    let describe = |chain: &envoy_types::pb::envoy::config::listener::v3::FilterChain| {
        let matched = chain.filter_chain_match.clone().unwrap();
        let port = matched.destination_port.unwrap().value;
        let alpn = matched.application_protocols.join(",");
        let ends = if chain.transport_socket.is_some() { "terminated" } else { "passed" };
        format!("{port} {} {alpn} {ends}", matched.transport_protocol)
    };
    let of_ports = listener.filter_chains.iter().filter(|chain| !chain.name.ends_with(":others"));
    (of_ports.map(describe).collect(), listener.default_filter_chain.is_some())
}

const STRICT: [&str; 2] = ["8080 tls mesh-h2,mesh-http/1.1 terminated", "8080 tls mesh-tcp terminated"];
const PERMISSIVE: [&str; 4] = [STRICT[0], STRICT[1], "8080 raw_buffer  passed", "8080 tls  passed"];

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: meshctl.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec: {spec}\n---\n"
    )
}

#[test]
fn strict_unless_a_policy_says_otherwise() {
    let permissive =
        |ns: &str, targets: &str| policy(ns, "p", &format!("{{targetRefs: [{targets}], mode: PERMISSIVE}}"));
    for (text, expected, rest) in [
        (String::new(), &STRICT[..], false),
        (permissive("mesh-system", ""), &PERMISSIVE, true),
        (permissive("default", ""), &PERMISSIVE, true),
        (permissive("other", ""), &STRICT, false),
        (permissive("default", "{kind: Service, name: web}"), &PERMISSIVE, true),
        (permissive("default", "{kind: Service, name: api}"), &STRICT, false),
        (policy("default", "p", "{ports: {8080: PERMISSIVE}}"), &PERMISSIVE, false),
        (policy("default", "p", "{mode: PERMISSIVE, ports: {8080: STRICT}}"), &STRICT, true),
        (permissive("mesh-system", "") + &policy("default", "q", "{mode: STRICT}"), &STRICT, false),
        (
            permissive("default", "")
                + &policy("default", "q", "{targetRefs: [{kind: Service, name: web}], mode: STRICT}"),
            &STRICT,
            false,
        ),
    ] {
        assert_eq!(chains(&text, &mesh()), (expected.iter().map(|s| (*s).to_owned()).collect(), rest), "{text}");
    }
}

#[test]
fn envoy_is_told_the_codec_of_each_protocol() {
    let (found, _) = chains("", &scope(ClientKind::Envoy));
    let expected = ["8080 tls mesh-h2 terminated", "8080 tls mesh-http/1.1 terminated", "8080 tls mesh-tcp terminated"];
    assert_eq!(found, expected);
}

#[test]
fn envoy_does_not_fall_back_to_the_chain_for_the_rest_on_a_strict_port() {
    let text = policy("default", "p", "{mode: PERMISSIVE, ports: {8080: STRICT}}");
    let (found, rest) = chains(&text, &scope(ClientKind::Envoy));
    assert!(rest);
    for transport in ["raw_buffer", "tls"] {
        assert!(found.contains(&format!("8080 {transport}  passed")), "{found:?}");
    }
    let listener = listener(&shop(&text), &scope(ClientKind::Envoy));
    let refused = listener.filter_chains.iter().filter(|chain| chain.name.starts_with("refused-"));
    let filters: Vec<_> = refused.flat_map(|chain| &chain.filters).map(|filter| filter.name.as_str()).collect();
    assert_eq!(filters, ["envoy.filters.network.direct_response"; 2]);
}

#[test]
fn ports_of_a_workload_that_is_not_registered_come_from_its_node() {
    let scope =
        Scope { workload: "nobody".to_owned(), service: "ratings".to_owned(), inbound_ports: vec![9081, 80], ..mesh() };
    let (found, _) = chains("", &scope);
    assert_eq!(found.len(), 4);
    let cluster: Cluster = get(&shop(""), &scope, ResourceType::Cluster, "inbound:9081");
    let endpoint = &cluster.load_assignment.unwrap().endpoints[0].lb_endpoints[0];
    assert!(format!("{endpoint:?}").contains("127.0.0.1"));
    assert!(resource(&shop(""), &scope, ResourceType::Cluster, "inbound:81").is_none());
}

#[test]
fn ports_that_nobody_names_take_mutual_tls_from_our_own_proxies() {
    let named = |client: ClientKind| {
        let scope = Scope { workload: "nobody".to_owned(), ..scope(client) };
        listener(&shop(""), &scope).filter_chains
    };
    let others = named(ClientKind::Mesh);
    let matched: Vec<_> = others.iter().map(|chain| chain.filter_chain_match.clone().unwrap()).collect();
    assert!(matched.iter().all(|it| it.destination_port.is_none() && it.transport_protocol == "tls"));
    let alpn: Vec<_> = matched.iter().map(|it| it.application_protocols.join(",")).collect();
    assert_eq!(alpn, ["mesh-h2,mesh-http/1.1", "mesh-tcp"]);
    assert!(others.iter().all(|chain| chain.transport_socket.is_some()));
    let passthrough: Cluster = get(&shop(""), &mesh(), ResourceType::Cluster, names::CLUSTER_PASSTHROUGH);
    assert_eq!(passthrough.typed_extension_protocol_options.len(), 1);
    // Envoy would hand such a connection over to itself.
    let envoy = named(ClientKind::Envoy);
    assert_eq!(envoy.iter().map(|chain| chain.name.as_str()).collect::<Vec<_>>(), ["none"]);
}

#[test]
fn client_certificates_are_required() {
    use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;

    for chain in listener(&shop(""), &mesh()).filter_chains {
        let Some(ConfigType::TypedConfig(any)) = chain.transport_socket.unwrap().config_type else { panic!() };
        let context: DownstreamTlsContext = decode(&any);
        assert!(context.require_client_certificate.unwrap().value);
        let common = context.common_tls_context.unwrap();
        assert_eq!(common.tls_certificate_sds_secret_configs[0].name, "default");
        assert_eq!(common.tls_params.unwrap().tls_minimum_protocol_version, 4);
    }
}

#[test]
fn ports_that_only_a_service_names_are_served_too() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-x, port: 81, targetPort: 9090}]}\n";
    let (found, rest) = chains(text, &mesh());
    assert_eq!(found, [STRICT[0], STRICT[1], "9090 tls mesh-tcp terminated"]);
    assert!(!rest);
    let model = shop(text);
    let _: Cluster = get(&model, &mesh(), ResourceType::Cluster, &names::inbound_cluster(9090));
    assert_eq!(super::super::inbound::ports(&model, &mesh())[1].0, 9090);
}
