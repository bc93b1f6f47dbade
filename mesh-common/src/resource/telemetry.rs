use serde::{Deserialize, Serialize};

use super::TargetRef;

/// What the proxies of workloads tell of the requests that they see. Without `targetRefs` it holds for its namespace; in the
/// mesh's own namespace, for all.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TelemetrySpec {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<TargetRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracing: Option<TracingSettings>,
}

/// What is left out is as a wider scope says.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TracingSettings {
    /// `false`: nobody looks at traces, and nothing is told of them. Default: true, where there is a backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Where spans go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<TracingBackend>,
    /// Share of the traces that nobody has decided about yet. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling_percent: Option<f64>,
}

/// A port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TracingBackend {
    pub name: String,
    /// Default: that of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub port: u16,
    #[serde(default)]
    pub protocol: TracingProtocol,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum TracingProtocol {
    /// OpenTelemetry's protocol over gRPC.
    #[default]
    OtlpGrpc,
    /// The same over HTTP, to `/v1/traces`.
    OtlpHttp,
    /// Zipkin's JSON of version 2, to `/api/v2/spans`.
    Zipkin,
}
