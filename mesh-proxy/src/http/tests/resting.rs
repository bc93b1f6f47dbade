//! HTTP/1 connections on which nothing happens.

use std::io;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};

use super::super::io::DownstreamIo;
use super::*;
use crate::tcp::copy::Stream;

/// Shows with how much room it was last read: where hyper reads, it is what its buffer has.
struct Watched {
    io: DuplexStream,
    room: Arc<AtomicUsize>,
}

impl Stream for Watched {}

impl DownstreamIo for Watched {
    fn reset_on_close(&self) {}
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.room.store(buf.remaining(), Ordering::SeqCst);
        Pin::new(&mut this.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

struct Client {
    io: DuplexStream,
    room: Arc<AtomicUsize>,
}

impl Client {
    /// Of a connection that carries so many bytes on the way, to an application that answers with this.
    async fn new(proxy: &Proxy, on_the_way: usize) -> Self {
        let (io, there) = duplex(on_the_way);
        let room = Arc::new(AtomicUsize::new(0));
        let watched = Watched { io: there, room: room.clone() };
        tokio::spawn(serve(watched, Arc::new(downstream()), Arc::new(manager(rds())), proxy.ctx.clone()));
        Self { io, room }
    }

    async fn rests(&self) {
        until("at rest", || self.room.load(Ordering::SeqCst) == super::super::io::FIRST_READ).await;
    }

    /// Of a connection that has served a request and rests.
    async fn at_rest(proxy: &Proxy) -> Self {
        let mut client = Self::new(proxy, 65536).await;
        client.send(GET).await;
        client.read_until("ok").await;
        client.rests().await;
        client
    }

    async fn send(&mut self, text: &str) {
        self.io.write_all(text.as_bytes()).await.unwrap();
    }

    async fn read_until(&mut self, end: &str) -> String {
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).ends_with(end) {
            let n = soon(self.io.read_buf(&mut text)).await.unwrap();
            assert!(n > 0, "ended after {:?}", String::from_utf8_lossy(&text));
        }
        String::from_utf8(text).unwrap()
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn it_rests_without_buffers_and_goes_on() {
    let app = App::named("ok").await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut client = Client::new(&proxy, 65536).await;
    for _ in 0..3 {
        client.send(&GET[..9]).await;
        client.send(&GET[9..]).await;
        assert!(client.read_until("ok").await.starts_with("HTTP/1.1 200"));
        client.rests().await;
    }
    // Two at once, of which the first read takes a part.
    client.send(&format!("{GET}{}", GET.replace("\r\n\r\n", &format!("\r\na: {}\r\n\r\n", "x".repeat(5000))))).await;
    client.read_until("ok").await;
    client.read_until("ok").await;
    assert_eq!(proxy.recorded(&["response_code=\"200\""]), 5);
}

#[tokio::test]
async fn it_does_not_rest_in_the_middle_of_a_head() {
    let app = App::http1(|request| async move { reply(request.uri().path().to_owned()) }).await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut client = Client::new(&proxy, 65536).await;
    // All of it in one read, and then much longer than a connection is idle before it rests.
    client.send(&format!("{GET}GET /x HTTP/1.1\r\nX: ")).await;
    client.read_until("\r\n\r\n/").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.send("GET /admin HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let text = client.read_until("/x").await;
    assert!(text.starts_with("HTTP/1.1 200 ") && !text.contains("/admin"), "{text}");
    client.rests().await;
}

#[tokio::test]
async fn where_requests_end_is_still_watched_after_it() {
    let app = App::named("ok").await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut client = Client::at_rest(&proxy).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await;
    let mut text = String::new();
    soon(client.io.read_to_string(&mut text)).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 400"), "{text}");
}

#[tokio::test]
async fn it_does_not_rest_while_a_response_is_on_its_way() {
    const SIZE: usize = 100_000;
    let app = App::http1(|_| async { reply("x".repeat(SIZE)) }).await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut client = Client::new(&proxy, 1024).await;
    client.send(GET).await;
    // Until all of it is in the connection's buffer, and much longer than a connection is idle before it rests.
    until("recorded", || proxy.recorded(&["response_code=\"200\""]) == 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut body = 0;
    let mut piece = [0; 4096];
    while body < SIZE {
        let n = soon(client.io.read(&mut piece)).await.unwrap();
        assert!(n > 0, "ended after {body} bytes");
        body += piece[..n].iter().filter(|byte| **byte == b'x').count();
    }
}

#[tokio::test]
async fn it_ends_with_the_proxy() {
    let app = App::named("ok").await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut client = Client::at_rest(&proxy).await;
    proxy.phase.send_replace(Phase::Ending);
    assert_eq!(soon(client.io.read(&mut [0])).await.unwrap(), 0);
}
