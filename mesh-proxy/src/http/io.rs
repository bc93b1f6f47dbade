//! The downstream connection, and what its bytes and its requests tell each other.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::framing::{self, Framing};
use super::load::Load;
use crate::listen::Flight;
use crate::tcp::copy::Stream;

/// A connection that was accepted.
pub trait DownstreamIo: Stream + Send + 'static {
    /// Makes closing the connection look like a crash to the peer (TCP RST), for injected faults.
    fn reset_on_close(&self);
}

impl DownstreamIo for TcpStream {
    fn reset_on_close(&self) {
        // Nothing to do about a failure: the connection is then closed in the ordinary way.
        let _ = socket2::SockRef::from(self).set_linger(Some(Duration::ZERO));
    }
}

impl Stream for tokio_rustls::server::TlsStream<TcpStream> {}

impl DownstreamIo for tokio_rustls::server::TlsStream<TcpStream> {
    fn reset_on_close(&self) {
        self.get_ref().0.reset_on_close();
    }
}

/// What a connection's requests and its I/O tell each other.
#[derive(Debug)]
pub(crate) struct Signals {
    start: Instant,
    reset: AtomicBool,
    /// A peer's connection counts as in flight before its first request does.
    arriving: Mutex<Option<Flight>>,
    arrived: AtomicBool,
    /// No more requests are wanted.
    leaving: AtomicBool,
    /// Tunnels that it carries.
    tunnels: watch::Sender<usize>,
    /// Of HTTP/1.
    pub(super) framing: Framing,
    /// Of HTTP/2.
    pub(super) load: Load,
    /// Of HTTP/1: nothing has happened for a while.
    resting: AtomicBool,
    /// What was written may not have gone on yet.
    unsent: AtomicBool,
    /// [`IDLE`], [`SERVING`], or milliseconds after `start` plus one when the first byte of a request head came in.
    head: AtomicU64,
}

/// A tunnel that goes on.
pub(crate) struct Tunnel(watch::Sender<usize>);

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.0.send_modify(|tunnels| *tunnels -= 1);
    }
}

/// What is read at once of a connection that rested.
pub(super) const FIRST_READ: usize = 4 << 10;

const IDLE: u64 = 0;
const SERVING: u64 = u64::MAX;

impl Signals {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            reset: AtomicBool::new(false),
            arriving: Mutex::new(None),
            arrived: AtomicBool::new(true),
            leaving: AtomicBool::new(false),
            tunnels: watch::Sender::new(0),
            framing: Framing::default(),
            load: Load::default(),
            resting: AtomicBool::new(false),
            unsent: AtomicBool::new(false),
            head: AtomicU64::new(IDLE),
        }
    }

    /// Those of a peer's connection that has not brought a request yet.
    pub(crate) fn arriving(flight: Flight) -> Self {
        Self { arriving: Mutex::new(Some(flight)), arrived: AtomicBool::new(false), ..Self::new() }
    }

    /// Ends the connection with a TCP RST as soon as it is dropped.
    pub(crate) fn reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    /// From now on, responses ask the client to open another connection.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// The connection has become a tunnel, until the result is dropped.
    pub(crate) fn tunnel(&self) -> Tunnel {
        self.tunnels.send_modify(|tunnels| *tunnels += 1);
        Tunnel(self.tunnels.clone())
    }

    pub(crate) async fn tunnels_ended(&self) {
        // The sender is here.
        let _ = self.tunnels.subscribe().wait_for(|tunnels| *tunnels == 0).await;
    }

    /// A request head is complete.
    pub(crate) fn serving(&self) {
        self.head.store(SERVING, Ordering::Relaxed);
        if !self.arrived.load(Ordering::Relaxed) {
            self.arrived.store(true, Ordering::Relaxed);
            self.arriving.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// Whether a request head was complete since this was last asked.
    pub(crate) fn has_served(&self) -> bool {
        self.head.swap(IDLE, Ordering::Relaxed) == SERVING
    }

    /// The response is complete. What the client has sent of its next request meanwhile begins to be waited for.
    pub(crate) fn served(&self) {
        self.head.store(IDLE, Ordering::Relaxed);
        if self.framing.is_in_head() {
            self.head_begins();
        }
    }

    /// When the request head began that is being read.
    pub(crate) fn head_began(&self) -> Option<Instant> {
        match self.head.load(Ordering::Relaxed) {
            IDLE | SERVING => None,
            at => Some(self.start + Duration::from_millis(at - 1)),
        }
    }

    /// Nothing has happened for so long that the connection can do with less memory.
    pub(super) fn rest(&self) {
        self.resting.store(true, Ordering::Relaxed);
    }

    /// Whether the connection can rest: it was told to since this was last asked, and nothing is under way.
    pub(super) fn may_rest(&self) -> bool {
        self.resting.load(Ordering::Relaxed)
            && self.resting.swap(false, Ordering::Relaxed)
            && self.head.load(Ordering::Relaxed) == IDLE
            && !self.unsent.load(Ordering::Relaxed)
            // hyper keeps nothing that was read and belongs to a request that is to come.
            && self.framing.is_between()
    }

    fn bytes_came(&self) {
        if self.head.load(Ordering::Relaxed) == IDLE {
            self.head_begins();
        }
    }

    fn head_begins(&self) {
        let at = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(SERVING - 2) + 1;
        self.head.store(at, Ordering::Relaxed);
    }
}

/// The connection, of which the signals are told.
pub(crate) struct Io<IO: DownstreamIo> {
    /// `None` only while being dropped.
    inner: Option<IO>,
    signals: Arc<Signals>,
    /// What was read to tell the protocol, or that a rest is over.
    before: Bytes,
    /// Of HTTP/1.
    framing: Option<Box<framing::Reader>>,
    keep: Option<Keep<IO>>,
}

/// Where a connection's I/O stays when who has it is dropped, if it is to be used again.
pub(super) struct Keep<IO>(Arc<Mutex<Option<Kept<IO>>>>);

struct Kept<IO> {
    inner: IO,
    framing: Option<Box<framing::Reader>>,
}

impl<IO: DownstreamIo> Io<IO> {
    pub(crate) fn new(io: IO, signals: Arc<Signals>, before: Bytes) -> Self {
        Self { inner: Some(io), signals, before, framing: None, keep: None }
    }

    /// The same for HTTP/1, with an eye on where its requests begin and end; and where it stays when it is dropped.
    pub(super) fn framed(mut self) -> (Self, Keep<IO>) {
        let keep = Arc::new(Mutex::new(None));
        self.framing = Some(Box::new(framing::Reader::new(&self.signals.framing)));
        self.keep = Some(Keep(keep.clone()));
        (self, Keep(keep))
    }

    fn inner(&mut self) -> io::Result<Pin<&mut IO>> {
        self.inner.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl<IO: DownstreamIo> Keep<IO> {
    /// What was kept, once it has something to read. `None`: the client is gone, or nothing was kept.
    pub(super) async fn wake(&self, signals: &Arc<Signals>) -> Option<Io<IO>> {
        let Kept { mut inner, framing } = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let before = poll_fn(|cx| {
            // On the stack: a connection that rests has no buffer.
            let mut bytes = [MaybeUninit::uninit(); FIRST_READ];
            let mut buf = ReadBuf::uninit(&mut bytes);
            ready!(Pin::new(&mut inner).poll_read(cx, &mut buf))?;
            Poll::Ready(io::Result::Ok(Bytes::copy_from_slice(buf.filled())))
        });
        let before = before.await.ok().filter(|bytes| !bytes.is_empty())?;
        let keep = Some(Keep(self.0.clone()));
        Some(Io { inner: Some(inner), signals: signals.clone(), before, framing, keep })
    }
}

impl<IO: DownstreamIo> Drop for Io<IO> {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        if self.signals.reset.load(Ordering::Relaxed) {
            inner.reset_on_close();
        } else if let Some(Keep(keep)) = &self.keep {
            let kept = Kept { inner, framing: self.framing.take() };
            *keep.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        }
    }
}

impl<IO: DownstreamIo> AsyncRead for Io<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let already = buf.filled().len();
        if this.before.is_empty() {
            ready!(this.inner()?.poll_read(cx, buf))?;
        } else {
            let bytes = this.before.split_to(this.before.len().min(buf.remaining()));
            buf.put_slice(&bytes);
        }
        if let Some(reader) = &mut this.framing {
            reader.read(&buf.filled()[already..], &this.signals.framing)?;
            // The rest of a body of which no more is wanted begins nothing.
            if !this.signals.framing.is_before_body() {
                return Poll::Ready(Ok(()));
            }
        }
        this.signals.bytes_came();
        Poll::Ready(Ok(()))
    }
}

impl<IO: DownstreamIo> AsyncWrite for Io<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.signals.unsent.store(true, Ordering::Relaxed);
        this.inner()?.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.inner()?.poll_flush(cx))?;
        this.signals.unsent.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().inner()?.poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.as_ref().is_some_and(IO::is_write_vectored)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.signals.unsent.store(true, Ordering::Relaxed);
        this.inner()?.poll_write_vectored(cx, bufs)
    }
}
