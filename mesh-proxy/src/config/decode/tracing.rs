//! Tracing of an HTTP connection manager -> [`Tracing`].

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::grpc_service::TargetSpecifier;
use envoy_types::pb::envoy::config::core::v3::http_uri::HttpUpstreamType;
use envoy_types::pb::envoy::config::core::v3::{GrpcService, HttpService};
use envoy_types::pb::envoy::config::trace::v3::zipkin_config::CollectorEndpointVersion;
use envoy_types::pb::envoy::config::trace::v3::{OpenTelemetryConfig, ZipkinConfig, tracing::http::ConfigType};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::Tracing as PbTracing;
use http::Uri;
use http::uri::{Authority, PathAndQuery};

use super::{At, Decoded, Rejected, unless, unpack};
use crate::config::{Provider, Sampling, TraceProtocol, Tracing};

/// `None` for a provider that this proxy does not know: whatever becomes of traces, requests go their way.
pub(super) fn tracing(pb: PbTracing) -> Decoded<Option<Tracing>> {
    let Some(ConfigType::TypedConfig(any)) = pb.provider.and_then(|it| it.config_type) else { return Ok(None) };
    let provider = if let Some(pb) = unpack::<OpenTelemetryConfig>(&any) {
        pb.and_then(open_telemetry)
    } else if let Some(pb) = unpack::<ZipkinConfig>(&any) {
        pb.and_then(zipkin)
    } else {
        return Ok(None);
    };
    let provider = Arc::new(provider.at("provider.typed_config")?);
    let percent = pb.random_sampling.map_or(100.0, |it| it.value);
    unless(!(0.0..=100.0).contains(&percent), "random_sampling", "is from 0 to 100")?;
    for (field, limit) in [("client_sampling", &pb.client_sampling), ("overall_sampling", &pb.overall_sampling)] {
        unless(limit.as_ref().is_some_and(|it| it.value < 100.0), field, "less than 100 is not supported")?;
    }
    Ok(Some(Tracing { sampling: Sampling::new(percent / 100.0), provider }))
}

fn open_telemetry(pb: OpenTelemetryConfig) -> Decoded<Provider> {
    unless(pb.sampler.is_some(), "sampler", "is not supported")?;
    unless(pb.exporter.is_some(), "exporter", "is not supported")?;
    let (cluster, authority, protocol) = match (pb.grpc_service, pb.http_service) {
        (Some(grpc), None) => by_grpc(grpc).at("grpc_service")?,
        (None, Some(http)) => by_http(http).at("http_service")?,
        _ => return Err(Rejected::new("one of grpc_service and http_service is needed")),
    };
    Ok(Provider { cluster, authority, protocol, service_name: pb.service_name })
}

fn by_grpc(pb: GrpcService) -> Decoded<(String, Authority, TraceProtocol)> {
    unless(!pb.initial_metadata.is_empty(), "initial_metadata", "is not supported")?;
    let Some(TargetSpecifier::EnvoyGrpc(envoy)) = pb.target_specifier else {
        return Err(Rejected::field("target_specifier", "only envoy_grpc is supported"));
    };
    unless(envoy.cluster_name.is_empty(), "envoy_grpc.cluster_name", "must not be empty")?;
    let host = authority(&envoy.authority, &envoy.cluster_name).at("envoy_grpc.authority")?;
    Ok((envoy.cluster_name, host, TraceProtocol::OtlpGrpc))
}

fn by_http(pb: HttpService) -> Decoded<(String, Authority, TraceProtocol)> {
    unless(!pb.request_headers_to_add.is_empty(), "request_headers_to_add", "is not supported")?;
    let pb = pb.http_uri.ok_or_else(|| Rejected::field("http_uri", "is needed"))?;
    let Some(HttpUpstreamType::Cluster(cluster)) =
        pb.http_upstream_type.filter(|HttpUpstreamType::Cluster(it)| !it.is_empty())
    else {
        return Err(Rejected::field("http_uri.cluster", "must not be empty"));
    };
    let uri: Uri = pb.uri.parse().map_err(|_| Rejected::field("http_uri.uri", format!("{:?} is not a URI", pb.uri)))?;
    let host = uri.authority().cloned().ok_or_else(|| Rejected::field("http_uri.uri", "has no host"))?;
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    Ok((cluster, host, TraceProtocol::OtlpHttp(path)))
}

fn zipkin(pb: ZipkinConfig) -> Decoded<Provider> {
    unless(pb.collector_cluster.is_empty(), "collector_cluster", "must not be empty")?;
    let json = pb.collector_endpoint_version == CollectorEndpointVersion::HttpJson as i32;
    unless(!json, "collector_endpoint_version", "only HTTP_JSON is supported")?;
    let authority = authority(&pb.collector_hostname, &pb.collector_cluster).at("collector_hostname")?;
    let path = pb.collector_endpoint.parse();
    let path = path.ok().filter(|path: &PathAndQuery| path.as_str().starts_with('/'));
    let path = path.ok_or_else(|| Rejected::field("collector_endpoint", "is not a path"))?;
    let protocol = TraceProtocol::Zipkin(path);
    Ok(Provider { cluster: pb.collector_cluster, authority, protocol, service_name: String::new() })
}

/// Who is asked, by name; by default the cluster's, as Envoy has it.
fn authority(name: &str, cluster: &str) -> Decoded<Authority> {
    let text = if name.is_empty() { cluster } else { name };
    text.parse().map_err(|_| Rejected::new(format_args!("{text:?} is not a host")))
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::HttpUri;
    use envoy_types::pb::envoy::config::core::v3::grpc_service::EnvoyGrpc;
    use envoy_types::pb::envoy::config::trace::v3::tracing::Http;
    use envoy_types::pb::envoy::r#type::v3::Percent;
    use envoy_types::pb::google::protobuf::Any;
    use envoy_types::util::pack_any;

    use super::*;
    use crate::trace::TraceId;

    fn to(any: Any) -> PbTracing {
        let config_type = Some(ConfigType::TypedConfig(any));
        PbTracing { provider: Some(Http { name: "x".to_owned(), config_type }), ..PbTracing::default() }
    }

    fn grpc(cluster: &str) -> OpenTelemetryConfig {
        let envoy = EnvoyGrpc { cluster_name: cluster.to_owned(), ..EnvoyGrpc::default() };
        let target_specifier = Some(TargetSpecifier::EnvoyGrpc(envoy));
        OpenTelemetryConfig {
            grpc_service: Some(GrpcService { target_specifier, ..GrpcService::default() }),
            service_name: "web".to_owned(),
            ..OpenTelemetryConfig::default()
        }
    }

    fn http(uri: &str) -> OpenTelemetryConfig {
        let uri = HttpUri {
            uri: uri.to_owned(),
            http_upstream_type: Some(HttpUpstreamType::Cluster("c".to_owned())),
            ..HttpUri::default()
        };
        OpenTelemetryConfig {
            http_service: Some(HttpService { http_uri: Some(uri), ..HttpService::default() }),
            ..OpenTelemetryConfig::default()
        }
    }

    fn json() -> ZipkinConfig {
        ZipkinConfig {
            collector_cluster: "c".to_owned(),
            collector_endpoint: "/api/v2/spans".to_owned(),
            collector_endpoint_version: CollectorEndpointVersion::HttpJson as i32,
            ..ZipkinConfig::default()
        }
    }

    fn provider(any: Any) -> Provider {
        Provider::clone(&tracing(to(any)).unwrap().unwrap().provider)
    }

    #[test]
    fn providers() {
        let of_grpc = provider(pack_any(grpc("c:4317")));
        assert_eq!((of_grpc.cluster.as_str(), of_grpc.protocol), ("c:4317", TraceProtocol::OtlpGrpc));
        assert_eq!((of_grpc.authority.as_str(), of_grpc.service_name.as_str()), ("c:4317", "web"));
        let of_http = provider(pack_any(http("http://collector:4318/v1/traces")));
        assert_eq!(of_http.authority.as_str(), "collector:4318");
        assert_eq!(of_http.protocol, TraceProtocol::OtlpHttp(PathAndQuery::from_static("/v1/traces")));
        let zipkin = provider(pack_any(ZipkinConfig { collector_hostname: "z".to_owned(), ..json() }));
        assert_eq!((zipkin.authority.as_str(), zipkin.cluster.as_str()), ("z", "c"));
    }

    #[test]
    fn what_is_not_known_leaves_no_spans_and_refuses_nothing() {
        assert!(tracing(PbTracing::default()).unwrap().is_none());
        let datadog =
            Any { type_url: "type.googleapis.com/envoy.config.trace.v3.DatadogConfig".to_owned(), value: vec![] };
        assert!(tracing(to(datadog)).unwrap().is_none());
    }

    #[test]
    fn shares() {
        let all = tracing(to(pack_any(grpc("c")))).unwrap().unwrap().sampling;
        assert!(all.takes(TraceId::new(1).unwrap()));
        let percent = |value| PbTracing { random_sampling: Some(Percent { value }), ..to(pack_any(grpc("c"))) };
        assert!(!tracing(percent(0.0)).unwrap().unwrap().sampling.takes(TraceId::new(u128::MAX).unwrap()));
        for wrong in [-1.0, 100.1, f64::NAN] {
            assert_eq!(tracing(percent(wrong)).unwrap_err().field, "random_sampling");
        }
        let capped = PbTracing { overall_sampling: Some(Percent { value: 50.0 }), ..percent(1.0) };
        assert_eq!(tracing(capped).unwrap_err().field, "overall_sampling");
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_path() {
        let both = OpenTelemetryConfig { grpc_service: grpc("c").grpc_service, ..http("http://c/") };
        for (any, field) in [
            (pack_any(OpenTelemetryConfig::default()), ""),
            (pack_any(both), ""),
            (pack_any(grpc("")), "grpc_service.envoy_grpc.cluster_name"),
            (pack_any(grpc("not a host")), "grpc_service.envoy_grpc.authority"),
            (pack_any(http("/v1/traces")), "http_service.http_uri.uri"),
            (pack_any(ZipkinConfig { collector_endpoint: "api".to_owned(), ..json() }), "collector_endpoint"),
            (pack_any(ZipkinConfig { collector_endpoint_version: 2, ..json() }), "collector_endpoint_version"),
            (pack_any(ZipkinConfig { collector_cluster: String::new(), ..json() }), "collector_cluster"),
        ] {
            let rejected = tracing(to(any)).unwrap_err();
            let expected = format!("provider.typed_config.{field}");
            assert_eq!(rejected.field.trim_end_matches('.'), expected.trim_end_matches('.'), "{rejected}");
        }
    }
}
