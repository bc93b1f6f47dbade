//! The host's resolver, as sockets that work inside of namespaces that cannot reach it.
//!
//! In: queries of the proxy, one in each message. Out: the resolver's replies. Over UDP the proxy does that by itself, with
//! a socket that belongs to the host's network wherever it is used. A TCP connection serves but a few queries, and nobody
//! inside can open the next one; so whoever wants a reply whole sends the query here, and this process asks over TCP.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram as StdUnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixDatagram};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

/// For one query; the proxy does not wait longer.
const TRY: Duration = Duration::from_secs(2);
/// Connections to the resolver at a time; further queries wait in the socket.
const MAX_CONNECTIONS: usize = 32;
/// A longer message is no query.
const MAX_QUERY: usize = 4096;

/// What the proxy inherits. Queries are answered until this is dropped.
#[derive(Debug)]
pub(super) struct HostResolver {
    /// Connected to the resolver.
    pub(super) udp: UdpSocket,
    /// One query, or one reply that was not cut off, in each message.
    pub(super) whole: StdUnixDatagram,
    relay: AbortHandle,
}

impl Drop for HostResolver {
    fn drop(&mut self) {
        self.relay.abort();
    }
}

/// The first resolver of resolv.conf that there is a way to. `None`: there is none, and names outside of the mesh will not
/// resolve. Needs a Tokio runtime.
pub(super) fn host_resolver() -> Option<HostResolver> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    nameservers(&text).into_iter().find_map(|server| open(SocketAddr::new(server, 53)).ok())
}

fn open(server: SocketAddr) -> io::Result<HostResolver> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let udp = UdpSocket::bind((any, 0))?;
    udp.connect(server)?;
    let (whole, own) = StdUnixDatagram::pair()?;
    own.set_nonblocking(true)?;
    let relay = tokio::spawn(relay(UnixDatagram::from_std(own)?, server)).abort_handle();
    Ok(HostResolver { udp, whole, relay })
}

/// Takes queries until the proxy's end of the socket is closed.
async fn relay(socket: UnixDatagram, server: SocketAddr) {
    let (socket, free) = (Arc::new(socket), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
    let mut queries = JoinSet::new();
    let mut buffer = [0; MAX_QUERY];
    while let Ok(free) = free.clone().acquire_owned().await {
        while queries.try_join_next().is_some() {}
        let Ok(length) = socket.recv(&mut buffer).await else { return };
        let (socket, query) = (socket.clone(), buffer[..length].to_vec());
        queries.spawn(async move {
            let _free = free;
            // Without a reply the proxy tries again, as if the resolver had said nothing.
            match tokio::time::timeout(TRY, ask(server, &query)).await {
                Ok(Ok(reply)) => drop(socket.send(&reply).await),
                Ok(Err(error)) => tracing::debug!(%server, %error, "the host's resolver cannot be asked over TCP"),
                Err(_) => tracing::debug!(%server, "the host's resolver does not answer over TCP"),
            }
        });
    }
}

/// RFC 7766: each message has its length before it.
async fn ask(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], query].concat()).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
}

/// Scoped addresses (`fe80::1%eth0`) are left out.
fn nameservers(text: &str) -> Vec<IpAddr> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    lines.filter_map(|rest| rest.split_whitespace().next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn resolvers_are_read_from_resolv_conf() {
        let text = "# nameserver 9.9.9.9\nsearch example.org\nnameserver 192.0.2.1\n  nameserver\t2001:db8::1 # second\nnameserver fe80::1%eth0\n";
        assert_eq!(nameservers(text), ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]);
    }

    #[tokio::test]
    async fn whole_replies_come_over_tcp_each_in_a_message() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let resolver = open(server.local_addr().unwrap()).unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = server.accept().await.unwrap();
                let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
                stream.read_exact(&mut query).await.unwrap();
                // One that ends without a reply harms no other.
                if query == b"bad" {
                    continue;
                }
                query.resize(60_000, b'.');
                stream.write_all(&[&60_000_u16.to_be_bytes()[..], &query].concat()).await.unwrap();
            }
        });
        let inside = resolver.whole.try_clone().unwrap();
        inside.set_nonblocking(true).unwrap();
        let inside = UnixDatagram::from_std(inside).unwrap();
        let mut buffer = vec![0; 65_535];
        for query in [&b"bad"[..], b"first", b"second"] {
            inside.send(query).await.unwrap();
        }
        let mut seen = Vec::new();
        for _ in 0..2 {
            let length = inside.recv(&mut buffer).await.unwrap();
            assert_eq!(length, 60_000);
            seen.push(buffer[..5].to_vec());
        }
        seen.sort();
        assert_eq!(seen, [b"first".to_vec(), b"secon".to_vec()]);
    }
}
