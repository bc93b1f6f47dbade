//! How a cluster's requests are spread: `lb_policy` with its configuration, or `load_balancing_policy`.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config::LocalityConfigSpecifier;
use envoy_types::pb::envoy::config::cluster::v3::cluster::ring_hash_lb_config::HashFunction;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{LbConfig, LbPolicy};
use envoy_types::pb::envoy::config::cluster::v3::{Cluster as PbCluster, LoadBalancingPolicy};
use envoy_types::pb::envoy::config::core::v3::RuntimeDouble;
use envoy_types::pb::envoy::extensions::load_balancing_policies::cluster_provided::v3::ClusterProvided;
use envoy_types::pb::envoy::extensions::load_balancing_policies::common::v3::locality_lb_config::LocalityConfigSpecifier as TypedLocality;
use envoy_types::pb::envoy::extensions::load_balancing_policies::common::v3::{
    ConsistentHashingLbConfig, LocalityLbConfig, SlowStartConfig,
};
use envoy_types::pb::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use envoy_types::pb::envoy::extensions::load_balancing_policies::maglev::v3::Maglev;
use envoy_types::pb::envoy::extensions::load_balancing_policies::random::v3::Random;
use envoy_types::pb::envoy::extensions::load_balancing_policies::ring_hash::v3::{RingHash, ring_hash};
use envoy_types::pb::envoy::extensions::load_balancing_policies::round_robin::v3::RoundRobin;
use envoy_types::pb::envoy::extensions::load_balancing_policies::wrr_locality::v3::WrrLocality;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::{Duration as PbDuration, UInt64Value};
use mesh_common::proto::extensions::PeakEwma;

use super::super::{At, Decoded, Rejected, duration_or, is, unless, unpack};
use crate::config::{Balancer, SlowStart, Spread};

/// Envoy's defaults and bounds.
const PANIC_PERCENT: f64 = 50.0;
const MIN_RING: u64 = 1024;
const MAX_RING: u64 = 8 << 20;
const MAGLEV: u64 = 65_537;
const MAX_MAGLEV: u64 = 5_000_011;
const MIN_WEIGHT_PERCENT: f64 = 10.0;
const ZONE_AWARE: &str = "is not supported; use locality_weighted_lb_config or priorities";

pub(super) struct Balancing {
    pub(super) balancer: Balancer,
    pub(super) spread: Spread,
}

impl Balancing {
    fn plain(balancer: Balancer) -> Self {
        Self { balancer, spread: Spread::default() }
    }

    fn with(balancer: Balancer, slow_start: Option<SlowStart>, locality_weights: bool) -> Self {
        Self { balancer, spread: Spread { slow_start, locality_weights, ..Spread::default() } }
    }
}

pub(super) fn balancing(pb: &PbCluster) -> Decoded<Balancing> {
    let mut balancing = match &pb.load_balancing_policy {
        Some(policy) => typed(policy).at("load_balancing_policy")?,
        None => by_enum(pb)?,
    };
    let common = pb.common_lb_config.clone().unwrap_or_default();
    match common.locality_config_specifier {
        None => (),
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => balancing.spread.locality_weights = true,
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(_)) => {
            return Err(Rejected::field("common_lb_config.zone_aware_lb_config", ZONE_AWARE));
        }
    }
    if let Some(hashing) = &common.consistent_hashing_lb_config {
        let unknown = hashing.use_hostname_for_hashing || hashing.hash_balance_factor.is_some();
        unless(unknown, "common_lb_config.consistent_hashing_lb_config", "is not supported")?;
    }
    let threshold = percent(&common.healthy_panic_threshold, PANIC_PERCENT);
    // In range.
    balancing.spread.panic_percent = threshold.at("common_lb_config.healthy_panic_threshold")?.round() as u32;
    Ok(balancing)
}

fn by_enum(pb: &PbCluster) -> Decoded<Balancing> {
    let config = pb.lb_config.as_ref();
    match LbPolicy::try_from(pb.lb_policy) {
        Ok(LbPolicy::RoundRobin) => {
            let slow = match config {
                Some(LbConfig::RoundRobinLbConfig(config)) => config.slow_start_config.as_ref(),
                _ => None,
            };
            let slow = slow.map(|it| slow_start(&it.slow_start_window, &it.aggression, &it.min_weight_percent));
            let slow = slow.transpose().at("round_robin_lb_config.slow_start_config")?;
            Ok(Balancing::with(Balancer::RoundRobin, slow, false))
        }
        Ok(LbPolicy::LeastRequest) => {
            let slow = match config {
                Some(LbConfig::LeastRequestLbConfig(config)) => config.slow_start_config.as_ref(),
                _ => None,
            };
            let slow = slow.map(|it| slow_start(&it.slow_start_window, &it.aggression, &it.min_weight_percent));
            let slow = slow.transpose().at("least_request_lb_config.slow_start_config")?;
            Ok(Balancing::with(Balancer::LeastRequest, slow, false))
        }
        Ok(LbPolicy::ClusterProvided) => Ok(Balancing::plain(Balancer::RoundRobin)),
        Ok(LbPolicy::Random) => Ok(Balancing::plain(Balancer::Random)),
        Ok(LbPolicy::RingHash) => {
            let config = match config {
                Some(LbConfig::RingHashLbConfig(config)) => *config,
                _ => Default::default(),
            };
            let murmur = config.hash_function != HashFunction::XxHash as i32;
            ring(murmur, &config.minimum_ring_size, &config.maximum_ring_size).at("ring_hash_lb_config")
        }
        Ok(LbPolicy::Maglev) => {
            let size = match config {
                Some(LbConfig::MaglevLbConfig(config)) => config.table_size,
                _ => None,
            };
            maglev(&size).at("maglev_lb_config")
        }
        Ok(other) => Err(Rejected::field("lb_policy", format_args!("{} is not supported", other.as_str_name()))),
        Err(_) => Err(Rejected::field("lb_policy", format_args!("{} is not known", pb.lb_policy))),
    }
}

/// The first that is known counts.
fn typed(pb: &LoadBalancingPolicy) -> Decoded<Balancing> {
    let configs = pb.policies.iter().filter_map(|it| it.typed_extension_config.as_ref()?.typed_config.as_ref());
    for any in configs {
        if is::<ClusterProvided>(any) {
            return Ok(Balancing::plain(Balancer::RoundRobin));
        }
        if is::<Random>(any) {
            return Ok(Balancing::plain(Balancer::Random));
        }
        if let Some(pb) = unpack::<RoundRobin>(any) {
            let pb = pb?;
            let slow = typed_slow_start(&pb.slow_start_config).at("slow_start_config")?;
            return Ok(Balancing::with(Balancer::RoundRobin, slow, locality(&pb.locality_lb_config)?));
        }
        if let Some(pb) = unpack::<LeastRequest>(any) {
            let pb = pb?;
            let slow = typed_slow_start(&pb.slow_start_config).at("slow_start_config")?;
            return Ok(Balancing::with(Balancer::LeastRequest, slow, locality(&pb.locality_lb_config)?));
        }
        if let Some(pb) = unpack::<PeakEwma>(any) {
            let pb = pb?;
            unless(pb.decay_milliseconds == 0, "decay_milliseconds", "must be more than zero")?;
            let slow = pb.slow_start.as_ref().map(|slow| {
                let whole = |n: u32| Some(Percent { value: f64::from(n) });
                let window = Duration::from_millis(slow.window_milliseconds);
                checked_slow_start(window, slow.aggression, percent(&whole(slow.min_weight_percent), 0.0)?)
            });
            let balancer = Balancer::PeakEwma { decay: Duration::from_millis(pb.decay_milliseconds) };
            return Ok(Balancing::with(balancer, slow.transpose().at("slow_start")?, false));
        }
        if let Some(pb) = unpack::<RingHash>(any) {
            let pb = pb?;
            consistent(&pb.consistent_hashing_lb_config)?;
            #[allow(deprecated)]
            unless(pb.use_hostname_for_hashing, "use_hostname_for_hashing", "is not supported")?;
            let murmur = pb.hash_function == ring_hash::HashFunction::MurmurHash2 as i32;
            let mut made = ring(murmur, &pb.minimum_ring_size, &pb.maximum_ring_size)?;
            made.spread.locality_weights = pb.locality_weighted_lb_config.is_some();
            return Ok(made);
        }
        if let Some(pb) = unpack::<Maglev>(any) {
            let pb = pb?;
            consistent(&pb.consistent_hashing_lb_config)?;
            let mut made = maglev(&pb.table_size)?;
            made.spread.locality_weights = pb.locality_weighted_lb_config.is_some();
            return Ok(made);
        }
        if let Some(pb) = unpack::<WrrLocality>(any) {
            let mut made = typed(&pb?.endpoint_picking_policy.unwrap_or_default()).at("endpoint_picking_policy")?;
            made.spread.locality_weights = true;
            return Ok(made);
        }
    }
    let reason = "none is supported; use round_robin, least_request, random, ring_hash or maglev";
    Err(Rejected::field("policies", reason))
}

fn consistent(pb: &Option<ConsistentHashingLbConfig>) -> Decoded<()> {
    let unknown = |it: &ConsistentHashingLbConfig| {
        it.use_hostname_for_hashing || it.hash_balance_factor.is_some() || !it.hash_policy.is_empty()
    };
    unless(pb.as_ref().is_some_and(unknown), "consistent_hashing_lb_config", "is not supported")
}

fn locality(pb: &Option<LocalityLbConfig>) -> Decoded<bool> {
    match pb.as_ref().and_then(|it| it.locality_config_specifier.as_ref()) {
        None => Ok(false),
        Some(TypedLocality::LocalityWeightedLbConfig(_)) => Ok(true),
        Some(TypedLocality::ZoneAwareLbConfig(_)) => {
            Err(Rejected::field("locality_lb_config.zone_aware_lb_config", ZONE_AWARE))
        }
    }
}

fn typed_slow_start(pb: &Option<SlowStartConfig>) -> Decoded<Option<SlowStart>> {
    let made = pb.as_ref().map(|it| slow_start(&it.slow_start_window, &it.aggression, &it.min_weight_percent));
    made.transpose()
}

fn slow_start(
    window: &Option<PbDuration>,
    aggression: &Option<RuntimeDouble>,
    least: &Option<Percent>,
) -> Decoded<SlowStart> {
    let window = duration_or("slow_start_window", window, Duration::ZERO)?;
    let aggression = aggression.as_ref().map_or(1.0, |it| it.default_value);
    checked_slow_start(window, aggression, percent(least, MIN_WEIGHT_PERCENT).at("min_weight_percent")?)
}

fn checked_slow_start(window: Duration, aggression: f64, min_weight_percent: f64) -> Decoded<SlowStart> {
    unless(window.is_zero(), "slow_start_window", "must be more than zero")?;
    unless(!(aggression.is_finite() && aggression > 0.0), "aggression", "must be more than zero")?;
    Ok(SlowStart { window, aggression, min_weight_percent })
}

fn ring(murmur: bool, least: &Option<UInt64Value>, most: &Option<UInt64Value>) -> Decoded<Balancing> {
    unless(murmur, "hash_function", "only XX_HASH is supported")?;
    let least = least.as_ref().map_or(MIN_RING, |it| it.value);
    let most = most.as_ref().map_or(MAX_RING, |it| it.value);
    unless(most > MAX_RING, "maximum_ring_size", "must not be more than 8388608")?;
    unless(least > most, "minimum_ring_size", "must not be more than the maximum")?;
    let size = |it: u64| u32::try_from(it).unwrap_or(u32::MAX);
    Ok(Balancing::plain(Balancer::RingHash { min_size: size(least), max_size: size(most) }))
}

fn maglev(size: &Option<UInt64Value>) -> Decoded<Balancing> {
    let size = size.as_ref().map_or(MAGLEV, |it| it.value);
    let fits = size <= MAX_MAGLEV && is_prime(size);
    unless(!fits, "table_size", "must be a prime number of at most 5000011")?;
    Ok(Balancing::plain(Balancer::Maglev { size: u32::try_from(size).unwrap_or_default() }))
}

fn is_prime(n: u64) -> bool {
    n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

fn percent(pb: &Option<Percent>, default: f64) -> Decoded<f64> {
    let value = pb.as_ref().map_or(default, |it| it.value);
    let wrong = !(0.0..=100.0).contains(&value);
    if wrong { Err(Rejected::new(format_args!("{value} is not a percentage"))) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config::{
        LocalityWeightedLbConfig, ZoneAwareLbConfig,
    };
    use envoy_types::pb::envoy::config::cluster::v3::cluster::{
        CommonLbConfig, LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig, SlowStartConfig as PbSlowStart,
    };
    use envoy_types::pb::envoy::config::cluster::v3::load_balancing_policy::Policy;
    use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
    use envoy_types::pb::google::protobuf::Any;
    use envoy_types::util::pack_any;
    use prost::Message;

    use super::*;

    fn by(policy: LbPolicy, config: Option<LbConfig>) -> PbCluster {
        PbCluster { lb_policy: policy as i32, lb_config: config, ..PbCluster::default() }
    }

    fn by_type(any: Any) -> PbCluster {
        let extension = TypedExtensionConfig { name: "x".into(), typed_config: Some(any) };
        let policies = vec![Policy { typed_extension_config: Some(extension) }];
        PbCluster { load_balancing_policy: Some(LoadBalancingPolicy { policies }), ..PbCluster::default() }
    }

    fn common(common: CommonLbConfig) -> PbCluster {
        PbCluster { common_lb_config: Some(common), ..PbCluster::default() }
    }

    fn ring_of(least: u64, most: u64) -> PbCluster {
        let size = |value| Some(UInt64Value { value });
        let config =
            RingHashLbConfig { minimum_ring_size: size(least), maximum_ring_size: size(most), ..Default::default() };
        by(LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(config)))
    }

    fn maglev_of(value: u64) -> PbCluster {
        let config = MaglevLbConfig { table_size: Some(UInt64Value { value }) };
        by(LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(config)))
    }

    fn slow(seconds: i64, aggression: f64, least: f64) -> PbCluster {
        let slow_start_config = Some(PbSlowStart {
            slow_start_window: Some(PbDuration { seconds, nanos: 0 }),
            aggression: Some(RuntimeDouble { default_value: aggression, runtime_key: String::new() }),
            min_weight_percent: Some(Percent { value: least }),
        });
        let config = LeastRequestLbConfig { slow_start_config, ..Default::default() };
        by(LbPolicy::LeastRequest, Some(LbConfig::LeastRequestLbConfig(config)))
    }

    fn ewma(decay_milliseconds: u64) -> PbCluster {
        let value = PeakEwma { decay_milliseconds, slow_start: None }.encode_to_vec();
        by_type(Any { type_url: "type.googleapis.com/mesh.extensions.v1.PeakEwma".into(), value })
    }

    #[test]
    fn balancers_are_told_by_number_and_by_type() {
        let of = |pb: PbCluster| balancing(&pb).unwrap().balancer;
        let default_ring = Balancer::RingHash { min_size: 1024, max_size: 8 << 20 };
        assert_eq!(of(by(LbPolicy::RingHash, None)), default_ring);
        assert_eq!(of(ring_of(10, 20)), Balancer::RingHash { min_size: 10, max_size: 20 });
        assert_eq!(of(by(LbPolicy::Maglev, None)), Balancer::Maglev { size: 65_537 });
        assert_eq!(of(maglev_of(7)), Balancer::Maglev { size: 7 });
        assert_eq!(of(by_type(pack_any(RingHash::default()))), default_ring);
        assert_eq!(of(by_type(pack_any(Maglev::default()))), Balancer::Maglev { size: 65_537 });
        assert_eq!(of(ewma(500)), Balancer::PeakEwma { decay: Duration::from_millis(500) });
    }

    #[test]
    fn envoys_defaults_hold_for_what_is_left_out() {
        let plain = balancing(&PbCluster::default()).unwrap().spread;
        assert_eq!(plain, Spread { slow_start: None, panic_percent: 50, locality_weights: false });
        let weighted = LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {});
        let set = CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: 0.0 }),
            locality_config_specifier: Some(weighted),
            ..Default::default()
        };
        let spread = balancing(&common(set)).unwrap().spread;
        assert_eq!((spread.panic_percent, spread.locality_weights), (0, true));
        let config = balancing(&slow(10, 2.0, 5.0)).unwrap().spread.slow_start;
        let expected = SlowStart { window: Duration::from_secs(10), aggression: 2.0, min_weight_percent: 5.0 };
        assert_eq!(config, Some(expected));
    }

    #[test]
    fn nonsense_is_refused_with_its_place() {
        let zone_aware = LocalityConfigSpecifier::ZoneAwareLbConfig(ZoneAwareLbConfig::default());
        let panic = |value| CommonLbConfig { healthy_panic_threshold: Some(Percent { value }), ..Default::default() };
        let threshold = "common_lb_config.healthy_panic_threshold";
        for (pb, field) in [
            (ring_of(20, 10), "ring_hash_lb_config.minimum_ring_size"),
            (ring_of(1, (8 << 20) + 1), "ring_hash_lb_config.maximum_ring_size"),
            (maglev_of(65_536), "maglev_lb_config.table_size"),
            (maglev_of(0), "maglev_lb_config.table_size"),
            (maglev_of(10_000_019), "maglev_lb_config.table_size"),
            (slow(0, 1.0, 10.0), "least_request_lb_config.slow_start_config.slow_start_window"),
            (slow(-1, 1.0, 10.0), "least_request_lb_config.slow_start_config.slow_start_window"),
            (slow(1, 0.0, 10.0), "least_request_lb_config.slow_start_config.aggression"),
            (slow(1, f64::NAN, 10.0), "least_request_lb_config.slow_start_config.aggression"),
            (slow(1, 1.0, 101.0), "least_request_lb_config.slow_start_config.min_weight_percent"),
            (ewma(0), "load_balancing_policy.decay_milliseconds"),
            (common(panic(-1.0)), threshold),
            (common(panic(f64::NAN)), threshold),
            (common(panic(100.5)), threshold),
            (
                common(CommonLbConfig { locality_config_specifier: Some(zone_aware), ..Default::default() }),
                "common_lb_config.zone_aware_lb_config",
            ),
        ] {
            assert_eq!(balancing(&pb).err().unwrap().field, field);
        }
    }
}
