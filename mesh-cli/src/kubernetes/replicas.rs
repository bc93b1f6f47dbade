//! The replicas of mesh-control, each asked on the loopback of its pod through a forwarded port: whoever may forward ports
//! there is the mesh's operator.

use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use mesh_common::names::port;
use mesh_common::proto::control::mesh_client::MeshClient;
use tokio::io::DuplexStream;
use tonic::transport::Channel;

use super::Cluster;
use crate::client::{MAX_MESSAGE, channel_over};
use crate::failure::{Exit, Failure};
use crate::install::{NAMESPACE, SELECTOR};

/// One that is ready.
#[derive(Clone)]
pub struct Replica {
    /// Its pod.
    pub name: String,
    channel: Channel,
}

impl Replica {
    pub fn mesh(&self) -> MeshClient<Channel> {
        MeshClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub fn client_status(&self) -> ClientStatusDiscoveryServiceClient<Channel> {
        ClientStatusDiscoveryServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }
}

/// All that are ready now; at least one.
pub async fn connect(cluster: &Cluster) -> Result<Vec<Replica>, Failure> {
    let pods = cluster.namespaced::<Pod>(NAMESPACE).list(&ListParams::default().labels(SELECTOR)).await?;
    let names: Vec<String> =
        pods.items.iter().filter(|pod| is_ready(pod)).filter_map(|p| p.metadata.name.clone()).collect();
    if names.is_empty() {
        let message = match pods.items.len() {
            0 => format!("mesh-control does not run in this cluster ({}).", cluster.context),
            n => format!("None of the {n} replicas of mesh-control is ready."),
        };
        let hint = match pods.items.len() {
            0 => "`meshctl install` installs it; --context chooses another cluster.",
            _ => "`meshctl check` tells what is wrong.",
        };
        return Err(Failure::with(Exit::Unreachable, message).hint(hint));
    }
    let connected = names.into_iter().map(|name| replica(cluster, name));
    futures_util::future::try_join_all(connected).await
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

async fn replica(cluster: &Cluster, name: String) -> Result<Replica, Failure> {
    let stream = forward(cluster, NAMESPACE, &name, port::OPERATOR).await?;
    let channel = channel_over(stream).await.map_err(|error| {
        let message = format!("The replica {name} of mesh-control does not answer: {}.", super::access::full(&error));
        Failure::with(Exit::Unreachable, message).hint("`meshctl check` tells more.")
    })?;
    Ok(Replica { name, channel })
}

/// A connection to a port on a pod's loopback.
pub async fn forward(cluster: &Cluster, namespace: &str, pod: &str, port: u16) -> Result<DuplexStream, Failure> {
    let failed = |reason: String| {
        Failure::with(
            Exit::Unreachable,
            format!("Port {port} of the pod {namespace}/{pod} cannot be reached: {reason}."),
        )
        .hint(format!(
            "This needs the right to create pods/portforward in {namespace}; try `kubectl -n {namespace} auth can-i \
                 create pods/portforward`."
        ))
    };
    let forwarder = cluster.namespaced::<Pod>(namespace).portforward(pod, &[port]).await;
    let mut forwarder = forwarder.map_err(|error| failed(super::access::full(&error)))?;
    forwarder.take_stream(port).ok_or_else(|| failed("the API server forwards nothing".to_owned()))
}
