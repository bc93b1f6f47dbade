//! Answers of the proxy itself.

use super::*;

async fn answering(status: StatusCode, body: &'static str) -> Proxy {
    let mut answer = route(Action::Direct { status, body: Bytes::from_static(body.as_bytes()) });
    let json = (http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer.response_headers = HeaderMutation { set: vec![json], ..HeaderMutation::default() };
    Proxy::with(table(vec![answer]), UpstreamHttp::Http1, &[]).await
}

#[tokio::test]
async fn the_proxy_answers_without_an_application() {
    let proxy = answering(StatusCode::IM_A_TEAPOT, "{}").await;
    let mut client = proxy.http1().await;
    for request in [get("/"), post("/", vec![0; 100_000])] {
        let answer = client.answer(request).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (418, "{}"));
        assert_eq!(answer.header("content-type"), "application/json");
    }
    let answer = Client2::connect(proxy.address).await.answer(Request::get("http://a/").body(full("")).unwrap()).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (418, "{}"));
    assert_eq!(proxy.recorded(&["response_code=\"418\"", "response_flags=\"-\""]), 3);
}

#[tokio::test]
async fn of_head_only_the_head() {
    let proxy = answering(StatusCode::OK, "{}").await;
    let mut stream = proxy.raw().await;
    for _ in 0..2 {
        stream.write_all(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let head = read_until(&mut stream, "\r\n\r\n").await;
        assert!(head.contains("content-length: 2\r\n"), "{head}");
    }
    let request = || Request::head("http://a/").body(full("")).unwrap();
    let answer = Client2::connect(proxy.address).await.answer(request()).await;
    assert_eq!((answer.header("content-length"), answer.text()), ("2", ""));
}

#[tokio::test]
async fn no_body() {
    let proxy = answering(StatusCode::NO_CONTENT, "").await;
    let mut client = proxy.http1().await;
    for _ in 0..2 {
        let answer = client.get("/").await;
        assert_eq!((answer.status.as_u16(), answer.text()), (204, ""));
    }
}
