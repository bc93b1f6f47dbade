//! A limit of one connection: what is more waits or is refused, and traffic goes on.

use super::upgrades::shouting;
use super::*;
use mesh_common::identity::Identity;

use crate::snapshot::Found;

const ONE: Limits =
    Limits { max_connections: 1, max_pending: 1024, max_requests: 1024, max_retries: 3, retry_budget: None };

/// Puts limits on the proxy's cluster, which else stays as it is.
async fn limit(proxy: &Proxy, limits: Limits) {
    let Found::Yes(cluster) = proxy.ctx.store.cluster("app").await else { panic!("no cluster") };
    proxy.put(Resource::Cluster(Arc::new(Cluster { limits, ..Cluster::clone(&cluster) }))).await;
}

fn to_http2(path: &str) -> Request<AnyBody> {
    Request::get(format!("http://app.test{path}")).body(full("")).unwrap()
}

/// Sends this many requests at once over HTTP/1.1, each on a connection of its own, and over HTTP/2, all on one; counts the
/// answers with 200 and with 503.
async fn burst(proxy: &Proxy, http1: usize, http2: usize) -> (usize, usize) {
    let client = Client2::connect(proxy.address).await.0;
    let mut requests = Vec::new();
    for _ in 0..http1 {
        let mut client = proxy.http1().await;
        requests.push(tokio::spawn(async move { client.get("/").await.status }));
    }
    for _ in 0..http2 {
        let mut client = Client2(client.clone());
        requests.push(tokio::spawn(async move { client.answer(to_http2("/")).await.status }));
    }
    let (mut ok, mut refused) = (0, 0);
    for request in requests {
        match request.await.unwrap().as_u16() {
            200 => ok += 1,
            503 => refused += 1,
            other => panic!("status {other}"),
        }
    }
    (ok, refused)
}

/// An application that speaks both versions in clear text.
async fn both<F, Fut>(handle: F) -> App
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<AnyBody>> + Send + 'static,
{
    App::raw(move |stream, _| {
        let handle = handle.clone();
        async move {
            let mut first = [0; 3];
            while stream.peek(&mut first).await.is_ok_and(|n| n < first.len()) {
                tokio::task::yield_now().await;
            }
            let service = service_fn(move |request| {
                let response = handle(request);
                async move { Ok::<_, Infallible>(response.await) }
            });
            let io = TokioIo::new(stream);
            let _ = match &first {
                b"PRI" => {
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await
                }
                _ => hyper::server::conn::http1::Builder::new().serve_connection(io, service).with_upgrades().await,
            };
        }
    })
    .await
}

/// An application that answers after a moment.
async fn slow() -> App {
    both(|_| async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        reply("ok")
    })
    .await
}

/// An application that answers when it is told to; with how many requests it has had.
async fn held() -> (App, Arc<AtomicUsize>, watch::Sender<bool>) {
    let (go, gone) = watch::channel(false);
    let has = Arc::new(AtomicUsize::new(0));
    let count = has.clone();
    let app = both(move |_| {
        let mut gone = gone.clone();
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            gone.wait_for(|go| *go).await.unwrap();
            reply("ok")
        }
    });
    (app.await, has, go)
}

/// Between proxies requests of both versions share the one connection: also more than another one would be made for.
#[tokio::test]
async fn one_connection_with_mutual_tls_takes_http1_and_http2_callers() {
    let app = slow().await;
    let (outbound, inbound) = pair(UpstreamHttp::Downstream, app.address).await;
    limit(&outbound, ONE).await;
    for _ in 0..3 {
        assert_eq!(burst(&outbound, 30, 150).await, (180, 0));
    }
    assert_eq!(inbound.connections.load(Ordering::SeqCst), 1);
    assert_eq!(outbound.recorded(&["security=\"mutual_tls\""]), 540);
}

#[tokio::test]
async fn what_one_connection_with_mutual_tls_may_not_take_is_refused_and_traffic_goes_on() {
    let (app, has, go) = held().await;
    let (outbound, inbound) = pair(UpstreamHttp::Downstream, app.address).await;
    limit(&outbound, Limits { max_requests: 5, ..ONE }).await;
    let told = async {
        until("five are there", || has.load(Ordering::SeqCst) == 5).await;
        until("the others are refused", || outbound.recorded(&["response_flags=\"UO\""]) == 7).await;
        go.send_replace(true);
    };
    let (counts, ()) = tokio::join!(burst(&outbound, 6, 6), told);
    assert_eq!(counts, (5, 7));
    for _ in 0..3 {
        assert_eq!(burst(&outbound, 2, 2).await, (4, 0));
    }
    assert_eq!(inbound.connections.load(Ordering::SeqCst), 1);
}

/// An upgrade needs an HTTP/1.1 connection for itself, between proxies too: the shared one does not keep it out, and the other
/// way round.
#[tokio::test]
async fn a_websocket_and_requests_keep_each_other_from_nothing() {
    let app = both(|request| async move {
        if request.headers().contains_key("upgrade") { shouting(request).await } else { reply("ok") }
    })
    .await;
    let (outbound, inbound) = pair(UpstreamHttp::Downstream, app.address).await;
    limit(&outbound, ONE).await;
    assert_eq!(burst(&outbound, 2, 2).await, (4, 0));
    let mut socket = outbound.raw().await;
    socket
        .write_all(b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    let text = read_until(&mut socket, "\r\n\r\n").await;
    assert!(text.starts_with("HTTP/1.1 101 "), "{text}");
    assert_eq!(burst(&outbound, 2, 2).await, (4, 0));
    socket.write_all(b"still").await.unwrap();
    assert_eq!(read_until(&mut socket, "STILL").await, "STILL");
    assert_eq!(inbound.connections.load(Ordering::SeqCst), 2);
}

/// Outside of the mesh the upstream's version is the caller's: one connection for each.
#[tokio::test]
async fn callers_of_both_versions_do_not_starve_each_other() {
    let app = slow().await;
    let proxy = Proxy::simple(UpstreamHttp::Downstream, &[app.address]).await;
    limit(&proxy, ONE).await;
    // Each comes when the other's connection is there already, and both at once.
    for (http1, http2) in [(5, 0), (0, 5), (5, 5), (5, 0)] {
        assert_eq!(burst(&proxy, http1, http2).await, (http1 + http2, 0));
    }
    assert_eq!(app.connections(), 2);
}

/// The queue has an end: what does not fit into it is refused, and what is in it is served.
#[tokio::test]
async fn a_full_queue_refuses_and_traffic_goes_on() {
    let (app, has, go) = held().await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    limit(&proxy, Limits { max_pending: 3, ..ONE }).await;
    let mut first = proxy.http1().await;
    let first = tokio::spawn(async move { first.get("/").await.status });
    until("the first is there", || has.load(Ordering::SeqCst) == 1).await;
    let told = async {
        until("what does not fit is refused", || proxy.recorded(&["response_flags=\"UO\""]) == 5).await;
        assert_eq!(has.load(Ordering::SeqCst), 1, "the others wait");
        go.send_replace(true);
    };
    let (counts, ()) = tokio::join!(burst(&proxy, 4, 4), told);
    assert_eq!((counts, first.await.unwrap().as_u16()), ((3, 5), 200));
    assert_eq!(burst(&proxy, 2, 1).await, (3, 0));
    assert_eq!(app.connections(), 1);
}

/// A connection that takes no more requests (GOAWAY) but still has some does not count against the next one.
#[tokio::test]
async fn a_connection_that_is_going_away_leaves_room_for_the_next() {
    let app = App::raw(|stream, number| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let mut kept = Vec::new();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            // The first connection's response never ends.
            kept.push(respond.send_response(Response::new(()), number > 0).unwrap());
            if number == 0 {
                connection.graceful_shutdown();
            }
        }
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http2, &[app.address]).await;
    limit(&proxy, ONE).await;
    let mut first = proxy.http1().await;
    let unfinished = first.send(get("/")).await.unwrap();
    assert_eq!(unfinished.status(), 200);
    let mut second = proxy.http1().await;
    for _ in 0..5 {
        assert_eq!(second.get("/").await.status, 200);
    }
    assert_eq!(app.connections(), 2);
    drop(unfinished);
}

/// The proxy of a workload that takes so many requests at a time.
async fn at_a_time(app: &App, limit: AtATime, identity: Option<&str>) -> Proxy {
    limited(app, PortLimits { requests: Some(limit), ..PortLimits::none("inbound:80") }, identity).await
}

async fn limited(app: &App, limits: PortLimits, identity: Option<&str>) -> Proxy {
    let resources = [
        Resource::Cluster(Arc::new(cluster("app", UpstreamHttp::Downstream))),
        Resource::Endpoints(endpoints("app", vec![endpoint(app.address)])),
    ];
    let identity = identity.map(|account| Identity::new("mesh.local", "default", account).unwrap());
    let options = ProxyOptions {
        downstream: Downstream { direction: Direction::Inbound, identity: identity.map(Arc::new), ..downstream() },
        inline: Some(to(forward(&[("app", 1)]))),
        limits: Some(Arc::new(limits)),
        ..ProxyOptions::default()
    };
    Proxy::new(resources, options).await
}

/// Heads by their headers, bodies by what is said of them or by what comes; what is too large reaches nobody, or not whole.
#[tokio::test]
async fn requests_that_are_larger_than_the_application_takes_are_refused() {
    let app = both(|request| async {
        let whole = request.into_body().collect().await.map(|body| body.to_bytes().len());
        Response::new(full(format!("{whole:?}")))
    })
    .await;
    let limits = PortLimits { max_head: Some(200), max_body: Some(1000), ..PortLimits::none("inbound:80") };
    let proxy = limited(&app, limits, None).await;
    // With a host of its own for HTTP/2.
    let at =
        |host: &str, body: AnyBody| Request::post(format!("http://{host}/")).header("host", host).body(body).unwrap();
    let large_head = |value: usize| {
        let request = Request::get("http://a/").header("host", "a").header("x-large", "a".repeat(value));
        request.body(full("")).unwrap()
    };
    let post = |length: usize| at("a", full("b".repeat(length)));
    // Nobody says how much will come.
    let chunked = |length: usize| {
        let pieces = "b".repeat(length).into_bytes();
        let pieces: Vec<_> =
            pieces.chunks(400).map(|it| Ok(http_body::Frame::data(Bytes::copy_from_slice(it)))).collect();
        at("a", BodyExt::boxed(http_body_util::StreamBody::new(futures_util::stream::iter(pieces))))
    };
    let mut client = proxy.http1().await;
    for (request, status) in [(large_head(100), 200), (large_head(200), 431), (post(1000), 200), (chunked(1000), 200)] {
        assert_eq!(client.answer(request).await.status, status);
    }
    for request in [post(1001), chunked(1001), chunked(1_000_000)] {
        let answer = proxy.http1().await.answer(request).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (413, "the request's body is too long"));
    }
    let mut client = Client2::connect(proxy.address).await;
    for (request, status) in [(chunked(1000), 200), (post(1001), 413), (chunked(1001), 413), (large_head(200), 431)] {
        assert_eq!(client.answer(request).await.status, status);
    }
    let metrics = proxy.ctx.telemetry.render();
    for said in ["{limit=\"size_headers\"} 2", "{limit=\"size_body\"} 5"] {
        assert!(metrics.contains(&format!("mesh_limits_hit_total{said}")), "{metrics}");
    }
    // It was their clients' mistake.
    assert_eq!(proxy.recorded(&["response_flags=\"DPE\""]), 7);
}

/// What is under way counts, whatever carries it; what is over does not.
#[tokio::test]
async fn more_requests_than_the_application_takes_at_a_time_are_refused_and_come_again() {
    let (app, has, go) = held().await;
    let proxy = at_a_time(&app, AtATime { max: Some(3), per_caller: None }, None).await;
    let told = async {
        until("three are there", || has.load(Ordering::SeqCst) == 3).await;
        until("the others are refused", || proxy.recorded(&["response_flags=\"UO\""]) == 5).await;
        let mut client = proxy.http1().await;
        let answer = client.get("/").await;
        assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, "1"));
        assert_eq!(answer.text(), "too many requests at a time");
        let mut client = Client2::connect(proxy.address).await;
        let request = Request::post("http://a/s/m").header("content-type", "application/grpc").body(full("")).unwrap();
        let answer = client.answer(request).await;
        assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, "8"));
        go.send_replace(true);
    };
    let (counts, ()) = tokio::join!(burst(&proxy, 4, 4), told);
    assert_eq!(counts, (3, 5));
    assert_eq!(has.load(Ordering::SeqCst), 3);
    let metrics = proxy.ctx.telemetry.render();
    assert!(metrics.contains("mesh_limits_hit_total{limit=\"concurrent_requests\"} 7"), "{metrics}");
    for _ in 0..3 {
        assert_eq!(burst(&proxy, 2, 1).await, (3, 0));
    }
}

/// A response counts until its last byte is out, or its client is gone.
#[tokio::test]
async fn a_request_has_its_place_until_its_response_ends() {
    let app = both(|_| async {
        let (sender, body) = fed();
        tokio::spawn(async move {
            let _ = sender.send(http_body::Frame::data("begun".into())).await;
            sender.closed().await;
        });
        Response::new(body)
    })
    .await;
    let proxy = at_a_time(&app, AtATime { max: Some(1), per_caller: None }, None).await;
    let mut first = proxy.http1().await;
    let response = first.send(get("/")).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(proxy.http1().await.get("/").await.status, 503);
    drop((response, first));
    let gone = || proxy.recorded(&["response_flags=\"DC\""]) == 1;
    until("the first is over", gone).await;
    let mut next = proxy.http1().await;
    assert_eq!(next.send(get("/")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_caller_does_not_take_what_others_may_have() {
    let (app, has, go) = held().await;
    let limit = AtATime { max: Some(4), per_caller: Some(1) };
    let proxy = at_a_time(&app, limit, Some("web")).await;
    // Of other callers, at the same port.
    let places = &proxy.ctx.occupancy.requests;
    let others: Vec<_> = ["shop", "admin"]
        .map(|account| {
            let identity = Identity::new("mesh.local", "default", account).unwrap();
            let mut place = places.take("inbound:80", &limit).unwrap();
            places.give(&mut place, &limit, Some(&identity)).unwrap();
            place
        })
        .into();
    let told = async {
        until("one is there", || has.load(Ordering::SeqCst) == 1).await;
        until("the others are refused", || proxy.recorded(&["response_flags=\"UO\""]) == 2).await;
        go.send_replace(true);
    };
    let (counts, ()) = tokio::join!(burst(&proxy, 3, 0), told);
    assert_eq!(counts, (1, 2));
    let metrics = proxy.ctx.telemetry.render();
    assert!(metrics.contains("mesh_limits_hit_total{limit=\"concurrent_requests_per_caller\"} 2"), "{metrics}");
    drop(others);
}
