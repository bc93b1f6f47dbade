//! Servers: HTTP/1.1 and cleartext HTTP/2 on one port, and a line of text for each line over TCP.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, HOST};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::serve::listen;

/// What an HTTP server is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Server {
    #[arg(long, default_value = "0.0.0.0:9080")]
    listen: SocketAddr,
    #[arg(long, default_value = "v1")]
    version: String,
    /// Ask here before each answer to `/`, which then has that one's status.
    #[arg(long, value_name = "URL")]
    forward: Option<Uri>,
}

/// Answers every request with a JSON description of it and the header `x-version`. `/status/503` answers with that
/// status, `/sleep/250` after that many milliseconds, `/bytes/1000` with that many bytes (up to 64 MiB), `/stream/1000` for that
/// many milliseconds, bit by bit, and a gRPC call with an empty message. When `told` is ready it takes no more connections,
/// finishes what it has and returns.
pub async fn http(server: Server, told: impl Future<Output = ()>) -> anyhow::Result<()> {
    let listener = listen(server.listen).await?;
    let server = Arc::new(server);
    let open = GracefulShutdown::new();
    let mut told = std::pin::pin!(told);
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => accepted?,
            () = &mut told => break,
        };
        stream.set_nodelay(true)?;
        let server = server.clone();
        let service = service_fn(move |request| answer(request, server.clone(), peer));
        let builder = auto::Builder::new(TokioExecutor::new());
        let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
        let connection = open.watch(connection);
        tokio::spawn(async move {
            // A client that goes away is none of the server's business.
            let _ = connection.await;
        });
    }
    drop(listener);
    open.shutdown().await;
    Ok(())
}

async fn answer(
    request: Request<Incoming>,
    server: Arc<Server>,
    peer: SocketAddr,
) -> Result<Response<Reply>, Infallible> {
    let (head, body) = request.into_parts();
    let received = body.collect().await.map(|b| b.to_bytes().len()).unwrap_or(0);
    let mut status = StatusCode::OK;
    let mut size_of_reply = None;
    let mut streamed = None;
    match head.uri.path().trim_start_matches('/').split_once('/') {
        Some(("status", code)) => status = code.parse().unwrap_or(StatusCode::BAD_REQUEST),
        Some(("bytes", size)) => size_of_reply = size.parse().ok().filter(|size| *size <= 64 << 20),
        Some(("sleep", ms)) => tokio::time::sleep(milliseconds(ms)).await,
        Some(("stream", ms)) => streamed = Some(milliseconds(ms)),
        _ => {}
    }
    if let Some(next) = server.forward.as_ref().filter(|_| head.uri.path() == "/") {
        status = asked(next).await.unwrap_or(StatusCode::BAD_GATEWAY);
    }
    let headers: serde_json::Map<_, _> = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    let text = serde_json::json!({
        "version": server.version,
        "method": head.method.as_str(),
        "path": head.uri.path_and_query().map(|p| p.as_str()),
        "protocol": format!("{:?}", head.version),
        "peer": peer.to_string(),
        "headers": headers,
        "body_bytes": received,
    })
    .to_string();
    let grpc = head.headers.get("content-type").is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    let body = size_of_reply.map_or_else(|| text.into_bytes(), |size| vec![b'x'; size]);
    let length = body.len();
    // hyper leaves out the body of the reply to HEAD over HTTP/1.1 alone.
    let body = if head.method == Method::HEAD { Vec::new() } else { body };
    let mut response = match streamed {
        None if grpc => grpc_reply(Full::from(EMPTY_MESSAGE)),
        None => Response::new(Full::from(body).boxed()),
        Some(lasts) if grpc => grpc_reply(bit_by_bit(lasts, EMPTY_MESSAGE)),
        Some(lasts) => Response::new(bit_by_bit(lasts, b"x").boxed()),
    };
    if head.method == Method::HEAD {
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    *response.status_mut() = status;
    if let Ok(value) = server.version.parse() {
        response.headers_mut().insert("x-version", value);
    }
    Ok(response)
}

type Reply = BoxBody<Bytes, Infallible>;

const EMPTY_MESSAGE: &[u8] = &[0; 5];

fn grpc_reply(messages: impl Body<Data = Bytes, Error = Infallible> + Send + Sync + 'static) -> Response<Reply> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", 0.into());
    let body = messages.with_trailers(std::future::ready(Some(Ok(trailers)))).boxed();
    let mut response = Response::new(body);
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/grpc"));
    response
}

fn milliseconds(text: &str) -> Duration {
    Duration::from_millis(text.parse().unwrap_or(0).min(60_000))
}

const BETWEEN_BITS: Duration = Duration::from_millis(100);

fn bit_by_bit(lasts: Duration, bit: &'static [u8]) -> impl Body<Data = Bytes, Error = Infallible> + Send + Sync {
    let until = Instant::now() + lasts;
    StreamBody::new(stream::unfold((), move |()| async move {
        tokio::time::sleep(BETWEEN_BITS).await;
        (Instant::now() < until).then(|| (Ok(Frame::data(Bytes::from_static(bit))), ()))
    }))
}

/// The status of the answer, over a connection of its own.
async fn asked(url: &Uri) -> anyhow::Result<StatusCode> {
    let authority = url.authority().context("a URL has a host")?;
    let stream = TcpStream::connect((authority.host(), authority.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // The request has the error.
        let _ = connection.await;
    });
    let request = Request::get(url.path()).header(HOST, authority.as_str()).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    response.into_body().collect().await?;
    Ok(status)
}

/// Answers every request with the same `size` bytes, as cheaply as it can, for benchmarks.
pub async fn fixed(address: SocketAddr, size: usize) -> anyhow::Result<()> {
    let listener = listen(address).await?;
    let body = Bytes::from(vec![b'x'; size]);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let body = body.clone();
        tokio::spawn(async move {
            let service = service_fn(move |_: Request<Incoming>| {
                let response = Response::new(Full::new(body.clone()));
                async move { Ok::<_, Infallible>(response) }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Answers each line with `<version> <line>`.
pub async fn tcp(address: SocketAddr, version: String) -> anyhow::Result<()> {
    let listener = listen(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let version = version.clone();
        tokio::spawn(async move { lines(stream, &version).await });
    }
}

async fn lines(stream: TcpStream, version: &str) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        stream.write_all(format!("{version} {line}").as_bytes()).await?;
        line.clear();
    }
    Ok(())
}
