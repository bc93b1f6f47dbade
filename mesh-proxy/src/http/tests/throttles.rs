//! Responses that a fault slows down.

use std::time::{Instant, SystemTime};

use super::*;

/// Slows down what asks for it with `x-slow`.
fn throttle(bytes_per_second: u64, expires_unix_ms: i64) -> FaultRule {
    let asks = HeaderMatch { name: "x-slow".to_owned(), matcher: StringMatch::Present(true), invert: false };
    FaultRule {
        name: "test".to_owned(),
        parts_per_million: 1_000_000,
        kind: FaultKind::Throttle(Rate::new(bytes_per_second).unwrap()),
        expires_unix_ms,
        headers: Arc::new(vec![asks]),
        share: Share::default(),
    }
}

fn throttled(rules: Vec<FaultRule>) -> RouteTable {
    let mut faulty = route(Action::Forward(Box::new(forward(&[("app", 1)]))));
    faulty.fault = Some(Arc::new(Fault { rules }));
    table(vec![faulty])
}

async fn proxy(app: &App, http: UpstreamHttp, rules: Vec<FaultRule>) -> Proxy {
    Proxy::with(throttled(rules), http, &[app.address]).await
}

fn slow() -> Request<AnyBody> {
    Request::get("http://app.test/").header("host", "app.test").header("x-slow", "yes").body(full("")).unwrap()
}

/// An application that answers with that many bytes and trailers.
async fn large(size: usize) -> App {
    let body = Bytes::from_iter((0..size).map(|i| (i % 251) as u8));
    App::http2(move |_| {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", 0.into());
        let body = Full::new(body.clone()).with_trailers(std::future::ready(Some(Ok(trailers)))).boxed();
        async { Response::new(body) }
    })
    .await
}

#[tokio::test]
async fn a_response_comes_whole_and_no_faster_than_its_rate() {
    let app = App::http1(|_| async { reply(Bytes::from_iter((0..40_000).map(|i| (i % 251) as u8))) }).await;
    let proxy = proxy(&app, UpstreamHttp::Http1, vec![throttle(100_000, 0)]).await;
    let whole = proxy.http1().await.get("/").await;
    assert_eq!(proxy.recorded(&["response_flags=\"-\""]), 1);
    let mut one = proxy.http1().await;
    let mut two = Client2::connect(proxy.address).await;
    let began = Instant::now();
    // Each has the rate for itself.
    let (one, two) = tokio::join!(one.answer(slow()), two.answer(slow()));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(400), "{took:?}");
    for answer in [one, two] {
        assert_eq!(
            (answer.status, answer.body == whole.body, answer.header("content-length")),
            (StatusCode::OK, true, "40000")
        );
    }
    until("recorded", || proxy.recorded(&["response_code=\"200\"", "response_flags=\"FI\""]) == 2).await;
}

#[tokio::test]
async fn trailers_come_after_a_body_that_was_slowed_down() {
    let app = large(20_000).await;
    let proxy = proxy(&app, UpstreamHttp::Http2, vec![throttle(100_000, 0)]).await;
    let mut request = slow();
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let began = Instant::now();
    let answer = Client2::connect(proxy.address).await.answer(request).await;
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    assert_eq!((answer.body.len(), answer.trailers.unwrap()["grpc-status"].as_bytes()), (20_000, &b"0"[..]));
}

#[tokio::test]
async fn a_response_under_way_goes_on_at_full_speed_when_the_fault_is_over() {
    let app = large(1_000_000).await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64;
    let proxy = proxy(&app, UpstreamHttp::Http2, vec![throttle(1000, now + 500)]).await;
    let began = Instant::now();
    // At the rate it would take more than a quarter of an hour.
    let answer = Client2::connect(proxy.address).await.answer(slow()).await;
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    assert_eq!(answer.body.len(), 1_000_000);
}

/// What is not taken yet stays with who sends it.
#[tokio::test]
async fn a_response_is_not_read_faster_than_it_is_handed_on() {
    let read = Arc::new(AtomicUsize::new(0));
    let count = read.clone();
    let app = App::http2(move |_| {
        let count = count.clone();
        let stream = futures_util::stream::repeat_with(move || {
            count.fetch_add(10_000, Ordering::SeqCst);
            Ok(http_body::Frame::data(Bytes::from_static(&[b'x'; 10_000])))
        });
        async { Response::new(BodyExt::boxed(http_body_util::StreamBody::new(stream))) }
    })
    .await;
    let proxy = proxy(&app, UpstreamHttp::Http2, vec![throttle(1000, 0)]).await;
    let mut client = Client2::connect(proxy.address).await;
    let mut body = client.send(slow()).await.unwrap().into_body();
    for _ in 0..3 {
        soon(body.frame()).await.unwrap().unwrap();
    }
    // The proxy's window, and what the application's own HTTP/2 keeps.
    assert!(read.load(Ordering::SeqCst) < 1_000_000, "{read:?}");
}

/// Responses that wait take of the window that all responses of a connection share.
#[tokio::test]
async fn responses_that_wait_do_not_hold_up_others() {
    let app = large(2_000_000).await;
    let proxy = proxy(&app, UpstreamHttp::Http2, vec![throttle(1, 0)]).await;
    let mut client = Client2::connect(proxy.address).await;
    let mut waiting = Vec::new();
    for _ in 0..60 {
        waiting.push(client.send(slow()).await.unwrap());
    }
    // Until what comes has come.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let free = Request::get("http://app.test/").body(full("")).unwrap();
    assert_eq!(Client2::connect(proxy.address).await.answer(free).await.body.len(), 2_000_000);
    assert_eq!(app.connections(), 2);
    drop(waiting);
}
