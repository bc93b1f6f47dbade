//! The way to the application, which is on this machine: at the address that its caller wanted, else by loopback.
//!
//! The proxy's own connections to this machine's addresses are redirected to its inbound port, because what waits there
//! speaks mutual TLS. Those of [`PRIORITY_TO_APPLICATION`] are not.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mesh_common::names::PRIORITY_TO_APPLICATION;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

use crate::listen::mark;

/// Whether this machine has the address, and it is no loopback address.
pub fn is_own(ip: IpAddr) -> bool {
    !ip.is_loopback() && !ip.is_unspecified() && std::net::UdpSocket::bind((ip, 0)).is_ok()
}

/// Connects to an address of this machine in the way that the redirect leaves alone.
pub async fn connect_at(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    mark(&socket);
    SockRef::from(&socket).set_priority(PRIORITY_TO_APPLICATION)?;
    if address.is_ipv4() {
        // What the application takes for local stays local. (Over IPv6 a port where nobody listens would then not answer.)
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    }
    socket.connect(address).await
}

/// Connects to the application's port, at the first of its addresses, else of the loopback addresses, that takes the
/// connection. The error is that of the first.
pub async fn connect(own: &[IpAddr], port: u16) -> io::Result<TcpStream> {
    let loopbacks = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let mut first = None;
    for ip in own.iter().copied().filter(|ip| is_own(*ip)).chain(loopbacks) {
        match connect_at((ip, port).into()).await {
            Ok(stream) => return Ok(stream),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::intercept;

    async fn greet(listener: TcpListener, greeting: &'static [u8]) {
        loop {
            let (mut stream, peer) = listener.accept().await.unwrap();
            assert!(peer.ip().is_loopback() || peer.is_ipv6(), "{peer}");
            tokio::io::AsyncWriteExt::write_all(&mut stream, greeting).await.unwrap();
        }
    }

    async fn said(connected: io::Result<TcpStream>) -> String {
        let mut text = String::new();
        connected.unwrap().read_to_string(&mut text).await.unwrap();
        text
    }

    #[test]
    fn knows_which_addresses_are_its_own() {
        for ip in ["127.0.0.1", "::1", "0.0.0.0", "::", "192.0.2.7", "2001:db8::7"] {
            assert!(!is_own(ip.parse().unwrap()), "{ip}");
        }
    }

    /// Where connections are redirected, and the application listens on one address only.
    #[test]
    fn finds_the_application_where_it_listens() {
        if !intercept::tests::runs_in_namespace("application::tests::finds_the_application_where_it_listens") {
            return;
        }
        intercept::apply(&intercept::Rules::default()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let own: [IpAddr; 2] = ["10.77.0.2".parse().unwrap(), "fd77::2".parse().unwrap()];
            assert!(own.iter().all(|ip| is_own(*ip)));
            for (listen, greeting) in [
                ("10.77.0.2:81", "v4"),
                ("[fd77::2]:82", "v6"),
                ("127.0.0.1:83", "loopback"),
                ("[::1]:84", "loopback v6"),
                ("10.77.0.2:85", "own"),
                ("127.0.0.1:85", "not this"),
                ("10.77.0.2:15006", "the proxy itself"),
                ("127.0.0.1:15006", "the proxy itself"),
                ("[::1]:15006", "the proxy itself"),
            ] {
                tokio::spawn(greet(TcpListener::bind(listen).await.unwrap(), greeting.as_bytes()));
            }
            for (port, expected) in [(81, "v4"), (82, "v6"), (83, "loopback"), (84, "loopback v6"), (85, "own")] {
                assert_eq!(said(connect(&own, port).await).await, expected);
            }
            assert_eq!(connect(&own, 86).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
            // What belongs to nobody here is not asked.
            assert_eq!(said(connect(&["192.0.2.7".parse().unwrap()], 83).await).await, "loopback");
        });
    }
}
