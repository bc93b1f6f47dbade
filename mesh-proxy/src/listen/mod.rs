//! Where connections come in: what is known of each, and what every part of the data path shares.

mod accept;
mod in_flight;
mod phase;
mod socket;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::identity::Identity;
use mesh_common::names::port;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::detect::Learned;
use crate::limit::{Occupancy, RateLimits};
use crate::overload::{Overload, OverloadLimits};
use crate::snapshot::Store;
use crate::telemetry::Telemetry;
use crate::tls::Tls;
use crate::upstream::Upstreams;

pub use accept::{Connections, accept};
pub use in_flight::{Flight, InFlight};
pub use phase::Phase;
pub use socket::{
    Bind, BindError, everywhere, inherited_udp, inherited_unix_datagrams, mark, original_destination, plain,
    reset_on_close, tcp_listener,
};

/// Which way a connection crosses the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From a peer to the application.
    Inbound,
    /// From the application to somewhere else.
    Outbound,
}

impl Direction {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// How the connection with the other proxy is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    MutualTls,
    None,
}

impl Security {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::None => "none",
        }
    }
}

/// A connection that came in.
#[derive(Clone, Debug)]
pub struct Downstream {
    /// Who connected; a plain IPv4 address when it is one, never the mapped form.
    pub peer: SocketAddr,
    /// Where it wanted to go before the redirect; plain IPv4 in the same way.
    pub original_destination: SocketAddr,
    pub direction: Direction,
    /// The peer's identity, from the certificate that it proved to hold.
    pub identity: Option<Arc<Identity>>,
    /// The proxy ended TLS on this connection.
    pub tls: bool,
    /// The protocol that TLS agreed on, or for plaintext the one that was detected (`http/1.1`, `h2c`).
    pub alpn: Option<Vec<u8>>,
}

impl Downstream {
    /// One about which nothing more is known yet.
    pub fn new(peer: SocketAddr, original_destination: SocketAddr, direction: Direction) -> Self {
        Self { peer, original_destination, direction, identity: None, tls: false, alpn: None }
    }

    /// A connection that the redirect may have sent here.
    pub(crate) fn redirected(stream: &TcpStream, peer: SocketAddr, direction: Direction) -> io::Result<Self> {
        Ok(Self::new(peer, original_destination(stream)?, direction))
    }

    pub fn security(&self) -> Security {
        if self.tls && self.identity.is_some() { Security::MutualTls } else { Security::None }
    }
}

/// What the data path can be told at start.
#[derive(Clone, Debug)]
pub struct Settings {
    pub outbound_port: u16,
    pub inbound_port: u16,
    /// Connections at the same time, both ways together; those beyond it wait in the kernel's queue.
    pub max_connections: usize,
    /// Sessions of datagrams at the same time; the datagrams of those beyond it are dropped.
    pub max_udp_sessions: usize,
    /// How long a client may take to say something that tells its protocol. A port whose protocol the mesh does not
    /// know and whose client waits for the server to speak first loses this much time at the first connection.
    pub detect_timeout: Duration,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long connections may go on after the proxy was told to end.
    pub drain_timeout: Duration,
    pub overload: OverloadLimits,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            outbound_port: port::OUTBOUND,
            inbound_port: port::INBOUND,
            max_connections: 65_536,
            max_udp_sessions: 4096,
            detect_timeout: Duration::from_millis(500),
            handshake_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(5),
            overload: OverloadLimits::default(),
        }
    }
}

/// What every connection shares.
#[derive(Debug)]
pub struct Context {
    pub store: Store,
    pub tls: Tls,
    pub upstreams: Upstreams,
    pub telemetry: Telemetry,
    pub settings: Settings,
    /// How far the proxy's life has come.
    pub phase: watch::Receiver<Phase>,
    /// What peers have going with the application.
    pub in_flight: InFlight,
    pub rate_limits: RateLimits,
    /// What the application has at the moment, of ports that limit it.
    pub occupancy: Occupancy,
    /// Whether the proxy itself has too much to do.
    pub overload: Arc<Overload>,
    /// Where servers speak first.
    pub learned: Learned,
}

impl Context {
    /// Waits until the proxy has come to this phase, or is gone.
    pub fn reached(&self, phase: Phase) -> impl Future<Output = ()> + Send + use<> {
        phase::reached(self.phase.clone(), phase)
    }
}
