//! Endpoints that are passed over: ejected for what they failed, or because they do not answer a health check.

use std::sync::atomic::AtomicU16;

use super::*;

/// Ejected by the third failure in a row, for so long.
pub(super) fn outliers(ejection: Duration) -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: Some(3),
        consecutive_gateway_failures: None,
        success_rate: None,
        interval: Duration::from_secs(10),
        base_ejection_time: ejection,
        max_ejection_time: ejection,
        max_ejection_percent: 50,
        always_one: false,
        ends_with_check: false,
    }
}

const LONG: Duration = Duration::from_secs(3600);

fn detecting(outliers: OutlierDetection, http: UpstreamHttp) -> Cluster {
    Cluster { health: EndpointHealth { outliers: Some(outliers), check: None }, ..cluster("app", http) }
}

fn checking(kind: CheckKind, http: UpstreamHttp) -> Cluster {
    let check = HealthCheck {
        kind,
        interval: Duration::from_millis(10),
        timeout: Duration::from_secs(5),
        jitter: Duration::ZERO,
        unhealthy_threshold: 2,
        healthy_threshold: 1,
    };
    Cluster { health: EndpointHealth { outliers: None, check: Some(Arc::new(check)) }, ..cluster("app", http) }
}

fn by_http() -> CheckKind {
    CheckKind::Http(HttpCheck {
        path: "/healthz".parse().unwrap(),
        host: "app.test".parse().unwrap(),
        http2: false,
        expected: std::iter::once(200..201).collect(),
        retriable: std::iter::once(100..600).collect(),
    })
}

async fn proxy(cluster: Cluster, apps: &[SocketAddr], change: impl FnOnce(&mut RetryPolicy)) -> Proxy {
    let mut forward = forward(&[("app", 1)]);
    change(&mut forward.retry);
    let all = apps.iter().map(|&it| endpoint(it)).collect();
    let resources = [
        Resource::Cluster(Arc::new(cluster)),
        Resource::Endpoints(endpoints("app", all)),
        Resource::Routes(Arc::new(to(forward))),
    ];
    Proxy::new(resources, ProxyOptions::default()).await
}

impl Proxy {
    fn ejected(&self) -> usize {
        self.ctx.upstreams.health().ejected
    }

    fn failing(&self) -> usize {
        self.ctx.upstreams.health().failing
    }
}

/// Answers with its name and a status that can be changed.
async fn moody(name: &'static str, status: u16) -> (App, Arc<AtomicU16>) {
    let mood = Arc::new(AtomicU16::new(status));
    let shared = mood.clone();
    let app = App::http1(move |_| {
        let status = StatusCode::from_u16(shared.load(Ordering::SeqCst)).unwrap();
        async move {
            let mut response = reply(name);
            *response.status_mut() = status;
            response
        }
    })
    .await;
    (app, mood)
}

#[tokio::test]
async fn an_endpoint_that_fails_is_ejected_and_comes_back() {
    let (good, _) = moody("good", 200).await;
    let (bad, mood) = moody("bad", 500).await;
    let ejection = Duration::from_millis(300);
    let proxy = proxy(detecting(outliers(ejection), UpstreamHttp::Http1), &[good.address, bad.address], |_| ()).await;
    let mut client = proxy.http1().await;
    let mut failed = 0;
    while proxy.ejected() == 0 {
        failed += usize::from(client.get("/").await.status == 500);
        assert!(failed <= 3);
    }
    assert_eq!(failed, 3);
    let ejected = std::time::Instant::now();
    mood.store(200, Ordering::SeqCst);
    while client.get("/").await.text() == "good" {
        assert!(ejected.elapsed() < SOON);
    }
    assert!(ejected.elapsed() >= ejection - Duration::from_millis(50), "{:?}", ejected.elapsed());
    let health = proxy.ctx.upstreams.health();
    assert_eq!((health.ejected, health.ejections[0]), (0, ("consecutive_5xx", 1)));
}

#[tokio::test]
async fn when_all_fail_one_is_left() {
    let (a, _) = moody("a", 503).await;
    let (b, _) = moody("b", 503).await;
    let all = OutlierDetection { max_ejection_percent: 100, ..outliers(LONG) };
    let proxy = proxy(detecting(all, UpstreamHttp::Http1), &[a.address, b.address], |_| ()).await;
    let mut client = proxy.http1().await;
    for _ in 0..20 {
        let answer = client.get("/").await;
        // Of an application, not of the proxy.
        assert!(["a", "b"].contains(&answer.text()), "{answer:?}");
    }
    assert_eq!(proxy.ejected(), 1);
}

#[tokio::test]
async fn one_that_takes_no_connections_is_not_tried_for_ever() {
    let good = App::named("good").await;
    let by_gateway =
        OutlierDetection { consecutive_5xx: None, consecutive_gateway_failures: Some(2), ..outliers(LONG) };
    let apps = [nowhere().await, good.address];
    let retrying = |policy: &mut RetryPolicy| {
        policy.retries = 1;
        policy.on.connect_failure = true;
    };
    let proxy = proxy(detecting(by_gateway, UpstreamHttp::Http1), &apps, retrying).await;
    let mut client = proxy.http1().await;
    for _ in 0..20 {
        assert_eq!(client.get("/").await.text(), "good");
    }
    let health = proxy.ctx.upstreams.health();
    assert_eq!((health.ejected, health.ejections[1]), (1, ("consecutive_gateway_failures", 1)));
    assert_eq!(proxy.ctx.upstreams.passed_over("app")[0].0, apps[0]);
}

#[tokio::test]
async fn the_status_at_the_end_of_a_grpc_response_counts() {
    let app = |name: &'static str, status: &'static str| {
        App::http2(move |_| async move {
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())]);
            let body = Full::new(Bytes::from(name)).with_trailers(async move { Some(Ok(trailers)) });
            let mut response = Response::new(BodyExt::boxed(body));
            response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            response
        })
    };
    let (good, bad) = (app("good", "0").await, app("bad", "14").await);
    let apps = [good.address, bad.address];
    let proxy = proxy(detecting(outliers(LONG), UpstreamHttp::Http2), &apps, |_| ()).await;
    let mut client = Client2::connect(proxy.address).await;
    let mut bad = 0;
    for _ in 0..20 {
        let request = Request::post("http://app.test/s/m").header("content-type", "application/grpc");
        bad += usize::from(client.answer(request.body(full("")).unwrap()).await.text() == "bad");
    }
    assert_eq!((bad, proxy.ejected()), (3, 1));
}

#[tokio::test]
async fn a_response_that_breaks_off_is_no_success() {
    let broken = App::raw(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").await.unwrap();
    })
    .await;
    let good = App::named("good").await;
    let apps = [broken.address, good.address];
    let proxy = proxy(detecting(outliers(LONG), UpstreamHttp::Http1), &apps, |_| ()).await;
    for _ in 0..20 {
        let Ok(response) = proxy.http1().await.send(get("/")).await else { continue };
        let _ = soon(read(response)).await;
    }
    assert_eq!((proxy.ejected(), broken.connections()), (1, 3));
}

#[tokio::test]
async fn an_ejection_outlives_a_change_of_configuration_but_not_the_detection() {
    let (good, _) = moody("good", 200).await;
    let (bad, _) = moody("bad", 500).await;
    let apps = [good.address, bad.address];
    let proxy = proxy(detecting(outliers(LONG), UpstreamHttp::Http1), &apps, |_| ()).await;
    let mut client = proxy.http1().await;
    let bad_of_10 = async |client: &mut Client1| {
        let mut count = 0;
        for _ in 0..10 {
            count += usize::from(client.get("/").await.text() == "bad");
        }
        count
    };
    assert_eq!(bad_of_10(&mut client).await, 3);
    let heavier = |&it: &SocketAddr| Endpoint { weight: 7, ..endpoint(it) };
    proxy.put(Resource::Endpoints(endpoints("app", apps.iter().map(heavier).collect()))).await;
    assert_eq!(bad_of_10(&mut client).await, 0);
    let fewer = OutlierDetection { max_ejection_percent: 60, ..outliers(LONG) };
    proxy.put(Resource::Cluster(Arc::new(detecting(fewer, UpstreamHttp::Http1)))).await;
    assert_eq!(bad_of_10(&mut client).await, 0);
    proxy.put(Resource::Cluster(Arc::new(cluster("app", UpstreamHttp::Http1)))).await;
    assert_eq!(bad_of_10(&mut client).await, 5);
}

#[tokio::test]
async fn without_detection_nobody_is_ejected() {
    let (good, _) = moody("good", 200).await;
    let (bad, _) = moody("bad", 500).await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[good.address, bad.address]).await;
    let mut client = proxy.http1().await;
    for _ in 0..30 {
        client.get("/").await;
    }
    assert_eq!((proxy.ejected(), proxy.recorded(&["response_code=\"500\""])), (0, 15));
}

/// Answers requests with its name, and `/healthz` with a status that can be changed.
async fn checked(name: &'static str, status: u16) -> (App, Arc<AtomicU16>, Arc<AtomicUsize>) {
    let (mood, checks) = (Arc::new(AtomicU16::new(status)), Arc::new(AtomicUsize::new(0)));
    let shared = (mood.clone(), checks.clone());
    let app = App::http1(move |request: Request<Incoming>| {
        let mut response = reply(name);
        if request.uri().path() == "/healthz" {
            assert_eq!(request.headers()["host"], "app.test");
            shared.1.fetch_add(1, Ordering::SeqCst);
            *response.status_mut() = StatusCode::from_u16(shared.0.load(Ordering::SeqCst)).unwrap();
        }
        async move { response }
    })
    .await;
    (app, mood, checks)
}

#[tokio::test]
async fn only_who_answers_the_check_gets_requests() {
    let (a, mood_a, _) = checked("a", 200).await;
    let (b, mood_b, _) = checked("b", 500).await;
    let proxy = proxy(checking(by_http(), UpstreamHttp::Http1), &[a.address, b.address], |_| ()).await;
    let mut client = proxy.http1().await;
    // Nothing is known yet, and that is no reason to fail.
    assert_eq!(client.get("/").await.status, 200);
    until("b fails", || proxy.failing() == 1 && proxy.ctx.upstreams.passed_over("app").len() == 1).await;
    for _ in 0..20 {
        assert_eq!(client.get("/").await.text(), "a");
    }
    mood_a.store(404, Ordering::SeqCst);
    until("both fail", || proxy.failing() == 2).await;
    let answer = client.get("/").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (503, "no healthy upstream"));
    assert_eq!(proxy.recorded(&["response_flags=\"UH\""]), 1);
    mood_b.store(200, Ordering::SeqCst);
    until("b is back", || proxy.failing() == 1).await;
    for _ in 0..20 {
        assert_eq!(client.get("/").await.text(), "b");
    }
}

#[tokio::test]
async fn checks_end_with_the_cluster_and_with_their_configuration() {
    let (app, mood, checks) = checked("a", 500).await;
    let proxy = proxy(checking(by_http(), UpstreamHttp::Http1), &[app.address], |_| ()).await;
    assert_eq!(checks.load(Ordering::SeqCst), 0, "nobody uses it");
    let mut client = proxy.http1().await;
    client.get("/").await;
    until("it fails", || proxy.failing() == 1).await;
    let ended = async |what: &str| {
        // One may be on its way.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let before = checks.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(checks.load(Ordering::SeqCst), before, "{what}");
    };
    proxy.put(Resource::Cluster(Arc::new(cluster("app", UpstreamHttp::Http1)))).await;
    assert_eq!(client.get("/").await.text(), "a", "what is not checked does not fail");
    ended("not checked").await;
    mood.store(200, Ordering::SeqCst);
    proxy.put(Resource::Cluster(Arc::new(checking(by_http(), UpstreamHttp::Http1)))).await;
    client.get("/").await;
    let before = checks.load(Ordering::SeqCst);
    until("it is checked again", || checks.load(Ordering::SeqCst) > before + 3).await;
    proxy.put(Resource::Routes(Arc::new(to(forward(&[]))))).await;
    proxy.remove(Type::Cluster, "app").await;
    proxy.ctx.upstreams.sweep(std::time::Instant::now());
    ended("gone").await;
}

#[tokio::test]
async fn checks_go_through_the_peer_s_proxy() {
    let (app, mood, checks) = checked("a", 200).await;
    let (outbound, inbound) = pair(UpstreamHttp::Downstream, app.address).await;
    let cluster = outbound.ctx.store.load().cluster("app").unwrap().clone();
    let health = checking(by_http(), UpstreamHttp::Http2).health;
    outbound.put(Resource::Cluster(Arc::new(Cluster { health, ..(*cluster).clone() }))).await;
    let mut client = outbound.http1().await;
    assert_eq!(client.get("/").await.text(), "a");
    until("it is checked", || checks.load(Ordering::SeqCst) > 1).await;
    assert_eq!(outbound.failing(), 0);
    assert_eq!(inbound.connections.load(Ordering::SeqCst), 1, "the connection of the requests will do");
    mood.store(503, Ordering::SeqCst);
    until("it fails", || outbound.failing() == 1).await;
    assert_eq!(client.get("/").await.status, 503);
}

#[tokio::test]
async fn checks_by_grpc_and_by_connecting() {
    let serving = Arc::new(AtomicU16::new(1));
    let status = serving.clone();
    let app = App::http2(move |request: Request<Incoming>| {
        let status = u8::try_from(status.load(Ordering::SeqCst)).unwrap();
        async move {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            let question = request.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(&question[..], b"\0\0\0\0\x06\n\x04shop");
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
            let message = Full::new(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]));
            let mut response = Response::new(BodyExt::boxed(message.with_trailers(async move { Some(Ok(trailers)) })));
            response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            response
        }
    })
    .await;
    let kind = CheckKind::Grpc { service: "shop".into(), authority: "app.test".parse().unwrap() };
    let by_grpc = proxy(checking(kind, UpstreamHttp::Http2), &[app.address], |_| ()).await;
    let _ = by_grpc.ctx.upstreams.view("app").await.unwrap();
    let passed = |proxy: &Proxy| proxy.ctx.upstreams.health().checks[0].1;
    until("it passes", || passed(&by_grpc) > 2).await;
    assert_eq!(by_grpc.failing(), 0);
    serving.store(2, Ordering::SeqCst);
    until("it fails", || by_grpc.failing() == 1).await;

    let listening = App::named("listening").await;
    let apps = [listening.address, nowhere().await];
    let by_tcp = proxy(checking(CheckKind::Tcp, UpstreamHttp::Http1), &apps, |_| ()).await;
    let _ = by_tcp.ctx.upstreams.view("app").await.unwrap();
    until("one fails", || by_tcp.failing() == 1 && passed(&by_tcp) > 2).await;
    for _ in 0..10 {
        assert_eq!(by_tcp.get("/").await.text(), "listening");
    }
}
