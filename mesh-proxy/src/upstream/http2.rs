//! HTTP/2 connections to an endpoint, shared by requests.
//!
//! Requests are put onto a connection by the task that has them; only reading from and writing to the socket is the
//! business of the connection's own task.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::{Request, Response};
use http_body::{Body, Frame};
use mesh_common::names::ALPN_H2;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use super::cluster::View;
use super::host::Host;
use super::usage::InUse;
use super::{Failed, UpstreamStream};
use crate::error::{Error, Kind};
use crate::http::{BodyError, Gathered, RequestBody};

/// Another connection is made when each has this many requests.
const STREAMS_PER_CONNECTION: usize = 100;
/// The most connections to one endpoint.
const MAX_CONNECTIONS: usize = 16;
/// Unused connections are closed after this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// How often a connection with requests is asked whether it is still alive, and how long it may take to answer.
const PING_INTERVAL: Duration = Duration::from_secs(15);
/// The same for an endpoint that was taken away.
const PARTING: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 3000 });

const STREAM_WINDOW: u32 = 1 << 20;
/// What a paced response that nobody takes yet keeps of its connection: hundreds of them leave room for others.
const PACED_STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 16 << 20;
const MAX_FRAME: u32 = 64 << 10;
const MAX_HEADERS: u32 = 64 << 10;
const SEND_BUFFER: usize = 512 << 10;

/// Which of an endpoint's connections a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Its response is taken as it comes.
    Free,
    /// It is taken slowly. What waits of it takes of the window that all streams of a connection share, so a few such could
    /// hold up everything else; they have connections of their own, with small windows.
    Paced,
}

/// A shared connection.
pub(super) struct Conn {
    send: SendRequest<Bytes>,
    streams: AtomicUsize,
    /// It takes no more requests.
    closed: AtomicBool,
    /// It has answered a request before.
    answered: AtomicBool,
    idle_since: Mutex<Instant>,
}

/// A request's place on a connection.
struct Place(Arc<Conn>);

impl Place {
    fn take(conn: &Arc<Conn>) -> Self {
        conn.streams.fetch_add(1, Ordering::Relaxed);
        Self(conn.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.0.streams.fetch_sub(1, Ordering::Relaxed) == 1 {
            *self.0.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
    }
}

/// Sends a request on a shared connection and waits for the head of the response.
pub(super) async fn send(
    host: &Arc<Host>,
    view: &Arc<View>,
    flow: Flow,
    request: Request<RequestBody>,
) -> Result<Response<Http2Body>, Failed> {
    let (place, mut sender) = loop {
        let place = match acquire(host, view, flow).await {
            Ok(place) => place,
            Err(error) => return Err(Failed { error, request: Some(Box::new(request)), stale: false }),
        };
        let mut sender = place.0.send.clone();
        // A handle of its own is always ready, unless the connection has ended or is about to (GOAWAY).
        match poll_fn(|cx| sender.poll_ready(cx)).await {
            Ok(()) => break (place, sender),
            Err(error) => {
                if asks_for_no_more(&error) {
                    host.leaves();
                }
                host.http2(flow).close(&place.0);
            }
        }
    };
    let (parts, body) = request.into_parts();
    let complete = body.is_end_stream();
    let (mut response, stream) = match sender.send_request(Request::from_parts(parts, ()), complete) {
        Ok(sent) => sent,
        Err(error) if error.is_go_away() || error.is_io() => {
            host.http2(flow).close(&place.0);
            return Err(Error::because(Kind::UpstreamResetBeforeRequest, error).into());
        }
        Err(error) => return Err(Error::because(Kind::DownstreamProtocol, error).into()),
    };
    let mut pump = (!complete).then(|| Pump { body, stream, begun: false });
    let answer = poll_fn(|cx| {
        match pump.as_mut().map(|pump| pump.poll(cx)) {
            Some(Poll::Ready(Ok(()))) => pump = None,
            Some(Poll::Ready(Err(Broken::Body(error)))) => {
                return Poll::Ready(Err(Failed::from(Error::because(error.kind(), error))));
            }
            // The upstream has ended the stream: the response says why.
            Some(Poll::Ready(Err(Broken::Stream))) => pump = None,
            Some(Poll::Pending) | None => (),
        }
        Pin::new(&mut response).poll(cx).map_err(|error| of_stream(error, &place.0))
    });
    let response = answer.await?;
    if !place.0.answered.load(Ordering::Relaxed) {
        place.0.answered.store(true, Ordering::Relaxed);
    }
    let pump = pump.map(|pump| tokio::spawn(pump.finish()).abort_handle());
    Ok(response.map(|recv| Http2Body { recv, data_ended: false, pump, _place: place }))
}

/// GOAWAY in peace, by which an endpoint that leaves tells its peers.
fn asks_for_no_more(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR)
}

/// What went wrong on a stream before its response.
fn of_stream(error: h2::Error, conn: &Conn) -> Failed {
    // A connection that lay in the pool may have died while the request was on its way.
    let ended = error.is_io() || error.is_go_away() && error.is_remote();
    let stale = ended && conn.answered.load(Ordering::Relaxed);
    let kind = match error.reason() {
        Some(Reason::REFUSED_STREAM) => Kind::UpstreamRefused,
        // Streams that the peer has processed go on after its GOAWAY; this one was not among them.
        Some(_) if error.is_go_away() && error.is_remote() => Kind::UpstreamRefused,
        Some(_) if error.is_library() => Kind::UpstreamProtocol,
        _ => Kind::UpstreamReset,
    };
    Failed { stale, ..Error::because(kind, error).into() }
}

/// Sends a request's body as the stream can take it.
struct Pump {
    body: RequestBody,
    stream: SendStream<Bytes>,
    begun: bool,
}

enum Broken {
    Body(BodyError),
    Stream,
}

impl Pump {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        loop {
            // The first piece is sent without asking: it fits any window, and most bodies are one piece.
            if self.begun {
                self.stream.reserve_capacity(1);
                while self.stream.capacity() == 0 {
                    match ready!(self.stream.poll_capacity(cx)) {
                        Some(Ok(_)) => (),
                        Some(Err(_)) | None => return Poll::Ready(Err(Broken::Stream)),
                    }
                }
            }
            let sent = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => self.stream.send_data(Bytes::new(), true).map(|()| true),
                Some(Ok(frame)) => {
                    self.begun = true;
                    match frame.into_data() {
                        Ok(data) => {
                            let last = self.body.is_end_stream();
                            self.stream.send_data(data, last).map(|()| last)
                        }
                        Err(frame) => {
                            let trailers = frame.into_trailers().unwrap_or_default();
                            self.stream.send_trailers(trailers).map(|()| true)
                        }
                    }
                }
                Some(Err(error)) => {
                    self.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(Err(Broken::Body(error)));
                }
            };
            match sent {
                Ok(true) => return Poll::Ready(Ok(())),
                Ok(false) => (),
                Err(_) => return Poll::Ready(Err(Broken::Stream)),
            }
        }
    }

    async fn finish(mut self) {
        // The response shows how it went.
        let _ = poll_fn(|cx| self.poll(cx)).await;
    }
}

/// Has a connection made if there is none that a request can take now.
pub(super) async fn connected(host: &Arc<Host>, view: &Arc<View>, flow: Flow) -> Result<(), Error> {
    acquire(host, view, flow).await.map(drop)
}

/// A place on the connection with the fewest requests. The first to come makes the connection, the others wait for it.
async fn acquire(host: &Arc<Host>, view: &Arc<View>, flow: Flow) -> Result<Place, Error> {
    loop {
        let (receiver, _pending) = {
            let mut inner = host.http2(flow).inner();
            inner.conns.retain(|conn| !conn.closed.load(Ordering::Relaxed));
            let best = inner.conns.iter().min_by_key(|conn| conn.streams.load(Ordering::Relaxed));
            let crowded = best.is_none_or(|conn| conn.streams.load(Ordering::Relaxed) >= STREAMS_PER_CONNECTION);
            let place = best.map(Place::take);
            let pending = if place.is_none() { Some(view.usage.pending(&view.cluster.limits)?) } else { None };
            if crowded
                && !inner.connecting
                && inner.conns.len() < MAX_CONNECTIONS
                && let Some(in_use) = room(&inner, view)
            {
                inner.connecting = true;
                tokio::spawn(open(host.clone(), view.clone(), flow, in_use));
            }
            if let Some(place) = place {
                return Ok(place);
            }
            let (sender, receiver) = oneshot::channel();
            inner.waiting.push(sender);
            (receiver, pending)
        };
        match receiver.await {
            Ok(Ok(())) => (),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(Error::because(Kind::UpstreamConnect, "the proxy is ending")),
        }
    }
}

/// `None` at the cluster's limit. Connections that take no more requests are not among those of the pool, which may always
/// have one.
fn room(pool: &Inner, view: &View) -> Option<InUse> {
    let first = || pool.conns.is_empty().then(|| view.usage.first_connection());
    view.usage.connection(&view.cluster.limits).or_else(first)
}

async fn open(host: Arc<Host>, view: Arc<View>, flow: Flow, in_use: InUse) {
    let opened = handshake(&host, &view, flow, in_use).await;
    let mut inner = host.http2(flow).inner();
    inner.connecting = false;
    let outcome = match opened {
        Ok(conn) => {
            inner.conns.push(conn);
            Ok(())
        }
        Err(error) => Err(error),
    };
    for waiter in inner.waiting.drain(..) {
        let copy = match &outcome {
            Ok(()) => Ok(()),
            Err(error) => Err(Error { kind: error.kind, detail: error.detail.clone() }),
        };
        // Whoever has gone needs no answer.
        let _ = waiter.send(copy);
    }
}

async fn handshake(host: &Arc<Host>, view: &View, flow: Flow, in_use: InUse) -> Result<Arc<Conn>, Error> {
    let io = view.connector.connect(host, ALPN_H2).await?;
    let window = match flow {
        Flow::Free => STREAM_WINDOW,
        Flow::Paced => PACED_STREAM_WINDOW,
    };
    let (send, mut connection) = Builder::new()
        .initial_window_size(window)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_push(false)
        .handshake::<_, Bytes>(io)
        .await
        .map_err(|e| Error::because(Kind::UpstreamConnect, e))?;
    let pings = connection.ping_pong();
    let conn = Arc::new(Conn {
        send,
        streams: AtomicUsize::new(0),
        closed: AtomicBool::new(false),
        answered: AtomicBool::new(false),
        idle_since: Mutex::new(Instant::now()),
    });
    let retires = host.retires.clone();
    tokio::spawn(drive(connection, pings, Arc::downgrade(&conn), Arc::downgrade(host), retires, flow, in_use));
    Ok(conn)
}

/// Reads and writes until the connection ends, which it does by itself once nobody has a handle to it any more.
async fn drive(
    connection: Connection<UpstreamStream, Bytes>,
    pings: Option<PingPong>,
    conn: std::sync::Weak<Conn>,
    host: std::sync::Weak<Host>,
    retires: Arc<Notify>,
    flow: Flow,
    in_use: InUse,
) {
    tokio::select! {
        biased;
        ended = Gathered::new(connection) => if let Err(error) = ended {
            tracing::debug!(%error, "an upstream connection ended");
        },
        () = silence(pings, &conn, &host, retires) => tracing::debug!("an upstream connection does not answer"),
    }
    if let (Some(host), Some(conn)) = (host.upgrade(), conn.upgrade()) {
        // With nothing on the connection it ends right behind its GOAWAY, before a request could have met that.
        let mut sender = conn.send.clone();
        if poll_fn(|cx| sender.poll_ready(cx)).await.is_err_and(|error| asks_for_no_more(&error)) {
            host.leaves();
        }
        host.http2(flow).close(&conn);
    }
    drop(in_use);
}

/// Ends when the connection has requests and does not answer a ping. An endpoint that was taken away is asked at once: one
/// that ends in peace still answers, and where nobody is left, nobody may ever say so.
async fn silence(
    pings: Option<PingPong>,
    conn: &std::sync::Weak<Conn>,
    host: &std::sync::Weak<Host>,
    retires: Arc<Notify>,
) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        let is_gone = || host.upgrade().is_none_or(|host| host.is_retired());
        let retired = retires.notified();
        let asked_before = is_gone();
        tokio::select! {
            () = tokio::time::sleep(if asked_before { PARTING } else { PING_INTERVAL }) => (),
            () = retired, if !asked_before => (),
        }
        let busy = conn.upgrade().is_some_and(|conn| conn.streams.load(Ordering::Relaxed) > 0);
        let patience = if is_gone() { PARTING } else { PING_INTERVAL };
        if busy && !matches!(tokio::time::timeout(patience, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    conns: Vec<Arc<Conn>>,
    waiting: Vec<oneshot::Sender<Result<(), Error>>>,
    connecting: bool,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} connections, {} waiting", self.conns.len(), self.waiting.len())
    }
}

impl Pool {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No more requests on this connection; those that are on it go on.
    fn close(&self, conn: &Arc<Conn>) {
        conn.closed.store(true, Ordering::Relaxed);
        self.inner().conns.retain(|it| !Arc::ptr_eq(it, conn));
    }

    pub(super) fn clear(&self) {
        let conns = std::mem::take(&mut self.inner().conns);
        drop(conns);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.inner().conns.is_empty()
    }

    /// Closes connections that were unused for long.
    pub(super) fn sweep(&self, now: Instant) {
        self.inner().conns.retain(|conn| {
            let idle_since = *conn.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
            let idle = now.saturating_duration_since(idle_since) >= IDLE_TIMEOUT;
            conn.streams.load(Ordering::Relaxed) > 0 || !idle
        });
    }
}

/// The body of a response. Dropped before its end, it resets the stream.
pub(crate) struct Http2Body {
    recv: RecvStream,
    data_ended: bool,
    /// The request's body, if it is still being sent.
    pump: Option<AbortHandle>,
    _place: Place,
}

impl Drop for Http2Body {
    fn drop(&mut self) {
        if let Some(pump) = &self.pump {
            pump.abort();
        }
    }
}

impl Body for Http2Body {
    type Data = Bytes;
    type Error = (Error, Reason);

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let broken = |e: h2::Error| {
            let reason = e.reason().unwrap_or(Reason::INTERNAL_ERROR);
            (Error::because(Kind::UpstreamReset, e), reason)
        };
        if !this.data_ended {
            match ready!(this.recv.poll_data(cx)) {
                Some(Ok(data)) => {
                    // The next poll comes when downstream has taken this: that is the backpressure.
                    let _ = this.recv.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(broken(error)))),
                None => this.data_ended = true,
            }
        }
        match ready!(this.recv.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(trailers.map(|it| Ok(Frame::trailers(it)))),
            Err(error) => Poll::Ready(Some(Err(broken(error)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.recv.is_end_stream()
    }
}
