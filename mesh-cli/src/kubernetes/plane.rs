//! A cluster's mesh behind the same service that a standalone control plane has, so that the commands need not know where
//! they work: objects through the API server, everything else from the replicas of mesh-control.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_server::{
    ClientStatusDiscoveryService, ClientStatusDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::status::v3::{ClientStatusRequest, ClientStatusResponse};
use futures_util::stream::{self, Stream, StreamExt};
use kube::api::Preconditions;
use mesh_common::proto::control::apply_result;
use mesh_common::proto::control::mesh_server::{Mesh, MeshServer};
use mesh_common::proto::control::*;
use mesh_common::resource::{Key, Kind, Object};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

use super::replicas::{Replica, Replicas};
use super::{Cluster, batch, follow, merge, objects};
use crate::client::{MAX_MESSAGE, channel_over};
use crate::failure::{Failure, sentence};
use crate::install::manifest::Outcome;

const BUFFER: usize = 256 << 10;

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Clone)]
struct Plane {
    cluster: Cluster,
    replicas: Replicas,
    written: Arc<Mutex<Written>>,
}

/// What this process has changed: the replicas hear of it from the API server, so that is waited for.
#[derive(Clone, Default)]
struct Written {
    revision: u64,
    at: Option<Instant>,
    objects: Vec<ObjectVersion>,
}

/// A channel to it. It lives as long as the process.
pub async fn open(cluster: Cluster) -> Result<Channel, Failure> {
    let plane = Plane { replicas: Replicas::new(cluster.clone()), cluster, written: Arc::default() };
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    let status = ClientStatusDiscoveryServiceServer::new(plane.clone());
    let server = Server::builder()
        .add_service(MeshServer::new(plane).max_decoding_message_size(MAX_MESSAGE))
        .add_service(status.max_decoding_message_size(MAX_MESSAGE));
    tokio::spawn(server.serve_with_incoming(tokio_stream::once(Ok::<_, std::io::Error>(theirs))));
    channel_over(ours).await.map_err(|error| Failure::new(sentence(&super::access::full(&error))))
}

impl Plane {
    fn note(&self, revision: u64, objects: Vec<ObjectVersion>) {
        if let Ok(mut written) = self.written.lock() {
            written.revision = written.revision.max(revision);
            written.at.get_or_insert_with(Instant::now);
            // Only the last change of an object is of interest.
            written.objects.retain(|old| !objects.iter().any(|new| same(old, new)));
            written.objects.extend(objects);
        }
    }

    fn written(&self) -> Written {
        self.written.lock().map(|written| written.clone()).unwrap_or_default()
    }
}

fn same(a: &ObjectVersion, b: &ObjectVersion) -> bool {
    (&a.kind, &a.namespace, &a.name) == (&b.kind, &b.namespace, &b.name)
}

#[tonic::async_trait]
impl Mesh for Plane {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let ApplyRequest { objects: texts, dry_run, force } = request.into_inner();
        let read = |text: &String| Object::from_json(text).map_err(|error| Status::invalid_argument(error.to_string()));
        let wanted = texts.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let results = batch::apply(&self.cluster, &wanted, dry_run, force).await.map_err(refused)?;
        let revision = results.iter().map(|taken| objects::number(&taken.version.resource_version)).max();
        let revision = revision.unwrap_or_default();
        if !dry_run {
            self.note(revision, results.iter().map(|taken| taken.version.clone()).collect());
        }
        let results = results.into_iter().map(|taken| {
            let ObjectVersion { kind, namespace, name, .. } = taken.version;
            let outcome = match taken.outcome {
                Outcome::Created => apply_result::Outcome::Created,
                Outcome::Configured => apply_result::Outcome::Configured,
                Outcome::Unchanged => apply_result::Outcome::Unchanged,
            };
            ApplyResult {
                key: Some(ObjectKey { kind, namespace, name }),
                outcome: outcome.into(),
                warnings: Vec::new(),
            }
        });
        Ok(Response::new(ApplyResponse { results: results.collect(), revision }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let ListRequest { kind, namespace, name } = request.into_inner();
        let kind = Some(kind).filter(|kind| !kind.is_empty()).map(|kind| parse(&kind)).transpose()?;
        let (found, unreadable) = objects::list(&self.cluster, kind, &namespace, &name).await?;
        if let (true, Some(problem)) = (found.is_empty(), unreadable.first()) {
            return Err(Failure::new(format!("An object cannot be read: {problem}."))
                .hint("It is probably newer than this meshctl; `kubectl get` shows it.")
                .into());
        }
        for problem in unreadable {
            eprintln!("warning: left out, because it cannot be read: {problem}");
        }
        let newest = found.iter().filter_map(|object| object.pointer("/metadata/resourceVersion")?.as_str());
        let revision = newest.map(objects::number).max().unwrap_or_default();
        Ok(Response::new(ListResponse { objects: found.iter().map(ToString::to_string).collect(), revision }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let DeleteRequest { keys, ignore_missing, preconditions } = request.into_inner();
        let parsed = |key: &ObjectKey| Ok::<_, Status>(Key::new(parse(&key.kind)?, &key.namespace, &key.name));
        let keys = keys.iter().map(parsed).collect::<Result<Vec<_>, _>>()?;
        let read = preconditions.into_iter().map(|it| {
            let given = |text: String| Some(text).filter(|text| !text.is_empty());
            let expected = Preconditions { uid: given(it.uid), resource_version: given(it.resource_version) };
            Ok::<_, Status>((parsed(&it.key.unwrap_or_default())?, expected))
        });
        let read = read.collect::<Result<Vec<_>, _>>()?;
        let deleted = batch::delete(&self.cluster, &keys, ignore_missing, &read).await.map_err(refused)?;
        let mut revision = 0;
        if let Some(key) = deleted.last() {
            // It is done, whether the user may see what is left or not.
            revision = objects::newest(&self.cluster, key.kind, &key.namespace).await.unwrap_or_default();
            self.note(revision, deleted.iter().map(|key| objects::version(key, String::new())).collect());
        }
        let deleted = deleted.iter().map(crate::objects::to_proto).collect();
        Ok(Response::new(DeleteResponse { deleted, revision }))
    }

    type WatchStream = Streamed<WatchEvent>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(Box::pin(follow::watch(self.replicas.clone(), request.into_inner()))))
    }

    async fn create_token(&self, _: Request<CreateTokenRequest>) -> Result<Response<CreateTokenResponse>, Status> {
        let message = "In Kubernetes there are no join tokens: a pod's proxy shows the token of its service account.";
        Err(Failure::refused(message).hint("Set serviceAccountName in the pod's spec; that is its identity.").into())
    }

    async fn list_proxies(&self, _: Request<ListProxiesRequest>) -> Result<Response<ListProxiesResponse>, Status> {
        let ask = |it: Replica| async move { it.mesh().list_proxies(ListProxiesRequest {}).await };
        let mut merged = ListProxiesResponse::default();
        for answer in self.replicas.each(ask).await? {
            let answer = answer.into_inner();
            merged.proxies.extend(answer.proxies);
            merged.revision = merged.revision.max(answer.revision);
        }
        merged.proxies.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(Response::new(merged))
    }

    type WaitStream = Streamed<WaitProgress>;

    /// For what this process has written or, if it is nothing, for all that there is now: that is for every revision that
    /// there has been.
    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<Self::WaitStream>, Status> {
        let WaitRequest { revision, timeout_ms, .. } = request.into_inner();
        let mut written = self.written();
        if written.objects.is_empty() {
            let (objects, newest) = objects::versions(&self.cluster).await?;
            if revision > newest {
                return Err(not_yet(revision, newest).into());
            }
            let own = objects.iter().map(|object| objects::number(&object.resource_version)).max().unwrap_or_default();
            written.revision = if revision == 0 { own } else { revision };
            written.objects = objects;
        }
        let timeout = Duration::from_millis(timeout_ms);
        let steps = follow::wait(self.replicas.clone(), written.objects, timeout).map(move |step| {
            let mut merged = step?;
            merged.revision = written.revision;
            if let Some(at) = written.at {
                merged.elapsed_ms = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
            }
            Ok(merged)
        });
        Ok(Response::new(Box::pin(steps)))
    }

    async fn list_services(&self, _: Request<ListServicesRequest>) -> Result<Response<ListServicesResponse>, Status> {
        let ask = |it: Replica| async move { it.mesh().list_services(ListServicesRequest {}).await };
        let answers = self.replicas.each(ask).await?.into_iter().map(|answer| answer.into_inner().services).collect();
        Ok(Response::new(ListServicesResponse { services: merge::services(answers) }))
    }

    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        let ask = |it: Replica| async move {
            let answer = it.mesh().get_status(GetStatusRequest {}).await?;
            Ok((it.name, answer.into_inner()))
        };
        Ok(Response::new(merge::status(self.replicas.each(ask).await?)))
    }

    async fn list_traffic(
        &self,
        request: Request<ListTrafficRequest>,
    ) -> Result<Response<ListTrafficResponse>, Status> {
        let request = &request.into_inner();
        let ask = |it: Replica| async move { it.mesh().list_traffic(*request).await };
        let answers = self.replicas.each(ask).await?.into_iter().map(Response::into_inner).collect();
        Ok(Response::new(merge::traffic(answers)))
    }

    type TapStream = Streamed<TapResponse>;

    async fn tap(&self, request: Request<TapRequest>) -> Result<Response<Self::TapStream>, Status> {
        // What is wrong with it is told by whoever opens it first, at once.
        let request = request.into_inner();
        Ok(Response::new(Box::pin(follow::tap(self.replicas.clone(), request))))
    }

    async fn list_certificates(
        &self,
        _: Request<ListCertificatesRequest>,
    ) -> Result<Response<ListCertificatesResponse>, Status> {
        let ask = |it: Replica| async move { it.mesh().list_certificates(ListCertificatesRequest {}).await };
        let answers = self.replicas.each(ask).await?.into_iter().map(Response::into_inner).collect();
        Ok(Response::new(merge::certificates(answers)))
    }

    async fn rotate_root(&self, _: Request<RotateRootRequest>) -> Result<Response<RotateRootResponse>, Status> {
        let message =
            "In Kubernetes the root is in the Secret mesh-ca in mesh-system, and is not replaced by this command.";
        Err(Failure::refused(message).hint("docs/operations.md says how it is done there.").into())
    }

    type QueryAuditStream = Streamed<AuditEntry>;

    async fn query_audit(&self, _: Request<QueryAuditRequest>) -> Result<Response<Self::QueryAuditStream>, Status> {
        let message = "In Kubernetes changes are made at the API server, and its audit log has them.";
        Err(Failure::refused(message).hint("See https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/.").into())
    }

    async fn set_log_filter(
        &self,
        request: Request<SetLogFilterRequest>,
    ) -> Result<Response<SetLogFilterResponse>, Status> {
        let request = &request.into_inner();
        let ask = |it: Replica| async move { it.mesh().set_log_filter(request.clone()).await };
        let answer = self.replicas.each(ask).await?.into_iter().next();
        Ok(Response::new(answer.map(Response::into_inner).unwrap_or_default()))
    }
}

#[tonic::async_trait]
impl ClientStatusDiscoveryService for Plane {
    type StreamClientStatusStream = Streamed<ClientStatusResponse>;

    async fn stream_client_status(
        &self,
        _: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let refused = Status::unimplemented("ask the replicas of mesh-control themselves");
        Ok(Response::new(Box::pin(stream::iter([Err(refused)]))))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        let request = &request.into_inner();
        let ask = |it: Replica| async move { it.client_status().fetch_client_status(request.clone()).await };
        let config = self.replicas.each(ask).await?.into_iter().flat_map(|answer| answer.into_inner().config).collect();
        Ok(Response::new(ClientStatusResponse { config }))
    }
}

/// The API server counts changes of everything in the cluster: one that is to come says nothing about the mesh.
fn not_yet(revision: u64, newest: u64) -> Failure {
    let message = format!("This cluster has no revision {revision} yet; the newest is {newest}.");
    Failure::refused(message)
        .hint("Give the revision that a command has printed, or none to wait for all that there is now.")
}

fn parse(kind: &str) -> Result<Kind, Status> {
    Kind::parse(kind).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn refused(refused: objects::Refused) -> Status {
    match refused {
        objects::Refused::Conflict(message) => Status::aborted(message),
        objects::Refused::Failed(failure) => failure.into(),
    }
}
