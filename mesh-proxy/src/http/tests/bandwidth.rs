//! What a port's limits on its bandwidth do to bodies.

use std::time::Instant;

use super::*;

const NONE: PortRate = PortRate { max: None, per_caller: None };

fn of_all(bytes_per_second: u64) -> Option<PortRate> {
    Some(PortRate { max: Rate::new(bytes_per_second), ..NONE })
}

/// The proxy of a workload with such limits.
async fn limited(app: &App, http: UpstreamHttp, up: Option<PortRate>, down: Option<PortRate>) -> Proxy {
    let resources = [
        Resource::Cluster(Arc::new(cluster("app", http))),
        Resource::Endpoints(endpoints("app", vec![endpoint(app.address)])),
    ];
    let limits = PortLimits { up, down, ..PortLimits::none("inbound:80") };
    let options = ProxyOptions {
        downstream: Downstream { direction: Direction::Inbound, ..downstream() },
        inline: Some(to(forward(&[("app", 1)]))),
        limits: Some(Arc::new(limits)),
        ..ProxyOptions::default()
    };
    Proxy::new(resources, options).await
}

/// Answers with what it got.
async fn echo() -> App {
    App::http1(|request| async move { reply(request.into_body().collect().await.unwrap().to_bytes()) }).await
}

fn body(size: usize) -> Bytes {
    Bytes::from_iter((0..size).map(|i| (i % 251) as u8))
}

fn post_to(path: &str, size: usize) -> Request<AnyBody> {
    Request::post(format!("http://app.test{path}")).body(full(body(size))).unwrap()
}

fn delayed(proxy: &Proxy, limit: &str) -> bool {
    proxy.ctx.telemetry.render().contains(&format!("mesh_limits_delayed_total{{limit=\"{limit}\"}} "))
}

#[tokio::test]
async fn responses_share_what_the_port_may_send() {
    let proxy = limited(&echo().await, UpstreamHttp::Http1, None, of_all(200_000)).await;
    let (mut one, mut two) = (proxy.http1().await, Client2::connect(proxy.address).await);
    let began = Instant::now();
    let (first, second) = tokio::join!(one.answer(post("/", body(50_000))), two.answer(post_to("/", 50_000)));
    // A fifth of a second's worth is saved.
    assert!(began.elapsed() >= Duration::from_millis(295), "{:?}", began.elapsed());
    assert!(first.body == body(50_000) && second.body == body(50_000));
    assert!(delayed(&proxy, "bandwidth_down") && !delayed(&proxy, "bandwidth_up"));
    // It is no fault.
    until("recorded", || proxy.recorded(&["response_code=\"200\"", "response_flags=\"-\""]) == 2).await;
}

#[tokio::test]
async fn requests_share_what_the_port_may_get() {
    let proxy = limited(&echo().await, UpstreamHttp::Http1, of_all(200_000), None).await;
    let (mut one, mut two) = (proxy.http1().await, Client2::connect(proxy.address).await);
    let began = Instant::now();
    let (first, second) = tokio::join!(one.answer(post("/", body(50_000))), two.answer(post_to("/", 50_000)));
    assert!(began.elapsed() >= Duration::from_millis(295), "{:?}", began.elapsed());
    assert!(first.body == body(50_000) && second.body == body(50_000));
    assert!(delayed(&proxy, "bandwidth_up") && !delayed(&proxy, "bandwidth_down"));
}

#[tokio::test]
async fn what_is_within_the_limit_does_not_wait() {
    let rate = of_all(1_000_000_000);
    let proxy = limited(&echo().await, UpstreamHttp::Http1, rate, rate).await;
    let mut client = proxy.http1().await;
    for _ in 0..20 {
        assert_eq!(client.answer(post("/", body(10_000))).await.body.len(), 10_000);
    }
    assert!(!delayed(&proxy, "bandwidth_up") && !delayed(&proxy, "bandwidth_down"));
}

/// Bodies that wait take of the window that all requests of a connection share.
#[tokio::test]
async fn large_bodies_do_not_keep_small_ones_out() {
    let app = echo().await;
    let proxy = limited(&app, UpstreamHttp::Http1, of_all(100_000), None).await;
    let client = Client2::connect(proxy.address).await;
    let large: Vec<_> = (0..40)
        .map(|_| {
            let mut client = Client2(client.0.clone());
            tokio::spawn(async move { client.send(post_to("/large", 2_000_000)).await.is_ok() })
        })
        .collect();
    // Until what comes has come.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut client = client;
    assert_eq!(client.answer(post_to("/small", 1000)).await.body.len(), 1000);
    assert!(large.iter().all(|it| !it.is_finished()));
    large.iter().for_each(|it| it.abort());
}

#[tokio::test]
async fn a_tunnel_keeps_to_the_limit_both_ways() {
    let app = App::raw(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    })
    .await;
    for (up, down) in [(of_all(100_000), None), (None, of_all(100_000))] {
        let proxy = limited(&app, UpstreamHttp::Http1, up, down).await;
        let mut stream = proxy.raw().await;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await.unwrap();
        read_until(&mut stream, "\r\n\r\n").await;
        let began = Instant::now();
        stream.write_all(&body(50_000)).await.unwrap();
        let mut echoed = vec![0; 50_000];
        soon(stream.read_exact(&mut echoed)).await.unwrap();
        assert!(began.elapsed() >= Duration::from_millis(295), "{:?}", began.elapsed());
        assert!(echoed == body(50_000));
    }
}
