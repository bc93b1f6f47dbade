//! The project's own protobuf types. Envoy's come from the `envoy-types` crate.

#![allow(clippy::all, clippy::unwrap_used)]

pub use mesh::ca::v1 as ca;
pub use mesh::control::v1 as control;
pub use mesh::extensions::v1 as extensions;
pub use mesh::telemetry::v1 as telemetry;
pub use mesh::workload::v1 as workload;

/// Nested as the packages are, because what is generated refers to other packages by way of that.
mod mesh {
    pub mod ca {
        pub mod v1 {
            tonic::include_proto!("mesh.ca.v1");
        }
    }
    pub mod control {
        pub mod v1 {
            tonic::include_proto!("mesh.control.v1");
        }
    }
    pub mod extensions {
        pub mod v1 {
            tonic::include_proto!("mesh.extensions.v1");
        }
    }
    pub mod telemetry {
        pub mod v1 {
            tonic::include_proto!("mesh.telemetry.v1");
        }
    }
    pub mod workload {
        pub mod v1 {
            tonic::include_proto!("mesh.workload.v1");
        }
    }
}
