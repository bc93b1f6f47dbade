//! A connection that has shown to speak HTTP/2, and what is known of its peer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use metrics::counter;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use super::accept::Open;
use crate::auth::Peer;

/// What every HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(super) type Distrusted = Pin<Box<dyn Future<Output = ()> + Send>>;

pub struct Connection {
    io: Box<dyn Io>,
    /// How much of the preface has been handed on; it was read here.
    replayed: usize,
    peer: Peer,
    /// By then the peer must have proven an identity. None once it has, or if it need not.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Ends when what its certificate was verified by may be trusted no more. None without a certificate.
    distrusted: Option<Distrusted>,
    open: Open,
}

impl Connection {
    /// Reads the preface. Anything else is an error, before any of it reaches an HTTP implementation. `proof` is the time that
    /// the peer has to prove an identity. None when the peer went away without a word, as one does that only looked whether
    /// somebody listens.
    pub(super) async fn open(
        mut io: Box<dyn Io>,
        peer: Peer,
        proof: Option<Duration>,
        distrusted: Option<Distrusted>,
        open: Open,
    ) -> io::Result<Option<Self>> {
        let mut seen = [0; PREFACE.len()];
        let mut length = 0;
        while length < seen.len() {
            match io.read(&mut seen[length..]).await? {
                0 if length == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => length += read,
            }
            // Said at once, not after waiting for bytes that a wrong client never sends.
            if seen[..length] != PREFACE[..length] {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "this is not HTTP/2"));
            }
        }
        let deadline = proof.filter(|_| !peer.proven.is_set()).map(|proof| Box::pin(tokio::time::sleep(proof)));
        Ok(Some(Self { io, replayed: 0, peer, deadline, distrusted, open }))
    }

    /// An error once the time is over and the peer is still nobody, or when it may not be who it was taken for. Answering
    /// pings is no way to stay.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.distrusted.as_mut().is_some_and(|distrusted| distrusted.as_mut().poll(cx).is_ready()) {
            // A future that has ended is not to be polled again.
            self.distrusted = None;
            tracing::debug!(
                listener = self.open.name,
                peer = self.peer.address,
                "closed a connection: a root is trusted no more"
            );
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "a root was replaced: connect again"));
        }
        let Some(deadline) = &mut self.deadline else { return Ok(()) };
        if self.peer.proven.is_set() {
            self.deadline = None;
        } else if deadline.as_mut().poll(cx).is_ready() {
            let (name, peer) = (self.open.name, &self.peer.address);
            counter!("mesh_control_connections_refused_total", "listener" => name, "reason" => "identity").increment(1);
            tracing::debug!(listener = name, peer, "closed a connection that proved no identity in time");
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the peer proved no identity in time"));
        }
        Ok(())
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_end(cx)?;
        let rest = &PREFACE[self.replayed..];
        if !rest.is_empty() {
            let length = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..length]);
            self.replayed += length;
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncWriteExt, DuplexStream};
    use tokio::sync::Semaphore;
    use tokio::time::Instant;

    use super::*;
    use crate::auth::Transport;

    const PROOF: Duration = Duration::from_secs(10);

    async fn open(proof: Option<Duration>) -> (Connection, DuplexStream) {
        let (mut client, server) = tokio::io::duplex(1024);
        client.write_all(PREFACE).await.unwrap();
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let peer = Peer::new("10.0.0.1:7".to_owned(), Transport::Tls, None);
        let opened = Connection::open(Box::new(server), peer, proof, None, Open::new("test", permit)).await;
        (opened.unwrap().unwrap(), client)
    }

    /// How long a peer may stay that says something every second, as one that answers pings does; at most a minute.
    async fn stay(mut connection: Connection, mut client: DuplexStream) -> Duration {
        let begun = Instant::now();
        let talk = async move {
            while client.write_all(b"pong").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let read = async {
            let mut buffer = [0; 64];
            while begun.elapsed() < Duration::from_secs(60) {
                match connection.read(&mut buffer).await {
                    Ok(read) => assert_ne!(read, 0),
                    Err(error) => return assert_eq!(error.kind(), io::ErrorKind::TimedOut),
                }
            }
        };
        tokio::select! {
            () = talk => {}
            () = read => {}
        }
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn who_proves_nothing_may_not_stay() {
        let (connection, client) = open(Some(PROOF)).await;
        assert_eq!(stay(connection, client).await, PROOF);

        // One that says nothing at all is woken for it.
        let (mut connection, _client) = open(Some(PROOF)).await;
        let begun = Instant::now();
        connection.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
        assert_eq!(connection.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), PROOF);
    }

    #[tokio::test]
    async fn who_may_not_be_trusted_any_more_may_not_stay() {
        let (mut connection, mut client) = open(None).await;
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        connection.distrusted = Some(Box::pin(async move { drop(ended.await) }));
        connection.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
        client.write_all(b"x").await.unwrap();
        connection.read_exact(&mut [0]).await.unwrap();
        // Also one that says nothing is woken for it.
        let mut byte = [0];
        let (read, ()) = tokio::join!(connection.read(&mut byte), async move { end.send(()).unwrap() });
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test(start_paused = true)]
    async fn who_proves_an_identity_in_time_may() {
        let (connection, client) = open(Some(PROOF)).await;
        let peer = connection.connect_info();
        tokio::spawn(async move {
            tokio::time::sleep(PROOF - Duration::from_secs(1)).await;
            peer.proven.set();
        });
        assert!(stay(connection, client).await >= Duration::from_secs(60));
        // A door for this machine alone asks for no proof.
        let (connection, client) = open(None).await;
        assert!(stay(connection, client).await >= Duration::from_secs(60));
    }
}
