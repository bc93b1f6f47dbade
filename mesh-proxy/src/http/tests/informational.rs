//! Informational responses other than 100 (Continue) are for whoever can use them, and go no further than the proxy; what
//! follows them is not touched.

use super::*;

async fn http1_app() -> App {
    App::raw(|mut stream, _| async move {
        for _ in 0..3 {
            read_until(&mut stream, "\r\n\r\n").await;
            let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";
            let processing = "HTTP/1.1 102 Processing\r\n\r\n";
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-From: app\r\n\r\nwhole";
            stream.write_all(format!("{hints}{processing}{hints}{answer}").as_bytes()).await.unwrap();
        }
    })
    .await
}

async fn http2_app() -> App {
    App::raw(|stream, _| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            for status in [103, 102, 103] {
                let hints = Response::builder().status(status).header("link", "</a.css>; rel=preload");
                respond.send_informational(hints.body(()).unwrap()).unwrap();
            }
            let head = Response::builder().header("x-from", "app").header("content-length", "5");
            let mut body = respond.send_response(head.body(()).unwrap(), false).unwrap();
            body.send_data(Bytes::from_static(b"whole"), true).unwrap();
        }
    })
    .await
}

/// Three requests over one connection each, so that a response that belongs to none would be seen.
async fn is_whole(proxy: &Proxy) {
    let mut client = Client2::connect(proxy.address).await;
    for _ in 0..3 {
        let request = Request::get("http://app.test/").body(full("")).unwrap();
        let answer = client.answer(request).await;
        assert_eq!((answer.status.as_u16(), answer.text(), answer.header("x-from")), (200, "whole", "app"));
        assert_eq!(answer.header("link"), "");
    }
    let mut stream = proxy.raw().await;
    for _ in 0..3 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await.unwrap();
        let text = read_until(&mut stream, "whole").await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("x-from: app\r\n"), "{text}");
        assert!(!text.contains("link:"), "{text}");
    }
}

#[tokio::test]
async fn early_hints_leave_the_response_whole() {
    let app = http1_app().await;
    is_whole(&Proxy::simple(UpstreamHttp::Http1, &[app.address]).await).await;
    let (outbound, _inbound) = pair(UpstreamHttp::Http1, app.address).await;
    is_whole(&outbound).await;

    let app = http2_app().await;
    is_whole(&Proxy::simple(UpstreamHttp::Http2, &[app.address]).await).await;
    let (outbound, _inbound) = pair(UpstreamHttp::Http2, app.address).await;
    is_whole(&outbound).await;
}
