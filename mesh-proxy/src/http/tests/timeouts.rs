//! Timeouts, and clients and upstreams that go away in the middle.

use std::io::ErrorKind;
use std::time::Instant;

use http_body::Frame;

use super::*;

const SHORT: Duration = Duration::from_millis(50);

async fn silent() -> App {
    App::http1(|_| std::future::pending()).await
}

#[tokio::test]
async fn the_route_s_timeout() {
    let app = silent().await;
    let mut timed = forward(&[("app", 1)]);
    timed.timeout = SHORT;
    let proxy = Proxy::with(to(timed), UpstreamHttp::Http1, &[app.address]).await;
    let mut client = proxy.http1().await;
    for _ in 0..3 {
        let start = Instant::now();
        let answer = client.answer(post("/", "x")).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (504, "the upstream did not answer in time"));
        assert!(start.elapsed() >= SHORT);
    }
    assert_eq!(proxy.recorded(&["response_flags=\"UT\"", "response_code=\"504\""]), 3);
}

#[tokio::test]
async fn the_timeout_covers_the_response_s_body_and_begins_with_the_end_of_the_request() {
    let (sender, body) = fed();
    let body = Arc::new(std::sync::Mutex::new(Some(body)));
    let app = App::http1(move |request| {
        let body = body.lock().unwrap().take().unwrap();
        async move {
            request.into_body().collect().await.unwrap();
            Response::new(body)
        }
    })
    .await;
    let mut timed = forward(&[("app", 1)]);
    timed.timeout = SHORT;
    let proxy = Proxy::with(to(timed), UpstreamHttp::Http1, &[app.address]).await;
    let (upload, request) = fed();
    tokio::spawn(async move {
        tokio::time::sleep(SHORT * 3).await;
        upload.send(Frame::data("late".into())).await.unwrap();
    });
    let request = Request::post("/").header("host", "a").body(request).unwrap();
    let mut client = proxy.http1().await;
    let mut response = client.send(request).await.unwrap();
    assert_eq!(response.status(), 200);
    sender.send(Frame::data("begun".into())).await.unwrap();
    assert_eq!(soon(response.frame()).await.unwrap().unwrap().into_data().unwrap(), "begun");
    assert!(soon(response.frame()).await.unwrap().is_err());
    until("recorded", || proxy.recorded(&["response_flags=\"UT\"", "response_code=\"200\""]) == 1).await;
}

#[tokio::test]
async fn a_grpc_client_s_own_timeout() {
    let app = App::http2(|_| std::future::pending()).await;
    let mut timed = forward(&[("app", 1)]);
    timed.timeout = Duration::from_secs(60);
    let proxy = Proxy::with(to(timed), UpstreamHttp::Http2, &[app.address]).await;
    let request =
        Request::post("http://a/s/m").header("content-type", "application/grpc").header("grpc-timeout", "50m");
    let answer = Client2::connect(proxy.address).await.answer(request.body(full("")).unwrap()).await;
    assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, "4"));
}

#[tokio::test]
async fn the_timeout_of_a_try() {
    let slow_first = Arc::new(AtomicUsize::new(0));
    let app = App::http1(move |_| {
        let n = slow_first.fetch_add(1, Ordering::SeqCst);
        async move {
            if n == 0 {
                std::future::pending::<()>().await;
            }
            reply("second")
        }
    })
    .await;
    let mut timed = forward(&[("app", 1)]);
    timed.retry.retries = 1;
    timed.retry.on.reset = true;
    timed.retry.per_try_timeout = SHORT;
    let proxy = Proxy::with(to(timed), UpstreamHttp::Http1, &[app.address]).await;
    assert_eq!(proxy.get("/").await.text(), "second");
}

#[tokio::test]
async fn a_silent_stream() {
    let app = silent().await;
    let mut idle = forward(&[("app", 1)]);
    idle.idle_timeout = Some(SHORT);
    let proxy = Proxy::with(to(idle), UpstreamHttp::Http1, &[app.address]).await;
    let answer = proxy.get("/").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (408, "the stream was idle for too long"));
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time() {
    let app = App::named("ok").await;
    let resources = [
        Resource::Cluster(Arc::new(cluster("app", UpstreamHttp::Http1))),
        Resource::Endpoints(endpoints("app", vec![endpoint(app.address)])),
        Resource::Routes(Arc::new(to(forward(&[("app", 1)])))),
    ];
    let proxy = Proxy::new(resources, ProxyOptions { idle_timeout: SHORT, ..ProxyOptions::default() }).await;
    let mut stream = proxy.raw().await;
    for _ in 0..2 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        read_until(&mut stream, "ok").await;
    }
    let start = Instant::now();
    assert_eq!(soon(stream.read(&mut [0])).await.unwrap(), 0);
    assert!(start.elapsed() >= SHORT / 2);
}

#[tokio::test]
async fn an_idle_http2_connection_is_asked_to_end() {
    let app = App::http1(|_| async {
        tokio::time::sleep(SHORT * 3).await;
        reply("ok")
    })
    .await;
    let resources = [
        Resource::Cluster(Arc::new(cluster("app", UpstreamHttp::Http1))),
        Resource::Endpoints(endpoints("app", vec![endpoint(app.address)])),
        Resource::Routes(Arc::new(to(forward(&[("app", 1)])))),
    ];
    let proxy = Proxy::new(resources, ProxyOptions { idle_timeout: SHORT, ..ProxyOptions::default() }).await;
    let (mut client, connection) = h2::client::handshake(proxy.raw().await).await.unwrap();
    let ended = tokio::spawn(connection);
    // A request that takes longer than the timeout keeps it.
    let request = Request::get("http://a/").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!(response.status(), 200);
    drop(response);
    let start = Instant::now();
    soon(ended).await.unwrap().unwrap();
    assert!(start.elapsed() >= SHORT / 2, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_request_upstream() {
    let (gone, mut is_gone) = tokio::sync::mpsc::unbounded_channel();
    let app = App::raw(move |mut stream, _| {
        let gone = gone.clone();
        async move {
            read_until(&mut stream, "\r\n\r\n").await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await.unwrap();
            let end = stream.read(&mut [0]).await;
            gone.send(matches!(end, Ok(0)) || end.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset)).unwrap();
        }
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut stream = proxy.raw().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    read_until(&mut stream, "half").await;
    drop(stream);
    assert!(soon(is_gone.recv()).await.unwrap());
    until("recorded", || proxy.recorded(&["response_flags=\"DC\"", "response_code=\"200\""]) == 1).await;
    // Before there was any answer.
    let app = silent().await;
    proxy.put(Resource::Endpoints(endpoints("app", vec![endpoint(app.address)]))).await;
    let mut stream = proxy.raw().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    until("connected", || app.connections() == 1).await;
    drop(stream);
    until("recorded", || proxy.recorded(&["response_flags=\"DC\"", "response_code=\"0\""]) == 1).await;
}

#[tokio::test]
async fn an_upstream_that_goes_away_in_the_middle_cuts_the_response() {
    let app = App::raw(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await.unwrap();
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let response = proxy.http1().await.send(get("/")).await.unwrap();
    assert!(soon(read(response)).await.is_err());
    until("recorded", || proxy.recorded(&["response_flags=\"UC\"", "response_code=\"200\""]) == 1).await;
}
