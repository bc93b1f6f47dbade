//! Clients and applications of HTTP/1.0, which know neither chunks nor connections that are kept without saying so.

use super::*;

/// Everything that comes until the proxy closes the connection.
async fn to_the_end(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    soon(stream.read_to_end(&mut text)).await.unwrap();
    String::from_utf8(text).unwrap()
}

/// Sends these bytes to a proxy of an application that answers in chunks, with trailers.
async fn asked(request: &[u8]) -> String {
    let app = App::http1(|request| async move {
        let heard = format!("{:?} {:?}", request.version(), request.headers().get("content-length"));
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let (sender, stream) = fed();
        tokio::spawn(async move {
            for piece in [Bytes::from(heard), Bytes::from_static(b" "), body] {
                sender.send(http_body::Frame::data(piece)).await.unwrap();
            }
            let trailers = HeaderMap::from_iter([(http::header::AGE, HeaderValue::from_static("7"))]);
            let _ = sender.send(http_body::Frame::trailers(trailers)).await;
        });
        Response::new(stream)
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut stream = proxy.raw().await;
    stream.write_all(request).await.unwrap();
    let text = to_the_end(&mut stream).await;
    assert_eq!(proxy.recorded(&["response_code=\"200\"", "response_flags=\"-\""]), 1);
    text
}

#[tokio::test]
async fn a_response_of_unknown_length_ends_with_the_connection() {
    for keep_alive in ["", "Connection: keep-alive\r\n"] {
        let request = format!("POST / HTTP/1.0\r\n{keep_alive}Content-Length: 5\r\n\r\nabcde");
        let text = asked(request.as_bytes()).await;
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{head}");
        assert!(!head.to_lowercase().contains("transfer-encoding"), "{head}");
        // The application is spoken to in HTTP/1.1.
        assert_eq!(body, "HTTP/1.1 Some(\"5\") abcde", "{head}");
    }
}

#[tokio::test]
async fn expectations_and_upgrades_are_ignored() {
    let app = App::http1(|request| async move {
        let headers = request.headers();
        let passed = headers.contains_key("upgrade") || headers.contains_key("expect");
        let body = request.into_body().collect().await.unwrap().to_bytes();
        reply(format!("{passed} {}", body.len()))
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut stream = proxy.raw().await;
    let head = b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\n";
    stream.write_all(head).await.unwrap();
    stream.write_all(b"ok").await.unwrap();
    let text = to_the_end(&mut stream).await;
    assert!(text.starts_with("HTTP/1.0 200 OK\r\n") && text.ends_with("\r\n\r\nfalse 2"), "{text}");
}

/// There are no chunks in HTTP/1.0, so nobody knows where such a request ends (RFC 9112, 6.1).
#[tokio::test]
async fn a_request_in_chunks_is_refused() {
    let app = App::named("never").await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut stream = proxy.raw().await;
    stream.write_all(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").await.unwrap();
    let text = to_the_end(&mut stream).await;
    assert!(text.contains(" 400 ") || text.is_empty(), "{text}");
    assert_eq!(app.connections(), 0);
}

/// Answers each connection's requests with these bytes, and closes it after `serves` of them.
async fn old(answer: &'static [u8], serves: usize) -> App {
    App::raw(move |mut stream, _| async move {
        for _ in 0..serves {
            let mut buffer = [0; 4096];
            if stream.read(&mut buffer).await.unwrap_or_default() == 0 {
                return;
            }
            stream.write_all(answer).await.unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn applications_of_http_1_0() {
    for (answer, serves, connections) in [
        // By the end of the connection.
        (&b"HTTP/1.0 200 OK\r\n\r\nhello"[..], 1, 3),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", 1, 3),
        // It says that it stays.
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello", 3, 1),
        // It would stay, but does not say so.
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", 3, 3),
    ] {
        let app = old(answer, serves).await;
        let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
        let mut client = proxy.http1().await;
        for _ in 0..3 {
            let answer = client.get("/").await;
            assert_eq!((answer.status.as_u16(), answer.text()), (200, "hello"));
            assert_eq!(answer.header("connection"), "");
        }
        assert_eq!(app.connections(), connections, "{}", String::from_utf8_lossy(answer));
    }
}

#[tokio::test]
async fn old_clients_reach_old_applications_through_two_proxies() {
    let app = old(b"HTTP/1.0 200 OK\r\n\r\nhello", 1).await;
    let (outbound, inbound) = pair(UpstreamHttp::Http1, app.address).await;
    for _ in 0..2 {
        let mut stream = outbound.raw().await;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let text = to_the_end(&mut stream).await;
        assert!(text.starts_with("HTTP/1.0 200 OK\r\n") && text.ends_with("\r\n\r\nhello"), "{text}");
    }
    assert_eq!(inbound.recorded(&["response_code=\"200\""]), 2);
}
