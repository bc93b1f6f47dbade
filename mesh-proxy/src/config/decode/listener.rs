//! Listener -> [`Listener`].

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType as FilterConfig;
use envoy_types::pb::envoy::config::listener::v3::listener_filter::ConfigType as ListenerFilterConfig;
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain as PbChain, FilterChainMatch, Listener as PbListener, ListenerFilter,
};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::Cors;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::grpc_stats::v3::FilterConfig as GrpcStats;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, RouteSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy as PbTcp;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::r#type::v3::hash_policy::PolicySpecifier;
use envoy_types::pb::google::protobuf::Any;
use mesh_common::proto::extensions::Fault as PbFault;

use super::ext_authz::Asks;
use super::{
    At, Decoded, Rejected, authorization, duration_or, each, ext_authz, fault, from_ads, is, is_true, jwt, limit,
    route, tls, tracing, udp, unless, unpack, unsupported_type,
};
use crate::config::{
    Authorization, Authorizer, ChainMatch, Fault, FilterChain, Gate, GateAction, HeaderMutation, HttpManager, JwtAuthn,
    Listener, NetworkFilter, PortLimits, RequestLimit, RouteSource, ServerName, TcpProxy, Transport, WeightedCluster,
    WeightedClusters,
};

/// Envoy's defaults.
const IDLE: Duration = Duration::from_secs(3600);
const STREAM_IDLE: Duration = Duration::from_secs(300);

pub(super) fn listener(pb: PbListener) -> Decoded<Listener> {
    if pb.name.is_empty() {
        return Err(Rejected::field("name", "must not be empty"));
    }
    unless(pb.api_listener.is_some(), "api_listener", "is for gRPC clients without a proxy")?;
    unless(pb.filter_chain_matcher.is_some(), "filter_chain_matcher", "is not supported")?;
    unless(pb.fcds_config.is_some(), "fcds_config", "is not supported")?;
    unless(pb.listener_specifier.is_some(), "internal_listener", "is not supported")?;
    if pb.udp_listener_config.is_some() || udp::is_udp(&pb.address) {
        return udp::listener(pb);
    }
    each("listener_filters", &pb.listener_filters, listener_filter)?;
    let chains = each("filter_chains", pb.filter_chains, chain)?;
    let default_chain = pb.default_filter_chain.map(chain).transpose().at("default_filter_chain")?;
    Ok(Listener { name: pb.name, chains, default_chain, udp: None })
}

/// The proxy looks at a connection as far as its filter chains need, whatever inspectors are listed.
fn listener_filter(pb: &ListenerFilter) -> Decoded<()> {
    unless(pb.filter_disabled.is_some(), "filter_disabled", "is not supported")?;
    match &pb.config_type {
        Some(ListenerFilterConfig::TypedConfig(any))
            if is::<OriginalDst>(any) || is::<TlsInspector>(any) || is::<HttpInspector>(any) =>
        {
            Ok(())
        }
        Some(ListenerFilterConfig::TypedConfig(any)) => Err(unsupported_type(any)),
        _ => Err(Rejected::field("typed_config", "is needed")),
    }
}

fn chain(pb: PbChain) -> Decoded<FilterChain> {
    #[allow(deprecated)]
    unless(is_true(&pb.use_proxy_proto), "use_proxy_proto", "is not supported")?;
    let matches = pb.filter_chain_match.map_or(Ok(ChainMatch::default()), chain_match).at("filter_chain_match")?;
    let tls = pb.transport_socket.as_ref().map_or(Ok(None), tls::downstream).at("transport_socket")?;
    Ok(FilterChain { matches, tls, filter: network_filters(pb.filters)? })
}

fn chain_match(pb: FilterChainMatch) -> Decoded<ChainMatch> {
    unless(!pb.prefix_ranges.is_empty(), "prefix_ranges", "is not supported")?;
    unless(!pb.address_suffix.is_empty() || pb.suffix_len.is_some(), "address_suffix", "is not supported")?;
    unless(!pb.direct_source_prefix_ranges.is_empty(), "direct_source_prefix_ranges", "is not supported")?;
    unless(pb.source_type != 0, "source_type", "is not supported")?;
    unless(!pb.source_prefix_ranges.is_empty(), "source_prefix_ranges", "is not supported")?;
    unless(!pb.source_ports.is_empty(), "source_ports", "is not supported")?;
    let destination_port = match &pb.destination_port {
        None => None,
        Some(port) => match u16::try_from(port.value) {
            Ok(port) if port > 0 => Some(port),
            _ => return Err(Rejected::field("destination_port", "must be 1 to 65535")),
        },
    };
    let transport = match pb.transport_protocol.as_str() {
        "" => None,
        "raw_buffer" => Some(Transport::Raw),
        "tls" => Some(Transport::Tls),
        other => return Err(Rejected::field("transport_protocol", format_args!("{other:?} is not supported"))),
    };
    let server_names = each("server_names", pb.server_names, server_name)?;
    Ok(ChainMatch { destination_port, transport, server_names, application_protocols: pb.application_protocols })
}

/// `www.example.com`, or `*.example.com` for every name under it.
fn server_name(name: String) -> Decoded<ServerName> {
    let name = name.to_ascii_lowercase();
    let rest = name.strip_prefix('*');
    let bare = rest.unwrap_or(&name);
    let partial = rest.is_some_and(|rest| !rest.starts_with('.') || rest.len() < 2);
    if bare.is_empty() || bare.contains('*') || partial {
        return Err(Rejected::new("must be a name, or a name after \"*.\""));
    }
    Ok(match rest {
        Some(suffix) => ServerName::Suffix(suffix.to_owned()),
        None => ServerName::Exact(name),
    })
}

/// What stands before a TCP proxy.
#[derive(Default)]
struct Before {
    gates: Vec<Gate>,
    fault: Option<Arc<Fault>>,
    limits: Option<Arc<PortLimits>>,
}

/// Gates, limits and faults, then one HTTP connection manager or TCP proxy.
fn network_filters(mut filters: Vec<Filter>) -> Decoded<NetworkFilter> {
    let last = filters.pop().ok_or_else(|| Rejected::field("filters", "must not be empty"))?;
    let at_last = format!("filters[{}]", filters.len());
    let mut before = Before::default();
    for (index, filter) in filters.into_iter().enumerate() {
        typed(filter).and_then(|any| before.add(&any)).at(format_args!("filters[{index}]"))?;
    }
    typed(last).and_then(|any| network_filter(&any, before)).at(at_last)
}

fn typed(pb: Filter) -> Decoded<Any> {
    match pb.config_type {
        Some(FilterConfig::TypedConfig(any)) => Ok(any),
        _ => Err(Rejected::field("typed_config", "is needed")),
    }
}

impl Before {
    fn add(&mut self, any: &Any) -> Decoded<()> {
        if let Some(gates) = authorization::network(any) {
            self.gates.extend(gates.at("typed_config")?);
            return Ok(());
        }
        if let Some(limits) = limit::port_limits(any) {
            unless(self.limits.is_some(), "typed_config", "one filter of limits is supported")?;
            self.limits = Some(Arc::new(limits.at("typed_config")?));
            return Ok(());
        }
        let fault = is::<PbFault>(any).then(|| fault::fault(any)).flatten().ok_or_else(|| unsupported_type(any))?;
        self.fault = Some(Arc::new(fault.at("typed_config")?));
        Ok(())
    }
}

fn network_filter(any: &Any, before: Before) -> Decoded<NetworkFilter> {
    if let Some(pb) = unpack::<HttpConnectionManager>(any) {
        unless(before.fault.is_some(), "typed_config", "faults of HTTP belong to its routes")?;
        let mut manager = pb.and_then(http_manager).at("typed_config")?;
        // What is said of the connection is asked first.
        manager.authorization.gates.splice(0..0, before.gates);
        manager.limits = before.limits;
        return Ok(NetworkFilter::Http(Arc::new(manager)));
    }
    if let Some(pb) = unpack::<PbTcp>(any) {
        let proxy = pb.and_then(tcp_proxy).at("typed_config")?;
        let authorization = Authorization { gates: before.gates };
        return Ok(NetworkFilter::Tcp(Arc::new(TcpProxy {
            authorization,
            fault: before.fault,
            limits: before.limits,
            ..proxy
        })));
    }
    Err(unsupported_type(any))
}

fn http_manager(pb: HttpConnectionManager) -> Decoded<HttpManager> {
    unless(pb.codec_type == CodecType::Http3 as i32, "codec_type", "HTTP/3 is not supported")?;
    // Paths are normalized in any case.
    unless(pb.merge_slashes, "merge_slashes", "is not supported")?;
    unless(pb.path_with_escaped_slashes_action > 1, "path_with_escaped_slashes_action", "is not supported")?;
    unless(pb.path_normalization_options.is_some(), "path_normalization_options", "is not supported")?;
    let early = !pb.early_header_mutation_extensions.is_empty();
    unless(early, "early_header_mutation_extensions", "is not supported")?;
    let detection = !pb.original_ip_detection_extensions.is_empty();
    unless(detection, "original_ip_detection_extensions", "is not supported")?;
    unless(pb.typed_header_validation_config.is_some(), "typed_header_validation_config", "is not supported")?;
    unless(pb.local_reply_config.is_some(), "local_reply_config", "is not supported")?;
    let Filters { jwt, authorizers, gates, limit } = http_filters(pb.http_filters)?;
    let gates = gates.into_iter().map(|(_, gate)| gate).collect();
    let authorization = Authorization { gates };
    let routes = match pb.route_specifier {
        Some(RouteSpecifier::Rds(rds)) => {
            from_ads(&rds.config_source).at("rds.config_source")?;
            unless(rds.route_config_name.is_empty(), "rds.route_config_name", "must not be empty")?;
            RouteSource::Rds(rds.route_config_name)
        }
        Some(RouteSpecifier::RouteConfig(table)) => {
            RouteSource::Inline(Arc::new(route::inline_table(table).at("route_config")?))
        }
        Some(RouteSpecifier::ScopedRoutes(_)) => return Err(Rejected::field("scoped_routes", "is not supported")),
        None => return Err(Rejected::new("one of rds and route_config is needed")),
    };
    let tracing = pb.tracing.map_or(Ok(None), tracing::tracing).at("tracing")?;
    let common = pb.common_http_protocol_options.unwrap_or_default();
    Ok(HttpManager {
        stat_prefix: pb.stat_prefix,
        jwt,
        authorizers,
        authorization,
        routes,
        idle_timeout: duration_or("common_http_protocol_options.idle_timeout", &common.idle_timeout, IDLE)?,
        stream_idle_timeout: duration_or("stream_idle_timeout", &pb.stream_idle_timeout, STREAM_IDLE)?,
        limit,
        limits: None,
        tracing: tracing.map(Arc::new),
    })
}

/// What stands before the router.
#[derive(Default)]
struct Filters {
    jwt: Option<JwtAuthn>,
    authorizers: Vec<Authorizer>,
    /// With the prefix of those that only look.
    gates: Vec<(String, Gate)>,
    limit: Option<RequestLimit>,
}

impl Filters {
    /// Which requests somebody is asked about: those that the rules match which only look for that.
    fn about(&mut self, authorizer: Authorizer, asks: Asks) -> Decoded<Authorizer> {
        const FIELD: &str = "filter_enabled_metadata";
        let decides = self.gates.iter().any(|(_, gate)| gate.is_in_force());
        unless(decides, "", "is supported before RBAC filters that decide, and not behind them")?;
        let policies = match asks {
            Asks::All(policy) => vec![policy],
            Asks::Matched(prefix) => {
                let is_it = |(of, gate): &(String, Gate)| *of == prefix && gate.dry_run;
                let found = self.gates.iter().position(is_it).map(|index| self.gates.remove(index).1);
                let gate = found.ok_or_else(|| {
                    Rejected::field(FIELD, format_args!("no shadow rules before it have the prefix {prefix:?}"))
                })?;
                unless(gate.action != GateAction::Deny, FIELD, "only shadow rules with the action DENY are supported")?;
                gate.policies
            }
        };
        Ok(Authorizer { policies, ..authorizer })
    }
}

fn http_filters(filters: Vec<HttpFilter>) -> Decoded<Filters> {
    let mut found = Filters::default();
    let last = filters.len().checked_sub(1).ok_or_else(|| Rejected::field("http_filters", "must end in the router"))?;
    for (index, filter) in filters.into_iter().enumerate() {
        let at = format!("http_filters[{index}]");
        let any = match filter.config_type {
            Some(ConfigType::TypedConfig(any)) => any,
            _ if filter.disabled || filter.is_optional => continue,
            _ => return Err(Rejected::field("typed_config", "is needed")).at(at),
        };
        if is::<Router>(&any) && index == last {
            return Ok(found);
        }
        if let Some(more) = authorization::http(&any) {
            // One that is only there for routes to turn on is refused with the route that does.
            if !filter.disabled {
                let (gates, prefix) = more.at("typed_config").at(at)?;
                found.gates.extend(gates.into_iter().map(|gate| (prefix.clone(), gate)));
            }
            continue;
        }
        if let Some(authorizer) = ext_authz::http(&any) {
            if !filter.disabled {
                let (authorizer, asks) = authorizer.at("typed_config").at(&at)?;
                let authorizer = found.about(authorizer, asks).at("typed_config").at(at)?;
                found.authorizers.push(authorizer);
            }
            continue;
        }
        if let Some(jwt) = jwt::http(&any) {
            if !filter.disabled {
                // The gates ask what it found out.
                let late = found.jwt.is_some() || !found.gates.is_empty() || !found.authorizers.is_empty();
                unless(late, &at, "one, before RBAC filters, is supported")?;
                found.jwt = Some(jwt.at("typed_config").at(at)?);
            }
            continue;
        }
        if let Some(pb) = unpack::<LocalRateLimit>(&any).filter(|_| !filter.disabled) {
            unless(found.limit.is_some(), &at, "one limit is supported")?;
            found.limit = pb.and_then(limit::limit).at(format_args!("{at}.typed_config"))?;
            continue;
        }
        if !(filter.disabled || filter.is_optional) {
            http_filter(&any).at(at)?;
        }
    }
    Err(Rejected::field("http_filters", "must end in the router"))
}

/// Those that do nothing until a route configures them, or only count.
fn http_filter(any: &Any) -> Decoded<()> {
    if is::<Cors>(any) || is::<GrpcStats>(any) {
        return Ok(());
    }
    if let Some(pb) = unpack::<HttpFault>(any) {
        let pb = pb.at("typed_config")?;
        let some = pb.delay.is_some() || pb.abort.is_some() || pb.response_rate_limit.is_some();
        return unless(some, "typed_config", "put faults on routes");
    }
    if let Some(pb) = unpack::<PbFault>(any) {
        return unless(!pb.at("typed_config")?.rules.is_empty(), "typed_config", "put faults on routes");
    }
    Err(unsupported_type(any))
}

fn tcp_proxy(pb: PbTcp) -> Decoded<TcpProxy> {
    unless(pb.tunneling_config.is_some(), "tunneling_config", "is not supported")?;
    unless(pb.metadata_match.is_some(), "metadata_match", "is not supported")?;
    let clusters = match pb.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => WeightedClusters::single(&name),
        Some(ClusterSpecifier::WeightedClusters(pb)) => {
            WeightedClusters::new(each("weighted_clusters.clusters", pb.clusters, weighted)?)
        }
        _ => return Err(Rejected::new("one of cluster and weighted_clusters is needed")),
    };
    let idle_timeout = duration_or("idle_timeout", &pb.idle_timeout, IDLE)?;
    let hash = each("hash_policy", &pb.hash_policy, |policy| match policy.policy_specifier {
        Some(PolicySpecifier::SourceIp(_)) => Ok(()),
        _ => Err(Rejected::new("only source_ip is supported")),
    })?;
    Ok(TcpProxy {
        stat_prefix: pb.stat_prefix,
        authorization: Authorization::default(),
        clusters,
        idle_timeout,
        fault: None,
        hash_source: !hash.is_empty(),
        limits: None,
    })
}

fn weighted(pb: ClusterWeight) -> Decoded<WeightedCluster> {
    unless(pb.name.is_empty(), "name", "must not be empty")?;
    unless(pb.metadata_match.is_some(), "metadata_match", "is not supported")?;
    Ok(WeightedCluster {
        cluster: pb.name.into(),
        weight: pb.weight,
        request_headers: HeaderMutation::default(),
        response_headers: HeaderMutation::default(),
    })
}
