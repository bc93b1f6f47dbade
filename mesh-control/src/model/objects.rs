use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_common::resource::{
    AuthorizationPolicy, DirectResponse, FaultInjection, GrpcRoute, HttpRoute, Key, Kind, MeshConfig, Object,
    PeerAuthentication, ReferenceGrant, RequestAuthentication, Retries, Service, TcpRoute, Telemetry, TlsRoute,
    TrafficPolicy, UdpRoute, WorkloadEntry,
};

use super::policy::service_name;
use super::{Age, Name};

/// The objects by kind; routes with the oldest first.
#[derive(Default)]
pub(super) struct Sorted<'a> {
    pub services: Vec<&'a Service>,
    /// Services that only stand for a DNS name, in lower case and without the trailing dot.
    pub aliases: BTreeMap<Name, String>,
    pub http_routes: Vec<&'a HttpRoute>,
    pub grpc_routes: Vec<&'a GrpcRoute>,
    pub tcp_routes: Vec<&'a TcpRoute>,
    pub tls_routes: Vec<&'a TlsRoute>,
    pub udp_routes: Vec<&'a UdpRoute>,
    pub reference_grants: Vec<&'a ReferenceGrant>,
    pub traffic_policies: Vec<&'a TrafficPolicy>,
    pub fault_injections: Vec<&'a FaultInjection>,
    pub direct_responses: BTreeMap<Name, &'a DirectResponse>,
    pub peer_authentications: Vec<&'a PeerAuthentication>,
    pub request_authentications: Vec<&'a RequestAuthentication>,
    pub authorization_policies: Vec<&'a AuthorizationPolicy>,
    pub telemetries: Vec<&'a Telemetry>,
    pub workload_entries: Vec<&'a WorkloadEntry>,
    mesh_config: Option<&'a MeshConfig>,
}

impl<'a> Sorted<'a> {
    pub fn new(objects: &'a BTreeMap<Key, Arc<Object>>) -> Self {
        let mut sorted = Self::default();
        for object in objects.values() {
            match &**object {
                Object::Service(object) => match &object.spec.external_name {
                    Some(target) => {
                        let name = Name::new(object.metadata.namespace_or_default(), &object.metadata.name);
                        let target = target.strip_suffix('.').unwrap_or(target).to_ascii_lowercase();
                        sorted.aliases.insert(name, target);
                    }
                    None => sorted.services.push(object),
                },
                Object::HttpRoute(object) => sorted.http_routes.push(object),
                Object::GrpcRoute(object) => sorted.grpc_routes.push(object),
                Object::TcpRoute(object) => sorted.tcp_routes.push(object),
                Object::TlsRoute(object) => sorted.tls_routes.push(object),
                Object::UdpRoute(object) => sorted.udp_routes.push(object),
                Object::ReferenceGrant(object) => sorted.reference_grants.push(object),
                Object::TrafficPolicy(object) => sorted.traffic_policies.push(object),
                Object::FaultInjection(object) => sorted.fault_injections.push(object),
                Object::DirectResponse(object) => {
                    let name = Name::new(object.metadata.namespace_or_default(), &object.metadata.name);
                    sorted.direct_responses.insert(name, object);
                }
                Object::PeerAuthentication(object) => sorted.peer_authentications.push(object),
                Object::RequestAuthentication(object) => sorted.request_authentications.push(object),
                Object::AuthorizationPolicy(object) => sorted.authorization_policies.push(object),
                Object::Telemetry(object) => sorted.telemetries.push(object),
                Object::WorkloadEntry(object) => sorted.workload_entries.push(object),
                Object::MeshConfig(object) => sorted.mesh_config = Some(object),
            }
        }
        sorted.tcp_routes.sort_by_cached_key(|route| Age::of(&route.metadata));
        sorted.tls_routes.sort_by_cached_key(|route| Age::of(&route.metadata));
        sorted.udp_routes.sort_by_cached_key(|route| Age::of(&route.metadata));
        sorted
    }

    /// The mesh's defaults.
    pub fn retries(&self) -> Option<&'a Retries> {
        self.mesh_config.and_then(|config| config.spec.retries.as_ref())
    }

    pub fn trust_domain(&self) -> Option<&'a String> {
        self.mesh_config.and_then(|config| config.spec.trust_domain.as_ref())
    }

    /// Why nothing can be attached to the Service, or sent to it.
    pub fn no_service(&self, name: &Name) -> String {
        match self.aliases.get(name) {
            Some(target) => format!("the Service {name} (ExternalName) is only another name for {target}"),
            None => format!("there is no Service {name}"),
        }
    }

    /// Whether there is an object to attach a policy to, and the part of it.
    pub fn has(&self, services: &BTreeMap<Name, super::Service>, key: &Key, section: Option<&str>) -> bool {
        let named = |rule: Option<&String>| section.is_none_or(|section| rule.is_some_and(|name| name == section));
        match key.kind {
            Kind::Service => services
                .get(&service_name(key))
                .is_some_and(|service| section.is_none_or(|section| service.port_named(section).is_some())),
            Kind::HttpRoute => self
                .http_routes
                .iter()
                .filter(|route| is(&route.metadata, key))
                .any(|route| section.is_none() || route.spec.rules.iter().any(|rule| named(rule.name.as_ref()))),
            Kind::GrpcRoute => self
                .grpc_routes
                .iter()
                .filter(|route| is(&route.metadata, key))
                .any(|route| section.is_none() || route.spec.rules.iter().any(|rule| named(rule.name.as_ref()))),
            _ => false,
        }
    }
}

fn is(metadata: &mesh_common::resource::Metadata, key: &Key) -> bool {
    metadata.name == key.name && metadata.namespace_or_default() == key.namespace
}
