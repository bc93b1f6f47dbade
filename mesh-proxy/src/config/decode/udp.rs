//! Listener for datagrams -> [`Listener`] with a [`UdpProxy`].

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{Address, address, socket_address};
use envoy_types::pb::envoy::config::listener::v3::Listener as PbListener;
use envoy_types::pb::envoy::config::listener::v3::listener_filter::ConfigType;
use envoy_types::pb::envoy::extensions::filters::udp::udp_proxy::v3::udp_proxy_config::hash_policy::PolicySpecifier;
use envoy_types::pb::envoy::extensions::filters::udp::udp_proxy::v3::udp_proxy_config::{HashPolicy, RouteSpecifier};
use envoy_types::pb::envoy::extensions::filters::udp::udp_proxy::v3::{Route, UdpProxyConfig};
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::on_match::OnMatch;
use mesh_common::proto::extensions::{UdpCluster, UdpClusters};

use super::{At, Decoded, Rejected, duration_or, each, unless, unpack, unsupported_type};
use crate::config::{HeaderMutation, Listener, UdpProxy, WeightedCluster, WeightedClusters};

/// Envoy's default.
const IDLE: Duration = Duration::from_secs(60);

/// Whether a listener is for datagrams by its address.
pub(super) fn is_udp(address: &Option<Address>) -> bool {
    let socket = address.as_ref().and_then(|it| it.address.as_ref());
    matches!(socket, Some(address::Address::SocketAddress(it)) if it.protocol == socket_address::Protocol::Udp as i32)
}

/// Its one filter is the UDP proxy.
pub(super) fn listener(pb: PbListener) -> Decoded<Listener> {
    unless(!is_udp(&pb.address), "address", "must be of UDP, as the listener has a udp_listener_config")?;
    let quic = pb.udp_listener_config.as_ref().is_some_and(|it| it.quic_options.is_some());
    unless(quic, "udp_listener_config.quic_options", "is not supported")?;
    unless(!pb.filter_chains.is_empty(), "filter_chains", "are not for datagrams")?;
    unless(pb.default_filter_chain.is_some(), "default_filter_chain", "is not for datagrams")?;
    let [filter] = pb.listener_filters.as_slice() else {
        return Err(Rejected::field("listener_filters", "must be one UDP proxy"));
    };
    let decode = || {
        unless(filter.filter_disabled.is_some(), "filter_disabled", "is not supported")?;
        let Some(ConfigType::TypedConfig(any)) = &filter.config_type else {
            return Err(Rejected::field("typed_config", "is needed"));
        };
        let config = unpack::<UdpProxyConfig>(any).ok_or_else(|| unsupported_type(any))?;
        config.and_then(proxy).at("typed_config")
    };
    let proxy = decode().at("listener_filters[0]")?;
    Ok(Listener { name: pb.name, chains: Vec::new(), default_chain: None, udp: Some(Arc::new(proxy)) })
}

fn proxy(pb: UdpProxyConfig) -> Decoded<UdpProxy> {
    unless(pb.use_original_src_ip, "use_original_src_ip", "is not supported")?;
    unless(pb.use_per_packet_load_balancing, "use_per_packet_load_balancing", "is not supported")?;
    unless(!pb.session_filters.is_empty(), "session_filters", "are not supported")?;
    unless(pb.tunneling_config.is_some(), "tunneling_config", "is not supported")?;
    let idle_timeout = duration_or("idle_timeout", &pb.idle_timeout, IDLE)?;
    unless(idle_timeout.is_zero(), "idle_timeout", "must be more than zero: nothing else ends a session")?;
    let hash = each("hash_policies", &pb.hash_policies, by_source)?;
    #[allow(deprecated)]
    let clusters = match pb.route_specifier {
        Some(RouteSpecifier::Cluster(name)) => single(&name).at("cluster")?,
        Some(RouteSpecifier::Matcher(matcher)) => by_matcher(matcher).at("matcher")?,
        None => return Err(Rejected::new("one of matcher and cluster is needed")),
    };
    Ok(UdpProxy { stat_prefix: pb.stat_prefix, clusters, idle_timeout, hash_source: !hash.is_empty() })
}

fn by_source(policy: &HashPolicy) -> Decoded<()> {
    match policy.policy_specifier {
        Some(PolicySpecifier::SourceIp(true)) => Ok(()),
        _ => Err(Rejected::new("only source_ip is supported")),
    }
}

/// One action for all: a tree that asks is for Envoy.
fn by_matcher(pb: Matcher) -> Decoded<WeightedClusters> {
    unless(pb.matcher_type.is_some(), "matcher_type", "is not supported; only on_no_match is")?;
    let action = pb.on_no_match.ok_or_else(|| Rejected::field("on_no_match", "is needed"))?;
    unless(action.keep_matching, "on_no_match.keep_matching", "is not supported")?;
    let action = match action.on_match {
        Some(OnMatch::Action(action)) => action.typed_config,
        Some(OnMatch::Matcher(_)) => return Err(Rejected::field("on_no_match.matcher", "is not supported")),
        None => None,
    };
    let any = action.ok_or_else(|| Rejected::field("on_no_match.action.typed_config", "is needed"))?;
    let at = "on_no_match.action.typed_config";
    if let Some(route) = unpack::<Route>(&any) {
        return route.and_then(|route| single(&route.cluster).at("cluster")).at(at);
    }
    let clusters = unpack::<UdpClusters>(&any).ok_or_else(|| unsupported_type(&any)).at(at)?;
    let weighted = clusters.and_then(|pb| {
        unless(pb.clusters.is_empty(), "clusters", "must not be empty")?;
        each("clusters", pb.clusters, weighted)
    });
    Ok(WeightedClusters::new(weighted.at(at)?))
}

fn single(name: &str) -> Decoded<WeightedClusters> {
    unless(name.is_empty(), "", "must not be empty")?;
    Ok(WeightedClusters::single(name))
}

fn weighted(pb: UdpCluster) -> Decoded<WeightedCluster> {
    unless(pb.name.is_empty(), "name", "must not be empty")?;
    unless(pb.weight == 0, "weight", "must be more than zero")?;
    Ok(WeightedCluster {
        cluster: pb.name.into(),
        weight: pb.weight,
        request_headers: HeaderMutation::default(),
        response_headers: HeaderMutation::default(),
    })
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::{RuntimeFractionalPercent, SocketAddress};
    use envoy_types::pb::envoy::config::listener::v3::{
        FilterChain, ListenerFilter, QuicProtocolOptions, UdpListenerConfig,
    };
    use envoy_types::pb::google::protobuf::{Any, Duration as PbDuration};
    use envoy_types::pb::xds::core::v3::TypedExtensionConfig;
    use envoy_types::pb::xds::r#type::matcher::v3::matcher::{MatcherList, MatcherType, OnMatch as PbOnMatch};
    use envoy_types::util::pack_any;
    use prost::Message;

    use super::super::{Rejected, listener as any_listener};
    use super::*;

    fn clusters(all: &[(&str, u32)]) -> Any {
        let clusters = all.iter().map(|(name, weight)| UdpCluster { name: (*name).into(), weight: *weight }).collect();
        Any {
            type_url: "type.googleapis.com/mesh.extensions.v1.UdpClusters".into(),
            value: UdpClusters { clusters }.encode_to_vec(),
        }
    }

    fn matcher(action: Any) -> Matcher {
        let config = TypedExtensionConfig { name: "x".into(), typed_config: Some(action) };
        let on_match = PbOnMatch { on_match: Some(OnMatch::Action(config)), ..PbOnMatch::default() };
        Matcher { on_no_match: Some(Box::new(on_match)), matcher_type: None }
    }

    fn config() -> UdpProxyConfig {
        let action = clusters(&[("a", 3), ("b", 1)]);
        UdpProxyConfig { route_specifier: Some(RouteSpecifier::Matcher(matcher(action))), ..UdpProxyConfig::default() }
    }

    fn pb(config: UdpProxyConfig) -> PbListener {
        let socket = SocketAddress { protocol: socket_address::Protocol::Udp as i32, ..SocketAddress::default() };
        PbListener {
            name: "udp:240.240.0.5:9000".into(),
            address: Some(Address { address: Some(address::Address::SocketAddress(socket)) }),
            udp_listener_config: Some(UdpListenerConfig::default()),
            listener_filters: vec![ListenerFilter {
                config_type: Some(ConfigType::TypedConfig(pack_any(config))),
                ..ListenerFilter::default()
            }],
            ..PbListener::default()
        }
    }

    fn proxy_of(config: UdpProxyConfig) -> Arc<UdpProxy> {
        any_listener::listener(pb(config)).unwrap().udp.unwrap()
    }

    #[test]
    fn clusters_with_weights_and_defaults() {
        let proxy = proxy_of(config());
        let choices: Vec<_> = proxy.clusters.choices().iter().map(|it| (&*it.cluster, it.weight)).collect();
        assert_eq!(choices, [("a", 3), ("b", 1)]);
        assert_eq!((proxy.idle_timeout, proxy.hash_source), (IDLE, false));
        let hash = HashPolicy { policy_specifier: Some(PolicySpecifier::SourceIp(true)) };
        let route = matcher(pack_any(Route { cluster: "a".into() }));
        let more = UdpProxyConfig {
            idle_timeout: Some(PbDuration { seconds: 5, nanos: 0 }),
            hash_policies: vec![hash],
            route_specifier: Some(RouteSpecifier::Matcher(route)),
            ..UdpProxyConfig::default()
        };
        let proxy = proxy_of(more);
        assert_eq!((proxy.idle_timeout, proxy.hash_source), (Duration::from_secs(5), true));
        assert_eq!(&*proxy.clusters.pick().unwrap().cluster, "a");
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        let refused = |change: &dyn Fn(&mut UdpProxyConfig)| {
            let mut config = config();
            change(&mut config);
            any_listener::listener(pb(config)).unwrap_err()
        };
        let at = |error: Rejected, field: &str| assert!(error.field.ends_with(field), "{error} is not at {field}");
        at(refused(&|it| it.use_original_src_ip = true), "typed_config.use_original_src_ip");
        at(refused(&|it| it.use_per_packet_load_balancing = true), "use_per_packet_load_balancing");
        at(refused(&|it| it.idle_timeout = Some(PbDuration::default())), "idle_timeout");
        at(refused(&|it| it.hash_policies = vec![HashPolicy::default()]), "hash_policies[0]");
        at(refused(&|it| it.route_specifier = None), "typed_config");
        let action = |any: Any| {
            move |it: &mut UdpProxyConfig| it.route_specifier = Some(RouteSpecifier::Matcher(matcher(any.clone())))
        };
        at(refused(&action(clusters(&[]))), "clusters");
        at(refused(&action(clusters(&[("a", 0)]))), "clusters[0].weight");
        at(refused(&action(clusters(&[("", 1)]))), "clusters[0].name");
        at(refused(&action(pack_any(Route::default()))), "cluster");
        at(refused(&action(pack_any(RuntimeFractionalPercent::default()))), "on_no_match.action.typed_config");
        let asks = |it: &mut UdpProxyConfig| {
            if let Some(RouteSpecifier::Matcher(matcher)) = &mut it.route_specifier {
                matcher.matcher_type = Some(MatcherType::MatcherList(MatcherList::default()));
            }
        };
        at(refused(&asks), "matcher.matcher_type");

        let listener = |change: &dyn Fn(&mut PbListener)| {
            let mut listener = pb(config());
            change(&mut listener);
            any_listener::listener(listener).unwrap_err()
        };
        at(listener(&|it| it.listener_filters.clear()), "listener_filters");
        at(listener(&|it| it.listener_filters[0].config_type = None), "listener_filters[0].typed_config");
        at(listener(&|it| it.filter_chains = vec![FilterChain::default()]), "filter_chains");
        at(listener(&|it| it.address = None), "address");
        let quic =
            UdpListenerConfig { quic_options: Some(QuicProtocolOptions::default()), ..UdpListenerConfig::default() };
        at(listener(&|it| it.udp_listener_config = Some(quic.clone())), "quic_options");
        // One for connections takes no datagrams by accident.
        at(
            listener(&|it| {
                it.address = None;
                it.udp_listener_config = None
            }),
            "listener_filters[0]",
        );
    }
}
