//! A backend for spans: OTLP over gRPC and over HTTP, and Zipkin's JSON, all at one port. It prints each span as a line of JSON.

use std::net::SocketAddr;

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use mesh_common::proto::otlp::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use mesh_common::proto::otlp::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use mesh_common::proto::otlp::common::v1::{KeyValue, any_value};
use prost::Message;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_stream::wrappers::TcpListenerStream;

use super::serve::{self, listen};

/// What is printed of a span.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Line {
    /// How it came: `grpc`, `http` or `zipkin`.
    pub by: String,
    pub service: String,
    pub trace: String,
    pub id: String,
    pub parent: Option<String>,
    pub name: String,
    pub kind: String,
    pub attributes: serde_json::Map<String, Value>,
}

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// For OTLP over gRPC.
    #[arg(long, default_value = "0.0.0.0:4317")]
    grpc: SocketAddr,
    /// For OTLP over HTTP, and Zipkin.
    #[arg(long, default_value = "0.0.0.0:4318")]
    http: SocketAddr,
    /// Take every connection, and say nothing.
    #[arg(long)]
    hang: bool,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let (grpc, http) = (listen(args.grpc).await?, listen(args.http).await?);
    if args.hang {
        let mut open = Vec::new();
        loop {
            tokio::select! {
                accepted = grpc.accept() => open.push(accepted?),
                accepted = http.accept() => open.push(accepted?),
            }
        }
    }
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Collector));
    tokio::select! {
        ended = server.serve_with_incoming(TcpListenerStream::new(grpc)) => Ok(ended?),
        ended = serve::http(http, answer) => ended,
    }
}

struct Collector;

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        print(of_otlp(request.into_inner(), "grpc"));
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn answer(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let Ok(body) = request.into_body().collect().await else { return reply(StatusCode::BAD_REQUEST) };
    let body = body.to_bytes();
    let lines = match path.as_str() {
        "/v1/traces" => ExportTraceServiceRequest::decode(body).ok().map(|request| of_otlp(request, "http")),
        "/api/v2/spans" => serde_json::from_slice(&body).ok().map(of_zipkin),
        // For health checks.
        "/" => return reply(StatusCode::OK),
        _ => return reply(StatusCode::NOT_FOUND),
    };
    match lines {
        Some(lines) => {
            print(lines);
            reply(if path == "/v1/traces" { StatusCode::OK } else { StatusCode::ACCEPTED })
        }
        None => reply(StatusCode::BAD_REQUEST),
    }
}

fn reply(status: StatusCode) -> Response<Full<Bytes>> {
    let mut reply = Response::default();
    *reply.status_mut() = status;
    reply
}

fn print(lines: Vec<Line>) {
    for line in lines {
        println!("{}", serde_json::json!(line));
    }
}

fn of_otlp(request: ExportTraceServiceRequest, by: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    for of_resource in request.resource_spans {
        let about = attributes(of_resource.resource.map(|it| it.attributes).unwrap_or_default());
        for span in of_resource.scope_spans.into_iter().flat_map(|it| it.spans) {
            lines.push(Line {
                by: by.to_owned(),
                service: about["service.name"].as_str().unwrap_or_default().to_owned(),
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
                kind: if span.kind == 2 { "SERVER" } else { "CLIENT" }.to_owned(),
                name: span.name,
                attributes: attributes(span.attributes),
            });
        }
    }
    lines
}

fn attributes(all: Vec<KeyValue>) -> serde_json::Map<String, Value> {
    let value = |it: any_value::Value| match it {
        any_value::Value::StringValue(text) => text.into(),
        any_value::Value::BoolValue(value) => value.into(),
        any_value::Value::IntValue(number) => number.to_string().into(),
        any_value::Value::DoubleValue(number) => number.to_string().into(),
    };
    all.into_iter().filter_map(|it| Some((it.key, value(it.value?.value?)))).collect()
}

/// As Zipkin's own server reads it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Zipkin {
    trace_id: String,
    id: String,
    parent_id: Option<String>,
    name: String,
    kind: String,
    local_endpoint: Endpoint,
    tags: serde_json::Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    service_name: String,
}

fn of_zipkin(spans: Vec<Zipkin>) -> Vec<Line> {
    let line = |span: Zipkin| Line {
        by: "zipkin".to_owned(),
        service: span.local_endpoint.service_name,
        trace: span.trace_id,
        id: span.id,
        parent: span.parent_id,
        name: span.name,
        kind: span.kind,
        attributes: span.tags,
    };
    spans.into_iter().map(line).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
