//! HTTP/1.1, as little of it as the shop needs: a server for one function, and a client that keeps its connections.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};
use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

pub type Reply = Response<Full<Bytes>>;

/// Answers requests with `answer` until the process ends; `/healthz` always with 200.
pub async fn serve<A, F>(listen: SocketAddr, answer: A) -> anyhow::Result<()>
where
    A: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    let answer = Arc::new(answer);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let answer = answer.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let health = request.uri().path() == "/healthz";
            let reply = (!health).then(|| answer(request));
            async move {
                Ok::<_, Infallible>(match reply {
                    Some(reply) => reply.await,
                    None => text(StatusCode::OK, "text/plain", "ok\n"),
                })
            }
        });
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        // A client that goes away is none of the server's business.
        tokio::spawn(connection);
    }
}

pub fn json(status: StatusCode, value: &Value) -> Reply {
    text(status, "application/json", format!("{value}\n"))
}

pub fn text(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    reply
}

/// A client of one server, such as `http://reviews:9080`.
#[derive(Clone)]
pub struct Client {
    authority: String,
    idle: Arc<Mutex<Vec<SendRequest<Empty<Bytes>>>>>,
}

impl Client {
    pub fn new(server: &Uri) -> anyhow::Result<Self> {
        let Some(host) = server.host().filter(|_| server.scheme_str() == Some("http")) else {
            bail!("{server} is not like http://reviews:9080");
        };
        let authority = format!("{host}:{}", server.port_u16().unwrap_or(80));
        Ok(Self { authority, idle: Arc::default() })
    }

    /// Status and body of a GET.
    pub async fn get(&self, path: &str, headers: HeaderMap) -> anyhow::Result<(StatusCode, Value)> {
        let mut request = Request::get(path).header(header::HOST, &self.authority).body(Empty::new())?;
        request.headers_mut().extend(headers);
        let mut connection = self.connection().await?;
        let reply = connection.send_request(request).await?;
        let status = reply.status();
        let body = reply.into_body().collect().await?.to_bytes();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        let value = serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).trim().into());
        Ok((status, value))
    }

    async fn connection(&self) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
        loop {
            let Some(mut idle) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() else { break };
            if idle.ready().await.is_ok() {
                return Ok(idle);
            }
        }
        let stream = TcpStream::connect(&self.authority).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        sender.ready().await?;
        Ok(sender)
    }
}

/// The headers that tell which trace a request belongs to, in W3C's form and in B3's.
pub const TRACE: [&str; 8] = [
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
];

/// The headers that a caller is known by, on which routes may depend further down, and those of the trace.
pub fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let mut passed = HeaderMap::new();
    for name in ["end-user", "cookie"].into_iter().chain(TRACE) {
        if let Some(value) = headers.get(name) {
            passed.insert(http::HeaderName::from_static(name), value.clone());
        }
    }
    passed
}
