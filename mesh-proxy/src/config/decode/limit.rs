//! Envoy's filter for local rate limits, as far as one bucket, or one for each caller or value of a header, goes; and what a port
//! takes at a time, in our own words and in Envoy's.

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::config::route::v3::RateLimit as PbRule;
use envoy_types::pb::envoy::config::route::v3::rate_limit::action::ActionSpecifier;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::LocalRateLimitDescriptor;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit;
use envoy_types::pb::envoy::extensions::rate_limit_descriptors::expr::v3::Descriptor;
use envoy_types::pb::envoy::extensions::rate_limit_descriptors::expr::v3::descriptor::ExprSpecifier;
use envoy_types::pb::envoy::r#type::v3::TokenBucket;
use envoy_types::pb::google::protobuf::Any;
use mesh_common::names::EXPR_CALLER_IDENTITY;
use mesh_common::proto::extensions::{AtATime as PbAtATime, Bandwidth as PbBandwidth, Limits as PbLimits};

use super::{At, Decoded, Rejected, duration, parts_per_million, unless, unpack, unsupported_type};
use crate::config::{AtATime, LimitBy, PortLimits, PortRate, RequestLimit};
use crate::limit::Rate;
use crate::pace;

/// `None`: nothing is limited.
pub(super) fn limit(pb: LocalRateLimit) -> Decoded<Option<RequestLimit>> {
    let enabled = share(pb.filter_enabled.as_ref()).at("filter_enabled")?;
    let enforced = share(pb.filter_enforced.as_ref()).at("filter_enforced")?;
    if !(enabled && enforced) {
        return Ok(None);
    }
    let status = pb.status.map_or(429, |status| status.code);
    unless(status != 429 && status != 0, "status", "other than 429 is not supported")?;
    unless(!pb.response_headers_to_add.is_empty(), "response_headers_to_add", "is not supported")?;
    unless(pb.stage != 0, "stage", "is not supported")?;
    let by_connection = pb.local_rate_limit_per_downstream_connection;
    unless(by_connection, "local_rate_limit_per_downstream_connection", "is not supported")?;
    unless(pb.local_cluster_rate_limit.is_some(), "local_cluster_rate_limit", "is not supported")?;
    let bucket = pb.token_bucket.as_ref().ok_or_else(|| Rejected::field("token_bucket", "is needed"))?;
    let rate = rate(bucket).at("token_bucket")?;
    let by = match (pb.rate_limits.as_slice(), pb.descriptors.as_slice()) {
        ([], []) => LimitBy::Nobody,
        ([rule], [descriptor]) => {
            let both = pb.always_consume_default_token_bucket.is_none_or(|it| it.value);
            unless(both, "always_consume_default_token_bucket", "must be false beside descriptors")?;
            let same = descriptor.token_bucket.as_ref() == Some(bucket);
            unless(!same, "descriptors[0].token_bucket", "other than that of the rest is not supported")?;
            by(rule, descriptor)?
        }
        _ => return Err(Rejected::field("descriptors", "at most one, with one of rate_limits, is supported")),
    };
    Ok(Some(RequestLimit { rate, by }))
}

/// What a port takes at a time; `None`: this is not about that.
pub(super) fn port_limits(any: &Any) -> Option<Decoded<PortLimits>> {
    if let Some(pb) = unpack::<PbLimits>(any) {
        return Some(pb.and_then(own_limits));
    }
    unpack::<ConnectionLimit>(any).map(|pb| pb.and_then(connection_limit))
}

fn own_limits(pb: PbLimits) -> Decoded<PortLimits> {
    unless(pb.name.is_empty(), "name", "must not be empty")?;
    Ok(PortLimits {
        name: pb.name,
        connections: pb.connections.and_then(at_a_time),
        requests: pb.requests.and_then(at_a_time),
        up: pb.up.and_then(port_rate),
        down: pb.down.and_then(port_rate),
        max_head: Some(pb.max_head).filter(|max| *max > 0),
        max_body: Some(pb.max_body).filter(|max| *max > 0),
    })
}

fn at_a_time(pb: PbAtATime) -> Option<AtATime> {
    let some = |n: u32| (n > 0).then_some(n);
    let limit = AtATime { max: some(pb.max), per_caller: some(pb.per_caller) };
    (limit.max.is_some() || limit.per_caller.is_some()).then_some(limit)
}

fn port_rate(pb: PbBandwidth) -> Option<PortRate> {
    let [max, per_caller] = [pb.max, pb.per_caller].map(pace::Rate::new);
    (max.is_some() || per_caller.is_some()).then_some(PortRate { max, per_caller })
}

fn connection_limit(pb: ConnectionLimit) -> Decoded<PortLimits> {
    unless(pb.stat_prefix.is_empty(), "stat_prefix", "must not be empty")?;
    unless(pb.delay.is_some(), "delay", "is not supported")?;
    unless(pb.runtime_enabled.is_some(), "runtime_enabled", "is not supported")?;
    let max = pb.max_connections.map_or(0, |it| it.value);
    unless(max == 0, "max_connections", "must be more than zero")?;
    // Beyond what can be counted there is no limit.
    let connections = u32::try_from(max).ok().map(|max| AtATime { max: Some(max), per_caller: None });
    Ok(PortLimits { connections, ..PortLimits::none(&pb.stat_prefix) })
}

/// Whether it is for all requests; left out, it is for none.
fn share(fraction: Option<&RuntimeFractionalPercent>) -> Decoded<bool> {
    match fraction.and_then(|it| it.default_value.as_ref()).map_or(Ok(0), parts_per_million)? {
        0 => Ok(false),
        1_000_000 => Ok(true),
        _ => Err(Rejected::new("other than 0 % and 100 % is not supported")),
    }
}

fn rate(pb: &TokenBucket) -> Decoded<Rate> {
    let filled = pb.tokens_per_fill.as_ref().map_or(1, |it| it.value);
    let window = pb.fill_interval.as_ref().ok_or_else(|| Rejected::field("fill_interval", "is needed"))?;
    let window = duration(window).at("fill_interval")?;
    Rate::new(filled, window, pb.max_tokens)
        .ok_or_else(|| Rejected::new("a bucket holds, and is filled by, more than nothing"))
}

fn by(rule: &PbRule, descriptor: &LocalRateLimitDescriptor) -> Decoded<LimitBy> {
    let [action] = rule.actions.as_slice() else {
        return Err(Rejected::field("rate_limits[0].actions", "one is supported"));
    };
    let (by, key) = match &action.action_specifier {
        Some(ActionSpecifier::RequestHeaders(pb)) => {
            let name = http::HeaderName::from_bytes(pb.header_name.as_bytes());
            let wrong = |_| Rejected::field("rate_limits[0].actions[0].header_name", "is not the name of a header");
            (LimitBy::Header(name.map_err(wrong)?), pb.descriptor_key.clone())
        }
        Some(ActionSpecifier::Extension(extension)) => {
            let any = extension.typed_config.clone().unwrap_or_default();
            let pb = unpack::<Descriptor>(&any).ok_or_else(|| unsupported_type(&any))??;
            match pb.expr_specifier {
                Some(ExprSpecifier::Text(text)) if text == EXPR_CALLER_IDENTITY => (),
                _ => {
                    let reason = format!("an expression other than {EXPR_CALLER_IDENTITY} is not supported");
                    return Err(Rejected::field("rate_limits[0].actions[0]", reason));
                }
            }
            (LimitBy::Identity, pb.descriptor_key)
        }
        _ => return Err(Rejected::field("rate_limits[0].actions[0]", "is not supported")),
    };
    match descriptor.entries.as_slice() {
        [entry] if entry.key == key && entry.value.is_empty() && !descriptor.shadow_mode => Ok(by),
        _ => Err(Rejected::field("descriptors[0]", "one entry, of the action's key and any value, is supported")),
    }
}
