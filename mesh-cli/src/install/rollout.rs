//! Waiting until what was written is there: kinds that the API server serves, replicas that are ready.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;

use super::manifest::Manifest;
use super::{CONTROL, NAMESPACE, SELECTOR};
use crate::commands::Context;
use crate::failure::{Exit, Failure};
use crate::kubernetes::Cluster;
use crate::output::time::human_duration;

const POLL: Duration = Duration::from_millis(500);

/// One line on a terminal that is written over again and again.
pub struct Progress {
    shown: bool,
    since: Instant,
}

impl Progress {
    pub fn new() -> Self {
        Self { shown: std::io::stderr().is_terminal(), since: Instant::now() }
    }

    fn show(&self, text: &str) {
        if self.shown {
            eprint!("\r\x1b[K{text} ({}s)", self.since.elapsed().as_secs());
            let _ = std::io::stderr().flush();
        }
    }

    fn clear(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

/// Until the API server serves these kinds.
pub async fn established(cluster: &Cluster, crds: &[Manifest], deadline: Instant) -> Result<(), Failure> {
    let api = cluster.all::<CustomResourceDefinition>();
    let progress = Progress::new();
    for crd in crds {
        loop {
            let live = api.get(crd.name()).await?;
            let conditions = live.status.and_then(|s| s.conditions).unwrap_or_default();
            if conditions.iter().any(|c| c.type_ == "Established" && c.status == "True") {
                break;
            }
            if let Some(refused) = conditions.iter().find(|c| c.type_ == "NamesAccepted" && c.status == "False") {
                let reason = refused.message.clone().unwrap_or_default();
                progress.clear();
                return Err(Failure::refused(format!("The API server does not take the {crd}: {reason}."))
                    .hint("Another definition has the same names; `kubectl get crds` shows it."));
            }
            if Instant::now() > deadline {
                progress.clear();
                return Err(Failure::with(Exit::TimedOut, format!("The {crd} is not established yet.")));
            }
            progress.show(&format!("waiting for the {crd}"));
            tokio::time::sleep(POLL).await;
        }
    }
    progress.clear();
    Ok(())
}

/// Until all replicas of the control plane are of the newest version and ready.
pub async fn available(cluster: &Cluster, deadline: Instant) -> Result<(), Failure> {
    let api = cluster.namespaced::<Deployment>(NAMESPACE);
    let progress = Progress::new();
    loop {
        let deployment = api.get(CONTROL).await?;
        let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
        let status = deployment.status.clone().unwrap_or_default();
        let ready = status.available_replicas.unwrap_or(0).min(status.updated_replicas.unwrap_or(0));
        let seen = status.observed_generation >= deployment.metadata.generation;
        let old = status.replicas.unwrap_or(0) > status.updated_replicas.unwrap_or(0);
        if seen && ready >= wanted && !old {
            progress.clear();
            return Ok(());
        }
        if Instant::now() > deadline {
            progress.clear();
            let waited = human_duration(progress.since.elapsed());
            let why = troubles(cluster, NAMESPACE, SELECTOR).await;
            let message = format!("{ready} of {wanted} replicas of mesh-control are ready after {waited}.{why}");
            return Err(Failure::with(Exit::TimedOut, message).hint(format!(
                "`kubectl -n {NAMESPACE} describe pods` tells more; --wait-timeout waits longer, and the same command goes on."
            )));
        }
        progress.show(&format!("waiting for mesh-control: {ready} of {wanted} replicas are ready"));
        tokio::time::sleep(POLL).await;
    }
}

/// Until the pods of a DaemonSet are of the newest version and ready on all nodes that are up; the others are told of.
pub async fn on_every_node(
    context: &Context,
    cluster: &Cluster,
    manifest: &Manifest,
    deadline: Instant,
) -> Result<(), Failure> {
    let (namespace, name) = (manifest.namespace().unwrap_or_default(), manifest.name());
    let api = cluster.namespaced::<DaemonSet>(namespace);
    let progress = Progress::new();
    loop {
        let live = api.get(name).await?;
        let status = live.status.unwrap_or_default();
        let all = status.desired_number_scheduled;
        let ready = status.number_available.unwrap_or(0).min(status.updated_number_scheduled.unwrap_or(0));
        // Nobody asks for all nodes of a large cluster again and again where nothing is missing.
        let down = if ready < all { nodes_down(cluster).await? } else { BTreeSet::new() };
        let wanted = all - i32::try_from(down.len()).unwrap_or(i32::MAX);
        if status.observed_generation >= live.metadata.generation && ready >= wanted {
            progress.clear();
            if !down.is_empty() {
                let nodes = down.into_iter().collect::<Vec<_>>().join(", ");
                context.out.note(&format!("{name} was not waited for on nodes that are not ready: {nodes}"));
            }
            return Ok(());
        }
        if Instant::now() > deadline {
            progress.clear();
            let why = troubles(cluster, namespace, &format!("app.kubernetes.io/name={name}")).await;
            return Err(Failure::with(Exit::TimedOut, format!("{name} is ready on {ready} of {wanted} nodes.{why}"))
                .hint(format!(
                    "`kubectl -n {namespace} logs daemonset/{name}` tells more; the same command goes on."
                )));
        }
        progress.show(&format!("waiting for {name}: ready on {ready} of {wanted} nodes"));
        tokio::time::sleep(POLL).await;
    }
}

/// Nodes with Linux that no pod gets ready on.
pub async fn nodes_down(cluster: &Cluster) -> Result<BTreeSet<String>, Failure> {
    let linux = ListParams::default().labels("kubernetes.io/os=linux");
    let nodes = cluster.all::<Node>().list(&linux).await?.items;
    Ok(nodes.iter().filter(|node| is_down(node)).filter_map(|node| node.metadata.name.clone()).collect())
}

fn is_down(node: &Node) -> bool {
    let conditions = node.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    !conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Why pods are not ready, in their own words.
async fn troubles(cluster: &Cluster, namespace: &str, selector: &str) -> String {
    let pods = cluster.namespaced::<Pod>(namespace).list(&ListParams::default().labels(selector)).await;
    let lines = pods.map(|list| list.items).unwrap_or_default().iter().filter_map(trouble).collect::<Vec<_>>();
    lines.iter().map(|line| format!("\n  {line}")).collect()
}

/// `mesh-control-x: ImagePullBackOff: Back-off pulling image`
pub fn trouble(pod: &Pod) -> Option<String> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let status = pod.status.as_ref()?;
    let unscheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = unscheduled {
        return Some(format!("{name}: not scheduled: {}", condition.message.clone().unwrap_or_default()));
    }
    let reason = |container: &ContainerStatus| {
        let state = container.state.as_ref()?;
        let (reason, message) = match (&state.waiting, &state.terminated) {
            (Some(waiting), _) => (waiting.reason.clone(), waiting.message.clone()),
            (None, Some(ended)) => (ended.reason.clone(), ended.message.clone()),
            (None, None) if !container.ready => (Some("not ready yet".to_owned()), None),
            (None, None) => return None,
        };
        let message = message.map(|message| format!(": {message}")).unwrap_or_default();
        Some(format!("{name}: {}{message}", reason.unwrap_or_default()))
    };
    status.container_statuses.iter().flatten().find_map(reason)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_up_while_it_says_that_it_is_ready() {
        let node = |conditions: serde_json::Value| -> Node {
            serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"conditions": conditions}})).unwrap()
        };
        let ready =
            |status: &str| json!([{"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": status}]);
        assert!(!is_down(&node(ready("True"))));
        for down in [ready("Unknown"), ready("False"), json!([])] {
            assert!(is_down(&node(down)));
        }
    }

    #[test]
    fn a_pod_says_why_it_does_not_run() {
        let pod = |status: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap()
        };
        let container = |state: serde_json::Value, ready: bool| {
            json!({"containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": ready, "restartCount": 0,
                "state": state}]})
        };
        let waiting = container(json!({"waiting": {"reason": "ErrImagePull", "message": "no such image"}}), false);
        assert_eq!(trouble(&pod(waiting)).as_deref(), Some("p: ErrImagePull: no such image"));
        assert_eq!(trouble(&pod(container(json!({"running": {}}), true))), None);
        assert_eq!(trouble(&pod(container(json!({"running": {}}), false))).as_deref(), Some("p: not ready yet"));
        let unscheduled = json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "no node"}]});
        assert_eq!(trouble(&pod(unscheduled)).as_deref(), Some("p: not scheduled: no node"));
    }
}
