//! Retries, stale connections and circuit breakers.

use std::time::Instant;

use super::*;

fn retrying(change: impl FnOnce(&mut RetryPolicy)) -> RouteTable {
    let mut forward = forward(&[("app", 1)]);
    forward.retry.retries = 2;
    change(&mut forward.retry);
    to(forward)
}

#[tokio::test]
async fn a_connect_failure_goes_to_another_endpoint() {
    let app = App::named("alive").await;
    let routes = retrying(|policy| policy.on.connect_failure = true);
    let proxy = Proxy::with(routes, UpstreamHttp::Http1, &[nowhere().await, app.address]).await;
    let mut client = proxy.http1().await;
    for _ in 0..20 {
        assert_eq!(client.answer(post("/", "x")).await.text(), "alive");
    }
    assert_eq!(proxy.recorded(&["response_code=\"200\""]), 20);
}

/// An address where a connection is neither taken nor refused, for as long as the result is kept.
pub(super) async fn silent() -> (SocketAddr, impl Sized) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    // Whoever comes after the one that fits into the queue has no answer.
    let waiting = TcpStream::connect(address).await.unwrap();
    (address, (listener, waiting))
}

#[tokio::test]
async fn a_silent_endpoint_is_asked_once_and_another_one_after_it() {
    let (address, _open) = silent().await;
    let timeout = Duration::from_millis(1500);
    let resources = |apps: &[SocketAddr]| {
        let cluster = Cluster { connect_timeout: timeout, ..cluster("app", UpstreamHttp::Http1) };
        let endpoints = endpoints("app", apps.iter().copied().map(endpoint).collect());
        let routes = retrying(|policy| policy.on.connect_failure = true);
        [Resource::Cluster(Arc::new(cluster)), Resource::Endpoints(endpoints), Resource::Routes(Arc::new(routes))]
    };
    let alone = Proxy::new(resources(&[address]), ProxyOptions::default()).await;
    let began = Instant::now();
    assert_eq!(alone.get("/").await.status.as_u16(), 503);
    assert!((timeout..timeout * 2).contains(&began.elapsed()), "{:?}", began.elapsed());

    let app = App::named("alive").await;
    let both = Proxy::new(resources(&[address, app.address]), ProxyOptions::default()).await;
    let mut client = both.http1().await;
    for _ in 0..2 {
        let began = Instant::now();
        assert_eq!(client.get("/").await.text(), "alive");
        assert!(began.elapsed() < timeout * 2, "{:?}", began.elapsed());
    }
}

/// Nobody waits for one that was taken away until the connect timeout is over.
#[tokio::test]
async fn a_silent_endpoint_that_is_taken_away_is_given_up() {
    let (address, _open) = silent().await;
    let app = App::named("alive").await;
    let routes = retrying(|policy| policy.on.connect_failure = true);
    let proxy = Proxy::with(routes, UpstreamHttp::Http1, &[address, app.address]).await;
    let began = Instant::now();
    let mut asked: Vec<_> = Vec::new();
    for _ in 0..2 {
        let mut client = proxy.http1().await;
        asked.push(tokio::spawn(async move { client.get("/").await.text().to_owned() }));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    proxy.put(Resource::Endpoints(endpoints("app", vec![endpoint(app.address)]))).await;
    // What is gone is seen by who comes next.
    assert_eq!(proxy.get("/").await.text(), "alive");
    for answer in asked {
        assert_eq!(answer.await.unwrap(), "alive");
    }
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_status_is_tried_again_with_the_body_and_the_last_answer_is_passed_on() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let app = App::http1(move |request| {
        let n = counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let mut response = reply(body);
            if n != 2 {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            response
        }
    })
    .await;
    let routes = retrying(|policy| policy.on.gateway_error = true);
    let proxy = Proxy::with(routes, UpstreamHttp::Http1, &[app.address]).await;
    let mut client = proxy.http1().await;
    let answer = client.answer(post("/", "again")).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "again"));
    assert_eq!(count.load(Ordering::SeqCst), 3);
    let answer = client.answer(post("/", "never")).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (503, "never"));
    assert_eq!(count.load(Ordering::SeqCst), 6);
}

#[tokio::test]
async fn a_large_body_is_not_sent_again() {
    let app = App::http1(|request| async move {
        let _ = request.into_body().collect().await;
        let mut response = reply("no");
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response
    })
    .await;
    let routes = retrying(|policy| policy.on.gateway_error = true);
    let proxy = Proxy::with(routes, UpstreamHttp::Http1, &[app.address]).await;
    let answer = proxy.http1().await.answer(post("/", vec![0; 65 << 10])).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (503, "no"));
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_never_an_error() {
    // Serves one request on each connection and closes it without saying so.
    let app = App::raw(|mut stream, _| async move {
        let mut buffer = [0; 4096];
        assert!(stream.read(&mut buffer).await.unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut client = proxy.http1().await;
    for i in 0..50 {
        // Requests that may be repeated come at once, into the race; others when the close has been seen.
        let answer = if i % 5 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            client.answer(post("/", "x")).await
        } else {
            client.get("/").await
        };
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "ok"), "request {i}");
    }
}

#[tokio::test]
async fn what_is_not_idempotent_is_not_repeated_after_it_was_sent() {
    let app = App::raw(|mut stream, _| async move {
        read_until(&mut stream, "x").await;
    })
    .await;
    let routes = retrying(|policy| policy.on.reset = true);
    let proxy = Proxy::with(routes, UpstreamHttp::Http1, &[app.address]).await;
    let answer = proxy.http1().await.answer(post("/", "x")).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (503, "the upstream closed the connection"));
    assert_eq!(app.connections(), 1);
    let put = Request::put("/").header("host", "a").body(full("x")).unwrap();
    assert_eq!(proxy.http1().await.answer(put).await.status, 503);
    assert_eq!(app.connections(), 4);
    assert_eq!(proxy.recorded(&["response_flags=\"UC\""]), 2);
}

#[tokio::test]
async fn an_answer_that_is_not_http() {
    let app = App::raw(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"SSH-2.0-whatever\r\n").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let answer = proxy.get("/").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (502, "the upstream's reply is not valid"));
}

fn limited(limits: Limits) -> Resource {
    Resource::Cluster(Arc::new(Cluster { limits, ..cluster("app", UpstreamHttp::Http1) }))
}

#[tokio::test]
async fn circuit_breakers_refuse_at_once_and_queues_are_served_in_turn() {
    let app = App::http1(|_| async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        reply("ok")
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let limits = cluster("app", UpstreamHttp::Http1).limits;
    let burst = || async {
        let mut clients = Vec::new();
        for _ in 0..8 {
            clients.push(proxy.http1().await);
        }
        let requests = clients.into_iter().map(|mut client| tokio::spawn(async move { client.get("/").await.status }));
        let mut ok = 0;
        for request in requests.collect::<Vec<_>>() {
            ok += u32::from(request.await.unwrap() == 200);
        }
        ok
    };
    proxy.put(limited(Limits { max_requests: 3, ..limits })).await;
    assert_eq!(burst().await, 3);
    proxy.put(limited(Limits { max_connections: 2, ..limits })).await;
    assert_eq!(burst().await, 8);
    proxy.put(limited(Limits { max_requests: 0, ..limits })).await;
    assert_eq!(burst().await, 0);
    assert_eq!(proxy.recorded(&["response_flags=\"UO\""]), 13);
    assert!(app.connections() <= 3, "{}", app.connections());
}

/// More endpoints than connections: each has one, whatever the others do with theirs.
#[tokio::test]
async fn idle_connections_to_some_endpoints_keep_no_other_from_serving() {
    for http in [UpstreamHttp::Http1, UpstreamHttp::Http2] {
        let mut apps = Vec::new();
        for _ in 0..4 {
            let slow = |_| async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                reply("ok")
            };
            apps.push(match http {
                UpstreamHttp::Http2 => App::http2(slow).await,
                _ => App::http1(slow).await,
            });
        }
        let proxy = Proxy::simple(http, &apps.iter().map(|app| app.address).collect::<Vec<_>>()).await;
        let limits = Limits { max_connections: 2, ..cluster("app", http).limits };
        proxy.put(Resource::Cluster(Arc::new(Cluster { limits, ..cluster("app", http) }))).await;
        let clients = (0..8).map(|_| async {
            let mut client = proxy.http1().await;
            for _ in 0..20 {
                assert_eq!(soon(client.get("/")).await.status, 200, "{http:?}");
            }
        });
        futures_util::future::join_all(clients).await;
        let opened: Vec<_> = apps.iter().map(App::connections).collect();
        assert!(opened.iter().all(|opened| *opened >= 1) && opened.iter().sum::<usize>() <= 5, "{http:?}: {opened:?}");
    }
}

#[tokio::test]
async fn a_shared_connection_that_dies_is_no_error_for_what_may_be_repeated() {
    // Answers the first request of each connection, and drops the connection at the second.
    let app = App::raw(|stream, _| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (_, mut respond) = connection.accept().await.unwrap().unwrap();
        respond.send_response(http::Response::new(()), true).unwrap();
        let _ = connection.accept().await;
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http2, &[app.address]).await;
    let mut client = proxy.http1().await;
    for i in 0..10 {
        assert_eq!(client.get("/").await.status, 200, "request {i}");
    }
    // What may have been processed is not repeated.
    assert_eq!(client.answer(post("/", "x")).await.status, 503);
}

/// Of ten requests that fail at once, three are tried again while those retries last; the others get the answer they have.
#[tokio::test]
async fn the_retry_budget_is_exhausted_and_given_back() {
    const CALLERS: usize = 10;
    let (count, all) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Barrier::new(CALLERS)));
    let (release, released) = watch::channel(false);
    let counted = count.clone();
    let app = App::http1(move |_| {
        let (n, all, mut released) = (counted.fetch_add(1, Ordering::SeqCst), all.clone(), released.clone());
        async move {
            if n < CALLERS {
                // All ten are under way when the first of them fails.
                all.wait().await;
                let mut response = reply("no");
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                return response;
            }
            released.wait_for(|it| *it).await.unwrap();
            reply("again")
        }
    })
    .await;
    let proxy =
        Proxy::with(retrying(|policy| policy.on.gateway_error = true), UpstreamHttp::Http1, &[app.address]).await;
    let budget = Some(RetryBudget { percent: 20, min_concurrency: 3 });
    let limits = Limits { retry_budget: budget, ..cluster("app", UpstreamHttp::Http1).limits };
    proxy.put(limited(limits)).await;
    let callers: Vec<_> = (0..CALLERS).map(|_| proxy.http1()).collect();
    let callers = futures_util::future::join_all(callers).await.into_iter();
    let callers: Vec<_> =
        callers.map(|mut it| tokio::spawn(async move { it.get("/").await.status.as_u16() })).collect();
    until("the others have their answer", || callers.iter().filter(|it| it.is_finished()).count() == CALLERS - 3).await;
    until("three are tried again", || count.load(Ordering::SeqCst) == CALLERS + 3).await;
    release.send_replace(true);
    let mut statuses: Vec<_> = futures_util::future::join_all(callers).await.into_iter().map(Result::unwrap).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [[200; 3].as_slice(), &[503; CALLERS - 3]].concat());
    assert_eq!(count.load(Ordering::SeqCst), CALLERS + 3);
}

/// Overloaded for the first request, and asks to be left alone for so long.
async fn overloaded(retry_after: &'static str) -> App {
    let count = Arc::new(AtomicUsize::new(0));
    App::http1(move |_| {
        let first = count.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            let mut response = reply(if first { "busy" } else { "ok" });
            if first {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                response.headers_mut().insert("retry-after", retry_after.parse().unwrap());
            }
            response
        }
    })
    .await
}

#[tokio::test]
async fn a_retry_waits_as_long_as_it_is_asked_to() {
    let routes = |timeout: u64| {
        let mut forward = forward(&[("app", 1)]);
        forward.timeout = Duration::from_secs(timeout);
        forward.retry.retries = 1;
        forward.retry.on.gateway_error = true;
        forward.retry.retry_after_max = Duration::from_secs(30);
        to(forward)
    };
    let begun = std::time::Instant::now();
    let app = overloaded("1").await;
    let proxy = Proxy::with(routes(10), UpstreamHttp::Http1, &[app.address]).await;
    assert_eq!(proxy.get("/").await.text(), "ok");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    // Longer than the policy or the request's own time allows: the answer is for the client.
    for (asked, timeout) in [("31", 0), ("5", 5)] {
        let app = overloaded(asked).await;
        let proxy = Proxy::with(routes(timeout), UpstreamHttp::Http1, &[app.address]).await;
        let answer = proxy.get("/").await;
        assert_eq!((answer.text(), answer.header("retry-after")), ("busy", asked));
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
}
