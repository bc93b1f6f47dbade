use serde::{Deserialize, Serialize};

use super::{ByteRate, Duration, NamedMatch, TargetRef};

/// Faults that the callers' proxies inject.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FaultInjectionSpec {
    pub target_refs: Vec<TargetRef>,
    /// Callers that see it. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<FaultSource>,
    pub faults: Vec<Fault>,
    /// RFC 3339. The fault is over then, and the object is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// Exactly one of `service` and `serviceAccount` is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FaultSource {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Default: the object's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// Exactly one of `delay`, `abort`, `reset` and `throttle` is set.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Fault {
    /// Share of requests hit, 0 to 100, with up to four decimals.
    pub percent: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<FaultDelay>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<FaultAbort>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset: Option<FaultReset>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<FaultThrottle>,
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matches: Option<FaultMatch>,
}

impl Fault {
    pub fn parts_per_million(&self) -> u32 {
        // `validate` holds the percentage between 0 and 100, so the cast is exact.
        (self.percent.clamp(0.0, 100.0) * 10_000.0).round() as u32
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FaultDelay {
    pub duration: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FaultAbort {
    /// 200 to 599.
    pub http_status: u16,
    /// For gRPC requests, 1 to 16. Default: derived from `httpStatus`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FaultReset {}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FaultThrottle {
    /// What comes back, for each response or byte stream.
    pub rate: ByteRate,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FaultMatch {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<NamedMatch>,
}
