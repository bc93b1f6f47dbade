//! The body of a request on its way upstream: streamed as it comes, kept for another try while it is small, copied for a
//! mirror when one is asked for.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc;

use super::paced::Paced;
use crate::error::Kind;
use crate::pace::Pacer;

/// The most that is kept to send a body once more.
pub(crate) const REPLAY_LIMIT: usize = 64 * 1024;
/// How long a server may leave `Expect: 100-continue` unanswered before the body is sent anyway (RFC 9110, 10.1.1).
const EXPECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How many pieces a mirror may lag behind.
const TAP_CAPACITY: usize = 64;

#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the client's body ended early")]
    Downstream(#[source] hyper::Error),
    /// There is more of it than the application takes.
    #[error("the body is too long")]
    TooLarge,
    /// Another try has taken over the body, or the server has answered without wanting it.
    #[error("the body is not needed any more")]
    Unwanted,
}

impl BodyError {
    /// Why there is no more of it.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::TooLarge => Kind::BodyTooLarge,
            Self::Downstream(_) | Self::Unwanted => Kind::Downstream,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Chunk {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Chunk {
    fn of(frame: Frame<Bytes>) -> Option<Self> {
        match frame.into_data() {
            Ok(data) => Some(Self::Data(data)),
            Err(frame) => frame.into_trailers().ok().map(Self::Trailers),
        }
    }

    fn into_frame(self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data),
            Self::Trailers(trailers) => Frame::trailers(trailers),
        }
    }
}

/// A piece for a mirror; `None` is the end.
type Tapped = Option<Chunk>;

/// A downstream body, shared by the tries that send it one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Upload(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    source: Paced<Incoming>,
    length: Option<u64>,
    /// What came so far, while that is little and another try may need it.
    kept: Option<Vec<Chunk>>,
    kept_bytes: usize,
    /// No other try will come.
    settled: bool,
    /// Its beginning was looked at before any of it went on.
    peeked: Option<Peek>,
    taps: Vec<mpsc::Sender<Tapped>>,
    bytes: u64,
    last: Instant,
    ended: Option<Instant>,
    /// Why the rest of it does not come.
    failed: Option<Kind>,
    /// The most that is taken of it.
    max: u64,
    /// Counts the tries; only the latest one may read.
    reader: u32,
    /// The latest try has had everything.
    delivered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peek {
    Reading,
    Read,
}

impl Upload {
    /// `None` if there is no body.
    pub(crate) fn new(source: Incoming, now: Instant) -> Option<Self> {
        if source.is_end_stream() {
            return None;
        }
        let length = source.size_hint().exact();
        Some(Self(Arc::new(Mutex::new(State {
            source: Paced::new(source, None),
            length,
            kept: Some(Vec::new()),
            kept_bytes: 0,
            settled: false,
            peeked: None,
            taps: Vec::new(),
            bytes: 0,
            last: now,
            ended: None,
            failed: None,
            max: u64::MAX,
            reader: 0,
            delivered: false,
        }))))
    }

    /// Takes no more of it than so many bytes. False if there is more already, or its client says so. Before any of it goes on.
    pub(crate) fn limit(&self, max: u64) -> bool {
        let mut state = self.state();
        state.max = max;
        // Its beginning may have been looked at.
        state.bytes <= max && state.length.is_none_or(|length| length <= max)
    }

    /// Before any of it goes on. What was looked at already has come as it came.
    pub(crate) fn slow_down(&self, pacer: Box<Pacer>) {
        self.state().source.slow_down(pacer);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A body for one try. It begins at the beginning if [`can_replay`](Self::can_replay).
    pub(crate) fn body(&self, gate: Option<Arc<Gate>>) -> RequestBody {
        let mut state = self.state();
        state.reader += 1;
        state.delivered = false;
        let reader = Reader { upload: self.clone(), number: state.reader, next: 0, sent: 0, ended: false, gate };
        RequestBody(Source::Upload(Box::new(reader)))
    }

    pub(crate) fn can_replay(&self) -> bool {
        let state = self.state();
        state.failed.is_none() && (state.bytes == 0 && state.ended.is_none() || state.kept.is_some())
    }

    /// All of it once more, beside the try that reads it, if it has come to its end and is kept.
    pub(crate) fn whole(&self) -> Option<RequestBody> {
        let state = self.state();
        let kept = state.kept.as_ref().filter(|_| state.ended.is_some())?;
        let left = state.kept_bytes as u64;
        Some(RequestBody(Source::Kept { chunks: kept.clone().into_iter(), left }))
    }

    /// No other try will come.
    pub(crate) fn settle(&self) {
        let mut state = self.state();
        state.settled = true;
        if state.peeked.is_none() || state.delivered {
            state.kept = None;
        }
    }

    fn tap(&self) -> mpsc::Receiver<Tapped> {
        let mut state = self.state();
        // What was looked at goes first.
        let before = state.kept.as_deref().unwrap_or_default();
        let (sender, receiver) = mpsc::channel(TAP_CAPACITY + before.len());
        for chunk in before {
            let _ = sender.try_send(Some(chunk.clone()));
        }
        if state.ended.is_some() {
            let _ = sender.try_send(None);
        } else {
            state.taps.push(sender);
        }
        receiver
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// When it was read to its end.
    pub(crate) fn ended(&self) -> Option<Instant> {
        self.state().ended
    }

    /// Its first bytes, as many at most, and whether there are more, before any of it goes on. What was read stays for those
    /// who send it. `partial`: so many are enough, and a client that waits for an answer to them gets one; there are more
    /// unless the client has said that there are not.
    pub(crate) async fn peek(&self, max: usize, partial: bool) -> Result<(Bytes, bool), BodyError> {
        self.state().peeked = Some(Peek::Reading);
        let mut body = self.body(None);
        let mut data = BytesMut::new();
        let enough = if partial { max } else { max + 1 };
        while !body.is_end_stream() && data.len() < enough {
            match body.frame().await {
                Some(frame) => frame?.into_data().into_iter().for_each(|piece| data.extend_from_slice(&piece)),
                None => break,
            }
        }
        let more = data.len() > max || !body.is_end_stream();
        let mut state = self.state();
        state.peeked = Some(Peek::Read);
        // Nobody has been sent any of it, even if all of it was read.
        state.delivered = false;
        drop(state);
        data.truncate(max);
        Ok((data.freeze(), more))
    }

    /// The latest try has had all of it.
    pub(crate) fn delivered(&self) -> bool {
        self.state().delivered
    }

    /// When something came last.
    pub(crate) fn last(&self) -> Instant {
        self.state().last
    }

    /// Why the rest of it does not come: its client broke off in the middle, or there is too much of it.
    pub(crate) fn failed(&self) -> Option<Kind> {
        self.state().failed
    }
}

impl State {
    /// The next chunk from downstream, for the reader that has had everything before.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        loop {
            if self.ended.is_some() {
                return Poll::Ready(None);
            }
            let frame = match ready!(Pin::new(&mut self.source).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(e)) => {
                    return Poll::Ready(Some(Err(self.fail(BodyError::Downstream(e)))));
                }
                None => {
                    self.end();
                    return Poll::Ready(None);
                }
            };
            let Some(chunk) = Chunk::of(frame) else { continue };
            self.last = Instant::now();
            if let Chunk::Data(data) = &chunk {
                self.bytes += data.len() as u64;
                if self.bytes > self.max {
                    return Poll::Ready(Some(Err(self.fail(BodyError::TooLarge))));
                }
                self.kept_bytes += data.len();
            }
            // What was looked at has been sent on by then, and what is looked at has a limit of its own.
            let enough = self.kept_bytes > REPLAY_LIMIT || self.settled;
            if enough && self.peeked != Some(Peek::Reading) {
                self.kept = None;
            }
            if let Some(kept) = &mut self.kept {
                kept.push(chunk.clone());
            }
            self.taps.retain(|tap| tap.try_send(Some(chunk.clone())).is_ok());
            // After trailers nobody may ask whether there is more.
            if self.source.is_end_stream() || matches!(chunk, Chunk::Trailers(_)) {
                self.end();
            }
            return Poll::Ready(Some(Ok(chunk)));
        }
    }

    fn fail(&mut self, error: BodyError) -> BodyError {
        self.failed = Some(error.kind());
        self.taps.clear();
        error
    }

    fn end(&mut self) {
        self.ended = Some(Instant::now());
        for tap in self.taps.drain(..) {
            // A copy that cannot take the end counts as cut off, like one that cannot take a piece.
            let _ = tap.try_send(None);
        }
    }
}

/// The body of one try.
#[derive(Debug)]
pub(crate) struct RequestBody(Source);

#[derive(Debug)]
enum Source {
    Empty,
    Upload(Box<Reader>),
    /// A mirror's copy, and the length that the original announced.
    Tap(mpsc::Receiver<Tapped>, Option<u64>),
    /// A copy of all that came. `left`: bytes of it.
    Kept {
        chunks: std::vec::IntoIter<Chunk>,
        left: u64,
    },
    /// Of a request of the proxy's own.
    Full(Bytes),
}

#[derive(Debug)]
struct Reader {
    upload: Upload,
    number: u32,
    next: usize,
    sent: u64,
    ended: bool,
    gate: Option<Arc<Gate>>,
}

impl RequestBody {
    pub(crate) fn empty() -> Self {
        Self(Source::Empty)
    }

    pub(crate) fn full(bytes: Bytes) -> Self {
        Self(Source::Full(bytes))
    }

    /// A copy of what comes from now on. If it lags, it is cut off, so that it never delays the request.
    pub(crate) fn copy_of(upload: &Upload) -> Self {
        let receiver = upload.tap();
        Self(Source::Tap(receiver, upload.state().length))
    }

    /// The upload that it reads, if it is one.
    pub(crate) fn upload(&self) -> Option<&Upload> {
        match &self.0 {
            Source::Upload(reader) => Some(&reader.upload),
            _ => None,
        }
    }

    pub(crate) fn gate(&self) -> Option<&Arc<Gate>> {
        match &self.0 {
            Source::Upload(reader) => reader.gate.as_ref(),
            _ => None,
        }
    }
}

impl Reader {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        if let Some(gate) = &self.gate {
            ready!(gate.poll(cx));
        }
        let mut state = self.upload.state();
        if state.reader != self.number {
            return Poll::Ready(Some(Err(BodyError::Unwanted)));
        }
        let again = state.kept.as_ref().and_then(|kept| kept.get(self.next)).cloned();
        let chunk = match again {
            Some(chunk) => Some(Ok(chunk)),
            None => ready!(state.poll_source(cx)),
        };
        if chunk.is_some() {
            self.next += 1;
        }
        if let Some(Ok(Chunk::Data(data))) = &chunk {
            self.sent += data.len() as u64;
        }
        // All that came has been sent on, and nothing more will come.
        let more = state.kept.as_ref().is_some_and(|kept| self.next < kept.len());
        self.ended = state.ended.is_some() && !more;
        state.delivered = self.ended;
        Poll::Ready(chunk)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let chunk = match &mut self.get_mut().0 {
            Source::Empty => return Poll::Ready(None),
            Source::Upload(reader) => ready!(reader.poll(cx)),
            Source::Tap(receiver, _) => match ready!(receiver.poll_recv(cx)) {
                Some(piece) => piece.map(Ok),
                None => Some(Err(BodyError::Unwanted)),
            },
            Source::Kept { chunks, left } => {
                let chunk = chunks.next();
                if let Some(Chunk::Data(data)) = &chunk {
                    *left -= data.len() as u64;
                }
                chunk.map(Ok)
            }
            Source::Full(bytes) if bytes.is_empty() => None,
            Source::Full(bytes) => Some(Ok(Chunk::Data(std::mem::take(bytes)))),
        };
        Poll::Ready(chunk.map(|chunk| chunk.map(Chunk::into_frame)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Empty => true,
            Source::Upload(reader) => reader.ended,
            Source::Tap(..) => false,
            Source::Kept { chunks, .. } => chunks.as_slice().is_empty(),
            Source::Full(bytes) => bytes.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let exact = match &self.0 {
            Source::Empty => Some(0),
            Source::Upload(reader) => reader.upload.state().length.map(|length| length.saturating_sub(reader.sent)),
            Source::Tap(_, length) => *length,
            Source::Kept { left, .. } => Some(*left),
            Source::Full(bytes) => Some(bytes.len() as u64),
        };
        exact.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Holds the body back until the server has asked for it with 100 (Continue).
#[derive(Debug)]
pub(crate) struct Gate {
    state: AtomicU8,
    reader: AtomicWaker,
    timer: Mutex<Option<Pin<Box<tokio::time::Sleep>>>>,
}

const WAITING: u8 = 0;
const OPEN: u8 = 1;
const SHUT: u8 = 2;

impl Gate {
    pub(crate) fn new() -> Self {
        Self { state: AtomicU8::new(WAITING), reader: AtomicWaker::new(), timer: Mutex::new(None) }
    }

    pub(crate) fn open(&self) {
        let _ = self.turn(OPEN);
    }

    /// The server has answered without having asked for the body, of which nothing is sent then. False: too late, it is open.
    pub(crate) fn shut(&self) -> bool {
        self.turn(SHUT)
    }

    fn turn(&self, to: u8) -> bool {
        let turned = self.state.compare_exchange(WAITING, to, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if turned {
            self.reader.wake();
        }
        turned
    }

    /// Never ready once it is shut: an error would break off the response.
    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.reader.register(cx.waker());
        match self.state.load(Ordering::Acquire) {
            OPEN => return Poll::Ready(()),
            SHUT => return Poll::Pending,
            _ => (),
        }
        let mut timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
        let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(EXPECT_TIMEOUT)));
        ready!(std::future::Future::poll(timer.as_mut(), cx));
        self.open();
        Poll::Ready(())
    }
}
