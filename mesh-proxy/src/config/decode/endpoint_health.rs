//! OutlierDetection and HealthCheck of a Cluster -> [`EndpointHealth`].

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::{Cluster as PbCluster, OutlierDetection as PbOutliers};
use envoy_types::pb::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, TcpHealthCheck,
};
use envoy_types::pb::envoy::config::core::v3::{HealthCheck as PbCheck, RequestMethod};
use envoy_types::pb::envoy::r#type::v3::{CodecClientType, Int64Range};
use envoy_types::pb::google::protobuf::{BoolValue, UInt32Value};
use http::uri::{Authority, PathAndQuery};

use super::{At, Decoded, Rejected, duration_or, each, is_true, unless};
use crate::config::{CheckKind, EndpointHealth, HealthCheck, HttpCheck, OutlierDetection, SuccessRate};

/// Envoy's defaults.
const INTERVAL: Duration = Duration::from_secs(10);
const EJECTION: Duration = Duration::from_secs(30);
const LONGEST_EJECTION: Duration = Duration::from_secs(300);

pub(super) fn of_cluster(pb: &PbCluster) -> Decoded<EndpointHealth> {
    unless(pb.health_checks.len() > 1, "health_checks", "only one is supported")?;
    let mut checks = each("health_checks", &pb.health_checks, |it| check(it, &pb.name))?;
    let outliers = pb.outlier_detection.as_ref().map(outliers).transpose().at("outlier_detection")?;
    Ok(EndpointHealth { outliers: outliers.flatten(), check: checks.pop().map(Arc::new) })
}

/// `None`: nothing is detected.
fn outliers(pb: &PbOutliers) -> Decoded<Option<OutlierDetection>> {
    unless(pb.split_external_local_origin_errors, "split_external_local_origin_errors", "is not supported")?;
    unless(!pb.monitors.is_empty(), "monitors", "are not supported")?;
    unless(is_true(&pb.detect_degraded_hosts), "detect_degraded_hosts", "is not supported")?;
    let percentage = enforced("enforcing_failure_percentage", &pb.enforcing_failure_percentage, false)?;
    unless(percentage, "enforcing_failure_percentage", "is not supported")?;
    let jitter = duration_or("max_ejection_time_jitter", &pb.max_ejection_time_jitter, Duration::ZERO)?;
    unless(!jitter.is_zero(), "max_ejection_time_jitter", "is not supported")?;
    let by_5xx = enforced("enforcing_consecutive_5xx", &pb.enforcing_consecutive_5xx, true)?;
    let by_gateway =
        enforced("enforcing_consecutive_gateway_failure", &pb.enforcing_consecutive_gateway_failure, false)?;
    let by_rate = enforced("enforcing_success_rate", &pb.enforcing_success_rate, true)?;
    let interval = positive("interval", duration_or("interval", &pb.interval, INTERVAL)?)?;
    let base = positive("base_ejection_time", duration_or("base_ejection_time", &pb.base_ejection_time, EJECTION)?)?;
    // As Envoy has it, a longer base moves the default of the most.
    let longest = duration_or("max_ejection_time", &pb.max_ejection_time, LONGEST_EJECTION.max(base))?;
    unless(longest < base, "max_ejection_time", "must not be less than base_ejection_time")?;
    let percent = or(&pb.max_ejection_percent, 10);
    unless(percent > 100, "max_ejection_percent", "must not be more than 100")?;
    let made = OutlierDetection {
        consecutive_5xx: by_5xx.then(|| or(&pb.consecutive_5xx, 5).max(1)),
        consecutive_gateway_failures: by_gateway.then(|| or(&pb.consecutive_gateway_failure, 5).max(1)),
        success_rate: by_rate.then(|| SuccessRate {
            deviations: f64::from(or(&pb.success_rate_stdev_factor, 1900)) / 1000.0,
            min_hosts: or(&pb.success_rate_minimum_hosts, 5),
            min_requests: or(&pb.success_rate_request_volume, 100),
        }),
        interval,
        base_ejection_time: base,
        max_ejection_time: longest,
        max_ejection_percent: percent,
        always_one: is_true(&pb.always_eject_one_host),
        ends_with_check: pb.successful_active_health_check_uneject_host.as_ref().is_none_or(|it: &BoolValue| it.value),
    };
    Ok((by_5xx || by_gateway || by_rate).then_some(made))
}

/// Whether a detector ejects. Envoy can let chance decide.
fn enforced(field: &str, pb: &Option<UInt32Value>, default: bool) -> Decoded<bool> {
    match pb.as_ref().map(|it| it.value) {
        None => Ok(default),
        Some(0) => Ok(false),
        Some(100) => Ok(true),
        Some(_) => Err(Rejected::field(field, "only 0 and 100 are supported")),
    }
}

fn or(pb: &Option<UInt32Value>, default: u32) -> u32 {
    pb.as_ref().map_or(default, |it| it.value)
}

fn positive(field: &str, duration: Duration) -> Decoded<Duration> {
    unless(duration.is_zero(), field, "must be more than zero")?;
    Ok(duration)
}

fn check(pb: &PbCheck, cluster: &str) -> Decoded<HealthCheck> {
    unless(pb.alt_port.is_some(), "alt_port", "is not supported")?;
    unless(pb.tls_options.is_some(), "tls_options", "is not supported")?;
    unless(pb.transport_socket_match_criteria.is_some(), "transport_socket_match_criteria", "is not supported")?;
    let interval = positive("interval", duration_or("interval", &pb.interval, Duration::ZERO)?)?;
    let timeout = positive("timeout", duration_or("timeout", &pb.timeout, Duration::ZERO)?)?;
    let jitter = duration_or("interval_jitter", &pb.interval_jitter, Duration::ZERO)?;
    let percent = pb.interval_jitter_percent.min(100);
    let threshold = |field: &str, pb: &Option<UInt32Value>| match pb.as_ref().map(|it| it.value) {
        Some(count) if count > 0 => Ok(count),
        _ => Err(Rejected::field(field, "must be more than zero")),
    };
    let kind = match &pb.health_checker {
        Some(HealthChecker::HttpHealthCheck(pb)) => CheckKind::Http(http(pb, cluster).at("http_health_check")?),
        Some(HealthChecker::GrpcHealthCheck(pb)) => grpc(pb, cluster).at("grpc_health_check")?,
        Some(HealthChecker::TcpHealthCheck(pb)) => tcp(pb).at("tcp_health_check")?,
        Some(HealthChecker::CustomHealthCheck(_)) => {
            return Err(Rejected::field("custom_health_check", "is not supported"));
        }
        None => {
            let reason = "one of http_health_check, grpc_health_check and tcp_health_check is needed";
            return Err(Rejected::new(reason));
        }
    };
    Ok(HealthCheck {
        kind,
        interval,
        timeout,
        jitter: jitter.saturating_add(interval.saturating_mul(percent) / 100),
        unhealthy_threshold: threshold("unhealthy_threshold", &pb.unhealthy_threshold)?,
        healthy_threshold: threshold("healthy_threshold", &pb.healthy_threshold)?,
    })
}

fn http(pb: &HttpHealthCheck, cluster: &str) -> Decoded<HttpCheck> {
    unless(pb.send.is_some(), "send", "is not supported")?;
    unless(!pb.receive.is_empty(), "receive", "is not supported")?;
    unless(!pb.request_headers_to_add.is_empty(), "request_headers_to_add", "is not supported")?;
    unless(!pb.request_headers_to_remove.is_empty(), "request_headers_to_remove", "is not supported")?;
    unless(pb.service_name_matcher.is_some(), "service_name_matcher", "is not supported")?;
    let get = [RequestMethod::MethodUnspecified as i32, RequestMethod::Get as i32].contains(&pb.method);
    unless(!get, "method", "only GET is supported")?;
    let path = PathAndQuery::try_from(pb.path.as_str()).ok().filter(|it| it.path().starts_with('/'));
    let mut expected = each("expected_statuses", &pb.expected_statuses, statuses)?;
    if expected.is_empty() {
        expected.push(200..201);
    }
    Ok(HttpCheck {
        path: path.ok_or_else(|| Rejected::field("path", "is not a path"))?,
        host: authority("host", &pb.host, cluster)?,
        http2: match CodecClientType::try_from(pb.codec_client_type) {
            Ok(CodecClientType::Http1) => false,
            Ok(CodecClientType::Http2) => true,
            _ => return Err(Rejected::field("codec_client_type", "only HTTP1 and HTTP2 are supported")),
        },
        expected,
        retriable: each("retriable_statuses", &pb.retriable_statuses, statuses)?,
    })
}

fn statuses(pb: &Int64Range) -> Decoded<Range<u16>> {
    match (u16::try_from(pb.start), u16::try_from(pb.end)) {
        (Ok(start), Ok(end)) if 100 <= start && start < end && end <= 600 => Ok(start..end),
        _ => Err(Rejected::new(format_args!("{}..{} is not a range of statuses", pb.start, pb.end))),
    }
}

fn grpc(pb: &GrpcHealthCheck, cluster: &str) -> Decoded<CheckKind> {
    unless(!pb.initial_metadata.is_empty(), "initial_metadata", "is not supported")?;
    let authority = authority("authority", &pb.authority, cluster)?;
    Ok(CheckKind::Grpc { service: pb.service_name.clone(), authority })
}

fn tcp(pb: &TcpHealthCheck) -> Decoded<CheckKind> {
    unless(pb.send.is_some(), "send", "is not supported")?;
    unless(!pb.receive.is_empty(), "receive", "is not supported")?;
    unless(pb.proxy_protocol_config.is_some(), "proxy_protocol_config", "is not supported")?;
    Ok(CheckKind::Tcp)
}

/// The cluster's name where none is given.
fn authority(field: &str, text: &str, cluster: &str) -> Decoded<Authority> {
    let text = if text.is_empty() { cluster } else { text };
    Authority::try_from(text).map_err(|_| Rejected::field(field, format_args!("{text:?} is not a host")))
}
