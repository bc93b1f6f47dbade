//! From the model to xDS resources, for one kind of asker: a pure function, so that equal askers share equal bytes.
//!
//! In: a [`Model`] and a [`Scope`]. Out: resources as `docs/reference/xds.md` describes them. A map with two keys
//! would have no stable encoding, so it is made by [`build::ordered`].

mod authorization;
mod balancing;
mod build;
mod cluster;
mod cors;
mod endpoint_health;
mod endpoints;
mod ext_authz;
mod fault;
mod hedge;
mod http;
mod inbound;
mod jwt;
mod limit;
mod listener;
mod locality;
mod matching;
mod name;
mod route;
mod scope;
mod target;
mod tls;
mod tokens;
mod tracing;
mod udp;

use std::net::SocketAddr;

use envoy_types::pb::google::protobuf::Any;
use mesh_common::names;

pub use scope::{ClientKind, ResourceType, Scope};

use crate::model::{Destination, Model, Port, Protocol, Service};
use build::{any, own_any};
use target::{Target, Upstream};

/// The resource of that name, if there is one for this asker.
pub fn resource(model: &Model, scope: &Scope, resource_type: ResourceType, name: &str) -> Option<Any> {
    match resource_type {
        ResourceType::Listener => listener::listener(model, scope, name).map(any),
        ResourceType::Route => {
            let upstream = Upstream::service_port(model, name)?;
            let http = upstream.port.protocol.may_be_http();
            http.then(|| any(route::of_port(model, scope, upstream.service, upstream.port)))
        }
        ResourceType::Cluster => {
            let target = Target::cluster(model, scope, name)?;
            Some(any(cluster::cluster(model, scope, name, &target)))
        }
        ResourceType::Endpoints => {
            let own = locality::of(model, scope);
            Some(any(endpoints::endpoints(name, &Upstream::cluster(model, name)?, own)))
        }
        ResourceType::Name => name::name(model, scope, name).map(|name| own_any(&name)),
    }
}

/// Names of all resources of a type that this asker may see: the answer to a wildcard.
pub fn names(model: &Model, scope: &Scope, resource_type: ResourceType) -> Vec<String> {
    let proxy = scope.client != ClientKind::Grpc;
    match resource_type {
        ResourceType::Listener if !proxy => api_listeners(model, scope),
        ResourceType::Listener => {
            let addresses = model.destinations().map(|(address, port)| names::outbound_listener(address, port));
            let datagrams = model.udp_destinations().map(|(address, port)| names::udp_listener(address, port));
            addresses
                .chain(datagrams)
                .chain([names::LISTENER_OUTBOUND.to_owned(), names::LISTENER_INBOUND.to_owned()])
                .collect()
        }
        ResourceType::Route => ports(model).filter(|(_, port)| port.protocol.may_be_http()).map(full).collect(),
        ResourceType::Cluster if proxy => {
            let own = inbound::ports(model, scope).into_iter().map(|(port, _)| names::inbound_cluster(port));
            upstreams(model).into_iter().chain(own).chain([names::CLUSTER_PASSTHROUGH.to_owned()]).collect()
        }
        ResourceType::Cluster | ResourceType::Endpoints if !proxy => ports(model).map(full).collect(),
        ResourceType::Cluster | ResourceType::Endpoints => upstreams(model),
        ResourceType::Name => name::names(model, scope),
    }
}

fn ports(model: &Model) -> impl Iterator<Item = (&Service, &Port)> {
    model.services().flat_map(|service| service.ports.values().map(move |port| (service, port)))
}

fn full((service, port): (&Service, &Port)) -> String {
    names::service_port(&service.name.name, &service.name.namespace, port.number)
}

/// Clusters with endpoints: of services, and of single workloads.
fn upstreams(model: &Model) -> Vec<String> {
    let mut clusters = Vec::new();
    for (service, port) in ports(model) {
        let name = full((service, port));
        let streams = port.protocol == Protocol::Detect
            || (port.protocol != Protocol::Tcp && model.takes_streams(&service.name, port.number));
        clusters.extend(streams.then(|| names::tcp_cluster(&name)));
        clusters.push(name);
    }
    let of_service = |service: &Service| {
        let cluster = |port: &Port| names::udp_cluster(&full((service, port)));
        service.udp_ports.values().map(cluster).collect::<Vec<_>>()
    };
    clusters.extend(model.services().flat_map(of_service));
    for (address, number) in model.destinations() {
        let Some(Destination::Workload { service, service_port, .. }) = model.destination(address, number) else {
            continue;
        };
        let Some((_, port)) = model.port(service, *service_port) else { continue };
        let name = names::direct_cluster(SocketAddr::new(address, number));
        clusters.extend((port.protocol == Protocol::Detect).then(|| names::tcp_cluster(&name)));
        clusters.push(name);
    }
    clusters
}

fn api_listeners(model: &Model, scope: &Scope) -> Vec<String> {
    let mut listeners = Vec::new();
    for (service, port) in ports(model).filter(|(_, port)| port.protocol.may_be_http()) {
        let name = &service.name;
        listeners.push(full((service, port)));
        listeners.push(format!("{}.{}:{}", name.name, name.namespace, port.number));
        if name.namespace == scope.namespace {
            listeners.push(format!("{}:{}", name.name, port.number));
        }
    }
    listeners
}

#[cfg(test)]
mod tests;
