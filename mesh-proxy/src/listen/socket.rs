//! Listening sockets, and what the kernel knows of an accepted one.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::str::FromStr;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixDatagram};

/// Connections that may wait to be accepted; the kernel takes `net.core.somaxconn` when that is less.
const BACKLOG: i32 = 4096;

/// Where to listen: an address, or a socket that the process that started this one has opened already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    Address(SocketAddr),
    Inherited(RawFd),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a place to listen at; write ADDRESS:PORT, or fd:N for a socket that is open already")]
pub struct BindError(String);

impl FromStr for Bind {
    type Err = BindError;

    fn from_str(text: &str) -> Result<Self, BindError> {
        let parsed = match text.strip_prefix("fd:") {
            // 0 to 2 are the standard streams.
            Some(fd) => fd.parse().ok().filter(|fd| *fd > 2).map(Self::Inherited),
            None => text.parse().ok().map(Self::Address),
        };
        parsed.ok_or_else(|| BindError(text.to_owned()))
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Inherited(fd) => write!(f, "fd:{fd}"),
        }
    }
}

/// All addresses of the machine, IPv4 and IPv6.
pub fn everywhere(port: u16) -> Bind {
    Bind::Address((Ipv6Addr::UNSPECIFIED, port).into())
}

/// Listens for TCP. `[::]` takes IPv4 too, and where the machine has no IPv6 it means `0.0.0.0`.
pub fn tcp_listener(bind: Bind) -> io::Result<TcpListener> {
    let socket = match bind {
        Bind::Inherited(fd) => {
            let socket = inherited(fd)?;
            if socket.r#type()? != Type::STREAM || !socket.is_listener()? {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("file descriptor {fd} is not a listening TCP socket; pass one that listens"),
                ));
            }
            socket
        }
        Bind::Address(address) => match listening(address) {
            Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && no_ipv6(&error) => {
                listening((Ipv4Addr::UNSPECIFIED, address.port()).into())?
            }
            other => other?,
        },
    };
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

/// A connected UDP socket that the process that started this one has opened.
pub fn inherited_udp(fd: RawFd) -> io::Result<UdpSocket> {
    let socket = inherited(fd)?;
    if socket.r#type()? != Type::DGRAM || socket.peer_addr().is_err() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("file descriptor {fd} is not a connected UDP socket; pass one that is"),
        ));
    }
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket.into())
}

/// One end of a pair of Unix datagram sockets, the other end of which the process that started this one has.
pub fn inherited_unix_datagrams(fd: RawFd) -> io::Result<UnixDatagram> {
    let socket = inherited(fd)?;
    if socket.r#type()? != Type::DGRAM || !socket.peer_addr().is_ok_and(|peer| peer.is_unix()) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("file descriptor {fd} is not a connected Unix datagram socket; pass one that is"),
        ));
    }
    socket.set_nonblocking(true)?;
    UnixDatagram::from_std(OwnedFd::from(socket).into())
}

/// Where the connection was going before the redirect, or where it arrived when there was none.
pub fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let local = stream.local_addr()?;
    let plain = plain(local);
    let socket = SockRef::from(stream);
    // An IPv4 connection keeps its original destination in the IPv4 option even on an IPv6 socket.
    let found = if plain.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    match found {
        Ok(address) => Ok(address.as_socket().map_or(plain, self::plain)),
        // No such entry, or no connection tracking at all: nothing was redirected.
        Err(error) if [Errno::NOENT, Errno::NOPROTOOPT, Errno::OPNOTSUPP].iter().any(|it| is(&error, *it)) => Ok(plain),
        Err(error) => Err(error),
    }
}

/// The address without IPv4 mapped into IPv6, and without a scope or flow that would make equal addresses differ.
pub fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Makes the kernel answer with a reset, not a clean end, when the socket is closed.
pub fn reset_on_close(stream: &TcpStream) {
    if let Err(error) = SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "a connection will end with FIN instead of a reset");
    }
}

/// Leaves the socket alone in the redirect, so that what the proxy sends does not come back to it. Without the
/// permission to mark there is no redirect by mark either.
pub fn mark(socket: &impl std::os::fd::AsFd) {
    if let Err(error) = SockRef::from(socket).set_mark(mesh_common::names::SOCKET_MARK) {
        tracing::trace!(%error, "a socket could not be marked");
    }
}

fn listening(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(address.ip() != Ipv6Addr::UNSPECIFIED)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn no_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || is(error, Errno::AFNOSUPPORT)
}

pub(super) fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn inherited(fd: RawFd) -> io::Result<Socket> {
    // SAFETY: the number comes from whoever started this process and opened the descriptor for it; nothing else in
    // the process uses it, and a number that is not open is found out by the first call below.
    #[allow(unsafe_code)]
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    let socket = Socket::from(owned);
    match socket.set_cloexec(true) {
        Ok(()) => Ok(socket),
        Err(error) => {
            // Not open: there is nothing to close.
            std::mem::forget(socket);
            Err(io::Error::new(error.kind(), format!("file descriptor {fd} is not open: {error}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;
    use tokio::io::AsyncReadExt;

    #[test]
    fn places_to_listen() {
        assert_eq!("127.0.0.1:80".parse(), Ok(Bind::Address("127.0.0.1:80".parse().unwrap())));
        assert_eq!("[::1]:80".parse(), Ok(Bind::Address("[::1]:80".parse().unwrap())));
        assert_eq!("fd:7".parse(), Ok(Bind::Inherited(7)));
        for text in ["", "80", "fd:", "fd:-1", "fd:1", "localhost:80"] {
            assert!(text.parse::<Bind>().is_err(), "{text}");
        }
    }

    #[test]
    fn mapped_addresses_become_plain() {
        let address: SocketAddr = "[::ffff:10.0.0.1]:80".parse().unwrap();
        assert_eq!(plain(address), "10.0.0.1:80".parse().unwrap());
        assert_eq!(plain("[::1]:80".parse().unwrap()), "[::1]:80".parse().unwrap());
    }

    #[tokio::test]
    async fn everywhere_takes_ipv4_and_says_its_plain_address() {
        let listener = tcp_listener(everywhere(0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        assert_eq!(plain(peer), client.local_addr().unwrap());
        // Nothing was redirected.
        assert_eq!(original_destination(&accepted).unwrap(), SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    }

    #[tokio::test]
    async fn a_reset_is_no_clean_end() {
        let listener = tcp_listener("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        reset_on_close(&accepted);
        drop(accepted);
        assert_eq!(client.read(&mut [0; 8]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn inherited_sockets_are_checked() {
        let listening = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listening.local_addr().unwrap();
        let listener = tcp_listener(Bind::Inherited(listening.into_raw_fd())).unwrap();
        assert_eq!(listener.local_addr().unwrap(), address);

        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let error = tcp_listener(Bind::Inherited(udp.into_raw_fd())).unwrap_err();
        assert!(error.to_string().contains("not a listening TCP socket"), "{error}");
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(inherited_udp(udp.into_raw_fd()).unwrap_err().to_string().contains("not a connected UDP socket"));
        let (unix, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        assert!(inherited_unix_datagrams(unix.into_raw_fd()).is_ok());
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(inherited_unix_datagrams(udp.into_raw_fd()).unwrap_err().to_string().contains("not a connected Unix"));
        assert!(tcp_listener(Bind::Inherited(1_000_000)).unwrap_err().to_string().contains("is not open"));
    }
}
