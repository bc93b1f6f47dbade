//! `mesh.control.v1`: what `meshctl` asks for, on the operator's own socket.
//!
//! In: objects as JSON, keys, revisions. Out: objects with their status, and what the control plane knows of proxies,
//! services and itself.

mod convert;
mod findings;
mod objects;
mod rotation;
#[cfg(test)]
mod tests;
mod wait;
mod watch;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt};
use jiff::Timestamp;
use mesh_common::identity::Identity;
use mesh_common::proto::control::mesh_server::{Mesh, MeshServer};
use mesh_common::proto::control::rotate_root_request::Step;
use mesh_common::proto::control::*;
use mesh_common::resource::{DEFAULT_NAMESPACE, Kind, Object};
use mesh_common::telemetry::LogFilter;
use tokio::sync::watch::Receiver;
use tonic::{Request, Response, Status};

use crate::auth::Peer;
use crate::ca::{Ca, CaError, ServerTls, control_identity};
use crate::certificates;
use crate::model::Settings;
use crate::objects::Objects;
use crate::reports::Reports;
use crate::snapshot::Snapshot;
use crate::store::{self, Store, StoreError, TokenError, blocking};
use crate::trail::{Query, Subject, Verb, Who};
use crate::xds::Xds;

/// A request with as many objects as a batch may have must fit.
const MAX_REQUEST_BYTES: usize = 64 << 20;
const DEFAULT_WAIT: Duration = Duration::from_secs(30);
const MAX_WAIT: Duration = Duration::from_secs(3600);

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the service works with. A clone is the same service.
#[derive(Clone)]
pub struct MeshService {
    pub objects: Receiver<Arc<Objects>>,
    /// `None` where objects are written elsewhere, and are only read here.
    pub store: Option<Store>,
    pub ca: Arc<Ca>,
    pub tls: Arc<ServerTls>,
    pub xds: Xds,
    pub snapshots: Receiver<Arc<Snapshot>>,
    pub reports: Reports,
    pub settings: Settings,
    /// `None` where logging is not ours to change, as in tests.
    pub log: Option<LogFilter>,
    pub data_dir: PathBuf,
    pub started: Instant,
    /// Addresses as they are served.
    pub listeners: Vec<String>,
}

impl MeshService {
    pub fn server(self) -> MeshServer<Self> {
        MeshServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES).max_encoding_message_size(usize::MAX)
    }

    fn objects(&self) -> Arc<Objects> {
        self.objects.borrow().clone()
    }

    /// For changes in the name of who calls.
    fn store<T>(&self, request: &Request<T>) -> Result<Store, Status> {
        let elsewhere = "this mesh is in Kubernetes: write through the API server";
        let store = self.store.as_ref().ok_or_else(|| Status::failed_precondition(elsewhere))?;
        Ok(store.by(Who::operator(request.extensions().get::<Peer>())))
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// Certificates that are served, as far as that is known.
    fn served(&self) -> Vec<WorkloadCertificate> {
        let mut served = self.reports.certificates();
        served.extend(self.xds.certificates());
        served
    }

    /// How far the replacement of the root is.
    fn rotation(&self) -> RotateRootResponse {
        // The proxies last: whoever reports is there.
        let served = self.served();
        let objects = self.objects();
        let registered = objects
            .select(Some(Kind::WorkloadEntry), None, None)
            .filter(|(_, object)| matches!(&***object, Object::WorkloadEntry(entry) if entry.registered()))
            .map(|(key, _)| format!("{}.{}", key.name, key.namespace));
        rotation::progress(&self.ca, &self.xds.proxies(), served, registered)
    }

    async fn rotate(&self, store: Store, step: Step, force: bool) -> Result<(), Status> {
        let behind = self.rotation().behind.len();
        if step == Step::End && !force {
            rotation::may_end(behind, self.started.elapsed())?;
        }
        let (ca, tls) = (self.ca.clone(), self.tls.clone());
        let change = move || Ok::<_, StoreError>(rotation::take(step, force, behind, &ca, &tls, &store));
        let changed = blocking(change).await.map_err(|error| Status::unavailable(error.to_string()))?;
        changed.map_err(|error| match error {
            CaError::Rotating(_) | CaError::NotRotating => Status::failed_precondition(error.to_string()),
            _ => Status::unavailable(error.to_string()),
        })
    }
}

#[tonic::async_trait]
impl Mesh for MeshService {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let (service, store) = (self.clone(), self.store(&request)?);
        // Fields have no owners here, so there is nothing to force.
        let ApplyRequest { objects, dry_run, force: _ } = request.into_inner();
        let response = blocking(move || service.apply_objects(&store, &objects, dry_run)).await;
        Ok(Response::new(response.map_err(convert::status)?))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let ListRequest { kind, namespace, name } = request.into_inner();
        let kind = convert::kind(&kind)?;
        let (objects, snapshot) = (self.objects(), self.snapshot());
        let list = objects
            .select(kind, convert::given(&namespace), convert::given(&name))
            .map(|(key, object)| convert::with_status(key, object, &snapshot.model))
            .collect();
        Ok(Response::new(ListResponse { objects: list, revision: objects.revision }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let store = self.store(&request)?;
        let DeleteRequest { keys, ignore_missing, preconditions } = request.into_inner();
        let keys = keys.iter().map(convert::key).collect::<Result<Vec<_>, _>>()?;
        // A version is of one object only, so that there is no need for its uid.
        let read = preconditions.into_iter().map(|it| {
            let key = convert::key(&it.key.unwrap_or_default())?;
            Ok::<_, Status>((key, it.resource_version))
        });
        let read = read.collect::<Result<Vec<_>, _>>()?;
        let deleted = blocking(move || store.delete_as_read(&keys, ignore_missing, &read)).await;
        let (deleted, revision) = deleted.map_err(|error| convert::status(error.into()))?;
        for key in &deleted {
            tracing::info!(object = %key, revision, "deleted");
        }
        Ok(Response::new(DeleteResponse { deleted: deleted.iter().map(convert::object_key).collect(), revision }))
    }

    type WatchStream = Streamed<WatchEvent>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let WatchRequest { kind, namespace } = request.into_inner();
        let kind = convert::kind(&kind)?;
        let events = watch::events(self.objects.clone(), kind, convert::given(&namespace).map(str::to_owned));
        Ok(Response::new(Box::pin(events.map(Ok))))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let store = self.store(&request)?;
        let CreateTokenRequest { namespace, service_account, ttl_seconds, uses } = request.into_inner();
        let namespace = convert::given(&namespace).unwrap_or(DEFAULT_NAMESPACE);
        let identity = Identity::new(self.ca.trust_domain(), namespace, &service_account).map_err(|error| {
            Status::invalid_argument(format!("a token needs a namespace and a service account: {error}"))
        })?;
        if control_identity(self.ca.trust_domain()).is_ok_and(|control| control == identity) {
            return Err(Status::permission_denied(format!(
                "{identity} is mesh-control itself; whoever had a token for it could pose as the control plane"
            )));
        }
        let ttl = if ttl_seconds == 0 { store::DEFAULT_TTL } else { Duration::from_secs(ttl_seconds) };
        let (tokens, root, spiffe_id) = (store.tokens(), self.ca.root_fingerprint(), identity.to_string());
        let created = blocking(move || tokens.create(&identity, ttl, uses.max(1), root, Timestamp::now())).await;
        let (token, expires) = created.map_err(|error| match error {
            TokenError::Limits => Status::invalid_argument(error.to_string()),
            TokenError::TooMany => Status::resource_exhausted(error.to_string()),
            other => Status::unavailable(other.to_string()),
        })?;
        let object =
            Subject { kind: "JoinToken".to_owned(), namespace: namespace.to_owned(), name: token.id().to_string() };
        let made = serde_json::json!({"identity": spiffe_id, "uses": uses.max(1), "expires": expires.to_string()});
        let write = move || {
            store.write_down_thing(Verb::Create, object, made);
            Ok::<_, StoreError>(())
        };
        blocking(write).await.map_err(|error| Status::unavailable(error.to_string()))?;
        tracing::info!(identity = spiffe_id, id = token.id(), uses = uses.max(1), until = %expires, "made a join token");
        Ok(Response::new(CreateTokenResponse { token: token.reveal(), spiffe_id, expires_unix: expires.as_second() }))
    }

    async fn list_proxies(
        &self,
        _request: Request<ListProxiesRequest>,
    ) -> Result<Response<ListProxiesResponse>, Status> {
        Ok(Response::new(ListProxiesResponse { proxies: self.xds.proxies(), revision: self.xds.revision() }))
    }

    type WaitStream = Streamed<WaitProgress>;

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<Self::WaitStream>, Status> {
        let WaitRequest { revision, timeout_ms, objects } = request.into_inner();
        let timeout = if timeout_ms == 0 { DEFAULT_WAIT } else { Duration::from_millis(timeout_ms).min(MAX_WAIT) };
        let begun = Instant::now();
        if !objects.is_empty() {
            wait::seen(self.objects.clone(), &objects, timeout).await?;
        }
        wait::made(self.objects.clone(), revision, timeout.saturating_sub(begun.elapsed())).await?;
        let newest = self.objects().revision;
        // The newest of the store, which the newest snapshot may not have yet.
        let revision = if revision == 0 { newest } else { revision };
        Ok(Response::new(Box::pin(self.xds.wait(revision, timeout.saturating_sub(begun.elapsed())).map(Ok))))
    }

    async fn list_services(
        &self,
        _request: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        let services = convert::services(&self.snapshot().model, &self.xds.proxies());
        Ok(Response::new(ListServicesResponse { services }))
    }

    async fn get_status(&self, _request: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        let (objects, snapshot) = (self.objects(), self.snapshot());
        let findings = findings::findings(
            &snapshot.model,
            &objects,
            &self.xds.proxies(),
            self.ca.root_not_after(),
            Timestamp::now(),
        );
        Ok(Response::new(GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: self.ca.trust_domain().to_owned(),
            revision: objects.revision,
            listeners: self.listeners.clone(),
            root_not_after_unix: self.ca.root_not_after().as_second(),
            findings,
            data_dir: self.data_dir.display().to_string(),
        }))
    }

    async fn list_traffic(
        &self,
        request: Request<ListTrafficRequest>,
    ) -> Result<Response<ListTrafficResponse>, Status> {
        let window = match request.into_inner().window_ms {
            0 => Duration::MAX,
            window => Duration::from_millis(window),
        };
        let (reports, now) = (self.reports.clone(), Instant::now());
        // Of a large mesh, this is long work.
        let traffic = tokio::task::spawn_blocking(move || reports.traffic(window, now)).await;
        traffic.map(Response::new).map_err(|_| Status::unavailable("mesh-control is stopping"))
    }

    type TapStream = Streamed<TapResponse>;

    async fn tap(&self, request: Request<TapRequest>) -> Result<Response<Self::TapStream>, Status> {
        let who = Who::operator(request.extensions().get::<Peer>());
        let mut request = request.into_inner();
        if let Some(filter) = &mut request.filter {
            let snapshot = self.snapshot();
            filter.from.iter_mut().for_each(|party| convert::name_identities(party, &snapshot.model));
        }
        let (tap, told) = self.reports.tap(request.clone(), Instant::now())?;
        let TapRequest { filter, whose, max_rate, headers } = request;
        tracing::info!(tap, ?who, ?whose, ?filter, ?headers, max_rate, "a tap begins");
        Ok(Response::new(Box::pin(told)))
    }

    async fn list_certificates(
        &self,
        _request: Request<ListCertificatesRequest>,
    ) -> Result<Response<ListCertificatesResponse>, Status> {
        let workloads = self.served();
        let authorities = certificates::authorities(&self.ca, &self.tls);
        Ok(Response::new(ListCertificatesResponse { workloads, authorities }))
    }

    async fn rotate_root(&self, request: Request<RotateRootRequest>) -> Result<Response<RotateRootResponse>, Status> {
        let RotateRootRequest { step, force } = *request.get_ref();
        match Step::try_from(step) {
            Ok(Step::Unspecified) => (),
            Ok(step) => {
                let elsewhere = "this mesh is in Kubernetes, where its root is in the Secret mesh-system/mesh-ca: docs/operations.md says how it is replaced";
                let store = self.store.clone().ok_or_else(|| Status::failed_precondition(elsewhere))?;
                self.rotate(store.by(Who::operator(request.extensions().get::<Peer>())), step, force).await?;
            }
            Err(_) => return Err(Status::invalid_argument(format!("there is no step {step} of replacing the root"))),
        }
        Ok(Response::new(self.rotation()))
    }

    type QueryAuditStream = Streamed<AuditEntry>;

    async fn query_audit(
        &self,
        request: Request<QueryAuditRequest>,
    ) -> Result<Response<Self::QueryAuditStream>, Status> {
        let elsewhere = "changes of a mesh in Kubernetes are in the API server's own audit log";
        let trail = self.store.as_ref().and_then(Store::trail).cloned();
        let trail = trail.ok_or_else(|| Status::failed_precondition(elsewhere))?;
        let QueryAuditRequest { since_unix_ms, kind, namespace, name, who, last, follow } = request.into_inner();
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        let since = Timestamp::from_millisecond(since_unix_ms);
        let since = since.map_err(|error| Status::invalid_argument(format!("since_unix_ms: {error}")))?;
        let query = Query {
            since: Some(since).filter(|_| since_unix_ms != 0),
            kind: given(kind),
            namespace: given(namespace),
            name: given(name),
            who: given(who),
            last: usize::try_from(last).ok().filter(|last| *last > 0),
            follow,
        };
        let told = trail.ask(query).map(|line| match line {
            Ok(line) => Ok(AuditEntry { json: line.trim_end().to_owned() }),
            Err(reason) => Err(Status::unavailable(reason)),
        });
        Ok(Response::new(Box::pin(told)))
    }

    async fn set_log_filter(
        &self,
        request: Request<SetLogFilterRequest>,
    ) -> Result<Response<SetLogFilterResponse>, Status> {
        let filter = request.into_inner().filter;
        let log = self.log.as_ref().ok_or_else(|| Status::unimplemented("the log levels of this process are fixed"))?;
        let previous = log.set(&filter).map_err(|error| Status::invalid_argument(error.to_string()))?;
        tracing::info!(filter, previous, "changed the log filter");
        Ok(Response::new(SetLogFilterResponse { previous }))
    }
}
