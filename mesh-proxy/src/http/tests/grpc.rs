//! Deadlines of gRPC calls, for all four kinds of them.

use std::sync::Mutex;
use std::time::Instant;

use http_body::Frame;

use super::*;

const DEADLINE: Duration = Duration::from_millis(300);

fn call(timeout: &str, body: AnyBody) -> Request<AnyBody> {
    let request = Request::post("http://a/s/m").header("content-type", "application/grpc").header("te", "trailers");
    request.header("grpc-timeout", timeout).body(body).unwrap()
}

/// A server that answers with a head and as many messages as there are, and then hangs; with none it never answers.
/// Remembers what it was told of the deadline, and says when its call is gone.
struct Server {
    app: App,
    told: Arc<Mutex<Vec<String>>>,
    cancelled: Arc<AtomicUsize>,
}

struct Gone(Arc<AtomicUsize>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Server {
    async fn new(messages: usize) -> Self {
        let told = Arc::new(Mutex::new(Vec::new()));
        let cancelled = Arc::new(AtomicUsize::new(0));
        let (to, count) = (told.clone(), cancelled.clone());
        let app = App::http2(move |request| {
            let timeout = request.headers().get("grpc-timeout").map(|it| it.to_str().unwrap().to_owned());
            to.lock().unwrap().push(timeout.unwrap_or_default());
            let gone = Gone(count.clone());
            async move {
                if messages == 0 {
                    let _gone = &gone;
                    std::future::pending::<()>().await;
                }
                let mut left = messages;
                // Read on, as a server of streams does.
                tokio::spawn(request.into_body().collect());
                let stream = futures_util::stream::poll_fn(move |_| {
                    let _ = &gone;
                    if left == 0 {
                        return std::task::Poll::Pending;
                    }
                    left -= 1;
                    std::task::Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"message")))))
                });
                let mut response = Response::new(BodyExt::boxed(http_body_util::StreamBody::new(stream)));
                response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
                response
            }
        })
        .await;
        Self { app, told, cancelled }
    }

    /// What it was told of the deadline, in microseconds.
    fn told(&self) -> Vec<u128> {
        let told = self.told.lock().unwrap();
        told.iter().map(|it| it.strip_suffix('u').unwrap_or_else(|| panic!("{it:?}")).parse().unwrap()).collect()
    }
}

async fn through_two_proxies(server: &Server) -> (Proxy, Proxy) {
    pair(UpstreamHttp::Http2, server.app.address).await
}

/// The call's status, and how long it took.
async fn status(proxy: &Proxy, body: AnyBody) -> (u16, String, usize, Duration) {
    let start = Instant::now();
    let answer = Client2::connect(proxy.address).await.answer(call("300m", body)).await;
    let trailers = answer.trailers.clone().unwrap_or_else(|| answer.headers.clone());
    let code = trailers.get("grpc-status").map(|it| it.to_str().unwrap().to_owned()).unwrap_or_default();
    (answer.status.as_u16(), code, answer.body.len() / "message".len(), start.elapsed())
}

#[tokio::test]
async fn of_all_four_kinds_the_deadline_ends_the_call() {
    for (kind, messages, streams) in
        [("unary", 0, false), ("client streaming", 0, true), ("server streaming", 2, false), ("both", 2, true)]
    {
        let server = Server::new(messages).await;
        let (outbound, _inbound) = through_two_proxies(&server).await;
        // A client that streams goes on sending; nothing ends its request.
        let (sender, stream) = fed();
        let body = if streams { stream } else { full("request") };
        let feeding = tokio::spawn(async move {
            while sender.send(Frame::data(Bytes::from_static(b"piece"))).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let (http, code, received, took) = status(&outbound, body).await;
        assert_eq!((http, code.as_str(), received), (200, "4", messages), "{kind}");
        assert!(took >= DEADLINE && took < DEADLINE * 10, "{kind}: {took:?}");
        let told = server.told();
        assert!(told.len() == 1 && told[0] <= DEADLINE.as_micros() && told[0] > 0, "{kind}: {told:?}");
        until("the server's call has ended", || server.cancelled.load(Ordering::SeqCst) == 1).await;
        until("recorded", || outbound.recorded(&["grpc_status=\"4\""]) == 1).await;
        feeding.abort();
    }
}

#[tokio::test]
async fn the_smaller_of_the_deadline_and_the_route_s_timeout_counts() {
    for (timeout, deadline) in [(50, "60S"), (60_000, "50m")] {
        let server = Server::new(0).await;
        let mut timed = forward(&[("app", 1)]);
        timed.timeout = Duration::from_millis(timeout);
        let proxy = Proxy::with(to(timed), UpstreamHttp::Http2, &[server.app.address]).await;
        let start = Instant::now();
        let answer = Client2::connect(proxy.address).await.answer(call(deadline, full("request"))).await;
        assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, "4"));
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn each_try_is_told_what_is_left() {
    const SLOW: Duration = Duration::from_millis(60);
    let told = Arc::new(Mutex::new(Vec::new()));
    let to_it = told.clone();
    let app = App::http2(move |request| {
        let value = request.headers()["grpc-timeout"].to_str().unwrap().to_owned();
        to_it.lock().unwrap().push(value.strip_suffix('u').unwrap().parse::<u64>().unwrap());
        async move {
            tokio::time::sleep(SLOW).await;
            let mut response = reply("");
            response.headers_mut().insert("grpc-status", HeaderValue::from_static("14"));
            response
        }
    })
    .await;
    let mut retried = forward(&[("app", 1)]);
    retried.retry.retries = 2;
    retried.retry.on.grpc = vec![14];
    let proxy = Proxy::with(to(retried), UpstreamHttp::Http2, &[app.address]).await;
    let answer = Client2::connect(proxy.address).await.answer(call("5S", full("request"))).await;
    assert_eq!(answer.header("grpc-status"), "14");
    let told = told.lock().unwrap().clone();
    assert_eq!(told.len(), 3);
    assert!(told.windows(2).all(|it| it[1] + SLOW.as_micros() as u64 <= it[0]), "{told:?}");
}

#[tokio::test]
async fn without_a_deadline_nobody_is_told_of_one() {
    let app = App::http2(|request| async move {
        let told = request.headers().contains_key("grpc-timeout");
        reply(told.to_string())
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http2, &[app.address]).await;
    let request = Request::post("http://a/s/m").header("content-type", "application/grpc").body(full("")).unwrap();
    assert_eq!(Client2::connect(proxy.address).await.answer(request).await.text(), "false");
}
