//! A cluster's mesh behind the same service that a standalone control plane has, so that the commands need not know where
//! they work: objects through the API server, everything else from the replicas of mesh-control.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_server::{
    ClientStatusDiscoveryService, ClientStatusDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::status::v3::{ClientStatusRequest, ClientStatusResponse};
use futures_util::future::try_join_all;
use futures_util::stream::{SelectAll, StreamExt};
use futures_util::{Stream, stream};
use mesh_common::proto::control::apply_result;
use mesh_common::proto::control::mesh_server::{Mesh, MeshServer};
use mesh_common::proto::control::*;
use mesh_common::resource::{Key, Kind, Object};
use tokio::sync::OnceCell;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

use super::replicas::{self, Replica};
use super::{Cluster, merge, objects};
use crate::client::{MAX_MESSAGE, channel_over};
use crate::failure::{Failure, sentence};
use crate::install::manifest::Outcome;

const BUFFER: usize = 256 << 10;

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Clone)]
struct Plane {
    cluster: Cluster,
    /// Found when they are first asked for something.
    replicas: Arc<OnceCell<Vec<Replica>>>,
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
    let plane = Plane { cluster, replicas: Arc::default(), written: Arc::default() };
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    let status = ClientStatusDiscoveryServiceServer::new(plane.clone());
    let server = Server::builder()
        .add_service(MeshServer::new(plane).max_decoding_message_size(MAX_MESSAGE))
        .add_service(status.max_decoding_message_size(MAX_MESSAGE));
    tokio::spawn(server.serve_with_incoming(tokio_stream::once(Ok::<_, std::io::Error>(theirs))));
    channel_over(ours).await.map_err(|error| Failure::new(sentence(&super::access::full(&error))))
}

impl Plane {
    async fn replicas(&self) -> Result<&[Replica], Status> {
        let found = self.replicas.get_or_try_init(|| replicas::connect(&self.cluster)).await;
        found.map(Vec::as_slice).map_err(Status::from)
    }

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
    /// The API server has no transactions: all objects are tried first, so that what it refuses is known before anything
    /// is changed.
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let ApplyRequest { objects: texts, dry_run } = request.into_inner();
        let read = |text: &String| Object::from_json(text).map_err(|error| Status::invalid_argument(error.to_string()));
        let wanted = texts.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let mut results = Vec::new();
        let rounds: &[bool] = if dry_run || wanted.len() == 1 { &[dry_run] } else { &[true, false] };
        for dry_run in rounds {
            results.clear();
            for object in &wanted {
                results.push(objects::write(&self.cluster, object, *dry_run).await.map_err(refused)?);
            }
        }
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
        let DeleteRequest { keys, ignore_missing } = request.into_inner();
        let read = |key: &ObjectKey| Ok::<_, Status>(Key::new(parse(&key.kind)?, &key.namespace, &key.name));
        let keys = keys.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let deleted = objects::delete(&self.cluster, &keys, ignore_missing).await?;
        let mut revision = 0;
        if let Some(key) = deleted.last() {
            revision = objects::newest(&self.cluster, key.kind).await?;
            self.note(revision, deleted.iter().map(|key| objects::version(key, String::new())).collect());
        }
        let deleted = deleted.iter().map(crate::objects::to_proto).collect();
        Ok(Response::new(DeleteResponse { deleted, revision }))
    }

    type WatchStream = Streaming<WatchEvent>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        match self.replicas().await? {
            [first, ..] => first.mesh().watch(request.into_inner()).await,
            [] => Err(Status::unavailable("no replica of mesh-control is ready")),
        }
    }

    async fn create_token(&self, _: Request<CreateTokenRequest>) -> Result<Response<CreateTokenResponse>, Status> {
        let message = "In Kubernetes there are no join tokens: a pod's proxy shows the token of its service account.";
        Err(Failure::refused(message).hint("Set serviceAccountName in the pod's spec; that is its identity.").into())
    }

    async fn list_proxies(&self, _: Request<ListProxiesRequest>) -> Result<Response<ListProxiesResponse>, Status> {
        let asked = self.replicas().await?.iter().map(|replica| async move {
            Ok::<_, Status>(replica.mesh().list_proxies(ListProxiesRequest {}).await?.into_inner())
        });
        let mut merged = ListProxiesResponse::default();
        for answer in try_join_all(asked).await? {
            merged.proxies.extend(answer.proxies);
            merged.revision = merged.revision.max(answer.revision);
        }
        merged.proxies.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(Response::new(merged))
    }

    type WaitStream = Streamed<WaitProgress>;

    /// For what this process has written or, if it is nothing, for all that there is now.
    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<Self::WaitStream>, Status> {
        let timeout_ms = request.into_inner().timeout_ms;
        let mut written = self.written();
        if written.objects.is_empty() {
            written.objects = objects::versions(&self.cluster).await?;
            let newest = written.objects.iter().map(|object| objects::number(&object.resource_version)).max();
            written.revision = newest.unwrap_or_default();
        }
        let request = WaitRequest { revision: 0, timeout_ms, objects: written.objects };
        let asked = self.replicas().await?.iter().map(|replica| {
            let request = request.clone();
            async move { Ok::<_, Status>(replica.mesh().wait(request).await?.into_inner()) }
        });
        let streams = try_join_all(asked).await?;
        let mut each = vec![None; streams.len()];
        let numbered = streams.into_iter().enumerate().map(|(index, steps)| steps.map(move |step| (index, step)));
        let steps = numbered.collect::<SelectAll<_>>().map(move |(index, step)| {
            if let Some(place) = each.get_mut(index) {
                *place = Some(step?);
            }
            let mut merged = merge::progress(&each);
            merged.revision = written.revision;
            if let Some(at) = written.at {
                merged.elapsed_ms = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
            }
            Ok(merged)
        });
        Ok(Response::new(Box::pin(steps)))
    }

    async fn list_services(&self, _: Request<ListServicesRequest>) -> Result<Response<ListServicesResponse>, Status> {
        let asked = self.replicas().await?.iter().map(|replica| async move {
            Ok::<_, Status>(replica.mesh().list_services(ListServicesRequest {}).await?.into_inner().services)
        });
        Ok(Response::new(ListServicesResponse { services: merge::services(try_join_all(asked).await?) }))
    }

    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        let asked = self.replicas().await?.iter().map(|replica| async move {
            let answer = replica.mesh().get_status(GetStatusRequest {}).await?.into_inner();
            Ok::<_, Status>((replica.name.clone(), answer))
        });
        Ok(Response::new(merge::status(try_join_all(asked).await?)))
    }

    async fn set_log_filter(
        &self,
        request: Request<SetLogFilterRequest>,
    ) -> Result<Response<SetLogFilterResponse>, Status> {
        let request = request.into_inner();
        let asked = self.replicas().await?.iter().map(|replica| {
            let request = request.clone();
            async move { Ok::<_, Status>(replica.mesh().set_log_filter(request).await?.into_inner()) }
        });
        let answers = try_join_all(asked).await?;
        Ok(Response::new(answers.into_iter().next().unwrap_or_default()))
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
        let request = request.into_inner();
        let asked = self.replicas().await?.iter().map(|replica| {
            let request = request.clone();
            async move { Ok::<_, Status>(replica.client_status().fetch_client_status(request).await?.into_inner()) }
        });
        let config = try_join_all(asked).await?.into_iter().flat_map(|answer| answer.config).collect();
        Ok(Response::new(ClientStatusResponse { config }))
    }
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
