//! The whole data path over loopback sockets: clients, proxies and applications that are real but for their purpose.

mod audit;
mod balancing;
mod bandwidth;
mod bypass;
mod cors;
mod differential;
mod direct;
mod draining;
mod expect;
pub(crate) mod ext_authz;
mod faults;
mod floods;
mod grpc;
mod health;
mod hedging;
mod http1;
mod http10;
mod http2;
mod informational;
mod lifecycle;
mod limits;
mod overload;
mod rates;
mod resting;
mod retries;
mod smuggling;
mod throttles;
mod timeouts;
mod tracing;
mod upgrades;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;
use crate::config::*;
use crate::fault::Share;
use crate::limit::RateLimits;
use crate::listen::{Context, Direction, Downstream, InFlight, Phase, Settings};
use crate::pace::Rate;
use crate::snapshot::{Resource, Store, Type, Update};
use crate::telemetry::{Telemetry, TelemetryOptions};
use crate::tls::Tls;
use crate::tls::tests::{Authority, id};
use crate::upstream::Upstreams;

pub(super) type AnyBody = BoxBody<Bytes, Infallible>;

/// Long enough for anything that is going to happen on loopback.
const SOON: Duration = Duration::from_secs(20);

pub(crate) fn downstream() -> Downstream {
    let address = ([127, 0, 0, 1], 1).into();
    Downstream {
        peer: address,
        original_destination: address,
        direction: Direction::Outbound,
        identity: None,
        tls: false,
        alpn: None,
    }
}

async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SOON, future).await.expect("took too long")
}

/// Waits until it is so.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

fn full(body: impl Into<Bytes>) -> AnyBody {
    Full::new(body.into()).boxed()
}

fn reply(body: impl Into<Bytes>) -> Response<AnyBody> {
    Response::new(full(body))
}

// Applications

/// Where an application listens, and how often it was connected to.
struct App {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    accepting: tokio::task::JoinHandle<()>,
}

impl App {
    /// Serves each connection as it likes; the number says which one it is, counted from zero.
    async fn raw<F, Fut>(serve: F) -> Self
    where
        F: Fn(TcpStream, usize) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let number = count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, number));
            }
        });
        Self { address, connections, accepting }
    }

    async fn http1<F, Fut>(handle: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<AnyBody>> + Send + 'static,
    {
        Self::raw(move |stream, _| {
            let handle = handle.clone();
            async move {
                let service = service_fn(move |request| {
                    let response = handle(request);
                    async move { Ok::<_, Infallible>(response.await) }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                // Clients that go away are part of some tests.
                let _ = connection.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
            }
        })
        .await
    }

    async fn http2<F, Fut>(handle: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<AnyBody>> + Send + 'static,
    {
        Self::raw(move |stream, _| {
            let handle = handle.clone();
            async move {
                let service = service_fn(move |request| {
                    let response = handle(request);
                    async move { Ok::<_, Infallible>(response.await) }
                });
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = connection.serve_connection(TokioIo::new(stream), service).await;
            }
        })
        .await
    }

    /// Answers with its name.
    async fn named(name: &'static str) -> Self {
        Self::http1(move |_| async move { reply(name) }).await
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn stop_accepting(&self) {
        self.accepting.abort();
    }
}

/// An address at which nothing listens.
async fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

// Configuration

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::at(address)
}

fn endpoints(name: &str, all: Vec<Endpoint>) -> Arc<Endpoints> {
    Arc::new(Endpoints { name: name.to_owned(), endpoints: all.into_iter().map(Arc::new).collect() })
}

pub(crate) fn cluster(name: &str, http: UpstreamHttp) -> Cluster {
    Cluster {
        name: name.to_owned(),
        discovery: Discovery::Eds(name.to_owned()),
        balancer: Balancer::RoundRobin,
        spread: Spread::default(),
        connect_timeout: Duration::from_secs(5),
        tls: None,
        tls_always: false,
        http,
        limits: Limits {
            max_connections: 1024,
            max_pending: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
        },
        health: EndpointHealth::default(),
    }
}

fn forward(clusters: &[(&str, u32)]) -> Forward {
    let choice = |(name, weight): &(&str, u32)| WeightedCluster {
        cluster: (*name).into(),
        weight: *weight,
        request_headers: HeaderMutation::default(),
        response_headers: HeaderMutation::default(),
    };
    Forward {
        clusters: WeightedClusters::new(clusters.iter().map(choice).collect()),
        timeout: Duration::ZERO,
        idle_timeout: None,
        retry: RetryPolicy {
            retries: 0,
            on: RetryOn::default(),
            per_try_timeout: Duration::ZERO,
            hedges: false,
            backoff_base: Duration::from_millis(1),
            backoff_max: Duration::from_millis(10),
            retry_after_max: Duration::ZERO,
        },
        rewrite_path: None,
        rewrite_host: None,
        mirrors: vec![],
        hash: vec![],
    }
}

pub(crate) fn route(action: Action) -> Route {
    Route {
        name: "test/route/0".to_owned(),
        matches: RouteMatch {
            path: PathMatch::Prefix("/".into()),
            method: None,
            headers: vec![],
            query: vec![],
            grpc: false,
        },
        action,
        request_headers: HeaderMutation::default(),
        response_headers: HeaderMutation::default(),
        cors: None,
        fault: None,
    }
}

pub(crate) fn table(routes: Vec<Route>) -> RouteTable {
    let routes = routes.into_iter().map(Arc::new).collect();
    let host = VirtualHost { name: "all".to_owned(), domains: vec!["*".to_owned()], routes };
    RouteTable { name: "routes".to_owned(), virtual_hosts: vec![host], ignore_port: true }
}

fn to(action: Forward) -> RouteTable {
    table(vec![route(Action::Forward(Box::new(action)))])
}

// Proxies

/// A proxy that forwards what comes in by its route table.
struct Proxy {
    address: SocketAddr,
    /// How often it was connected to.
    connections: Arc<AtomicUsize>,
    ctx: Arc<Context>,
    phase: watch::Sender<Phase>,
}

struct ProxyOptions {
    downstream: Downstream,
    tls: Tls,
    telemetry: TelemetryOptions,
    /// Terminate mutual TLS.
    terminate: bool,
    inline: Option<RouteTable>,
    authorizers: Vec<Authorizer>,
    authorization: Authorization,
    limit: Option<RequestLimit>,
    limits: Option<Arc<PortLimits>>,
    tracing: Option<Arc<Tracing>>,
    idle_timeout: Duration,
    stream_idle_timeout: Duration,
}

/// The table that proxies of tests have.
fn rds() -> RouteSource {
    RouteSource::Rds("routes".to_owned())
}

/// One that asks for nothing and limits nothing.
pub(crate) fn manager(routes: RouteSource) -> HttpManager {
    HttpManager {
        jwt: None,
        stat_prefix: "test".to_owned(),
        authorizers: Vec::new(),
        authorization: Authorization::default(),
        routes,
        idle_timeout: Duration::ZERO,
        stream_idle_timeout: Duration::ZERO,
        limit: None,
        limits: None,
        tracing: None,
    }
}

impl Default for ProxyOptions {
    fn default() -> Self {
        Self {
            downstream: downstream(),
            tls: Tls::default(),
            telemetry: TelemetryOptions::default(),
            terminate: false,
            inline: None,
            authorizers: Vec::new(),
            authorization: Authorization::default(),
            limit: None,
            limits: None,
            tracing: None,
            idle_timeout: Duration::ZERO,
            stream_idle_timeout: Duration::ZERO,
        }
    }
}

impl Proxy {
    /// To one cluster named `app` with these endpoints.
    async fn simple(http: UpstreamHttp, apps: &[SocketAddr]) -> Self {
        Self::with(to(forward(&[("app", 1)])), http, apps).await
    }

    async fn with(table: RouteTable, http: UpstreamHttp, apps: &[SocketAddr]) -> Self {
        let all = apps.iter().map(|&it| endpoint(it)).collect();
        let resources = [
            Resource::Cluster(Arc::new(cluster("app", http))),
            Resource::Endpoints(endpoints("app", all)),
            Resource::Routes(Arc::new(table)),
        ];
        Self::new(resources, ProxyOptions::default()).await
    }

    async fn new(resources: impl IntoIterator<Item = Resource>, options: ProxyOptions) -> Self {
        let store = Store::new(std::time::Instant::now());
        for resource in resources {
            put(&store, resource).await;
        }
        let (sender, phase) = watch::channel(Phase::Serving);
        let ctx = Arc::new(Context {
            upstreams: Upstreams::new(store.clone(), options.tls.clone()),
            store,
            tls: options.tls,
            telemetry: Telemetry::new(options.telemetry).unwrap(),
            settings: Settings::default(),
            phase,
            in_flight: InFlight::default(),
            rate_limits: RateLimits::default(),
            occupancy: Default::default(),
            overload: Default::default(),
            learned: Default::default(),
        });
        let routes = options.inline.map_or_else(rds, |table| RouteSource::Inline(Arc::new(table)));
        let manager = Arc::new(HttpManager {
            authorizers: options.authorizers,
            authorization: options.authorization,
            idle_timeout: options.idle_timeout,
            stream_idle_timeout: options.stream_idle_timeout,
            limit: options.limit,
            limits: options.limits,
            tracing: options.tracing,
            ..manager(routes)
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (shared, count) = (ctx.clone(), connections.clone());
        tokio::spawn(async move {
            loop {
                let (stream, peer) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                stream.set_nodelay(true).unwrap();
                let mut downstream = Downstream { peer, ..options.downstream.clone() };
                let (manager, ctx) = (manager.clone(), shared.clone());
                tokio::spawn(async move {
                    if !options.terminate {
                        return serve(stream, Arc::new(downstream), manager, ctx).await;
                    }
                    let alpn = vec![b"mesh-h2".to_vec(), b"mesh-http/1.1".to_vec()];
                    let config = DownstreamTls { require_client_certificate: true, alpn };
                    let config = ctx.tls.server(&config).unwrap();
                    let Ok(stream) = tokio_rustls::TlsAcceptor::from(config).accept(stream).await else { return };
                    let session = stream.get_ref().1;
                    downstream.tls = true;
                    downstream.alpn = session.alpn_protocol().map(<[u8]>::to_vec);
                    downstream.identity = session.peer_certificates().and_then(crate::tls::peer_identity).map(Arc::new);
                    serve(stream, Arc::new(downstream), manager, ctx).await;
                });
            }
        });
        Self { address, connections, ctx, phase: sender }
    }

    async fn put(&self, resource: Resource) {
        put(&self.ctx.store, resource).await;
    }

    async fn remove(&self, ty: Type, name: &str) {
        self.ctx.store.apply(ty, Update { removed: vec![name.to_owned()], ..Update::default() });
    }

    async fn http1(&self) -> Client1 {
        Client1::connect(self.address).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.http1().await.get(path).await
    }

    /// A connection for bytes as the test writes them.
    async fn raw(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// The count of requests whose series has all of these labels.
    fn recorded(&self, labels: &[&str]) -> u64 {
        let text = self.ctx.telemetry.render();
        let lines = text.lines().filter(|line| line.starts_with("mesh_requests_total{"));
        let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
    }
}

/// As the control plane would: the name is asked for first, and answered then.
pub(crate) async fn put(store: &Store, resource: Resource) {
    let name = resource.name().to_owned();
    let ty = match &resource {
        Resource::Listener(_) => Type::Listener,
        Resource::Routes(_) => Type::Routes,
        Resource::Cluster(_) => Type::Cluster,
        Resource::Endpoints(_) => Type::Endpoints,
        Resource::Name(..) => Type::Name,
    };
    let (asking, asked) = (store.clone(), name.clone());
    let ask = async move {
        match ty {
            Type::Routes => drop(asking.routes(&asked).await),
            Type::Cluster => drop(asking.cluster(&asked).await),
            Type::Endpoints => drop(asking.endpoints(&asked).await),
            Type::Listener => drop(asking.listener(&asked).await),
            Type::Name => (),
        }
    };
    let update = Update { resources: vec![("1".to_owned(), resource)], ..Update::default() };
    let answer = async { store.apply(ty, update) };
    // The question is polled first.
    tokio::join!(biased; ask, answer);
}

/// The proxies of a caller and of an application, with mutual TLS between them.
async fn pair(app_http: UpstreamHttp, app: SocketAddr) -> (Proxy, Proxy) {
    pair_with(to(forward(&[("app", 1)])), app_http, app).await
}

async fn pair_with(routes: RouteTable, app_http: UpstreamHttp, app: SocketAddr) -> (Proxy, Proxy) {
    let authority = Authority::new();
    let tls = |account| {
        let tls = Tls::default();
        tls.rotate(authority.svid(account));
        tls
    };
    let local = [
        Resource::Cluster(Arc::new(cluster("app", app_http))),
        Resource::Endpoints(endpoints("app", vec![endpoint(app)])),
    ];
    let inbound = ProxyOptions {
        downstream: Downstream { direction: Direction::Inbound, ..downstream() },
        tls: tls("reviews"),
        terminate: true,
        inline: Some(to(forward(&[("app", 1)]))),
        ..ProxyOptions::default()
    };
    let inbound = Proxy::new(local, inbound).await;
    let context = UpstreamTls { identities: vec![id("reviews")], alpn: vec![b"mesh-h2".to_vec()], sni: String::new() };
    let remote = Cluster { tls: Some(context), ..cluster("app", UpstreamHttp::Http2) };
    let remote = [
        Resource::Cluster(Arc::new(remote)),
        Resource::Endpoints(endpoints("app", vec![Endpoint { mesh: true, ..endpoint(inbound.address) }])),
        Resource::Routes(Arc::new(routes)),
    ];
    let outbound = Proxy::new(remote, ProxyOptions { tls: tls("web"), ..ProxyOptions::default() }).await;
    (outbound, inbound)
}

// Clients

/// A response that was read to its end.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    trailers: Option<HeaderMap>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |it| it.to_str().unwrap())
    }
}

async fn read<B>(response: Response<B>) -> Result<Answer, B::Error>
where
    B: Body<Data = Bytes>,
{
    let (parts, body) = response.into_parts();
    let body = body.collect().await?;
    let trailers = body.trailers().cloned();
    Ok(Answer { status: parts.status, headers: parts.headers, body: body.to_bytes(), trailers })
}

struct Client1(hyper::client::conn::http1::SendRequest<AnyBody>);

impl Client1 {
    async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Self(send)
    }

    async fn send(&mut self, request: Request<AnyBody>) -> hyper::Result<Response<Incoming>> {
        soon(async {
            self.0.ready().await?;
            self.0.send_request(request).await
        })
        .await
    }

    async fn get(&mut self, path: &str) -> Answer {
        self.answer(get(path)).await
    }

    async fn answer(&mut self, request: Request<AnyBody>) -> Answer {
        let response = self.send(request).await.unwrap();
        soon(read(response)).await.unwrap()
    }
}

struct Client2(hyper::client::conn::http2::SendRequest<AnyBody>);

impl Client2 {
    async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (send, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        Self(send)
    }

    async fn send(&mut self, request: Request<AnyBody>) -> hyper::Result<Response<Incoming>> {
        soon(self.0.send_request(request)).await
    }

    async fn answer(&mut self, request: Request<AnyBody>) -> Answer {
        let response = self.send(request).await.unwrap();
        soon(read(response)).await.unwrap()
    }
}

fn get(path: &str) -> Request<AnyBody> {
    Request::get(path).header("host", "app.test").body(full("")).unwrap()
}

fn post(path: &str, body: impl Into<Bytes>) -> Request<AnyBody> {
    Request::post(path).header("host", "app.test").body(full(body)).unwrap()
}

/// A body that the test feeds piece by piece.
fn fed() -> (tokio::sync::mpsc::Sender<http_body::Frame<Bytes>>, AnyBody) {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
    let stream = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx).map(|it| it.map(Ok)));
    (sender, BodyExt::boxed(http_body_util::StreamBody::new(stream)))
}

/// Reads until the end of what is expected; returns all of it.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    soon(async {
        while !String::from_utf8_lossy(&text).ends_with(end) {
            let mut piece = [0; 1024];
            let n = stream.read(&mut piece).await.unwrap();
            assert!(n > 0, "ended after {:?}", String::from_utf8_lossy(&text));
            text.extend_from_slice(&piece[..n]);
        }
    })
    .await;
    String::from_utf8(text).unwrap()
}
