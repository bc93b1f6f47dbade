//! WebSocket, other upgrades and CONNECT.

use super::*;

/// Switches to a protocol in which everything is said back in upper case.
pub(super) async fn shouting(mut request: Request<Incoming>) -> Response<AnyBody> {
    let connect = *request.method() == http::Method::CONNECT;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgrade.await.unwrap());
        let mut buffer = [0; 100];
        loop {
            let n = io.read(&mut buffer).await.unwrap_or(0);
            if n == 0 {
                return;
            }
            io.write_all(&buffer[..n].to_ascii_uppercase()).await.unwrap();
        }
    });
    if connect {
        return reply("");
    }
    let mut response = reply("");
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert("connection", "upgrade".parse().unwrap());
    response.headers_mut().insert("upgrade", request.headers()["upgrade"].clone());
    response.headers_mut().insert("sec-websocket-accept", "x".parse().unwrap());
    response
}

pub(super) async fn shouts(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
    // The first bytes come with the request, as an impatient client sends them.
    stream.write_all(format!("{request}early").as_bytes()).await.unwrap();
    let text = read_until(&mut stream, "EARLY").await;
    assert!(text.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{text}");
    assert!(text.contains("upgrade: websocket\r\n") && text.contains("sec-websocket-accept: x\r\n"), "{text}");
    for word in ["hello", "again"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        assert_eq!(read_until(&mut stream, &word.to_uppercase()).await, word.to_uppercase());
    }
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn websocket_in_clear() {
    let app = App::http1(shouting).await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    shouts(proxy.address).await;
    until("recorded", || proxy.recorded(&["response_code=\"101\"", "response_flags=\"-\""]) == 1).await;
}

#[tokio::test]
async fn websocket_through_two_proxies_with_mutual_tls() {
    let app = App::http1(shouting).await;
    let (outbound, inbound) = pair(UpstreamHttp::Downstream, app.address).await;
    shouts(outbound.address).await;
    until("recorded", || inbound.recorded(&["response_code=\"101\"", "security=\"mutual_tls\""]) == 1).await;
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let app = App::named("no").await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut client = proxy.http1().await;
    let request = Request::get("/").header("host", "a").header("connection", "upgrade").header("upgrade", "websocket");
    assert_eq!(client.answer(request.body(full("")).unwrap()).await.text(), "no");
    assert_eq!(client.get("/").await.text(), "no");
}

#[tokio::test]
async fn connect_makes_a_tunnel() {
    let app = App::http1(shouting).await;
    for (proxy, _other) in [(Proxy::simple(UpstreamHttp::Http1, &[app.address]).await, None), {
        let (outbound, inbound) = pair(UpstreamHttp::Downstream, app.address).await;
        (outbound, Some(inbound))
    }] {
        let mut stream = proxy.raw().await;
        stream.write_all(b"CONNECT db.test:5432 HTTP/1.1\r\nHost: db.test:5432\r\n\r\n").await.unwrap();
        let text = read_until(&mut stream, "\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        stream.write_all(b"select").await.unwrap();
        assert_eq!(read_until(&mut stream, "SELECT").await, "SELECT");
    }
}
