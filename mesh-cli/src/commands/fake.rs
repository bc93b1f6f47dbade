//! A control plane for tests: keeps objects in memory and answers on a unix socket.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_util::{Stream, StreamExt, stream};
use mesh_common::proto::control::apply_result::Outcome;
use mesh_common::proto::control::mesh_server::{Mesh, MeshServer};
use mesh_common::proto::control::rotate_root_request::Step;
use mesh_common::proto::control::*;
use mesh_common::resource::{DEFAULT_NAMESPACE, Key, Kind, Object};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::Context;
use crate::client::{ControlAddress, Location};
use crate::kubernetes::Access;
use crate::output::{Captured, Format, Output};

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Default)]
pub struct State {
    pub objects: BTreeMap<Key, Object>,
    pub revision: u64,
    pub services: Vec<ServiceView>,
    pub proxies: Vec<Proxy>,
    pub traffic: ListTrafficResponse,
    pub certificates: ListCertificatesResponse,
    /// How far the replacement of the root is: each step that was asked for, and whether by force. Each question shows one more
    /// workload that has followed.
    pub rotation: RotateRootResponse,
    pub rotated: Vec<(Step, bool)>,
    /// The answers of `Tap`, and what was asked of it.
    pub tapped: Vec<TapResponse>,
    pub taps: Vec<TapRequest>,
    /// The records of `QueryAudit`, and what was asked of it.
    pub audit: Vec<serde_json::Value>,
    pub audited: Vec<QueryAuditRequest>,
    /// The answers of `Wait`, and of `Watch`.
    pub progress: Vec<WaitProgress>,
    pub events: Vec<WatchEvent>,
    /// What ends by itself, goes on without a word instead.
    pub holds: bool,
    /// What was asked of `Wait`.
    pub waited: Vec<WaitRequest>,
    /// Changes that somebody else makes just before the next ones arrive.
    pub others: Vec<Object>,
}

#[derive(Clone, Default)]
pub struct Fake(pub Arc<Mutex<State>>);

/// Serves for as long as the test's runtime lives.
pub struct Running {
    pub fake: Fake,
    folder: tempfile::TempDir,
}

pub fn start() -> Running {
    let running = Running { fake: Fake::default(), folder: tempfile::tempdir().unwrap() };
    let listener = UnixListener::bind(running.socket()).unwrap();
    let server = tonic::transport::Server::builder().add_service(MeshServer::new(running.fake.clone()));
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    running
}

impl Running {
    /// Its data folder.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("control.sock")
    }

    pub fn context(&self, format: Format) -> (Context, Captured) {
        let (out, captured) = Output::captured(format);
        let location = Location::Given(ControlAddress(self.socket()));
        (
            Context {
                location,
                access: Access::default(),
                namespace: None,
                default_namespace: DEFAULT_NAMESPACE.to_owned(),
                out,
            },
            captured,
        )
    }

    pub fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.fake.0.lock().unwrap()
    }

    pub fn put(&self, yaml: &str) {
        for object in mesh_common::resource::parse_yaml("test", yaml).unwrap() {
            self.state().put(object);
        }
    }

    pub fn object(&self, kind: Kind, name: &str) -> Option<Object> {
        self.state().objects.get(&Key::new(kind, "default", name)).cloned()
    }
}

impl State {
    fn put(&mut self, mut object: Object) -> Outcome {
        let key = object.key();
        let version = |o: &Object| o.metadata().resource_version.clone();
        let old = self.objects.get(&key);
        object.metadata_mut().resource_version = old.and_then(version);
        if old == Some(&object) {
            return Outcome::Unchanged;
        }
        let outcome = if old.is_some() { Outcome::Configured } else { Outcome::Created };
        self.revision += 1;
        object.metadata_mut().resource_version = Some(self.revision.to_string());
        self.objects.insert(key, object);
        outcome
    }

    fn streamed<T: Clone + Send + 'static>(&self, answers: &[T]) -> Streamed<T> {
        let answers = stream::iter(answers.iter().cloned().map(Ok).collect::<Vec<_>>());
        match self.holds {
            true => Box::pin(answers.chain(stream::pending())),
            false => Box::pin(answers),
        }
    }
}

fn proto(key: &Key) -> ObjectKey {
    ObjectKey { kind: key.kind.as_str().into(), namespace: key.namespace.clone(), name: key.name.clone() }
}

#[tonic::async_trait]
impl Mesh for Fake {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let mut state = self.0.lock().unwrap();
        if let Some(other) = state.others.pop() {
            state.put(other);
        }
        let request = request.into_inner();
        let mut results = Vec::new();
        for text in &request.objects {
            let object = Object::from_json(text).map_err(|e| Status::invalid_argument(e.to_string()))?;
            let stored = state.objects.get(&object.key()).map(|o| o.metadata().resource_version.clone());
            let asked = object.metadata().resource_version.clone();
            if asked.is_some() && stored != Some(asked) {
                return Err(Status::aborted("it has another version by now"));
            }
            let key = Some(proto(&object.key()));
            let outcome = if request.dry_run { Outcome::Unchanged } else { state.put(object) };
            results.push(ApplyResult { key, outcome: outcome.into(), warnings: Vec::new() });
        }
        Ok(Response::new(ApplyResponse { results, revision: state.revision }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let ListRequest { kind, namespace, name } = request.into_inner();
        let state = self.0.lock().unwrap();
        let fits = |key: &Key| {
            (kind.is_empty() || key.kind.as_str() == kind)
                && (namespace.is_empty() || key.namespace == namespace)
                && (name.is_empty() || key.name == name)
        };
        let objects = state.objects.iter().filter(|(key, _)| fits(key)).map(|(_, o)| o.to_json().to_string());
        Ok(Response::new(ListResponse { objects: objects.collect(), revision: state.revision }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let mut state = self.0.lock().unwrap();
        if let Some(other) = state.others.pop() {
            state.put(other);
        }
        let DeleteRequest { keys, ignore_missing, preconditions } = request.into_inner();
        let typed = |k: &ObjectKey| Key::new(Kind::parse(&k.kind).unwrap(), &k.namespace, &k.name);
        let missing = keys.iter().find(|k| !state.objects.contains_key(&typed(k)));
        if let (Some(key), false) = (missing, ignore_missing) {
            return Err(Status::not_found(format!("{} does not exist", typed(key))));
        }
        let current = |key: &ObjectKey| state.objects.get(&typed(key))?.metadata().resource_version.clone();
        let differs =
            |it: &Precondition| current(it.key.as_ref().unwrap()).is_some_and(|current| current != it.resource_version);
        if preconditions.iter().any(differs) {
            return Err(Status::aborted("it has another version by now"));
        }
        let deleted = keys.into_iter().filter(|k| state.objects.remove(&typed(k)).is_some()).collect();
        state.revision += 1;
        Ok(Response::new(DeleteResponse { deleted, revision: state.revision }))
    }

    type WatchStream = Streamed<WatchEvent>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let state = self.0.lock().unwrap();
        Ok(Response::new(state.streamed(&state.events)))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let CreateTokenRequest { namespace, service_account, ttl_seconds, .. } = request.into_inner();
        let spiffe_id = format!("spiffe://mesh.local/ns/{namespace}/sa/{service_account}");
        let expires_unix = i64::try_from(ttl_seconds).unwrap();
        Ok(Response::new(CreateTokenResponse { token: "mesh1.a.b.c".into(), spiffe_id, expires_unix }))
    }

    async fn list_proxies(&self, _: Request<ListProxiesRequest>) -> Result<Response<ListProxiesResponse>, Status> {
        let state = self.0.lock().unwrap();
        Ok(Response::new(ListProxiesResponse { proxies: state.proxies.clone(), revision: state.revision }))
    }

    type WaitStream = Streamed<WaitProgress>;

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<Self::WaitStream>, Status> {
        let mut state = self.0.lock().unwrap();
        state.waited.push(request.into_inner());
        Ok(Response::new(state.streamed(&state.progress)))
    }

    async fn list_services(&self, _: Request<ListServicesRequest>) -> Result<Response<ListServicesResponse>, Status> {
        Ok(Response::new(ListServicesResponse { services: self.0.lock().unwrap().services.clone() }))
    }

    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        Ok(Response::new(GetStatusResponse { version: "0.0.1".into(), ..GetStatusResponse::default() }))
    }

    async fn list_traffic(&self, _: Request<ListTrafficRequest>) -> Result<Response<ListTrafficResponse>, Status> {
        Ok(Response::new(self.0.lock().unwrap().traffic.clone()))
    }

    type TapStream = Streamed<TapResponse>;

    async fn tap(&self, request: Request<TapRequest>) -> Result<Response<Self::TapStream>, Status> {
        let mut state = self.0.lock().unwrap();
        state.taps.push(request.into_inner());
        Ok(Response::new(state.streamed(&state.tapped)))
    }

    async fn list_certificates(
        &self,
        _: Request<ListCertificatesRequest>,
    ) -> Result<Response<ListCertificatesResponse>, Status> {
        Ok(Response::new(self.0.lock().unwrap().certificates.clone()))
    }

    async fn rotate_root(&self, request: Request<RotateRootRequest>) -> Result<Response<RotateRootResponse>, Status> {
        let (asked, mut state) = (request.into_inner(), self.0.lock().unwrap());
        state.rotated.push((asked.step(), asked.force));
        match asked.step() {
            Step::Begin if asked.force => (),
            Step::Begin => state.rotation.began_unix = 1_900_000_000,
            Step::End if !state.rotation.behind.is_empty() && !asked.force => {
                return Err(Status::failed_precondition("somebody is behind"));
            }
            Step::End => state.rotation = RotateRootResponse::default(),
            Step::Unspecified => {
                let follows = state.rotation.behind.pop_if(|it| it.certificate.is_some());
                state.rotation.followed += u32::from(follows.is_some());
            }
        }
        Ok(Response::new(state.rotation.clone()))
    }

    type QueryAuditStream = Streamed<AuditEntry>;

    async fn query_audit(
        &self,
        request: Request<QueryAuditRequest>,
    ) -> Result<Response<Self::QueryAuditStream>, Status> {
        let mut state = self.0.lock().unwrap();
        state.audited.push(request.into_inner());
        let entries = state.audit.iter().map(|record| AuditEntry { json: record.to_string() }).collect::<Vec<_>>();
        Ok(Response::new(state.streamed(&entries)))
    }

    async fn set_log_filter(&self, _: Request<SetLogFilterRequest>) -> Result<Response<SetLogFilterResponse>, Status> {
        Ok(Response::new(SetLogFilterResponse { previous: "info".into() }))
    }
}
