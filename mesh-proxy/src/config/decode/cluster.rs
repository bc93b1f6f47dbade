//! Cluster -> [`Cluster`].

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster as PbCluster;
use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, ClusterProtocolSelection, DiscoveryType, LbConfig, TransportSocketMatch,
};
use envoy_types::pb::envoy::config::core::v3::RoutingPriority;
use envoy_types::pb::envoy::extensions::filters::http::upstream_codec::v3::UpstreamCodec;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::UpstreamProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use envoy_types::pb::google::protobuf::UInt32Value;
use envoy_types::pb::google::protobuf::value::Kind;

use super::endpoints::{TLS_MODE, TLS_MODE_MESH};
use super::{
    At, Decoded, Rejected, duration_or, each, endpoint_health, endpoints, from_ads, is, tls, unless, unpack,
    unsupported_type,
};
use crate::config::{Cluster, Discovery, Limits, RetryBudget, UpstreamHttp, UpstreamTls};

mod balancing;

/// Envoy's default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

pub(super) fn cluster(pb: PbCluster) -> Decoded<Cluster> {
    if pb.name.is_empty() {
        return Err(Rejected::field("name", "must not be empty"));
    }
    unless(pb.transport_socket_matcher.is_some(), "transport_socket_matcher", "is not supported")?;
    unless(pb.lb_subset_config.is_some(), "lb_subset_config", "is not supported")?;
    unless(!pb.filters.is_empty(), "filters", "upstream filters are not supported")?;
    unless(pb.upstream_config.is_some(), "upstream_config", "is not supported")?;
    unless(pb.upstream_bind_config.is_some(), "upstream_bind_config", "is not supported")?;
    let connect_timeout = duration_or("connect_timeout", &pb.connect_timeout, CONNECT_TIMEOUT)?;
    unless(connect_timeout.is_zero(), "connect_timeout", "must be more than zero")?;
    let discovery = discovery(&pb)?;
    let (tls, tls_always) = security(&pb)?;
    let balancing = balancing::balancing(&pb)?;
    Ok(Cluster {
        balancer: balancing.balancer,
        spread: balancing.spread,
        connect_timeout,
        tls,
        tls_always,
        http: http(&pb)?,
        limits: limits(&pb)?,
        health: endpoint_health::of_cluster(&pb)?,
        discovery,
        name: pb.name,
    })
}

fn discovery(pb: &PbCluster) -> Decoded<Discovery> {
    let ty = match pb.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(ty)) => ty,
        Some(ClusterDiscoveryType::ClusterType(_)) => {
            return Err(Rejected::field("cluster_type", "custom cluster types are not supported"));
        }
        None => DiscoveryType::Static as i32,
    };
    match DiscoveryType::try_from(ty) {
        Ok(DiscoveryType::Eds) => {
            let eds = pb.eds_cluster_config.clone().unwrap_or_default();
            from_ads(&eds.eds_config).at("eds_cluster_config.eds_config")?;
            Ok(Discovery::Eds(if eds.service_name.is_empty() { pb.name.clone() } else { eds.service_name }))
        }
        Ok(DiscoveryType::Static) => {
            let mut assignment = pb.load_assignment.clone().unwrap_or_default();
            assignment.cluster_name = pb.name.clone();
            Ok(Discovery::Static(Arc::new(endpoints::endpoints(assignment).at("load_assignment")?)))
        }
        Ok(DiscoveryType::OriginalDst) => {
            if let Some(LbConfig::OriginalDstLbConfig(config)) = &pb.lb_config {
                let changed = config.use_http_header || config.metadata_key.is_some();
                unless(changed, "original_dst_lb_config", "only the connection's own destination is supported")?;
                let port = config.upstream_port_override.is_some();
                unless(port, "original_dst_lb_config.upstream_port_override", "is not supported")?;
            }
            Ok(Discovery::OriginalDestination)
        }
        Ok(other) => {
            let reason = format!("{} is not supported; use EDS, STATIC or ORIGINAL_DST", other.as_str_name());
            Err(Rejected::field("type", reason))
        }
        Err(_) => Err(Rejected::field("type", format_args!("{ty} is not known"))),
    }
}

/// The TLS of the cluster's endpoints, and whether it is for all of them.
fn security(pb: &PbCluster) -> Decoded<(Option<UpstreamTls>, bool)> {
    let rest = pb.transport_socket.as_ref().map_or(Ok(None), tls::upstream).at("transport_socket")?;
    let matches = each("transport_socket_matches", &pb.transport_socket_matches, socket_match)?;
    let mut mesh = None;
    let mut fallback = rest;
    for (index, (for_mesh, tls)) in matches.into_iter().enumerate() {
        if for_mesh {
            // The first match counts; one for all endpoints that came before it was the last one looked at.
            mesh.get_or_insert(tls);
        } else {
            unless(tls.is_some() && mesh.is_none(), &format!("transport_socket_matches[{index}]"), TWO_SOCKETS)?;
            fallback = tls;
            break;
        }
    }
    match (mesh, fallback) {
        (None, None) => Ok((None, false)),
        (None, Some(tls)) => Ok((Some(tls), true)),
        (Some(tls), None) => Ok((tls, false)),
        (Some(tls), fallback) if tls == fallback => Ok((tls, true)),
        (Some(_), Some(_)) => Err(Rejected::field("transport_socket", TWO_SOCKETS)),
    }
}

const TWO_SOCKETS: &str = "only these are supported: one TLS socket for all endpoints, or one for those with tlsMode \"mesh\" and plaintext for the rest";

/// Whether it is for endpoints in the mesh (else for all), and its TLS.
fn socket_match(pb: &TransportSocketMatch) -> Decoded<(bool, Option<UpstreamTls>)> {
    let criteria = pb.r#match.clone().unwrap_or_default().fields;
    let mut for_mesh = false;
    for (key, value) in &criteria {
        match value.kind.as_ref() {
            Some(Kind::StringValue(mode)) if key == TLS_MODE && mode == TLS_MODE_MESH => for_mesh = true,
            _ => return Err(Rejected::field("match", "only tlsMode: \"mesh\" is supported")),
        }
    }
    let socket = pb.transport_socket.as_ref().ok_or_else(|| Rejected::field("transport_socket", "is needed"))?;
    Ok((for_mesh, tls::upstream(socket).at("transport_socket")?))
}

fn http(pb: &PbCluster) -> Decoded<UpstreamHttp> {
    let Some(any) = pb.typed_extension_protocol_options.get(HTTP_OPTIONS) else {
        #[allow(deprecated)]
        let (http2, selection) = (pb.http2_protocol_options.is_some(), pb.protocol_selection);
        return Ok(match selection == ClusterProtocolSelection::UseDownstreamProtocol as i32 {
            true => UpstreamHttp::Downstream,
            false if http2 => UpstreamHttp::Http2,
            false => UpstreamHttp::Http1,
        });
    };
    let options = unpack::<HttpProtocolOptions>(any).ok_or_else(|| unsupported_type(any));
    http_options(options.and_then(|it| it)).at(format_args!("typed_extension_protocol_options[{HTTP_OPTIONS:?}]"))
}

fn http_options(options: Decoded<HttpProtocolOptions>) -> Decoded<UpstreamHttp> {
    let options = options?;
    each("http_filters", &options.http_filters, |filter| match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) if is::<UpstreamCodec>(any) => Ok(()),
        _ => Err(Rejected::new("upstream filters are not supported")),
    })?;
    match options.upstream_protocol_options {
        None => Ok(UpstreamHttp::Http1),
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(_)) => Ok(UpstreamHttp::Downstream),
        Some(UpstreamProtocolOptions::AutoConfig(_)) => {
            Err(Rejected::field("auto_config", "is not supported; say explicitly HTTP/1.1 or HTTP/2"))
        }
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => match explicit.protocol_config {
            Some(ProtocolConfig::Http2ProtocolOptions(_)) => Ok(UpstreamHttp::Http2),
            Some(ProtocolConfig::HttpProtocolOptions(_)) | None => Ok(UpstreamHttp::Http1),
            Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                Err(Rejected::field("explicit_http_config.http3_protocol_options", "is not supported"))
            }
        },
    }
}

fn limits(pb: &PbCluster) -> Decoded<Limits> {
    let breakers = pb.circuit_breakers.clone().unwrap_or_default();
    unless(!breakers.per_host_thresholds.is_empty(), "circuit_breakers.per_host_thresholds", "is not supported")?;
    let of_default = |it: &Thresholds| it.priority == RoutingPriority::Default as i32;
    let thresholds = breakers.thresholds.into_iter().find(of_default).unwrap_or_default();
    let or = |value: &Option<UInt32Value>, default| value.as_ref().map_or(default, |it| it.value);
    let retry_budget = thresholds.retry_budget.as_ref().map(|budget| {
        let percent = budget.budget_percent.as_ref().map_or(20.0, |it| it.value).clamp(0.0, 100.0);
        // In range, or zero for what is not a number.
        RetryBudget { percent: percent.round() as u32, min_concurrency: or(&budget.min_retry_concurrency, 3) }
    });
    Ok(Limits {
        max_connections: or(&thresholds.max_connections, 1024),
        max_pending: or(&thresholds.max_pending_requests, 1024),
        max_requests: or(&thresholds.max_requests, 1024),
        max_retries: or(&thresholds.max_retries, 3),
        retry_budget,
    })
}
