//! Injected faults and mirrors.

use std::io::ErrorKind;
use std::time::Instant;

use super::*;

fn rule(kind: FaultKind, percent: u32) -> FaultRule {
    FaultRule {
        name: "test".to_owned(),
        parts_per_million: percent * 10_000,
        kind,
        expires_unix_ms: 0,
        headers: Arc::default(),
        share: Share::default(),
    }
}

async fn with_fault(app: &App, http: UpstreamHttp, rules: Vec<FaultRule>) -> Proxy {
    let mut faulty = route(Action::Forward(Box::new(forward(&[("app", 1)]))));
    faulty.fault = Some(Arc::new(Fault { rules }));
    Proxy::with(table(vec![faulty]), http, &[app.address]).await
}

#[tokio::test]
async fn half_of_the_requests_are_aborted() {
    let app = App::named("ok").await;
    let abort = FaultKind::Abort { http: StatusCode::SERVICE_UNAVAILABLE, grpc: 14 };
    let proxy = with_fault(&app, UpstreamHttp::Http1, vec![rule(abort, 50)]).await;
    let mut client = proxy.http1().await;
    let mut aborted = 0;
    for _ in 0..1000 {
        let answer = client.get("/").await;
        aborted += u32::from(answer.status == 503 && answer.text() == "fault injected");
    }
    assert_eq!(aborted, 500);
    assert_eq!(proxy.recorded(&["response_flags=\"FI\""]), 500);
    assert!(proxy.ctx.telemetry.render().contains("mesh_faults_injected_total{fault=\"abort\"} 500"));
}

#[tokio::test]
async fn an_abort_is_a_grpc_status_for_grpc_clients() {
    let app = App::named("ok").await;
    let abort = FaultKind::Abort { http: StatusCode::FORBIDDEN, grpc: 7 };
    let proxy = with_fault(&app, UpstreamHttp::Http2, vec![rule(abort, 100)]).await;
    let request = Request::post("http://a/s/m").header("content-type", "application/grpc").body(full("")).unwrap();
    let answer = Client2::connect(proxy.address).await.answer(request).await;
    assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, "7"));
}

#[tokio::test]
async fn a_delay() {
    let app = App::named("late").await;
    let proxy =
        with_fault(&app, UpstreamHttp::Http1, vec![rule(FaultKind::Delay(Duration::from_millis(60)), 100)]).await;
    let start = Instant::now();
    assert_eq!(proxy.get("/").await.text(), "late");
    assert!(start.elapsed() >= Duration::from_millis(60));
    assert!(proxy.ctx.telemetry.render().contains("mesh_faults_injected_total{fault=\"delay\"} 1"));
}

#[tokio::test]
async fn a_delay_is_no_longer_than_the_request_s_timeout() {
    let app = App::named("never").await;
    let mut timed = forward(&[("app", 1)]);
    timed.timeout = Duration::from_millis(50);
    let mut faulty = route(Action::Forward(Box::new(timed)));
    faulty.fault = Some(Arc::new(Fault { rules: vec![rule(FaultKind::Delay(Duration::from_secs(60)), 100)] }));
    let proxy = Proxy::with(table(vec![faulty]), UpstreamHttp::Http1, &[app.address]).await;
    let mut client = proxy.http1().await;
    assert_eq!(client.get("/").await.status, 504);
    assert_eq!(client.answer(post("/", "body")).await.status, 504);
    assert_eq!(app.connections(), 0);
    assert_eq!(proxy.recorded(&["response_flags=\"UT\""]), 2);
}

#[tokio::test]
async fn a_delay_is_no_longer_than_a_grpc_client_waits() {
    let app = App::named("never").await;
    let delay = FaultKind::Delay(Duration::from_secs(60));
    let proxy = with_fault(&app, UpstreamHttp::Http2, vec![rule(delay, 100)]).await;
    let request =
        Request::post("http://a/s/m").header("content-type", "application/grpc").header("grpc-timeout", "50m");
    let answer = Client2::connect(proxy.address).await.answer(request.body(full("")).unwrap()).await;
    assert_eq!(answer.header("grpc-status"), "4");
    assert_eq!(app.connections(), 0);
}

#[tokio::test]
async fn a_reset_of_a_stream_leaves_the_connection_to_end_in_peace() {
    let app = App::named("never").await;
    let proxy = with_fault(&app, UpstreamHttp::Http1, vec![rule(FaultKind::Reset, 100)]).await;
    let mut stream = proxy.raw().await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    // No settings, and then GET http://a/ as stream 1.
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    stream.write_all(&[0, 0, 6, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84, 0x41, 1, b'a']).await.unwrap();
    until("recorded", || proxy.recorded(&["response_flags=\"FI\""]) == 1).await;
    // The proxy is the one that ends the connection, and so the one that could reset it.
    proxy.phase.send_replace(Phase::Ending);
    // It asks by a ping whether its GOAWAY has come.
    let mut rest = Vec::new();
    let ping = loop {
        assert_ne!(soon(stream.read_buf(&mut rest)).await.unwrap(), 0);
        let found = rest.windows(17).find(|it| it.starts_with(&[0, 0, 8, 6, 0, 0, 0, 0, 0]));
        if let Some(found) = found {
            break found[9..].to_vec();
        }
    };
    stream.write_all(&[&[0, 0, 8, 6, 1, 0, 0, 0, 0], &ping[..]].concat()).await.unwrap();
    soon(stream.read_to_end(&mut rest)).await.unwrap();
    // RST_STREAM with INTERNAL_ERROR.
    assert!(rest.windows(13).any(|it| it == [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 2]), "{rest:?}");
    // After a reset, which comes right behind the end, nothing could be written any more.
    tokio::time::sleep(Duration::from_millis(50)).await;
    stream.write_all(b"x").await.unwrap();
}

#[tokio::test]
async fn a_reset_is_a_reset_of_the_connection_or_of_the_stream() {
    let app = App::named("never").await;
    let proxy = with_fault(&app, UpstreamHttp::Http1, vec![rule(FaultKind::Reset, 100)]).await;
    let mut stream = proxy.raw().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut byte = [0];
    assert_eq!(soon(stream.read(&mut byte)).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let mut client = Client2::connect(proxy.address).await;
    for _ in 0..2 {
        let error = client.send(Request::get("http://a/").body(full("")).unwrap()).await.unwrap_err();
        let reason = std::error::Error::source(&error).and_then(|it| it.downcast_ref::<h2::Error>()).unwrap().reason();
        assert_eq!(reason, Some(h2::Reason::INTERNAL_ERROR));
    }
    assert_eq!(app.connections(), 0);
    until("recorded", || proxy.recorded(&["response_flags=\"FI\""]) == 3).await;
}

#[tokio::test]
async fn a_mirror_gets_a_copy_and_delays_nothing() {
    let app = App::http1(|request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        reply(body)
    })
    .await;
    let (seen, mut saw) = tokio::sync::mpsc::unbounded_channel();
    let shadow = App::http1(move |request| {
        let seen = seen.clone();
        async move {
            let host = request.headers()["host"].to_str().unwrap().to_owned();
            let body = request.into_body().collect().await.map(|it| it.to_bytes());
            seen.send((host, body.ok())).unwrap();
            std::future::pending().await
        }
    })
    .await;
    let mut mirrored = forward(&[("app", 1)]);
    mirrored.mirrors = vec![Mirror { cluster: "shadow".into(), parts_per_million: 1_000_000, share: Share::default() }];
    let proxy = Proxy::with(to(mirrored), UpstreamHttp::Http1, &[app.address]).await;
    proxy.put(Resource::Cluster(Arc::new(cluster("shadow", UpstreamHttp::Http1)))).await;
    proxy.put(Resource::Endpoints(endpoints("shadow", vec![endpoint(shadow.address)]))).await;
    let mut client = proxy.http1().await;
    for body in ["small", ""] {
        assert_eq!(client.answer(post("/", body)).await.text(), body);
        let (host, copy) = soon(saw.recv()).await.unwrap();
        assert_eq!((host.as_str(), copy.unwrap()), ("app.test-shadow", Bytes::from(body)));
    }
}

#[tokio::test]
async fn a_mirror_gets_exactly_its_share() {
    let app = App::named("ok").await;
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let shadow = App::http1(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { reply("") }
    })
    .await;
    let mut mirrored = forward(&[("app", 1)]);
    mirrored.mirrors = vec![Mirror { cluster: "shadow".into(), parts_per_million: 125_000, share: Share::default() }];
    let proxy = Proxy::with(to(mirrored), UpstreamHttp::Http1, &[app.address]).await;
    proxy.put(Resource::Cluster(Arc::new(cluster("shadow", UpstreamHttp::Http1)))).await;
    proxy.put(Resource::Endpoints(endpoints("shadow", vec![endpoint(shadow.address)]))).await;
    let mut client = proxy.http1().await;
    for _ in 0..1000 {
        assert_eq!(client.get("/").await.text(), "ok");
    }
    until("125 copies", || count.load(Ordering::SeqCst) == 125).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(count.load(Ordering::SeqCst), 125);
}
