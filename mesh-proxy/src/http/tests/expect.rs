//! `Expect: 100-continue`: the server decides, not the proxy.

use super::*;

const HEAD: &str = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";

/// Reads the head, then asks for the body with 100, or refuses it with 417.
async fn app(wants: bool) -> App {
    App::raw(move |mut stream, _| async move {
        let head = read_until(&mut stream, "\r\n\r\n").await;
        assert!(head.contains("expect: 100-continue\r\n"), "{head}");
        if !wants {
            stream.write_all(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            assert!(rest.is_empty(), "the body was not asked for");
            return;
        }
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        let body = read_until(&mut stream, "body").await;
        stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{body}").as_bytes()).await.unwrap();
    })
    .await
}

async fn asks(proxy: &Proxy) {
    let mut stream = proxy.raw().await;
    stream.write_all(HEAD.as_bytes()).await.unwrap();
    assert_eq!(read_until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"body").await.unwrap();
    let answer = read_until(&mut stream, "body").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

async fn refuses(proxy: &Proxy) {
    let mut stream = proxy.raw().await;
    stream.write_all(HEAD.as_bytes()).await.unwrap();
    let answer = read_until(&mut stream, "no").await;
    assert!(answer.starts_with("HTTP/1.1 417 Expectation Failed\r\n"), "{answer}");
}

#[tokio::test]
async fn the_body_is_asked_for_by_the_server() {
    let app = app(true).await;
    asks(&Proxy::simple(UpstreamHttp::Http1, &[app.address]).await).await;
    let (outbound, _inbound) = pair(UpstreamHttp::Downstream, app.address).await;
    asks(&outbound).await;
}

#[tokio::test]
async fn a_refusal_comes_before_the_body() {
    let app = app(false).await;
    refuses(&Proxy::simple(UpstreamHttp::Http1, &[app.address]).await).await;
    let (outbound, _inbound) = pair(UpstreamHttp::Downstream, app.address).await;
    refuses(&outbound).await;
}

#[tokio::test]
async fn a_refusal_arrives_whole() {
    const SIZE: usize = 200_000;
    let app = App::raw(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        let head = format!("HTTP/1.1 417 Expectation Failed\r\nContent-Length: {SIZE}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            stream.write_all(&[b'x'; SIZE / 4]).await.unwrap();
        }
        // It is not asked for anything else.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    for _ in 0..2 {
        let mut stream = proxy.raw().await;
        stream.write_all(HEAD.as_bytes()).await.unwrap();
        let answer = read_until(&mut stream, "x").await;
        let mut body = answer.len() - answer.find("\r\n\r\n").unwrap() - 4;
        let mut piece = [0; 4096];
        while body < SIZE {
            let n = soon(stream.read(&mut piece)).await.unwrap();
            assert!(n > 0, "ended after {body} bytes");
            body += n;
        }
    }
    assert_eq!(app.connections(), 2);
}

#[tokio::test]
async fn a_server_that_does_not_know_of_it_gets_the_body_anyway() {
    let app = App::raw(|mut stream, _| async move {
        read_until(&mut stream, "body").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut stream = proxy.raw().await;
    stream.write_all(HEAD.as_bytes()).await.unwrap();
    read_until(&mut stream, "100 Continue\r\n\r\n").await;
    stream.write_all(b"body").await.unwrap();
    assert!(read_until(&mut stream, "ok").await.starts_with("HTTP/1.1 200 OK\r\n"));
}
