//! Endpoints: the workloads behind a cluster.

use std::collections::BTreeMap;
use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3::{HealthStatus, Locality as PbLocality, Metadata};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as PbEndpoint, LbEndpoint, LocalityLbEndpoints,
};
use mesh_common::names;
use mesh_common::proto::extensions::WorkloadInfo;

use super::build::{address, one, own_any, uint32};
use super::cluster::mesh_mode;
use super::locality::{self, Locality, Place};
use super::target::Upstream;
use crate::model::{Called, Endpoint};

/// As a caller that is at `own` prefers them.
pub(super) fn endpoints(name: &str, upstream: &Upstream, own: &Locality) -> ClusterLoadAssignment {
    let mut localities: BTreeMap<[String; 3], Vec<LbEndpoint>> = BTreeMap::new();
    let endpoints = upstream.endpoints();
    let called = Called::of(endpoints.iter().map(|endpoint| &*endpoint.workload));
    for endpoint in endpoints {
        let workload = &endpoint.workload;
        // Who calls one workload wants that one, well or not.
        let called_anyway = upstream.only.is_some() || upstream.service.ready_or_not;
        let made = of_workload(&endpoint, upstream, called_anyway || called.includes(workload));
        localities.entry(endpoint.workload.locality.clone()).or_default().extend(made);
    }
    let sum = |all: &[LbEndpoint]| {
        let weights = all.iter().filter_map(|e| e.load_balancing_weight.as_ref()).map(|w| u64::from(w.value));
        weights.sum::<u64>()
    };
    let sums: BTreeMap<_, _> = localities.iter().map(|(locality, all)| (locality.clone(), sum(all))).collect();
    let preference = upstream.port.policy.locality.as_ref();
    let places = preference.map(|it| locality::places(own, it, &sums)).unwrap_or_default();
    let locality = |(locality, lb_endpoints): ([String; 3], Vec<LbEndpoint>)| {
        let Place { priority, weight } = places.get(&locality).copied().unwrap_or_default();
        let sum = u32::try_from(sum(&lb_endpoints)).unwrap_or(u32::MAX);
        let [region, zone, sub_zone] = locality;
        LocalityLbEndpoints {
            locality: Some(PbLocality { region, zone, sub_zone }),
            // A gRPC client leaves out a locality without a weight.
            load_balancing_weight: uint32(weight.unwrap_or(sum)),
            priority,
            lb_endpoints,
            ..LocalityLbEndpoints::default()
        }
    };
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: localities.into_iter().map(locality).collect(),
        ..ClusterLoadAssignment::default()
    }
}

fn of_workload(endpoint: &Endpoint, upstream: &Upstream, healthy: bool) -> Option<LbEndpoint> {
    let workload = &endpoint.workload;
    let health = if healthy { HealthStatus::Healthy } else { HealthStatus::Unhealthy };
    Some(LbEndpoint {
        host_identifier: host(upstream.address(endpoint)?, endpoint.port),
        health_status: health as i32,
        load_balancing_weight: uint32(workload.weight),
        metadata: Some(metadata(endpoint, upstream)),
    })
}

pub(super) fn host(ip: IpAddr, port: u16) -> Option<HostIdentifier> {
    Some(HostIdentifier::Endpoint(PbEndpoint { address: address(ip, port), ..PbEndpoint::default() }))
}

fn metadata(endpoint: &Endpoint, upstream: &Upstream) -> Metadata {
    let workload = &endpoint.workload;
    // Workloads of a platform do not say what they serve; who calls them by a service knows.
    let called = || upstream.service.version_of.as_ref().unwrap_or(&upstream.service.name.name);
    let info = WorkloadInfo {
        workload: workload.name.name.clone(),
        namespace: workload.name.namespace.clone(),
        service: if workload.service.is_empty() { called().clone() } else { workload.service.clone() },
        version: workload.version.clone(),
        identity: workload.identity.as_ref().map(ToString::to_string).unwrap_or_default(),
    };
    let identity = workload.identity_at(endpoint.port).filter(|_| !upstream.is_udp());
    let mode = identity.map(|_| one("envoy.transport_socket_match", mesh_mode()));
    Metadata {
        filter_metadata: mode.unwrap_or_default(),
        typed_filter_metadata: one(names::METADATA_WORKLOAD, own_any(&info)),
    }
}
