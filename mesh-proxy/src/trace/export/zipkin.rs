//! Spans in Zipkin's JSON of version 2 (<https://zipkin.io/zipkin-api/>).

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::super::{Span, SpanKind, Value};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Zipkin<'a> {
    trace_id: String,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<String>,
    name: &'a str,
    kind: &'static str,
    /// Microseconds.
    timestamp: u64,
    duration: u64,
    local_endpoint: Endpoint<'a>,
    #[serde(serialize_with = "tags")]
    tags: &'a Span,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint<'a> {
    service_name: &'a str,
}

pub(super) fn spans(spans: &[Span], service: &str) -> Vec<u8> {
    let all: Vec<_> = spans.iter().map(|span| of(span, service)).collect();
    // Strings and numbers only: nothing of it can fail to be written as JSON.
    serde_json::to_vec(&all).unwrap_or_default()
}

fn of<'a>(span: &'a Span, service: &'a str) -> Zipkin<'a> {
    Zipkin {
        trace_id: span.trace.to_string(),
        id: span.id.to_string(),
        parent_id: span.parent.map(|parent| parent.to_string()),
        name: &span.name,
        kind: match span.kind {
            SpanKind::Server => "SERVER",
            SpanKind::Client => "CLIENT",
        },
        timestamp: span.begin / 1000,
        // Zero would mean that it is not known.
        duration: (span.end.saturating_sub(span.begin) / 1000).max(1),
        local_endpoint: Endpoint { service_name: service },
        tags: span,
    }
}

/// The attributes, and `error` if the span has failed: that it is there is what counts.
fn tags<S: Serializer>(span: &&Span, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    for (key, value) in &span.attributes {
        match value {
            Value::Text(text) => map.serialize_entry(key, text)?,
            Value::Number(number) => map.serialize_entry(key, &number.to_string())?,
        }
    }
    if let Some(error) = &span.error {
        map.serialize_entry("error", if error.is_empty() { "true" } else { error })?;
    }
    map.end()
}
