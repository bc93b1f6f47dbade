use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_common::resource::{Key, Kind, Object, parse_yaml};

use super::address::Addresses;
use super::{Destination, Model, Name, Protocol, Settings, build};

fn objects(text: &str) -> BTreeMap<Key, Arc<Object>> {
    let objects = parse_yaml("test", text).unwrap_or_else(|errors| panic!("{errors:#?}"));
    objects.into_iter().map(|object| (object.key(), Arc::new(object))).collect()
}

fn model(text: &str) -> Model {
    build(&objects(text), &Settings { trust_domain: "mesh.local".to_owned() }, &Addresses::default())
}

fn entry(name: &str, service: &str, version: &str, rest: &str) -> String {
    format!(
        "apiVersion: meshctl.dev/v1alpha1\nkind: WorkloadEntry\nmetadata: {{name: {name}, labels: {{meshctl.dev/registered: 'true'}}}}\nspec: {{service: {service}, version: '{version}', serviceAccount: a, {rest}}}\n---\n"
    )
}

fn service(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n")
}

fn reasons(model: &Model, kind: Kind, name: &str) -> Vec<&'static str> {
    model.conditions(&Key::new(kind, "default", name)).iter().filter(|c| c.is_problem()).map(|c| c.reason).collect()
}

#[test]
fn services_come_from_workloads_and_have_their_versions() {
    let text = entry("a", "reviews", "v1", "addresses: [10.0.0.1], ports: [{port: 9080, protocol: http}]")
        + &entry(
            "b",
            "reviews",
            "v2",
            "addresses: [10.0.0.2], ports: [{port: 9080}, {port: 9999, servicePort: 99, name: admin}]",
        )
        + &entry("c", "", "", "addresses: [10.0.0.3]");
    let model = model(&text);
    let names: Vec<_> = model.services().map(|s| s.name.name.as_str()).collect();
    assert_eq!(names, ["reviews", "reviews-v1", "reviews-v2"]);
    let reviews = model.service("default", "reviews").unwrap();
    let ports: Vec<_> = reviews.ports.values().map(|p| (p.number, p.protocol, p.endpoints.len())).collect();
    assert_eq!(ports, [(99, Protocol::Detect, 1), (9080, Protocol::Http, 2)]);
    assert_eq!(reviews.ports[&99].endpoints[0].port, 9999);
    assert_eq!(model.service("default", "reviews-v2").unwrap().version_of.as_deref(), Some("reviews"));
    assert_eq!(model.service("default", "reviews-v1").unwrap().ports[&99].endpoints.len(), 0);
    assert_eq!(model.workloads().count(), 3);
}

#[test]
fn a_declared_service_comes_before_a_version() {
    let text = entry("a", "reviews", "v1", "addresses: [10.0.0.1], ports: [{port: 80}]")
        + &service(
            "reviews-v1",
            "selector: {app: reviews, version: v1}, ports: [{port: 8000, targetPort: 80, appProtocol: grpc}]",
        );
    let model = model(&text);
    let declared = model.service("default", "reviews-v1").unwrap();
    assert_eq!(declared.version_of, None);
    assert_eq!(declared.ports[&8000].endpoints[0].port, 80);
    assert_eq!(declared.ports[&8000].protocol, Protocol::Grpc);
}

#[test]
fn ports_of_declared_services_find_those_of_workloads() {
    let text = entry(
        "a",
        "s",
        "",
        "addresses: [10.0.0.1], ports: [{port: 8080, name: web}, {port: 81, servicePort: 3}]",
    ) + &service(
        "s",
        "ports: [{name: http-a, port: 1, targetPort: web}, {name: b, port: 2, targetPort: 8080}, {name: c, port: 3}, {name: tcp-d, port: 8080}, {name: e, port: 5}, {name: f, port: 6, targetPort: 7}]",
    );
    let model = model(&text);
    let ports = &model.service("default", "s").unwrap().ports;
    let targets: Vec<_> = ports.values().map(|p| (p.number, p.endpoints.first().map(|e| e.port))).collect();
    assert_eq!(targets, [(1, Some(8080)), (2, Some(8080)), (3, Some(81)), (5, None), (6, Some(7)), (8080, Some(8080))]);
    assert_eq!(ports[&1].protocol, Protocol::Http);
    assert_eq!(ports[&8080].protocol, Protocol::Tcp);
}

#[test]
fn conditions_of_what_cannot_be() {
    let text = service("s", "selector: {app: nobody}, ports: [{name: a, port: 1, protocol: SCTP}, {name: b, port: 2}]")
        + &service("x", "clusterIP: 10.9.9.9, ports: [{port: 80}]")
        + &service("y", "clusterIP: 10.9.9.9, ports: [{port: 80}]")
        + &entry("a", "w", "", "addresses: [10.0.0.1], ports: [{port: 80, protocol: http}]")
        + &entry("b", "w", "", "addresses: [10.0.0.2], ports: [{port: 80, protocol: tcp}]");
    let model = model(&text);
    assert_eq!(reasons(&model, Kind::Service, "s"), ["UnsupportedProtocol", "NoWorkloads"]);
    assert_eq!(model.service("default", "x").unwrap().virtual_addresses.len(), 1);
    assert_eq!(reasons(&model, Kind::Service, "y"), ["AddressTaken"]);
    assert_eq!(model.service("default", "y").unwrap().virtual_addresses.len(), 2);
    assert_eq!(reasons(&model, Kind::WorkloadEntry, "b"), ["ConflictingProtocol"]);
    assert_eq!(model.service("default", "w").unwrap().ports[&80].protocol, Protocol::Http);
}

#[test]
fn a_route_says_which_parents_took_it() {
    let text =
        entry("a", "s", "", "addresses: [10.0.0.1], ports: [{port: 80, protocol: http}, {port: 81, protocol: tcp}]")
            + "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  hostnames: [s.example]
  parentRefs:
  - {group: '', kind: Service, name: s}
  - {group: '', kind: Service, name: s, port: 81}
  - {group: '', kind: Service, name: s, port: 82}
  - {group: '', kind: Service, name: s, sectionName: nothing}
  - {group: '', kind: Service, name: t}
  rules: [{backendRefs: [{name: s, port: 80}]}]
";
    let model = model(&text);
    assert_eq!(
        reasons(&model, Kind::HttpRoute, "r"),
        ["HostnamesIgnored", "UnsupportedProtocol", "NoMatchingParent", "NoMatchingParent", "NoMatchingParent"]
    );
    let status = model.status(&Key::new(Kind::HttpRoute, "default", "r"));
    assert_eq!(status["parents"].as_array().unwrap().len(), 5);
    assert!(model.service("default", "s").unwrap().ports[&80].routes.http.is_some());
    assert!(model.service("default", "s").unwrap().ports[&81].routes.http.is_none());
}

#[test]
fn addresses_stay_when_services_come_and_go() {
    let one = service("a", "ports: [{port: 80}]") + &service("b", "ports: [{port: 80}]");
    let first = model(&one);
    let more = service("a0", "ports: [{port: 80}]") + &service("b", "ports: [{port: 80}]");
    let settings = Settings { trust_domain: "mesh.local".to_owned() };
    let second = build(&objects(&more), &settings, first.addresses());
    let addresses = |model: &Model| model.service("default", "b").unwrap().virtual_addresses.clone();
    assert_eq!(addresses(&first), addresses(&second));
    assert_eq!(addresses(&first).len(), 2);
}

#[test]
fn addresses_lead_to_services_and_workloads() {
    let text = entry("a", "s", "v1", "addresses: [10.0.0.1], ports: [{port: 8080, servicePort: 80}]");
    let model = model(&text);
    let virtual_address = model.service("default", "s").unwrap().virtual_addresses[0];
    let name = Name::new("default", "s");
    assert_eq!(model.destination(virtual_address, 80), Some(&Destination::Service(name.clone(), 80)));
    assert_eq!(model.destination(virtual_address, 8080), None);
    let own = Destination::Workload { workload: Name::new("default", "a"), service: name, service_port: 80 };
    assert_eq!(model.destination("10.0.0.1".parse().unwrap(), 8080), Some(&own));
}

#[test]
fn what_has_no_effect_is_said() {
    let text = service("db", "ports: [{port: 5432, appProtocol: tcp}]")
        + "apiVersion: meshctl.dev/v1alpha1
kind: FaultInjection
metadata: {name: f}
spec: {targetRefs: [{kind: Service, name: db}], faults: [{percent: 1, abort: {httpStatus: 500}}]}
---
apiVersion: meshctl.dev/v1alpha1
kind: MeshConfig
metadata: {name: default}
spec: {trustDomain: other.domain, retries: {attempts: 0}}
";
    let model = model(&text);
    assert_eq!(reasons(&model, Kind::FaultInjection, "f"), ["NotHttp"]);
    let config = model.warnings(&Key::new(Kind::MeshConfig, "mesh-system", "default"));
    assert!(config[0].contains("other.domain"), "{config:?}");
    assert_eq!(model.service("default", "db").unwrap().ports[&5432].policy.retries(), 0);
}

#[test]
fn objects_without_anything_to_say_have_no_status() {
    let model = model(&service("s", "ports: [{port: 80}]"));
    assert_eq!(model.status(&Key::new(Kind::Service, "default", "s")), serde_json::json!({}));
}

#[test]
fn a_backend_of_another_namespace_needs_a_grant_there() {
    let workload = |namespace: &str, name: &str| {
        format!(
            "apiVersion: meshctl.dev/v1alpha1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{service: {name}, addresses: [10.0.0.1], ports: [{{port: 80, protocol: http}}]}}\n---\n"
        )
    };
    let grant = |from: &str, to: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: back}}\nspec: {{from: [{{group: gateway.networking.k8s.io, {from}}}], to: [{{group: '', kind: Service{to}}}]}}\n---\n"
        )
    };
    let base = workload("default", "web")
        + &workload("back", "api")
        + "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: api, namespace: back, port: 80}]}]}\n---\n";
    for (grant, problem) in [
        (String::new(), Some("RefNotPermitted")),
        (grant("kind: HTTPRoute, namespace: default", ""), None),
        (grant("kind: HTTPRoute, namespace: default", ", name: api"), None),
        (grant("kind: HTTPRoute, namespace: default", ", name: other"), Some("RefNotPermitted")),
        (grant("kind: HTTPRoute, namespace: other", ""), Some("RefNotPermitted")),
        (grant("kind: GRPCRoute, namespace: default", ""), Some("RefNotPermitted")),
    ] {
        let model = model(&format!("{base}{grant}"));
        assert_eq!(reasons(&model, Kind::HttpRoute, "r"), problem.as_slice(), "{grant}");
    }
}

fn tls_route(name: &str, created: &str, parents: &str, hostnames: &str, backend: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {{name: {name}, creationTimestamp: '{created}'}}\nspec: {{parentRefs: [{parents}], hostnames: [{hostnames}], rules: [{{backendRefs: [{backend}]}}]}}\n---\n"
    )
}

#[test]
fn a_server_name_belongs_to_the_oldest_tls_route() {
    let db = "{group: '', kind: Service, name: db}";
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
    let text =
        entry("a", "db", "", "addresses: [10.0.0.1], ports: [{port: 5432, protocol: tcp}, {port: 80, protocol: http}]")
            + &tls_route("young", new, db, "a.example.com, '*.example.com'", "{name: db, port: 5432}")
            + &tls_route(
                "old",
                old,
                &format!("{db}, {{group: '', kind: Service, name: db, port: 5432}}"),
                "a.example.com, a.example.com",
                "{name: gone, port: 1}",
            )
            + &tls_route("late", new, db, "a.example.com", "{name: db, port: 5432}")
            + &tls_route(
                "http",
                new,
                "{group: '', kind: Service, name: db, port: 80}",
                "b.example.com",
                "{name: db, port: 5432}",
            );
    let model = model(&text);
    let routes = &model.service("default", "db").unwrap().ports[&5432].routes;
    let names: Vec<_> = routes.tls.iter().map(|streams| streams.server_names.join(" ")).collect();
    assert_eq!(names, ["a.example.com", "*.example.com"]);
    assert!(!routes.tls[0].backends[0].found);
    // Both parent references of the same route name the port; its backend is missing for both.
    assert_eq!(reasons(&model, Kind::TlsRoute, "old"), ["BackendNotFound", "BackendNotFound"]);
    let key = Key::new(Kind::TlsRoute, "default", "young");
    let conditions: Vec<_> = model.conditions(&key).iter().map(|c| (c.condition_type, c.reason)).collect();
    assert!(
        conditions.contains(&("Accepted", "Accepted")) && conditions.contains(&("FullyApplied", "Conflicted")),
        "{conditions:?}"
    );
    assert_eq!(reasons(&model, Kind::TlsRoute, "late"), ["Conflicted"]);
    assert_eq!(reasons(&model, Kind::TlsRoute, "http"), ["UnsupportedProtocol"]);
    assert!(model.service("default", "db").unwrap().ports[&80].routes.is_empty());
}

#[test]
fn labels_that_nobody_wrote_are_not_invented_beside_those_that_somebody_did() {
    let text = "apiVersion: meshctl.dev/v1alpha1\nkind: WorkloadEntry\nmetadata: {name: a, labels: {app.kubernetes.io/version: v1}}\nspec: {service: s, version: v1, addresses: [10.0.0.1]}\n---\n".to_owned()
        + &service("x", "selector: {version: v1}, ports: [{port: 80}]")
        + &service("y", "selector: {app: s}, ports: [{port: 80}]");
    let model = model(&text);
    assert_eq!(model.service("default", "x").unwrap().workloads.len(), 0);
    assert_eq!(model.service("default", "y").unwrap().workloads.len(), 1);
}

fn asking(namespace: &str, name: &str, provider: &str) -> String {
    format!(
        "apiVersion: meshctl.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec: {{action: CUSTOM, provider: {{{provider}}}, rules: [{{}}]}}\n---\n"
    )
}

fn auth() -> String {
    entry(
        "auth-a",
        "auth",
        "",
        "addresses: [10.0.0.9], ports: [{port: 9191, protocol: grpc}, {port: 5432, protocol: tcp}]",
    )
}

/// Else anybody could take a service out of the mesh's policies by naming it.
#[test]
fn who_is_asked_is_not_behind_those_of_that_namespace_that_ask() {
    let text = auth()
        + &entry("web-a", "web", "", "addresses: [10.0.0.6], ports: [{port: 8080, protocol: http}]")
        + &entry("opa-a", "opa", "", "addresses: [10.0.0.7], ports: [{port: 9191, protocol: grpc}]")
        + "apiVersion: meshctl.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {namespace: default, name: no}\nspec: {action: DENY, rules: [{}]}\n---\n"
        + &asking("default", "ask", "backend: {name: auth, port: 9191}")
        + &asking("default", "ask-too", "backend: {name: auth, port: 9191}")
        + &asking("mesh-system", "ask", "backend: {name: opa, namespace: default, port: 9191}");
    let model = model(&text);
    let holding = |workload: &str, service: &str| {
        let all = model.authorizations("default", workload, service, "");
        all.iter().map(|it| it.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(holding("web-a", "web"), ["default/ask", "default/ask-too", "default/no", "mesh-system/ask"]);
    assert_eq!(holding("auth-a", "auth"), ["default/no", "mesh-system/ask"]);
    assert_eq!(holding("opa-a", "opa"), ["default/ask", "default/ask-too", "default/no"]);
}

#[test]
fn a_policy_that_asks_nobody_says_so() {
    for (provider, expected, says) in [
        ("backend: {name: auth, port: 9191}", None, ""),
        ("backend: {name: auth, port: 9999}", Some("BackendNotFound"), "refused"),
        ("backend: {name: auth, namespace: other, port: 9191}", Some("BackendNotFound"), "other/auth"),
        ("backend: {name: nobody, port: 9191}, failOpen: true", Some("BackendNotFound"), "let in"),
        ("backend: {name: auth, port: 5432}", Some("UnsupportedProtocol"), "refused"),
    ] {
        let model = model(&(auth() + &asking("default", "ask", provider)));
        assert_eq!(reasons(&model, Kind::AuthorizationPolicy, "ask"), Vec::from_iter(expected), "{provider}");
        let conditions = model.conditions(&Key::new(Kind::AuthorizationPolicy, "default", "ask"));
        let resolved = conditions.iter().find(|it| it.condition_type == "ResolvedRefs").unwrap();
        assert!(resolved.message.contains(says), "{}", resolved.message);
    }
}
