//! Transparent interception: an nf_tables table of the current network namespace that hands the application's
//! connections to this proxy, and its datagrams to virtual addresses.
//!
//! In: [`Rules`], which say what is redirected where and what is left alone. Out: table `inet mesh`, written as one
//! transaction over netlink, so that there is never half of it. Nothing but this table is touched, and for datagrams a
//! routing table of our own and the rule that leads to it.
//!
//! ```text
//! mark or uid of the proxy ----> goto `own`: only to the machine's own non-loopback addresses -> inbound port,
//!                                but not what it means for the application (by its priority)
//! dport 53, TCP and UDP -------> DNS port (also towards 127.0.0.53 and other loopback resolvers)
//! loopback, excluded ----------> left alone
//! other TCP going out ---------> outbound port
//! TCP coming in, local daddr --> inbound port, but for the excluded ports
//! UDP to virtual addresses ----> marked, routed back in by the mark, and there handed to the outbound port as it is
//! ```

mod barrier;
mod command;
mod expression;
pub(crate) mod message;
mod netlink;
mod routing;
mod rules;
mod self_test;
#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::net::IpAddr;
use std::str::FromStr;

use mesh_common::names::{self, port};

pub use barrier::guard_datagrams;
pub use command::{Args, execute};
pub use self_test::{Report, can_mark, own_self_test, self_test};

/// The table that holds all of it; family `inet`, so both IPv4 and IPv6.
pub const TABLE: &str = "mesh";

/// What is redirected, and what is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    pub outbound_port: u16,
    pub inbound_port: u16,
    /// `None`: DNS is not redirected.
    pub dns_port: Option<u16>,
    /// UDP to virtual addresses is handed to the outbound port. That needs a proxy with CAP_NET_ADMIN (or CAP_NET_RAW).
    pub udp: bool,
    /// Mark of the proxy's own sockets (`SO_MARK`).
    pub mark: u32,
    /// Users whose traffic is left alone as well, such as the one that a resolver on this machine runs as.
    pub exclude_uids: Vec<u32>,
    /// Ports that peers reach without the proxy, such as the one that Prometheus scrapes.
    pub exclude_inbound_ports: Vec<u16>,
    /// Destination ports that the application reaches without the proxy.
    pub exclude_outbound_ports: Vec<u16>,
    /// Destination addresses that the application reaches without the proxy.
    pub exclude_cidrs: Vec<Cidr>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            outbound_port: port::OUTBOUND,
            inbound_port: port::INBOUND,
            dns_port: Some(port::DNS),
            udp: false,
            mark: names::SOCKET_MARK,
            exclude_uids: Vec::new(),
            exclude_inbound_ports: vec![port::READY, port::PROXY_METRICS],
            exclude_outbound_ports: Vec::new(),
            exclude_cidrs: Vec::new(),
        }
    }
}

impl Rules {
    /// Whether the application reaches this destination without the proxy.
    fn leave_alone(&self, address: IpAddr, port: u16) -> bool {
        self.exclude_outbound_ports.contains(&port) || self.exclude_cidrs.iter().any(|range| range.contains(address))
    }
}

/// Creates the table, or replaces it if it is there, in one transaction, and then the routing of datagrams.
pub fn apply(rules: &Rules) -> Result<(), Error> {
    netlink::commit(&rules::replace(rules))?;
    if rules.udp { routing::add() } else { routing::remove() }
}

/// Removes the table. Not an error if there is none.
pub fn remove() -> Result<(), Error> {
    netlink::commit(&rules::delete())?;
    routing::remove()
}

/// Whether the table is there as a whole.
pub fn is_applied() -> Result<bool, Error> {
    for chain in rules::CHAINS {
        if !netlink::chain_exists(chain)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A range of addresses, `10.0.0.0/8` or `fd00::/8`; one address is a range of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    fn contains(&self, address: IpAddr) -> bool {
        let prefix = u32::from(self.prefix);
        match (self.address, address) {
            (IpAddr::V4(range), IpAddr::V4(address)) => {
                (range.to_bits() ^ address.to_bits()).checked_shr(32 - prefix).unwrap_or(0) == 0
            }
            (IpAddr::V6(range), IpAddr::V6(address)) => {
                (range.to_bits() ^ address.to_bits()).checked_shr(128 - prefix).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr =
            address.parse().map_err(|_| format!("`{address}` is not an IP address (write it like 10.0.0.0/8)"))?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            Some(prefix) => prefix
                .parse()
                .ok()
                .filter(|prefix| *prefix <= bits)
                .ok_or_else(|| format!("`/{prefix}` is not a prefix length (0 to {bits})"))?,
        };
        Ok(Self { address, prefix })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "no permission to change the firewall of this network namespace: it needs CAP_NET_ADMIN (run it as root, in a user and \
         network namespace of its own, or give the container that capability)"
    )]
    Permission,
    #[error("this kernel cannot {what}: it lacks the module `{module}` (try `modprobe {module}` as root)")]
    Module { what: String, module: &'static str },
    #[error("the kernel refused to {what}: {error}")]
    Refused { what: String, error: io::Error },
    #[error("talking to the kernel over netlink failed: {0}")]
    Netlink(#[source] io::Error),
    #[error("the self-test of the interception failed: {0}")]
    SelfTest(String),
}
