//! What operators and probes ask the proxy itself. In: HTTP/1.1 requests on the ready and metrics ports. Out: readiness,
//! metrics, and to callers on the same machine the configuration in force and the log levels.

mod dump;

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HOST};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_common::names::path;
use mesh_common::telemetry::LogFilter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use crate::listen::{self, Connections, Context, Phase};
use crate::probe::Prober;
use crate::registry::Standing;
use crate::registry::depart::{Departure, Stays};

const MAX_CONNECTIONS: usize = 256;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Unix sockets have no addresses; their callers are on this machine.
const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Below what the probe that asks waits for the answer.
const STARTED_TIMEOUT: Duration = Duration::from_secs(8);
const STARTED_INTERVAL: Duration = Duration::from_millis(5);
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether the proxy can do its work, and if not, what it waits for.
#[derive(Clone, Debug)]
pub struct Readiness {
    waiting_for: Arc<Mutex<Option<String>>>,
}

impl Readiness {
    /// Not ready yet.
    pub fn waiting_for(what: &str) -> Self {
        Self { waiting_for: Arc::new(Mutex::new(Some(what.to_owned()))) }
    }

    pub fn wait_for(&self, what: &str) {
        self.set(Some(what.to_owned()));
    }

    pub fn ready(&self) {
        self.set(None);
    }

    fn set(&self, what: Option<String>) {
        *self.waiting_for.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    fn what(&self) -> Option<String> {
        self.waiting_for.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Answers about the proxy.
#[derive(Debug)]
pub struct Admin {
    ctx: Arc<Context>,
    readiness: Readiness,
    log: Option<LogFilter>,
    drain: Option<Drain>,
    prober: Prober,
    standing: Option<watch::Receiver<Standing>>,
}

/// How the workload can be asked to depart.
#[derive(Debug)]
pub struct Drain {
    pub departure: Departure,
    pub callers: DrainCallers,
}

/// Who may ask for that on the ready port. The local socket is its owner's in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainCallers {
    Nobody,
    /// Callers on the same machine: the control plane believes what this proxy says of its workload.
    Local,
    /// Whoever reaches the port, such as a kubelet, whose address nobody knows for sure: the control plane knows by itself
    /// which workloads are to end, and nothing happens without its word.
    Everybody,
}

type Reply = Response<Full<Bytes>>;

impl Admin {
    /// Without `log`, the log levels cannot be changed.
    pub fn new(ctx: Arc<Context>, readiness: Readiness, log: Option<LogFilter>, drain: Option<Drain>) -> Self {
        Self { ctx, readiness, log, drain, prober: Prober::default(), standing: None }
    }

    /// Says as well what the control plane makes of the workload, where this proxy registers it.
    pub fn registering(self, standing: watch::Receiver<Standing>) -> Self {
        Self { standing: Some(standing), ..self }
    }

    /// Performs the application's probes as well.
    pub fn probing(self, prober: Prober) -> Self {
        Self { prober, ..self }
    }

    /// Readiness for everybody who reaches the port, and the rest for callers on the same machine. Serves as long as
    /// it is polled, also while the proxy drains.
    pub async fn serve_ready(self: Arc<Self>, listener: TcpListener) {
        self.serve(listener, Self::on_ready_port).await;
    }

    /// Metrics. Serves as long as it is polled.
    pub async fn serve_metrics(self: Arc<Self>, listener: TcpListener) {
        self.serve(listener, Self::on_metrics_port).await;
    }

    /// All of it, for whoever may open the socket: `meshctl`, from outside of the proxy's network namespace.
    pub async fn serve_local(self: Arc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(self.clone().connection(stream, LOCAL, Self::on_ready_port))),
                Err(error) => {
                    tracing::debug!(%error, "no admin connection could be accepted");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, listener: TcpListener, answer: fn(&Self, SocketAddr, &Request<Incoming>) -> Reply) {
        let handle = |stream, peer| self.clone().connection(stream, peer, answer);
        listen::accept(listener, &Connections::new(MAX_CONNECTIONS), std::future::pending(), handle).await;
    }

    async fn connection(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: SocketAddr,
        answer: fn(&Self, SocketAddr, &Request<Incoming>) -> Reply,
    ) {
        let service = service_fn(|request| {
            let admin = &self;
            async move {
                Ok::<_, Infallible>(match (admin.drain_for(peer, &request), request.uri().path()) {
                    (Some(departure), _) => drained(departure.drain().await),
                    (None, "/started") => admin.started().await,
                    (None, path) if path.starts_with(path::APP_HEALTH) => admin.probed(&request).await,
                    (None, _) => answer(admin, peer, &request),
                })
            }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%peer, %error, "an admin connection failed");
        }
    }

    fn on_ready_port(&self, peer: SocketAddr, request: &Request<Incoming>) -> Reply {
        match request.uri().path() {
            "/ready" => only_get(request, || self.ready()),
            "/healthz" => only_get(request, || reply(StatusCode::OK, TEXT, "ok\n")),
            _ if !is_local(peer, request) => reply(
                StatusCode::FORBIDDEN,
                TEXT,
                "only callers on the same machine may ask for this, by its address\n",
            ),
            "/config_dump" => only_get(request, || {
                reply(
                    StatusCode::OK,
                    JSON,
                    dump::config(&self.ctx.store.load(), &self.ctx.upstreams, &self.ctx.tls).to_string(),
                )
            }),
            "/version" => only_get(request, || {
                let version = serde_json::json!({ "program": "mesh-proxy", "version": env!("CARGO_PKG_VERSION") });
                reply(StatusCode::OK, JSON, version.to_string())
            }),
            "/logging" => self.logging(request),
            "/metrics" => only_get(request, || self.metrics()),
            path::REGISTRATION => only_get(request, || self.registration()),
            _ => reply(
                StatusCode::NOT_FOUND,
                TEXT,
                "there are /ready, /healthz, /config_dump, /logging, /metrics, /registration and /version\n",
            ),
        }
    }

    fn registration(&self) -> Reply {
        let standing = self.standing.as_ref().map(|standing| standing.borrow().clone());
        match standing {
            None => reply(StatusCode::NOT_FOUND, TEXT, "this proxy registers no workload\n"),
            Some(Standing::Registered) => reply(StatusCode::OK, TEXT, "registered\n"),
            Some(Standing::Refused(reason)) => reply(StatusCode::CONFLICT, TEXT, format!("{reason}\n")),
            Some(Standing::Unknown) => {
                reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the control plane does not answer\n")
            }
        }
    }

    fn on_metrics_port(&self, _peer: SocketAddr, request: &Request<Incoming>) -> Reply {
        match request.uri().path() {
            "/metrics" => only_get(request, || self.metrics()),
            _ => reply(StatusCode::NOT_FOUND, TEXT, "metrics are at /metrics\n"),
        }
    }

    /// `GET /drain`, as a kubelet asks before it ends an application, or `POST`, from somebody who may.
    fn drain_for<B>(&self, peer: SocketAddr, request: &Request<B>) -> Option<&Departure> {
        let drain = self.drain.as_ref()?;
        let asks = request.uri().path() == path::DRAIN && matches!(*request.method(), Method::GET | Method::POST);
        let may = peer == LOCAL
            || match drain.callers {
                DrainCallers::Nobody => false,
                DrainCallers::Local => is_local(peer, request),
                DrainCallers::Everybody => true,
            };
        (asks && may).then_some(&drain.departure)
    }

    fn ready(&self) -> Reply {
        if *self.ctx.phase.borrow() >= Phase::Draining {
            return reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n");
        }
        match self.readiness.what() {
            None => reply(StatusCode::OK, TEXT, "ready\n"),
            Some(what) => reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("waiting for {what}\n")),
        }
    }

    /// Like [`Self::ready`], but waits for it: who starts the application then need not ask again.
    async fn started(&self) -> Reply {
        let deadline = tokio::time::Instant::now() + STARTED_TIMEOUT;
        while self.readiness.what().is_some() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(STARTED_INTERVAL).await;
        }
        self.ready()
    }

    /// The application's answer to a probe that the kubelet would have sent to it.
    async fn probed(&self, request: &Request<Incoming>) -> Reply {
        let (path, asked) = (request.uri().path(), tokio::time::Instant::now());
        if let Some(drain) = self.drain.as_ref().filter(|drain| drain.callers == DrainCallers::Everybody)
            && self.prober.is_pre_stop(path)
            && let Err(stays) = drain.departure.drain().await
        {
            // A container may be started again in a pod that stays.
            tracing::info!(%stays, "a container is to end, and the workload stays");
        }
        match self.prober.perform(path, request.headers(), asked).await {
            Ok(text) => reply(StatusCode::OK, TEXT, text),
            Err(failure) => reply(failure.status, TEXT, format!("{}\n", failure.reason)),
        }
    }

    fn metrics(&self) -> Reply {
        if let Some(expiry) = self.ctx.tls.expires() {
            self.ctx.telemetry.certificate_expiry(expiry);
        }
        self.ctx.telemetry.upstream_health(&self.ctx.upstreams.health());
        reply(StatusCode::OK, METRICS, self.ctx.telemetry.render())
    }

    /// `GET /logging` says the filter, `POST /logging?filter=FILTER` changes it.
    fn logging(&self, request: &Request<Incoming>) -> Reply {
        let Some(log) = &self.log else {
            return reply(StatusCode::NOT_FOUND, TEXT, "the log levels of this process cannot be changed\n");
        };
        match *request.method() {
            Method::GET => reply(StatusCode::OK, TEXT, format!("{}\n", log.current())),
            Method::POST => match query_value(request.uri().query().unwrap_or_default(), "filter") {
                Some(filter) => match log.set(&filter) {
                    Ok(before) => reply(StatusCode::OK, TEXT, format!("{filter} (was {before})\n")),
                    Err(error) => reply(StatusCode::BAD_REQUEST, TEXT, format!("{error}\n")),
                },
                None => {
                    reply(StatusCode::BAD_REQUEST, TEXT, "write /logging?filter=LEVEL, or filter=MODULE=LEVEL,...\n")
                }
            },
            _ => method_not_allowed("GET, POST"),
        }
    }
}

/// A loopback caller that names the proxy by address: a page in a browser, which would have got here by a host name of
/// its own choice, is none.
fn is_local<B>(peer: SocketAddr, request: &Request<B>) -> bool {
    let host = request.headers().get(HOST).and_then(|it| it.to_str().ok()).or_else(|| request.uri().host());
    let named_by_address = host.is_none_or(|host| {
        let without_port = host.rsplit_once(':').map_or(host, |(name, _)| name);
        host == "localhost"
            || without_port == "localhost"
            || host.parse::<SocketAddr>().is_ok()
            || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
    });
    peer.ip().is_loopback() && named_by_address
}

fn drained(outcome: Result<(), Stays>) -> Reply {
    let status = match &outcome {
        Ok(()) => return reply(StatusCode::OK, TEXT, "nobody calls the application any more\n"),
        Err(Stays::Busy) => StatusCode::TOO_MANY_REQUESTS,
        Err(Stays::Refused(_)) => StatusCode::CONFLICT,
        Err(Stays::Unconfirmed(_)) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let text = outcome.map_or_else(|stays| stays.to_string(), |()| String::new());
    reply(status, TEXT, format!("{text}\n"))
}

fn only_get<B>(request: &Request<B>, answer: impl FnOnce() -> Reply) -> Reply {
    // hyper leaves the body out of the reply to HEAD.
    if matches!(*request.method(), Method::GET | Method::HEAD) { answer() } else { method_not_allowed("GET") }
}

fn method_not_allowed(allowed: &'static str) -> Reply {
    let mut reply = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, format!("use {allowed}\n"));
    reply.headers_mut().insert(ALLOW, http::HeaderValue::from_static(allowed));
    reply
}

fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    reply
}

/// A value of a query string, with `%XX` and `+` decoded.
fn query_value(query: &str, name: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let (high, low) = (char::from(bytes.next()?).to_digit(16)?, char::from(bytes.next()?).to_digit(16)?);
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests;
