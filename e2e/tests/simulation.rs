//! Without any I/O: objects, compiled to the bytes that a proxy gets, decoded as the proxy does, and asked where a request goes. An
//! oracle written from Gateway API's text answers the same question another way.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mesh_common::identity::Identity;
use mesh_common::resource::parse_yaml;
use mesh_control::compile::{ClientKind, ResourceType, Scope, names, resource};
use mesh_control::model::{Model, Settings, build};
use mesh_proxy::config::decode::decode;
use mesh_proxy::config::{Action, Balancer, Cluster, NetworkFilter, RetryBudget, RouteSource, RouteTable};
use mesh_proxy::route::{Subject, find};
use mesh_proxy::snapshot::{Resource, Type};
use proptest::prelude::*;

fn model(yaml: &str) -> Model {
    let objects = parse_yaml("test", yaml).unwrap_or_else(|errors| panic!("{errors:?}\n{yaml}"));
    let objects: BTreeMap<_, _> = objects.into_iter().map(|o| (o.key(), Arc::new(o))).collect();
    build(&objects, &Settings { trust_domain: "mesh.local".to_owned() }, &Default::default())
}

fn web() -> Scope {
    Scope {
        namespace: "default".to_owned(),
        identity: Some(Identity::new("mesh.local", "default", "web").unwrap()),
        service: "web".to_owned(),
        version: "v1".to_owned(),
        workload: "web-1".to_owned(),
        inbound_ports: vec![],
        client: ClientKind::Mesh,
        faults: true,
        throttles: true,
        peak_ewma: true,
        limits: true,
        audits: true,
        asks: true,
        locality: Default::default(),
    }
}

/// What the proxy makes of a resource that the control plane compiled.
fn fetch(model: &Model, compiled: ResourceType, decoded: Type, name: &str) -> Option<Resource> {
    let any = resource(model, &web(), compiled, name)?;
    assert_eq!(any.type_url, decoded.url());
    Some(decode(decoded, &any.value).unwrap_or_else(|rejected| panic!("{name}: {rejected:?}")))
}

/// The routes that a connection to a service's virtual address meets.
fn routes(model: &Model, service: &str, port: u16) -> Arc<RouteTable> {
    let address = model.service("default", service).unwrap().virtual_addresses[0];
    let listener =
        fetch(model, ResourceType::Listener, Type::Listener, &mesh_common::names::outbound_listener(address, port));
    let Some(Resource::Listener(listener)) = listener else { panic!("no listener for {service}") };
    let http = listener.chains.iter().chain(&listener.default_chain).find_map(|chain| match &chain.filter {
        NetworkFilter::Http(manager) => Some(manager.clone()),
        NetworkFilter::Tcp(_) => None,
    });
    let RouteSource::Rds(name) = &http.unwrap().routes else { panic!("inline routes") };
    let Some(Resource::Routes(table)) = fetch(model, ResourceType::Route, Type::Routes, name) else {
        panic!("no routes {name}")
    };
    table
}

/// Addresses of the endpoints of the cluster that the first choice of a route names.
fn endpoints(model: &Model, cluster: &str) -> Vec<String> {
    assert!(
        matches!(fetch(model, ResourceType::Cluster, Type::Cluster, cluster), Some(Resource::Cluster(_))),
        "{cluster}"
    );
    let Some(Resource::Endpoints(found)) = fetch(model, ResourceType::Endpoints, Type::Endpoints, cluster) else {
        return vec![];
    };
    found.endpoints.iter().map(|e| e.address.to_string()).collect()
}

fn workload(service: &str, version: &str, address: u8) -> String {
    format!(
        "---\napiVersion: meshctl.dev/v1alpha1\nkind: WorkloadEntry\nmetadata: {{name: {service}-{version}, namespace: default}}\nspec: {{service: {service}, version: {version}, \
         addresses: [10.1.0.{address}], ports: [{{port: 9080, protocol: http}}], serviceAccount: {service}, mesh: true}}\n"
    )
}

#[derive(Clone, Debug)]
struct Match {
    exact: bool,
    path: &'static str,
    method: Option<Method>,
    headers: Vec<(&'static str, &'static str)>,
    query: Vec<(&'static str, &'static str)>,
}

#[derive(Clone, Debug)]
struct Asked {
    method: Method,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    query: Vec<(&'static str, &'static str)>,
}

impl Match {
    fn fits(&self, asked: &Asked) -> bool {
        let path = if self.exact {
            asked.path == self.path
        } else {
            let prefix = self.path.trim_end_matches('/');
            asked.path == prefix || asked.path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
        };
        path && self.method.as_ref().is_none_or(|m| *m == asked.method)
            && self.headers.iter().all(|h| asked.headers.contains(h))
            && self.query.iter().all(|q| asked.query.contains(q))
    }

    /// Gateway API, HTTPRouteRule.matches: "Exact", then the longest prefix, then a method, then most headers, then most query parameters.
    fn precedence(&self) -> (bool, usize, bool, usize, usize) {
        (self.exact, self.path.len(), self.method.is_some(), self.headers.len(), self.query.len())
    }

    fn yaml(&self) -> String {
        let kind = if self.exact { "Exact" } else { "PathPrefix" };
        let list = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(n, v)| format!("{{name: {n}, value: \"{v}\"}}")).collect::<Vec<_>>().join(", ")
        };
        let method = self.method.as_ref().map(|m| format!(", method: {m}")).unwrap_or_default();
        format!(
            "{{path: {{type: {kind}, value: {}}}{method}, headers: [{}], queryParams: [{}]}}",
            self.path,
            list(&self.headers),
            list(&self.query)
        )
    }
}

/// The cluster of a service's version, as the proxy decodes it.
fn cluster(model: &Model, name: &str) -> Arc<Cluster> {
    let found = fetch(model, ResourceType::Cluster, Type::Cluster, name);
    let Some(Resource::Cluster(cluster)) = found else { panic!("no cluster {name}") };
    cluster
}

#[test]
fn without_a_policy_there_is_a_retry_budget_and_with_one_it_arrives() {
    let workloads = workload("reviews", "v1", 1);
    let plain = cluster(&model(&workloads), "reviews-v1.default.svc.cluster.local:9080");
    assert_eq!(plain.limits.retry_budget, Some(RetryBudget { percent: 20, min_concurrency: 3 }));
    assert_eq!(plain.balancer, Balancer::LeastRequest);
    assert_eq!((plain.limits.max_connections, plain.limits.max_requests), (u32::MAX, u32::MAX));
    for (policy, balancer) in [
        ("RoundRobin", Balancer::RoundRobin),
        ("Random", Balancer::Random),
        ("LeastRequest", Balancer::LeastRequest),
        ("PeakEwma", Balancer::PeakEwma { decay: Duration::from_secs(10) }),
        ("RingHash, hash: [{header: x-user}]", Balancer::RingHash { min_size: 1024, max_size: 8 << 20 }),
        ("Maglev, hash: [{sourceAddress: true}]", Balancer::Maglev { size: 65_537 }),
    ] {
        let policy = format!(
            "{workloads}---\napiVersion: meshctl.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p, namespace: default}}\nspec: {{targetRefs: [{{kind: Service, name: reviews}}], \
             loadBalancer: {{policy: {policy}}}, retries: {{budget: {{percent: 50, minConcurrency: 9}}}}, timeouts: {{connect: 1s}}, connectionPool: {{maxConnections: 4}}}}\n"
        );
        let changed = cluster(&model(&policy), "reviews-v1.default.svc.cluster.local:9080");
        assert_eq!(changed.balancer, balancer);
        assert_eq!(changed.limits.retry_budget, Some(RetryBudget { percent: 50, min_concurrency: 9 }));
        assert_eq!((changed.connect_timeout, changed.limits.max_connections), (Duration::from_secs(1), 4));
    }
}

const HEADERS: [(&str, &str); 3] = [("x-one", "1"), ("x-one", "2"), ("x-two", "1")];
const QUERY: [(&str, &str); 2] = [("q", "1"), ("r", "1")];

/// At most one value for each name.
fn pairs(from: &'static [(&'static str, &'static str)]) -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    prop::collection::vec(prop::sample::select(from), 0..3).prop_map(|mut chosen| {
        chosen.sort_unstable();
        chosen.dedup_by_key(|(name, _)| *name);
        chosen
    })
}

fn method() -> impl Strategy<Value = Method> {
    prop::sample::select(vec![Method::GET, Method::POST])
}

fn matches() -> impl Strategy<Value = Match> {
    let path = prop::sample::select(vec!["/", "/a", "/a/b", "/ab", "/a/b/c"]);
    (any::<bool>(), path, prop::option::of(method()), pairs(&HEADERS), pairs(&QUERY))
        .prop_map(|(exact, path, method, headers, query)| Match { exact, path, method, headers, query })
}

fn asked() -> impl Strategy<Value = Asked> {
    let path = prop::sample::select(vec!["/", "/a", "/a/", "/a/b", "/a/b/", "/ab", "/a/bc", "/a/b/c", "/x"]);
    (method(), path, pairs(&HEADERS), pairs(&QUERY)).prop_map(|(method, path, headers, query)| Asked {
        method,
        path,
        headers,
        query,
    })
}

fn object(rules: &[Vec<Match>]) -> String {
    let mut yaml = workload("reviews", "v0", 1);
    let mut route = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: default}\nspec:\n  \
                     parentRefs: [{group: \"\", kind: Service, name: reviews}]\n  rules:\n"
        .to_owned();
    for (index, matches) in rules.iter().enumerate() {
        yaml += &workload("backend", &format!("v{index}"), 10 + u8::try_from(index).unwrap());
        let matches: Vec<_> = matches.iter().map(Match::yaml).collect();
        route += &format!(
            "  - matches: [{}]\n    backendRefs: [{{name: backend-v{index}, port: 9080}}]\n",
            matches.join(", ")
        );
    }
    yaml + &route
}

/// The index of the rule that Gateway API chooses.
fn oracle(rules: &[Vec<Match>], asked: &Asked) -> Option<usize> {
    let fitting = rules.iter().enumerate().flat_map(|(index, matches)| matches.iter().map(move |m| (index, m)));
    let fitting = fitting.filter(|(_, m)| m.fits(asked));
    // Of equals, the rule that comes first.
    fitting
        .reduce(|best, next| if next.1.precedence() > best.1.precedence() { next } else { best })
        .map(|(index, _)| index)
}

fn cluster_of(table: &RouteTable, asked: &Asked) -> Option<String> {
    let mut headers = HeaderMap::new();
    for (name, value) in &asked.headers {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let query = asked.query.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join("&");
    let subject = Subject {
        method: &asked.method,
        authority: "reviews:9080",
        path: asked.path,
        query: (!query.is_empty()).then_some(&query),
        headers: &headers,
        grpc: false,
    };
    match &find(table, &subject)?.action {
        Action::Forward(forward) => Some(forward.clusters.pick()?.cluster.to_string()),
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_request_goes_where_gateway_api_says(
        rules in prop::collection::vec(prop::collection::vec(matches(), 1..3), 1..5),
        requests in prop::collection::vec(asked(), 1..20),
    ) {
        let model = model(&object(&rules));
        let table = routes(&model, "reviews", 9080);
        for asked in &requests {
            let want = oracle(&rules, asked);
            let got = cluster_of(&table, asked);
            let name = want.map(|index| format!("backend-v{index}.default.svc.cluster.local:9080"));
            prop_assert_eq!(&got, &name, "{:?}", asked);
            if let (Some(cluster), Some(index)) = (got, want) {
                prop_assert_eq!(endpoints(&model, &cluster), vec![format!("10.1.0.{}:9080", 10 + index)]);
            }
        }
    }

    #[test]
    fn the_same_objects_give_the_same_bytes(rules in prop::collection::vec(prop::collection::vec(matches(), 1..3), 1..5)) {
        let yaml = object(&rules);
        let everything = |client: ClientKind| {
            let model = model(&yaml);
            let scope = Scope { client, faults: client == ClientKind::Mesh, ..web() };
            let mut all = BTreeMap::new();
            for ty in ResourceType::ALL {
                for name in names(&model, &scope, ty) {
                    let any = resource(&model, &scope, ty, &name).unwrap_or_else(|| panic!("{ty:?} {name} is listed but is not there"));
                    all.insert((ty, name), any.value);
                }
            }
            all
        };
        for client in [ClientKind::Mesh, ClientKind::Envoy] {
            let first = everything(client);
            prop_assert!(client == ClientKind::Mesh || first.len() > 4);
            prop_assert_eq!(first, everything(client));
        }
    }
}

#[test]
fn weights_reach_the_proxy_exactly() {
    let yaml = workload("reviews", "v1", 1)
        + &workload("reviews", "v2", 2)
        + "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: default}\nspec:\n  \
           parentRefs: [{group: \"\", kind: Service, name: reviews}]\n  rules:\n  \
           - backendRefs: [{name: reviews-v1, port: 9080, weight: 90}, {name: reviews-v2, port: 9080, weight: 10}]\n";
    let table = routes(&model(&yaml), "reviews", 9080);
    let asked = Asked { method: Method::GET, path: "/", headers: vec![], query: vec![] };
    let mut counts = BTreeMap::new();
    for _ in 0..1000 {
        *counts.entry(cluster_of(&table, &asked).unwrap()).or_insert(0) += 1;
    }
    let want = [("reviews-v1.default.svc.cluster.local:9080", 900), ("reviews-v2.default.svc.cluster.local:9080", 100)];
    assert_eq!(counts, want.map(|(name, count)| (name.to_owned(), count)).into());
}
