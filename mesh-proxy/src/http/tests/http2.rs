//! HTTP/2, gRPC and mutual TLS between proxies.

use http_body::Frame;

use super::*;

/// A gRPC-like application: sends back each message, then its status.
async fn echo(request: Request<Incoming>) -> Response<AnyBody> {
    let (sender, body) = fed();
    let mut incoming = request.into_body();
    tokio::spawn(async move {
        while let Some(Ok(frame)) = incoming.frame().await {
            if let Ok(data) = frame.into_data()
                && sender.send(Frame::data(data)).await.is_err()
            {
                return;
            }
        }
        let status = HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), "0".parse().unwrap())]);
        let _ = sender.send(Frame::trailers(status)).await;
    });
    let mut response = Response::new(body);
    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    response
}

fn grpc(body: AnyBody) -> Request<AnyBody> {
    Request::post("http://app.test/shop.Reviews/Get")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

async fn speaks_both_ways(client: &mut Client2) {
    let (sender, body) = fed();
    let response = client.send(grpc(body)).await.unwrap();
    let mut body = response.into_body();
    for message in ["one", "two", "three"] {
        sender.send(Frame::data(message.into())).await.unwrap();
        assert_eq!(soon(body.frame()).await.unwrap().unwrap().into_data().unwrap(), message);
    }
    drop(sender);
    let trailers = soon(body.frame()).await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    assert!(soon(body.frame()).await.is_none());
}

#[tokio::test]
async fn grpc_streams_both_ways_with_trailers() {
    let app = App::http2(echo).await;
    let proxy = Proxy::simple(UpstreamHttp::Http2, &[app.address]).await;
    let mut client = Client2::connect(proxy.address).await;
    speaks_both_ways(&mut client).await;
    let answer = client.answer(grpc(full("unary"))).await;
    assert_eq!((answer.text(), &answer.trailers.as_ref().unwrap()["grpc-status"]), ("unary", &"0".parse().unwrap()));
    assert_eq!(app.connections(), 1);
    assert_eq!(proxy.recorded(&["grpc_status=\"0\""]), 2, "{}", proxy.ctx.telemetry.render());
}

#[tokio::test]
async fn grpc_through_two_proxies_with_mutual_tls() {
    let app = App::http2(echo).await;
    let (outbound, inbound) = pair(UpstreamHttp::Downstream, app.address).await;
    let mut client = Client2::connect(outbound.address).await;
    speaks_both_ways(&mut client).await;
    assert_eq!(outbound.recorded(&["security=\"mutual_tls\""]), 1);
    until("recorded", || inbound.recorded(&["security=\"mutual_tls\"", "shop/sa/web"]) == 1).await;
}

#[tokio::test]
async fn an_http1_client_reaches_an_http1_application_over_http2_between_proxies() {
    let app = App::http1(|request| async move {
        let host = request.headers()["host"].to_str().unwrap().to_owned();
        assert!(!request.headers().contains_key("x-mesh-downstream-protocol"));
        reply(format!("{:?} {host} {}", request.version(), request.uri()))
    })
    .await;
    let (outbound, inbound) = pair(UpstreamHttp::Downstream, app.address).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(outbound.http1().await);
    }
    for client in &mut clients {
        assert_eq!(client.get("/a?b").await.text(), "HTTP/1.1 app.test /a?b");
    }
    assert_eq!(app.connections(), 1);
    assert_eq!(outbound.recorded(&["response_code=\"200\""]), 20);
    assert_eq!(inbound.recorded(&["response_code=\"200\""]), 20);
}

#[tokio::test]
async fn an_http2_client_and_an_http1_application() {
    let app = App::http1(|request| async move {
        let cookie = request.headers().get_all("cookie").iter().count();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        reply(format!("{cookie} {}", body.len()))
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut client = Client2::connect(proxy.address).await;
    let request = Request::post("http://app.test/")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(full(vec![0; 300_000]))
        .unwrap();
    assert_eq!(client.answer(request).await.text(), "1 300000");
}

#[tokio::test]
async fn many_requests_share_one_connect() {
    let app = App::http2(|_| async { reply("shared") }).await;
    let proxy = Proxy::simple(UpstreamHttp::Http2, &[app.address]).await;
    let client = Client2::connect(proxy.address).await.0;
    let requests = (0..50).map(|_| {
        let mut client = Client2(client.clone());
        tokio::spawn(async move { client.answer(Request::get("http://a/").body(full("")).unwrap()).await.status })
    });
    for request in requests.collect::<Vec<_>>() {
        assert_eq!(request.await.unwrap(), 200);
    }
    assert_eq!(app.connections(), 1);
}

#[tokio::test]
async fn more_requests_than_one_connection_takes() {
    let (go, gone) = watch::channel(false);
    let app = App::http2(move |_| {
        let mut gone = gone.clone();
        async move {
            gone.wait_for(|go| *go).await.unwrap();
            reply("at once")
        }
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http2, &[app.address]).await;
    let client = Client2::connect(proxy.address).await.0;
    let mut requests = Vec::new();
    for i in 0..350 {
        let mut client = Client2(client.clone());
        requests.push(tokio::spawn(async move {
            client.answer(Request::get("http://a/").body(full("")).unwrap()).await.status
        }));
        if i % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    until("another connection", || app.connections() > 1).await;
    go.send_replace(true);
    for request in requests {
        assert_eq!(request.await.unwrap(), 200);
    }
    assert!(app.connections() <= 8, "{}", app.connections());
}

#[tokio::test]
async fn a_large_body_both_ways_through_two_proxies() {
    let app = App::http1(|request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        reply(body)
    })
    .await;
    let (outbound, _inbound) = pair(UpstreamHttp::Downstream, app.address).await;
    let sent: Bytes = (0..20_000_000u32).map(|i| (i % 251) as u8).collect();
    let answer = outbound.http1().await.answer(post("/", sent.clone())).await;
    assert!(answer.body == sent);
}

#[tokio::test]
async fn errors_are_grpc_statuses_for_grpc_clients() {
    let proxy = Proxy::simple(UpstreamHttp::Http2, &[nowhere().await]).await;
    let mut client = Client2::connect(proxy.address).await;
    let answer = client.answer(grpc(full("x"))).await;
    assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, "14"));
    assert_eq!(answer.header("grpc-message"), "could not connect to the upstream");
    assert_eq!(proxy.recorded(&["response_flags=\"UF\""]), 1);
}

#[tokio::test]
async fn another_identity_is_not_spoken_to() {
    let app = App::named("secret").await;
    let (outbound, inbound) = pair(UpstreamHttp::Downstream, app.address).await;
    let context = UpstreamTls { identities: vec![id("other")], alpn: vec![], sni: String::new() };
    let other = Cluster { tls: Some(context), ..cluster("app", UpstreamHttp::Http2) };
    assert_eq!(outbound.get("/").await.text(), "secret");
    // A connection that was made to somebody else is not used for this one.
    outbound.put(Resource::Cluster(Arc::new(other))).await;
    let answer = outbound.get("/").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (503, "mutual TLS with the upstream failed"));
    assert_eq!(inbound.recorded(&[]), 1);
}

#[tokio::test]
async fn after_goaway_requests_go_on_another_connection() {
    let app = App::raw(|stream, number| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let mut served = 0;
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            respond.send_response(Response::new(()), true).unwrap();
            served += 1;
            if number == 0 && served == 2 {
                connection.graceful_shutdown();
            }
        }
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http2, &[app.address]).await;
    let mut client = proxy.http1().await;
    for _ in 0..20 {
        assert_eq!(client.answer(post("/", "x")).await.status, 200);
    }
    assert_eq!(app.connections(), 2);
}

#[tokio::test]
async fn a_refused_stream_is_tried_again_with_its_body() {
    let app = App::raw(|stream, _| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let mut first = true;
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            if std::mem::take(&mut first) {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
                continue;
            }
            tokio::spawn(async move {
                let mut body = request.into_body();
                let data = body.data().await.unwrap().unwrap();
                let mut stream = respond.send_response(Response::new(()), false).unwrap();
                stream.send_data(data, true).unwrap();
            });
        }
    })
    .await;
    let mut retrying = forward(&[("app", 1)]);
    retrying.retry.retries = 1;
    retrying.retry.on.refused_stream = true;
    let proxy = Proxy::with(to(retrying), UpstreamHttp::Http2, &[app.address]).await;
    let answer = proxy.http1().await.answer(post("/", "kept")).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "kept"));
    assert_eq!(app.connections(), 1);
}

#[tokio::test]
async fn the_upstream_s_reset_reaches_the_client() {
    let app = App::raw(|stream, _| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            stream.send_data("half".into(), false).unwrap();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                stream.send_reset(h2::Reason::ENHANCE_YOUR_CALM);
            });
        }
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http2, &[app.address]).await;
    let response = Client2::connect(proxy.address).await.send(grpc(full(""))).await.unwrap();
    let error = soon(read(response)).await.unwrap_err();
    let reason = std::error::Error::source(&error).and_then(|it| it.downcast_ref::<h2::Error>()).unwrap().reason();
    assert_eq!(reason, Some(h2::Reason::ENHANCE_YOUR_CALM));
    until("recorded", || proxy.recorded(&["response_flags=\"UC\""]) == 1).await;
}
