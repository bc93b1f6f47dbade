//! Endpoints for sessions of datagrams. Who has one looks again with each datagram: the endpoint may be gone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::cluster::{Target, View};
use super::usage::InUse;
use super::{Outcome, Upstreams};
use crate::config::Endpoint;
use crate::error::{Error, Kind};
use crate::listen::Downstream;

/// The endpoint of a session, and its share of the cluster's limit.
#[derive(Debug)]
pub(crate) struct UdpUpstream {
    cluster: Arc<str>,
    target: Target,
    _in_use: InUse,
}

impl Upstreams {
    /// An endpoint of the cluster, not one of those to avoid if there is any other. Sessions count as connections.
    pub(crate) async fn choose_udp(
        &self,
        cluster: &Arc<str>,
        downstream: &Downstream,
        key: Option<u64>,
        avoid: &[SocketAddr],
    ) -> Result<UdpUpstream, Error> {
        let view: Arc<View> = self.view(cluster).await?;
        let in_use = session_of(&view)?;
        let target = view.choose(downstream, avoid, key)?;
        Ok(UdpUpstream { cluster: cluster.clone(), target, _in_use: in_use })
    }

    /// The endpoint at the address as one of the cluster's. `None`: it is none, or takes no new sessions.
    pub(crate) async fn udp_at(&self, cluster: &Arc<str>, address: SocketAddr) -> Option<UdpUpstream> {
        let view: Arc<View> = self.view(cluster).await.ok()?;
        let target = view.target_at(address)?;
        Some(UdpUpstream { cluster: cluster.clone(), target, _in_use: session_of(&view).ok()? })
    }

    /// Whether a session may go on with its endpoint: it is one of the cluster's, and nothing speaks against it.
    pub(crate) fn still_serves(&self, upstream: &UdpUpstream) -> bool {
        self.known(&upstream.cluster).is_some_and(|view| view.serves(&upstream.target))
    }
}

/// A session's share of what the cluster may have.
fn session_of(view: &View) -> Result<InUse, Error> {
    let refused = || Error::because(Kind::Overflow, "the cluster's limit of connections is reached");
    view.usage.connection(&view.cluster.limits).ok_or_else(refused)
}

impl UdpUpstream {
    pub(crate) fn cluster(&self) -> &Arc<str> {
        &self.cluster
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.target.endpoint
    }

    pub(crate) fn answered(&self) {
        self.target.observe(Outcome::Success, Instant::now);
    }

    /// Its machine says that nobody is there.
    pub(crate) fn refused(&self) {
        self.target.observe(Outcome::GatewayFailure, Instant::now);
    }
}
