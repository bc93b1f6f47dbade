//! Bytes that two parsers may take for different requests, as an attacker writes them. Each is sent as the application beside
//! the proxy would, and as a peer would; none may reach an application, and the connection must end.

use std::sync::Mutex;

use super::*;
use crate::config::{Condition, Gate, GateAction, Policy, StringMatch};

/// An application that remembers what it was asked for.
pub(super) struct Witness {
    pub(super) app: App,
    pub(super) seen: Arc<Mutex<Vec<String>>>,
}

impl Witness {
    pub(super) async fn new() -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let app = App::http1(move |request| {
            log.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
            async move {
                let _ = request.into_body().collect().await;
                reply("served")
            }
        })
        .await;
        Self { app, seen }
    }

    pub(super) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

async fn proxies(app: SocketAddr) -> [Proxy; 2] {
    [in_direction(app, Direction::Outbound).await, in_direction(app, Direction::Inbound).await]
}

async fn in_direction(app: SocketAddr, direction: Direction) -> Proxy {
    let resources = [
        Resource::Cluster(Arc::new(cluster("app", UpstreamHttp::Http1))),
        Resource::Endpoints(endpoints("app", vec![endpoint(app)])),
        Resource::Routes(Arc::new(to(forward(&[("app", 1)])))),
    ];
    let options = ProxyOptions { downstream: Downstream { direction, ..downstream() }, ..ProxyOptions::default() };
    Proxy::new(resources, options).await
}

/// Everything that comes back until the proxy ends the connection, which it has to do by itself.
async fn answers(proxy: &Proxy, bytes: &[u8]) -> String {
    let mut stream = proxy.raw().await;
    stream.write_all(bytes).await.unwrap();
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    soon(async {
        // A reset ends it too.
        while let Ok(n @ 1..) = stream.read(&mut piece).await {
            text.extend_from_slice(&piece[..n]);
        }
    })
    .await;
    String::from_utf8(text).unwrap()
}

const NEXT: &str = "GET /smuggled HTTP/1.1\r\nHost: app.test\r\n\r\n";

/// The head that ends in `rest` is refused, and what comes after it is not looked at.
async fn refused(rests: &[&str]) {
    let witness = Witness::new().await;
    for proxy in proxies(witness.app.address).await {
        for rest in rests {
            let text = answers(&proxy, format!("POST / HTTP/1.1\r\nHost: app.test\r\n{rest}{NEXT}").as_bytes()).await;
            assert!(text.starts_with("HTTP/1.1 4"), "{rest:?}: {text}");
            assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{rest:?}: {text}");
        }
    }
    assert_eq!(witness.seen(), [""; 0]);
}

#[tokio::test]
async fn a_length_beside_chunks() {
    refused(&[
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ])
    .await;
}

#[tokio::test]
async fn lengths_that_are_several_signed_or_no_numbers() {
    refused(&[
        "Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
        "Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
        "Content-Length: 0, 0\r\n\r\n",
        "Content-Length: +0\r\n\r\n",
        "Content-Length: -0\r\n\r\n",
        "Content-Length: 0x0\r\n\r\n",
        "Content-Length: 0 0\r\n\r\n",
        "Content-Length: \r\n\r\n",
        "Content-Length: 18446744073709551616\r\n\r\n",
    ])
    .await;
}

#[tokio::test]
async fn transfer_codings_that_are_not_chunked() {
    refused(&[
        "Transfer-Encoding: identity\r\n\r\n",
        "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ])
    .await;
    // HTTP/1.0 has none.
    let witness = Witness::new().await;
    let proxy = in_direction(witness.app.address, Direction::Outbound).await;
    let text = answers(&proxy, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await;
    assert!(text.starts_with("HTTP/1.0 400 ") || text.starts_with("HTTP/1.1 400 "), "{text}");
    assert_eq!(witness.seen(), [""; 0]);
}

#[tokio::test]
async fn lines_that_end_with_lf_alone() {
    refused(&["A: b\nContent-Length: 0\r\n\r\n", "A: b\n\r\n", "\n", "A: b\r\n\n"]).await;
}

#[tokio::test]
async fn cr_within_a_line() {
    refused(&["A: b\rContent-Length: 44\r\n\r\n", "A: b\r\r\n\r\n", "A\r: b\r\n\r\n", "A: b\r\n\r\r\n"]).await;
}

#[tokio::test]
async fn a_line_that_goes_on_the_one_before_it() {
    refused(&[
        "A: b\r\n c\r\n\r\n",
        "A: b\r\n\tContent-Length: 44\r\n\r\n",
        "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    ])
    .await;
}

#[tokio::test]
async fn white_space_before_the_colon() {
    refused(&["Content-Length : 44\r\n\r\n", "Transfer-Encoding\t: chunked\r\n\r\n", "A B: c\r\n\r\n", " : c\r\n\r\n"])
        .await;
}

#[tokio::test]
async fn cve_2019_9900_nul_in_a_header() {
    refused(&["A: b\0c\r\n\r\n", "A\0: b\r\n\r\n", "A: \0\r\n\r\n"]).await;
}

#[tokio::test]
async fn chunks_of_unclear_length() {
    let long = format!("Transfer-Encoding: chunked\r\n\r\n1;{}\r\na\r\n0\r\n\r\n", "e".repeat(2000));
    refused(&[
        &long,
        "Transfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n1;a\nb\r\na\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n10000000000000001\r\na\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n1\r\nab0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n1\r\na0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 44\r\n\r\n",
    ])
    .await;
}

#[tokio::test]
async fn a_chunk_that_turns_bad_after_the_head_went_on_ends_the_connection() {
    let witness = Witness::new().await;
    for (number, proxy) in proxies(witness.app.address).await.iter().enumerate() {
        let mut stream = proxy.raw().await;
        let head = "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        until("the head went on", || witness.seen().len() > number).await;
        stream.write_all(format!("1\na\r\n0\r\n\r\n{NEXT}").as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let _ = soon(stream.read_to_end(&mut rest)).await;
        assert!(!String::from_utf8_lossy(&rest).contains("served"), "{rest:?}");
    }
    assert_eq!(witness.seen(), ["POST /", "POST /"]);
}

#[tokio::test]
async fn extensions_of_chunks_do_not_go_on() {
    let app = App::raw(|mut stream, _| async move {
        let text = read_until(&mut stream, "0\r\n\r\n").await;
        assert!(text.contains("\r\n2\r\nab\r\n0\r\n\r\n"), "{text}");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut stream = proxy.raw().await;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;x=\"y\"\r\nab\r\n0;z\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(read_until(&mut stream, "ok").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn an_upgrade_with_a_body() {
    refused(&[
        "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 44\r\n\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ])
    .await;
    let witness = Witness::new().await;
    let proxy = in_direction(witness.app.address, Direction::Outbound).await;
    let text = answers(&proxy, b"CONNECT db.test:1 HTTP/1.1\r\nHost: db.test:1\r\nContent-Length: 44\r\n\r\n").await;
    assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
    // That of a client that offers HTTP/2 on the side is none: it is ignored, and its body is a body.
    let mut stream = proxy.raw().await;
    let head = "POST /h2c HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n";
    stream.write_all(format!("{head}Content-Length: 2\r\n\r\nab{NEXT}").as_bytes()).await.unwrap();
    let text = read_until(&mut stream, "served").await;
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    until("both were served", || witness.seen() == ["POST /h2c", "GET /smuggled"]).await;
}

fn no_admin() -> Authorization {
    let path = Condition::Path(StringMatch::Prefix("/admin".to_owned()));
    let policy = Policy { name: "no-admin".to_owned(), permissions: vec![path], principals: vec![Condition::Any] };
    Authorization { gates: vec![Gate { action: GateAction::Deny, dry_run: false, policies: vec![policy] }] }
}

/// The application refuses the upgrade; what the client then sends is requests like any others, not bytes of a tunnel.
#[tokio::test]
async fn cve_2018_1002105_a_failed_upgrade_is_no_tunnel() {
    let witness = Witness::new().await;
    let resources = [
        Resource::Cluster(Arc::new(cluster("app", UpstreamHttp::Http1))),
        Resource::Endpoints(endpoints("app", vec![endpoint(witness.app.address)])),
        Resource::Routes(Arc::new(to(forward(&[("app", 1)])))),
    ];
    let options = ProxyOptions { authorization: no_admin(), ..ProxyOptions::default() };
    let proxy = Proxy::new(resources, options).await;
    let upgrade = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let admin = "GET /admin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let text = answers(&proxy, format!("{upgrade}{admin}").as_bytes()).await;
    assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("HTTP/1.1 403 "), "{text}");
    assert_eq!(witness.seen(), ["GET /chat"]);
}

#[tokio::test]
async fn an_upgrade_that_nobody_asked_for_is_no_answer() {
    let app = App::raw(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
        stream.write_all(format!("{head}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil").as_bytes()).await.unwrap();
        let _ = stream.read(&mut [0; 100]).await;
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut client = proxy.http1().await;
    for _ in 0..2 {
        let answer = client.get("/").await;
        assert_eq!(answer.status.as_u16(), 502, "{}", answer.text());
    }
    // Nothing of it was kept for the next request.
    assert_eq!(app.connections(), 2);
}

#[tokio::test]
async fn heads_that_are_too_large_and_headers_that_are_too_many() {
    let witness = Witness::new().await;
    for proxy in proxies(witness.app.address).await {
        for head in ["X: 1\r\n".repeat(101), format!("X: {}\r\n", "1".repeat(70 << 10)), "X: y\r\n".repeat(20_000)] {
            let text = answers(&proxy, format!("GET / HTTP/1.1\r\nHost: a\r\n{head}\r\n").as_bytes()).await;
            assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{text}");
        }
    }
    assert_eq!(witness.seen(), [""; 0]);
}

#[tokio::test]
async fn hosts_that_name_none() {
    let witness = Witness::new().await;
    let proxy = in_direction(witness.app.address, Direction::Outbound).await;
    for host in ["a b", "a/b", "a\\b", "a\u{e9}", "a#b", "a,b c", "a?b"] {
        let text = answers(&proxy, format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n{NEXT}").as_bytes()).await;
        assert!(text.starts_with("HTTP/1.1 400 "), "{host}: {text}");
    }
    assert_eq!(witness.seen(), [""; 0]);
}
