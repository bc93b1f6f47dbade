//! ClusterLoadAssignment -> [`Endpoints`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::address::Address as AnyAddress;
use envoy_types::pb::envoy::config::core::v3::socket_address::{PortSpecifier, Protocol};
use envoy_types::pb::envoy::config::core::v3::{Address, HealthStatus, Locality, Metadata};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints};
use envoy_types::pb::google::protobuf::value::Kind;
use mesh_common::names::METADATA_WORKLOAD;
use mesh_common::proto::extensions::WorkloadInfo as PbWorkload;

use super::{At, Decoded, Rejected, each, unless, unpack};
use crate::config::{Endpoint, Endpoints, WorkloadInfo};

/// Filter metadata that `transport_socket_matches` of clusters look at, and what it says of endpoints in the mesh.
pub(super) const SOCKET_MATCH: &str = "envoy.transport_socket_match";
pub(super) const TLS_MODE: &str = "tlsMode";
pub(super) const TLS_MODE_MESH: &str = "mesh";

pub(super) fn endpoints(pb: ClusterLoadAssignment) -> Decoded<Endpoints> {
    if pb.cluster_name.is_empty() {
        return Err(Rejected::field("cluster_name", "must not be empty"));
    }
    let drops = pb.policy.as_ref().is_some_and(|it| !it.drop_overloads.is_empty());
    unless(drops, "policy.drop_overloads", "is not supported")?;
    let endpoints = each("endpoints", pb.endpoints, locality)?.into_iter().flatten().map(Arc::new).collect();
    Ok(Endpoints { name: pb.cluster_name, endpoints })
}

fn locality(pb: LocalityLbEndpoints) -> Decoded<Vec<Endpoint>> {
    unless(pb.lb_config.is_some(), "lb_config", "is not supported")?;
    unless(pb.priority > 128, "priority", "must not be more than 128")?;
    let locality = pb.locality.as_ref().map(locality_name).unwrap_or_default();
    let weight = pb.load_balancing_weight.as_ref().map_or(0, |it| it.value);
    each("lb_endpoints", pb.lb_endpoints, |endpoint| one(endpoint, &locality, weight, pb.priority))
}

fn locality_name(pb: &Locality) -> String {
    let name = [pb.region.as_str(), &pb.zone, &pb.sub_zone].join("/");
    name.trim_end_matches('/').to_owned()
}

fn one(pb: LbEndpoint, locality: &str, locality_weight: u32, priority: u32) -> Decoded<Endpoint> {
    let Some(HostIdentifier::Endpoint(host)) = &pb.host_identifier else {
        return Err(Rejected::field("endpoint", "is needed"));
    };
    let address = host.address.as_ref().ok_or_else(|| Rejected::field("endpoint.address", "is needed"))?;
    let address = socket_address(address).at("endpoint.address")?;
    let weight = pb.load_balancing_weight.as_ref().map_or(1, |it| it.value);
    unless(weight == 0, "load_balancing_weight", "must be at least 1")?;
    let health = HealthStatus::try_from(pb.health_status)
        .map_err(|_| Rejected::field("health_status", format_args!("{} is not known", pb.health_status)))?;
    let workload = match pb.metadata.as_ref().and_then(|it| it.typed_filter_metadata.get(METADATA_WORKLOAD)) {
        Some(any) => unpack::<PbWorkload>(any).transpose().at("metadata.typed_filter_metadata[\"mesh\"]")?,
        None => None,
    };
    Ok(Endpoint {
        address,
        weight,
        healthy: matches!(health, HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded),
        mesh: pb.metadata.as_ref().is_some_and(is_mesh),
        priority,
        locality: locality.to_owned(),
        locality_weight,
        workload: workload.map(|it| WorkloadInfo {
            workload: it.workload,
            namespace: it.namespace,
            service: it.service,
            version: it.version,
            identity: it.identity,
        }),
    })
}

fn is_mesh(metadata: &Metadata) -> bool {
    let mode = metadata.filter_metadata.get(SOCKET_MATCH).and_then(|it| it.fields.get(TLS_MODE));
    matches!(mode.and_then(|it| it.kind.as_ref()), Some(Kind::StringValue(mode)) if mode == TLS_MODE_MESH)
}

fn socket_address(pb: &Address) -> Decoded<SocketAddr> {
    let Some(AnyAddress::SocketAddress(socket)) = &pb.address else {
        return Err(Rejected::new("only socket addresses are supported"));
    };
    unless(socket.protocol != Protocol::Tcp as i32, "socket_address.protocol", "must be TCP")?;
    let ip: IpAddr = socket.address.parse().map_err(|_| {
        let reason = format!("{:?} is not an IP address; names are not resolved here", socket.address);
        Rejected::field("socket_address.address", reason)
    })?;
    match socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) if (1..=65535).contains(&port) => {
            Ok(SocketAddr::new(ip, u16::try_from(port).unwrap_or_default()))
        }
        _ => Err(Rejected::field("socket_address.port_value", "must be 1 to 65535")),
    }
}
