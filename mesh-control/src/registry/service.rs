//! `mesh.workload.v1`: one stream for each registered workload.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_common::proto::workload::workload_registry_server::WorkloadRegistry;
use mesh_common::proto::workload::{DepartRequest, DepartResponse, RegisterRequest, RegisterResponse, Registration};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::depart::{self, Standing};
use super::process::Process;
use super::{Claim, GRACE, Origin, Registrant, Registry};
use crate::auth::{Authenticator, Proof};
use crate::snapshot::Snapshot;
use crate::xds::Xds;

/// How long to wait for the virtual addresses of a service that has just come into being.
const MODEL_WAIT: Duration = Duration::from_secs(2);
/// The first message must be there by then.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

/// The longest that one question about a departure waits.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Proxies named in the answer to it.
const NAMED: usize = 8;

type Answers = mpsc::Sender<Result<RegisterResponse, Status>>;

/// Who says which workloads there are.
#[derive(Clone)]
pub enum Workloads {
    /// Their proxies.
    Registered(Registry),
    /// A platform, by way of the model.
    Discovered,
}

pub struct RegistryService {
    workloads: Workloads,
    auth: Authenticator,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    xds: Xds,
}

/// How a stream came to its end.
enum End {
    /// The workload goes.
    Left,
    /// Something broke, and the workload may come back.
    Lost,
    /// Another stream speaks for the entry now.
    Replaced,
    Refused(Status),
}

impl RegistryService {
    pub fn new(workloads: Workloads, auth: Authenticator, snapshots: watch::Receiver<Arc<Snapshot>>, xds: Xds) -> Self {
        Self { workloads, auth, snapshots, xds }
    }
}

#[tonic::async_trait]
impl WorkloadRegistry for RegistryService {
    type RegisterStream = ReceiverStream<Result<RegisterResponse, Status>>;

    async fn register(
        &self,
        request: Request<Streaming<RegisterRequest>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let caller = self.auth.caller(&Proof::of(&request)?).await?;
        let identity = caller.required()?.clone();
        let registrant = Registrant { identity, origin: Origin::parse(&caller.address) };
        let Workloads::Registered(registry) = &self.workloads else {
            return Err(Status::failed_precondition(
                "workloads are discovered by the platform here; run mesh-proxy without --service and --address",
            ));
        };
        let (answers, stream) = mpsc::channel(4);
        let session = Session {
            registry: registry.clone(),
            snapshots: self.snapshots.clone(),
            registrant,
            process: caller.process.and_then(Process::watch),
            claim: None,
        };
        // A task of its own, so that the entry is looked after even when the caller drops the answer.
        tokio::spawn(session.run(request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn depart(&self, request: Request<DepartRequest>) -> Result<Response<DepartResponse>, Status> {
        let caller = self.auth.caller(&Proof::of(&request)?).await?;
        let identity = caller.required()?.clone();
        let request = request.into_inner();
        let until = Instant::now() + Duration::from_millis(request.wait_ms.into()).min(LONGEST_WAIT);
        let revision = match &self.workloads {
            Workloads::Registered(registry) => registry.depart(&identity, &request.name).await?,
            Workloads::Discovered => match depart::seen(&self.snapshots, &identity, &request, until).await? {
                Standing::Out(revision) => revision,
                Standing::Last => return Ok(waits("another workload of its service", true)),
                Standing::Unknown => return Ok(waits("the platform", false)),
            },
        };
        let mut waiting_for = self.xds.endpoints_told(revision, until.saturating_duration_since(Instant::now())).await;
        let gone = waiting_for.is_empty();
        waiting_for.truncate(NAMED);
        Ok(Response::new(DepartResponse { gone, waiting_for, last: false }))
    }
}

fn waits(r#for: &str, last: bool) -> Response<DepartResponse> {
    Response::new(DepartResponse { gone: false, waiting_for: vec![r#for.to_owned()], last })
}

struct Session {
    registry: Registry,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    registrant: Registrant,
    /// The proxy, on this machine.
    process: Option<Process>,
    claim: Option<Claim>,
}

impl Session {
    async fn run(mut self, mut requests: Streaming<RegisterRequest>, answers: Answers) {
        let end = self.serve(&mut requests, &answers).await;
        let Some(claim) = &self.claim else {
            if let End::Refused(status) = end {
                let _ = answers.send(Err(status)).await;
            }
            return;
        };
        let workload = &claim.key;
        match end {
            End::Left => {
                tracing::info!(%workload, "left");
                self.leave(claim).await;
            }
            End::Lost => {
                self.registry.lost(claim, Instant::now());
                // It may have registered anew meanwhile: then this claim has no say any more.
                if self.has_ended().await {
                    tracing::info!(%workload, "its proxy ended without a word");
                    self.leave(claim).await;
                } else {
                    tracing::info!(%workload, grace = ?GRACE, "its stream broke; it stays for the grace time");
                }
            }
            End::Replaced => {
                let _ = answers.send(Err(Status::aborted("another stream has registered this workload"))).await;
            }
            End::Refused(status) => {
                self.registry.lost(claim, Instant::now());
                let _ = answers.send(Err(status)).await;
            }
        }
    }

    async fn has_ended(&self) -> bool {
        match &self.process {
            Some(process) => process.has_ended().await,
            None => false,
        }
    }

    async fn leave(&self, claim: &Claim) {
        if let Err(error) = self.registry.leave(claim).await {
            let workload = &claim.key;
            tracing::error!(%workload, %error, "cannot remove a workload that left; it is removed after the grace time");
            self.registry.lost(claim, Instant::now());
        }
    }

    async fn serve(&mut self, requests: &mut Streaming<RegisterRequest>, answers: &Answers) -> End {
        let first = match tokio::time::timeout(FIRST_MESSAGE, requests.message()).await {
            Ok(Ok(Some(first))) => first,
            Ok(_) => return End::Lost,
            Err(_) => return End::Refused(Status::deadline_exceeded("the first message did not come in time")),
        };
        let Some(mut registration) = first.registration else {
            return End::Refused(Status::invalid_argument("the first message must hold the registration"));
        };
        if first.leaving {
            return End::Left;
        }
        if let Err(status) = self.register(&registration, first.healthy, answers).await {
            return End::Refused(status);
        }
        let mut healthy = first.healthy;
        loop {
            let request = match requests.message().await {
                Ok(Some(request)) => request,
                Ok(None) => return End::Left,
                Err(_) => return End::Lost,
            };
            if self.claim.as_ref().is_some_and(|claim| !self.registry.holds(claim)) {
                return End::Replaced;
            }
            if request.leaving {
                return End::Left;
            }
            let repeated = request.registration.unwrap_or_else(|| registration.clone());
            if repeated.name != registration.name {
                return End::Refused(Status::invalid_argument("a stream registers one workload, with one name"));
            }
            if request.healthy != healthy {
                tracing::info!(workload = registration.name, healthy = request.healthy, "its health changed");
            }
            (registration, healthy) = (repeated, request.healthy);
            if let Err(status) = self.register(&registration, healthy, answers).await {
                return End::Refused(status);
            }
        }
    }

    async fn register(&mut self, registration: &Registration, healthy: bool, answers: &Answers) -> Result<(), Status> {
        let (claim, revision) = match &self.claim {
            Some(claim) => {
                let revision = self.registry.update(claim, &self.registrant, registration, healthy).await?;
                (claim.clone(), revision)
            }
            None => {
                let registered = self.registry.register(&self.registrant, registration, healthy).await?;
                tracing::info!(workload = %registered.0.key, identity = %self.registrant.identity, healthy, "registered");
                registered
            }
        };
        let namespace = claim.key.namespace.clone();
        self.claim = Some(claim);
        let virtual_addresses = self.virtual_addresses(&namespace, &registration.service, revision).await;
        let grace_seconds = u32::try_from(GRACE.as_secs()).unwrap_or(u32::MAX);
        // A caller that has gone shows when the next message is read.
        let _ = answers.send(Ok(RegisterResponse { virtual_addresses, grace_seconds })).await;
        Ok(())
    }

    async fn virtual_addresses(&mut self, namespace: &str, service: &str, revision: u64) -> Vec<String> {
        if service.is_empty() {
            return Vec::new();
        }
        let fresh = self.snapshots.wait_for(|snapshot| snapshot.revision >= revision);
        let Ok(Ok(snapshot)) = tokio::time::timeout(MODEL_WAIT, fresh).await else { return Vec::new() };
        let service = snapshot.model.service(namespace, service);
        service.map(|service| service.virtual_addresses.iter().map(ToString::to_string).collect()).unwrap_or_default()
    }
}
