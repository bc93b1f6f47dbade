mod balancing;
mod consistency;
mod envoy;
mod ext_authz;
mod faults;
mod inbound;
mod limits;
mod outbound;
mod precedence;
mod rules;
mod streams;
mod tracing;
mod udp;

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3::{Route as PbRoute, RouteAction, RouteConfiguration, route};
use envoy_types::pb::google::protobuf::Any;
use mesh_common::identity::Identity;
use mesh_common::resource::{Key, Object, parse_yaml};
use prost::Message;

use super::{ClientKind, ResourceType, Scope, resource};
use crate::model::{Model, Settings, build};

/// Two versions of `reviews`, in the mesh; `ratings` over gRPC; a database outside of the mesh; a service of unknown
/// protocol.
pub(super) const SHOP: &str = "
apiVersion: meshctl.dev/v1alpha1
kind: WorkloadEntry
metadata: {name: reviews-v1-a, labels: {meshctl.dev/registered: 'true'}}
spec: {service: reviews, version: v1, addresses: [10.0.0.1, 'fd01::1'], ports: [{port: 9080, protocol: http}], serviceAccount: reviews}
---
apiVersion: meshctl.dev/v1alpha1
kind: WorkloadEntry
metadata: {name: reviews-v2-a, labels: {meshctl.dev/registered: 'true'}}
spec: {service: reviews, version: v2, addresses: [10.0.0.2], ports: [{port: 9080, protocol: http}], serviceAccount: reviews, weight: 3, locality: eu/a}
---
apiVersion: meshctl.dev/v1alpha1
kind: WorkloadEntry
metadata: {name: ratings-a, labels: {meshctl.dev/registered: 'true'}}
spec: {service: ratings, addresses: [10.0.0.3], ports: [{port: 9081, protocol: grpc}], serviceAccount: ratings}
---
apiVersion: meshctl.dev/v1alpha1
kind: WorkloadEntry
metadata: {name: db-a}
spec: {service: db, addresses: [10.0.0.4], ports: [{port: 5432, protocol: tcp}]}
---
apiVersion: meshctl.dev/v1alpha1
kind: WorkloadEntry
metadata: {name: misc-a, labels: {meshctl.dev/registered: 'true'}}
spec: {service: misc, addresses: [10.0.0.5], ports: [{port: 7000}], serviceAccount: misc, healthy: false}
---
apiVersion: meshctl.dev/v1alpha1
kind: WorkloadEntry
metadata: {name: web-a, labels: {meshctl.dev/registered: 'true'}}
spec: {service: web, addresses: [10.0.0.6], ports: [{port: 8080, protocol: http}], serviceAccount: web}
";

pub(super) fn objects(text: &str) -> BTreeMap<Key, Arc<Object>> {
    let objects = parse_yaml("test", text).unwrap_or_else(|errors| panic!("{errors:#?}"));
    objects.into_iter().map(|object| (object.key(), Arc::new(object))).collect()
}

/// The shop, and more.
pub(super) fn shop(more: &str) -> Model {
    build(&objects(&format!("{SHOP}---\n{more}")), &settings(), &Default::default())
}

pub(super) fn settings() -> Settings {
    Settings { trust_domain: "mesh.local".to_owned() }
}

pub(super) fn scope(client: ClientKind) -> Scope {
    Scope {
        namespace: "default".to_owned(),
        identity: Identity::new("mesh.local", "default", "web").ok(),
        service: "web".to_owned(),
        version: String::new(),
        workload: "web-a".to_owned(),
        inbound_ports: Vec::new(),
        client,
        faults: client == ClientKind::Mesh,
        throttles: client == ClientKind::Mesh,
        peak_ewma: client == ClientKind::Mesh,
        limits: client == ClientKind::Mesh,
        audits: client != ClientKind::Grpc,
        asks: client != ClientKind::Grpc,
        locality: Default::default(),
    }
}

pub(super) fn mesh() -> Scope {
    scope(ClientKind::Mesh)
}

pub(super) fn decode<T: Message + Default>(any: &Any) -> T {
    T::decode(any.value.as_slice()).unwrap()
}

pub(super) fn get<T: Message + Default>(model: &Model, scope: &Scope, ty: ResourceType, name: &str) -> T {
    decode(&resource(model, scope, ty, name).unwrap_or_else(|| panic!("no {name}")))
}

/// Routes of the port `reviews:9080`.
pub(super) fn reviews(model: &Model, scope: &Scope) -> Vec<PbRoute> {
    let name = "reviews.default.svc.cluster.local:9080";
    let config: RouteConfiguration = get(model, scope, ResourceType::Route, name);
    assert_eq!(config.virtual_hosts.len(), 1);
    assert_eq!(config.virtual_hosts[0].domains, ["*"]);
    config.virtual_hosts.into_iter().flat_map(|host| host.routes).collect()
}

pub(super) fn forward(route: &PbRoute) -> &RouteAction {
    match &route.action {
        Some(route::Action::Route(action)) => action,
        other => panic!("{other:?}"),
    }
}

/// An HTTPRoute for `reviews` with these rules, indented as a list under `rules:`.
pub(super) fn http_route(name: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: reviews}}]\n  rules:\n{rules}\n---\n"
    )
}
