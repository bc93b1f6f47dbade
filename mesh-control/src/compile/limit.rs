//! Limits of the server's side: of rates, as Envoy's filter for them has it; of what is there at a time, in our own words, which
//! know callers and requests, and for others in Envoy's, as far as those go.

use envoy_types::pb::envoy::config::core::v3::{RuntimeFractionalPercent, TypedExtensionConfig};
use envoy_types::pb::envoy::config::listener::v3::Filter;
use envoy_types::pb::envoy::config::route::v3::RateLimit;
use envoy_types::pb::envoy::config::route::v3::rate_limit::Action;
use envoy_types::pb::envoy::config::route::v3::rate_limit::action::{ActionSpecifier, RequestHeaders};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::LocalRateLimitDescriptor;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use envoy_types::pb::envoy::extensions::filters::http::bandwidth_limit::v3::BandwidthLimit;
use envoy_types::pb::envoy::extensions::filters::http::bandwidth_limit::v3::bandwidth_limit::EnableMode;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{HttpFilter, http_filter};
use envoy_types::pb::envoy::extensions::rate_limit_descriptors::expr::v3::Descriptor;
use envoy_types::pb::envoy::extensions::rate_limit_descriptors::expr::v3::descriptor::ExprSpecifier;
use envoy_types::pb::envoy::r#type::v3::TokenBucket;
use envoy_types::pb::google::protobuf::UInt64Value;
use mesh_common::names::{EXPR_CALLER_IDENTITY, LIMIT_KEYS};
use mesh_common::proto::extensions::{AtATime as PbAtATime, Bandwidth as PbBandwidth, Limits};
use mesh_common::resource::{AtATime, Bandwidth, ByteRate, ByteSize, LimitBy, RequestLimit, Size};

use super::build::{any, boolean, duration, fraction, own_any, uint32};
use super::{Scope, http};

/// What the one entry of a descriptor is called.
const KEY: &str = "by";

/// What the port takes, before anything else is done with a connection.
pub(super) fn of_port(
    name: &str,
    scope: &Scope,
    connections: Option<&AtATime>,
    requests: Option<&AtATime>,
    bandwidth: Option<&Bandwidth>,
    size: Option<&Size>,
) -> Option<Filter> {
    let [connections, requests] = [connections, requests].map(|limit| limit.filter(|it| it.is_on()));
    let bandwidth = bandwidth.filter(|it| it.is_on());
    let size = size.copied().unwrap_or_default();
    let [max_head, max_body] = [size.headers, size.body].map(|size| size.map_or(0, ByteSize::bytes));
    let limited = connections.is_some() || requests.is_some() || bandwidth.is_some() || max_head > 0 || max_body > 0;
    if scope.limits && limited {
        let pb = |limit: &AtATime| PbAtATime {
            max: limit.max.unwrap_or_default(),
            per_caller: limit.per_caller.unwrap_or_default(),
        };
        let way = |all: Option<ByteRate>, each: Option<ByteRate>| {
            let [max, per_caller] = [all, each].map(|rate| rate.map_or(0, ByteRate::per_second));
            (max > 0 || per_caller > 0).then_some(PbBandwidth { max, per_caller })
        };
        let limits = Limits {
            name: name.to_owned(),
            connections: connections.map(pb),
            requests: requests.map(pb),
            up: bandwidth.and_then(|it| way(it.up, it.per_caller().up)),
            down: bandwidth.and_then(|it| way(it.down, it.per_caller().down)),
            max_head,
            max_body,
        };
        return Some(http::network("mesh.limits", own_any(&limits)));
    }
    let max = connections?.max?;
    let limit = ConnectionLimit {
        stat_prefix: name.to_owned(),
        max_connections: Some(UInt64Value { value: u64::from(max) }),
        ..ConnectionLimit::default()
    };
    Some(http::network("envoy.filters.network.connection_limit", any(limit)))
}

/// Envoy's filter for each way. It knows no callers, and each chain has a bucket of its own.
pub(super) fn bandwidth(stat_prefix: &str, limit: &Bandwidth) -> Vec<HttpFilter> {
    let ways = [("up", limit.up, EnableMode::Request), ("down", limit.down, EnableMode::Response)];
    let filter = |(name, rate, mode): (&str, Option<ByteRate>, EnableMode)| {
        let config = BandwidthLimit {
            stat_prefix: format!("{stat_prefix}.{name}"),
            enable_mode: mode as i32,
            limit_kbps: Some(UInt64Value { value: rate?.kibibytes() }),
            ..BandwidthLimit::default()
        };
        Some(HttpFilter {
            name: format!("envoy.filters.http.bandwidth_limit.{name}"),
            config_type: Some(http_filter::ConfigType::TypedConfig(any(config))),
            ..HttpFilter::default()
        })
    };
    ways.into_iter().filter_map(filter).collect()
}

pub(super) fn filter(stat_prefix: &str, limit: &RequestLimit) -> HttpFilter {
    let bucket = || {
        Some(TokenBucket {
            max_tokens: limit.burst(),
            tokens_per_fill: uint32(limit.rate),
            fill_interval: duration(limit.per()),
        })
    };
    let always =
        || Some(RuntimeFractionalPercent { default_value: fraction(1_000_000), ..RuntimeFractionalPercent::default() });
    // A value that is left out is any, and each has a bucket of its own.
    let each = || Entry { key: KEY.to_owned(), value: String::new() };
    let descriptor = || LocalRateLimitDescriptor {
        entries: vec![each()],
        token_bucket: bucket(),
        ..LocalRateLimitDescriptor::default()
    };
    let action = limit.by.map(|by| Action { action_specifier: Some(specifier(by, limit)) });
    let keyed = action.map(|action| RateLimit { actions: vec![action], ..RateLimit::default() });
    let config = LocalRateLimit {
        stat_prefix: stat_prefix.to_owned(),
        // Of requests that have none of their own.
        token_bucket: bucket(),
        always_consume_default_token_bucket: keyed.as_ref().and_then(|_| boolean(false)),
        descriptors: keyed.iter().map(|_| descriptor()).collect(),
        max_dynamic_descriptors: keyed.as_ref().and_then(|_| uint32(LIMIT_KEYS)),
        rate_limits: keyed.into_iter().collect(),
        filter_enabled: always(),
        filter_enforced: always(),
        rate_limited_as_resource_exhausted: true,
        enable_retry_after_header: true,
        ..LocalRateLimit::default()
    };
    HttpFilter {
        name: "envoy.filters.http.local_ratelimit".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(config))),
        ..HttpFilter::default()
    }
}

fn specifier(by: LimitBy, limit: &RequestLimit) -> ActionSpecifier {
    match by {
        LimitBy::Header => ActionSpecifier::RequestHeaders(RequestHeaders {
            header_name: limit.header.clone().unwrap_or_default(),
            descriptor_key: KEY.to_owned(),
            ..RequestHeaders::default()
        }),
        LimitBy::CallerIdentity => ActionSpecifier::Extension(TypedExtensionConfig {
            name: "envoy.rate_limit_descriptors.expr".to_owned(),
            typed_config: Some(any(Descriptor {
                descriptor_key: KEY.to_owned(),
                skip_if_error: false,
                expr_specifier: Some(ExprSpecifier::Text(EXPR_CALLER_IDENTITY.to_owned())),
            })),
        }),
    }
}
