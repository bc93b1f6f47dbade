//! Tracing of connection managers, as stock Envoy has it too.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use envoy_types::pb::envoy::config::core::v3::http_uri::HttpUpstreamType;
use envoy_types::pb::envoy::config::core::v3::{GrpcService, HttpService, HttpUri};
use envoy_types::pb::envoy::config::trace::v3::tracing::Http;
use envoy_types::pb::envoy::config::trace::v3::tracing::http::ConfigType;
use envoy_types::pb::envoy::config::trace::v3::zipkin_config::{CollectorEndpointVersion, TraceContextOption};
use envoy_types::pb::envoy::config::trace::v3::{OpenTelemetryConfig, ZipkinConfig};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::Tracing as PbTracing;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::Any;
use mesh_common::names;
use mesh_common::resource::TracingProtocol;

use super::Scope;
use super::build::{any, boolean, duration};
use crate::model::{Model, Tracing};

/// How long a batch of spans may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Which way requests cross a proxy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Outbound,
    Inbound,
}

/// What an asker does about the traces of its requests; `None`: nothing.
pub(super) fn of(model: &Model, scope: &Scope, side: Side) -> Option<PbTracing> {
    let tracing = model.tracing(&scope.namespace, &scope.workload, &scope.service, &scope.version)?;
    let (name, config) = provider(&tracing, scope);
    Some(PbTracing {
        random_sampling: Some(Percent { value: tracing.percent }),
        // Each try is a span of its own beneath that of the request.
        spawn_upstream_span: boolean(side == Side::Outbound),
        provider: Some(Http { name: name.to_owned(), config_type: Some(ConfigType::TypedConfig(config)) }),
        ..PbTracing::default()
    })
}

fn provider(tracing: &Tracing, scope: &Scope) -> (&'static str, Any) {
    // Of a service's port, the cluster and the authority have the same name.
    let cluster = names::service_port(&tracing.service.name, &tracing.service.namespace, tracing.port);
    let account = scope.identity.as_ref().map(|identity| &identity.service_account);
    // Of one that serves nothing, the account has a name that does not change with each start.
    let service_name = Some(&scope.service).filter(|it| !it.is_empty()).or(account).unwrap_or(&scope.workload);
    let otlp = OpenTelemetryConfig { service_name: service_name.clone(), ..OpenTelemetryConfig::default() };
    match tracing.protocol {
        TracingProtocol::OtlpGrpc => {
            let envoy = EnvoyGrpc { cluster_name: cluster.clone(), authority: cluster, ..EnvoyGrpc::default() };
            let grpc_service = GrpcService {
                target_specifier: Some(TargetSpecifier::EnvoyGrpc(envoy)),
                timeout: duration(TIMEOUT),
                ..GrpcService::default()
            };
            (OTLP, any(OpenTelemetryConfig { grpc_service: Some(grpc_service), ..otlp }))
        }
        TracingProtocol::OtlpHttp => {
            let uri = HttpUri {
                uri: format!("http://{cluster}/v1/traces"),
                timeout: duration(TIMEOUT),
                http_upstream_type: Some(HttpUpstreamType::Cluster(cluster)),
            };
            let http_service = HttpService { http_uri: Some(uri), ..HttpService::default() };
            (OTLP, any(OpenTelemetryConfig { http_service: Some(http_service), ..otlp }))
        }
        TracingProtocol::Zipkin => {
            let zipkin = ZipkinConfig {
                collector_hostname: cluster.clone(),
                collector_cluster: cluster,
                collector_endpoint: "/api/v2/spans".to_owned(),
                collector_endpoint_version: CollectorEndpointVersion::HttpJson as i32,
                trace_id_128bit: true,
                // Both sides of a hop have spans of their own.
                shared_span_context: boolean(false),
                trace_context_option: TraceContextOption::UseB3WithW3cPropagation as i32,
                ..ZipkinConfig::default()
            };
            ("envoy.tracers.zipkin", any(zipkin))
        }
    }
}

const OTLP: &str = "envoy.tracers.opentelemetry";
