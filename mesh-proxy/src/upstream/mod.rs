//! Upstream connections: which endpoint of a cluster takes a request or a byte stream, and the connections to it.
//!
//! In: cluster names and requests. Out: responses and byte streams. State that outlives a snapshot (pools, balancing,
//! circuit breakers) is kept here under the cluster's name, so that a change of configuration closes no connection.

mod balance;
mod body;
mod check;
mod cluster;
mod connect;
mod datagrams;
mod host;
mod http1;
mod http2;
mod outlier;
mod own;
mod stream;
mod tally;
mod usage;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::{Request, Response};
use mesh_common::names::ALPN_TCP;

use self::cluster::State;
use self::host::Load;
use self::tally::Tally;
use self::usage::InUse;
use crate::config::{Cluster, Discovery, Endpoint, Endpoints};
use crate::error::{Error, Kind};
use crate::http::RequestBody;
use crate::listen::{Downstream, Security};
use crate::snapshot::{Found, Store};
use crate::tls::Tls;

pub(crate) use body::UpstreamBody;
pub(crate) use cluster::{Target, View};
pub(crate) use datagrams::UdpUpstream;
pub(crate) use http2::Flow;
pub(crate) use outlier::Outcome;
pub(crate) use own::{
    MAX_ANSWER, NoMessage, grpc_answer, grpc_frame, read as read_answer, request as own_request, version as own_version,
};
pub use stream::UpstreamStream;
pub use tally::HealthReport;
pub(crate) use tally::Shunned;
pub(crate) use usage::InUse as Held;

const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// How many endpoints a byte stream may try.
const TCP_TRIES: usize = 3;

/// All clusters that this proxy has talked to. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Upstreams {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    tls: Tls,
    clusters: ArcSwap<HashMap<Arc<str>, Arc<State>>>,
    nothing: Arc<Endpoints>,
    sweeping: AtomicBool,
    tally: Arc<Tally>,
}

/// A byte stream to an endpoint.
#[derive(Debug)]
pub struct TcpUpstream {
    pub io: UpstreamStream,
    /// The endpoint, for records.
    pub endpoint: Arc<Endpoint>,
    pub security: Security,
    /// What it counts against in its cluster, if it belongs to one.
    pub(crate) _counted: Option<Counted>,
}

/// A byte stream's share of its cluster's limits.
#[derive(Debug)]
pub(crate) struct Counted {
    _load: Load,
    _in_use: InUse,
}

/// A request that was not answered.
pub(crate) struct Failed {
    pub(crate) error: Error,
    /// The request, if nothing of it was sent.
    pub(crate) request: Option<Box<Request<RequestBody>>>,
    /// Its connection came from the pool and was closed before any of the response.
    pub(crate) stale: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, request: None, stale: false }
    }
}

/// The HTTP version towards an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    Http2,
}

impl Upstreams {
    pub fn new(store: Store, tls: Tls) -> Self {
        let inner = Inner {
            store,
            tls,
            clusters: ArcSwap::default(),
            nothing: Arc::default(),
            sweeping: AtomicBool::new(false),
            tally: Arc::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A byte stream to an endpoint of the cluster, over mutual TLS (ALPN `mesh-tcp`) when the endpoint is in the mesh.
    /// An endpoint that takes no connection is passed over for another one. Streams with the same `key` go to the same one, if
    /// the cluster balances by that.
    pub async fn connect_tcp(
        &self,
        cluster: &str,
        downstream: &Downstream,
        key: Option<u64>,
    ) -> Result<TcpUpstream, Error> {
        let view = self.view(cluster).await?;
        let refused = || Error::because(Kind::Overflow, "the cluster's limit of connections is reached");
        let in_use = view.usage.connection(&view.cluster.limits).ok_or_else(refused)?;
        let mut tried = Vec::new();
        loop {
            let target = view.choose(downstream, &tried, key)?;
            let began = Instant::now();
            let outcome = view.connector.connect(&target.load.0, ALPN_TCP).await;
            let now = Instant::now();
            target.took(now - began, outcome.is_ok(), now);
            match outcome {
                Ok(io) => {
                    target.observe(Outcome::Success, Instant::now);
                    let security = target.security();
                    let counted = Some(Counted { _load: target.load, _in_use: in_use });
                    return Ok(TcpUpstream { io, endpoint: target.endpoint, security, _counted: counted });
                }
                Err(error) => {
                    if let Some(outcome) = Outcome::of_error(error.kind) {
                        target.observe(outcome, Instant::now);
                    }
                    tried.push(target.address());
                    if tried.len() >= TCP_TRIES.min(view.choices()) {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// A cluster as it is now. One that is not known yet is asked for.
    pub(crate) async fn view(&self, name: &str) -> Result<Arc<View>, Error> {
        if let Some(view) = self.known(name) {
            return Ok(view);
        }
        Box::pin(self.ask(name)).await
    }

    /// The way of all requests but the first: no lock, no waiting.
    fn known(&self, name: &str) -> Option<Arc<View>> {
        let snapshot = self.inner.store.load();
        let (cluster, endpoints) = self.inner.resources(snapshot.cluster(name), |name| snapshot.endpoints(name))?;
        let clusters = self.inner.clusters.load();
        Some(clusters.get(name)?.view(cluster, endpoints, &self.inner.tls))
    }

    async fn ask(&self, name: &str) -> Result<Arc<View>, Error> {
        let cluster = match self.inner.store.cluster(name).await {
            Found::Yes(cluster) => cluster,
            Found::Absent => return Err(Error::because(Kind::NoCluster, format_args!("cluster {name}"))),
            Found::Unknown => return Err(Error::because(Kind::Configuration, format_args!("cluster {name}"))),
        };
        let endpoints = match &cluster.discovery {
            Discovery::Eds(name) => match self.inner.store.endpoints(name).await {
                Found::Yes(endpoints) => endpoints,
                Found::Absent => self.inner.nothing.clone(),
                Found::Unknown => {
                    return Err(Error::because(Kind::Configuration, format_args!("endpoints of cluster {name}")));
                }
            },
            Discovery::Static(endpoints) => endpoints.clone(),
            Discovery::OriginalDestination => self.inner.nothing.clone(),
        };
        Ok(self.state(name, &cluster, &endpoints).view(&cluster, &endpoints, &self.inner.tls))
    }

    fn state(&self, name: &str, cluster: &Arc<Cluster>, endpoints: &Arc<Endpoints>) -> Arc<State> {
        self.start_sweeping();
        if let Some(state) = self.inner.clusters.load().get(name) {
            return state.clone();
        }
        let new = State::new(cluster.clone(), endpoints.clone(), &self.inner.tls, self.inner.tally.clone());
        let mut state = new.clone();
        self.inner.clusters.rcu(|clusters| {
            let mut clusters = HashMap::clone(clusters);
            state = clusters.entry(name.into()).or_insert_with(|| new.clone()).clone();
            clusters
        });
        state
    }

    /// What is known of the health of all endpoints.
    pub fn health(&self) -> HealthReport {
        let clusters = self.inner.clusters.load();
        let all = clusters.values().flat_map(|state| state.passed_over());
        let mut report = self.inner.tally.report();
        for (_, why) in all {
            report.ejected += usize::from(why == Shunned::Ejected);
            report.failing += usize::from(why == Shunned::Failing);
        }
        report
    }

    /// The endpoints of a cluster that get no requests for now.
    pub(crate) fn passed_over(&self, cluster: &str) -> Vec<(SocketAddr, Shunned)> {
        self.inner.clusters.load().get(cluster).map_or_else(Vec::new, |state| state.passed_over())
    }

    #[cfg(test)]
    pub(crate) fn sweep(&self, now: Instant) {
        self.inner.sweep(now);
    }

    fn start_sweeping(&self) {
        if !self.inner.sweeping.swap(true, Ordering::AcqRel) {
            tokio::spawn(sweep_forever(Arc::downgrade(&self.inner)));
        }
    }
}

async fn sweep_forever(upstreams: Weak<Inner>) {
    let mut interval = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        interval.tick().await;
        let Some(inner) = upstreams.upgrade() else { return };
        inner.sweep(Instant::now());
    }
}

impl Inner {
    /// What a cluster's view is made of.
    fn resources<'a>(
        &'a self,
        cluster: Option<&'a Arc<Cluster>>,
        eds: impl Fn(&str) -> Option<&'a Arc<Endpoints>>,
    ) -> Option<(&'a Arc<Cluster>, &'a Arc<Endpoints>)> {
        let cluster = cluster?;
        let endpoints = match &cluster.discovery {
            Discovery::Eds(name) => eds(name)?,
            Discovery::Static(endpoints) => endpoints,
            Discovery::OriginalDestination => &self.nothing,
        };
        Some((cluster, endpoints))
    }

    /// Closes connections that are not used any more, and forgets clusters that are gone.
    fn sweep(&self, now: Instant) {
        let snapshot = self.store.load();
        let held: std::collections::HashSet<_> = snapshot.held(crate::snapshot::Type::Cluster).into_iter().collect();
        let clusters = self.clusters.load();
        for (name, state) in clusters.iter() {
            // Connections to endpoints that are gone do not wait for the cluster's next request to be closed.
            let resources = self.resources(snapshot.peek_cluster(name), |name| snapshot.peek_endpoints(name));
            if let Some((cluster, endpoints)) = resources {
                state.view(cluster, endpoints, &self.tls);
            }
            state.sweep(now);
        }
        if clusters.keys().all(|name| held.contains(name)) {
            return;
        }
        let gone: Vec<_> =
            clusters.iter().filter(|(name, _)| !held.contains(*name)).map(|(_, it)| it.clone()).collect();
        self.clusters.rcu(|clusters| {
            let mut clusters = HashMap::clone(clusters);
            clusters.retain(|name, _| held.contains(name));
            clusters
        });
        gone.iter().for_each(|state| state.retire_all());
    }
}

impl Target {
    /// Returns when the endpoint has a connection for a request, or why it has none by then.
    pub(crate) async fn connected(&self, version: Version, flow: Flow, patience: Duration) -> Result<(), Error> {
        let connected = async {
            match version {
                Version::Http1 => http1::connected(&self.load.0, &self.view).await,
                Version::Http2 => http2::connected(&self.load.0, &self.view, flow).await,
            }
        };
        tokio::time::timeout(patience, connected).await.unwrap_or_else(|_| {
            Err(Error::because(Kind::UpstreamConnect, format_args!("{}: no connection soon enough", self.address())))
        })
    }

    /// Sends a request to the endpoint. Its head must be of the form that the version wants.
    pub(crate) async fn send(
        &self,
        request: Request<RequestBody>,
        version: Version,
        flow: Flow,
    ) -> Result<Response<UpstreamBody>, Failed> {
        match version {
            Version::Http1 => {
                let response = http1::send(&self.load.0, &self.view, request).await?;
                Ok(response.map(UpstreamBody::Http1))
            }
            Version::Http2 => {
                let response = http2::send(&self.load.0, &self.view, flow, request).await?;
                Ok(response.map(UpstreamBody::Http2))
            }
        }
    }
}
