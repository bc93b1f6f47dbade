//! Asks a real Envoy whether it would take what it is sent, where there is one.

use std::path::PathBuf;
use std::process::Command;

use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::bootstrap::v3::bootstrap::{DynamicResources, StaticResources};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use envoy_types::pb::envoy::config::core::v3::{
    ApiConfigSource, ApiVersion, GrpcService, Node, api_config_source::ApiType,
};
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::CodecType;

use super::super::http::{Routes, manager};
use super::super::{build, cluster, listener};
use super::consistency::{all, full};
use super::*;

/// From `ENVOY`, else from the path.
fn envoy() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("ENVOY") {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH")?;
    let file = std::env::split_paths(&path).map(|folder| folder.join("envoy")).find(|file| file.is_file())?;
    // There are other programs of this name.
    let version = Command::new(&file).arg("--version").output().ok()?;
    String::from_utf8_lossy(&version.stdout).contains("BoringSSL").then_some(file)
}

/// The wildcard set as if it were a static bootstrap: routes in listeners, endpoints in clusters of their own.
fn bootstrap(model: &Model, scope: &Scope) -> Bootstrap {
    let grpc = GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name: "xds".to_owned(),
            ..EnvoyGrpc::default()
        })),
        ..GrpcService::default()
    };
    let ads = ApiConfigSource {
        api_type: ApiType::Grpc as i32,
        transport_api_version: ApiVersion::V3 as i32,
        grpc_services: vec![grpc],
        ..ApiConfigSource::default()
    };
    let static_cluster = |name: &str, assignment: ClusterLoadAssignment| Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        load_assignment: Some(assignment),
        ..Cluster::default()
    };
    let empty = ClusterLoadAssignment { cluster_name: "xds".to_owned(), ..ClusterLoadAssignment::default() };
    let xds = Cluster {
        typed_extension_protocol_options: cluster::cluster(
            model,
            scope,
            "inbound:1",
            &super::super::target::Target::Inbound(1, crate::model::Protocol::Http2),
        )
        .typed_extension_protocol_options,
        ..static_cluster("xds", empty)
    };
    let mut resources = StaticResources { clusters: vec![xds], ..StaticResources::default() };
    for (i, (ty, name, any)) in all(model, scope).into_iter().enumerate() {
        match ty {
            ResourceType::Listener => resources.listeners.push(decode(&any)),
            ResourceType::Cluster => resources.clusters.push(decode(&any)),
            ResourceType::Endpoints => resources.clusters.push(static_cluster(&format!("eds of {name}"), decode(&any))),
            ResourceType::Route => {
                let filter = manager(
                    Routes::Inline(Box::new(decode(&any))),
                    CodecType::Auto,
                    crate::compile::http::of_routes(),
                    crate::compile::http::Paths::Own,
                    None,
                );
                resources.listeners.push(Listener {
                    name: format!("rds of {name}"),
                    address: build::address("127.0.0.1".parse().unwrap(), 20_000 + i as u16),
                    filter_chains: vec![listener::chain("http", vec![filter])],
                    ..Listener::default()
                });
            }
            ResourceType::Name => {}
        }
    }
    Bootstrap {
        node: Some(Node { id: "n".to_owned(), cluster: "c".to_owned(), ..Node::default() }),
        static_resources: Some(resources),
        dynamic_resources: Some(DynamicResources { ads_config: Some(ads), ..DynamicResources::default() }),
        ..Bootstrap::default()
    }
}

#[test]
fn a_real_envoy_takes_all_of_it() {
    let Some(envoy) = envoy() else {
        eprintln!("skipped: no envoy in the path, nor in the variable ENVOY");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bootstrap.pb");
    let permissive = full();
    let strict = permissive.replace("mode: PERMISSIVE", "mode: STRICT");
    let traced = |port: &str| format!("{strict}\n---{}", super::tracing::with(port));
    let zipkin = traced("port: 9411, protocol: Zipkin");
    let traced = [traced("port: 4317"), traced("port: 9411, protocol: OtlpHttp"), zipkin];
    for text in [permissive, strict].into_iter().chain(traced) {
        let bytes = bootstrap(&shop(&text), &scope(ClientKind::Envoy)).encode_to_vec();
        std::fs::write(&file, bytes).unwrap();
        let run = Command::new(&envoy)
            .args(["--mode", "validate", "--log-level", "warn", "--config-path"])
            .arg(&file)
            .output();
        let output = run.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        for word in ["deprecated", "unknown"] {
            assert!(!said.to_lowercase().contains(word), "{said}");
        }
    }
}
