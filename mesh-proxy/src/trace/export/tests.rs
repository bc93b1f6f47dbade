use mesh_common::proto::otlp::collector::trace::v1::ExportTraceServiceRequest;
use mesh_common::proto::otlp::common::v1::any_value;
use prost::Message;

use super::*;
use crate::trace::{SpanId, SpanKind, TraceId, Value};

fn local() -> LocalWorkload {
    LocalWorkload {
        workload: "web-1".to_owned(),
        namespace: "shop".to_owned(),
        service: "web".to_owned(),
        ..LocalWorkload::default()
    }
}

fn span() -> Span {
    Span {
        trace: TraceId::new(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736).unwrap(),
        id: SpanId::new(0x00f0_67aa_0ba9_02b7).unwrap(),
        parent: SpanId::new(1),
        remote: true,
        kind: SpanKind::Client,
        name: "GET".to_owned(),
        begin: 1_700_000_000_000_000_000,
        end: 1_700_000_000_001_500_000,
        state: "a=1".to_owned(),
        attributes: vec![("url.path", "/a".into()), ("http.response.status_code", Value::Number(503))],
        error: Some(String::new()),
    }
}

#[test]
fn otlp() {
    let bytes = otlp::request(&[span()], &local(), "web").encode_to_vec();
    let request = ExportTraceServiceRequest::decode(&*bytes).unwrap();
    let all = &request.resource_spans[0];
    let about: Vec<_> = all.resource.as_ref().unwrap().attributes.iter().map(|it| it.key.as_str()).collect();
    // What is not known is left out.
    assert_eq!(about, ["service.name", "service.namespace", "service.instance.id"]);
    let span = &all.scope_spans[0].spans[0];
    assert_eq!(span.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes());
    assert_eq!(span.span_id, [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
    assert_eq!(span.parent_span_id, [0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!((span.kind, span.trace_state.as_str(), span.flags), (3, "a=1", 0x301));
    assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 1_500_000);
    assert_eq!(span.status.as_ref().unwrap().code, 2);
    let value = span.attributes[1].value.as_ref().unwrap().value.clone();
    assert_eq!(value, Some(any_value::Value::IntValue(503)));
}

#[test]
fn zipkin() {
    let all: serde_json::Value = serde_json::from_slice(&zipkin::spans(&[span()], "web")).unwrap();
    let expected = serde_json::json!([{
        "traceId": "4bf92f3577b34da6a3ce929d0e0e4736", "id": "00f067aa0ba902b7", "parentId": "0000000000000001",
        "name": "GET", "kind": "CLIENT", "timestamp": 1_700_000_000_000_000_u64, "duration": 1500,
        "localEndpoint": {"serviceName": "web"},
        "tags": {"url.path": "/a", "http.response.status_code": "503", "error": "true"},
    }]);
    assert_eq!(all, expected);
    let first = Span { parent: None, error: None, end: 0, ..span() };
    let all: serde_json::Value = serde_json::from_slice(&zipkin::spans(&[first], "web")).unwrap();
    assert!(all[0].get("parentId").is_none() && all[0]["tags"].get("error").is_none());
    assert_eq!(all[0]["duration"], 1);
}

#[tokio::test(start_paused = true)]
async fn spans_are_gathered_until_there_are_enough_or_it_takes_too_long() {
    let (sender, mut spans) = mpsc::channel(QUEUE);
    let mut batch = vec![span()];
    let begun = tokio::time::Instant::now();
    for _ in 0..BATCH {
        sender.try_send(span()).unwrap();
    }
    gather(&mut spans, &mut batch).await;
    assert_eq!((batch.len(), begun.elapsed()), (BATCH, Duration::ZERO));
    batch.truncate(1);
    gather(&mut spans, &mut batch).await;
    assert_eq!(batch.len(), 2);
    assert!((GATHERING..GATHERING * 2).contains(&begun.elapsed()));
    drop(sender);
    gather(&mut spans, &mut batch).await;
    assert_eq!(batch.len(), 2);
    assert!(begun.elapsed() < GATHERING * 2);
}
