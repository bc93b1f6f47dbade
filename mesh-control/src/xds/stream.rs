//! The I/O around one session: messages of a gRPC stream in, messages out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use futures_util::{Stream, StreamExt};
use jiff::Timestamp;
use mesh_common::names;
use tokio::sync::mpsc;
use tonic::Status;

use super::node::Client;
use super::registry::{Connection, Registration};
use super::secrets::{Issuer, Secrets};
use super::session::{Refused, Session};
use super::types::Type;
use super::view::{Protocol, Push, Verdict, View};
use super::{Xds, wire};
use crate::auth::Caller;
use crate::compile::{ClientKind, ResourceType};
use crate::snapshot::{Encoded, Scoped};

/// A client that has opened a stream must say who it is within this time.
const FIRST_REQUEST: Duration = Duration::from_secs(30);

/// One of the two forms of the protocol.
pub(super) trait Form: 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;
    const PROTOCOL: Protocol;

    fn node(request: &Self::Request) -> Option<&Node>;
    fn request(session: &mut Session, request: &Self::Request, now: Instant) -> Result<Option<Verdict>, Refused>;
    fn response(push: Push) -> Self::Response;
}

pub(super) struct Delta;

impl Form for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;
    const PROTOCOL: Protocol = Protocol::Delta;

    fn node(request: &Self::Request) -> Option<&Node> {
        request.node.as_ref()
    }

    fn request(session: &mut Session, request: &Self::Request, now: Instant) -> Result<Option<Verdict>, Refused> {
        session.delta(request, now)
    }

    fn response(push: Push) -> Self::Response {
        wire::delta(push)
    }
}

pub(super) struct StateOfTheWorld;

impl Form for StateOfTheWorld {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;
    const PROTOCOL: Protocol = Protocol::StateOfTheWorld;

    fn node(request: &Self::Request) -> Option<&Node> {
        request.node.as_ref()
    }

    fn request(session: &mut Session, request: &Self::Request, now: Instant) -> Result<Option<Verdict>, Refused> {
        session.state_of_the_world(request, now)
    }

    fn response(push: Push) -> Self::Response {
        wire::state_of_the_world(push)
    }
}

/// What one client may see: its scope of a snapshot, and its own secrets.
struct ClientView {
    scoped: Arc<Scoped>,
    secrets: Secrets,
}

impl View for ClientView {
    fn revision(&self) -> u64 {
        self.scoped.snapshot().revision
    }

    fn committed_at(&self) -> Instant {
        self.scoped.snapshot().committed_at
    }

    fn get(&self, ty: Type, name: &str) -> Option<Arc<Encoded>> {
        match compiled(ty) {
            Some(ty) => self.scoped.get(ty, name),
            None => self.secrets.get(name).cloned(),
        }
    }

    fn names(&self, ty: Type) -> Arc<BTreeSet<String>> {
        match (ty, compiled(ty)) {
            // Names and secrets are told only to who names them.
            (Type::Name, _) | (_, None) => Arc::default(),
            (_, Some(ty)) => self.scoped.names(ty),
        }
    }
}

fn compiled(ty: Type) -> Option<ResourceType> {
    match ty {
        Type::Cluster => Some(ResourceType::Cluster),
        Type::Endpoints => Some(ResourceType::Endpoints),
        Type::Listener => Some(ResourceType::Listener),
        Type::Route => Some(ResourceType::Route),
        Type::Name => Some(ResourceType::Name),
        Type::Secret => None,
    }
}

/// Serves one stream until either side ends it.
pub(super) async fn serve<F: Form>(
    xds: Xds,
    caller: Caller,
    mut requests: impl Stream<Item = Result<F::Request, Status>> + Unpin,
    responses: mpsc::Sender<Result<F::Response, Status>>,
) {
    let outcome = tokio::select! {
        outcome = run::<F>(&xds, caller, &mut requests, &responses) => outcome,
        // Nobody is there to read what we send.
        () = responses.closed() => return,
    };
    if let Err(status) = outcome {
        tracing::debug!(%status, "a discovery stream ends");
        // The client may be gone already.
        let _ = responses.send(Err(status)).await;
    }
}

async fn run<F: Form>(
    xds: &Xds,
    caller: Caller,
    requests: &mut (impl Stream<Item = Result<F::Request, Status>> + Unpin),
    responses: &mpsc::Sender<Result<F::Response, Status>>,
) -> Result<(), Status> {
    let first = tokio::time::timeout(FIRST_REQUEST, requests.next()).await;
    let first = match first.map_err(|_| Status::deadline_exceeded("no request came on this stream for 30 s"))? {
        Some(first) => first?,
        None => return Ok(()),
    };
    let mut snapshots = xds.snapshots();
    let client = Client::new(F::node(&first).cloned().unwrap_or_default(), &caller)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let scope = client.scope.clone();
    // mesh-proxy makes its own keys.
    let identity = caller.identity.clone().filter(|_| scope.client != ClientKind::Mesh);
    let mut issuer = Issuer::new(xds.ca(), identity);
    let view = Arc::new(ClientView { scoped: snapshots.borrow_and_update().scoped(&scope), secrets: issuer.current() });
    let session = Session::new(F::PROTOCOL, client.order(), xds.limits(), view);
    tracing::info!(
        node = client.node.id,
        user_agent = client.user_agent,
        address = caller.address,
        "a proxy connected"
    );
    let mut open = Open { registration: xds.register(client, caller, session), reached: Reached::default() };

    let mut next = Some(first);
    loop {
        let now = Instant::now();
        if let Some(request) = next.take() {
            let verdict = F::request(&mut open.connection().session(), &request, now).map_err(refused)?;
            open.record(verdict, now);
        }
        let wants =
            open.connection().session().track(Type::Secret).subscription().names().contains(names::SECRET_IDENTITY);
        let issued = wants && issuer.renew(now, Timestamp::now(), fastrand::f64());
        if issued || snapshots.has_changed().unwrap_or(false) {
            let scoped = snapshots.borrow_and_update().scoped(&scope);
            open.connection().session().update(Arc::new(ClientView { scoped, secrets: issuer.current() }));
        }
        open.send::<F>(responses, now).await?;

        let wake = open.connection().session().wake_at(now).into_iter().chain(issuer.due().filter(|_| wants)).min();
        tokio::select! {
            request = requests.next() => match request {
                Some(request) => next = Some(request?),
                None => return Ok(()),
            },
            changed = snapshots.changed() => {
                changed.map_err(|_| Status::unavailable("mesh-control is stopping"))?;
                // The loop looks at what changed.
                snapshots.mark_changed();
            }
            () = issuer.changed() => snapshots.mark_changed(),
            () = sleep_until(wake) => {}
        }
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}

fn refused(refused: Refused) -> Status {
    match refused {
        Refused::TooManyNames(_) => Status::resource_exhausted(refused.to_string()),
        Refused::LongName(..) => Status::invalid_argument(refused.to_string()),
    }
}

/// A stream that is listed.
struct Open {
    registration: Registration,
    /// What waiters were told last.
    reached: Reached,
}

/// How far a stream has come.
#[derive(Default, PartialEq, Eq)]
struct Reached {
    settled: Option<u64>,
    synced: u64,
    endpoints: u64,
}

impl Reached {
    fn of(session: &Session) -> Self {
        Self {
            settled: session.revision(),
            synced: session.synced_revision(),
            endpoints: session.endpoints_acknowledged(),
        }
    }
}

impl Open {
    fn connection(&self) -> &Connection {
        &self.registration.connection
    }

    /// Sends all that may be sent now.
    async fn send<F: Form>(
        &mut self,
        responses: &mpsc::Sender<Result<F::Response, Status>>,
        now: Instant,
    ) -> Result<(), Status> {
        loop {
            let push = self.connection().session().next(now);
            let Some(push) = push else { break };
            tracing::debug!(
                node = self.connection().client.node.id,
                r#type = push.ty.short(),
                resources = push.resources.len(),
                removed = push.removed.len(),
                revision = push.revision,
                nonce = push.nonce,
                "push"
            );
            metrics::counter!("mesh_control_xds_pushes_total", "type" => push.ty.short()).increment(1);
            responses.send(Ok(F::response(push))).await.map_err(|_| Status::cancelled("the client is gone"))?;
        }
        let reached = Reached::of(&self.connection().session());
        if reached != self.reached {
            self.reached = reached;
            self.registration.notify();
        }
        Ok(())
    }

    fn record(&self, verdict: Option<Verdict>, now: Instant) {
        let Some(Verdict { ty, rejection, committed_at }) = verdict else { return };
        let r#type = ty.short();
        if let Some(message) = rejection {
            metrics::counter!("mesh_control_xds_nacks_total", "type" => r#type).increment(1);
            let node = &self.connection().client.node.id;
            tracing::warn!(node, r#type, message, "a proxy rejected its configuration");
            self.registration.notify();
        } else if let Some(committed_at) = committed_at {
            let took = now.saturating_duration_since(committed_at);
            metrics::histogram!("mesh_control_push_duration_seconds", "type" => r#type).record(took);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        tracing::info!(node = self.connection().client.node.id, "a proxy disconnected");
    }
}
