//! Accepting connections: within a limit, for as long as the proxy is not told to stop, whatever the kernel runs out of.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::socket::is;

/// How long to wait when the kernel has no file descriptors or memory left, so that connections can end.
const EXHAUSTED_WAIT: Duration = Duration::from_millis(100);

/// The connections of some listeners that are open.
#[derive(Clone, Debug)]
pub struct Connections {
    free: Arc<Semaphore>,
    open: watch::Sender<usize>,
}

/// A connection's place among them, until it is dropped.
struct Place {
    _permit: OwnedSemaphorePermit,
    open: watch::Sender<usize>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.send_modify(|open| *open -= 1);
    }
}

impl Connections {
    /// At most `max` at a time.
    pub fn new(max: usize) -> Self {
        let max = max.clamp(1, u32::MAX as usize);
        Self { free: Arc::new(Semaphore::new(max)), open: watch::Sender::new(0) }
    }

    /// Others, under the same limit.
    pub fn beside(&self) -> Self {
        Self { free: self.free.clone(), open: watch::Sender::new(0) }
    }

    pub fn open(&self) -> usize {
        *self.open.borrow()
    }

    /// Waits until no connection is open; of use when nobody accepts any more.
    pub async fn all_ended(&self) {
        // The sender is here.
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    async fn admit(&self) -> Option<Place> {
        let permit = self.free.clone().acquire_owned().await.ok()?;
        self.open.send_modify(|open| *open += 1);
        Some(Place { _permit: permit, open: self.open.clone() })
    }
}

/// Accepts connections and hands each to a task of its own, until `stop` is ready and those that the kernel has completed
/// by then are taken. Connections that are open go on.
pub async fn accept<F>(
    listener: TcpListener,
    connections: &Connections,
    stop: impl Future<Output = ()>,
    handle: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut stop = std::pin::pin!(stop);
    let mut stopped = false;
    let mut failing = false;
    loop {
        let accepting = accept_and_admit(&listener, connections);
        let accepted = if stopped {
            match accepting.now_or_never() {
                Some(accepted) => accepted,
                None => return,
            }
        } else {
            tokio::select! {
                biased;
                () = &mut stop => {
                    stopped = true;
                    continue;
                }
                accepted = accepting => accepted,
            }
        };
        match accepted {
            Ok((stream, peer, place)) => {
                failing = false;
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, %peer, "TCP_NODELAY could not be set");
                }
                let connection = handle(stream, super::plain(peer));
                tokio::spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(error) if concerns_one_connection(&error) => {
                tracing::debug!(%error, "a connection was gone before it was accepted")
            }
            Err(_) if stopped => return,
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
) -> io::Result<(TcpStream, SocketAddr, Place)> {
    let (stream, peer) = listener.accept().await?;
    let place = connections.admit().await.ok_or_else(|| io::Error::other("the connection limit is gone"))?;
    Ok((stream, peer, place))
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
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let (accepted, mut seen) = mpsc::unbounded_channel();
        let connections = Connections::new(1);
        let accepting = {
            let connections = connections.clone();
            tokio::spawn(async move {
                accept(listener, &connections, ended.map(drop), |mut stream, _| {
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
        end.send(()).unwrap();
        accepting.await.unwrap();
        assert_eq!(connections.open(), 1);
        assert!(TcpStream::connect(address).await.is_err());
        drop(second);
        connections.all_ended().await;
        assert_eq!(connections.open(), 0);
    }

    /// What a client has connected to before the end is no connection that nobody answers.
    #[tokio::test]
    async fn connections_that_the_kernel_has_completed_are_taken_before_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut clients = vec![];
        for _ in 0..5 {
            clients.push(connect(address).await);
        }
        let connections = Connections::new(10);
        accept(listener, &connections, async {}, |mut stream, _| async move {
            stream.write_all(b"hello").await.ok();
        })
        .await;
        for mut client in clients {
            let mut text = String::new();
            client.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "hello");
        }
        connections.all_ended().await;
    }

    #[tokio::test]
    async fn groups_share_a_limit_and_end_each_for_itself() {
        let inbound = Connections::new(2);
        let outbound = inbound.beside();
        let first = inbound.admit().await.unwrap();
        let _second = outbound.admit().await.unwrap();
        assert_eq!((inbound.open(), outbound.open()), (1, 1));
        assert!(inbound.admit().now_or_never().is_none());
        drop(first);
        inbound.all_ended().await;
        assert!(outbound.all_ended().now_or_never().is_none());
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
