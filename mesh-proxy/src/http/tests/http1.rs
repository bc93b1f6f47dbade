//! HTTP/1.1 on both sides.

use http::Method;
use http::header::HOST;
use http_body::Frame;

use super::*;

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let app = App::named("hello").await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut client = proxy.http1().await;
    for _ in 0..10 {
        let answer = client.get("/").await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "hello"));
    }
    assert_eq!(app.connections(), 1);
    assert_eq!(proxy.recorded(&["response_code=\"200\"", "response_flags=\"-\""]), 10);
}

#[tokio::test]
async fn the_head_is_passed_on_but_for_what_concerns_the_connection() {
    let app = App::http1(|request| async move {
        let mut lines: Vec<_> =
            request.headers().iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        lines.sort();
        let mut response = reply(format!("{} {}\n{}", request.method(), request.uri(), lines.join("\n")));
        response.headers_mut().insert("connection", "x-hop".parse().unwrap());
        response.headers_mut().insert("x-hop", "1".parse().unwrap());
        response.headers_mut().insert("x-end", "2".parse().unwrap());
        response
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let request = Request::get("/a%2fb/./%7Ec;x//?d=%2e&f")
        .header(HOST, "app.test:80")
        .header("connection", "x-mine")
        .header("x-mine", "1")
        .header("x-mesh-downstream-protocol", "h2")
        .header("x-request-id", "mine")
        .header("accept", "*/*")
        .body(full(""));
    let answer = proxy.http1().await.answer(request.unwrap()).await;
    assert_eq!(answer.text(), "GET /a%2Fb/~c;x//?d=%2e&f\naccept: */*\nhost: app.test:80\nx-request-id: mine");
    assert_eq!((answer.header("x-hop"), answer.header("x-end")), ("", "2"));
    let answer = proxy.get("/").await;
    assert!(answer.text().contains("x-request-id: "), "{}", answer.text());
}

#[tokio::test]
async fn responses_without_a_body() {
    let app = App::http1(|request| async move {
        let mut response = reply(if *request.method() == Method::HEAD { "longer" } else { "" });
        *response.status_mut() = request.uri().path()[1..].parse().unwrap();
        response
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut client = proxy.http1().await;
    let head = Request::head("/200").header(HOST, "a").body(full("")).unwrap();
    let answer = client.answer(head).await;
    assert_eq!((answer.header("content-length"), answer.text()), ("6", ""));
    for status in ["204", "304", "200"] {
        let answer = client.get(&format!("/{status}")).await;
        assert_eq!((answer.status.as_str(), answer.text()), (status, ""));
    }
    assert_eq!(app.connections(), 1);
}

#[tokio::test]
async fn http_1_0_with_and_without_keep_alive() {
    let app = App::named("old").await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut stream = proxy.raw().await;
    stream.write_all(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await.unwrap();
    let text = read_until(&mut stream, "old").await;
    assert!(text.starts_with("HTTP/1.0 200 OK\r\n"), "{text}");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut rest = String::new();
    soon(stream.read_to_string(&mut rest)).await.unwrap();
    assert!(rest.ends_with("old"), "{rest}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let app = App::http1(|request| async move { reply(format!("<{}>", request.uri().path())) }).await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut stream = proxy.raw().await;
    let requests: String = (0..5).map(|i| format!("GET /{i} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    stream.write_all(requests.as_bytes()).await.unwrap();
    let text = read_until(&mut stream, "</4>").await;
    let bodies: Vec<_> = text.lines().filter_map(|line| line.split_once('<')).map(|(_, path)| &path[..2]).collect();
    assert_eq!(bodies, ["/0", "/1", "/2", "/3", "/4"]);
}

#[tokio::test]
async fn chunks_and_trailers_pass_both_ways() {
    let app = App::http1(|request| async move {
        let answer = request.into_body().collect().await.unwrap();
        let sum = answer.trailers().and_then(|it| it.get("x-sum")).cloned();
        let (sender, body) = fed();
        tokio::spawn(async move {
            sender.send(Frame::data(answer.to_bytes())).await.unwrap();
            let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), sum.unwrap())]);
            sender.send(Frame::trailers(trailers)).await.unwrap();
        });
        let mut response = Response::new(body);
        response.headers_mut().insert("trailer", "x-sum".parse().unwrap());
        response
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut stream = proxy.raw().await;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n\
                   2\r\nab\r\n1\r\nc\r\n0\r\nx-sum: 3\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let text = read_until(&mut stream, "x-sum: 3\r\n\r\n").await;
    assert!(text.contains("3\r\nabc\r\n0\r\n"), "{text}");
}

#[tokio::test]
async fn a_body_of_100_mb_is_streamed() {
    let app = App::http1(|request| async move {
        let mut body = request.into_body();
        let mut total = 0;
        while let Some(frame) = body.frame().await {
            total += frame.unwrap().data_ref().map_or(0, Bytes::len);
        }
        reply(total.to_string())
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let (sender, body) = fed();
    let sending = tokio::spawn(async move {
        let piece = Bytes::from(vec![7; 1 << 20]);
        for _ in 0..100 {
            sender.send(Frame::data(piece.clone())).await.unwrap();
        }
    });
    let request = Request::post("/").header(HOST, "a").body(body).unwrap();
    let answer = proxy.http1().await.answer(request).await;
    assert_eq!(answer.text(), (100 << 20).to_string());
    sending.await.unwrap();
    assert_eq!(proxy.recorded(&["response_code=\"200\""]), 1);
}

#[tokio::test]
async fn a_stream_of_events_arrives_piece_by_piece() {
    let (sender, body) = fed();
    let body = Arc::new(std::sync::Mutex::new(Some(body)));
    let app = App::http1(move |_| {
        let body = body.lock().unwrap().take().unwrap();
        async move { Response::new(body) }
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut response = proxy.http1().await.send(get("/")).await.unwrap();
    for i in 0..5 {
        sender.send(Frame::data(format!("event {i}").into())).await.unwrap();
        let frame = soon(response.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), format!("event {i}"));
    }
    drop(sender);
    assert!(soon(response.frame()).await.is_none());
}

#[tokio::test]
async fn a_body_that_ends_with_the_connection() {
    let app = App::raw(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall there is").await.unwrap();
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut client = proxy.http1().await;
    for _ in 0..2 {
        assert_eq!(client.get("/").await.text(), "all there is");
    }
    assert_eq!(app.connections(), 2);
}

#[tokio::test]
async fn an_early_answer_does_not_stop_the_upload() {
    // Answers first, then reads: both directions at once.
    let app = App::raw(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n").await.unwrap();
        let mut body = vec![0; 1 << 20];
        stream.read_exact(&mut body).await.unwrap();
        stream.write_all(b"4\r\ndone\r\n0\r\n\r\n").await.unwrap();
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let (sender, body) = fed();
    let request = Request::post("/").header(HOST, "a").header("content-length", 1 << 20).body(body).unwrap();
    let mut client = proxy.http1().await;
    let mut response = client.send(request).await.unwrap();
    assert_eq!(soon(response.frame()).await.unwrap().unwrap().into_data().unwrap(), "ok");
    sender.send(Frame::data(vec![1; 1 << 20].into())).await.unwrap();
    assert_eq!(soon(response.frame()).await.unwrap().unwrap().into_data().unwrap(), "done");
}

#[tokio::test]
async fn a_connection_ends_with_the_upload_that_outlasted_its_answer() {
    let (ended, end) = tokio::sync::oneshot::channel();
    let ended = std::sync::Mutex::new(Some(ended));
    let app = App::raw(move |mut stream, _| {
        let ended = ended.lock().unwrap().take().unwrap();
        async move {
            read_until(&mut stream, "\r\n\r\n").await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            let text = read_until(&mut stream, "body").await;
            let n = stream.read(&mut [0]).await.unwrap();
            ended.send((text, n)).unwrap();
        }
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut stream = proxy.raw().await;
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n").await.unwrap();
    read_until(&mut stream, "ok").await;
    stream.write_all(b"body").await.unwrap();
    assert_eq!(soon(end).await.unwrap(), ("body".to_owned(), 0));
}

#[tokio::test]
async fn a_body_with_trailers_has_an_end() {
    const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n\
                        2\r\nab\r\n0\r\nx-sum: 2\r\n\r\n";
    let app = App::http1(|request| async move {
        let silent = request.method() == "PUT";
        request.into_body().collect().await.unwrap();
        if silent {
            std::future::pending::<()>().await;
        }
        reply("ok")
    })
    .await;
    let timeout = Forward { timeout: Duration::from_millis(200), ..forward(&[("app", 1)]) };
    let proxy = Proxy::with(to(timeout), UpstreamHttp::Http1, &[app.address]).await;
    let mut stream = proxy.raw().await;
    for _ in 0..2 {
        stream.write_all(POST.as_bytes()).await.unwrap();
        read_until(&mut stream, "ok").await;
    }
    // The connection is one for the next request, and the time begins to count.
    assert_eq!(app.connections(), 1);
    let put = POST.replace("POST", "PUT").replace("Host: a", "Host: a\r\nConnection: close");
    stream.write_all(put.as_bytes()).await.unwrap();
    let mut text = String::new();
    soon(stream.read_to_string(&mut text)).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 504 "), "{text}");
}

#[tokio::test]
async fn absolute_form_and_the_authority_s_precedence() {
    let app = App::http1(|request| async move {
        reply(format!("{} {}", request.headers()[HOST].to_str().unwrap(), request.uri()))
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut stream = proxy.raw().await;
    stream.write_all(b"GET http://real.test/x?y HTTP/1.1\r\nHost: other\r\n\r\n").await.unwrap();
    let text = read_until(&mut stream, "/x?y").await;
    assert!(text.ends_with("real.test /x?y"), "{text}");
}

#[tokio::test]
async fn what_is_not_http_is_refused() {
    let app = App::named("never").await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut stream = proxy.raw().await;
    stream.write_all(b"\x16\x03\x01 nonsense\r\n\r\n").await.unwrap();
    let mut text = String::new();
    soon(stream.read_to_string(&mut text)).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
    assert_eq!(app.connections(), 0);
}

#[tokio::test]
async fn header_changes_rewrites_redirects_and_direct_answers() {
    let app = App::http1(|request| async move {
        let header = |name: &str| request.headers().get(name).map_or("-", |it| it.to_str().unwrap()).to_owned();
        reply(format!("{} {} {} {}", request.uri(), header("host"), header("x-set"), header("x-gone")))
    })
    .await;
    let mut changing = forward(&[("app", 1)]);
    changing.rewrite_path = Some(PathRewrite::Prefix("/new".to_owned()));
    changing.rewrite_host = Some("elsewhere".parse().unwrap());
    let mut changed = route(Action::Forward(Box::new(changing)));
    changed.matches.path = PathMatch::SegmentPrefix("/old".to_owned());
    let name = http::HeaderName::from_static;
    changed.request_headers.set.push((name("x-set"), "1".parse().unwrap()));
    changed.request_headers.remove.push(name("x-gone"));
    changed.response_headers.add.push((name("x-added"), "2".parse().unwrap()));
    let mut redirect = route(Action::Redirect(Redirect {
        path: Some(RedirectPath::Full("/there".to_owned())),
        status: StatusCode::FOUND,
        ..Redirect::default()
    }));
    redirect.matches.path = PathMatch::Exact("/here".to_owned());
    let direct = route(Action::Direct { status: StatusCode::IM_A_TEAPOT, body: Bytes::from_static(b"short") });
    let proxy = Proxy::with(table(vec![changed, redirect, direct]), UpstreamHttp::Http1, &[app.address]).await;
    let mut client = proxy.http1().await;
    let request = Request::get("/old/a?b").header(HOST, "app").header("x-gone", "1").body(full("")).unwrap();
    let answer = client.answer(request).await;
    assert_eq!((answer.text(), answer.header("x-added")), ("/new/a?b elsewhere 1 -", "2"));
    let answer = client.get("/here").await;
    assert_eq!((answer.status.as_u16(), answer.header("location")), (302, "http://app.test/there"));
    let answer = client.get("/else").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (418, "short"));
}

#[tokio::test]
async fn errors_of_routing_have_clean_answers() {
    let app = App::named("ok").await;
    let mut only = route(Action::Forward(Box::new(forward(&[("app", 1)]))));
    only.matches.path = PathMatch::Exact("/ok".to_owned());
    let mut missing = route(Action::Forward(Box::new(forward(&[]))));
    missing.matches.path = PathMatch::Exact("/missing".to_owned());
    let proxy = Proxy::with(table(vec![only, missing]), UpstreamHttp::Http1, &[app.address]).await;
    let mut client = proxy.http1().await;
    assert_eq!(client.get("/ok").await.status, 200);
    let answer = client.get("/no").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (404, "no route matches this request"));
    let answer = client.get("/missing").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (500, "the route's backend does not exist"));
    proxy.put(Resource::Endpoints(endpoints("app", vec![]))).await;
    let answer = client.get("/ok").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (503, "no healthy upstream"));
    proxy.put(Resource::Endpoints(endpoints("app", vec![endpoint(nowhere().await)]))).await;
    let answer = client.get("/ok").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (503, "could not connect to the upstream"));
    for (code, flag) in [("404", "NR"), ("500", "NC"), ("503", "UH"), ("503", "UF")] {
        let labels = [format!("response_code=\"{code}\""), format!("response_flags=\"{flag}\"")];
        assert_eq!(proxy.recorded(&[&labels[0], &labels[1]]), 1, "{flag}");
    }
}

#[tokio::test]
async fn a_length_beside_chunks_is_not_passed_on() {
    let app = App::raw(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(format!("{head}6\r\nlonger\r\n0\r\n\r\n").as_bytes()).await.unwrap();
        let _ = stream.read(&mut [0]).await;
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut stream = proxy.raw().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let text = read_until(&mut stream, "\r\n0\r\n\r\n").await.to_ascii_lowercase();
    assert!(!text.contains("content-length") && text.contains("transfer-encoding: chunked"), "{text}");
    assert!(text.contains("6\r\nlonger\r\n"), "{text}");
}

#[tokio::test]
async fn a_host_is_named_once_and_without_a_user() {
    let app = App::http1(|request| async move { reply(format!("<{:?}>", request.headers()["host"])) }).await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    for hosts in ["", "Host: a\r\nHost: b\r\n", "Host: me@a\r\n"] {
        let mut stream = proxy.raw().await;
        stream.write_all(format!("GET / HTTP/1.1\r\n{hosts}\r\n").as_bytes()).await.unwrap();
        let text = read_until(&mut stream, "valid").await;
        assert!(text.starts_with("HTTP/1.1 400 "), "{hosts}: {text}");
    }
    assert_eq!(app.connections(), 0);
    let mut stream = proxy.raw().await;
    stream.write_all(b"GET http://me:secret@a:81/ HTTP/1.1\r\nHost: a:81\r\n\r\n").await.unwrap();
    let text = read_until(&mut stream, ">").await;
    assert!(text.ends_with("<\"a:81\">"), "{text}");
}
