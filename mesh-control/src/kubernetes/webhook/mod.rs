//! The admission webhooks: what the API server asks before it keeps a pod or one of the mesh's objects.
//!
//! In: AdmissionReviews over HTTPS, at `/inject` and `/validate`. Out: a patch that puts the proxy into the pod, or a
//! refusal that says what to write.

mod patch;
mod review;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_common::inject::InjectConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

/// An object and the one before, each as large as the API server takes them.
const MAX_BODY: usize = 8 << 20;
const MAX_CONNECTIONS: usize = 256;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// The API server waits 10 seconds for an answer, usually.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What the webhooks answer by.
#[derive(Clone, Debug, Default)]
pub struct WebhookConfig {
    pub inject: InjectConfig,
}

type Reply = Response<Full<Bytes>>;

/// Answers for as long as it is polled. The certificate in `tls` may be renewed meanwhile.
pub async fn serve(listener: TcpListener, mut tls: rustls::ServerConfig, config: WebhookConfig) {
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let (acceptor, config) = (TlsAcceptor::from(Arc::new(tls)), Arc::new(config));
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // The semaphore is never closed.
    while let Ok(permit) = connections.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(connection(stream, acceptor.clone(), config.clone(), permit))),
            Err(error) => {
                tracing::warn!(%error, "no connection of the API server could be accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    config: Arc<WebhookConfig>,
    _permit: OwnedSemaphorePermit,
) {
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake with a caller of the webhooks failed"),
        Err(_) => return tracing::debug!("TLS handshake with a caller of the webhooks took too long"),
    };
    let service = service_fn(|request| {
        let config = config.clone();
        async move { Ok::<_, Infallible>(answer(request, &config).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the webhooks failed");
    }
}

async fn answer(request: Request<Incoming>, config: &WebhookConfig) -> Reply {
    let decide = match request.uri().path() {
        "/inject" => review::inject,
        "/validate" => review::validate,
        _ => return refuse(StatusCode::NOT_FOUND, "the webhooks are /inject and /validate\n"),
    };
    if request.method() != Method::POST {
        let mut reply = refuse(StatusCode::METHOD_NOT_ALLOWED, "use POST\n");
        reply.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return reply;
    }
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content_type.split(';').next().map(str::trim) != Some("application/json") {
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "an AdmissionReview as application/json is expected\n");
    }
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    let body = match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, "an AdmissionReview of at most 8 MiB is expected\n");
        }
        Ok(Err(error)) => return refuse(StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}\n")),
        Err(_) => return refuse(StatusCode::REQUEST_TIMEOUT, "the body did not come in time\n"),
    };
    match review::answer(&body, |request| decide(request, config)) {
        Ok(review) => {
            let mut reply = Response::new(Full::new(review.to_string().into()));
            reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            reply
        }
        Err(reason) => refuse(StatusCode::BAD_REQUEST, format!("{reason}\n")),
    }
}

fn refuse(status: StatusCode, reason: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(reason.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    reply
}

#[cfg(test)]
mod serving;
#[cfg(test)]
mod tests;
