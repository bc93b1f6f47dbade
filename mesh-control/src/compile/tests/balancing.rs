//! How requests are spread, as a stock Envoy and our own proxy are told.

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config::LocalityConfigSpecifier;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{LbConfig, LbPolicy};
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::{ConnectionProperties, PolicySpecifier};
use mesh_common::proto::extensions::PeakEwma;

use super::*;

const REVIEWS: &str = "reviews.default.svc.cluster.local:9080";

fn policy(service: &str, balancer: &str) -> String {
    format!(
        "apiVersion: meshctl.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p-{service}}}\nspec: {{targetRefs: [{{kind: Service, name: {service}}}], loadBalancer: {{{balancer}}}}}\n---\n"
    )
}

fn cluster(balancer: &str, scope: &Scope) -> Cluster {
    get(&shop(&policy("reviews", balancer)), scope, ResourceType::Cluster, REVIEWS)
}

fn workload(name: &str, address: u8, more: &str) -> String {
    format!(
        "apiVersion: meshctl.dev/v1alpha1\nkind: WorkloadEntry\nmetadata: {{name: {name}, labels: {{tier: {name}}}}}\nspec: {{service: api, addresses: [10.1.0.{address}], ports: [{{port: 80, protocol: http}}], {more}}}\n---\n"
    )
}

#[test]
fn a_stock_envoy_is_told_in_its_own_fields() {
    let envoy = scope(ClientKind::Envoy);
    let ring = cluster("policy: RingHash, hash: [{header: X-User}], panicThresholdPercent: 40", &envoy);
    assert_eq!(ring.lb_policy, LbPolicy::RingHash as i32);
    assert!(matches!(ring.lb_config, Some(LbConfig::RingHashLbConfig(_))));
    let common = ring.common_lb_config.unwrap();
    assert_eq!(common.healthy_panic_threshold.unwrap().value, 40.0);
    assert!(common.locality_config_specifier.is_none());
    let maglev = cluster("policy: Maglev, hash: [{sourceAddress: true}]", &envoy);
    assert_eq!((maglev.lb_policy, maglev.lb_config), (LbPolicy::Maglev as i32, None));
    let slow = cluster("slowStart: {window: 30s, aggression: 2, minWeightPercent: 5}", &envoy);
    assert_eq!(slow.lb_policy, LbPolicy::LeastRequest as i32);
    let Some(LbConfig::LeastRequestLbConfig(config)) = slow.lb_config else { panic!("{slow:?}") };
    let config = config.slow_start_config.unwrap();
    assert_eq!(config.slow_start_window.unwrap().seconds, 30);
    assert_eq!((config.aggression.unwrap().default_value, config.min_weight_percent.unwrap().value), (2.0, 5.0));
    let weighted = cluster("locality: {weights: [{from: '*', to: [{locality: eu, weight: 1}]}]}", &envoy);
    let specifier = weighted.common_lb_config.unwrap().locality_config_specifier;
    assert!(matches!(specifier, Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_))));
}

#[test]
fn peak_ewma_is_ours_for_those_that_know_it_and_least_request_for_the_rest() {
    let ours = cluster("policy: PeakEwma, slowStart: {window: 1m}", &mesh());
    let policies = ours.load_balancing_policy.unwrap().policies;
    let config: PeakEwma = decode(policies[0].typed_extension_config.as_ref().unwrap().typed_config.as_ref().unwrap());
    assert_eq!((config.decay_milliseconds, config.slow_start.unwrap().window_milliseconds), (10_000, 60_000));
    let envoy = cluster("policy: PeakEwma", &scope(ClientKind::Envoy));
    assert_eq!((envoy.lb_policy, envoy.load_balancing_policy), (LbPolicy::LeastRequest as i32, None));
    let grpc = cluster("policy: RingHash, hash: [{header: x}]", &scope(ClientKind::Grpc));
    assert_eq!((grpc.lb_policy, grpc.lb_config), (LbPolicy::RoundRobin as i32, None));
}

#[test]
fn what_a_service_hashes_is_in_the_routes_that_lead_to_it() {
    let hash = "policy: RingHash, hash: [{header: X-User}, {cookie: {name: s, ttl: 1h, path: /a}}, {cookie: {name: t}}, {sourceAddress: true}]";
    let straight = shop(&policy("reviews", hash));
    let routed = shop(&format!(
        "{}{}",
        policy("ratings", hash),
        http_route(
            "r",
            "  - backendRefs: [{name: web, port: 8080, weight: 0}, {name: ratings, port: 9081, weight: 1}]\n"
        )
    ));
    for model in [straight, routed] {
        for client in [ClientKind::Envoy, ClientKind::Mesh] {
            let routes = reviews(&model, &scope(client));
            let policies = &forward(&routes[0]).hash_policy;
            assert!(policies.len() == 4 && policies.iter().all(|policy| policy.terminal), "{policies:?}");
            let specifiers: Vec<_> = policies.iter().filter_map(|it| it.policy_specifier.as_ref()).collect();
            let [
                PolicySpecifier::Header(header),
                PolicySpecifier::Cookie(long),
                PolicySpecifier::Cookie(session),
                PolicySpecifier::ConnectionProperties(source),
            ] = specifiers[..]
            else {
                panic!("{specifiers:?}")
            };
            assert_eq!((header.header_name.as_str(), long.name.as_str(), long.path.as_str()), ("x-user", "s", "/a"));
            assert_eq!((long.ttl.unwrap().seconds, session.ttl.unwrap().seconds), (3600, 0));
            assert!(source.source_ip);
        }
        assert!(forward(&reviews(&model, &scope(ClientKind::Grpc))[0]).hash_policy.is_empty());
    }
    assert!(forward(&reviews(&shop(""), &mesh())[0]).hash_policy.is_empty());
}

#[test]
fn endpoints_are_ranked_for_each_caller() {
    let far = [("a1", 1, "eu/a"), ("a2", 2, "eu/b"), ("a3", 3, "us/a")]
        .map(|(name, address, locality)| workload(name, address, &format!("locality: {locality}")));
    let callers = "apiVersion: meshctl.dev/v1alpha1\nkind: WorkloadEntry\nmetadata: {name: here}\nspec: {locality: eu/a}\n---\napiVersion: meshctl.dev/v1alpha1\nkind: WorkloadEntry\nmetadata: {name: there}\nspec: {locality: us/b}\n---\n";
    let model = |balancer: &str| shop(&format!("{}{callers}{}", far.concat(), policy("api", balancer)));
    let seen = |model: &Model, scope: &Scope| -> Vec<(String, u32, u32)> {
        let name = "api.default.svc.cluster.local:80";
        let found: ClusterLoadAssignment = get(model, scope, ResourceType::Endpoints, name);
        let of = |it: &envoy_types::pb::envoy::config::endpoint::v3::LocalityLbEndpoints| {
            let at = it.locality.clone().unwrap();
            (format!("{}/{}", at.region, at.zone), it.priority, it.load_balancing_weight.unwrap().value)
        };
        found.endpoints.iter().map(of).collect()
    };
    let caller = |workload: &str| Scope { workload: workload.to_owned(), ..mesh() };
    let priorities = |model: &Model, scope: &Scope| seen(model, scope).into_iter().map(|it| it.1).collect::<Vec<_>>();
    let near = model("locality: {}");
    assert_eq!(priorities(&near, &caller("here")), [0, 1, 2]);
    assert_eq!(priorities(&near, &caller("there")), [1, 1, 0]);
    assert_eq!(priorities(&near, &caller("nobody")), [0, 0, 0]);
    let told = Scope { locality: ["us".into(), "a".into(), String::new()], ..caller("nobody") };
    assert_eq!(priorities(&near, &told), [1, 1, 0], "a node that has no workload says where it is");
    assert_eq!(priorities(&model("policy: Random"), &caller("here")), [0, 0, 0], "nobody asked for it");
    let shares =
        model("locality: {weights: [{from: eu/a, to: [{locality: eu/a, weight: 3}, {locality: eu/b, weight: 1}]}]}");
    let expected = [("eu/a", 0, 3000), ("eu/b", 0, 1000), ("us/a", 1, 1)].map(|(at, p, w)| (at.to_owned(), p, w));
    assert_eq!(seen(&shares, &caller("here")), expected);
    // Who is at the same place gets the same bytes.
    let same = |a: &Scope, b: &Scope| {
        let of = |scope| resource(&near, scope, ResourceType::Endpoints, "api.default.svc.cluster.local:80").unwrap();
        of(a) == of(b)
    };
    assert!(same(&caller("there"), &told) && !same(&caller("here"), &told));
}

#[test]
fn a_subset_by_label_is_a_service_with_a_selector() {
    let subset = "apiVersion: v1\nkind: Service\nmetadata: {name: api-gold}\nspec: {selector: {app: api, tier: gold}, ports: [{port: 80}]}\n---\n";
    let model = shop(&format!("{}{}{subset}", workload("gold", 1, ""), workload("lead", 2, "")));
    let addresses = |name: &str| {
        let found: ClusterLoadAssignment = get(&model, &mesh(), ResourceType::Endpoints, name);
        found.endpoints.iter().map(|it| it.lb_endpoints.len()).sum::<usize>()
    };
    assert_eq!(addresses("api.default.svc.cluster.local:80"), 2);
    assert_eq!(addresses("api-gold.default.svc.cluster.local:80"), 1);
}

#[test]
fn a_service_with_session_affinity_hashes_by_address() {
    let sticky = "apiVersion: v1\nkind: Service\nmetadata: {name: reviews}\nspec: {sessionAffinity: ClientIP, ports: [{port: 9080, appProtocol: http}]}\n---\n";
    let mesh_wide = "apiVersion: meshctl.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: all, namespace: mesh-system}\nspec: {loadBalancer: {policy: Random}}\n---\n";
    let of = |text: &str| {
        let model = shop(text);
        let specifiers = forward(&reviews(&model, &mesh())[0]).hash_policy.clone().into_iter();
        let cluster: Cluster = get(&model, &mesh(), ResourceType::Cluster, REVIEWS);
        (cluster.lb_policy, specifiers.filter_map(|policy| policy.policy_specifier).collect::<Vec<_>>())
    };
    let by_source = vec![PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true })];
    let ring = LbPolicy::RingHash as i32;
    assert_eq!(of(sticky), (ring, by_source.clone()));
    // What the mesh does in general is not about this Service, and what somebody says of this Service is.
    assert_eq!(of(&format!("{sticky}{mesh_wide}")), (ring, by_source));
    let own = policy("reviews", "policy: RoundRobin");
    assert_eq!(of(&format!("{sticky}{own}")), (LbPolicy::RoundRobin as i32, Vec::new()));
    let version: Cluster =
        get(&shop(sticky), &mesh(), ResourceType::Cluster, "reviews-v1.default.svc.cluster.local:9080");
    assert_eq!(version.lb_policy, ring);
}
