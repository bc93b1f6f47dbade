//! `maxConnections: 1` between proxies with mutual TLS.

use super::upgrades::{shouting, shouts};
use super::*;
use crate::snapshot::Found;

const LIMITS: Limits =
    Limits { max_connections: 1, max_pending: 1024, max_requests: 1024, max_retries: 3, retry_budget: None };

async fn pair_of_one_connection(app: &App) -> (Proxy, Proxy) {
    limited_pair(app, LIMITS).await
}

async fn limited_pair(app: &App, limits: Limits) -> (Proxy, Proxy) {
    let (outbound, inbound) = pair(UpstreamHttp::Http1, app.address).await;
    let Found::Yes(cluster) = outbound.ctx.store.cluster("app").await else { panic!("no cluster") };
    outbound.put(Resource::Cluster(Arc::new(Cluster { limits, ..(*cluster).clone() }))).await;
    (outbound, inbound)
}

#[tokio::test]
async fn callers_of_both_protocols_share_it() {
    let app = App::http1(|_| async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        reply("ok")
    })
    .await;
    let (outbound, inbound) = pair_of_one_connection(&app).await;
    let over_http1 = (0..8).map(|_| async {
        let mut client = outbound.http1().await;
        for _ in 0..10 {
            assert_eq!(client.get("/").await.text(), "ok");
        }
    });
    let client = Client2::connect(outbound.address).await;
    let over_http2 = (0..8).map(|_| {
        let mut client = Client2(client.0.clone());
        async move {
            for _ in 0..10 {
                let request = Request::get("http://app.test/").body(full("")).unwrap();
                assert_eq!(client.answer(request).await.text(), "ok");
            }
        }
    });
    tokio::join!(futures_util::future::join_all(over_http1), futures_util::future::join_all(over_http2));
    assert_eq!(inbound.connections.load(Ordering::SeqCst), 1);
    assert_eq!(outbound.recorded(&["response_code=\"200\""]), 160);
}

/// More than one connection would be made for, if there could be another.
#[tokio::test]
async fn what_goes_beyond_the_limit_of_requests_is_refused_and_traffic_goes_on() {
    const FIT: usize = 150;
    const MORE: usize = 20;
    let (release, released) = watch::channel(false);
    let app = App::http1(move |_| {
        let mut released = released.clone();
        async move {
            released.wait_for(|it| *it).await.unwrap();
            reply("ok")
        }
    })
    .await;
    let (outbound, inbound) = limited_pair(&app, Limits { max_requests: FIT as u32, ..LIMITS }).await;
    let address = outbound.address;
    let one = move || async move { Client1::connect(address).await.get("/").await.status.as_u16() };
    let requests: Vec<_> = (0..FIT + MORE).map(|_| tokio::spawn(one())).collect();
    until("refused", || outbound.recorded(&["response_code=\"503\"", "response_flags=\"UO\""]) == MORE as u64).await;
    release.send(true).unwrap();
    let mut good = 0;
    for request in requests {
        good += usize::from(request.await.unwrap() == 200);
    }
    assert_eq!(good, FIT);
    assert_eq!(outbound.get("/").await.text(), "ok");
    assert_eq!(inbound.connections.load(Ordering::SeqCst), 1);
}

/// What cannot share a connection over HTTP/2 has one of its own: neither waits for the other, however long that lasts.
#[tokio::test]
async fn an_upgrade_and_other_requests_do_not_keep_each_other_away() {
    let app = App::http1(|request| async move {
        match request.headers().contains_key("upgrade") {
            true => shouting(request).await,
            false => reply("ok"),
        }
    })
    .await;
    let (outbound, _inbound) = pair_of_one_connection(&app).await;
    assert_eq!(outbound.get("/").await.text(), "ok");
    shouts(outbound.address).await;
    assert_eq!(outbound.get("/").await.text(), "ok");

    // The other way round, with the upgrade still there.
    let (outbound, inbound) = pair_of_one_connection(&app).await;
    let mut chat = outbound.raw().await;
    let request = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    chat.write_all(request).await.unwrap();
    read_until(&mut chat, "\r\n\r\n").await;
    assert_eq!(outbound.get("/").await.text(), "ok");
    chat.write_all(b"still").await.unwrap();
    assert_eq!(read_until(&mut chat, "STILL").await, "STILL");
    assert_eq!(inbound.connections.load(Ordering::SeqCst), 2);
}
