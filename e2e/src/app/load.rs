//! A client that sends requests over connections that it keeps, and counts everything that a user would notice.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use http::HeaderValue;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::watch;

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// `http://host:port/path`, or `tcp://host:port`: a connection for each line sent and answered.
    #[arg(long)]
    pub url: http::Uri,
    #[arg(long, default_value_t = 1)]
    pub connections: usize,
    /// Requests in all; 0: until the duration is over or the process is told to end.
    #[arg(long, default_value_t = 0)]
    pub requests: u64,
    #[arg(long, default_value_t = 0.0)]
    pub seconds: f64,
    /// When told to end, go on until this many requests are sent.
    #[arg(long, default_value_t = 0)]
    pub at_least: u64,
    /// Requests a second over all connections; 0: as fast as the replies come.
    #[arg(long, default_value_t = 0)]
    pub rate: u64,
    /// `name: value`
    #[arg(long = "header")]
    pub headers: Vec<String>,
    /// Wait for the moment at which a request is due awake, which takes a whole processor.
    #[arg(long)]
    pub precise: bool,
    #[arg(long)]
    pub http2: bool,
    /// Send gRPC calls (over HTTP/2), whose status counts.
    #[arg(long)]
    pub grpc: bool,
    /// Stay until told to end, after the report.
    #[arg(long)]
    pub linger: bool,
    /// Count replies that took longer than this, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    pub slow: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub requests: u64,
    /// Requests with no reply at all, and connections that could not be made.
    pub failed: u64,
    /// Connections that the other side closed while the client still wanted them.
    pub closed: u64,
    pub opened: u64,
    pub by_status: BTreeMap<u16, u64>,
    /// By the reply's `x-version`.
    pub by_version: BTreeMap<String, u64>,
    /// What went wrong, replies of 500 and above included: the first in each second, of the first few.
    pub errors: Vec<String>,
    /// Replies that took longer than `--slow`.
    pub slow: u64,
    pub seconds: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
    #[serde(skip)]
    latencies: Vec<Duration>,
}

impl Report {
    /// Requests that were answered with a status below 500.
    pub fn good(&self) -> u64 {
        self.by_status.iter().filter(|(status, _)| **status < 500).map(|(_, count)| count).sum()
    }

    fn error(&mut self, started: Instant, error: anyhow::Error) {
        self.failed += 1;
        self.note(started, format_args!("{error:#}"));
    }

    fn note(&mut self, started: Instant, what: std::fmt::Arguments) {
        let second = format!("{} s: ", started.elapsed().as_secs());
        if self.errors.len() < 10 && !self.errors.last().is_some_and(|last| last.starts_with(&second)) {
            self.errors.push(format!("{second}{what}"));
        }
    }

    fn merge(&mut self, other: Report) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.closed += other.closed;
        self.opened += other.opened;
        self.slow += other.slow;
        for (status, count) in other.by_status {
            *self.by_status.entry(status).or_default() += count;
        }
        for (version, count) in other.by_version {
            *self.by_version.entry(version).or_default() += count;
        }
        self.errors.extend(other.errors);
        self.errors.truncate(10);
        self.latencies.extend(other.latencies);
    }

    fn finish(mut self, started: Instant) -> Self {
        self.seconds = started.elapsed().as_secs_f64();
        self.latencies.sort_unstable();
        let at = |share: f64| {
            let index = ((self.latencies.len() as f64 * share) as usize).min(self.latencies.len().saturating_sub(1));
            self.latencies.get(index).map_or(0.0, |d| d.as_secs_f64() * 1e3)
        };
        (self.p50_ms, self.p90_ms, self.p99_ms) = (at(0.5), at(0.9), at(0.99));
        (self.p999_ms, self.max_ms) = (at(0.999), at(1.0));
        self
    }
}

/// What it says when the first good answer has come.
pub const FLOWING: &str = "flowing";

/// Runs until the requests are sent, the time is over, or `stop` says so.
pub async fn run(args: Args, stop: watch::Receiver<bool>) -> anyhow::Result<Report> {
    let target = Arc::new(Target::new(&args).await?);
    let started = Instant::now();
    let deadline = (args.seconds > 0.0).then(|| started + Duration::from_secs_f64(args.seconds));
    let next = Arc::new(AtomicU64::new(0));
    let flowing = Arc::new(AtomicBool::new(false));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..args.connections {
        let (target, next, stop, flowing) = (target.clone(), next.clone(), stop.clone(), flowing.clone());
        let (limit, at_least, rate) = (args.requests, args.at_least, args.rate);
        let precise = args.precise;
        workers.spawn(async move {
            let mut report = Report::default();
            let mut connection = None;
            loop {
                let ticket = next.fetch_add(1, Ordering::Relaxed);
                let now = Instant::now();
                let told = *stop.borrow() && ticket >= at_least;
                if (limit > 0 && ticket >= limit) || deadline.is_some_and(|d| now >= d) || told {
                    return report;
                }
                // Latency counts from when the request was due, not from when the client got round to it.
                let due = if rate > 0 { started + Duration::from_secs_f64(ticket as f64 / rate as f64) } else { now };
                wait_until(due, precise).await;
                if target.url.scheme_str() == Some("tcp") {
                    target.line(due, &mut report).await;
                } else {
                    target.one(&mut connection, due, &mut report).await;
                }
                let answered = report.good() > 0 || !report.by_version.is_empty();
                if answered && !flowing.swap(true, Ordering::Relaxed) {
                    eprintln!("{FLOWING}");
                }
            }
        });
    }
    let mut report = Report::default();
    while let Some(done) = workers.join_next().await {
        report.merge(done?);
    }
    Ok(report.finish(started))
}

/// The runtime's timer ends up to a millisecond late, which would hide what a proxy adds: a precise wait ends awake.
async fn wait_until(due: Instant, precise: bool) {
    let margin = if precise { Duration::from_millis(2) } else { Duration::ZERO };
    if let Some(early) = due.checked_sub(margin) {
        tokio::time::sleep_until(early.into()).await;
    }
    while Instant::now() < due {
        tokio::task::yield_now().await;
    }
}

struct Target {
    started: Instant,
    url: http::Uri,
    address: SocketAddr,
    authority: String,
    headers: Vec<(http::HeaderName, http::HeaderValue)>,
    http2: bool,
    grpc: bool,
    slow: Duration,
}

enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Target {
    async fn new(args: &Args) -> anyhow::Result<Self> {
        let authority = args.url.authority().context("the URL has no host")?.clone();
        let host = authority.host().trim_matches(['[', ']']);
        let port = authority.port_u16().unwrap_or(80);
        let address = lookup_host((host, port))
            .await
            .with_context(|| format!("cannot resolve {host}"))?
            .next()
            .context("no address")?;
        let mut headers = Vec::new();
        for header in &args.headers {
            let Some((name, value)) = header.split_once(':') else { bail!("{header:?} is not `name: value`") };
            headers.push((name.trim().parse()?, value.trim().parse()?));
        }
        Ok(Self {
            started: Instant::now(),
            url: args.url.clone(),
            address,
            authority: authority.to_string(),
            headers,
            http2: args.http2 || args.grpc,
            grpc: args.grpc,
            slow: Duration::from_millis(args.slow),
        })
    }

    async fn one(&self, connection: &mut Option<Connection>, due: Instant, report: &mut Report) {
        report.requests += 1;
        if connection.as_ref().is_some_and(Connection::is_closed) {
            *connection = None;
            report.closed += 1;
        }
        if connection.is_none() {
            match self.connect().await {
                Ok(fresh) => *connection = Some(fresh),
                Err(error) => {
                    report.error(self.started, error);
                    // Nobody listens: do not spin.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    return;
                }
            }
            report.opened += 1;
        }
        let Some(open) = connection else { return };
        match self.exchange(open).await {
            Ok(response) => {
                if response.status().is_server_error() {
                    report.note(self.started, format_args!("{}", response.status()));
                }
                *report.by_status.entry(response.status().as_u16()).or_default() += 1;
                if let Some(version) = response.headers().get("x-version").and_then(|v| v.to_str().ok()) {
                    *report.by_version.entry(version.to_owned()).or_default() += 1;
                }
                self.took(due.elapsed(), report);
            }
            Err(error) => {
                *connection = None;
                report.closed += 1;
                report.error(self.started, error);
            }
        }
    }

    async fn line(&self, due: Instant, report: &mut Report) {
        report.requests += 1;
        let exchange = async {
            let mut stream = BufReader::new(TcpStream::connect(self.address).await.context("cannot connect")?);
            stream.write_all(b"hello\n").await.context("cannot send")?;
            let mut reply = String::new();
            stream.read_line(&mut reply).await.context("cannot read the reply")?;
            reply.split(' ').next().filter(|v| !v.is_empty()).map(str::to_owned).context("closed without a reply")
        };
        match exchange.await {
            Ok(version) => {
                report.opened += 1;
                *report.by_version.entry(version).or_default() += 1;
                self.took(due.elapsed(), report);
            }
            Err(error) => report.error(self.started, error),
        }
    }

    fn took(&self, latency: Duration, report: &mut Report) {
        report.slow += u64::from(latency > self.slow);
        report.latencies.push(latency);
    }

    async fn connect(&self) -> anyhow::Result<Connection> {
        let connecting = tokio::time::timeout(Duration::from_secs(10), TcpStream::connect(self.address));
        let stream = connecting.await.context("connecting took more than 10 s")?.context("cannot connect")?;
        stream.set_nodelay(true)?;
        let io = TokioIo::new(stream);
        if self.http2 {
            let (sender, driver) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(driver);
            Ok(Connection::Http2(sender))
        } else {
            let (sender, driver) = http1::handshake(io).await?;
            tokio::spawn(driver);
            Ok(Connection::Http1(sender))
        }
    }

    async fn exchange(&self, connection: &mut Connection) -> anyhow::Result<Response<()>> {
        let mut request = Request::new(Full::default());
        if self.grpc {
            *request.method_mut() = http::Method::POST;
            request.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            request.headers_mut().insert(http::header::TE, HeaderValue::from_static("trailers"));
            // An empty message.
            *request.body_mut() = Full::new(Bytes::from_static(&[0; 5]));
        }
        request.headers_mut().extend(self.headers.iter().cloned());
        let response: Response<Incoming> = match connection {
            Connection::Http1(sender) => {
                *request.uri_mut() = self.url.path_and_query().map_or("/", |p| p.as_str()).parse()?;
                request.headers_mut().insert(http::header::HOST, self.authority.parse()?);
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Connection::Http2(sender) => {
                *request.uri_mut() = self.url.clone();
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await.context("the reply broke off")?;
        if self.grpc {
            let trailers = body.trailers().unwrap_or(&head.headers);
            let status = trailers.get("grpc-status").context("a reply without a gRPC status")?;
            ensure!(status == "0", "gRPC status {status:?}, {:?}", trailers.get("grpc-message"));
        }
        Ok(Response::from_parts(head, ()))
    }
}

impl Connection {
    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }
}
