//! One session: a client's datagrams to one endpoint over a connected socket, and the endpoint's back to the client.
//!
//! The endpoint is chosen once. Another is chosen only when it is gone, fails its health check or refuses, or when the
//! route leads elsewhere.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_common::names::udp_listener;
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::Datagrams;
use super::socket::MAX_DATAGRAM;
use super::table::{Key, Life};
use crate::config::UdpProxy;
use crate::error::{Error, Kind};
use crate::hash;
use crate::listen::{self, Direction, Downstream};
use crate::snapshot::Found;
use crate::telemetry::{ActiveConnection, UdpDrop, UdpMetrics};
use crate::upstream::UdpUpstream;

/// A client's datagram, and its share of the memory for those that wait.
#[derive(Debug)]
pub(super) struct Datagram {
    pub(super) payload: Vec<u8>,
    pub(super) _room: OwnedSemaphorePermit,
}

pub(super) struct Session {
    key: Key,
    listener: String,
    downstream: Downstream,
    life: Arc<Life>,
    shared: Arc<Datagrams>,
    upstream: Option<Connected>,
    /// The endpoint that has refused last, which gets no second chance if there is another one.
    avoid: Vec<SocketAddr>,
    _active: ActiveConnection,
}

/// The endpoint, and the way to it.
struct Connected {
    upstream: UdpUpstream,
    socket: UdpSocket,
    metrics: UdpMetrics,
    answered: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.table().end(&self.key, &self.life);
    }
}

impl Session {
    pub(super) fn new(key: Key, life: Arc<Life>, shared: Arc<Datagrams>) -> Self {
        let active = shared.ctx.telemetry.udp_session();
        Self {
            listener: udp_listener(key.destination.ip(), key.destination.port()),
            downstream: Downstream::new(key.client, key.destination, Direction::Outbound),
            key,
            life,
            shared,
            upstream: None,
            avoid: Vec::new(),
            _active: active,
        }
    }

    /// Until the table forgets the session, or there is nowhere for it to go.
    pub(super) async fn run(mut self, mut datagrams: mpsc::Receiver<Datagram>) {
        loop {
            tokio::select! {
                datagram = datagrams.recv() => {
                    let Some(datagram) = datagram else { return };
                    if let Err(error) = self.forward(&datagram.payload).await {
                        self.failed(&error);
                        return;
                    }
                }
                ready = readable(self.upstream.as_ref()) => match ready {
                    Ok(()) => self.reply(),
                    Err(error) => self.refused(&error),
                },
            }
        }
    }

    async fn forward(&mut self, payload: &[u8]) -> Result<(), Error> {
        let proxy = self.proxy().await?;
        self.life.set_idle(proxy.idle_timeout);
        if !self.upstream.as_ref().is_some_and(|it| self.may_go_on(&proxy, &it.upstream)) {
            self.upstream = match self.stay(&proxy).await {
                Some(connected) => Some(connected),
                None => Some(self.connect(&proxy).await?),
            };
        }
        let Some(connected) = &self.upstream else { return Ok(()) };
        match connected.socket.try_send(payload) {
            Ok(_) => connected.metrics.to_upstream(payload.len()),
            Err(error) if is_refusal(&error) => {
                // About a datagram before: this one has not been sent.
                self.refused(&error);
                self.upstream = Some(self.connect(&proxy).await?);
                let again = self.upstream.as_ref().map(|it| (it, it.socket.try_send(payload)));
                match again {
                    Some((it, Ok(_))) => it.metrics.to_upstream(payload.len()),
                    _ => self.dropped(UdpDrop::Failed),
                }
            }
            Err(_) => self.dropped(UdpDrop::Failed),
        }
        Ok(())
    }

    async fn proxy(&self) -> Result<Arc<UdpProxy>, Error> {
        let store = &self.shared.ctx.store;
        let destination = self.key.destination;
        let here = store.load().listener(&self.listener).cloned();
        let found = match here {
            Some(listener) => Found::Yes(listener),
            None => store.listener(&self.listener).await,
        };
        match found {
            Found::Yes(listener) => listener
                .udp
                .clone()
                .ok_or_else(|| Error::because(Kind::NoRoute, format_args!("{destination} takes no datagrams"))),
            Found::Absent => Err(Error::because(
                Kind::NoRoute,
                format_args!("nothing in the mesh has the UDP address {destination}"),
            )),
            Found::Unknown => Err(Error::because(Kind::Configuration, format_args!("no listener for {destination}"))),
        }
    }

    fn may_go_on(&self, proxy: &UdpProxy, upstream: &UdpUpstream) -> bool {
        let routed = proxy.clusters.choices().iter().any(|choice| choice.cluster == *upstream.cluster());
        routed && self.shared.ctx.upstreams.still_serves(upstream)
    }

    /// The same endpoint over the same socket, as one of a cluster that the route leads to now. Otherwise the session has no
    /// upstream any more, and its share of the cluster's limit is free before another one is asked for.
    async fn stay(&mut self, proxy: &UdpProxy) -> Option<Connected> {
        let before = self.upstream.take()?;
        let ctx = &self.shared.ctx;
        for choice in proxy.clusters.choices() {
            if let Some(upstream) = ctx.upstreams.udp_at(&choice.cluster, before.upstream.endpoint().address).await {
                let metrics = ctx.telemetry.udp_upstream(&self.downstream, upstream.endpoint(), upstream.cluster());
                return Some(Connected { upstream, metrics, ..before });
            }
        }
        None
    }

    async fn connect(&self, proxy: &UdpProxy) -> Result<Connected, Error> {
        let choice = proxy.clusters.pick().ok_or(Kind::NoCluster)?;
        let key = proxy.hash_source.then(|| hash::of_source(self.key.client.ip()));
        let ctx = &self.shared.ctx;
        let upstream = ctx.upstreams.choose_udp(&choice.cluster, &self.downstream, key, &self.avoid).await?;
        let address = upstream.endpoint().address;
        let failed = |error| Error::because(Kind::UpstreamConnect, format_args!("{address}: {error}"));
        let socket = connected(address).map_err(failed)?;
        // It always is, but the runtime has to hear so from the kernel before it sends anything.
        socket.writable().await.map_err(failed)?;
        let metrics = ctx.telemetry.udp_upstream(&self.downstream, upstream.endpoint(), upstream.cluster());
        Ok(Connected { upstream, socket, metrics, answered: false })
    }

    /// What the endpoint has sent so far, to the client, as if it came from where the client sent to.
    fn reply(&mut self) {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_DATAGRAM]);
        }
        BUFFER.with_borrow_mut(|buffer| {
            // As many as are there, but not for ever.
            for _ in 0..64 {
                let Some(connected) = &mut self.upstream else { return };
                match connected.socket.try_recv(buffer) {
                    Ok(length) => {
                        if !connected.answered {
                            connected.answered = true;
                            connected.upstream.answered();
                        }
                        self.life.touch(self.shared.now());
                        let sent = self.shared.replies.send(self.key.destination, self.key.client, &buffer[..length]);
                        match sent {
                            Ok(()) => connected.metrics.to_downstream(length),
                            Err(_) => self.dropped(UdpDrop::Failed),
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                    Err(error) => return self.refused(&error),
                }
            }
        });
    }

    /// The endpoint's machine has said that nobody takes what was sent to it. The next datagram goes elsewhere.
    fn refused(&mut self, error: &io::Error) {
        let Some(connected) = self.upstream.take() else { return };
        let address = connected.upstream.endpoint().address;
        connected.upstream.refused();
        self.avoid = vec![address];
        self.dropped(UdpDrop::Refused);
        tracing::debug!(client = %self.key.client, endpoint = %address, %error, "an endpoint refuses datagrams");
    }

    fn failed(&self, error: &Error) {
        self.dropped(match error.kind {
            Kind::NoRoute => UdpDrop::NoRoute,
            Kind::Configuration => UdpDrop::Configuration,
            Kind::Overflow => UdpDrop::Overflow,
            Kind::NoCluster | Kind::NoHealthyUpstream => UdpDrop::NoUpstream,
            _ => UdpDrop::Failed,
        });
        let Key { client, destination } = self.key;
        if self.shared.ctx.telemetry.may_log() {
            tracing::info!(%client, %destination, "datagrams are dropped: {error}");
        }
    }

    fn dropped(&self, why: UdpDrop) {
        self.shared.ctx.telemetry.udp_dropped(why);
    }
}

/// Without an upstream there is nothing to wait for.
async fn readable(connected: Option<&Connected>) -> io::Result<()> {
    match connected {
        Some(connected) => connected.socket.readable().await,
        None => std::future::pending().await,
    }
}

/// ICMP says so of a datagram that was sent before.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
    )
}

/// What the kernel takes for this address alone; nobody else's datagrams are received.
fn connected(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    listen::mark(&socket);
    socket.connect(address)?;
    UdpSocket::from_std(socket)
}

/// How long a session may rest about which nothing is known yet: as long as a question to the control plane takes, and more.
pub(super) const UNKNOWN_IDLE: Duration = Duration::from_secs(60);
