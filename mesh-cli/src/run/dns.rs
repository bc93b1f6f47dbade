//! The host's resolver, as a socket that works inside of namespaces that cannot reach it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// A UDP socket of the host's network, connected to the first resolver of resolv.conf. `None`: there is none, and names
/// outside of the mesh will not resolve.
pub(super) fn host_resolver() -> Option<UdpSocket> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    nameservers(&text).into_iter().find_map(|server| connect(server).ok())
}

fn connect(server: IpAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(SocketAddr::new(server, 53))?;
    Ok(socket)
}

/// Scoped addresses (`fe80::1%eth0`) are left out.
fn nameservers(text: &str) -> Vec<IpAddr> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    lines.filter_map(|rest| rest.split_whitespace().next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_from_resolv_conf() {
        let text = "# nameserver 9.9.9.9\nsearch example.org\nnameserver 192.0.2.1\n  nameserver\t2001:db8::1 # second\nnameserver fe80::1%eth0\n";
        assert_eq!(nameservers(text), ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]);
    }
}
