//! A cluster as the data path uses it: its configuration and endpoints of the moment, over pools that outlive both.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::balance::{Balance, Peers};
use super::connect::Connector;
use super::host::{Host, Load};
use super::usage::Usage;
use crate::config::{Cluster, Discovery, Endpoint, Endpoints, UpstreamTls};
use crate::error::{Error, Kind};
use crate::listen::{Direction, Downstream, Security};
use crate::tls::Tls;

/// The hosts of a cluster, by address and whether they are secured.
type Hosts = HashMap<(SocketAddr, bool), Arc<Host>>;

/// What survives a change of the cluster's configuration.
#[derive(Debug)]
pub(super) struct State {
    view: ArcSwap<View>,
    hosts: Arc<Mutex<Hosts>>,
}

/// A cluster at one moment.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) cluster: Arc<Cluster>,
    endpoints: Arc<Endpoints>,
    balance: Balance,
    /// In the order of the endpoints.
    hosts: Vec<Arc<Host>>,
    all: Arc<Mutex<Hosts>>,
    pub(super) connector: Connector,
    pub(crate) usage: Arc<Usage>,
}

/// The endpoint that was chosen for a request or a byte stream.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(super) view: Arc<View>,
    pub(super) load: Load,
}

impl State {
    pub(super) fn new(cluster: Arc<Cluster>, endpoints: Arc<Endpoints>, tls: &Tls) -> Self {
        let hosts = Arc::new(Mutex::new(Hosts::new()));
        let view = View::new(cluster, endpoints, hosts.clone(), Arc::default(), tls);
        Self { view: ArcSwap::from_pointee(view), hosts }
    }

    /// The view of these resources; a new one if they have changed.
    pub(super) fn view(&self, cluster: &Arc<Cluster>, endpoints: &Arc<Endpoints>, tls: &Tls) -> Arc<View> {
        let current = self.view.load();
        if current.is_of(cluster, endpoints) {
            return Arc::clone(&current);
        }
        if !same_peers(current.cluster.tls.as_ref(), cluster.tls.as_ref()) {
            // Connections that were made to other peers than those wanted now are of no use.
            self.retire(|_| true);
        }
        let view = View::new(cluster.clone(), endpoints.clone(), self.hosts.clone(), current.usage.clone(), tls);
        let view = Arc::new(view);
        if !matches!(cluster.discovery, Discovery::OriginalDestination) {
            self.retire(|host| !view.hosts.iter().any(|it| Arc::ptr_eq(it, host)));
        }
        self.view.store(view.clone());
        view
    }

    /// Drops connections that were not used for long.
    pub(super) fn sweep(&self, now: Instant) {
        let hosts: Vec<_> = self.hosts.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for host in &hosts {
            host.http1.sweep(now);
            host.http2.sweep(now);
        }
        drop(hosts);
        if matches!(self.view.load().cluster.discovery, Discovery::OriginalDestination) {
            // Nobody says when such an address is gone.
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            hosts.retain(|_, host| Arc::strong_count(host) > 1 || !host.http1.is_empty() || !host.http2.is_empty());
        }
    }

    pub(super) fn retire_all(&self) {
        self.retire(|_| true);
    }

    fn retire(&self, gone: impl Fn(&Arc<Host>) -> bool) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.retain(|_, host| {
            let keep = !gone(host);
            if !keep {
                host.retire();
            }
            keep
        });
    }
}

impl View {
    fn new(
        cluster: Arc<Cluster>,
        endpoints: Arc<Endpoints>,
        all: Arc<Mutex<Hosts>>,
        usage: Arc<Usage>,
        tls: &Tls,
    ) -> Self {
        let connector = Connector::new(tls, &cluster);
        let host = |endpoint: &Arc<Endpoint>| {
            let host = host(&all, endpoint.address, cluster.tls_for(endpoint).is_some());
            host.serves(endpoint.healthy);
            host
        };
        let hosts: Vec<_> = endpoints.endpoints.iter().map(host).collect();
        let balance = Balance::new(&cluster, &endpoints, |index| hosts[index].serving_since());
        Self { cluster, endpoints, balance, hosts, all, connector, usage }
    }

    fn is_of(&self, cluster: &Arc<Cluster>, endpoints: &Arc<Endpoints>) -> bool {
        Arc::ptr_eq(&self.cluster, cluster) && Arc::ptr_eq(&self.endpoints, endpoints)
    }

    /// Chooses an endpoint, not one of those to avoid and none that leaves if there is any other. `key` is the hash of what
    /// requests have in common that go to the same one.
    pub(crate) fn choose(
        self: &Arc<Self>,
        downstream: &Downstream,
        avoid: &[SocketAddr],
        key: Option<u64>,
    ) -> Result<Target, Error> {
        if matches!(self.cluster.discovery, Discovery::OriginalDestination) {
            let target = self.original_destination(destination(downstream));
            target.load.0.called(downstream);
            return Ok(target);
        }
        let now = |leaving| Now { hosts: &self.hosts, avoid, leaving };
        // Those that leave still answer.
        let index = self.balance.pick(key, &now(false)).or_else(|| self.balance.pick(key, &now(true)));
        let refused = || Error::because(Kind::NoHealthyUpstream, format_args!("cluster {}", self.cluster.name));
        let index = index.ok_or_else(refused)?;
        self.hosts[index].called(downstream);
        let endpoint = self.endpoints.endpoints[index].clone();
        Ok(Target { endpoint, view: self.clone(), load: Load::new(self.hosts[index].clone()) })
    }

    /// How many endpoints may be chosen.
    pub(crate) fn choices(&self) -> usize {
        self.balance.len()
    }

    fn original_destination(self: &Arc<Self>, address: SocketAddr) -> Target {
        let endpoint = Endpoint {
            address,
            weight: 1,
            healthy: true,
            mesh: false,
            priority: 0,
            locality: String::new(),
            locality_weight: 0,
            workload: None,
        };
        let load = Load::new(host(&self.all, address, false));
        Target { endpoint: Arc::new(endpoint), view: self.clone(), load }
    }
}

/// The host of that address, which may be there from an earlier view.
fn host(all: &Mutex<Hosts>, address: SocketAddr, secure: bool) -> Arc<Host> {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    all.entry((address, secure)).or_insert_with(|| Arc::new(Host::new(address, secure))).clone()
}

/// A view's hosts at the moment of a choice.
struct Now<'a> {
    hosts: &'a [Arc<Host>],
    avoid: &'a [SocketAddr],
    /// Those that leave are wanted, there being no others.
    leaving: bool,
}

impl Peers for Now<'_> {
    fn load(&self, index: usize) -> usize {
        self.hosts[index].load()
    }

    fn is_available(&self, index: usize) -> bool {
        if self.leaving { self.hosts[index].is_leaving() } else { self.hosts[index].is_available() }
    }

    fn is_avoided(&self, index: usize) -> bool {
        !self.avoid.is_empty() && self.avoid.contains(&self.hosts[index].address)
    }

    fn cost(&self, index: usize, weight: f64, now: Instant, decay: Duration) -> f64 {
        self.hosts[index].latency.cost(self.hosts[index].load() as f64 / weight, now, decay)
    }

    fn since(&self, index: usize) -> Instant {
        self.hosts[index].serving_since()
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}

impl Target {
    /// It took that long until there was an answer, or none.
    pub(crate) fn took(&self, time: Duration, answered: bool, now: Instant) {
        let Some(decay) = self.view.balance.decay() else { return };
        let latency = &self.load.0.latency;
        if answered { latency.answered(time, now, decay) } else { latency.failed(time, now, decay) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.endpoint.address
    }

    /// Connections to it carry mutual TLS.
    pub(crate) fn is_secure(&self) -> bool {
        self.load.0.secure
    }

    /// Its side of the mutual TLS is a proxy of this mesh, which takes requests over HTTP/2 whatever the application
    /// behind it speaks.
    pub(crate) fn is_proxy(&self) -> bool {
        self.is_secure() && self.view.cluster.tls.as_ref().is_some_and(speaks_mesh)
    }

    pub(crate) fn security(&self) -> Security {
        if self.is_secure() { Security::MutualTls } else { Security::None }
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.view.cluster
    }
}

/// The protocols offered are those between proxies. Another control plane may want others.
pub(super) fn speaks_mesh(tls: &UpstreamTls) -> bool {
    tls.alpn.is_empty() || tls.alpn.iter().any(|it| it.starts_with(b"mesh-"))
}

/// Connections made for `before` are as good for `now`.
fn same_peers(before: Option<&UpstreamTls>, now: Option<&UpstreamTls>) -> bool {
    match (before, now) {
        (None, None) => true,
        (Some(before), Some(now)) => {
            let any = |tls: &UpstreamTls| tls.identities.is_empty();
            before.sni == now.sni
                && (any(now) || !any(before) && before.identities.iter().all(|it| now.identities.contains(it)))
        }
        _ => false,
    }
}

/// Where a connection goes whose destination is its own. What came in for the application is on this machine already, and
/// is known by its loopback address, whichever address of the machine was called.
fn destination(downstream: &Downstream) -> SocketAddr {
    let wanted = downstream.original_destination;
    match (downstream.direction, wanted.ip()) {
        (Direction::Outbound, _) => wanted,
        (Direction::Inbound, IpAddr::V4(_)) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), wanted.port()),
        (Direction::Inbound, IpAddr::V6(_)) => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), wanted.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_in_is_known_by_its_loopback_address() {
        let to = |wanted: &str, direction| {
            let peer = "10.0.0.9:40000".parse().unwrap();
            destination(&Downstream::new(peer, wanted.parse().unwrap(), direction)).to_string()
        };
        assert_eq!(to("10.0.0.5:9999", Direction::Inbound), "127.0.0.1:9999");
        assert_eq!(to("[fd00::5]:9999", Direction::Inbound), "[::1]:9999");
        assert_eq!(to("192.0.2.7:443", Direction::Outbound), "192.0.2.7:443");
    }
}
