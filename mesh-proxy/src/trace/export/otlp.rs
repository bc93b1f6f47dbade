//! Spans as OpenTelemetry's protocol has them.

use mesh_common::proto::otlp::collector::trace::v1::ExportTraceServiceRequest;
use mesh_common::proto::otlp::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use mesh_common::proto::otlp::resource::v1::Resource;
use mesh_common::proto::otlp::trace::v1::{ResourceSpans, ScopeSpans, Span as PbSpan, Status, span, status};

use super::super::{Span, SpanKind, Value};
use crate::telemetry::LocalWorkload;

/// Whose conventions the attributes follow.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.37.0";
/// Sampled; and it is known whether the parent is in another process.
const FLAGS: u32 = 1 | 1 << 8;
const REMOTE: u32 = 1 << 9;

pub(super) fn request(spans: &[Span], local: &LocalWorkload, service: &str) -> ExportTraceServiceRequest {
    let about = [
        ("service.name", service),
        ("service.namespace", &local.namespace),
        ("service.version", &local.version),
        ("service.instance.id", &local.workload),
    ];
    let attributes =
        about.into_iter().filter(|(_, text)| !text.is_empty()).map(|(key, text)| attribute(key, text.into()));
    let scope = InstrumentationScope { name: "mesh-proxy".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let spans = ScopeSpans { scope: Some(scope), spans: spans.iter().map(of).collect(), schema_url: SCHEMA.to_owned() };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes: attributes.collect() }),
            scope_spans: vec![spans],
            schema_url: SCHEMA.to_owned(),
        }],
    }
}

fn of(it: &Span) -> PbSpan {
    let kind = match it.kind {
        SpanKind::Server => span::SpanKind::Server,
        SpanKind::Client => span::SpanKind::Client,
    };
    let error = |message: &String| Status { message: message.clone(), code: status::StatusCode::Error as i32 };
    PbSpan {
        trace_id: it.trace.get().to_be_bytes().to_vec(),
        span_id: it.id.get().to_be_bytes().to_vec(),
        trace_state: it.state.clone(),
        parent_span_id: it.parent.map(|parent| parent.get().to_be_bytes().to_vec()).unwrap_or_default(),
        name: it.name.clone(),
        kind: kind as i32,
        start_time_unix_nano: it.begin,
        end_time_unix_nano: it.end,
        attributes: it.attributes.iter().map(|(key, value)| attribute(key, value.clone())).collect(),
        status: it.error.as_ref().map(error),
        flags: FLAGS | if it.remote && it.parent.is_some() { REMOTE } else { 0 },
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => any_value::Value::StringValue(text),
        Value::Number(number) => any_value::Value::IntValue(number),
    };
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}
