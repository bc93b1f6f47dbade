//! DNS for the application. In: the queries that the redirect sends here, over UDP and TCP. Out: virtual addresses for
//! names of the mesh, and for all else what the host's resolver says.

pub(crate) mod message;
mod resolvers;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::Name as DnsName;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::config::Name;
use crate::listen;
use crate::snapshot::{Found, Store};
use crate::telemetry::{DnsResult, Telemetry};

pub use resolvers::{Inherited, Resolvers};

use message::{Answer, Query};

/// Queries being answered at a time; more are dropped, and their clients ask again.
const MAX_QUERIES: usize = 1024;
const MAX_TCP: usize = 128;
/// Between two queries of a TCP connection, and for the rest of one.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Names that stand for each other are followed so far.
const MAX_ALIASES: usize = 8;
/// A longer datagram is no query that we could forward over UDP either.
const MAX_DATAGRAM: usize = 4096;

/// Sockets for queries.
#[derive(Debug)]
pub struct DnsSockets {
    udp: Vec<Arc<UdpSocket>>,
    tcp: Vec<TcpListener>,
}

impl DnsSockets {
    /// On the loopback addresses, where the redirect of the application's queries ends: each by itself, because a
    /// reply must come from the address that the query was redirected to.
    pub fn bind(port: u16) -> io::Result<Self> {
        let mut sockets = Self { udp: vec![], tcp: vec![] };
        sockets.add((Ipv4Addr::LOCALHOST, port).into())?;
        let port = sockets.address()?.port();
        if let Err(error) = sockets.add((Ipv6Addr::LOCALHOST, port).into()) {
            tracing::debug!(%error, "no DNS over IPv6");
        }
        Ok(sockets)
    }

    /// Of the first socket.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.first().map_or_else(|| Err(io::ErrorKind::NotConnected.into()), TcpListener::local_addr)
    }

    fn add(&mut self, address: SocketAddr) -> io::Result<()> {
        let tcp = listen::tcp_listener(listen::Bind::Address(address))?;
        let address = tcp.local_addr()?;
        let udp = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        if address.is_ipv6() {
            udp.set_only_v6(true)?;
        }
        udp.bind(&address.into())?;
        self.udp.push(Arc::new(UdpSocket::from_std(udp.into())?));
        self.tcp.push(tcp);
        Ok(())
    }
}

/// Answers queries.
#[derive(Debug)]
pub struct Dns {
    store: Store,
    resolvers: Resolvers,
    telemetry: Telemetry,
    free: Semaphore,
    tcp_free: Semaphore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

impl Dns {
    pub fn new(store: Store, resolvers: Resolvers, telemetry: Telemetry) -> Self {
        let (free, tcp_free) = (Semaphore::new(MAX_QUERIES), Semaphore::new(MAX_TCP));
        Self { store, resolvers, telemetry, free, tcp_free }
    }

    /// Answers queries for as long as it is polled.
    pub async fn serve(self: Arc<Self>, sockets: DnsSockets) {
        let mut tasks = JoinSet::new();
        for socket in sockets.udp {
            tasks.spawn(self.clone().serve_udp(socket));
        }
        for listener in sockets.tcp {
            tasks.spawn(self.clone().serve_tcp(listener));
        }
        tasks.join_all().await;
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = [0; MAX_DATAGRAM];
        loop {
            let (length, peer) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    // Errors about replies that nobody took come back here too.
                    tracing::debug!(%error, "receiving a DNS query failed");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
            };
            let (dns, socket, query) = (self.clone(), socket.clone(), buffer[..length].to_vec());
            tokio::spawn(async move {
                if let Some(reply) = dns.answer(&query, Transport::Udp).await
                    && let Err(error) = socket.send_to(&reply, peer).await
                {
                    tracing::debug!(%peer, %error, "sending a DNS reply failed");
                }
            });
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let dns = self.clone();
                    tokio::spawn(async move {
                        let Ok(_free) = dns.tcp_free.try_acquire() else { return };
                        if let Err(error) = dns.converse(stream).await {
                            tracing::debug!(%peer, %error, "a DNS connection failed");
                        }
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a DNS connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// RFC 7766: queries one after the other, each with its length before it.
    async fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let query = match tokio::time::timeout(TCP_IDLE, read_framed(&mut stream)).await {
                Ok(Ok(Some(query))) => query,
                Ok(Ok(None)) | Err(_) => return Ok(()),
                Ok(Err(error)) => return Err(error),
            };
            let Some(reply) = self.answer(&query, Transport::Tcp).await else { return Ok(()) };
            let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
            let framed = [&length.to_be_bytes()[..], &reply].concat();
            tokio::time::timeout(TCP_IDLE, stream.write_all(&framed)).await??;
        }
    }

    /// The reply to a query. `None`: there is nobody to whom a reply would make sense, or no room for the query.
    async fn answer(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let Ok(_free) = self.free.try_acquire() else {
            self.telemetry.dns(DnsResult::Failed);
            return None;
        };
        self.reply(query, transport, 0).await
    }

    /// `aliases`: how many have led here.
    async fn reply(&self, query: &[u8], transport: Transport, aliases: usize) -> Option<Vec<u8>> {
        match Query::read(query) {
            Query::Ignore => {
                self.telemetry.dns(DnsResult::Malformed);
                None
            }
            Query::Refuse(reply) => {
                self.telemetry.dns(DnsResult::Malformed);
                Some(reply)
            }
            Query::Other => self.forward(query, transport).await,
            Query::Name { name, message } => {
                let Some(name) = self.find(&name).await else { return self.forward(query, transport).await };
                let answer = match &name.alias {
                    Some(alias) => self.behind(alias, &name, &message, aliases).await,
                    None => {
                        let answer = Answer::new(&message, &name);
                        self.telemetry.dns(if answer.is_empty() { DnsResult::NoData } else { DnsResult::Mesh });
                        Some(answer)
                    }
                };
                let Some(answer) = answer else {
                    self.telemetry.dns(DnsResult::Failed);
                    return Some(message::error(query, ResponseCode::ServFail));
                };
                answer.encode(match transport {
                    Transport::Udp => message::udp_limit(&message),
                    Transport::Tcp => u16::MAX,
                })
            }
        }
    }

    /// The alias, and what it stands for, as what that is counted. `None`: too many have led here.
    async fn behind(&self, alias: &DnsName, name: &Name, asked: &Message, aliases: usize) -> Option<Answer> {
        if aliases == MAX_ALIASES {
            return None;
        }
        let found = match message::about(alias, asked) {
            Some(query) => Box::pin(self.reply(&query, Transport::Tcp, aliases + 1)).await,
            None => None,
        };
        let found = found.and_then(|reply| Message::from_vec(&reply).ok());
        Some(Answer::alias(asked, name, alias, found))
    }

    async fn find(&self, name: &str) -> Option<Arc<Name>> {
        if let Some(found) = self.store.load().name(name) {
            return Some(found.clone());
        }
        match self.store.name(name).await {
            Found::Yes(found) => Some(found),
            // Not the mesh's, or nobody who knows: the host's resolver is asked.
            Found::Absent | Found::Unknown => None,
        }
    }

    async fn forward(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let reply = self.resolvers.ask(query, transport == Transport::Tcp).await;
        let fitting = reply.and_then(|reply| match transport {
            Transport::Udp => message::for_udp(reply, query),
            Transport::Tcp => Some(reply),
        });
        if let Some(reply) = fitting {
            self.telemetry.dns(DnsResult::Forwarded);
            return Some(reply);
        }
        self.telemetry.dns(DnsResult::Failed);
        Some(message::error(query, ResponseCode::ServFail))
    }
}

/// `None`: the client ended the connection between two queries.
async fn read_framed(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut query = vec![0; usize::from(length)];
    stream.read_exact(&mut query).await?;
    Ok(Some(query))
}

#[cfg(test)]
mod tests;
