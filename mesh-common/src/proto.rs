//! The project's own protobuf types. Envoy's come from the `envoy-types` crate.

#![allow(clippy::all, clippy::unwrap_used)]

pub mod ca {
    tonic::include_proto!("mesh.ca.v1");
}
pub mod control {
    tonic::include_proto!("mesh.control.v1");
}
pub mod extensions {
    tonic::include_proto!("mesh.extensions.v1");
}
pub mod workload {
    tonic::include_proto!("mesh.workload.v1");
}
