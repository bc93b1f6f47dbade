//! Generates the Rust types of `proto/` without needing `protoc` on the machine.

use std::path::{Path, PathBuf};

const FILES: [&str; 9] = [
    "mesh/ca/v1/ca.proto",
    "mesh/control/v1/control.proto",
    "mesh/extensions/v1/extensions.proto",
    "mesh/telemetry/v1/telemetry.proto",
    "mesh/workload/v1/workload.proto",
    "opentelemetry/proto/collector/trace/v1/trace_service.proto",
    "opentelemetry/proto/common/v1/common.proto",
    "opentelemetry/proto/resource/v1/resource.proto",
    "opentelemetry/proto/trace/v1/trace.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    for file in FILES {
        println!("cargo:rerun-if-changed={}", root.join(file).display());
    }
    let descriptors = protox::compile(FILES, [&root])?;
    // Ordered maps: equal values must have equal encodings, because versions are taken from them.
    let mut prost = tonic_prost_build::Config::new();
    prost.enable_type_names().btree_map(["."]);
    tonic_prost_build::configure().compile_fds_with_config(descriptors, prost)?;
    Ok(())
}
