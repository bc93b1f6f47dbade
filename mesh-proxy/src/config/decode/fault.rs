//! Faults: our own, which know callers, resets and an end, and Envoy's delay, abort and throttle.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_rate_limit::LimitType;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use envoy_types::pb::google::protobuf::Any;
use http::StatusCode;
use mesh_common::proto::extensions::{
    Fault as PbFault, FaultRule as PbRule, HeaderMatch as PbHeader, fault_rule, header_match,
};

use super::{At, Decoded, Rejected, duration, each, matching, parts_per_million, unless, unpack};
use crate::config::{Fault, FaultKind, FaultRule, HeaderMatch, StringMatch};
use crate::error::grpc_status_of;
use crate::fault::Share;
use crate::pace::Rate;

/// `None` if it is of another type.
pub(super) fn fault(any: &Any) -> Option<Decoded<Fault>> {
    if let Some(pb) = unpack::<HttpFault>(any) {
        return Some(pb.and_then(envoy_fault));
    }
    Some(unpack::<PbFault>(any)?.and_then(|pb| Ok(Fault { rules: each("rules", pb.rules, rule)? })))
}

fn rule(pb: PbRule) -> Decoded<FaultRule> {
    unless(pb.parts_per_million > 1_000_000, "parts_per_million", "must not be more than 1000000")?;
    let kind = match pb.kind {
        Some(fault_rule::Kind::Delay(delay)) => FaultKind::Delay(Duration::from_millis(delay.milliseconds)),
        Some(fault_rule::Kind::Reset(_)) => FaultKind::Reset,
        Some(fault_rule::Kind::Throttle(throttle)) => {
            let zero = || Rejected::field("throttle.bytes_per_second", "must be more than zero");
            FaultKind::Throttle(Rate::new(throttle.bytes_per_second).ok_or_else(zero)?)
        }
        Some(fault_rule::Kind::Abort(abort)) => {
            let http = status(abort.http_status).at("abort.http_status")?;
            unless(abort.grpc_status > 16, "abort.grpc_status", "must be 0 to 16")?;
            let grpc = if abort.grpc_status == 0 { grpc_status_of(http) } else { abort.grpc_status };
            FaultKind::Abort { http, grpc }
        }
        None => return Err(Rejected::new("one of delay, abort, reset and throttle is needed")),
    };
    let headers = each("headers", pb.headers, header)?;
    Ok(FaultRule {
        name: pb.name,
        parts_per_million: pb.parts_per_million,
        kind,
        expires_unix_ms: pb.expires_unix_ms,
        headers: Arc::new(headers),
        share: Share::default(),
    })
}

fn header(pb: PbHeader) -> Decoded<HeaderMatch> {
    let name = pb.name.to_ascii_lowercase();
    if name.is_empty() {
        return Err(Rejected::field("name", "must not be empty"));
    }
    let matcher = match pb.matcher {
        Some(header_match::Matcher::Exact(text)) => StringMatch::Exact(text),
        Some(header_match::Matcher::Regex(pattern)) => StringMatch::Regex(matching::whole(&pattern).at("regex")?),
        Some(header_match::Matcher::Present(present)) => StringMatch::Present(present),
        None => return Err(Rejected::new("one of exact, regex and present is needed")),
    };
    Ok(HeaderMatch { name, matcher, invert: false })
}

/// Envoy's fault filter: at most one delay, then at most one abort, and at most one throttle.
fn envoy_fault(pb: HttpFault) -> Decoded<Fault> {
    unless(!pb.upstream_cluster.is_empty(), "upstream_cluster", "is not supported; put the fault on the route")?;
    unless(!pb.downstream_nodes.is_empty(), "downstream_nodes", "is not supported")?;
    let headers = Arc::new(each("headers", pb.headers, matching::header)?);
    let mut rules = Vec::new();
    let mut push = |parts_per_million, kind| {
        let headers = headers.clone();
        let share = Share::default();
        rules.push(FaultRule { name: String::new(), parts_per_million, kind, expires_unix_ms: 0, headers, share });
    };
    if let Some(delay) = pb.delay {
        let Some(FaultDelaySecifier::FixedDelay(fixed)) = &delay.fault_delay_secifier else {
            return Err(Rejected::field("delay", "only fixed_delay is supported"));
        };
        let share = delay.percentage.as_ref().map_or(Ok(0), parts_per_million).at("delay.percentage")?;
        push(share, FaultKind::Delay(duration(fixed).at("delay.fixed_delay")?));
    }
    if let Some(abort) = pb.abort {
        let share = abort.percentage.as_ref().map_or(Ok(0), parts_per_million).at("abort.percentage")?;
        let kind = match abort.error_type {
            Some(ErrorType::HttpStatus(code)) => {
                let http = status(code).at("abort.http_status")?;
                FaultKind::Abort { http, grpc: grpc_status_of(http) }
            }
            Some(ErrorType::GrpcStatus(grpc @ 1..=16)) => {
                FaultKind::Abort { http: StatusCode::SERVICE_UNAVAILABLE, grpc }
            }
            _ => return Err(Rejected::field("abort", "needs http_status, or grpc_status from 1 to 16")),
        };
        push(share, kind);
    }
    if let Some(limit) = pb.response_rate_limit {
        let Some(LimitType::FixedLimit(fixed)) = &limit.limit_type else {
            return Err(Rejected::field("response_rate_limit", "only fixed_limit is supported"));
        };
        let share = limit.percentage.as_ref().map_or(Ok(0), parts_per_million).at("response_rate_limit.percentage")?;
        let rate = fixed.limit_kbps.checked_mul(1024).and_then(Rate::new);
        let zero = || Rejected::field("response_rate_limit.fixed_limit.limit_kbps", "is not a rate");
        push(share, FaultKind::Throttle(rate.ok_or_else(zero)?));
    }
    Ok(Fault { rules })
}

fn status(code: u32) -> Decoded<StatusCode> {
    u16::try_from(code)
        .ok()
        .filter(|code| (200..600).contains(code))
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or_else(|| Rejected::new(format_args!("{code} is not a status from 200 to 599")))
}
