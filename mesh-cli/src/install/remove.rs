//! Taking the mesh out again: first what others wait for (webhooks), then what writes (the control plane), then what it wrote.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use mesh_common::names::kubernetes as names;
use mesh_common::resource::Kind;
use serde_json::{Value, json};

use super::injected::{Injected, injected};
use super::manifest::Manifest;
use super::{CONTROL, FIELD_MANAGER, NAMESPACE, chart, gateway, rollout};
use crate::commands::Context;
use crate::failure::{Exit, Failure};
use crate::kubernetes::Cluster;

const POLL: Duration = Duration::from_millis(300);
const ROUTES: [Kind; 5] = [Kind::HttpRoute, Kind::GrpcRoute, Kind::TcpRoute, Kind::TlsRoute, Kind::UdpRoute];

/// What of the mesh is in a cluster.
#[derive(Default)]
pub struct Inventory {
    /// Of the chart, in the order in which it was written.
    manifests: Vec<Manifest>,
    namespace: bool,
    /// Namespaces with a trust bundle.
    pub bundles: Vec<String>,
    /// Our kinds, and how many objects there are of each.
    pub objects: Vec<(String, usize)>,
    pub gateway_api: bool,
    pub injected: Injected,
}

impl Inventory {
    pub fn is_empty(&self) -> bool {
        let left = !self.namespace && !self.gateway_api && self.bundles.is_empty() && self.objects.is_empty();
        left && self.manifests.is_empty()
    }
}

pub async fn inventory(cluster: &Cluster, gateway_api: bool) -> Result<Inventory, Failure> {
    let values = chart::defaults()?;
    let mut found =
        Inventory { namespace: chart::namespace(&values)?.live(cluster).await?.is_some(), ..Inventory::default() };
    for manifest in chart::everything(&values)? {
        if manifest.live(cluster).await?.is_some() {
            found.manifests.push(manifest);
        }
    }
    let named = ListParams::default().fields(&format!("metadata.name={}", names::TRUST_BUNDLE));
    let bundles = cluster.all::<ConfigMap>().list_metadata(&named).await?;
    found.bundles = bundles.items.into_iter().filter_map(|bundle| bundle.metadata.namespace).collect();
    for crd in chart::crds()? {
        if crd.live(cluster).await?.is_some() {
            let kind = crd.0["spec"]["names"]["kind"].as_str().unwrap_or_default();
            let count = match Kind::parse(kind) {
                Ok(kind) => {
                    let api = cluster.dynamic(&cluster.kind(kind).await, None);
                    api.list_metadata(&ListParams::default()).await?.items.len()
                }
                Err(_) => 0,
            };
            found.objects.push((kind.to_owned(), count));
        }
    }
    if gateway_api {
        for crd in gateway::crds()? {
            found.gateway_api |= crd.live(cluster).await?.is_some();
        }
    }
    found.injected = injected(cluster).await?;
    Ok(found)
}

pub async fn remove(
    context: &Context,
    cluster: &Cluster,
    found: &Inventory,
    patience: Duration,
) -> Result<(), Failure> {
    let deadline = Instant::now() + patience;
    for manifest in found.manifests.iter().filter(|m| m.kind().ends_with("WebhookConfiguration")) {
        delete(context, cluster, manifest).await?;
    }
    // It waits for nodes: before anything goes that a second installation would not bring back.
    for manifest in found.manifests.iter().filter(|m| m.kind() == "DaemonSet") {
        withdraw(context, cluster, manifest, deadline).await?;
    }
    for manifest in found.manifests.iter().filter(|m| m.kind() == "Deployment") {
        delete(context, cluster, manifest).await?;
    }
    // A control plane that still runs would write again what is removed next.
    only_pods(cluster, NAMESPACE, CONTROL, deadline, |_| false).await?;
    for namespace in &found.bundles {
        let api = cluster.namespaced::<ConfigMap>(namespace);
        gone(api.delete(names::TRUST_BUNDLE, &DeleteParams::default()).await)?;
    }
    if !found.bundles.is_empty() {
        context.out.line(&format!(
            "ConfigMap {} deleted in {} namespaces",
            names::TRUST_BUNDLE,
            found.bundles.len()
        ))?;
    }
    forget_routes(context, cluster).await?;
    let mut last = chart::crds()?;
    if found.gateway_api {
        last.extend(gateway::crds()?);
    }
    for crd in &last {
        delete(context, cluster, crd).await?;
    }
    let rest = |m: &&Manifest| m.kind() != "Deployment" && !m.kind().ends_with("WebhookConfiguration");
    for manifest in found.manifests.iter().rev().filter(rest) {
        delete(context, cluster, manifest).await?;
    }
    let namespace = chart::namespace(&chart::defaults()?)?;
    delete(context, cluster, &namespace).await?;
    last.push(namespace);
    for manifest in &last {
        until_gone(cluster, manifest, deadline).await?;
    }
    Ok(())
}

/// Takes the CNI plugin out of the nodes' network configurations, where it stays when the DaemonSet just ends: the one that
/// is there, with its own image and folders, is told so.
pub async fn withdraw(
    context: &Context,
    cluster: &Cluster,
    manifest: &Manifest,
    deadline: Instant,
) -> Result<(), Failure> {
    let Some(live) = manifest.live(cluster).await? else { return Ok(()) };
    let Some(spec) = removing(&live.data["spec"]) else { return Ok(()) };
    let metadata = json!({"name": manifest.name(), "namespace": manifest.namespace(), "labels": live.metadata.labels});
    let resource = manifest.resource();
    let kind = json!({"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, "spec": spec});
    Manifest(kind).apply(cluster).await?;
    rollout::on_every_node(context, cluster, manifest, deadline).await?;
    // Those from before put it back for as long as they run.
    only_pods(cluster, manifest.namespace().unwrap_or_default(), manifest.name(), deadline, removes).await
}

/// With pods that take out what those of this one put in; `None`: these put nothing in that stays.
fn removing(spec: &Value) -> Option<Value> {
    let text = spec.to_string();
    let told = text.contains("--remove=").then(|| text.replace("--remove=false", "--remove=true"))?;
    let mut spec: Value = serde_json::from_str(&told).ok()?;
    // One after the other on each node: side by side each would undo what the other does, and neither might ever be ready.
    spec["updateStrategy"]["rollingUpdate"] = json!({"maxSurge": 0, "maxUnavailable": "25%"});
    Some(spec)
}

fn removes(pod: &Pod) -> bool {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers.flat_map(|container| container.args.iter().flatten()).any(|arg| arg == "--remove=true")
}

/// What depends on it goes later.
pub async fn delete(context: &Context, cluster: &Cluster, manifest: &Manifest) -> Result<(), Failure> {
    let api = cluster.dynamic(&manifest.resource(), manifest.namespace());
    match gone(api.delete(manifest.name(), &DeleteParams::background()).await)? {
        true => context.out.line(&format!("{manifest} deleted")),
        false => Ok(()),
    }
}

/// False: it was not there.
fn gone<T>(result: Result<T, kube::Error>) -> Result<bool, Failure> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Until none of its pods are left but such as these.
async fn only_pods(
    cluster: &Cluster,
    namespace: &str,
    of: &str,
    deadline: Instant,
    stays: impl Fn(&Pod) -> bool,
) -> Result<(), Failure> {
    let api = cluster.namespaced::<Pod>(namespace);
    let theirs = ListParams::default().labels(&format!("app.kubernetes.io/name={of}"));
    loop {
        let mut left = api.list(&theirs).await?.items;
        left.retain(|pod| !stays(pod));
        if left.is_empty() {
            return Ok(());
        }
        // Nobody there ends one.
        let down = rollout::nodes_down(cluster).await?;
        let node = |pod: &Pod| pod.spec.as_ref()?.node_name.clone();
        if left.iter().all(|pod| node(pod).is_some_and(|node| down.contains(&node))) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Failure::with(Exit::TimedOut, format!("Pods of {of} do not end."))
                .hint(format!("See `kubectl -n {namespace} get pods`, and try again.")));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn until_gone(cluster: &Cluster, manifest: &Manifest, deadline: Instant) -> Result<(), Failure> {
    while manifest.live(cluster).await?.is_some() {
        if Instant::now() > deadline {
            return Err(Failure::with(Exit::TimedOut, format!("The {manifest} is deleted, but not gone yet."))
                .hint("Something still has a finalizer on it or in it; `kubectl describe` shows which."));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Takes our part out of the status of routes, which stay.
async fn forget_routes(context: &Context, cluster: &Cluster) -> Result<(), Failure> {
    let mut forgotten = 0;
    for kind in ROUTES {
        let resource = cluster.kind(kind).await;
        let listed = match cluster.dynamic(&resource, None).list(&ListParams::default()).await {
            Ok(listed) => listed.items,
            // The kind is not there.
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(error.into()),
        };
        for route in listed {
            let Some(parents) = others(&route) else { continue };
            let (Some(namespace), Some(name)) = (&route.metadata.namespace, &route.metadata.name) else { continue };
            let patch = json!({"status": {"parents": parents}});
            let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
            let api = cluster.dynamic(&resource, Some(namespace));
            gone(api.patch_status(name, &params, &Patch::Merge(&patch)).await)?;
            forgotten += 1;
        }
    }
    match forgotten {
        0 => Ok(()),
        n => context.out.line(&format!("the status of {n} routes forgets the mesh")),
    }
}

/// The parents in a route's status that others have written; `None`: there are no others than these.
fn others(route: &DynamicObject) -> Option<Vec<Value>> {
    let parents = route.data.pointer("/status/parents")?.as_array()?;
    let ours = |parent: &&Value| parent["controllerName"] == names::CONTROLLER;
    let others: Vec<Value> = parents.iter().filter(|parent| !ours(parent)).cloned().collect();
    (others.len() < parents.len()).then_some(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_the_plugin_out_of_a_node_is_not_beside_who_puts_it_in() {
        let args = |remove: &str| json!([{"args": ["cni-install", format!("--remove={remove}")]}]);
        let older = json!({
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
            "template": {"spec": {"containers": args("false")}},
        });
        let spec = removing(&older).unwrap();
        assert_eq!(spec["template"]["spec"]["containers"], args("true"));
        let alone = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "25%"}});
        assert_eq!(spec["updateStrategy"], alone);
        assert_eq!(removing(&json!({"template": {}})), None);

        let manifests = chart::everything(&chart::defaults().unwrap()).unwrap();
        let daemons: Vec<_> = manifests.iter().filter(|it| it.kind() == "DaemonSet").collect();
        assert_eq!(daemons.iter().map(|it| &it.0["spec"]["updateStrategy"]).collect::<Vec<_>>(), [&alone]);
    }

    #[test]
    fn only_our_part_of_a_status_is_taken_out() {
        let route = |controllers: &[&str]| -> DynamicObject {
            let parents: Vec<Value> = controllers.iter().map(|name| json!({"controllerName": name})).collect();
            serde_json::from_value(json!({"metadata": {"name": "r"}, "status": {"parents": parents}})).unwrap()
        };
        assert_eq!(others(&route(&["example.com/other"])), None);
        let left = others(&route(&["example.com/other", names::CONTROLLER])).unwrap();
        assert_eq!(left, [json!({"controllerName": "example.com/other"})]);
        assert_eq!(others(&route(&[names::CONTROLLER])), Some(vec![]));
    }
}
