//! Copies bytes both ways between two streams, each way until its own end.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::pipe::Pipe;
use crate::pace::Pacer;

/// Most byte streams are idle or say little: the buffer grows with those that fill it.
const SMALL: usize = 4 * 1024;
const LARGE: usize = 128 * 1024;
/// A read of so much is taken for a sign that much follows, which a pipe carries for less where it can.
const BULK: usize = 64 * 1024;

/// One of the two streams.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {
    /// The socket below, if its bytes are those of the stream.
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

impl Stream for TcpStream {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

/// Why copying ended before both sides had said all.
#[derive(Debug)]
pub(crate) enum Broken {
    Downstream(io::Error),
    Upstream(io::Error),
    /// No byte either way for the idle timeout.
    Idle,
}

/// Told of bytes as they are handed on.
pub(crate) trait Count {
    /// From downstream to upstream.
    fn received(&mut self, bytes: u64);
    /// From upstream to downstream.
    fn sent(&mut self, bytes: u64);
}

/// What each way keeps to, if something slows it down.
#[derive(Debug, Default)]
pub(crate) struct Paces {
    /// From downstream to upstream.
    pub(crate) forth: Option<Box<Pacer>>,
    /// From upstream to downstream.
    pub(crate) back: Option<Box<Pacer>>,
    /// A fault does, among others.
    pub(crate) fault: bool,
}

/// Copies until both sides have ended, or one breaks. The end of one way is passed on and leaves the other way open.
pub(crate) async fn copy<D, U>(
    downstream: &mut D,
    upstream: &mut U,
    idle: Option<Duration>,
    paces: Paces,
    count: &mut impl Count,
) -> Result<(), Broken>
where
    D: Stream,
    U: Stream,
{
    let mut forth = Way { pacer: paces.forth, ..Way::default() };
    let mut back = Way { pacer: paces.back, ..Way::default() };
    let mut idle = idle.map(IdleTimer::new);
    poll_fn(|cx| {
        let forth_done = forth.poll(cx, downstream, upstream).map_err(|error| match error {
            Side::Reading(error) => Broken::Downstream(error),
            Side::Writing(error) => Broken::Upstream(error),
        })?;
        let back_done = back.poll(cx, upstream, downstream).map_err(|error| match error {
            Side::Reading(error) => Broken::Upstream(error),
            Side::Writing(error) => Broken::Downstream(error),
        })?;
        let (received, sent) = (forth.take_moved(), back.take_moved());
        if received > 0 {
            count.received(received);
        }
        if sent > 0 {
            count.sent(sent);
        }
        if forth_done.is_ready() && back_done.is_ready() {
            return Poll::Ready(Ok(()));
        }
        match &mut idle {
            Some(timer) => timer.poll(cx, received + sent > 0).map(|()| Err(Broken::Idle)),
            None => Poll::Pending,
        }
    })
    .await
}

enum Side {
    Reading(io::Error),
    Writing(io::Error),
}

/// One way of the copy.
#[derive(Default)]
struct Way {
    buffer: Vec<u8>,
    /// What of the buffer is still to be written. `end` is what the last read has brought, with a pipe too.
    start: usize,
    end: usize,
    /// Takes the place of the buffer while much comes.
    pipe: Option<Pipe>,
    /// There is none for this way.
    no_pipe: bool,
    moved: u64,
    pacer: Option<Box<Pacer>>,
    /// What the pacer has let go and is still to be written.
    allowed: usize,
    unflushed: bool,
    read_all: bool,
    done: bool,
}

impl Way {
    fn poll<R: Stream, W: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<Result<(), Side>> {
        while !self.done {
            while let rest @ 1.. = self.held() {
                let mut most = rest;
                if let Some(pacer) = &mut self.pacer {
                    if self.allowed == 0 {
                        let Poll::Ready(bytes) = pacer.poll(rest, cx) else { return self.pause(cx, writer) };
                        self.allowed = bytes;
                    }
                    most = self.allowed.min(rest);
                }
                match ready!(self.poll_drain(cx, writer, most)).map_err(Side::Writing)? {
                    0 => return Poll::Ready(Err(Side::Writing(io::ErrorKind::WriteZero.into()))),
                    written => {
                        self.allowed = self.allowed.saturating_sub(written);
                        self.moved += written as u64;
                        self.unflushed = true;
                    }
                }
            }
            if self.read_all {
                ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(Side::Writing)?;
                self.done = true;
                break;
            }
            match self.poll_fill(cx, reader, writer) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Side::Reading(error))),
                Poll::Pending => return self.pause(cx, writer),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Nothing comes for now. TLS may hold back what was written until it is told so.
    fn pause<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, writer: &mut W) -> Poll<Result<(), Side>> {
        if self.unflushed {
            ready!(Pin::new(writer).poll_flush(cx)).map_err(Side::Writing)?;
            self.unflushed = false;
        }
        Poll::Pending
    }

    /// What was read and is still to be written.
    fn held(&self) -> usize {
        match &self.pipe {
            Some(pipe) => pipe.held(),
            None => self.end - self.start,
        }
    }

    fn poll_drain<W: Stream>(&mut self, cx: &mut Context<'_>, writer: &mut W, most: usize) -> Poll<io::Result<usize>> {
        if let (Some(pipe), Some(socket)) = (&mut self.pipe, writer.socket()) {
            return pipe.poll_drain(cx, socket, most);
        }
        let written = ready!(Pin::new(writer).poll_write(cx, &self.buffer[self.start..self.start + most]))?;
        self.start += written;
        Poll::Ready(Ok(written))
    }

    /// Called when nothing is held.
    fn poll_fill<R: Stream, W: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &W,
    ) -> Poll<io::Result<()>> {
        self.choose_pipe(reader, writer);
        if let (Some(pipe), Some(socket)) = (&mut self.pipe, reader.socket()) {
            match ready!(pipe.poll_fill(cx, socket)) {
                Ok(filled) => {
                    self.end = filled;
                    self.read_all = filled == 0;
                    return Poll::Ready(Ok(()));
                }
                // Nothing was taken yet, so nothing is lost.
                Err(error) if declined(&error) => {
                    self.no_pipe = true;
                    self.drop_pipe();
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let filled_before = self.end == self.buffer.len();
        if filled_before && self.buffer.len() < LARGE {
            self.buffer.resize((self.buffer.len() * 4).clamp(SMALL, LARGE), 0);
        }
        let mut space = ReadBuf::new(&mut self.buffer);
        ready!(Pin::new(reader).poll_read(cx, &mut space))?;
        self.start = 0;
        self.end = space.filled().len();
        self.read_all = self.end == 0;
        Poll::Ready(Ok(()))
    }

    /// Takes a pipe when much comes, and gives it back when little does: it costs two descriptors.
    fn choose_pipe<R: Stream, W: Stream>(&mut self, reader: &R, writer: &W) {
        if self.pipe.is_some() {
            if self.end < SMALL {
                self.drop_pipe();
            }
        } else if self.end >= BULK && !self.no_pipe {
            self.pipe = reader.socket().and(writer.socket()).and_then(|_| Pipe::open());
            self.no_pipe = self.pipe.is_none();
            if self.pipe.is_some() {
                (self.buffer, self.start) = (Vec::new(), 0);
            }
        }
    }

    fn drop_pipe(&mut self) {
        self.pipe = None;
        (self.start, self.end) = (0, 0);
    }

    fn take_moved(&mut self) -> u64 {
        std::mem::take(&mut self.moved)
    }
}

/// Kernels and sandboxes that don't move bytes between these sockets say so in one of these ways.
fn declined(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported)
}

/// Fires when nothing has happened for `limit`. Noting that something did costs one look at the clock.
struct IdleTimer {
    limit: Duration,
    last: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl IdleTimer {
    fn new(limit: Duration) -> Self {
        Self { limit, last: Instant::now(), sleep: Box::pin(sleep(limit)) }
    }

    fn poll(&mut self, cx: &mut Context<'_>, active: bool) -> Poll<()> {
        if active {
            self.last = Instant::now();
        }
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            let end = self.last + self.limit;
            if end <= Instant::now() {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pace::Rate;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    impl Stream for DuplexStream {}

    #[derive(Default)]
    struct Sum {
        received: u64,
        sent: u64,
    }

    impl Count for Sum {
        fn received(&mut self, bytes: u64) {
            self.received += bytes;
        }

        fn sent(&mut self, bytes: u64) {
            self.sent += bytes;
        }
    }

    /// A client and a server, and the copying between them.
    fn between(
        idle: Option<Duration>,
    ) -> (DuplexStream, DuplexStream, impl Future<Output = (Result<(), Broken>, Sum)>) {
        let (client, mut downstream) = duplex(1000);
        let (server, mut upstream) = duplex(1000);
        let copying = async move {
            let mut sum = Sum::default();
            let result = copy(&mut downstream, &mut upstream, idle, Paces::default(), &mut sum).await;
            (result, sum)
        };
        (client, server, copying)
    }

    #[tokio::test]
    async fn each_way_ends_by_itself() {
        let (mut client, mut server, copying) = between(None);
        let copying = tokio::spawn(copying);
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        // The way back is still open.
        server.write_all(b"the answer").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "the answer");
        let (result, sum) = copying.await.unwrap();
        result.unwrap();
        assert_eq!((sum.received, sum.sent), (8, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn one_way_is_slowed_down() {
        let (mut client, mut downstream) = duplex(1000);
        let (mut server, mut upstream) = duplex(1000);
        let began = Instant::now();
        let mut pacer = Pacer::default();
        pacer.slow_down(Rate::new(1000).unwrap(), None, began.into_std());
        let paces = Paces { back: Some(Box::new(pacer)), ..Paces::default() };
        let copying = tokio::spawn(async move {
            let mut sum = Sum::default();
            copy(&mut downstream, &mut upstream, Some(Duration::from_secs(1)), paces, &mut sum).await.unwrap();
            sum
        });
        let mut bytes = [1; 5000];
        let (sent, echoed) = tokio::join!(client.write_all(&[1; 5000]), server.read_exact(&mut bytes));
        assert_eq!((sent.unwrap(), echoed.unwrap(), began.elapsed()), ((), 5000, Duration::ZERO));
        client.shutdown().await.unwrap();
        let answer = async {
            server.write_all(&bytes).await.unwrap();
            server.shutdown().await.unwrap();
        };
        let mut answered = Vec::new();
        let (_, read) = tokio::join!(answer, client.read_to_end(&mut answered));
        assert_eq!(read.unwrap(), 5000);
        let took = began.elapsed().as_millis();
        assert!((5000..5200).contains(&took), "{took} ms");
        let sum = copying.await.unwrap();
        assert_eq!((sum.received, sum.sent), (5000, 5000));
    }

    #[tokio::test]
    async fn much_data_arrives_whole() {
        let (client, server, copying) = between(Some(Duration::from_secs(3600)));
        let copying = tokio::spawn(copying);
        let data = pattern(3_000_000);
        let expected = data.clone();
        let (mut from_client, mut to_server) = tokio::io::split(client);
        let (mut from_server, mut to_client) = tokio::io::split(server);
        let send = tokio::spawn(async move {
            to_server.write_all(&data).await.unwrap();
            to_server.shutdown().await.unwrap();
        });
        let echo = tokio::spawn(async move {
            tokio::io::copy(&mut from_server, &mut to_client).await.unwrap();
            to_client.shutdown().await.unwrap();
        });
        let mut received = vec![];
        from_client.read_to_end(&mut received).await.unwrap();
        assert!(received == expected);
        send.await.unwrap();
        echo.await.unwrap();
        let (result, sum) = copying.await.unwrap();
        result.unwrap();
        assert_eq!((sum.received, sum.sent), (3_000_000, 3_000_000));
    }

    /// Two ends of a connection.
    async fn connected() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    fn pattern(bytes: usize) -> Vec<u8> {
        (0..bytes as u32).map(|i| (i % 251) as u8).collect()
    }

    #[tokio::test]
    async fn much_between_sockets_goes_through_a_pipe() {
        let (mut client, mut downstream) = connected().await;
        let (mut upstream, mut server) = connected().await;
        let mut way = Way::default();
        let data = pattern(8 << 20);
        let mut piped = 0;
        let copying = async {
            poll_fn(|cx| {
                let done = way.poll(cx, &mut downstream, &mut upstream);
                piped += usize::from(way.pipe.is_some());
                done.map(|it| it.is_ok())
            })
            .await
        };
        let sending = async {
            client.write_all(&data).await.unwrap();
            // What comes one by one needs none.
            tokio::time::sleep(Duration::from_millis(100)).await;
            client.write_all(b"x").await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            client.write_all(b"y").await.unwrap();
            client.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let (copied, (), read) = tokio::join!(copying, sending, server.read_to_end(&mut received));
        read.unwrap();
        assert!(copied && piped > 0, "{piped}");
        assert!(received[..data.len()] == data && &received[data.len()..] == b"xy");
        assert!(way.pipe.is_none());
        assert_eq!(way.moved as usize, received.len());
    }

    #[tokio::test(start_paused = true)]
    async fn only_silence_is_idle() {
        let (mut client, mut server, copying) = between(Some(Duration::from_secs(10)));
        let begun = Instant::now();
        let copying = tokio::spawn(copying);
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(9)).await;
            client.write_all(b"x").await.unwrap();
            server.read_u8().await.unwrap();
        }
        let (result, _) = copying.await.unwrap();
        assert!(matches!(result, Err(Broken::Idle)));
        assert_eq!(begun.elapsed().as_secs(), 55);
    }

    #[tokio::test]
    async fn a_broken_side_is_named() {
        let (client, mut server, copying) = between(None);
        server.write_all(b"data that nobody takes").await.unwrap();
        drop(client);
        let (result, _) = copying.await;
        assert!(matches!(result, Err(Broken::Downstream(_))), "{result:?}");
    }
}
