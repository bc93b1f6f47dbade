//! What a cluster knows of the mesh in it.

use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::ListParams;
use kube::{Api, Resource};
use mesh_common::names::kubernetes::LABEL_PROXY;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::install::{LABEL_PART_OF, NAMESPACE};
use crate::kubernetes::Access;

/// Files, and what goes into them.
pub async fn parts(access: &Access) -> Vec<(&'static str, Result<Value, Failure>)> {
    let cluster = match access.connect().await {
        Ok(cluster) => cluster,
        Err(failure) => return vec![("objects of the cluster", Err(failure))],
    };
    let ours = ListParams::default().labels(&format!("{LABEL_PART_OF}=mesh"));
    let proxied = ListParams::default().labels(&format!("{LABEL_PROXY}=true"));
    let all = ListParams::default();
    vec![
        ("version.json", version(&cluster.client).await),
        ("nodes.json", listed(cluster.all::<Node>(), &all, node).await),
        ("deployments.json", listed(cluster.namespaced::<Deployment>(NAMESPACE), &all, whole).await),
        ("daemonsets.json", listed(cluster.namespaced::<DaemonSet>(NAMESPACE), &all, whole).await),
        ("pods.json", listed(cluster.namespaced::<Pod>(NAMESPACE), &all, whole).await),
        ("pods-with-proxies.json", listed(cluster.all::<Pod>(), &proxied, pod).await),
        ("events.json", listed(cluster.namespaced::<Event>(NAMESPACE), &all, whole).await),
        ("leases.json", listed(cluster.namespaced::<Lease>(NAMESPACE), &all, whole).await),
        ("mutating-webhooks.json", listed(cluster.all::<MutatingWebhookConfiguration>(), &ours, whole).await),
        ("validating-webhooks.json", listed(cluster.all::<ValidatingWebhookConfiguration>(), &ours, whole).await),
    ]
}

async fn version(client: &kube::Client) -> Result<Value, Failure> {
    let info = client.apiserver_version().await?;
    Ok(json!({"version": info.git_version, "platform": info.platform}))
}

async fn listed<K>(api: Api<K>, params: &ListParams, of: impl Fn(Value) -> Value) -> Result<Value, Failure>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    let mut found = Vec::new();
    for mut object in api.list(params).await?.items {
        object.meta_mut().managed_fields = None;
        found.push(of(serde_json::to_value(object).map_err(anyhow::Error::from)?));
    }
    Ok(found.into())
}

fn whole(object: Value) -> Value {
    object
}

/// What runs there, and how the node is.
fn node(node: Value) -> Value {
    let status = &node["status"];
    json!({
        "name": node["metadata"]["name"], "labels": node["metadata"]["labels"], "info": status["nodeInfo"],
        "capacity": status["capacity"], "conditions": status["conditions"],
    })
}

/// Somebody else's: how its containers are, and not what is in them.
fn pod(pod: Value) -> Value {
    let metadata = &pod["metadata"];
    let image = |it: &Value| json!({"name": it["name"], "image": it["image"]});
    let images = |field: &str| pod["spec"][field].as_array().into_iter().flatten().map(image).collect::<Vec<_>>();
    json!({
        "namespace": metadata["namespace"], "name": metadata["name"], "labels": metadata["labels"],
        "created": metadata["creationTimestamp"], "node": pod["spec"]["nodeName"], "account": pod["spec"]["serviceAccountName"],
        "initContainers": images("initContainers"), "containers": images("containers"), "status": pod["status"],
    })
}
