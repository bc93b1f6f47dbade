//! A proxy that leaves: its peers go elsewhere and nothing of theirs is cut.

use std::sync::atomic::AtomicBool;

use super::*;

/// The proxy of a workload, as its peers see it.
async fn of_workload(app: SocketAddr) -> Proxy {
    let options = ProxyOptions {
        downstream: Downstream { direction: Direction::Inbound, ..downstream() },
        inline: Some(to(forward(&[("app", 1)]))),
        ..ProxyOptions::default()
    };
    let resources = [
        Resource::Cluster(Arc::new(cluster("app", UpstreamHttp::Http1))),
        Resource::Endpoints(endpoints("app", vec![endpoint(app)])),
    ];
    Proxy::new(resources, options).await
}

/// Safe retries, as every route of the mesh has them by default.
fn retrying(clusters: &[(&str, u32)]) -> Forward {
    let on = RetryOn { connect_failure: true, refused_stream: true, reset_before_request: true, ..RetryOn::default() };
    let mut forward = forward(clusters);
    forward.retry = RetryPolicy { retries: 2, on, ..forward.retry };
    forward
}

/// Answers only when it is told to.
async fn slow() -> (App, Arc<AtomicBool>) {
    let go = Arc::new(AtomicBool::new(false));
    let told = go.clone();
    let app = App::http1(move |request| {
        let go = told.clone();
        async move {
            if request.uri().path() == "/slow" {
                until("told to answer", || go.load(Ordering::SeqCst)).await;
            }
            reply("done")
        }
    })
    .await;
    (app, go)
}

#[tokio::test]
async fn http2_peers_are_told_at_once_and_what_has_begun_is_finished() {
    let (app, go) = slow().await;
    let proxy = of_workload(app.address).await;
    // A client of HTTP/2 itself, which sees the frames.
    let (early, connection) = h2::client::handshake(proxy.raw().await).await.unwrap();
    tokio::spawn(connection);
    let mut ready = early.ready().await.unwrap();
    let quick = ready.send_request(Request::get("http://app.test/").body(()).unwrap(), true).unwrap().0;
    assert_eq!(soon(quick).await.unwrap().status(), 200);
    let slow = ready.send_request(Request::get("http://app.test/slow").body(()).unwrap(), true).unwrap().0;
    proxy.phase.send_replace(Phase::Draining);
    let gone = soon(async {
        loop {
            match ready.ready().await {
                Ok(still) => ready = still,
                Err(error) => break error,
            }
            tokio::task::yield_now().await;
        }
    });
    let gone = gone.await;
    assert!(gone.is_go_away() && gone.is_remote() && gone.reason() == Some(h2::Reason::NO_ERROR), "{gone:?}");
    // Who comes now is served for as long as it likes.
    let mut late = Client2::connect(proxy.address).await;
    for _ in 0..3 {
        assert_eq!(late.answer(get_http2("/")).await.text(), "done");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    go.store(true, Ordering::SeqCst);
    let mut body = soon(slow).await.unwrap().into_body();
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), "done");

    proxy.phase.send_replace(Phase::Closing);
    until("closed", || late.0.is_closed()).await;
}

fn get_http2(path: &str) -> Request<AnyBody> {
    Request::get(format!("http://app.test{path}")).body(full("")).unwrap()
}

#[tokio::test]
async fn http1_peers_are_told_with_a_response_and_never_in_between() {
    let (app, _) = slow().await;
    let proxy = of_workload(app.address).await;
    let mut kept = proxy.http1().await;
    let mut idle = proxy.raw().await;
    assert_eq!(kept.get("/").await.header("connection"), "");
    proxy.phase.send_replace(Phase::Draining);
    tokio::time::sleep(Duration::from_millis(20)).await;
    // Its next request may have been on the way, so the connection was left open.
    let answer = kept.get("/").await;
    assert_eq!((answer.text(), answer.header("connection")), ("done", "close"));
    until("closed", || kept.0.is_closed()).await;
    assert_eq!(proxy.http1().await.get("/").await.header("connection"), "close");
    proxy.phase.send_replace(Phase::Closing);
    assert_eq!(soon(idle.read(&mut [0])).await.unwrap(), 0);
}

#[tokio::test]
async fn nothing_changes_for_the_application_itself_before_the_end() {
    let (app, _) = slow().await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut http1 = proxy.http1().await;
    let mut http2 = Client2::connect(proxy.address).await;
    for phase in [Phase::Draining, Phase::Closing] {
        proxy.phase.send_replace(phase);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(http1.get("/").await.header("connection"), "");
        assert_eq!(http2.answer(get_http2("/")).await.text(), "done");
    }
    proxy.phase.send_replace(Phase::Ending);
    until("closed", || http1.0.is_closed() && http2.0.is_closed()).await;
}

/// What a proxy that calls others makes of GOAWAY: every request is answered, and those that can go elsewhere do.
#[tokio::test]
async fn requests_go_elsewhere_when_an_endpoint_leaves() {
    let leaving = of_workload(App::named("leaving").await.address).await;
    let staying = of_workload(App::named("staying").await.address).await;
    let addresses = [leaving.address, staying.address];
    let proxy = Proxy::with(to(retrying(&[("app", 1)])), UpstreamHttp::Http2, &addresses).await;
    let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (mut client, counts, stop) = (proxy.http1().await, counts.clone(), stop.clone());
        clients.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let answer = client.answer(post("/", "not to be sent twice")).await;
                assert_eq!(answer.status, 200);
                counts[usize::from(answer.text() == "staying")].fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    let count = |which: usize| counts[which].load(Ordering::SeqCst);
    until("both are called", || count(0) > 50 && count(1) > 50).await;
    leaving.phase.send_replace(Phase::Draining);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (before, other) = (count(0), count(1));
    until("the other is called", || count(1) > other + 200).await;
    assert_eq!(count(0), before);
    // With nobody else left it is called all the same.
    proxy.put(Resource::Endpoints(endpoints("app", vec![endpoint(leaving.address)]))).await;
    until("it is called again", || count(0) > before + 50).await;
    stop.store(true, Ordering::SeqCst);
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
}

/// A proxy whose application takes no connections has not passed on a request: its peer takes it to another workload.
#[tokio::test]
async fn a_request_that_the_application_has_not_seen_is_handed_back() {
    let mut inbound = ProxyOptions {
        downstream: Downstream {
            direction: Direction::Inbound,
            identity: Some(Arc::new(id("web"))),
            tls: true,
            ..downstream()
        },
        inline: Some(to(forward(&[("app", 1)]))),
        ..ProxyOptions::default()
    };
    inbound.idle_timeout = Duration::ZERO;
    let local = [
        Resource::Cluster(Arc::new(cluster("app", UpstreamHttp::Http1))),
        Resource::Endpoints(endpoints("app", vec![endpoint(nowhere().await)])),
    ];
    let dead = Proxy::new(local, inbound).await;
    let mut client = Client2::connect(dead.address).await;
    let refused = client.send(get_http2("/")).await.unwrap_err();
    let source = std::error::Error::source(&refused).and_then(|it| it.downcast_ref::<h2::Error>());
    assert_eq!(source.and_then(h2::Error::reason), Some(h2::Reason::REFUSED_STREAM), "{refused:?}");
    assert_eq!(dead.recorded(&["response_flags=\"UF\""]), 1, "{}", dead.ctx.telemetry.render());

    let alive = of_workload(App::named("alive").await.address).await;
    let both = [dead.address, alive.address];
    let proxy = Proxy::with(to(retrying(&[("app", 1)])), UpstreamHttp::Http2, &both).await;
    let mut client = proxy.http1().await;
    for _ in 0..10 {
        let answer = client.answer(post("/", "body")).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "alive"));
    }
}

#[tokio::test]
async fn a_connection_that_became_a_tunnel_is_open_until_the_tunnel_ends() {
    let app = App::raw(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        assert_eq!(read_until(&mut stream, "hello").await, "hello");
    })
    .await;
    let proxy = of_workload(app.address).await;
    let ctx = proxy.ctx.clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let manager = manager(RouteSource::Inline(Arc::new(to(forward(&[("app", 1)])))));
    let inbound = Downstream { direction: Direction::Inbound, ..downstream() };
    let served = tokio::spawn(serve(stream, Arc::new(inbound), Arc::new(manager), ctx));
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await.unwrap();
    let head = read_until(&mut client, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    proxy.phase.send_replace(Phase::Closing);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!served.is_finished());
    client.write_all(b"hello").await.unwrap();
    assert_eq!(soon(client.read(&mut [0])).await.unwrap(), 0);
    drop(client);
    soon(served).await.unwrap();
}
