//! The project's own protobuf types, and those of OpenTelemetry that spans are sent in. Envoy's come from the `envoy-types`
//! crate.

#![allow(clippy::all, clippy::unwrap_used)]

pub use mesh::ca::v1 as ca;
pub use mesh::control::v1 as control;
pub use mesh::extensions::v1 as extensions;
pub use mesh::telemetry::v1 as telemetry;
pub use mesh::workload::v1 as workload;
pub use opentelemetry::proto as otlp;

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

mod opentelemetry {
    pub mod proto {
        pub mod common {
            pub mod v1 {
                tonic::include_proto!("opentelemetry.proto.common.v1");
            }
        }
        pub mod resource {
            pub mod v1 {
                tonic::include_proto!("opentelemetry.proto.resource.v1");
            }
        }
        pub mod trace {
            pub mod v1 {
                tonic::include_proto!("opentelemetry.proto.trace.v1");
            }
        }
        pub mod collector {
            pub mod trace {
                pub mod v1 {
                    tonic::include_proto!("opentelemetry.proto.collector.trace.v1");
                }
            }
        }
    }
}
