//! The replicas of mesh-control, each asked on the loopback of its pod through a forwarded port: whoever may forward ports
//! there is the mesh's operator. When one goes away, as each does in a rolling restart, those that are there then are asked.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use futures_util::future::{join_all, try_join_all};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use mesh_common::names::port;
use mesh_common::proto::control::mesh_client::MeshClient;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::Cluster;
use super::forward::{NoForward, Said, Target};
use crate::client::{MAX_MESSAGE, channel_over};
use crate::failure::{Exit, Failure};
use crate::install::{NAMESPACE, SELECTOR};

/// How long replicas are looked for when one went away.
const PATIENCE: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(250);

/// One that was ready when it was connected to.
#[derive(Clone)]
pub struct Replica {
    /// Its pod.
    pub name: String,
    channel: Channel,
    said: Said,
}

impl Replica {
    pub fn mesh(&self) -> MeshClient<Channel> {
        MeshClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub fn client_status(&self) -> ClientStatusDiscoveryServiceClient<Channel> {
        ClientStatusDiscoveryServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }
}

/// All replicas; found when they are first asked for something. Clones share the connections.
#[derive(Clone)]
pub struct Replicas {
    cluster: Cluster,
    found: Arc<Mutex<Vec<Replica>>>,
}

impl Replicas {
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster, found: Arc::default() }
    }

    /// Asks all of them the same, and again if one goes away meanwhile.
    pub async fn each<T, F, A>(&self, ask: F) -> Result<Vec<T>, Status>
    where
        F: Fn(Replica) -> A,
        A: Future<Output = Result<T, Status>>,
    {
        self.ask(|found| try_join_all(found.into_iter().map(|replica| answer(replica, &ask)))).await
    }

    /// Asks one of them.
    pub async fn any<T, F, A>(&self, ask: F) -> Result<T, Status>
    where
        F: Fn(Replica) -> A,
        A: Future<Output = Result<T, Status>>,
    {
        let first = |found: Vec<Replica>| try_join_all(found.into_iter().take(1).map(|replica| answer(replica, &ask)));
        let answer = self.ask(first).await?.into_iter().next();
        answer.ok_or_else(|| Status::unavailable("no replica of mesh-control is ready"))
    }

    async fn ask<T, F, A>(&self, ask: F) -> Result<T, Status>
    where
        F: Fn(Vec<Replica>) -> A,
        A: Future<Output = Result<T, Unanswered>>,
    {
        let deadline = Instant::now() + PATIENCE;
        let mut found = self.found().await?;
        loop {
            match ask(found).await {
                Ok(answer) => return Ok(answer),
                Err(Unanswered::Refused(status)) => return Err(status),
                Err(Unanswered::Lost(status)) => found = self.find_again(status, deadline).await?,
            }
        }
    }

    async fn found(&self) -> Result<Vec<Replica>, Status> {
        let mut found = self.found.lock().await;
        if found.is_empty() {
            *found = connect(&self.cluster).await?;
        }
        Ok(found.clone())
    }

    /// After one was lost: connects to those that are ready by now, or gives back why it was lost when time is up.
    pub async fn find_again(&self, lost: Status, deadline: Instant) -> Result<Vec<Replica>, Status> {
        let mut found = self.found.lock().await;
        found.clear();
        let mut reason = lost;
        while Instant::now() + PAUSE < deadline {
            tokio::time::sleep(PAUSE).await;
            match connect(&self.cluster).await {
                Ok(connected) => {
                    found.clone_from(&connected);
                    return Ok(connected);
                }
                Err(failure) => reason = failure.into(),
            }
        }
        Err(reason)
    }

    /// Whether none is ready but these. When that cannot be told, what they have said holds.
    pub async fn are_all(&self, names: &[String]) -> bool {
        match ready(&self.cluster).await {
            Ok((ready, _)) => ready.iter().all(|name| names.contains(name)),
            Err(_) => true,
        }
    }
}

/// Why there is no answer.
enum Unanswered {
    /// The replica went away, or cannot be reached.
    Lost(Status),
    Refused(Status),
}

async fn answer<T, A>(replica: Replica, ask: impl Fn(Replica) -> A) -> Result<T, Unanswered>
where
    A: Future<Output = Result<T, Status>>,
{
    let said = replica.said.clone();
    ask(replica).await.map_err(|status| match is_lost(&status) {
        true => Unanswered::Lost(said.failure().map_or(status, Status::from)),
        false => Unanswered::Refused(status),
    })
}

/// Whether it is the connection that failed, or the replica that is stopping: another may do better.
pub fn is_lost(status: &Status) -> bool {
    // What came from the replica itself has no source here.
    status.source().is_some() || status.code() == Code::Unavailable
}

/// All that are ready now; at least one.
async fn connect(cluster: &Cluster) -> Result<Vec<Replica>, Failure> {
    let (names, all) = ready(cluster).await?;
    if names.is_empty() {
        let (message, hint) = match all {
            0 => (
                format!("mesh-control does not run in this cluster ({}).", cluster.context),
                "`meshctl install` installs it; --context chooses another cluster.",
            ),
            n => {
                (format!("None of the {n} replicas of mesh-control is ready."), "`meshctl check` tells what is wrong.")
            }
        };
        return Err(Failure::with(Exit::Unreachable, message).hint(hint));
    }
    let mut connected = Vec::new();
    let mut gone = None;
    for result in join_all(names.into_iter().map(|name| replica(cluster, name))).await {
        match result {
            Ok(replica) => connected.push(replica),
            // It ended since it was listed, as in a rolling restart.
            Err(NoForward::Gone(failure)) => gone = Some(failure),
            Err(NoForward::Failed(failure)) => return Err(failure),
        }
    }
    match gone {
        Some(failure) if connected.is_empty() => Err(failure),
        _ => Ok(connected),
    }
}

/// The names of those that are ready, and how many there are.
async fn ready(cluster: &Cluster) -> Result<(Vec<String>, usize), Failure> {
    let pods = cluster.namespaced::<Pod>(NAMESPACE).list(&ListParams::default().labels(SELECTOR)).await?;
    let ready = pods.items.iter().filter(|pod| is_ready(pod)).filter_map(|pod| pod.metadata.name.clone());
    Ok((ready.collect(), pods.items.len()))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

async fn replica(cluster: &Cluster, name: String) -> Result<Replica, NoForward> {
    let target = Target { namespace: NAMESPACE.to_owned(), pod: name.clone(), port: port::OPERATOR };
    let (stream, said) = target.connect(cluster).await?;
    let channel = channel_over(stream).await.map_err(|error| {
        NoForward::Failed(said.failure().unwrap_or_else(|| {
            let reason = super::access::full(&error);
            let message = format!("The replica {name} of mesh-control does not answer: {reason}.");
            Failure::with(Exit::Unreachable, message).hint("`meshctl check` tells more.")
        }))
    })?;
    Ok(Replica { name, channel, said })
}
