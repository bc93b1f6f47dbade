//! Responses as the two forms of the protocol write them.

use envoy_types::pb::envoy::config::core::v3::ControlPlane;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource};

use super::view::Push;

pub fn delta(push: Push) -> DeltaDiscoveryResponse {
    let resources = push.resources.into_iter().map(|(name, encoded)| Resource {
        name,
        version: encoded.version.clone(),
        resource: Some(encoded.any.clone()),
        ..Resource::default()
    });
    DeltaDiscoveryResponse {
        system_version_info: push.revision.to_string(),
        resources: resources.collect(),
        type_url: push.ty.url().to_owned(),
        removed_resources: push.removed,
        nonce: push.nonce,
        control_plane: Some(control_plane()),
        ..DeltaDiscoveryResponse::default()
    }
}

pub fn state_of_the_world(push: Push) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: push.version,
        resources: push.resources.into_iter().map(|(_, encoded)| encoded.any.clone()).collect(),
        type_url: push.ty.url().to_owned(),
        nonce: push.nonce,
        control_plane: Some(control_plane()),
        ..DiscoveryResponse::default()
    }
}

fn control_plane() -> ControlPlane {
    ControlPlane { identifier: concat!("mesh-control/", env!("CARGO_PKG_VERSION")).to_owned() }
}
