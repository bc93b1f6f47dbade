//! What a cluster knows of the mesh in it.

use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::ListParams;
use kube::{Api, Resource};
use mesh_common::names::kubernetes::LABEL_PROXY;
use mesh_common::secrets::REDACTED;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::limited;
use crate::failure::Failure;
use crate::install::{CONTROL, LABEL_PART_OF, NAMESPACE, PLUGIN_NAMESPACE};
use crate::kubernetes::Access;

/// Files, and what goes into them. Of the control plane's namespace, what belongs to the mesh.
pub async fn parts(access: &Access) -> Vec<(&'static str, Result<Value, Failure>)> {
    let cluster = match limited(access.connect()).await {
        Ok(cluster) => cluster,
        Err(failure) => return vec![("*", Err(failure))],
    };
    let ours = ListParams::default().labels(&format!("{LABEL_PART_OF}=mesh"));
    let proxied = ListParams::default().labels(&format!("{LABEL_PROXY}=true"));
    let all = ListParams::default();
    vec![
        ("version.json", limited(version(&cluster.client)).await),
        ("nodes.json", listed(cluster.all::<Node>(), &all, node).await),
        ("deployments.json", listed(cluster.namespaced::<Deployment>(NAMESPACE), &ours, whole).await),
        ("daemonsets.json", listed(cluster.namespaced::<DaemonSet>(PLUGIN_NAMESPACE), &ours, whole).await),
        ("pods.json", listed(cluster.namespaced::<Pod>(NAMESPACE), &ours, whole).await),
        ("pods-with-proxies.json", listed(cluster.all::<Pod>(), &proxied, pod).await),
        // These have no labels.
        ("events.json", listed(cluster.namespaced::<Event>(NAMESPACE), &all, event).await),
        ("leases.json", listed(cluster.namespaced::<Lease>(NAMESPACE), &all, lease).await),
        ("mutating-webhooks.json", listed(cluster.all::<MutatingWebhookConfiguration>(), &ours, whole).await),
        ("validating-webhooks.json", listed(cluster.all::<ValidatingWebhookConfiguration>(), &ours, whole).await),
    ]
}

async fn version(client: &kube::Client) -> Result<Value, Failure> {
    let info = client.apiserver_version().await?;
    Ok(json!({"version": info.git_version, "platform": info.platform}))
}

async fn listed<K>(api: Api<K>, params: &ListParams, of: impl Fn(Value) -> Option<Value>) -> Result<Value, Failure>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    let mut found = Vec::new();
    for mut object in limited(async { Ok(api.list(params).await?) }).await?.items {
        object.meta_mut().managed_fields = None;
        found.extend(of(serde_json::to_value(object).map_err(anyhow::Error::from)?));
    }
    Ok(found.into())
}

fn whole(object: Value) -> Option<Value> {
    Some(without_settings(object))
}

/// What somebody gives to a container may be a secret, whatever its name is.
fn without_settings(value: Value) -> Value {
    match value {
        Value::Object(mut fields) => {
            for variable in fields.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(value) = variable.get_mut("value") {
                    *value = REDACTED.into();
                }
            }
            Value::Object(fields.into_iter().map(|(name, it)| (name, without_settings(it))).collect())
        }
        Value::Array(all) => all.into_iter().map(without_settings).collect(),
        other => other,
    }
}

/// Of what is the mesh's, or was.
fn event(event: Value) -> Option<Value> {
    is_ours(&event["involvedObject"]["name"]).then_some(event)
}

fn lease(lease: Value) -> Option<Value> {
    is_ours(&lease["metadata"]["name"]).then_some(lease)
}

/// Pods are called by what they are of.
fn is_ours(name: &Value) -> bool {
    name.as_str().is_some_and(|name| name.starts_with(CONTROL))
}

/// What runs there, and how the node is.
fn node(node: Value) -> Option<Value> {
    let status = &node["status"];
    Some(json!({
        "name": node["metadata"]["name"], "labels": node["metadata"]["labels"], "info": status["nodeInfo"],
        "capacity": status["capacity"], "conditions": status["conditions"],
    }))
}

/// Somebody else's: how its containers are, and not what is in them.
fn pod(pod: Value) -> Option<Value> {
    let metadata = &pod["metadata"];
    let image = |it: &Value| json!({"name": it["name"], "image": it["image"]});
    let images = |field: &str| pod["spec"][field].as_array().into_iter().flatten().map(image).collect::<Vec<_>>();
    Some(json!({
        "namespace": metadata["namespace"], "name": metadata["name"], "labels": metadata["labels"],
        "created": metadata["creationTimestamp"], "node": pod["spec"]["nodeName"], "account": pod["spec"]["serviceAccountName"],
        "initContainers": images("initContainers"), "containers": images("containers"), "status": pod["status"],
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_containers_are_not_told() {
        let pod = json!({"spec": {"containers": [{"name": "a", "env": [
            {"name": "LEVEL", "value": "s3cret"},
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ]}]}});
        let shown = whole(pod.clone()).unwrap();
        assert_eq!(shown.pointer("/spec/containers/0/env/0/value"), Some(&REDACTED.into()));
        assert_eq!(shown.pointer("/spec/containers/0/env/1"), pod.pointer("/spec/containers/0/env/1"));
    }

    #[test]
    fn only_what_is_ours_is_told_of() {
        let of = |name: &str| event(json!({"involvedObject": {"name": name}})).is_some();
        assert!(of("mesh-control-7d9c8b6f5-x2x4z") && !of("vault-0"));
        assert!(lease(json!({"metadata": {"name": "vault"}})).is_none());
    }
}
