//! Listeners, clusters, endpoints and names for what the application calls.

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::HealthStatus;
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use mesh_common::names;
use mesh_common::proto::extensions::WorkloadInfo;
use mesh_common::proto::workload::Name;

use super::*;

fn virtual_listener(model: &Model, scope: &Scope, service: &str, port: u16) -> Listener {
    let address = model.service("default", service).unwrap().virtual_addresses[0];
    get(model, scope, ResourceType::Listener, &names::outbound_listener(address, port))
}

/// Names of the chains' filters.
fn shape(listener: &Listener) -> String {
    let filters = |chain: &envoy_types::pb::envoy::config::listener::v3::FilterChain| {
        let names: Vec<_> = chain.filters.iter().map(|f| f.name.rsplit('.').next().unwrap()).collect();
        names.join("+")
    };
    let chains: Vec<_> = listener.filter_chains.iter().map(filters).collect();
    let default = listener.default_filter_chain.as_ref().map(filters).unwrap_or_default();
    format!("{} | {default}", chains.join(" "))
}

#[test]
fn a_listener_for_each_kind_of_port() {
    let model = shop("");
    for (service, port, expected) in [
        ("reviews", 9080, "http_connection_manager | "),
        ("ratings", 9081, "http_connection_manager | "),
        ("db", 5432, "tcp_proxy | "),
        ("misc", 7000, "http_connection_manager | tcp_proxy"),
    ] {
        let listener = virtual_listener(&model, &mesh(), service, port);
        assert_eq!(shape(&listener), expected, "{service}");
        assert!(!listener.bind_to_port.unwrap().value);
    }
    for name in ["240.240.0.0:1", "10.0.0.4:9081", "nonsense", "010.0.0.1:9080", "outbound "] {
        assert!(resource(&model, &mesh(), ResourceType::Listener, name).is_none(), "{name}");
    }
}

#[test]
fn one_workload_can_be_called_at_its_own_addresses() {
    let model = shop("");
    for name in ["10.0.0.1:9080", "[fd01::1]:9080"] {
        let listener: Listener = get(&model, &mesh(), ResourceType::Listener, name);
        assert!(format!("{listener:?}").contains(&format!("direct:{name}")) || shape(&listener).starts_with("http"));
        let cluster = format!("direct:{name}");
        let endpoints: ClusterLoadAssignment = get(&model, &mesh(), ResourceType::Endpoints, &cluster);
        assert_eq!(endpoints.endpoints[0].lb_endpoints.len(), 1);
        assert!(resource(&model, &mesh(), ResourceType::Cluster, &cluster).is_some());
    }
}

#[test]
fn a_workload_with_our_proxy_can_be_called_at_any_of_its_ports() {
    let more = "
apiVersion: meshctl.dev/v1alpha1
kind: WorkloadEntry
metadata: {name: pod, labels: {meshctl.dev/proxy: 'true'}, annotations: {meshctl.dev/exclude-inbound-ports: '22, 9090'}}
spec: {service: pod, addresses: [10.0.1.1], ports: [{port: 9090}], serviceAccount: pod, mesh: true}
---
apiVersion: meshctl.dev/v1alpha1
kind: WorkloadEntry
metadata: {name: envoy}
spec: {service: envoy, addresses: [10.0.1.2], ports: [{port: 80}], serviceAccount: envoy, mesh: true}
---
apiVersion: meshctl.dev/v1alpha1
kind: WorkloadEntry
metadata: {name: same, labels: {meshctl.dev/registered: 'true'}}
spec: {addresses: [10.0.0.6], serviceAccount: other}
";
    let model = shop(more);
    for address in ["10.0.0.1:7777", "[fd01::1]:7777", "10.0.1.1:7777"] {
        let listener: Listener = get(&model, &mesh(), ResourceType::Listener, address);
        assert_eq!(shape(&listener), "http_connection_manager | tcp_proxy", "{address}");
        for (name, alpn) in [(format!("direct:{address}"), "mesh-h2"), (format!("tcp:direct:{address}"), "mesh-tcp")] {
            let cluster: Cluster = get(&model, &mesh(), ResourceType::Cluster, &name);
            let tls = upstream_tls(&cluster).unwrap();
            let common = tls.common_tls_context.unwrap();
            assert_eq!(common.alpn_protocols, [alpn]);
            let account = if address.starts_with("10.0.1") { "pod" } else { "reviews" };
            assert!(format!("{common:?}").contains(&format!("spiffe://mesh.local/ns/default/sa/{account}\"")));
            let found: ClusterLoadAssignment = get(&model, &mesh(), ResourceType::Endpoints, &name);
            let [endpoint] = found.endpoints[0].lb_endpoints.as_slice() else { panic!() };
            assert!(endpoint.metadata.clone().unwrap().filter_metadata.contains_key("envoy.transport_socket_match"));
        }
    }
    // Ports that the proxy does not take or that are its own; what has no proxy, one of another kind, or an address of several.
    for name in ["10.0.1.1:22", "10.0.1.1:15021", "10.0.0.1:15090", "10.0.0.4:7777", "10.0.1.2:81", "10.0.0.6:7777"] {
        assert!(resource(&model, &mesh(), ResourceType::Listener, name).is_none(), "{name}");
        assert!(resource(&model, &mesh(), ResourceType::Cluster, &format!("direct:{name}")).is_none(), "{name}");
    }
    // A port that the proxy leaves to the application is called as it is, under its service's name too.
    for name in ["direct:10.0.1.1:9090", "pod.default.svc.cluster.local:9090"] {
        let cluster: Cluster = get(&model, &mesh(), ResourceType::Cluster, name);
        assert_eq!(upstream_tls(&cluster), None, "{name}");
        let found: ClusterLoadAssignment = get(&model, &mesh(), ResourceType::Endpoints, name);
        let metadata = found.endpoints[0].lb_endpoints[0].metadata.clone().unwrap();
        assert!(!metadata.filter_metadata.contains_key("envoy.transport_socket_match"));
    }
}

#[test]
fn a_tcp_route_splits_streams() {
    let text = "
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: t}
spec:
  parentRefs: [{group: '', kind: Service, name: misc}, {group: '', kind: Service, name: reviews}]
  rules: [{backendRefs: [{name: db, port: 5432, weight: 3}, {name: ratings, port: 9081}]}]
";
    let model = shop(text);
    let listener = virtual_listener(&model, &mesh(), "misc", 7000);
    assert_eq!(shape(&listener), "tcp_proxy | ");
    let text = format!("{listener:?}");
    assert!(!text.contains("reviews"));
    let streams = "tcp:ratings.default.svc.cluster.local:9081";
    assert!(super::super::names(&model, &mesh(), ResourceType::Cluster).iter().any(|name| name == streams));
    let key = Key::new(mesh_common::resource::Kind::TcpRoute, "default", "t");
    let reasons: Vec<_> = model.conditions(&key).iter().map(|c| c.reason).collect();
    assert_eq!(reasons, ["Accepted", "ResolvedRefs", "UnsupportedProtocol", "ResolvedRefs"]);
}

fn upstream_tls(cluster: &Cluster) -> Option<UpstreamTlsContext> {
    let socket = cluster.transport_socket_matches.first()?.transport_socket.clone()?;
    match socket.config_type {
        Some(ConfigType::TypedConfig(any)) => Some(decode(&any)),
        _ => None,
    }
}

#[test]
fn clusters_know_who_they_may_meet() {
    let model = shop("");
    let cluster = |name: &str| -> Cluster { get(&model, &mesh(), ResourceType::Cluster, name) };
    for (name, alpn) in [
        ("reviews.default.svc.cluster.local:9080", "mesh-h2"),
        ("tcp:reviews.default.svc.cluster.local:9080", "mesh-tcp"),
        ("tcp:misc.default.svc.cluster.local:7000", "mesh-tcp"),
    ] {
        let found = cluster(name);
        let common = upstream_tls(&found).unwrap().common_tls_context.unwrap();
        assert_eq!(common.alpn_protocols, [alpn], "{name}");
        let service = name.trim_start_matches("tcp:").split('.').next().unwrap();
        assert!(format!("{common:?}").contains(&format!("spiffe://mesh.local/ns/default/sa/{service}")));
        assert_eq!(found.transport_socket_matches.len(), 2);
    }
    let plain = cluster("db.default.svc.cluster.local:5432");
    assert_eq!(plain.transport_socket_matches, []);
    for name in [
        "tcp:db.default.svc.cluster.local:5432",
        "reviews:9080",
        "reviews.default.svc.cluster.local:09080",
        "direct:240.240.0.1:1",
        "inbound:x",
    ] {
        assert!(resource(&model, &mesh(), ResourceType::Cluster, name).is_none(), "{name}");
    }
    let grpc: Cluster =
        get(&model, &scope(ClientKind::Grpc), ResourceType::Cluster, "reviews.default.svc.cluster.local:9080");
    assert_eq!((grpc.transport_socket_matches.len(), grpc.lb_policy), (0, 0));
}

#[test]
fn endpoints_say_who_they_are() {
    let model = shop("");
    let name = "reviews.default.svc.cluster.local:9080";
    let found: ClusterLoadAssignment = get(&model, &mesh(), ResourceType::Endpoints, name);
    assert_eq!(found.cluster_name, name);
    let localities: Vec<_> = found
        .endpoints
        .iter()
        .map(|l| (l.locality.clone().unwrap().zone, l.load_balancing_weight.as_ref().unwrap().value))
        .collect();
    assert_eq!(localities, [(String::new(), 1), ("a".to_owned(), 3)]);
    let metadata = found.endpoints[1].lb_endpoints[0].metadata.clone().unwrap();
    let info: WorkloadInfo = decode(&metadata.typed_filter_metadata[names::METADATA_WORKLOAD]);
    assert_eq!((info.workload.as_str(), info.version.as_str()), ("reviews-v2-a", "v2"));
    assert_eq!(info.identity, "spiffe://mesh.local/ns/default/sa/reviews");
    assert!(metadata.filter_metadata.contains_key("envoy.transport_socket_match"));

    let sick: ClusterLoadAssignment =
        get(&model, &mesh(), ResourceType::Endpoints, "misc.default.svc.cluster.local:7000");
    assert_eq!(sick.endpoints[0].lb_endpoints[0].health_status, 2);
    let direct: ClusterLoadAssignment = get(&model, &mesh(), ResourceType::Endpoints, "direct:10.0.0.5:7000");
    assert_eq!(direct.endpoints[0].lb_endpoints[0].health_status, 1);
    let version: ClusterLoadAssignment =
        get(&model, &mesh(), ResourceType::Endpoints, "reviews-v1.default.svc.cluster.local:9080");
    assert_eq!(version.endpoints.len(), 1);
}

#[test]
fn names_of_services() {
    let model = shop(
        "apiVersion: v1\nkind: Service\nmetadata: {name: pets, namespace: other}\nspec: {clusterIP: None, selector: {}, ports: [{port: 80}]}",
    );
    let ask = |namespace: &str, question: &str| -> Option<Name> {
        let scope = Scope { namespace: namespace.to_owned(), ..mesh() };
        resource(&model, &scope, ResourceType::Name, question).map(|any| decode(&any))
    };
    for question in
        ["reviews", "reviews.default", "reviews.default.svc", "reviews.default.svc.cluster.local", "reviews-v1"]
    {
        let name = ask("default", question).unwrap();
        assert_eq!(name.addresses.len(), 2, "{question}");
        assert_eq!(name.name, question);
        assert!(name.canonical.ends_with(".default.svc.cluster.local"));
    }
    for question in [
        "reviews.other",
        "reviews.default.cluster.local",
        "default",
        "",
        ".",
        "reviews.",
        "svc.cluster.local",
        ".svc.cluster.local",
        "a.b.c.d",
        "x.reviews.default.svc",
    ] {
        assert_eq!(ask("default", question), None, "{question}");
    }
    assert_eq!(ask("other", "reviews"), None);
    assert_eq!(ask("other", "pets").unwrap().addresses, [] as [String; 0]);
}

#[test]
fn workloads_that_do_not_say_what_they_serve_are_of_the_service_that_is_called() {
    let model = shop(
        "apiVersion: v1\nkind: Service\nmetadata: {name: pets}\nspec: {selector: {kind: pet}, ports: [{port: 80}]}\n---\n\
         apiVersion: meshctl.dev/v1alpha1\nkind: WorkloadEntry\nmetadata: {name: cat, labels: {kind: pet}}\nspec: {addresses: [10.0.9.9], ports: [{port: 80}]}",
    );
    let found: ClusterLoadAssignment =
        get(&model, &mesh(), ResourceType::Endpoints, "pets.default.svc.cluster.local:80");
    let metadata = found.endpoints[0].lb_endpoints[0].metadata.clone().unwrap();
    let info: WorkloadInfo = decode(&metadata.typed_filter_metadata[names::METADATA_WORKLOAD]);
    assert_eq!((info.workload.as_str(), info.service.as_str()), ("cat", "pets"));
}

#[test]
fn a_service_that_is_another_name() {
    let model = shop(
        "apiVersion: v1\nkind: Service\nmetadata: {name: books}\nspec: {type: ExternalName, externalName: db.example.com.}",
    );
    let scope = Scope { namespace: "default".to_owned(), ..mesh() };
    for question in ["books", "books.default", "books.default.svc.cluster.local"] {
        let name: Name = decode(&resource(&model, &scope, ResourceType::Name, question).unwrap());
        let said = (name.alias.as_str(), name.canonical.as_str(), name.addresses.len());
        assert_eq!(said, ("db.example.com", "books.default.svc.cluster.local", 0));
    }
    assert!(resource(&model, &scope, ResourceType::Name, "books.other").is_none());
}

#[test]
fn a_grpc_client_finds_services_by_name() {
    let model = shop("");
    let grpc = scope(ClientKind::Grpc);
    for name in ["ratings:9081", "ratings.default:9081", "ratings.default.svc.cluster.local:9081"] {
        let listener: Listener = get(&model, &grpc, ResourceType::Listener, name);
        assert_eq!(listener.name, name);
        let any = listener.api_listener.unwrap().api_listener.unwrap();
        let manager: HttpConnectionManager = decode(&any);
        assert_eq!(manager.http_filters.last().unwrap().name, "envoy.filters.http.router");
        assert!(format!("{manager:?}").contains("ratings.default.svc.cluster.local:9081"));
    }
    for name in ["db:5432", "ratings:1", "ratings", "inbound", "outbound"] {
        assert!(resource(&model, &grpc, ResourceType::Listener, name).is_none(), "{name}");
    }
}

#[test]
fn a_cluster_has_the_balancer_of_its_policy_and_a_retry_budget_in_any_case() {
    use envoy_types::pb::envoy::config::cluster::v3::cluster::LbPolicy;

    let balanced = |policy: &str| -> Cluster {
        let policy = match policy {
            "" => String::new(),
            policy => format!(
                "apiVersion: meshctl.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p}}\nspec: {{targetRefs: [{{kind: Service, name: reviews}}], loadBalancer: {{policy: {policy}}}}}\n"
            ),
        };
        get(&shop(&policy), &mesh(), ResourceType::Cluster, "reviews.default.svc.cluster.local:9080")
    };
    for (policy, expected) in [
        ("", LbPolicy::LeastRequest),
        ("RoundRobin", LbPolicy::RoundRobin),
        ("Random", LbPolicy::Random),
        ("LeastRequest", LbPolicy::LeastRequest),
    ] {
        let cluster = balanced(policy);
        assert_eq!(cluster.lb_policy, expected as i32, "{policy}");
        let limits = &cluster.circuit_breakers.as_ref().unwrap().thresholds[0];
        let budget = limits.retry_budget.as_ref().unwrap();
        let shares =
            (budget.budget_percent.as_ref().unwrap().value, budget.min_retry_concurrency.as_ref().unwrap().value);
        assert_eq!(shares, (20.0, 3), "{policy}");
    }
}

/// Those whose proxies are not heard of are passed over, unless they are most of a service.
#[test]
fn who_is_lost_is_called_while_most_are() {
    let called = |lost: [bool; 4]| {
        let entry = |(index, lost): (usize, bool)| {
            format!(
                "apiVersion: meshctl.dev/v1alpha1\nkind: WorkloadEntry\nmetadata: {{name: api-{index}, labels: {{meshctl.dev/registered: 'true', meshctl.dev/lost: '{lost}'}}}}\nspec: {{service: api, serviceAccount: api, addresses: [10.1.0.{}], ports: [{{port: 80, protocol: http}}]}}\n---\n",
                index + 1
            )
        };
        let model = shop(&lost.into_iter().enumerate().map(entry).collect::<String>());
        let name = "api.default.svc.cluster.local:80";
        let found: ClusterLoadAssignment = get(&model, &mesh(), ResourceType::Endpoints, name);
        let all: Vec<_> = found.endpoints.into_iter().flat_map(|locality| locality.lb_endpoints).collect();
        assert_eq!(all.len(), 4);
        all.into_iter().map(|it| it.health_status == HealthStatus::Healthy as i32).collect::<Vec<_>>()
    };
    assert_eq!(called([true, false, false, false]), [false, true, true, true]);
    assert_eq!(called([true, true, false, false]), [false, false, true, true]);
    assert_eq!(called([true, true, true, false]), [true; 4]);
    assert_eq!(called([true; 4]), [true; 4]);
}

/// Those that are not ready are called and named all the same, where the Service says so.
#[test]
fn who_is_not_ready_is_called_if_the_service_says_so() {
    let called = |publish: &str| {
        let entry = |name: &str, address: u8, healthy: bool| {
            format!(
                "apiVersion: meshctl.dev/v1alpha1\nkind: WorkloadEntry\nmetadata: {{name: {name}}}\nspec: {{service: store, version: v1, addresses: [10.1.0.{address}], healthy: {healthy}, ports: [{{port: 80}}]}}\n---\n"
            )
        };
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: store}}\nspec: {{clusterIP: None, ports: [{{port: 80}}]{publish}}}\n---\n"
        );
        let model = shop(&(service + &entry("store-0", 1, true) + &entry("store-1", 2, false)));
        let healthy = |cluster: &str| {
            let found: ClusterLoadAssignment = get(&model, &mesh(), ResourceType::Endpoints, cluster);
            let all = found.endpoints.into_iter().flat_map(|locality| locality.lb_endpoints);
            all.filter(|it| it.health_status == HealthStatus::Healthy as i32).count()
        };
        let name: Name = get(&model, &mesh(), ResourceType::Name, "store");
        let (whole, version) = ("store.default.svc.cluster.local:80", "store-v1.default.svc.cluster.local:80");
        (healthy(whole), healthy(version), name.addresses)
    };
    assert_eq!(called(""), (1, 1, vec!["10.1.0.1".to_owned()]));
    assert_eq!(called(", publishNotReadyAddresses: false"), (1, 1, vec!["10.1.0.1".to_owned()]));
    let both = vec!["10.1.0.1".to_owned(), "10.1.0.2".to_owned()];
    assert_eq!(called(", publishNotReadyAddresses: true"), (2, 2, both));
}
