//! Envoy xDS v3: aggregated discovery (delta and state of the world), and the client status service beside it.
//!
//! In: subscriptions, acknowledgements and rejections of proxies, and snapshots. Out: responses that bring each proxy
//! to the newest snapshot in an order that never breaks it, and the status of every proxy.

mod node;
mod registry;
mod secrets;
mod session;
mod status;
mod stream;
mod subscription;
#[cfg(test)]
mod tests;
mod track;
mod types;
mod view;
mod wire;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_server::{
    ClientStatusDiscoveryService, ClientStatusDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::status::v3::{ClientStatusRequest, ClientStatusResponse};
use futures_util::{Stream, StreamExt};
use mesh_common::proto::control::{Proxy, WaitProgress, WorkloadCertificate};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::auth::{Authenticator, Caller, Proof, Transport};
use crate::ca::Ca;
use crate::snapshot::Snapshot;
use node::Client;
use registry::{Connection, Registration, Registry, Standing};
use session::{Limits, Session};
use stream::Form;

/// Streams that may be open at once.
const STREAMS: usize = 20_000;
/// Responses that are made but not yet written. There is at most one for each type.
const QUEUE: usize = 8;
/// Bytes of one request.
const REQUEST_BYTES: usize = 4 << 20;
/// How often the metrics of all streams together are made.
const OBSERVE: Duration = Duration::from_secs(2);
/// A waiter looks again at most this often.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

type Responses<T> = ReceiverStream<Result<T, Status>>;

/// The discovery services. A clone is the same service.
#[derive(Clone)]
pub struct Xds {
    shared: Arc<Shared>,
}

struct Shared {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    ca: Arc<Ca>,
    auth: Authenticator,
    registry: Arc<Registry>,
    limits: Limits,
}

impl Xds {
    pub fn new(snapshots: watch::Receiver<Arc<Snapshot>>, ca: Arc<Ca>, auth: Authenticator) -> Self {
        let shared = Shared { snapshots, ca, auth, registry: Registry::new(), limits: Limits::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Aggregated discovery, for proxies.
    pub fn ads(&self) -> AggregatedDiscoveryServiceServer<Self> {
        // A response is as large as the mesh makes it.
        AggregatedDiscoveryServiceServer::new(self.clone())
            .max_decoding_message_size(REQUEST_BYTES)
            .max_encoding_message_size(usize::MAX)
    }

    /// Client status, for `meshctl`.
    pub fn csds(&self) -> ClientStatusDiscoveryServiceServer<Self> {
        ClientStatusDiscoveryServiceServer::new(self.clone()).max_encoding_message_size(usize::MAX)
    }

    /// Open streams, ordered by node id.
    pub fn proxies(&self) -> Vec<Proxy> {
        self.shared.registry.proxies(Instant::now())
    }

    /// Certificates of clients that get them from here, ordered by node id.
    pub fn certificates(&self) -> Vec<WorkloadCertificate> {
        self.shared.registry.certificates()
    }

    /// Tells in metrics how far the clients are, and how long the authority's certificates last, as long as it is polled.
    #[allow(clippy::cast_precision_loss)]
    pub async fn observe(self) {
        let mut every = tokio::time::interval(OBSERVE);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let Standing { synced, pending, rejected, oldest } =
                self.shared.registry.standing(self.revision(), Instant::now());
            for (state, count) in [("synced", synced), ("pending", pending), ("rejected", rejected)] {
                metrics::gauge!("mesh_control_proxies", "state" => state).set(count as f64);
            }
            metrics::gauge!("mesh_control_oldest_push_seconds").set(oldest);
            let ca = &self.shared.ca;
            let ends = [("root", ca.root_not_after()), ("intermediate", ca.intermediate_not_after())];
            for (certificate, end) in ends {
                metrics::gauge!("mesh_control_ca_certificate_expiry_timestamp_seconds", "certificate" => certificate)
                    .set(end.as_second() as f64);
            }
        }
    }

    /// The revision of the newest snapshot.
    pub fn revision(&self) -> u64 {
        self.shared.snapshots.borrow().revision
    }

    /// Tells how far the open streams are with `revision` (0: the newest snapshot's) whenever that changes. The last
    /// message comes when all have it (`done`), when it is certain that not all will (`rejected`), or when `timeout` is
    /// over.
    pub fn wait(&self, revision: u64, timeout: Duration) -> impl Stream<Item = WaitProgress> + Send + use<> {
        let registry = self.shared.registry.clone();
        let mut snapshots = self.shared.snapshots.clone();
        let revision = if revision == 0 { self.revision() } else { revision };
        async_stream::stream! {
            let deadline = tokio::time::Instant::now() + timeout;
            let mut changes = registry.changes();
            let mut last = None;
            loop {
                changes.mark_unchanged();
                let snapshot = snapshots.borrow_and_update().clone();
                let (progress, over) = registry.progress(&snapshot, revision, Instant::now());
                let expired = tokio::time::Instant::now() >= deadline;
                if over || expired || last.as_ref().is_none_or(|last| differs(last, &progress)) {
                    last = Some(progress.clone());
                    yield progress;
                }
                if over || expired {
                    return;
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    changed = snapshots.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep_until(deadline) => continue,
                }
                // Many proxies report at once; no need to look at all of them for each.
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }

    /// Waits until every open stream has acknowledged the endpoints of `revision`, and gives the ids of those that have
    /// not done so when `timeout` is over.
    pub async fn endpoints_told(&self, revision: u64, timeout: Duration) -> Vec<String> {
        let registry = &self.shared.registry;
        let deadline = tokio::time::Instant::now() + timeout;
        let mut changes = registry.changes();
        loop {
            changes.mark_unchanged();
            let behind = registry.behind_with_endpoints(revision);
            if behind.is_empty() || tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                return behind;
            }
        }
    }

    fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.shared.snapshots.clone()
    }

    fn ca(&self) -> Arc<Ca> {
        self.shared.ca.clone()
    }

    fn limits(&self) -> Limits {
        self.shared.limits
    }

    fn register(&self, client: Client, caller: Caller, session: Session) -> Registration {
        self.shared.registry.register(Connection::new(client, caller, session, Instant::now()))
    }

    async fn open<F: Form>(
        &self,
        request: Request<Streaming<F::Request>>,
    ) -> Result<Response<Responses<F::Response>>, Status> {
        if self.shared.registry.len() >= STREAMS {
            return Err(Status::resource_exhausted("mesh-control serves as many proxies as it can; try again later"));
        }
        let caller = self.shared.auth.caller(&Proof::of(&request)?).await?;
        if caller.transport == Transport::Tls {
            caller.required()?;
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(stream::serve::<F>(self.clone(), caller, request.into_inner(), sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Whether there is anything to tell but the passing of time.
fn differs(a: &WaitProgress, b: &WaitProgress) -> bool {
    (a.proxies, a.synced, &a.pending, &a.rejected) != (b.proxies, b.synced, &b.pending, &b.rejected)
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Xds {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.open::<stream::StateOfTheWorld>(request).await
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.open::<stream::Delta>(request).await
    }
}

#[tonic::async_trait]
impl ClientStatusDiscoveryService for Xds {
    type StreamClientStatusStream = Pin<Box<dyn Stream<Item = Result<ClientStatusResponse, Status>> + Send>>;

    /// One answer to each request.
    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let registry = self.shared.registry.clone();
        let answers =
            request.into_inner().map(move |request| status::client_status(&registry, &request?, Instant::now()));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        status::client_status(&self.shared.registry, request.get_ref(), Instant::now()).map(Response::new)
    }
}
