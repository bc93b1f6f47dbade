//! Traces: what is told to whoever comes next, the spans that requests leave, and backends that do not take them.

use std::sync::Mutex;
use std::time::Instant;

use mesh_common::proto::otlp::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use mesh_common::proto::otlp::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use mesh_common::proto::otlp::common::v1::any_value::Value;
use mesh_common::proto::otlp::trace::v1::Span;
use prost::Message;
use tokio_stream::wrappers::TcpListenerStream;

use super::*;

/// What a backend got.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<Span>>>);

impl Spans {
    fn take_in(&self, request: ExportTraceServiceRequest) {
        let scopes = request.resource_spans.into_iter().flat_map(|it| it.scope_spans);
        self.0.lock().unwrap().extend(scopes.flat_map(|it| it.spans));
    }

    /// So many spans, in the order in which they began.
    async fn wait_for(&self, number: usize) -> Vec<Span> {
        until("the spans came", || self.0.lock().unwrap().len() >= number).await;
        let mut spans = self.0.lock().unwrap().clone();
        assert_eq!(spans.len(), number, "{spans:#?}");
        spans.sort_by_key(|span| (span.start_time_unix_nano, span.parent_span_id.len()));
        spans
    }
}

#[tonic::async_trait]
impl TraceService for Spans {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        // That is how a proxy on the way leaves no spans of it.
        assert!(request.metadata().get("traceparent").unwrap().to_str().unwrap().ends_with("-00"));
        self.take_in(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A backend, and where it is.
async fn collector() -> (Spans, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let spans = Spans::default();
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(spans.clone()));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (spans, address)
}

fn tracing(share: f64, protocol: TraceProtocol) -> Option<Arc<Tracing>> {
    let provider = Provider {
        cluster: "collector".to_owned(),
        authority: http::uri::Authority::from_static("collector:4317"),
        protocol,
        service_name: "web".to_owned(),
    };
    Some(Arc::new(Tracing { sampling: Sampling::new(share), provider: Arc::new(provider) }))
}

async fn traced(direction: Direction, routes: RouteTable, app: SocketAddr, collector: SocketAddr) -> Proxy {
    with(direction, routes, app, collector, tracing(1.0, TraceProtocol::OtlpGrpc)).await
}

async fn with(
    direction: Direction,
    routes: RouteTable,
    app: SocketAddr,
    collector: SocketAddr,
    tracing: Option<Arc<Tracing>>,
) -> Proxy {
    let resources = [
        Resource::Cluster(Arc::new(cluster("app", UpstreamHttp::Http1))),
        Resource::Endpoints(endpoints("app", vec![endpoint(app)])),
        Resource::Cluster(Arc::new(cluster("collector", UpstreamHttp::Downstream))),
        Resource::Endpoints(endpoints("collector", vec![endpoint(collector)])),
        Resource::Routes(Arc::new(routes)),
    ];
    // A peer with an identity, or the application itself.
    let inbound = direction == Direction::Inbound;
    let identity = inbound.then(|| Arc::new("spiffe://mesh.local/ns/default/sa/web".parse().unwrap()));
    let downstream = Downstream { direction, identity, tls: inbound, ..downstream() };
    Proxy::new(resources, ProxyOptions { downstream, tracing, ..ProxyOptions::default() }).await
}

fn simple() -> RouteTable {
    to(forward(&[("app", 1)]))
}

/// Answers with the trace that it was told of.
async fn telling() -> App {
    App::http1(|request: Request<Incoming>| async move {
        reply(request.headers().get("traceparent").map_or("none".to_owned(), |it| it.to_str().unwrap().to_owned()))
    })
    .await
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|it| it.key == key);
    match found.and_then(|it| it.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        _ => String::new(),
    }
}

const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn get_as(traceparent: &str) -> Request<AnyBody> {
    let request = Request::get("/reviews?token=secret").header("host", "app.test:8080");
    request.header("traceparent", traceparent).body(full("")).unwrap()
}

#[tokio::test]
async fn the_caller_s_side_leaves_one_span_for_one_try() {
    let (spans, collector) = collector().await;
    let app = telling().await;
    let proxy = traced(Direction::Outbound, simple(), app.address, collector).await;
    let told = proxy.http1().await.answer(get_as(CALLER)).await;
    let [span] = &spans.wait_for(1).await[..] else { panic!() };
    assert_eq!(told.text(), format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id)));
    assert_eq!((hex(&span.trace_id).as_str(), hex(&span.parent_span_id).as_str()), (&CALLER[3..35], &CALLER[36..52]));
    assert_eq!((span.kind, span.name.as_str(), span.status.is_none()), (3, "GET routes", true));
    let expected = [
        ("http.request.method", "GET"),
        ("url.scheme", "http"),
        // Without the query.
        ("url.path", "/reviews"),
        ("network.protocol.version", "1.1"),
        ("server.address", "app.test"),
        ("server.port", "8080"),
        ("http.response.status_code", "200"),
        ("mesh.route", "test/route/0"),
        ("mesh.cluster", "app"),
        ("network.peer.address", "127.0.0.1"),
        ("network.peer.port", &app.address.port().to_string()),
        ("error.type", ""),
    ];
    for (key, value) in expected {
        assert_eq!(attribute(span, key), value, "{key}");
    }
    assert!(span.start_time_unix_nano < span.end_time_unix_nano);
    until("it is counted", || proxy.ctx.telemetry.render().contains("mesh_trace_spans_exported_total 1")).await;
}

#[tokio::test]
async fn the_server_s_side_tells_the_application_of_its_span() {
    let (spans, collector) = collector().await;
    let app = telling().await;
    let proxy = traced(Direction::Inbound, simple(), app.address, collector).await;
    let told = proxy.http1().await.answer(get_as(CALLER)).await;
    let [span] = &spans.wait_for(1).await[..] else { panic!() };
    assert_eq!(told.text(), format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id)));
    assert_eq!((hex(&span.parent_span_id).as_str(), span.kind), (&CALLER[36..52], 2));
    assert_eq!(attribute(span, "client.address"), "127.0.0.1");
    assert_eq!(attribute(span, "mesh.peer.identity"), "spiffe://mesh.local/ns/default/sa/web");
}

#[tokio::test]
async fn each_of_several_tries_is_a_span_beneath_that_of_the_request() {
    let (spans, collector) = collector().await;
    let count = Arc::new(AtomicUsize::new(0));
    let app = App::http1(move |request: Request<Incoming>| {
        let first = count.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            let mut reply = reply(request.headers()["traceparent"].to_str().unwrap().to_owned());
            *reply.status_mut() = if first { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
            reply
        }
    })
    .await;
    let mut forward = forward(&[("app", 1)]);
    forward.retry.retries = 2;
    forward.retry.on.gateway_error = true;
    let proxy = traced(Direction::Outbound, to(forward), app.address, collector).await;
    let told = proxy.http1().await.answer(get_as(CALLER)).await;
    let [own, first, second] = &spans.wait_for(3).await[..] else { panic!() };
    assert_eq!(hex(&own.parent_span_id), CALLER[36..52]);
    assert!(own.span_id == first.parent_span_id && own.span_id == second.parent_span_id);
    assert!([first, second].iter().all(|it| it.trace_id == own.trace_id && it.kind == 3));
    assert_eq!(told.text(), format!("00-{}-{}-01", hex(&own.trace_id), hex(&second.span_id)));
    let of = |key: &str| [own, first, second].map(|span| attribute(span, key));
    assert_eq!(of("http.response.status_code"), ["200", "503", "200"]);
    assert_eq!(of("http.request.resend_count"), ["", "", "1"]);
    assert_eq!(of("mesh.attempts"), ["2", "", ""]);
    assert_eq!(of("error.type"), ["", "503", ""]);
    assert_eq!([own, first, second].map(|span| span.status.as_ref().map(|it| it.code)), [None, Some(2), None]);
    assert!(first.end_time_unix_nano <= second.start_time_unix_nano);
    assert_eq!(second.end_time_unix_nano, own.end_time_unix_nano);
}

#[tokio::test]
async fn tries_that_come_to_nothing() {
    let (spans, collector) = collector().await;
    let mut forward = forward(&[("app", 1)]);
    forward.retry.retries = 1;
    forward.retry.on.connect_failure = true;
    let proxy = traced(Direction::Outbound, to(forward), nowhere().await, collector).await;
    assert_eq!(proxy.http1().await.answer(get_as(CALLER)).await.status, 503);
    let spans = spans.wait_for(3).await;
    let of = |key: &str| spans.iter().map(|span| attribute(span, key)).collect::<Vec<_>>();
    assert_eq!(of("http.response.status_code"), ["503", "", ""]);
    assert_eq!(of("error.type"), ["503", "UF", "UF"]);
    assert_eq!(of("mesh.response_flags"), ["UF", "", ""]);
}

#[tokio::test]
async fn a_fault_is_a_span_without_a_try() {
    let (spans, collector) = collector().await;
    let app = telling().await;
    let rule = |kind| FaultRule {
        name: "test".to_owned(),
        parts_per_million: 1_000_000,
        kind,
        expires_unix_ms: 0,
        headers: Arc::default(),
        share: Share::default(),
    };
    let abort = FaultKind::Abort { http: StatusCode::IM_A_TEAPOT, grpc: 14 };
    let rules = vec![rule(FaultKind::Delay(Duration::from_millis(10))), rule(abort)];
    let mut faulty = route(Action::Forward(Box::new(forward(&[("app", 1)]))));
    faulty.fault = Some(Arc::new(Fault { rules }));
    let proxy = traced(Direction::Outbound, table(vec![faulty]), app.address, collector).await;
    assert_eq!(proxy.http1().await.answer(get_as(CALLER)).await.status, 418);
    let [span] = &spans.wait_for(1).await[..] else { panic!() };
    assert_eq!(
        (attribute(span, "mesh.fault").as_str(), attribute(span, "mesh.response_flags").as_str()),
        ("delay,abort", "FI")
    );
    assert_eq!(attribute(span, "http.response.status_code"), "418");
    assert!(span.end_time_unix_nano - span.start_time_unix_nano >= 10_000_000);
}

#[tokio::test]
async fn the_policy_that_decides_is_told() {
    let (spans, collector) = collector().await;
    let app = telling().await;
    let policy = |name: &str, path: &str| Policy {
        name: name.to_owned(),
        principals: vec![Condition::Any],
        permissions: vec![Condition::Path(StringMatch::Prefix(path.to_owned()))],
    };
    let gate = |action, policies| Gate { action, dry_run: false, policies };
    let gates = vec![
        gate(GateAction::Deny, vec![policy("default/no[0]", "/secret")]),
        gate(GateAction::Allow, vec![policy("default/other[0]", "/other"), policy("default/yes[0]", "/")]),
    ];
    let resources = [
        Resource::Cluster(Arc::new(cluster("app", UpstreamHttp::Http1))),
        Resource::Endpoints(endpoints("app", vec![endpoint(app.address)])),
        Resource::Cluster(Arc::new(cluster("collector", UpstreamHttp::Downstream))),
        Resource::Endpoints(endpoints("collector", vec![endpoint(collector)])),
        Resource::Routes(Arc::new(simple())),
    ];
    let options = ProxyOptions {
        downstream: Downstream { direction: Direction::Inbound, ..downstream() },
        tracing: tracing(1.0, TraceProtocol::OtlpGrpc),
        authorization: Authorization { gates },
        ..ProxyOptions::default()
    };
    let proxy = Proxy::new(resources, options).await;
    let mut client = proxy.http1().await;
    assert_eq!(client.get("/a").await.status, 200);
    assert_eq!(client.get("/secret").await.status, 403);
    let spans = spans.wait_for(2).await;
    let of = |key: &str| spans.iter().map(|span| attribute(span, key)).collect::<Vec<_>>();
    assert_eq!(of("mesh.policy"), ["default/yes[0]", "default/no[0]"]);
    assert_eq!(of("mesh.response_flags"), ["", "UAEX"]);
    // Who is refused has made the mistake, not the server.
    assert_eq!(of("error.type"), ["", ""]);
}

#[tokio::test]
async fn what_is_not_sampled_goes_on_and_leaves_nothing() {
    let (spans, collector) = collector().await;
    let app = telling().await;
    let none = tracing(0.0, TraceProtocol::OtlpGrpc);
    let proxy = with(Direction::Outbound, simple(), app.address, collector, none).await;
    let mut client = proxy.http1().await;
    let unsampled = CALLER.replace("-01", "-00");
    assert_eq!(client.answer(get_as(&unsampled)).await.text(), unsampled);
    assert!(client.get("/").await.text().ends_with("-00"));
    let off = with(Direction::Outbound, simple(), app.address, collector, None).await;
    assert_eq!(off.get("/").await.text(), "none");
    assert_eq!(off.http1().await.answer(get_as("anything")).await.text(), "anything");
    // The one of these that is.
    assert!(client.answer(get_as(CALLER)).await.text().ends_with("-01"));
    spans.wait_for(1).await;
}

#[tokio::test]
async fn a_mirrored_request_belongs_to_the_trace() {
    let (spans, collector) = collector().await;
    let (sender, mut shadows) = tokio::sync::mpsc::channel(1);
    let app = App::http1(move |request: Request<Incoming>| {
        let sender = sender.clone();
        async move {
            if request.headers()["host"].to_str().unwrap().contains("-shadow") {
                sender.send(request.headers()["traceparent"].to_str().unwrap().to_owned()).await.unwrap();
            }
            reply("")
        }
    })
    .await;
    let mut forward = forward(&[("app", 1)]);
    forward.mirrors = vec![Mirror { cluster: "app".into(), parts_per_million: 1_000_000, share: Share::default() }];
    let proxy = traced(Direction::Outbound, to(forward), app.address, collector).await;
    proxy.http1().await.answer(get_as(CALLER)).await;
    let [own, only] = &spans.wait_for(2).await[..] else { panic!() };
    assert_eq!(own.span_id, only.parent_span_id);
    let shadow = soon(shadows.recv()).await.unwrap();
    assert_eq!(shadow, format!("00-{}-{}-01", hex(&own.trace_id), hex(&own.span_id)));
}

#[tokio::test]
async fn hedged_tries_are_told_apart() {
    let (spans, collector) = collector().await;
    let count = Arc::new(AtomicUsize::new(0));
    let app = App::http1(move |_| {
        let first = count.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            if first {
                std::future::pending::<()>().await;
            }
            reply("")
        }
    })
    .await;
    let mut forward = forward(&[("app", 1)]);
    (forward.retry.retries, forward.retry.hedges) = (1, true);
    forward.retry.per_try_timeout = Duration::from_millis(20);
    let proxy = traced(Direction::Outbound, to(forward), app.address, collector).await;
    assert_eq!(proxy.http1().await.answer(get_as(CALLER)).await.status, 200);
    let [own, late, second] = &spans.wait_for(3).await[..] else { panic!() };
    assert!(own.span_id == late.parent_span_id && own.span_id == second.parent_span_id);
    assert_eq!([late, second].map(|it| attribute(it, "error.type")), ["cancelled", ""]);
    assert_eq!(attribute(second, "http.response.status_code"), "200");
}

/// A backend over HTTP, which keeps what it gets: path, content type and body.
async fn over_http() -> (tokio::sync::mpsc::Receiver<(String, String, Bytes)>, App) {
    let (sender, got) = tokio::sync::mpsc::channel(8);
    let app = App::http1(move |request: Request<Incoming>| {
        let sender = sender.clone();
        async move {
            let kind = request.headers()["content-type"].to_str().unwrap().to_owned();
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            sender.send((path, kind, body)).await.unwrap();
            reply("")
        }
    })
    .await;
    (got, app)
}

#[tokio::test]
async fn otlp_over_http() {
    let (mut got, collector) = over_http().await;
    let app = telling().await;
    let http = tracing(1.0, TraceProtocol::OtlpHttp("/v1/traces".parse().unwrap()));
    let proxy = with(Direction::Outbound, simple(), app.address, collector.address, http).await;
    proxy.get("/").await;
    let (path, kind, body) = soon(got.recv()).await.unwrap();
    assert_eq!((path.as_str(), kind.as_str()), ("/v1/traces", "application/x-protobuf"));
    let spans = Spans::default();
    spans.take_in(ExportTraceServiceRequest::decode(body).unwrap());
    assert_eq!(spans.wait_for(1).await[0].name, "GET routes");
    until("it is counted", || proxy.ctx.telemetry.render().contains("mesh_trace_spans_exported_total 1")).await;
}

#[tokio::test]
async fn zipkin() {
    let (mut got, collector) = over_http().await;
    let app =
        App::http1(
            |request: Request<Incoming>| async move { reply(request.headers()["b3"].to_str().unwrap().to_owned()) },
        )
        .await;
    let zipkin = tracing(0.0, TraceProtocol::Zipkin("/api/v2/spans".parse().unwrap()));
    let proxy = with(Direction::Outbound, simple(), app.address, collector.address, zipkin).await;
    let request = Request::get("/").header("host", "a").header("b3", "80f198ee56343ba8-e457b5a2e4d86bd1-1");
    let told = proxy.http1().await.answer(request.body(full("")).unwrap()).await;
    let (path, kind, body) = soon(got.recv()).await.unwrap();
    assert_eq!((path.as_str(), kind.as_str()), ("/api/v2/spans", "application/json"));
    let spans: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(spans[0]["traceId"], "000000000000000080f198ee56343ba8");
    assert_eq!(spans[0]["parentId"], "e457b5a2e4d86bd1");
    assert_eq!(told.text(), format!("80f198ee56343ba8-{}-1", spans[0]["id"].as_str().unwrap()));
}

fn dropped(proxy: &Proxy, reason: &str) -> u64 {
    let text = proxy.ctx.telemetry.render();
    let name = format!("mesh_trace_spans_dropped_total{{reason=\"{reason}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap()
}

#[tokio::test]
async fn a_backend_that_hangs_keeps_nobody_waiting() {
    let app = telling().await;
    let collector = App::raw(|stream, _| async move {
        let _open = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = traced(Direction::Outbound, simple(), app.address, collector.address).await;
    let mut client = proxy.http1().await;
    let mut longest = Duration::ZERO;
    for _ in 0..4000 {
        let began = Instant::now();
        assert_eq!(client.get("/").await.status, 200);
        longest = longest.max(began.elapsed());
    }
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    assert!(collector.connections() > 0);
    // What waits, and a batch that is on its way.
    assert!(dropped(&proxy, "queue_full") >= 4000 - 2048 - 512 - 1, "{}", dropped(&proxy, "queue_full"));
    let began = Instant::now();
    proxy.ctx.telemetry.end_spans(Duration::from_millis(100)).await;
    assert!(began.elapsed() < Duration::from_secs(1));
    let before = dropped(&proxy, "queue_full");
    assert_eq!(client.get("/").await.status, 200);
    until("it is counted", || dropped(&proxy, "queue_full") == before + 1).await;
}

#[tokio::test]
async fn a_backend_that_is_not_there_or_refuses() {
    let app = telling().await;
    let gone = traced(Direction::Outbound, simple(), app.address, nowhere().await).await;
    gone.get("/").await;
    until("it is given up", || dropped(&gone, "unavailable") == 1).await;
    // One that speaks, but not that.
    let wrong = App::http2(|_| async move { reply("<html>") }).await;
    let wrong = traced(Direction::Outbound, simple(), app.address, wrong.address).await;
    wrong.get("/").await;
    until("it is given up", || dropped(&wrong, "refused") == 1).await;
    // One of another protocol altogether.
    let babble = App::raw(|mut stream, _| async move {
        let _ = stream.write_all(&[0x55; 4096]).await;
    })
    .await;
    let babble = traced(Direction::Outbound, simple(), app.address, babble.address).await;
    babble.get("/").await;
    until("it is given up", || dropped(&babble, "unavailable") + dropped(&babble, "refused") == 1).await;
}

#[tokio::test]
async fn what_waits_is_sent_at_the_end() {
    let (spans, collector) = collector().await;
    let app = telling().await;
    let proxy = traced(Direction::Outbound, simple(), app.address, collector).await;
    proxy.get("/").await;
    until("it has ended", || proxy.recorded(&["response_code=\"200\""]) == 1).await;
    proxy.ctx.telemetry.end_spans(SOON).await;
    assert_eq!(spans.0.lock().unwrap().len(), 1);
}
