//! Faults, for the callers that they concern: our own message where it is understood, Envoy's (delay, abort and throttle) elsewhere.

use std::sync::Arc;

use envoy_types::pb::envoy::config::listener::v3::{Filter, filter};
use envoy_types::pb::envoy::config::route::v3::HeaderMatcher;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_rate_limit::{FixedLimit, LimitType};
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::{FaultDelay, FaultRateLimit};
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault};
use envoy_types::pb::google::protobuf::Any;
use mesh_common::names;
use mesh_common::proto::extensions as own;
use mesh_common::resource::{MatchType, NamedMatch};

use super::Scope;
use super::build::{any, duration, fraction, own_any};
use super::matching::header;
use crate::model::{FaultKind, FaultRule};

/// A route's configuration of the fault filter. `grpc`: its requests are gRPC.
pub(super) fn of_filter<'a>(
    scope: &Scope,
    rules: impl Iterator<Item = &'a Arc<FaultRule>>,
    grpc: bool,
) -> Option<(&'static str, Any)> {
    let rules = concerning(scope, rules);
    let config = if rules.is_empty() {
        None
    } else if scope.faults {
        Some(own_any(&own::Fault { rules: rules.into_iter().map(own_rule).collect() }))
    } else {
        envoy(&rules, grpc).map(any)
    };
    config.map(|config| (names::FILTER_FAULT, config))
}

/// A filter in front of a TCP proxy.
pub(super) fn of_stream(scope: &Scope, rules: &[Arc<FaultRule>]) -> Option<Filter> {
    let fits = |rule: &&FaultRule| !matches!(rule.kind, FaultKind::Abort { .. }) && rule.headers.is_empty();
    let rules: Vec<_> = concerning(scope, rules.iter()).into_iter().filter(fits).map(own_rule).collect();
    let config = filter::ConfigType::TypedConfig(own_any(&own::Fault { rules: rules.clone() }));
    (scope.faults && !rules.is_empty())
        .then(|| Filter { name: "mesh.filters.network.fault".to_owned(), config_type: Some(config) })
}

fn concerning<'a>(scope: &Scope, rules: impl Iterator<Item = &'a Arc<FaultRule>>) -> Vec<&'a FaultRule> {
    let concerns =
        |rule: &&FaultRule| rule.concerns(scope.identity.as_ref(), &scope.namespace, &scope.service, &scope.workload);
    // A proxy of ours that is older than this kind would refuse all of the route's faults.
    let known = |rule: &&FaultRule| !scope.faults || scope.throttles || !matches!(rule.kind, FaultKind::Throttle(_));
    rules.map(|rule| &**rule).filter(|rule| rule.parts_per_million > 0).filter(known).filter(concerns).collect()
}

fn own_rule(rule: &FaultRule) -> own::FaultRule {
    use own::fault_rule::Kind;
    own::FaultRule {
        name: rule.name.clone(),
        parts_per_million: rule.parts_per_million,
        kind: Some(match rule.kind {
            FaultKind::Delay(delay) => {
                Kind::Delay(own::Delay { milliseconds: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX) })
            }
            FaultKind::Abort { http, grpc } => {
                Kind::Abort(own::Abort { http_status: u32::from(http), grpc_status: grpc.unwrap_or_default() })
            }
            FaultKind::Reset => Kind::Reset(own::Reset {}),
            FaultKind::Throttle(rate) => Kind::Throttle(own::Throttle { bytes_per_second: rate.per_second() }),
        }),
        expires_unix_ms: rule.expires.unwrap_or_default(),
        headers: rule.headers.iter().map(own_header).collect(),
    }
}

fn own_header(matched: &NamedMatch) -> own::HeaderMatch {
    use own::header_match::Matcher;
    let matcher = match matched.match_type.unwrap_or_default() {
        MatchType::Exact => Matcher::Exact(matched.value.clone()),
        MatchType::RegularExpression => Matcher::Regex(matched.value.clone()),
    };
    own::HeaderMatch { name: matched.name.clone(), matcher: Some(matcher) }
}

/// Envoy's filter has one match, one delay, one abort and one throttle: the first of each, of those that match as the first rule does.
fn envoy(rules: &[&FaultRule], grpc: bool) -> Option<HttpFault> {
    let usable: Vec<_> = rules.iter().filter(|rule| rule.kind != FaultKind::Reset).collect();
    let headers = &usable.first()?.headers;
    let same = usable.iter().filter(|rule| rule.headers == *headers);
    let delay = same.clone().find_map(|rule| match rule.kind {
        FaultKind::Delay(delay) => Some(FaultDelay {
            percentage: fraction(rule.parts_per_million),
            fault_delay_secifier: duration(delay).map(FaultDelaySecifier::FixedDelay),
        }),
        _ => None,
    });
    let abort = same.clone().find_map(|rule| match rule.kind {
        FaultKind::Abort { http, grpc: status } => Some(FaultAbort {
            percentage: fraction(rule.parts_per_million),
            error_type: Some(match status {
                Some(status) if grpc => ErrorType::GrpcStatus(status),
                _ => ErrorType::HttpStatus(u32::from(http)),
            }),
            ..FaultAbort::default()
        }),
        _ => None,
    });
    let mut throttles = same.filter_map(|rule| match rule.kind {
        FaultKind::Throttle(rate) => Some(FaultRateLimit {
            percentage: fraction(rule.parts_per_million),
            limit_type: Some(LimitType::FixedLimit(FixedLimit { limit_kbps: rate.kibibytes() })),
        }),
        _ => None,
    });
    let response_rate_limit = throttles.next();
    let headers: Vec<HeaderMatcher> = headers.iter().map(header).collect();
    Some(HttpFault { delay, abort, response_rate_limit, headers, ..HttpFault::default() })
}
