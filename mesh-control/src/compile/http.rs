//! Network filters: HTTP connection managers and TCP proxies.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::config::listener::v3::{Filter, filter};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::Cors;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, PathWithEscapedSlashesAction, RouteSpecifier, Tracing, UpgradeConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, WeightedCluster,
};
use envoy_types::pb::envoy::r#type::v3::HashPolicy;
use envoy_types::pb::envoy::r#type::v3::hash_policy::{PolicySpecifier, SourceIp};
use envoy_types::pb::google::protobuf::Any;
use mesh_common::names;

use super::build::{ads, any, boolean, duration};
use super::cluster::upgradable;

/// A connection on which no request is under way.
const IDLE: Duration = Duration::from_secs(3600);

pub(super) enum Routes {
    /// Name of a route configuration.
    Named(String),
    Inline(Box<RouteConfiguration>),
}

/// The connection manager without a codec or upgrades, as a gRPC client takes it.
pub(super) fn bare_manager(routes: Routes, filters: Vec<HttpFilter>) -> HttpConnectionManager {
    let (stat_prefix, specifier) = match routes {
        Routes::Named(name) => {
            let rds = Rds { config_source: ads(), route_config_name: name.clone() };
            (name, RouteSpecifier::Rds(rds))
        }
        Routes::Inline(config) => (config.name.clone(), RouteSpecifier::RouteConfig(*config)),
    };
    let router = filter("envoy.filters.http.router", any(Router::default()));
    HttpConnectionManager {
        stat_prefix,
        route_specifier: Some(specifier),
        http_filters: filters.into_iter().chain([router]).collect(),
        ..HttpConnectionManager::default()
    }
}

/// What routes need that may have faults.
pub(super) fn faults() -> Vec<HttpFilter> {
    vec![filter(names::FILTER_FAULT, any(HttpFault::default()))]
}

/// What all routes of a proxy need that may have a CORS policy or faults. A preflight asks what may be asked, so it comes
/// before what happens to requests.
pub(super) fn of_routes() -> Vec<HttpFilter> {
    let cors = filter(names::FILTER_CORS, any(Cors::default()));
    [cors].into_iter().chain(faults()).collect()
}

pub(super) fn filter(name: &str, config: Any) -> HttpFilter {
    let config_type = Some(http_filter::ConfigType::TypedConfig(config));
    HttpFilter { name: name.to_owned(), config_type, ..HttpFilter::default() }
}

/// What is made of a request's path before anybody looks at it.
#[derive(Clone, Copy)]
pub(super) enum Paths {
    /// By the proxy itself: mesh-proxy gives every path one form.
    Own,
    /// As much of the same as Envoy can do.
    Normal,
    /// And what policies could be led astray by is refused.
    Strict,
}

/// With these filters before the router.
pub(super) fn manager(
    routes: Routes,
    codec: CodecType,
    filters: Vec<HttpFilter>,
    paths: Paths,
    tracing: Option<Tracing>,
) -> Filter {
    let upgrade = |upgrade: &str| UpgradeConfig { upgrade_type: upgrade.to_owned(), ..UpgradeConfig::default() };
    let manager = HttpConnectionManager {
        codec_type: codec as i32,
        tracing,
        upgrade_configs: ["websocket", "CONNECT"].map(upgrade).to_vec(),
        http2_protocol_options: Some(upgradable()),
        common_http_protocol_options: Some(HttpProtocolOptions {
            idle_timeout: duration(IDLE),
            ..HttpProtocolOptions::default()
        }),
        ..bare_manager(routes, filters)
    };
    let manager = match paths {
        Paths::Own => manager,
        Paths::Normal => HttpConnectionManager { normalize_path: boolean(true), ..manager },
        Paths::Strict => HttpConnectionManager {
            normalize_path: boolean(true),
            merge_slashes: true,
            path_with_escaped_slashes_action: PathWithEscapedSlashesAction::RejectRequest as i32,
            ..manager
        },
    };
    network("envoy.filters.network.http_connection_manager", any(manager))
}

/// Clusters with weights; weights of zero are left out. With nothing left, streams are refused. `by_source`: streams of one
/// client go to one endpoint.
pub(super) fn tcp_proxy(stat_prefix: &str, clusters: &[(String, u32)], by_source: bool) -> Filter {
    let weighted: Vec<_> = clusters.iter().filter(|(_, weight)| *weight > 0).collect();
    let specifier = match weighted.as_slice() {
        // Envoy takes no empty list.
        [] => ClusterSpecifier::Cluster(names::unresolved_cluster(stat_prefix)),
        [(name, _)] => ClusterSpecifier::Cluster(name.clone()),
        _ => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: weighted
                .into_iter()
                .map(|(name, weight)| ClusterWeight { name: name.clone(), weight: *weight, metadata_match: None })
                .collect(),
        }),
    };
    let source = HashPolicy { policy_specifier: Some(PolicySpecifier::SourceIp(SourceIp {})) };
    let proxy = TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        cluster_specifier: Some(specifier),
        idle_timeout: duration(IDLE),
        hash_policy: by_source.then_some(source).into_iter().collect(),
        ..TcpProxy::default()
    };
    network("envoy.filters.network.tcp_proxy", any(proxy))
}

pub(super) fn network(name: &str, config: Any) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(config)) }
}
