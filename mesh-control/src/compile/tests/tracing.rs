use envoy_types::pb::envoy::config::core::v3::grpc_service::TargetSpecifier;
use envoy_types::pb::envoy::config::core::v3::http_uri::HttpUpstreamType;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::trace::v3::tracing::http::ConfigType as ProviderConfig;
use envoy_types::pb::envoy::config::trace::v3::{OpenTelemetryConfig, ZipkinConfig};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::Tracing as PbTracing;
use mesh_common::names;
use mesh_common::resource::Kind;

use super::*;

/// A backend, for OTLP over gRPC and for HTTP.
const COLLECTOR: &str = "
apiVersion: meshctl.dev/v1alpha1
kind: WorkloadEntry
metadata: {name: collector-a, namespace: mesh-system}
spec: {service: collector, addresses: [10.0.0.9], ports: [{port: 4317, protocol: grpc}, {port: 9411, protocol: http}, {port: 9, protocol: tcp}]}
---
";

fn telemetry(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: meshctl.dev/v1alpha1\nkind: Telemetry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

/// Traces of the mesh go to that port of the backend.
pub(super) fn with(backend: &str) -> String {
    let spec = format!("{{tracing: {{samplingPercent: 25, backend: {{name: collector, {backend}}}}}}}");
    format!("{COLLECTOR}{}", telemetry("mesh", "mesh-system", &spec))
}

/// Of all connection managers of a listener.
fn tracings(model: &Model, scope: &Scope, listener: &str) -> Vec<Option<PbTracing>> {
    let listener: Listener = get(model, scope, ResourceType::Listener, listener);
    let filters = listener.filter_chains.into_iter().flat_map(|chain| chain.filters);
    let configs = filters.filter_map(|filter| match filter.config_type? {
        ConfigType::TypedConfig(any) => Some(any),
        _ => None,
    });
    let managers = configs.filter(|any| any.type_url.ends_with("HttpConnectionManager"));
    managers.map(|any| decode::<HttpConnectionManager>(&any).tracing).collect()
}

fn both(model: &Model, scope: &Scope) -> [Vec<Option<PbTracing>>; 2] {
    let reviews = model.service("default", "reviews").unwrap().virtual_addresses[0];
    let outbound = names::outbound_listener(reviews, 9080);
    [tracings(model, scope, names::LISTENER_INBOUND), tracings(model, scope, &outbound)]
}

fn provider<T: prost::Message + Default>(tracing: &PbTracing) -> T {
    let ProviderConfig::TypedConfig(any) = tracing.provider.as_ref().unwrap().config_type.as_ref().unwrap();
    decode(any)
}

const CLUSTER: &str = "collector.mesh-system.svc.cluster.local";

#[test]
fn every_connection_manager_says_where_spans_go() {
    let model = shop(&with("port: 4317"));
    for client in [ClientKind::Mesh, ClientKind::Envoy] {
        for (all, tries) in both(&model, &scope(client)).into_iter().zip([false, true]) {
            assert!(!all.is_empty());
            for tracing in all {
                let tracing = tracing.unwrap();
                assert_eq!(tracing.random_sampling.as_ref().unwrap().value, 25.0);
                assert_eq!(tracing.spawn_upstream_span.unwrap().value, tries);
                let config: OpenTelemetryConfig = provider(&tracing);
                assert_eq!(config.service_name, "web");
                let Some(TargetSpecifier::EnvoyGrpc(grpc)) = config.grpc_service.unwrap().target_specifier else {
                    panic!()
                };
                assert_eq!(grpc.cluster_name, format!("{CLUSTER}:4317"));
                assert!(resource(&model, &scope(client), ResourceType::Cluster, &grpc.cluster_name).is_some());
            }
        }
    }
    let nobody = Scope { service: String::new(), ..mesh() };
    let config: OpenTelemetryConfig = provider(both(&model, &nobody)[1][0].as_ref().unwrap());
    // The service account.
    assert_eq!(config.service_name, "web");
    assert!(both(&shop(COLLECTOR), &mesh()).iter().flatten().all(Option::is_none));
}

#[test]
fn protocols() {
    let first = |text: &str| both(&shop(text), &mesh())[1][0].clone().unwrap();
    let config: OpenTelemetryConfig = provider(&first(&with("port: 9411, protocol: OtlpHttp")));
    let uri = config.http_service.unwrap().http_uri.unwrap();
    assert_eq!(uri.uri, format!("http://{CLUSTER}:9411/v1/traces"));
    assert_eq!(uri.http_upstream_type, Some(HttpUpstreamType::Cluster(format!("{CLUSTER}:9411"))));
    let config: ZipkinConfig = provider(&first(&with("port: 9411, protocol: Zipkin")));
    assert_eq!(
        (config.collector_cluster, config.collector_endpoint),
        (format!("{CLUSTER}:9411"), "/api/v2/spans".to_owned())
    );
}

#[test]
fn the_narrower_scope_comes_first_field_by_field() {
    let percent = |text: &str| {
        let tracing = both(&shop(text), &mesh())[0][0].clone();
        tracing.map(|it| it.random_sampling.unwrap().value)
    };
    let mesh_wide = with("port: 4317");
    let namespace = mesh_wide.clone() + &telemetry("a", "default", "{tracing: {samplingPercent: 50}}");
    let of_web = |tracing: &str| {
        let spec = format!("{{targetRefs: [{{kind: Service, name: web}}], tracing: {tracing}}}");
        namespace.clone() + &telemetry("b", "default", &spec)
    };
    assert_eq!(percent(&mesh_wide), Some(25.0));
    assert_eq!(percent(&namespace), Some(50.0));
    assert_eq!(percent(&of_web("{samplingPercent: 0}")), Some(0.0));
    assert_eq!(percent(&of_web("{enabled: false}")), None);
    // Of others nothing is said.
    assert_eq!(percent(&of_web("{enabled: false}").replace("name: web}", "name: reviews}")), Some(50.0));
    let off = telemetry("c", "default", "{tracing: {enabled: false}}");
    assert_eq!(percent(&format!("{mesh_wide}{off}")), None);
    // One percent, unless anybody says otherwise.
    assert_eq!(percent(&mesh_wide.replace("samplingPercent: 25, ", "")), Some(1.0));
}

#[test]
fn a_backend_that_is_not_there_turns_nothing_on() {
    let key = Key::new(Kind::Telemetry, "mesh-system", "mesh");
    for (backend, reason) in [
        ("port: 4318", "BackendNotFound"),
        ("namespace: default, port: 4317", "BackendNotFound"),
        ("port: 9", "UnsupportedProtocol"),
    ] {
        let model = shop(&with(backend));
        assert!(both(&model, &mesh()).iter().flatten().all(Option::is_none), "{backend}");
        let conditions = model.conditions(&key);
        assert!(conditions.iter().any(|it| it.reason == reason && !it.status), "{backend}: {conditions:?}");
    }
    let model = shop(&with("port: 4317"));
    assert!(model.conditions(&key).iter().all(|it| it.status));
    // The older one holds, and of two that are as old the first by name.
    let twice = with("port: 4317") + &telemetry("other", "mesh-system", "{tracing: {enabled: false}}");
    let model = shop(&twice);
    assert!(both(&model, &mesh()).iter().flatten().all(Option::is_some));
    let other = model
        .conditions(&Key::new(Kind::Telemetry, "mesh-system", "other"))
        .iter()
        .map(|it| it.reason)
        .collect::<Vec<_>>();
    assert_eq!(other, ["Conflicted"]);
}
