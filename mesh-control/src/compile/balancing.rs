//! How a cluster's requests are spread, in Envoy's own fields, and in one of ours where the asker knows it.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config::{
    LocalityConfigSpecifier, LocalityWeightedLbConfig,
};
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    CommonLbConfig, LbConfig, LbPolicy, LeastRequestLbConfig, RingHashLbConfig, RoundRobinLbConfig, SlowStartConfig,
};
use envoy_types::pb::envoy::config::cluster::v3::load_balancing_policy::Policy as PbPolicy;
use envoy_types::pb::envoy::config::cluster::v3::{Cluster, LoadBalancingPolicy};
use envoy_types::pb::envoy::config::core::v3::{RuntimeDouble, TypedExtensionConfig};
use envoy_types::pb::envoy::config::route::v3::route_action::HashPolicy;
use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::{
    ConnectionProperties, Cookie, Header, PolicySpecifier,
};
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::UInt64Value;
use mesh_common::proto::extensions::{PeakEwma, SlowStart as OwnSlowStart};
use mesh_common::resource::{HashKey, LoadBalancerPolicy, SlowStart};

use super::build::{duration, own_any};
use super::{ClientKind, Scope};
use crate::model::Policy;

/// After so long, a latency that was seen counts for a third.
const DECAY: Duration = Duration::from_secs(10);
/// Envoy's own, said so that both proxies make the same ring.
const MIN_RING: u64 = 1024;
const MIN_WEIGHT_PERCENT: u32 = 10;

/// The cluster, with what its policy says.
pub(super) fn balanced(scope: &Scope, policy: &Policy, cluster: Cluster) -> Cluster {
    let common = CommonLbConfig {
        // At zero, an endpoint that is not available is never tried, however many there are.
        healthy_panic_threshold: Some(Percent { value: f64::from(policy.panic_percent()) }),
        locality_config_specifier: policy
            .locality
            .as_ref()
            .filter(|preference| !preference.weights.is_empty())
            .map(|_| LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {})),
        ..CommonLbConfig::default()
    };
    let cluster = Cluster { common_lb_config: Some(common), ..cluster };
    if scope.client == ClientKind::Grpc {
        // The one policy that it knows in every version.
        return Cluster { lb_policy: LbPolicy::RoundRobin as i32, ..cluster };
    }
    let slow = policy.slow_start();
    let least_request = || {
        let config = |slow: SlowStart| {
            let slow_start_config = Some(slow_start(&slow));
            LbConfig::LeastRequestLbConfig(LeastRequestLbConfig { slow_start_config, ..Default::default() })
        };
        (LbPolicy::LeastRequest, slow.map(config))
    };
    let (lb_policy, lb_config) = match policy.load_balancer() {
        LoadBalancerPolicy::RoundRobin => {
            let config = |slow: SlowStart| {
                LbConfig::RoundRobinLbConfig(RoundRobinLbConfig { slow_start_config: Some(slow_start(&slow)) })
            };
            (LbPolicy::RoundRobin, slow.map(config))
        }
        LoadBalancerPolicy::Random => (LbPolicy::Random, None),
        // For whoever does not know it.
        LoadBalancerPolicy::LeastRequest | LoadBalancerPolicy::PeakEwma => least_request(),
        LoadBalancerPolicy::RingHash => {
            let minimum_ring_size = Some(UInt64Value { value: MIN_RING });
            let config = RingHashLbConfig { minimum_ring_size, ..RingHashLbConfig::default() };
            (LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(config)))
        }
        LoadBalancerPolicy::Maglev => (LbPolicy::Maglev, None),
    };
    let latency = policy.load_balancer() == LoadBalancerPolicy::PeakEwma && scope.peak_ewma;
    let load_balancing_policy = latency.then(|| by_latency(slow));
    Cluster { lb_policy: lb_policy as i32, lb_config, load_balancing_policy, ..cluster }
}

fn by_latency(slow: Option<SlowStart>) -> LoadBalancingPolicy {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let slow_start = slow.map(|slow| OwnSlowStart {
        window_milliseconds: millis(slow.window.get()),
        aggression: slow.aggression.unwrap_or(1.0),
        min_weight_percent: slow.min_weight_percent.unwrap_or(MIN_WEIGHT_PERCENT),
    });
    let config = PeakEwma { decay_milliseconds: millis(DECAY), slow_start };
    let extension = TypedExtensionConfig { name: "mesh.peak_ewma".to_owned(), typed_config: Some(own_any(&config)) };
    LoadBalancingPolicy { policies: vec![PbPolicy { typed_extension_config: Some(extension) }] }
}

fn slow_start(slow: &SlowStart) -> SlowStartConfig {
    let aggression = |value| RuntimeDouble {
        default_value: value,
        // Envoy wants a name, under which nobody has anything to say.
        runtime_key: "mesh.slow_start.aggression".to_owned(),
    };
    SlowStartConfig {
        slow_start_window: duration(slow.window.get()),
        aggression: slow.aggression.map(aggression),
        min_weight_percent: slow.min_weight_percent.map(|value| Percent { value: f64::from(value) }),
    }
}

/// Of requests to clusters with these policies, of which the first that hashes counts.
pub(super) fn hash_policies<'a>(scope: &Scope, mut policies: impl Iterator<Item = &'a Policy>) -> Vec<HashPolicy> {
    if scope.client == ClientKind::Grpc {
        return Vec::new();
    }
    let hash = policies.find_map(|policy| Some(policy.hash()).filter(|hash| !hash.is_empty())).unwrap_or_default();
    // The first that the request has decides.
    let policy = |key: &HashKey| HashPolicy { terminal: true, policy_specifier: Some(specifier(key)) };
    hash.iter().map(policy).collect()
}

/// Whether streams to a cluster with this policy are told apart by where they come from.
pub(super) fn hashes_source(policy: &Policy) -> bool {
    policy.hash().iter().any(|key| key.source_address == Some(true))
}

fn specifier(key: &HashKey) -> PolicySpecifier {
    match (&key.header, &key.cookie) {
        (Some(header), _) => {
            PolicySpecifier::Header(Header { header_name: header.to_ascii_lowercase(), ..Header::default() })
        }
        (None, Some(cookie)) => PolicySpecifier::Cookie(Cookie {
            name: cookie.name.clone(),
            // Zero: until the session ends. Without one, none would be made.
            ttl: duration(cookie.ttl.map(|ttl| ttl.get()).unwrap_or_default()),
            path: cookie.path.clone().unwrap_or_default(),
            ..Cookie::default()
        }),
        (None, None) => PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true }),
    }
}
