//! The host's resolvers, for what the mesh does not know. Queries and replies pass as they are, but for the id.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket, UnixDatagram};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::message::{answers, is_truncated};
use crate::listen;

/// How long to wait for one reply; a client waits five seconds as a rule, and there may be a second resolver.
const TRY: Duration = Duration::from_secs(2);
/// How often to go through the resolvers.
const ROUNDS: usize = 2;
const MAX_REPLY: usize = 65_535;

/// Where to send queries. Without any, nothing but the mesh's names resolves.
#[derive(Debug, Default)]
pub struct Resolvers {
    servers: Vec<Server>,
}

#[derive(Debug)]
enum Server {
    Address(SocketAddr),
    /// Sockets that were connected outside, where the resolver can be reached.
    Inherited {
        udp: Shared,
        whole: Option<Shared>,
    },
}

/// Sockets opened by who started this program, where it cannot reach the resolver by itself.
#[derive(Debug)]
pub struct Inherited {
    /// Connected to the resolver.
    pub udp: UdpSocket,
    /// To somebody who asks the resolver over TCP: one query, or one reply, in each message.
    pub whole: Option<UnixDatagram>,
}

impl Resolvers {
    /// The resolver behind the `inherited` sockets is asked before those at `addresses`. Needs a Tokio runtime.
    pub fn new(addresses: Vec<SocketAddr>, inherited: Option<Inherited>) -> Self {
        let inherited = inherited.map(|Inherited { udp, whole }| Server::Inherited {
            udp: Shared::new(Messages::Udp(udp)),
            whole: whole.map(|socket| Shared::new(Messages::Unix(socket))),
        });
        Self { servers: inherited.into_iter().chain(addresses.into_iter().map(Server::Address)).collect() }
    }

    /// The reply to a query, which has a header, with the query's own id. `whole`: one that says that it was cut off
    /// is no use.
    pub(super) async fn ask(&self, query: &[u8], whole: bool) -> Option<Vec<u8>> {
        let mut query = query.to_vec();
        let id = [query[0], query[1]];
        for _ in 0..ROUNDS {
            for server in &self.servers {
                match tokio::time::timeout(TRY, server.ask(&mut query, whole)).await {
                    Ok(Ok(mut reply)) => {
                        reply[..2].copy_from_slice(&id);
                        return Some(reply);
                    }
                    Ok(Err(error)) => tracing::debug!(?server, %error, "a DNS resolver cannot be asked"),
                    Err(_) => tracing::debug!(?server, "a DNS resolver does not answer"),
                }
            }
        }
        None
    }
}

impl Server {
    async fn ask(&self, query: &mut [u8], whole: bool) -> io::Result<Vec<u8>> {
        match self {
            Self::Inherited { udp, whole: over_tcp } => {
                let reply = udp.ask(query).await?;
                match over_tcp {
                    Some(over_tcp) if whole && is_truncated(&reply) => over_tcp.ask(query).await,
                    _ => Ok(reply),
                }
            }
            Self::Address(address) => {
                set_id(query, fastrand::u16(..));
                let reply = ask_udp(*address, query).await?;
                if whole && is_truncated(&reply) { ask_tcp(*address, query).await } else { Ok(reply) }
            }
        }
    }
}

/// From a socket of its own, so that nobody who sees neither its port nor its id can answer in the resolver's place.
async fn ask_udp(address: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    listen::mark(&socket);
    socket.connect(&address.into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    socket.send(query).await?;
    let mut buffer = vec![0; MAX_REPLY];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(&buffer[..length], query) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(address: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    listen::mark(&socket);
    let mut stream = socket.connect(address).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    let framed = [&length.to_be_bytes()[..], query].concat();
    stream.write_all(&framed).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    if answers(&reply, query) {
        Ok(reply)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the reply is not to this question"))
    }
}

/// Many queries over one connected socket, told apart by their ids.
#[derive(Debug)]
struct Shared {
    socket: Arc<Messages>,
    waiting: Arc<Waiting>,
    receiver: JoinHandle<()>,
}

/// A connected socket that keeps messages apart.
#[derive(Debug)]
enum Messages {
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

impl Messages {
    async fn send(&self, message: &[u8]) -> io::Result<usize> {
        match self {
            Self::Udp(socket) => socket.send(message).await,
            Self::Unix(socket) => socket.send(message).await,
        }
    }

    async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Udp(socket) => socket.recv(buffer).await,
            Self::Unix(socket) => socket.recv(buffer).await,
        }
    }
}

#[derive(Debug, Default)]
struct Waiting {
    queries: Mutex<HashMap<u16, Asked>>,
}

#[derive(Debug)]
struct Asked {
    query: Vec<u8>,
    reply: oneshot::Sender<Vec<u8>>,
}

impl Shared {
    fn new(socket: Messages) -> Self {
        let (socket, waiting) = (Arc::new(socket), Arc::new(Waiting::default()));
        let receiver = tokio::spawn(receive(socket.clone(), waiting.clone()));
        Self { socket, waiting, receiver }
    }

    async fn ask(&self, query: &mut [u8]) -> io::Result<Vec<u8>> {
        let (reply, replied) = oneshot::channel();
        let id = self.waiting.add(query, reply).ok_or_else(|| io::Error::other("too many queries at once"))?;
        // Removed whether it was answered, failed, or was given up.
        let _removed = Remove { waiting: &self.waiting, id };
        self.socket.send(query).await?;
        replied.await.map_err(io::Error::other)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.receiver.abort();
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, HashMap<u16, Asked>> {
        self.queries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the query an id that nobody can guess and no other query has.
    fn add(&self, query: &mut [u8], reply: oneshot::Sender<Vec<u8>>) -> Option<u16> {
        let mut queries = self.lock();
        let id = (0..64).map(|_| fastrand::u16(..)).find(|id| !queries.contains_key(id))?;
        set_id(query, id);
        queries.insert(id, Asked { query: query.to_vec(), reply });
        Some(id)
    }

    fn take(&self, reply: &[u8]) -> Option<Asked> {
        let id = u16::from_be_bytes([*reply.first()?, *reply.get(1)?]);
        let mut queries = self.lock();
        if answers(reply, &queries.get(&id)?.query) { queries.remove(&id) } else { None }
    }
}

struct Remove<'a> {
    waiting: &'a Waiting,
    id: u16,
}

impl Drop for Remove<'_> {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.id);
    }
}

async fn receive(socket: Arc<Messages>, waiting: Arc<Waiting>) {
    let mut buffer = vec![0; MAX_REPLY];
    loop {
        match socket.recv(&mut buffer).await {
            Ok(length) => {
                if let Some(asked) = waiting.take(&buffer[..length]) {
                    // Whoever asked may have given up.
                    asked.reply.send(buffer[..length].to_vec()).ok();
                }
            }
            Err(error) => {
                // "Connection refused" for one query, as a rule; never a busy loop.
                tracing::debug!(%error, "receiving from the DNS resolver failed");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

fn set_id(query: &mut [u8], id: u16) {
    query[..2].copy_from_slice(&id.to_be_bytes());
}
