//! A second try beside the first.

use std::time::Instant;

use super::*;

const AFTER: Duration = Duration::from_millis(40);

fn hedging(retries: u32) -> RouteTable {
    let mut hedged = forward(&[("app", 1)]);
    hedged.retry = RetryPolicy { retries, hedges: true, per_try_timeout: AFTER, ..hedged.retry };
    hedged.retry.on.gateway_error = true;
    to(hedged)
}

struct Ended(Arc<AtomicUsize>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// An application whose requests take as long as this says, by their number. Says how many came, and how many are over.
async fn app(http: UpstreamHttp, slow: &'static [u64]) -> (App, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (began, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, ended) = (began.clone(), over.clone());
    let handle = move |request: Request<Incoming>| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        let ended = Ended(ended.clone());
        async move {
            let _ended = ended;
            let body = request.into_body().collect().await.unwrap().to_bytes();
            tokio::time::sleep(Duration::from_millis(slow.get(number).copied().unwrap_or_default())).await;
            reply(format!("{number}:{}", String::from_utf8_lossy(&body)))
        }
    };
    let app = match http {
        UpstreamHttp::Http2 => App::http2(handle).await,
        _ => App::http1(handle).await,
    };
    (app, began, over)
}

#[tokio::test]
async fn the_first_answer_wins_and_the_other_try_is_cancelled() {
    for http in [UpstreamHttp::Http1, UpstreamHttp::Http2] {
        let (app, began, over) = app(http, &[60_000]).await;
        let proxy = Proxy::with(hedging(1), http, &[app.address]).await;
        let start = Instant::now();
        let answer = proxy.http1().await.answer(post("/", "body")).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "1:body"), "{http:?}");
        assert!(start.elapsed() >= AFTER, "{:?}", start.elapsed());
        assert_eq!(began.load(Ordering::SeqCst), 2);
        until("the first try is cancelled", || over.load(Ordering::SeqCst) == 2).await;
        assert_eq!(proxy.recorded(&["response_code=\"200\""]), 1);
    }
}

#[tokio::test]
async fn who_answers_in_time_is_asked_once_and_the_slow_one_may_still_win() {
    let (quick, began, _) = app(UpstreamHttp::Http1, &[]).await;
    let proxy = Proxy::with(hedging(1), UpstreamHttp::Http1, &[quick.address]).await;
    let mut client = proxy.http1().await;
    for number in 0..20 {
        assert_eq!(client.get("/").await.text(), format!("{number}:"));
    }
    assert_eq!(began.load(Ordering::SeqCst), 20);
    let (slow, began, over) = app(UpstreamHttp::Http1, &[120, 60_000]).await;
    let proxy = Proxy::with(hedging(1), UpstreamHttp::Http1, &[slow.address]).await;
    assert_eq!(proxy.get("/").await.text(), "0:");
    assert_eq!(began.load(Ordering::SeqCst), 2);
    until("the second try is cancelled", || over.load(Ordering::SeqCst) == 2).await;
}

#[tokio::test]
async fn the_second_try_goes_to_another_endpoint() {
    let stuck = App::http1(|_| std::future::pending()).await;
    let well = App::named("well").await;
    let proxy = Proxy::with(hedging(1), UpstreamHttp::Http1, &[stuck.address, well.address]).await;
    let mut client = proxy.http1().await;
    for _ in 0..6 {
        assert_eq!(client.get("/").await.text(), "well");
    }
    assert!(stuck.connections() >= 1);
}

#[tokio::test]
async fn a_failure_does_not_beat_an_answer_and_no_more_is_sent_than_the_policy_says() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let app = App::http1(move |_| {
        let number = counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let mut response = reply(number.to_string());
            match number {
                0 => tokio::time::sleep(AFTER * 6).await,
                1 => *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE,
                _ => std::future::pending().await,
            }
            response
        }
    })
    .await;
    let proxy = Proxy::with(hedging(2), UpstreamHttp::Http1, &[app.address]).await;
    let answer = proxy.get("/").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "0"));
    assert_eq!(count.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn all_tries_that_fail_are_one_failure() {
    let app = App::http1(|_| async {
        tokio::time::sleep(AFTER * 2).await;
        let mut response = reply("no");
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response
    })
    .await;
    let proxy = Proxy::with(hedging(1), UpstreamHttp::Http1, &[app.address]).await;
    assert_eq!(proxy.get("/").await.status, 503);
    assert_eq!(app.connections(), 2);
}

#[tokio::test]
async fn hedges_are_of_the_retry_budget() {
    let (app, began, _) = app(UpstreamHttp::Http1, &[200, 200, 200, 200, 200, 200]).await;
    let proxy = Proxy::with(hedging(1), UpstreamHttp::Http1, &[app.address]).await;
    let budget = Some(RetryBudget { percent: 1, min_concurrency: 1 });
    let limits = Limits { retry_budget: budget, ..cluster("app", UpstreamHttp::Http1).limits };
    proxy.put(Resource::Cluster(Arc::new(Cluster { limits, ..cluster("app", UpstreamHttp::Http1) }))).await;
    let clients = (0..4).map(|_| proxy.get("/"));
    for answer in futures_util::future::join_all(clients).await {
        assert_eq!(answer.status, 200);
    }
    // One at a time beside the four; it may be given back and taken once more, but never by all.
    let began = began.load(Ordering::SeqCst);
    assert!((5..8).contains(&began), "{began}");
}

#[tokio::test]
async fn what_has_not_come_to_its_end_is_not_sent_twice() {
    let (app, began, _) = app(UpstreamHttp::Http1, &[]).await;
    let proxy = Proxy::with(hedging(1), UpstreamHttp::Http1, &[app.address]).await;
    // Still on its way when another try would begin.
    let (sender, body) = fed();
    tokio::spawn(async move {
        for piece in ["a", "b", "c"] {
            // Never when another try would begin.
            tokio::time::sleep(AFTER * 3 / 4).await;
            sender.send(http_body::Frame::data(piece.into())).await.unwrap();
        }
    });
    let request = Request::put("/").header("host", "a").body(body).unwrap();
    assert_eq!(proxy.http1().await.answer(request).await.text(), "0:abc");
    assert_eq!(began.load(Ordering::SeqCst), 1);
    // More than is kept.
    let app = App::http1(|request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        tokio::time::sleep(AFTER * 3).await;
        reply(body.len().to_string())
    })
    .await;
    let proxy = Proxy::with(hedging(1), UpstreamHttp::Http1, &[app.address]).await;
    let answer = proxy.http1().await.answer(post("/", vec![0; 65 << 10])).await;
    assert_eq!((answer.text(), app.connections()), ("66560", 1));
}

#[tokio::test]
async fn the_request_s_timeout_ends_all_tries() {
    let (app, _, over) = app(UpstreamHttp::Http2, &[60_000, 60_000]).await;
    let mut hedged = forward(&[("app", 1)]);
    hedged.timeout = AFTER * 3;
    hedged.retry = RetryPolicy { retries: 1, hedges: true, per_try_timeout: AFTER, ..hedged.retry };
    let proxy = Proxy::with(to(hedged), UpstreamHttp::Http2, &[app.address]).await;
    assert_eq!(proxy.get("/").await.status, 504);
    until("both are cancelled", || over.load(Ordering::SeqCst) == 2).await;
}
