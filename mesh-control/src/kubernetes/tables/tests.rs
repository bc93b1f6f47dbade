use serde_json::{Value, json};

use mesh_common::names::kubernetes::CONTROLLER;

use super::super::{convert, standing};
use super::*;
use crate::model::{self, Called, Endpoint, Model, Name};

fn policy(version: u64, status: Value, mode: &str) -> Seen {
    let json = json!({
        "metadata": {"name": "p", "namespace": "shop", "resourceVersion": version.to_string(), "generation": 1},
        "spec": {"mode": mode}, "status": status
    });
    let object = serde_json::from_value(json).unwrap();
    let fact = convert::object(Kind::PeerAuthentication, "meshctl.dev/v1alpha1", &object);
    Seen { namespace: "shop".to_owned(), name: "p".to_owned(), resource_version: version, fact }
}

const KIND: Watched = Watched::Kind(Kind::PeerAuthentication);

#[test]
fn a_revision_is_new_when_something_means_something_else() {
    let mut tables = Tables::default();
    assert!(!tables.complete(&[KIND]));
    tables.apply(KIND, Change::All(vec![policy(5, json!(null), "STRICT")]));
    assert!(tables.complete(&[KIND]));
    assert_eq!(tables.objects().revision, 1);
    tables.apply(KIND, Change::Put(policy(6, json!({"conditions": []}), "STRICT")));
    let objects = tables.objects();
    assert_eq!((objects.revision, objects.seen[&Kind::PeerAuthentication]), (1, 6));
    let key = Key::new(Kind::PeerAuthentication, "shop", "p");
    assert_eq!(objects.objects[&key].metadata().resource_version.as_deref(), Some("6"));
    tables.apply(KIND, Change::Put(policy(7, json!({"conditions": []}), "PERMISSIVE")));
    assert_eq!(tables.objects().revision, 2);

    // What is refused stays what it was, and it shows.
    tables.apply(KIND, Change::Put(policy(8, json!(null), "MAYBE")));
    assert_eq!(tables.objects().revision, 2);
    assert!(tables.view().written[&key].refused[0].contains("MAYBE"));
    tables.apply(KIND, Change::All(Vec::new()));
    assert_eq!((tables.objects().revision, tables.view().written.len()), (3, 0));
}

#[test]
fn a_route_that_leaves_the_mesh_loses_what_the_mesh_said_of_it() {
    let route = |version: u64, parent: Value, status: Value| {
        let json = json!({
            "metadata": {"name": "r", "namespace": "shop", "resourceVersion": version.to_string(), "generation": version},
            "spec": {"parentRefs": [parent], "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]},
            "status": status
        });
        let object = serde_json::from_value(json).unwrap();
        let fact = convert::object(Kind::HttpRoute, Kind::HttpRoute.api_version(), &object);
        Change::Put(Seen { namespace: "shop".to_owned(), name: "r".to_owned(), resource_version: version, fact })
    };
    let kind = Watched::Kind(Kind::HttpRoute);
    let key = Key::new(Kind::HttpRoute, "shop", "r");
    let service = json!({"group": "", "kind": "Service", "name": "web"});
    let gateway = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "in"});
    let other = json!({"parentRef": gateway, "controllerName": "example.com/other", "conditions": []});
    let ours = json!({"parentRef": service, "controllerName": CONTROLLER, "conditions": []});
    let mut tables = Tables::default();
    tables.apply(kind, route(1, service, json!({"parents": []})));
    assert!(tables.objects().objects.contains_key(&key));

    tables.apply(kind, route(2, gateway.clone(), json!({"parents": [ours, other]})));
    assert!(!tables.objects().objects.contains_key(&key));
    let view = tables.view();
    let wanted = standing::wanted(Kind::HttpRoute, &view.written[&key], &Value::Null, jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(wanted, Some(json!({"parents": [other]})));
    // That is all that there was to say.
    tables.apply(kind, route(3, gateway, json!({"parents": [other]})));
    assert!(!tables.view().written.contains_key(&key));
}

const POD: Watched = Watched::Pod;
const SLICE: Watched = Watched::EndpointSlice;
const SERVICE: Watched = Watched::Kind(Kind::Service);

fn seen(namespace: &str, name: &str, fact: Option<Fact>) -> Change {
    Change::Put(Seen { namespace: namespace.to_owned(), name: name.to_owned(), resource_version: 1, fact })
}

fn from<T: serde::de::DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).unwrap()
}

/// A pod that has a proxy, of the service account `db`.
fn pod(namespace: &str, name: &str, address: &str, change: impl Fn(&mut Value)) -> Change {
    let mut pod = json!({
        "metadata": {
            "name": name, "namespace": namespace,
            "labels": {"app": "db", "version": "v1", "meshctl.dev/proxy": "true"},
        },
        "spec": {
            "nodeName": "node1", "serviceAccountName": "db",
            "containers": [{"name": "db", "ports": [{"containerPort": 5432, "name": "postgres"}]}],
        },
        "status": {
            "phase": "Running", "podIPs": [{"ip": address}], "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    change(&mut pod);
    seen(namespace, name, convert::pod(&from(pod)))
}

/// The Service `leader` without a selector.
fn leader(namespace: &str) -> Change {
    let service = json!({
        "metadata": {"name": "leader", "namespace": namespace},
        "spec": {"clusterIP": "None", "ports": [{"name": "postgres", "port": 5432}]},
    });
    seen(namespace, "leader", convert::service(&from(service)))
}

fn slice(namespace: &str, endpoints: Value) -> Change {
    let slice = json!({
        "metadata": {"name": "leader-1", "namespace": namespace, "labels": {"kubernetes.io/service-name": "leader"}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "postgres", "port": 5432}],
    });
    seen(namespace, "leader-1", convert::slice(&from(slice)))
}

fn tables(changes: Vec<(Watched, Change)>) -> Tables {
    let mut tables = Tables::default();
    changes.into_iter().for_each(|(watched, change)| tables.apply(watched, change));
    tables
}

fn model(tables: &mut Tables) -> Model {
    let settings = model::Settings { trust_domain: "mesh.local".to_owned() };
    model::build(&tables.objects().objects, &settings, &model::Addresses::default())
}

fn endpoints(model: &Model, namespace: &str) -> Vec<Endpoint> {
    model.service(namespace, "leader").unwrap().ports[&5432].endpoints.clone()
}

fn identity(endpoint: &Endpoint) -> Option<String> {
    endpoint.identity().map(ToString::to_string)
}

const DB: &str = "spiffe://mesh.local/ns/shop/sa/db";

#[test]
fn an_endpoint_that_somebody_wrote_is_the_pod_that_has_its_address() {
    let mut tables = tables(vec![
        (POD, pod("shop", "db-0", "10.0.0.1", |_| ())),
        (POD, pod("shop", "db-1", "10.0.0.2", |_| ())),
        (SERVICE, leader("shop")),
        (SLICE, slice("shop", json!([{"addresses": ["10.0.0.1"]}, {"addresses": ["192.0.2.1"], "zone": "a"}]))),
    ]);
    let model = model(&mut tables);
    let endpoints = endpoints(&model, "shop");
    let [foreign, own] = endpoints.as_slice() else { panic!("{endpoints:?}") };
    assert_eq!((own.workload.name.clone(), identity(own)), (Name::new("shop", "db-0"), Some(DB.to_owned())));
    assert_eq!((own.workload.version.as_str(), own.workload.healthy, own.port), ("v1", true, 5432));
    assert_eq!((foreign.workload.name.name.as_str(), identity(foreign)), ("leader-1-192-0-2-1", None));
    assert_eq!(foreign.workload.locality, ["", "a", ""]);

    // What is said of the Service holds for the pod, and nobody else has the pod's address.
    assert!(model.serves(&Name::new("shop", "db-0")) && !model.serves(&Name::new("shop", "db-1")));
    assert_eq!(model.target_ports(&Name::new("shop", "db-0")).len(), 1);
    let (at, ..) = model.unnamed("10.0.0.1".parse().unwrap(), 9999).unwrap();
    assert_eq!(at.name.name, "db-0");
    assert_eq!(model.workloads().count(), 3);
    assert_eq!(model.service("shop", "leader-v1").unwrap().workloads.len(), 1);
}

#[test]
fn whoever_writes_an_endpoint_says_whether_it_is_ready_and_the_pod_whether_it_ends() {
    let ending = |pod: &mut Value| pod["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z".into();
    let unready = |pod: &mut Value| pod["status"]["conditions"][0]["status"] = "False".into();
    let mut tables = tables(vec![
        (POD, pod("shop", "db-0", "10.0.0.1", unready)),
        (POD, pod("shop", "db-1", "10.0.0.2", ending)),
        (POD, pod("shop", "db-2", "10.0.0.3", |_| ())),
        (SERVICE, leader("shop")),
        (
            SLICE,
            slice(
                "shop",
                json!([
                    {"addresses": ["10.0.0.1"], "conditions": {"ready": true}}, {"addresses": ["10.0.0.2"]},
                    {"addresses": ["10.0.0.3"], "conditions": {"ready": false}},
                ]),
            ),
        ),
    ]);
    let endpoints = endpoints(&model(&mut tables), "shop");
    let standing: Vec<_> = endpoints.iter().map(|it| (it.workload.healthy, it.workload.lingers)).collect();
    assert_eq!(standing, [(true, false), (false, true), (false, false)]);
}

#[test]
fn pods_whose_nodes_are_not_heard_of_are_called_while_there_is_nobody_else() {
    let silent = |pod: &mut Value| {
        pod["status"]["conditions"] =
            json!([{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]);
    };
    let broken = |pod: &mut Value| pod["status"]["conditions"][0]["status"] = "False".into();
    let service = json!({
        "metadata": {"name": "leader", "namespace": "shop"},
        "spec": {"selector": {"app": "db"}, "ports": [{"name": "postgres", "port": 5432}]},
    });
    let mut tables = tables(vec![
        (POD, pod("shop", "db-0", "10.0.0.1", silent)),
        (POD, pod("shop", "db-1", "10.0.0.2", silent)),
        (POD, pod("shop", "db-2", "10.0.0.3", broken)),
        (SERVICE, seen("shop", "leader", convert::service(&from(service)))),
    ]);
    let called = |tables: &mut Tables| {
        let endpoints = endpoints(&model(tables), "shop");
        let called = Called::of(endpoints.iter().map(|it| &*it.workload));
        endpoints.iter().map(|it| called.includes(&it.workload)).collect::<Vec<_>>()
    };
    assert_eq!(called(&mut tables), [true, true, false]);
    tables.apply(POD, pod("shop", "db-2", "10.0.0.3", |_| ()));
    assert_eq!(called(&mut tables), [false, false, true]);
}

#[test]
fn a_pod_is_found_by_what_an_endpoint_says_it_is_where_the_address_does_not_tell() {
    let said = |name: &str| json!({"kind": "Pod", "name": name, "namespace": "shop"});
    let on_node = |pod: &mut Value| pod["spec"]["hostNetwork"] = true.into();
    let found = |endpoint: Value| {
        let mut tables = tables(vec![
            (POD, pod("shop", "db-0", "10.0.0.1", |_| ())),
            (POD, pod("shop", "db-1", "10.0.0.9", |_| ())),
            (POD, pod("shop", "db-2", "10.0.0.9", |_| ())),
            (POD, pod("shop", "agent", "172.16.0.2", on_node)),
            (SERVICE, leader("shop")),
            (SLICE, slice("shop", json!([endpoint]))),
        ]);
        let endpoints = endpoints(&model(&mut tables), "shop");
        (endpoints[0].workload.name.name.clone(), identity(&endpoints[0]).is_some())
    };
    let of = |name: &str, secured: bool| (name.to_owned(), secured);
    // A second network of the pod.
    assert_eq!(found(json!({"addresses": ["10.9.0.1"], "targetRef": said("db-0")})), of("db-0", true));
    // The one that answers there is meant, and no other.
    assert_eq!(found(json!({"addresses": ["10.0.0.1"], "targetRef": said("db-1")})), of("db-0", true));
    assert_eq!(found(json!({"addresses": ["10.0.0.9"], "targetRef": said("db-2")})), of("db-2", true));
    assert_eq!(found(json!({"addresses": ["10.0.0.9"]})), of("leader-1-10-0-0-9", false));
    // Those on their node's network have no proxy.
    assert_eq!(
        found(json!({"addresses": ["172.16.0.2"], "targetRef": said("agent")})),
        of("leader-1-172-16-0-2", false)
    );
    assert_eq!(found(json!({"addresses": ["10.9.0.1"], "targetRef": said("gone")})), of("leader-1-10-9-0-1", false));
}

#[test]
fn a_service_of_another_namespace_calls_the_pod_as_who_it_is_and_says_nothing_about_it() {
    let mut tables = tables(vec![
        (POD, pod("shop", "db-0", "10.0.0.1", |_| ())),
        (SERVICE, leader("apps")),
        (SLICE, slice("apps", json!([{"addresses": ["10.0.0.1"]}]))),
    ]);
    let model = model(&mut tables);
    assert_eq!(identity(&endpoints(&model, "apps")[0]).as_deref(), Some(DB));
    assert!(!model.serves(&Name::new("shop", "db-0")));

    // And calls of the pod's own address are its own namespace's to route.
    tables.apply(SERVICE, leader("shop"));
    tables.apply(SLICE, slice("shop", json!([{"addresses": ["10.0.0.1"]}])));
    let model = self::model(&mut tables);
    let expected = model::Destination::Workload {
        workload: Name::new("shop", "db-0"),
        service: Name::new("shop", "leader"),
        service_port: 5432,
    };
    assert_eq!(model.destination("10.0.0.1".parse().unwrap(), 5432), Some(&expected));
}

#[test]
fn endpoints_come_and_go_with_their_service_and_its_selector() {
    let mut tables = tables(vec![(SLICE, slice("shop", json!([{"addresses": ["192.0.2.1"]}])))]);
    assert_eq!(tables.objects().objects.len(), 0);
    tables.apply(SERVICE, leader("shop"));
    assert_eq!(tables.objects().objects.len(), 2);
    let chosen = json!({
        "metadata": {"name": "leader", "namespace": "shop"},
        "spec": {"selector": {"app": "db"}, "ports": [{"name": "postgres", "port": 5432}]},
    });
    tables.apply(SERVICE, seen("shop", "leader", convert::service(&from(chosen))));
    assert_eq!(tables.objects().objects.len(), 1);
}

#[test]
fn a_port_is_found_by_any_of_its_names() {
    let names = |pod: &mut Value| {
        pod["spec"]["containers"][0]["ports"] =
            json!([{"containerPort": 80, "name": "a"}, {"containerPort": 80, "name": "b"}]);
    };
    let ports = [(1, "a"), (2, "b"), (3, "c")];
    let ports = ports.map(|(port, target)| json!({"name": format!("p{port}"), "port": port, "targetPort": target}));
    let service = json!({
        "metadata": {"name": "db", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.9", "selector": {"app": "db"}, "ports": ports},
    });
    let mut tables = tables(vec![
        (POD, pod("shop", "db-0", "10.0.0.1", names)),
        (SERVICE, seen("shop", "db", convert::service(&from(service)))),
    ]);
    let model = model(&mut tables);
    let ports = model.service("shop", "db").unwrap().ports.values();
    assert_eq!(ports.map(|p| p.endpoints.first().map(|e| e.port)).collect::<Vec<_>>(), [Some(80), Some(80), None]);
}

/// What becomes of a Service whose pods have these versions: its services with their workloads' versions, and what is said.
fn of_versions(versions: &[&str]) -> (Vec<(String, Vec<String>)>, Vec<String>) {
    let service = json!({
        "metadata": {"name": "db", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.9", "selector": {"app": "db"}, "ports": [{"port": 5432}]},
    });
    let mut tables = tables(vec![(SERVICE, seen("shop", "db", convert::service(&from(service))))]);
    for (index, version) in versions.iter().enumerate() {
        let labelled = |pod: &mut Value| {
            pod["metadata"]["labels"] = json!({"app": "db", "app.kubernetes.io/version": version});
        };
        tables.apply(POD, pod("shop", &format!("db-{index}"), &format!("10.0.0.{index}"), labelled));
    }
    let model = model(&mut tables);
    let versions = |of: &model::Service| of.workloads.iter().map(|w| w.version.clone()).collect();
    let services = model.services().map(|service| (service.name.name.clone(), versions(service))).collect();
    (services, model.warnings(&Key::new(Kind::Service, "shop", "db")))
}

#[test]
fn a_version_is_in_a_name_as_names_can_be() {
    let services = |given: &[(&str, &[&str])]| -> Vec<(String, Vec<String>)> {
        let owned = |(name, versions): &(&str, &[&str])| {
            ((*name).to_owned(), versions.iter().map(|version| (*version).to_owned()).collect())
        };
        given.iter().map(owned).collect()
    };
    let (clear, said) = of_versions(&["1.2.3", "1.2.4-RC_1"]);
    let expected: &[(&str, &[&str])] =
        &[("db", &["1.2.3", "1.2.4-RC_1"]), ("db-1-2-3", &["1.2.3"]), ("db-1-2-4-rc-1", &["1.2.4-RC_1"])];
    assert_eq!((clear, said), (services(expected), Vec::new()));

    // Of those that make the same name, the one that is spelled like it has it; and a name may be too long.
    let long = "x".repeat(63);
    let (unclear, said) = of_versions(&["V1", "v1", &long]);
    assert_eq!(unclear, services(&[("db", &["V1", "v1", &long]), ("db-v1", &["v1"])]));
    assert!(said.iter().any(|text| text.contains("v1 and V1 make the same backend db-v1")), "{said:?}");
    assert!(said.len() == 2 && said.iter().any(|text| text.contains(&format!("{long} makes no backend"))), "{said:?}");
    // And otherwise the first.
    let (unclear, said) = of_versions(&["1_2", "1.2"]);
    assert_eq!(unclear, services(&[("db", &["1_2", "1.2"]), ("db-1-2", &["1.2"])]));
    assert_eq!(said.len(), 1);
}

fn node(name: &str, labels: Value) -> Change {
    seen("", name, convert::node(&from(json!({"metadata": {"name": name, "labels": labels}}))))
}

fn locality(tables: &mut Tables, name: &str) -> [String; 3] {
    model(tables).workload("shop", name).unwrap().locality.clone()
}

#[test]
fn a_pod_is_where_its_node_is() {
    const NODE: Watched = Watched::Node;
    let zone = json!({"topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": "eu-a"});
    let mut tables = tables(vec![(POD, pod("shop", "db-0", "10.0.0.1", |_| ()))]);
    assert_eq!(locality(&mut tables, "db-0"), ["", "", ""]);
    let before = tables.objects().revision;
    tables.apply(NODE, node("node2", zone.clone()));
    assert_eq!(tables.objects().revision, before);
    tables.apply(NODE, node("node1", zone));
    assert_eq!(locality(&mut tables, "db-0"), ["eu", "eu-a", ""]);
    assert_eq!(tables.objects().revision, before + 1);

    // An endpoint that is this pod is there as well, whatever zone was written down.
    tables.apply(SERVICE, leader("shop"));
    tables.apply(SLICE, slice("shop", json!([{"addresses": ["10.0.0.1"], "zone": "x"}])));
    assert_eq!(endpoints(&model(&mut tables), "shop")[0].workload.locality, ["eu", "eu-a", ""]);

    // The same of a pod whose name somebody has given to an entry.
    let written = json!({
        "metadata": {"name": "db-0", "namespace": "shop"},
        "spec": {"addresses": ["192.0.2.1"], "service": "leader", "locality": "us"},
    });
    let fact = convert::object(Kind::WorkloadEntry, "meshctl.dev/v1alpha1", &from(written));
    tables.apply(Watched::Kind(Kind::WorkloadEntry), seen("shop", "db-0", fact));
    assert_eq!(locality(&mut tables, "db-0"), ["eu", "eu-a", ""]);
    assert_eq!(model(&mut tables).workload("shop", "db-0").unwrap().addresses[0].to_string(), "10.0.0.1");

    tables.apply(NODE, node("node1", json!({})));
    assert_eq!(locality(&mut tables, "db-0"), ["", "", ""]);
}

#[test]
fn service_accounts_are_known_once_all_of_them_are() {
    const ACCOUNT: Watched = Watched::ServiceAccount;
    let account =
        |name: &str| Seen { namespace: "shop".to_owned(), name: name.to_owned(), resource_version: 1, fact: None };
    let mut tables = Tables::default();
    let mut now = |change: Option<Change>| {
        change.into_iter().for_each(|change| tables.apply(ACCOUNT, change));
        let objects = tables.objects();
        let names =
            |accounts: &Arc<Accounts>| accounts.0.iter().map(|it| it.name.clone()).collect::<Vec<_>>().join(" ");
        (objects.revision, objects.accounts.as_ref().map(names))
    };
    let known = |names: &str| Some(names.to_owned());
    assert_eq!(now(None), (1, None));
    assert_eq!(now(Some(Change::All(vec![account("web")]))), (2, known("web")));
    assert_eq!(now(Some(Change::Put(account("db")))), (3, known("db web")));
    // A change of one that is known means nothing.
    assert_eq!(now(Some(Change::Put(account("db")))), (3, known("db web")));
    assert_eq!(now(Some(Change::Gone(account("web")))), (4, known("db")));
    assert_eq!(now(Some(Change::All(vec![account("db")]))), (4, known("db")));
    assert_eq!(now(Some(Change::All(Vec::new()))), (5, known("")));
}
