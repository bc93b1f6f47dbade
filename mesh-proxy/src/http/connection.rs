//! A downstream connection and what serves it.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_common::names::{ALPN_H2, ALPN_HTTP1};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::drain::{Drain, reached};
use super::framing::MAX_HEAD;
use super::io::{DownstreamIo, Io, Keep, Signals};
use super::pipeline::handle;
use super::timer::{Timer, Timers};
use super::unused::unused;
use crate::config::{HttpManager, NetworkFilter};
use crate::inbound::Chosen;
use crate::listen::{Context, Direction, Downstream, Flight, Phase};

/// What an HTTP/2 client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long the head of a request may take from its first byte on.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// An HTTP/1 connection on which nothing happens for this long gives its buffers back. That costs the next request about as
/// much as a new connection would, without the handshake. Short in tests, so that all of them meet it.
const REST_AFTER: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 5000 });

const STREAM_WINDOW: u32 = 1 << 20;
/// Where the bandwidth of the application's port is limited.
const PACED_STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 16 << 20;
const MAX_FRAME: u32 = 64 << 10;
/// As RFC 9113 (6.5.2) counts. h2 passes on none that is larger, and ends a connection at four times as much.
const MAX_HEADERS: u32 = 64 << 10;
const MAX_STREAMS: u32 = 1000;
/// Header lines of an HTTP/1 request: what hyper has room for without an allocation. More are answered with 431.
const MAX_FIELDS_HTTP1: usize = 100;
/// What is read ahead of an HTTP/1 client, or of its response not yet taken by it.
const BUFFER_HTTP1: usize = 128 << 10;
/// Of streams that were reset while they waited to be looked at, and of resets that a client provoked by breaking the
/// protocol. More ends the connection with ENHANCE_YOUR_CALM.
const MAX_PENDING_RESETS: usize = 20;
const MAX_PROVOKED_RESETS: usize = 1000;
const SEND_BUFFER: usize = 512 << 10;
/// A client that has not answered a ping for this long is gone.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// What the requests of one connection share.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) downstream: Arc<Downstream>,
    /// As it was when the connection came.
    pub(super) manager: Arc<HttpManager>,
    /// By which it is known what the connection would be given now, and whether it would still be taken.
    chosen: Option<Chosen>,
    /// The SPIFFE ID that the peer proved to have.
    pub(crate) identity: Option<String>,
    pub(crate) ctx: Arc<Context>,
    pub(crate) timers: Timers,
    pub(crate) signals: Arc<Signals>,
}

impl Connection {
    pub(super) fn new(
        downstream: Arc<Downstream>,
        manager: Arc<HttpManager>,
        chosen: Option<Chosen>,
        ctx: Arc<Context>,
        signals: Arc<Signals>,
    ) -> Self {
        let identity = downstream.identity.as_deref().map(ToString::to_string);
        Self { downstream, manager, chosen, identity, ctx, timers: Timers::default(), signals }
    }

    /// The connection manager for the next request; `None` if connections like this one are not taken any more.
    pub(super) fn manager(&self) -> Option<Arc<HttpManager>> {
        let Some(chosen) = &self.chosen else { return Some(self.manager.clone()) };
        match (chosen.now(&self.ctx.store), self.downstream.direction) {
            (Some(NetworkFilter::Http(manager)), _) => Some(manager),
            // The application goes on as it began.
            (_, Direction::Outbound) => Some(self.manager.clone()),
            (_, Direction::Inbound) => None,
        }
    }
}

/// Serves HTTP/1.1 or HTTP/2 (by ALPN or by preface) on a downstream connection until it ends.
///
/// A peer that calls the application is asked to go elsewhere as soon as the proxy drains, and served until it does: by
/// GOAWAY over HTTP/2, with the next response over HTTP/1.1. One that connects later knows no other place yet, and is
/// told when the proxy closes. The application itself is told at the proxy's end.
pub async fn serve<IO: DownstreamIo>(
    io: IO,
    downstream: Arc<Downstream>,
    manager: Arc<HttpManager>,
    ctx: Arc<Context>,
) {
    serve_until_end(io, downstream, manager, None, Signals::new(), ctx).await;
}

/// The same for a connection of the application, which follows the listener that it was given.
pub(crate) async fn serve_application<IO: DownstreamIo>(
    io: IO,
    downstream: Arc<Downstream>,
    manager: Arc<HttpManager>,
    chosen: Option<Chosen>,
    ctx: Arc<Context>,
) {
    serve_until_end(io, downstream, manager, chosen, Signals::new(), ctx).await;
}

/// The same for a peer's connection, which may bring its first request at any moment.
pub(crate) async fn serve_peer<IO: DownstreamIo>(
    io: IO,
    downstream: Arc<Downstream>,
    manager: Arc<HttpManager>,
    chosen: Chosen,
    arriving: Flight,
    ctx: Arc<Context>,
) {
    serve_until_end(io, downstream, manager, Some(chosen), Signals::arriving(arriving), ctx).await;
}

async fn serve_until_end<IO: DownstreamIo>(
    mut io: IO,
    downstream: Arc<Downstream>,
    manager: Arc<HttpManager>,
    chosen: Option<Chosen>,
    signals: Signals,
    ctx: Arc<Context>,
) {
    let last = match downstream.direction {
        Direction::Inbound => Phase::Closing,
        Direction::Outbound => Phase::Ending,
    };
    let early = downstream.direction == Direction::Inbound && *ctx.phase.borrow() < Phase::Draining;
    let goaway = if early { Phase::Draining } else { last };
    let mut close = Drain::new(ctx.phase.clone(), last);
    let detected = tokio::select! {
        biased;
        detected = version(&mut io, &downstream) => detected,
        () = poll_fn(|cx| close.poll(cx)) => return,
    };
    let (http2, before) = match detected {
        Ok(version) => version,
        Err(error) => {
            return tracing::debug!(peer = %downstream.peer, %error, "a connection ended before its first request");
        }
    };
    let signals = Arc::new(signals);
    let io = Io::new(io, signals.clone(), before);
    let conn = Arc::new(Connection::new(downstream, manager, chosen, ctx, signals));
    let served =
        if http2 { serve_http2(io, conn.clone(), goaway).await } else { serve_http1(io, conn.clone(), close).await };
    conn.signals.tunnels_ended().await;
    if let Err(error) = served {
        tracing::debug!(peer = %conn.downstream.peer, %error, "a downstream connection ended");
    }
}

async fn serve_http1<IO: DownstreamIo>(io: Io<IO>, conn: Arc<Connection>, close: Drain) -> hyper::Result<()> {
    let leave = match conn.downstream.direction {
        Direction::Inbound => Some(Drain::new(conn.ctx.phase.clone(), Phase::Draining)),
        Direction::Outbound => None,
    };
    let mut until = Until { close, leave, conn };
    let (mut io, keep) = io.framed();
    loop {
        // Boxed, so that it takes no memory while the connection rests.
        let served = Box::pin(serve_http1_awake(io, &mut until));
        match served.await {
            Awake::Ended(result) => return result,
            Awake::Rests => (),
        }
        match until.woken(&keep).await {
            Some(woken) => io = woken,
            None => return Ok(()),
        }
    }
}

/// Why an HTTP/1 connection is not served any more.
enum Awake {
    Ended(hyper::Result<()>),
    /// For as long as its client sends nothing.
    Rests,
}

async fn serve_http1_awake<IO: DownstreamIo>(io: Io<IO>, until: &mut Until) -> Awake {
    let conn = until.conn.clone();
    let patience = Patience { conn: conn.clone() };
    let mut served = pin!(
        http1::Builder::new()
            .timer(patience)
            // The time itself is up to `Patience`.
            .header_read_timeout(HEAD_TIMEOUT)
            .max_headers(MAX_FIELDS_HTTP1)
            .max_header_size(MAX_HEAD)
            .max_buf_size(BUFFER_HTTP1)
            .serve_connection(TokioIo::new(io), service_fn(move |request| handle(conn.clone(), request)))
            .with_upgrades()
    );
    poll_fn(|cx| {
        if until.poll_close(cx).is_ready() {
            // This ends a connection that waits for its next request at once, which may be on its way already. So it is
            // left for when nobody is expected to have one.
            served.as_mut().graceful_shutdown();
        }
        match served.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(Awake::Ended(result)),
            Poll::Pending if !until.close.is_over() && until.conn.signals.may_rest() => Poll::Ready(Awake::Rests),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// What an HTTP/1 connection ends by, other than its client.
struct Until {
    close: Drain,
    leave: Option<Drain>,
    conn: Arc<Connection>,
}

impl Until {
    /// Ready once, when the connection is to end.
    fn poll_close(&mut self, cx: &mut TaskContext<'_>) -> Poll<()> {
        if self.leave.as_mut().is_some_and(|leave| leave.poll(cx).is_ready()) {
            self.conn.signals.leave();
        }
        self.close.poll(cx)
    }

    /// The connection, when its client has sent something; `None` if it ended before.
    async fn woken<IO: DownstreamIo>(&mut self, keep: &Keep<IO>) -> Option<Io<IO>> {
        let signals = self.conn.signals.clone();
        let idle = self.conn.manager.idle_timeout;
        let mut timer = (!idle.is_zero())
            .then(|| Instant::now().checked_add(idle.saturating_sub(REST_AFTER)))
            .flatten()
            .map(|deadline| self.conn.timers.at(deadline));
        let mut woken = pin!(keep.wake(&signals));
        poll_fn(|cx| {
            if self.poll_close(cx).is_ready() || timer.as_mut().is_some_and(|timer| timer.poll(cx).is_ready()) {
                return Poll::Ready(None);
            }
            woken.as_mut().poll(cx)
        })
        .await
    }
}

async fn serve_http2<IO: DownstreamIo>(io: Io<IO>, conn: Arc<Connection>, goaway: Phase) -> hyper::Result<()> {
    let (phase, holders) = (conn.ctx.phase.clone(), Arc::strong_count(&conn));
    let (signals, peer) = (conn.signals.clone(), conn.downstream.peer);
    let is_unused = unused(conn.clone(), holders);
    let mut goaway = Drain::when(async move {
        tokio::select! {
            () = reached(phase, goaway) => (),
            () = is_unused => (),
        }
    });
    // What waits of bodies that are taken slowly takes of the window that all streams of the connection share.
    let is_paced = conn.manager().is_some_and(|it| it.limits.as_ref().is_some_and(|limits| limits.up.is_some()));
    let stream_window = if is_paced { PACED_STREAM_WINDOW } else { STREAM_WINDOW };
    let mut served = pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(hyper_util::rt::TokioTimer::new())
            .initial_stream_window_size(stream_window)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(MAX_HEADERS)
            .max_concurrent_streams(MAX_STREAMS)
            .max_send_buf_size(SEND_BUFFER)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_PROVOKED_RESETS)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_INTERVAL)
            .serve_connection(TokioIo::new(io), service_fn(move |request| handle(conn.clone(), request)))
    );
    let served = poll_fn(|cx| {
        if goaway.poll(cx).is_ready() {
            served.as_mut().graceful_shutdown();
        }
        served.as_mut().poll(cx)
    });
    tokio::select! {
        served = served => served,
        // Not in peace: for that the client would have to do its part.
        () = signals.load.abused() => {
            tracing::debug!(%peer, "a client took nearly all of its requests back, and its connection ends");
            Ok(())
        }
    }
}

/// Whether the client speaks HTTP/2, and what was read to find out.
async fn version(io: &mut (impl AsyncRead + Unpin), downstream: &Downstream) -> io::Result<(bool, Bytes)> {
    match downstream.alpn.as_deref() {
        Some(alpn) if alpn == ALPN_H2 || alpn == b"h2" || alpn == b"h2c" => return Ok((true, Bytes::new())),
        Some(alpn) if alpn == ALPN_HTTP1 || alpn == b"http/1.1" => return Ok((false, Bytes::new())),
        _ => (),
    }
    let mut read = BytesMut::with_capacity(PREFACE.len());
    while read.len() < PREFACE.len() && PREFACE.starts_with(&read) {
        let mut limited = (&mut *io).take((PREFACE.len() - read.len()) as u64);
        let reading = limited.read_buf(&mut read);
        let n = tokio::time::timeout(HEAD_TIMEOUT, reading).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((read == PREFACE, read.freeze()))
}

/// How long an HTTP/1.1 connection is waited on for the next request: its head may take [`HEAD_TIMEOUT`] from its first
/// byte, and before that byte there is the connection's idle timeout.
struct Patience {
    conn: Arc<Connection>,
}

impl hyper::rt::Timer for Patience {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        let idle = self.conn.manager.idle_timeout;
        let began = deadline.checked_sub(HEAD_TIMEOUT).unwrap_or(deadline);
        let idle_until = began.checked_add(idle).filter(|_| !idle.is_zero());
        Box::pin(Wait { conn: self.conn.clone(), rest_at: Some(began + REST_AFTER), idle_until, timer: None })
    }
}

struct Wait {
    conn: Arc<Connection>,
    /// `None` once that has been said.
    rest_at: Option<Instant>,
    idle_until: Option<Instant>,
    timer: Option<Timer>,
}

impl hyper::rt::Sleep for Wait {}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            let head = this.conn.signals.head_began().map(|began| began + HEAD_TIMEOUT);
            let rest_at = this.rest_at.filter(|at| head.is_none() && this.idle_until.is_none_or(|until| *at < until));
            let Some(deadline) = head.or(rest_at).or(this.idle_until) else { return Poll::Pending };
            let timer = this.timer.get_or_insert_with(|| this.conn.timers.at(deadline));
            timer.set(deadline);
            ready!(timer.poll(cx));
            if rest_at.is_none() {
                return Poll::Ready(());
            }
            this.rest_at = None;
            this.conn.signals.rest();
        }
    }
}
