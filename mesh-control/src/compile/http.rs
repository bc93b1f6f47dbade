//! Network filters: HTTP connection managers and TCP proxies.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::config::listener::v3::{Filter, filter};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, RouteSpecifier, UpgradeConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, WeightedCluster,
};
use envoy_types::pb::google::protobuf::Any;
use mesh_common::names;

use super::build::{ads, any, duration};
use super::cluster::upgradable;

/// A connection on which no request is under way.
const IDLE: Duration = Duration::from_secs(3600);

pub(super) enum Routes {
    /// Name of a route configuration.
    Named(String),
    Inline(Box<RouteConfiguration>),
}

/// The connection manager without a codec or upgrades, as a gRPC client takes it.
pub(super) fn bare_manager(routes: Routes, faults: bool) -> HttpConnectionManager {
    let (stat_prefix, specifier) = match routes {
        Routes::Named(name) => {
            let rds = Rds { config_source: ads(), route_config_name: name.clone() };
            (name, RouteSpecifier::Rds(rds))
        }
        Routes::Inline(config) => (config.name.clone(), RouteSpecifier::RouteConfig(*config)),
    };
    let filter = |name: &str, config: Any| HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    };
    let fault = faults.then(|| filter(names::FILTER_FAULT, any(HttpFault::default())));
    let router = filter("envoy.filters.http.router", any(Router::default()));
    HttpConnectionManager {
        stat_prefix,
        route_specifier: Some(specifier),
        http_filters: fault.into_iter().chain([router]).collect(),
        ..HttpConnectionManager::default()
    }
}

/// `faults`: routes may have some.
pub(super) fn manager(routes: Routes, codec: CodecType, faults: bool) -> Filter {
    network("envoy.filters.network.http_connection_manager", any(full_manager(routes, codec, faults)))
}

/// For requests to the application. `limit`: the filter that refuses some, first of all.
pub(super) fn inbound_manager(routes: Routes, codec: CodecType, limit: Option<HttpFilter>) -> Filter {
    let mut manager = full_manager(routes, codec, false);
    manager.http_filters.splice(..0, limit);
    network("envoy.filters.network.http_connection_manager", any(manager))
}

fn full_manager(routes: Routes, codec: CodecType, faults: bool) -> HttpConnectionManager {
    let upgrade = |upgrade: &str| UpgradeConfig { upgrade_type: upgrade.to_owned(), ..UpgradeConfig::default() };
    HttpConnectionManager {
        codec_type: codec as i32,
        upgrade_configs: ["websocket", "CONNECT"].map(upgrade).to_vec(),
        http2_protocol_options: Some(upgradable()),
        common_http_protocol_options: Some(HttpProtocolOptions {
            idle_timeout: duration(IDLE),
            ..HttpProtocolOptions::default()
        }),
        ..bare_manager(routes, faults)
    }
}

/// Clusters with weights; weights of zero are left out. With nothing left, streams are refused.
pub(super) fn tcp_proxy(stat_prefix: &str, clusters: &[(String, u32)]) -> Filter {
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
    let proxy = TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        cluster_specifier: Some(specifier),
        idle_timeout: duration(IDLE),
        ..TcpProxy::default()
    };
    network("envoy.filters.network.tcp_proxy", any(proxy))
}

fn network(name: &str, config: Any) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(config)) }
}
