//! The status server: metrics for Prometheus, and what a supervisor asks. Plain HTTP/1.1, nothing secret, nothing to change.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_common::metrics as list;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

/// Connections open at the same time; further ones are closed at once.
const CONNECTIONS: usize = 256;
/// For the head of a request, and between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Seconds; from a local change to a slow disk or a far proxy.
const BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Makes the process collect metrics; call it once, before anything is counted.
pub fn install_metrics() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)?
        .install_recorder()?;
    for metric in list::of_control() {
        match metric.kind {
            list::Kind::Counter => metrics::describe_counter!(metric.name, metric.text),
            list::Kind::Gauge => metrics::describe_gauge!(metric.name, metric.text),
            list::Kind::Histogram => metrics::describe_histogram!(metric.name, metric.text),
        }
    }
    metrics::gauge!("mesh_build_info", "component" => "mesh-control", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}

#[derive(Clone)]
pub struct StatusServer {
    pub metrics: PrometheusHandle,
    pub ready: watch::Receiver<bool>,
}

impl StatusServer {
    pub async fn serve(self, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(listener = "metrics", %error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
            let server = self.clone();
            tokio::spawn(async move {
                let answer = service_fn(|request| {
                    let response = server.answer(&request);
                    async { Ok::<_, Infallible>(response) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .max_buf_size(MAX_HEAD_BYTES)
                    .serve_connection(TokioIo::new(stream), answer);
                if let Err(error) = connection.await {
                    tracing::debug!(listener = "metrics", %error, "closed a connection");
                }
                drop(permit);
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        }
        match request.uri().path() {
            "/metrics" => {
                process_metrics();
                self.metrics.run_upkeep();
                let mut response = text(StatusCode::OK, self.metrics.render());
                let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, format);
                response
            }
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" if *self.ready.borrow() => text(StatusCode::OK, "ready\n"),
            "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            "/version" => text(StatusCode::OK, concat!("mesh-control ", env!("CARGO_PKG_VERSION"), "\n")),
            _ => text(StatusCode::NOT_FOUND, "there are /metrics, /healthz, /readyz and /version\n"),
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The process's own use of the machine.
#[allow(clippy::cast_precision_loss)]
fn process_metrics() {
    let usage = mesh_common::process::usage();
    if let Some(bytes) = usage.resident_bytes {
        metrics::gauge!("process_resident_memory_bytes").set(bytes as f64);
    }
    if let Some(seconds) = usage.cpu_seconds {
        metrics::counter!("process_cpu_seconds_total").absolute(seconds);
    }
    if let Some(open) = usage.open_files {
        metrics::gauge!("process_open_fds").set(open as f64);
    }
    if let Some(seconds) = usage.start_time {
        metrics::gauge!("process_start_time_seconds").set(seconds as f64);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    #[tokio::test]
    async fn answers_and_shrugs_off_garbage() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || metrics::counter!("mesh_test_total").increment(3));
        let (ready, receiver) = watch::channel(false);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(StatusServer { metrics: recorder.handle(), ready: receiver }.serve(listener));

        let get = |path: &str| {
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            async move { ask(address, &request).await }
        };
        assert!(get("/metrics").await.contains("mesh_test_total 3"));
        assert!(get("/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(get("/readyz").await.starts_with("HTTP/1.1 503"));
        ready.send(true).unwrap();
        assert!(get("/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(get("/version").await.ends_with(concat!(env!("CARGO_PKG_VERSION"), "\n")));
        assert!(get("/etc/passwd").await.starts_with("HTTP/1.1 404"));
        assert!(ask(address, "\x16\x03\x01\x00garbage\r\n\r\n").await.starts_with("HTTP/1.1 400"));
        let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(MAX_HEAD_BYTES * 2));
        assert!(!ask(address, &long).await.starts_with("HTTP/1.1 200"));
        let post = "POST /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        assert!(ask(address, post).await.starts_with("HTTP/1.1 405"));
    }
}
