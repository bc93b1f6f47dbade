//! What tells which endpoints are to be passed over: outlier detection and health checks, in Envoy's own fields.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::OutlierDetection as PbOutliers;
use envoy_types::pb::envoy::config::core::v3::HealthCheck as PbCheck;
use envoy_types::pb::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, TcpHealthCheck,
};
use envoy_types::pb::envoy::r#type::v3::{CodecClientType, Int64Range};
use mesh_common::resource::{Duration as Written, HealthCheck, HttpCheck, OutlierDetection};

use super::build::{boolean, duration, uint32};

const ALWAYS: u32 = 100;
const NEVER: u32 = 0;
/// Envoy would eject one endpoint of ten at most, and nothing of a service with less.
const MAX_EJECTION_PERCENT: u32 = 50;

fn or(written: Option<Written>, seconds: u64) -> Duration {
    written.map_or(Duration::from_secs(seconds), Written::get)
}

pub(super) fn outliers(policy: &OutlierDetection) -> PbOutliers {
    let enforced = |on: bool| uint32(if on { ALWAYS } else { NEVER });
    let rate = policy.success_rate.unwrap_or_default();
    let base = or(policy.base_ejection_time, 30);
    PbOutliers {
        consecutive_5xx: policy.consecutive_5xx.and_then(uint32),
        enforcing_consecutive_5xx: enforced(policy.consecutive_5xx.is_some()),
        consecutive_gateway_failure: policy.consecutive_gateway_failures.and_then(uint32),
        enforcing_consecutive_gateway_failure: enforced(policy.consecutive_gateway_failures.is_some()),
        enforcing_success_rate: enforced(policy.success_rate.is_some()),
        success_rate_minimum_hosts: uint32(rate.min_hosts.unwrap_or(5)),
        success_rate_request_volume: uint32(rate.min_requests.unwrap_or(100)),
        // In thousandths. `validate` holds it between 0.1 and 10.
        success_rate_stdev_factor: uint32((rate.deviations.unwrap_or(1.9).clamp(0.0, 10.0) * 1000.0).round() as u32),
        enforcing_failure_percentage: uint32(NEVER),
        interval: duration(or(policy.interval, 10)),
        base_ejection_time: duration(base),
        max_ejection_time: duration(or(policy.max_ejection_time, 300).max(base)),
        max_ejection_percent: uint32(policy.max_ejection_percent.unwrap_or(MAX_EJECTION_PERCENT)),
        // That it answers a check does not mean that it answers requests.
        successful_active_health_check_uneject_host: boolean(false),
        ..PbOutliers::default()
    }
}

/// `http2`: the cluster speaks HTTP/2 to all of its endpoints.
pub(super) fn check(policy: &HealthCheck, host: &str, http2: bool) -> Option<PbCheck> {
    let checker = match policy {
        HealthCheck { http: Some(check), .. } => HealthChecker::HttpHealthCheck(http(check, host, http2)),
        HealthCheck { grpc: Some(check), .. } => HealthChecker::GrpcHealthCheck(GrpcHealthCheck {
            service_name: check.service.clone(),
            authority: host.to_owned(),
            ..GrpcHealthCheck::default()
        }),
        HealthCheck { tcp: Some(_), .. } => HealthChecker::TcpHealthCheck(TcpHealthCheck::default()),
        _ => return None,
    };
    let interval = or(policy.interval, 10);
    Some(PbCheck {
        timeout: duration(or(policy.timeout, 2)),
        interval: duration(interval),
        // Envoy asks the endpoints of a cluster that nobody uses less often.
        no_traffic_interval: duration(interval.max(Duration::from_secs(60))),
        interval_jitter_percent: 10,
        unhealthy_threshold: uint32(policy.unhealthy_threshold.unwrap_or(3)),
        healthy_threshold: uint32(policy.healthy_threshold.unwrap_or(2)),
        health_checker: Some(checker),
        ..PbCheck::default()
    })
}

fn http(check: &HttpCheck, host: &str, http2: bool) -> HttpHealthCheck {
    let status = |&status: &u16| Int64Range { start: i64::from(status), end: i64::from(status) + 1 };
    HttpHealthCheck {
        host: check.host.clone().unwrap_or_else(|| host.to_owned()),
        path: check.path.clone(),
        expected_statuses: check.statuses.iter().map(status).collect(),
        // Else one wrong status would be enough, whatever the threshold.
        retriable_statuses: vec![Int64Range { start: 100, end: 600 }],
        codec_client_type: if http2 { CodecClientType::Http2 } else { CodecClientType::Http1 } as i32,
        ..HttpHealthCheck::default()
    }
}
