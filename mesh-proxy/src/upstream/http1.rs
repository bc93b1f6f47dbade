//! HTTP/1.1 connections to an endpoint: one request at a time on each, kept for the next one.
//!
//! A connection is driven by the task that uses it, not by a task of its own: handing a request to another task and
//! waiting for the answer would cost two wake-ups for each request. What the driver does wakes nobody, because the one
//! who asked is the one who drives; so everything is first polled with a waker that does nothing, and with the task's
//! waker only when there is really something to wait for.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use mesh_common::names::ALPN_HTTP1;
use tokio::sync::oneshot;

use super::cluster::View;
use super::host::Host;
use super::usage::Connection;
use super::{Failed, UpstreamStream};
use crate::error::{Error, Kind};
use crate::http::RequestBody;

/// Unused connections are closed after this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The most unused connections to one endpoint.
const MAX_IDLE: usize = 512;

/// Boxed because the type of a connection that may be upgraded has no name.
type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// A connection and what drives it.
pub(super) struct Conn {
    send: SendRequest<RequestBody>,
    /// `None`: it has ended. Only when it is dropped does it let go of a request that it has not sent, or of a body.
    driver: Option<Driver>,
    /// It has served a request before.
    used: bool,
    idle_since: Instant,
    in_use: Connection,
}

impl Conn {
    async fn handshake(io: UpstreamStream, in_use: Connection) -> Result<Self, Error> {
        let (send, connection) =
            Builder::new().handshake(TokioIo::new(io)).await.map_err(|e| Error::because(Kind::UpstreamConnect, e))?;
        let driver: Driver = Box::pin(connection.with_upgrades());
        Ok(Self { send, driver: Some(driver), used: false, idle_since: Instant::now(), in_use })
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        // Its errors reach the request or the body as well.
        if self.driver.as_mut().is_some_and(|driver| driver.as_mut().poll(cx).is_ready()) {
            self.driver = None;
        }
    }

    /// Whether it can take a request now.
    fn is_ready(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && self.send.is_ready()
    }

    /// Sends a request and waits for the head of the response.
    async fn send(mut self, request: Request<RequestBody>, host: &Arc<Host>) -> Result<Response<Http1Body>, Failed> {
        let used = std::mem::replace(&mut self.used, true);
        let upload = request.body().upload().cloned();
        let gate = request.body().gate().cloned();
        let connect = request.method() == Method::CONNECT;
        let mut response = pin!(self.send.try_send_request(request));
        let answer = poll_fn(|cx| {
            let mut quiet = Context::from_waker(Waker::noop());
            self.drive(&mut quiet);
            if let Poll::Ready(answer) = response.as_mut().poll(&mut quiet) {
                return Poll::Ready(answer);
            }
            self.drive(cx);
            match self.driver {
                Some(_) => response.as_mut().poll(&mut quiet),
                // Nothing wakes the task any more but the answer itself, should it not be taken now.
                None => response.as_mut().poll(cx),
            }
        });
        let response = answer.await.map_err(|mut failed| {
            let request = failed.take_message();
            let error = failed.into_error();
            let kind = match &request {
                Some(_) => Kind::UpstreamResetBeforeRequest,
                None => match upload.as_ref().and_then(|it| it.failed()) {
                    Some(kind) => kind,
                    None if error.is_parse() => Kind::UpstreamProtocol,
                    None => Kind::UpstreamReset,
                },
            };
            // A connection that lay in the pool may have been closed while the request was on its way.
            let stale = used && kind == Kind::UpstreamReset;
            Failed { error: Error::because(kind, error), request: request.map(Box::new), stale }
        })?;
        // What was announced and is not sent is waited for by the server: this connection has no other request.
        let refused = gate.is_some_and(|gate| gate.shut());
        let upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS || connect && response.status().is_success();
        let uploading = !refused && upload.is_some_and(|it| !it.delivered());
        Ok(response.map(|incoming| {
            if upgrade || uploading {
                // Both directions go on independently of each other from here on.
                tokio::spawn(self.detach());
                Http1Body { incoming, conn: None }
            } else {
                let mut body = Http1Body { incoming, conn: Some((self, host.clone())) };
                body.release_at_end();
                body
            }
        }))
    }

    async fn detach(self) {
        let Self { send, driver, in_use, .. } = self;
        // So it ends when both directions have; the server would wait for another request.
        drop(send);
        if let Some(driver) = driver
            && let Err(error) = driver.await
        {
            tracing::debug!(%error, "an upstream connection ended");
        }
        drop(in_use);
    }
}

/// Sends a request on a connection of the pool, or on a new one.
pub(super) async fn send(
    host: &Arc<Host>,
    view: &Arc<View>,
    mut request: Request<RequestBody>,
) -> Result<Response<Http1Body>, Failed> {
    loop {
        let conn = match acquire(host, view).await {
            Ok(conn) => conn,
            Err(error) => return Err(Failed { error, request: Some(Box::new(request)), stale: false }),
        };
        let used = conn.used;
        match conn.send(request, host).await {
            // It was closed before anything was written: another one will do. Ends at a connection that is new.
            Err(Failed { request: Some(again), .. }) if used => request = *again,
            other => return other,
        }
    }
}

/// Has a connection made if there is none that a request can take now.
pub(super) async fn connected(host: &Arc<Host>, view: &Arc<View>) -> Result<(), Error> {
    let conn = acquire(host, view).await?;
    host.http1.put(conn, host.is_retired());
    Ok(())
}

/// The latest connection that was given back, or the first that becomes free: a new one, or one that is given back
/// while the new one is being made.
async fn acquire(host: &Arc<Host>, view: &Arc<View>) -> Result<Conn, Error> {
    while let Some(mut conn) = host.http1.pop() {
        if conn.is_ready() {
            return Ok(conn);
        }
    }
    let _pending = view.usage.pending(&view.cluster.limits)?;
    let (receiver, connect) = host.http1.wait();
    if connect {
        tokio::spawn(open(host.clone(), view.clone()));
    }
    receiver.await.unwrap_or_else(|_| Err(Error::because(Kind::UpstreamConnect, "the proxy is ending")))
}

/// Makes a connection for whoever has waited longest.
async fn open(host: Arc<Host>, view: Arc<View>) {
    let Some(in_use) = room(&host, &view).await else { return };
    let opened = match view.connector.connect(&host, ALPN_HTTP1).await {
        Ok(io) => Conn::handshake(io, in_use).await,
        Err(error) => Err(error),
    };
    host.http1.opened(opened, host.is_retired());
}

/// Waits until the cluster may have one more connection, as long as somebody waits for it.
async fn room(host: &Host, view: &View) -> Option<Connection> {
    loop {
        let mut freed = pin!(view.usage.connection_freed());
        // From here on: one that is freed before it is waited for is for one of several otherwise.
        freed.as_mut().enable();
        if let Some(in_use) = view.usage.connection_of(&host.http1.connections, &view.cluster.limits) {
            return Some(in_use);
        }
        freed.await;
        if host.http1.give_up_connecting() {
            // What was freed is for somebody else.
            view.usage.pass_on();
            return None;
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Pool {
    inner: Mutex<Inner>,
    /// Open or being made.
    connections: Arc<AtomicU32>,
}

#[derive(Default)]
struct Inner {
    idle: Vec<Conn>,
    waiting: VecDeque<oneshot::Sender<Result<Conn, Error>>>,
    connecting: usize,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} idle, {} waiting, {} connecting", self.idle.len(), self.waiting.len(), self.connecting)
    }
}

impl Inner {
    /// Hands it to whoever has waited longest, or keeps it.
    fn give(&mut self, mut conn: Conn, keep: bool) {
        while let Some(waiter) = self.waiting.pop_front() {
            match waiter.send(Ok(conn)) {
                Ok(()) => return,
                Err(Ok(back)) => conn = back,
                Err(Err(_)) => return,
            }
        }
        if keep && self.idle.len() < MAX_IDLE {
            self.idle.push(conn);
        }
    }
}

impl Pool {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pop(&self) -> Option<Conn> {
        self.inner().idle.pop()
    }

    /// A place in the queue, and whether a connection is to be made for it.
    fn wait(&self) -> (oneshot::Receiver<Result<Conn, Error>>, bool) {
        let (sender, receiver) = oneshot::channel();
        let mut inner = self.inner();
        inner.waiting.retain(|waiter| !waiter.is_closed());
        inner.waiting.push_back(sender);
        let connect = inner.connecting < inner.waiting.len();
        inner.connecting += usize::from(connect);
        (receiver, connect)
    }

    fn opened(&self, opened: Result<Conn, Error>, retired: bool) {
        let mut inner = self.inner();
        inner.connecting -= 1;
        match opened {
            Ok(conn) => inner.give(conn, !retired),
            Err(error) => {
                let waiter = std::iter::from_fn(|| inner.waiting.pop_front()).find(|waiter| !waiter.is_closed());
                if let Some(waiter) = waiter {
                    // Whoever has gone needs no error.
                    let _ = waiter.send(Err(error));
                }
            }
        }
    }

    /// Nobody waits any more.
    fn give_up_connecting(&self) -> bool {
        let mut inner = self.inner();
        inner.waiting.retain(|waiter| !waiter.is_closed());
        let unneeded = inner.waiting.len() < inner.connecting;
        inner.connecting -= usize::from(unneeded);
        unneeded
    }

    fn put(&self, mut conn: Conn, retired: bool) {
        conn.idle_since = Instant::now();
        self.inner().give(conn, !retired);
    }

    pub(super) fn clear(&self) {
        let idle = std::mem::take(&mut self.inner().idle);
        drop(idle);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.inner().idle.is_empty()
    }

    /// Closes connections that were unused for long or were closed by the other side.
    pub(super) fn sweep(&self, now: Instant) {
        let mut kept = std::mem::take(&mut self.inner().idle);
        kept.retain_mut(|conn| now.saturating_duration_since(conn.idle_since) < IDLE_TIMEOUT && conn.is_ready());
        let mut inner = self.inner();
        // Those that came back meanwhile are the latest.
        kept.append(&mut inner.idle);
        inner.idle = kept;
        while !inner.waiting.is_empty()
            && let Some(conn) = inner.idle.pop()
        {
            inner.give(conn, true);
        }
    }
}

/// The body of a response, which drives its connection and gives it back at its end.
pub(crate) struct Http1Body {
    incoming: Incoming,
    conn: Option<(Conn, Arc<Host>)>,
}

impl Http1Body {
    fn release_at_end(&mut self) {
        if self.incoming.is_end_stream() {
            self.release();
        }
    }

    fn release(&mut self) {
        if let Some((mut conn, host)) = self.conn.take()
            && conn.is_ready()
        {
            host.http1.put(conn, host.is_retired());
        }
    }
}

impl Body for Http1Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let mut quiet = Context::from_waker(Waker::noop());
        let frame = match &mut this.conn {
            None => Pin::new(&mut this.incoming).poll_frame(cx),
            Some((conn, _)) => {
                let mut frame = Pin::new(&mut this.incoming).poll_frame(&mut quiet);
                if frame.is_pending() {
                    conn.drive(&mut quiet);
                    frame = Pin::new(&mut this.incoming).poll_frame(&mut quiet);
                }
                if frame.is_pending() {
                    conn.drive(cx);
                    frame = Pin::new(&mut this.incoming).poll_frame(cx);
                }
                frame
            }
        };
        match frame {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(_))) => this.release_at_end(),
            Poll::Ready(None) => this.release(),
            Poll::Ready(Some(Err(_))) => this.conn = None,
        }
        frame.map_err(|e| Error::because(Kind::UpstreamReset, e))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::config::Limits;
    use crate::upstream::usage::Usage;

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_request_comes_back_from_a_connection_that_ended_since_it_was_found_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let io = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        io.set_nonblocking(true).unwrap();
        let twin = TcpStream::from_std(io.try_clone().unwrap()).unwrap();
        let host = Arc::new(Host::new(([127, 0, 0, 1], 1).into(), false));
        let limits = Limits { max_connections: 1, max_pending: 1, max_requests: 1, max_retries: 1, retry_budget: None };
        let in_use = Arc::new(Usage::default()).connection_of(&host.http1.connections, &limits).unwrap();
        let io = UpstreamStream::Plain(TcpStream::from_std(io).unwrap());
        let conn = Conn::handshake(io, in_use).await.unwrap();
        let get = || Request::get("/").body(RequestBody::empty()).unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let serve = async {
            server.read_exact(&mut [0; b"GET / HTTP/1.1\r\n\r\n".len()]).await.unwrap();
            server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        };
        assert!(tokio::join!(conn.send(get(), &host), serve).0.is_ok());
        let mut conn = host.http1.pop().unwrap();
        assert!(conn.is_ready());
        // Both sockets are told of the end at once, when both know of nothing else to read.
        assert!(twin.try_read(&mut [0]).is_err());
        drop(server);
        assert_eq!(twin.peek(&mut [0]).await.unwrap(), 0);
        let sent = tokio::time::timeout(SOON, conn.send(get(), &host)).await.expect("took too long");
        assert_eq!(sent.err().and_then(|it| it.request).unwrap().uri(), "/");
    }
}
