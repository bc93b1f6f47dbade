//! The control plane's Deployment, and the kinds that it works with.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;

use crate::failure::Failure;
use crate::install::manifest::Manifest;
use crate::install::{CONTROL, LABEL_VERSION, NAMESPACE, SELECTOR, chart, gateway, rollout};
use crate::kubernetes::Cluster;
use crate::views::findings::Finding;

const PLUGIN: &str = "mesh-cni";
const PLUGIN_NAMESPACE: &str = "kube-system";

pub async fn definitions(cluster: &Cluster) -> Result<Vec<Finding>, Failure> {
    let mut missing = Vec::new();
    for crd in gateway::crds()?.iter().chain(&chart::crds()?) {
        if !is_established(cluster, crd).await? {
            missing.push(crd.name().to_owned());
        }
    }
    Ok(vec![match missing.is_empty() {
        true => Finding::ok("kinds", "Gateway API's kinds and those of the mesh are there"),
        false => {
            let message = format!("the API server does not know {}", missing.join(", "));
            Finding::error("kinds", message, "`meshctl install` installs what is missing")
        }
    }])
}

async fn is_established(cluster: &Cluster, crd: &Manifest) -> Result<bool, Failure> {
    let live = cluster.all::<CustomResourceDefinition>().get_opt(crd.name()).await?;
    let conditions = live.and_then(|crd| crd.status?.conditions).unwrap_or_default();
    Ok(conditions.iter().any(|c| c.type_ == "Established" && c.status == "True"))
}

pub async fn deployment(cluster: &Cluster) -> Result<Option<Deployment>, Failure> {
    Ok(cluster.namespaced::<Deployment>(NAMESPACE).get_opt(CONTROL).await?)
}

pub fn version(deployment: &Deployment) -> String {
    deployment.metadata.labels.as_ref().and_then(|l| l.get(LABEL_VERSION)).cloned().unwrap_or_default()
}

pub async fn replicas(cluster: &Cluster, deployment: &Deployment) -> Result<Vec<Finding>, Failure> {
    let pods = cluster.namespaced::<Pod>(NAMESPACE).list(&ListParams::default().labels(SELECTOR)).await?;
    let troubles: Vec<String> = pods.items.iter().filter_map(rollout::trouble).collect();
    Ok(judge(deployment, &troubles))
}

/// The CNI plugin, if the mesh was installed with it.
pub async fn plugin(cluster: &Cluster) -> Result<Option<Finding>, Failure> {
    let live = cluster.namespaced::<DaemonSet>(PLUGIN_NAMESPACE).get_opt(PLUGIN).await?;
    let Some(status) = live.map(|live| live.status.unwrap_or_default()) else { return Ok(None) };
    let (wanted, ready) = (status.desired_number_scheduled, status.number_available.unwrap_or(0));
    let message = format!("the CNI plugin is in force on {ready} of {wanted} nodes");
    let remedy = format!(
        "see `kubectl -n {PLUGIN_NAMESPACE} logs daemonset/{PLUGIN}`; pods that start elsewhere have no rules, and have to be \
         deleted once it is there"
    );
    Ok(Some(if ready < wanted { Finding::error(PLUGIN, message, remedy) } else { Finding::ok(PLUGIN, message) }))
}

fn judge(deployment: &Deployment, troubles: &[String]) -> Vec<Finding> {
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let available = deployment.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0);
    let details = if troubles.is_empty() { String::new() } else { format!(": {}", troubles.join("; ")) };
    let message = format!("{available} of {wanted} replicas of version {} are available{details}", version(deployment));
    let remedy =
        format!("see `kubectl -n {NAMESPACE} describe pods` and `kubectl -n {NAMESPACE} logs deployment/{CONTROL}`");
    let mut found = vec![match available {
        0 => Finding::error("mesh-control", message, remedy),
        some if some < wanted => Finding::warning("mesh-control", message, remedy),
        _ => Finding::ok("mesh-control", message),
    }];
    if wanted == 1 {
        let message = "there is one replica only: while it restarts, no pod of a meshed namespace can start";
        found.push(Finding::warning("mesh-control", message, "`meshctl upgrade --set control.replicas=2`"));
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::views::findings::Level;

    #[test]
    fn the_more_replicas_are_missing_the_worse() {
        let levels = |wanted: i32, available: i32| -> Vec<Level> {
            let deployment = json!({"metadata": {"labels": {LABEL_VERSION: "1"}}, "spec": {"replicas": wanted,
                "selector": {}, "template": {}}, "status": {"availableReplicas": available}});
            judge(&serde_json::from_value(deployment).unwrap(), &[]).iter().map(|f| f.level).collect()
        };
        assert_eq!(levels(2, 2), [Level::Ok]);
        assert_eq!(levels(2, 1), [Level::Warning]);
        assert_eq!(levels(2, 0), [Level::Error]);
        assert_eq!(levels(1, 1), [Level::Ok, Level::Warning]);
    }
}
