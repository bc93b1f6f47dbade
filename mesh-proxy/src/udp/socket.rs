//! Sockets for datagrams that were going elsewhere: one that gets them with their own destination, and one that answers
//! from there. Both need CAP_NET_ADMIN or CAP_NET_RAW.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::packet;
use crate::listen;

/// Larger than any datagram.
pub(super) const MAX_DATAGRAM: usize = 65_536;
/// What the kernel keeps while the proxy is busy.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Where the redirect hands datagrams to.
#[derive(Debug)]
pub struct UdpSockets {
    /// One for each family that is there.
    pub(super) receivers: Vec<Receiver>,
    pub(super) replies: Replies,
}

impl UdpSockets {
    /// At this port of the loopback addresses.
    pub fn bind(port: u16) -> io::Result<Self> {
        let mut receivers = vec![Receiver::bind((Ipv4Addr::LOCALHOST, port).into())?];
        let mut replies = Replies { v4: raw(Domain::IPV4)?, v6: None };
        match Receiver::bind((Ipv6Addr::LOCALHOST, port).into()).and_then(|it| Ok((it, raw(Domain::IPV6)?))) {
            Ok((receiver, raw)) => {
                receivers.push(receiver);
                replies.v6 = Some(raw);
            }
            Err(error) => tracing::debug!(%error, "no datagrams over IPv6"),
        }
        Ok(Self { receivers, replies })
    }
}

/// A datagram's length, who sent it, and where it was going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) length: usize,
    pub(super) client: SocketAddr,
    pub(super) destination: SocketAddr,
}

#[derive(Debug)]
pub(super) struct Receiver(UdpSocket);

impl Receiver {
    fn bind(address: SocketAddr) -> io::Result<Self> {
        let kind = Type::DGRAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::UDP))?;
        // Only such a socket is handed what is not for this machine; the option is one for both families.
        setsockopt(&socket, sockopt::IpTransparent, &true)?;
        match address {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true)?,
            SocketAddr::V6(_) => {
                socket.set_only_v6(true)?;
                setsockopt(&socket, sockopt::Ipv6OrigDstAddr, &true)?;
            }
        }
        // As much of it as the kernel gives.
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.bind(&address.into())?;
        Ok(Self(UdpSocket::from_std(socket.into())?))
    }

    /// `None` for a datagram about which the kernel does not say where it was going.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        self.0.async_io(Interest::READABLE, || receive(self.0.as_raw_fd(), buffer)).await
    }
}

fn receive(fd: i32, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let mut control = nix::cmsg_space!(nix::libc::sockaddr_in6);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control[..]), MsgFlags::empty())?;
    let client = message.address.as_ref().and_then(address);
    let mut destination = None;
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::Ipv4OrigDstAddr(it) => {
                let ip = Ipv4Addr::from(u32::from_be(it.sin_addr.s_addr));
                destination = Some(SocketAddr::new(ip.into(), u16::from_be(it.sin_port)));
            }
            ControlMessageOwned::Ipv6OrigDstAddr(it) => {
                let ip = Ipv6Addr::from(it.sin6_addr.s6_addr);
                destination = Some(SocketAddr::new(ip.into(), u16::from_be(it.sin6_port)));
            }
            _ => {}
        }
    }
    let (Some(client), Some(destination)) = (client, destination) else { return Ok(None) };
    Ok(Some(Received { length: message.bytes, client, destination }))
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|it| SocketAddr::from(SocketAddrV4::new(it.ip(), it.port())));
    v4.or_else(|| storage.as_sockaddr_in6().map(|it| SocketAddrV6::new(it.ip(), it.port(), 0, 0).into()))
}

/// Sends datagrams from any address. Whole packets, instead of a socket bound to each address: that one could not be had
/// where the application itself serves the same port.
#[derive(Debug)]
pub(super) struct Replies {
    v4: Socket,
    v6: Option<Socket>,
}

impl Replies {
    pub(super) fn send(&self, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
        let too_long = || io::Error::from(io::ErrorKind::InvalidInput);
        let packet = packet::datagram(from, to, payload).ok_or_else(too_long)?;
        let socket = match to.ip() {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => self.v6.as_ref().ok_or(io::ErrorKind::AddrNotAvailable)?,
        };
        // The port is in the packet; the address of a raw socket has none.
        socket.send_to(&packet, &SocketAddr::new(to.ip(), 0).into()).map(drop)
    }
}

fn raw(domain: Domain) -> io::Result<Socket> {
    /// Packets with their own headers; nothing is ever received.
    const IPPROTO_RAW: i32 = 255;
    let socket = Socket::new(domain, Type::RAW.nonblocking().cloexec(), Some(Protocol::from(IPPROTO_RAW)))?;
    listen::mark(&socket);
    Ok(socket)
}
