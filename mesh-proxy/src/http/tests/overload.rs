//! A proxy that is short of something itself.

use super::*;
use crate::overload::Scarce;

#[tokio::test]
async fn new_requests_are_refused_and_those_under_way_go_on() {
    let (release, released) = watch::channel(false);
    let app = App::http1(move |request| {
        let mut released = released.clone();
        async move {
            if request.uri() == "/slow" {
                released.wait_for(|it| *it).await.unwrap();
            }
            reply("ok")
        }
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let (mut early, mut late) = (proxy.http1().await, proxy.http1().await);
    let under_way = tokio::spawn(async move { early.get("/slow").await });
    until("it is at the application", || app.connections() == 1).await;
    proxy.ctx.overload.set(Scarce::Memory, true);
    let answer = late.get("/").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (503, "the proxy has too much to do"));
    let request = Request::post("http://a/s/m").header("content-type", "application/grpc").body(full("")).unwrap();
    let answer = Client2::connect(proxy.address).await.answer(request).await;
    assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, "14"));
    assert_eq!(proxy.recorded(&["response_flags=\"OM\""]), 2);
    release.send_replace(true);
    assert_eq!(soon(under_way).await.unwrap().text(), "ok");
    assert_eq!(app.connections(), 1);
    // The same connection, once there is enough again.
    proxy.ctx.overload.set(Scarce::Memory, false);
    assert_eq!(late.get("/").await.text(), "ok");
}

/// A peer's proxy is told that the application has not seen the request, so that it goes elsewhere.
#[tokio::test]
async fn a_peer_takes_the_request_elsewhere() {
    let app = App::named("ok").await;
    let mut retried = forward(&[("app", 1)]);
    retried.retry.retries = 1;
    retried.retry.on.refused_stream = true;
    let (outbound, inbound) = pair_with(to(retried), UpstreamHttp::Http1, app.address).await;
    inbound.ctx.overload.set(Scarce::Cpu, true);
    let answer = outbound.http1().await.answer(post("/", "x")).await;
    assert_eq!((answer.status.as_u16(), app.connections()), (503, 0));
    // Twice: the first try and the retry.
    until("refused", || inbound.recorded(&["response_flags=\"OM\""]) == 2).await;
    assert_eq!(outbound.recorded(&["response_flags=\"UR\""]), 1);
    inbound.ctx.overload.set(Scarce::Cpu, false);
    assert_eq!(outbound.http1().await.answer(post("/", "x")).await.text(), "ok");
}
