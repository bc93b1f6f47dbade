//! Accepting connections: within a limit, for as long as the proxy is not told to end, whatever the kernel runs out of.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::socket::is;

/// How long to wait when the kernel has no file descriptors or memory left, so that connections can end.
const EXHAUSTED_WAIT: Duration = Duration::from_millis(100);

/// The connections that are open, all listeners together.
#[derive(Clone, Debug)]
pub struct Connections {
    free: Arc<Semaphore>,
    max: usize,
}

impl Connections {
    /// At most `max` at a time.
    pub fn new(max: usize) -> Self {
        let max = max.clamp(1, u32::MAX as usize);
        Self { free: Arc::new(Semaphore::new(max)), max }
    }

    pub fn open(&self) -> usize {
        self.max - self.free.available_permits()
    }

    /// Waits until no connection is open. New ones have to wait meanwhile: call it when nobody accepts any more.
    pub async fn all_ended(&self) {
        let max = u32::try_from(self.max).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        drop(self.free.acquire_many(max).await);
    }

    async fn admit(&self) -> Option<OwnedSemaphorePermit> {
        self.free.clone().acquire_owned().await.ok()
    }
}

/// Accepts connections and hands each to a task of its own, until `drain` says true or its sender is gone. Connections
/// that are open then go on.
pub async fn accept<F>(
    listener: TcpListener,
    connections: &Connections,
    mut drain: watch::Receiver<bool>,
    handle: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = drain.wait_for(|drain| *drain) => return,
            accepted = accept_and_admit(&listener, connections) => accepted,
        };
        match accepted {
            Ok((stream, peer, permit)) => {
                failing = false;
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, %peer, "TCP_NODELAY could not be set");
                }
                let connection = handle(stream, super::plain(peer));
                tokio::spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) if concerns_one_connection(&error) => {
                tracing::debug!(%error, "a connection was gone before it was accepted")
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, open = connections.open(), "cannot accept connections; trying again until it works (is the limit of open files too low?)");
                }
                failing = true;
                tokio::time::sleep(EXHAUSTED_WAIT).await;
            }
        }
    }
}

/// A connection over the limit stays with its listener, which takes no other until there is room.
async fn accept_and_admit(
    listener: &TcpListener,
    connections: &Connections,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let (stream, peer) = listener.accept().await?;
    let permit = connections.admit().await.ok_or_else(|| io::Error::other("the connection limit is gone"))?;
    Ok((stream, peer, permit))
}

/// accept(2): errors that were pending on the new connection.
fn concerns_one_connection(error: &io::Error) -> bool {
    const PENDING: [Errno; 10] = [
        Errno::CONNABORTED,
        Errno::CONNRESET,
        Errno::INTR,
        Errno::PROTO,
        Errno::NETDOWN,
        Errno::NETUNREACH,
        Errno::HOSTDOWN,
        Errno::HOSTUNREACH,
        Errno::NOPROTOOPT,
        Errno::PERM,
    ];
    PENDING.iter().any(|errno| is(error, *errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::mpsc;

    async fn connect(address: SocketAddr) -> TcpStream {
        TcpStream::connect(address).await.unwrap()
    }

    #[tokio::test]
    async fn connections_over_the_limit_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (end, drain) = watch::channel(false);
        let (accepted, mut seen) = mpsc::unbounded_channel();
        let connections = Connections::new(1);
        let accepting = {
            let connections = connections.clone();
            tokio::spawn(async move {
                accept(listener, &connections, drain, |mut stream, _| {
                    let accepted = accepted.clone();
                    async move {
                        accepted.send(()).unwrap();
                        stream.read_u8().await.ok();
                    }
                })
                .await;
            })
        };
        let mut first = connect(address).await;
        seen.recv().await.unwrap();
        let second = connect(address).await;
        assert_eq!(connections.open(), 1);
        assert!(seen.try_recv().is_err());
        first.write_u8(1).await.unwrap();
        seen.recv().await.unwrap();

        // Draining: nobody is accepted any more, and the open connection goes on until its end.
        end.send(true).unwrap();
        accepting.await.unwrap();
        assert_eq!(connections.open(), 1);
        assert!(TcpStream::connect(address).await.is_err());
        drop(second);
        connections.all_ended().await;
        assert_eq!(connections.open(), 0);
    }

    #[test]
    fn running_out_is_told_from_a_lost_connection() {
        let error = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        assert!(concerns_one_connection(&error(Errno::CONNABORTED)));
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert!(!concerns_one_connection(&error(errno)), "{errno}");
        }
    }
}
