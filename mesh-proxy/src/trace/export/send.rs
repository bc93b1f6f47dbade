//! One batch to one endpoint of the backend, the way that requests go.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, TE};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, StatusCode};
use mesh_common::proto::otlp::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;

use super::super::ids::{SpanId, TraceId};
use super::super::w3c::{self, TRACEPARENT};
use super::{Span, otlp, zipkin};
use crate::config::{Provider, TraceProtocol};
use crate::error::Error;
use crate::http::RequestBody;
use crate::listen::{Direction, Downstream};
use crate::telemetry::LocalWorkload;
use crate::upstream::{Flow, NoMessage, Upstreams, grpc_answer, grpc_frame, own_request, own_version, read_answer};

/// For a batch and its answer.
const TIMEOUT: Duration = Duration::from_secs(5);
const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Why a batch was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub reason: String,
    /// It may be taken at another time.
    pub again: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { reason: error.to_string(), again: true }
    }
}

pub(super) struct Backend {
    pub provider: Arc<Provider>,
    upstreams: Upstreams,
    local: LocalWorkload,
    /// Nobody sends this but the proxy itself.
    downstream: Downstream,
}

impl Backend {
    pub fn new(provider: Arc<Provider>, upstreams: Upstreams, local: LocalWorkload) -> Self {
        let nowhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        Self { provider, upstreams, local, downstream: Downstream::new(nowhere, nowhere, Direction::Outbound) }
    }

    /// The body of the request that takes these spans there.
    pub fn encode(&self, spans: &[Span]) -> Bytes {
        let local = &self.local;
        let account = local.identity.as_ref().map_or("", |identity| &identity.service_account);
        let names = [self.provider.service_name.as_str(), &local.service, account, &local.workload];
        let name = names.into_iter().find(|name| !name.is_empty()).unwrap_or_default();
        match &self.provider.protocol {
            TraceProtocol::OtlpGrpc => grpc_frame(&otlp::request(spans, local, name)),
            TraceProtocol::OtlpHttp(_) => otlp::request(spans, local, name).encode_to_vec().into(),
            TraceProtocol::Zipkin(_) => zipkin::spans(spans, name).into(),
        }
    }

    /// How many of the spans the backend has rejected.
    pub async fn send(&self, body: Bytes) -> Result<u64, Failure> {
        let late = || Failure { reason: "no answer in time".to_owned(), again: true };
        tokio::time::timeout(TIMEOUT, self.ask(body)).await.map_err(|_| late())?
    }

    async fn ask(&self, body: Bytes) -> Result<u64, Failure> {
        let Provider { cluster, authority, protocol, .. } = &*self.provider;
        let grpc = *protocol == TraceProtocol::OtlpGrpc;
        let (path, content) = match protocol {
            TraceProtocol::OtlpGrpc => (PathAndQuery::from_static(GRPC_PATH), "application/grpc"),
            TraceProtocol::OtlpHttp(path) => (path.clone(), "application/x-protobuf"),
            TraceProtocol::Zipkin(path) => (path.clone(), "application/json"),
        };
        let view = self.upstreams.view(cluster).await?;
        let _in_use = view.usage.request(&view.cluster.limits)?;
        let target = view.choose(&self.downstream, &[], None)?;
        let version = own_version(&target, grpc);
        let mut request = own_request(&target, version, grpc, authority, &path, RequestBody::full(body))?;
        *request.method_mut() = Method::POST;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content));
        // That spans were sent leaves no spans.
        headers.insert(TRACEPARENT, w3c::value(TraceId::random(), SpanId::random(), false));
        if grpc {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        let response = target.send(request, version, Flow::Free).await.map_err(|failed| failed.error)?;
        let (head, body) = response.into_parts();
        let (answer, trailers) = read_answer(body).await?;
        if grpc {
            of_grpc(head.status, &head.headers, answer, trailers.as_ref())
        } else {
            of_http(head.status, answer, matches!(protocol, TraceProtocol::OtlpHttp(_)))
        }
    }
}

fn of_grpc(
    status: StatusCode,
    headers: &HeaderMap,
    answer: Bytes,
    trailers: Option<&HeaderMap>,
) -> Result<u64, Failure> {
    match grpc_answer(status, headers, answer, trailers) {
        Ok(message) => Ok(rejected(&message)),
        Err(NoMessage::Http(status)) => Err(by_status(status)),
        Err(why) => {
            // Those of which OTLP says so.
            let again = matches!(why, NoMessage::Grpc(1 | 4 | 8 | 10 | 11 | 14 | 15));
            Err(Failure { reason: why.to_string(), again })
        }
    }
}

fn of_http(status: StatusCode, answer: Bytes, otlp: bool) -> Result<u64, Failure> {
    match status {
        it if !it.is_success() => Err(by_status(status)),
        _ if otlp => Ok(rejected(&answer)),
        _ => Ok(0),
    }
}

fn by_status(status: StatusCode) -> Failure {
    let again = matches!(status.as_u16(), 429 | 502 | 503 | 504);
    Failure { reason: format!("status {}", status.as_u16()), again }
}

/// What an answer says that cannot be read is taken for a good one: the status was.
fn rejected(answer: &[u8]) -> u64 {
    let partial = ExportTraceServiceResponse::decode(answer).ok().and_then(|it| it.partial_success);
    partial.and_then(|it| u64::try_from(it.rejected_spans).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use mesh_common::proto::otlp::collector::trace::v1::ExportTracePartialSuccess;

    use super::*;

    fn partial(rejected_spans: i64) -> ExportTraceServiceResponse {
        let partial = ExportTracePartialSuccess { rejected_spans, error_message: String::new() };
        ExportTraceServiceResponse { partial_success: Some(partial) }
    }

    #[test]
    fn answers_of_grpc() {
        let status = |code: &'static str| {
            HeaderMap::from_iter([(
                http::header::HeaderName::from_static("grpc-status"),
                HeaderValue::from_static(code),
            )])
        };
        let none = HeaderMap::new();
        let answer = |code, body: Bytes| of_grpc(StatusCode::OK, &none, body, Some(&status(code)));
        let empty = || grpc_frame(&ExportTraceServiceResponse::default());
        assert_eq!(answer("0", empty()), Ok(0));
        assert_eq!(answer("0", grpc_frame(&partial(3))), Ok(3));
        assert_eq!(answer("0", grpc_frame(&partial(-3))), Ok(0));
        assert!(answer("14", Bytes::new()).unwrap_err().again);
        assert!(!answer("12", Bytes::new()).unwrap_err().again);
        assert!(!answer("0", Bytes::from_static(b"<html>")).unwrap_err().again);
        assert!(!of_grpc(StatusCode::OK, &none, empty(), None).unwrap_err().again);
        assert!(of_grpc(StatusCode::BAD_GATEWAY, &none, empty(), None).unwrap_err().again);
        // Trailers alone.
        assert!(of_grpc(StatusCode::OK, &status("14"), Bytes::new(), None).unwrap_err().again);
    }

    #[test]
    fn answers_of_http() {
        assert_eq!(of_http(StatusCode::OK, partial(2).encode_to_vec().into(), true), Ok(2));
        assert_eq!(of_http(StatusCode::ACCEPTED, Bytes::new(), false), Ok(0));
        assert_eq!(of_http(StatusCode::OK, Bytes::from_static(b"<html>"), true), Ok(0));
        for (status, again) in [(400, false), (404, false), (429, true), (500, false), (503, true), (302, false)] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(of_http(status, Bytes::new(), true).unwrap_err().again, again, "{status}");
        }
    }
}
