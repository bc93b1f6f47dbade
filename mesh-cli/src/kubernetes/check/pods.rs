//! Pods that should have a proxy and have none, and proxies of another version than the control plane.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::ListParams;
use mesh_common::inject;
use mesh_common::names::kubernetes as names;

use crate::failure::Failure;
use crate::install::NAMESPACE;
use crate::kubernetes::Cluster;
use crate::views::findings::Finding;

/// Pods named in a finding.
const NAMED: usize = 5;

pub async fn proxies(cluster: &Cluster, version: &str) -> Result<Vec<Finding>, Failure> {
    let labelled = ListParams::default().labels(&format!("{}=enabled", names::LABEL_INJECTION));
    let namespaces = cluster.all::<Namespace>().list_metadata(&labelled).await?;
    let meshed: BTreeSet<String> = namespaces.items.into_iter().filter_map(|n| n.metadata.name).collect();
    // Only these are looked at, and those that ask for a proxy themselves or have one: not the whole cluster.
    let mut pods = Vec::new();
    for namespace in &meshed {
        pods.extend(cluster.namespaced::<Pod>(namespace).list(&ListParams::default()).await?.items);
    }
    for label in [format!("{}=enabled", names::LABEL_INJECTION), format!("{}=true", names::LABEL_PROXY)] {
        let more = cluster.all::<Pod>().list(&ListParams::default().labels(&label)).await?;
        let elsewhere = |pod: &Pod| !pod.metadata.namespace.as_ref().is_some_and(|n| meshed.contains(n));
        pods.extend(more.items.into_iter().filter(elsewhere));
    }
    pods.sort_by_key(name);
    pods.dedup_by_key(|pod| name(pod));
    let with = pods.iter().filter(|pod| has_proxy(pod)).count();
    let summary = match (meshed.len(), with) {
        (0, 0) => "no namespace is labelled mesh-injection=enabled yet".to_owned(),
        (namespaces, pods) => {
            format!("{pods} pods have a proxy; {namespaces} namespaces are labelled mesh-injection=enabled")
        }
    };
    let found = [Some(Finding::ok("pods", summary)), slipped(&pods, &meshed), outdated(&pods, version)];
    Ok(found.into_iter().flatten().collect())
}

fn name(pod: &Pod) -> String {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    format!("{namespace}/{}", pod.metadata.name.as_deref().unwrap_or_default())
}

fn label<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn has_proxy(pod: &Pod) -> bool {
    label(pod, names::LABEL_PROXY) == Some("true")
}

/// Whether the injector should have given a proxy to a pod that has none.
fn should_have(pod: &Pod, meshed: &BTreeSet<String>) -> bool {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let ended =
        pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(|p| matches!(p, "Succeeded" | "Failed"));
    let asked = label(pod, names::LABEL_INJECTION) == Some("enabled") || meshed.contains(namespace);
    asked && !ended && !matches!(namespace, NAMESPACE | "kube-system") && !is_skipped(pod)
}

/// Whether the injector leaves it as it is, for the reasons that the injector has.
fn is_skipped(pod: &Pod) -> bool {
    let pod = serde_json::to_value(pod).unwrap_or_default();
    matches!(inject::skipped(&pod), Ok(Some(_)))
}

fn slipped(pods: &[Pod], meshed: &BTreeSet<String>) -> Option<Finding> {
    let without: Vec<String> =
        pods.iter().filter(|pod| !has_proxy(pod) && should_have(pod, meshed)).map(name).collect();
    let first = without.first()?;
    let namespace = first.split('/').next().unwrap_or_default();
    let message = format!("{} pods of the mesh have no proxy: {}", without.len(), some(&without));
    let remedy = format!(
        "they were made before their namespace was labelled, or while the injector was off; start them again, for \
         instance with `kubectl -n {namespace} rollout restart deployments`, or label them mesh-injection=disabled"
    );
    Some(Finding::error("pods", message, remedy))
}

fn outdated(pods: &[Pod], version: &str) -> Option<Finding> {
    let mut others: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| has_proxy(pod)) {
        if let Some(tag) = proxy_version(pod).filter(|tag| *tag != version) {
            others.entry(tag.to_owned()).or_default().push(name(pod));
        }
    }
    if others.is_empty() {
        return None;
    }
    let told: Vec<String> = others.iter().map(|(tag, pods)| format!("{tag} in {}", some(pods))).collect();
    let message = format!("proxies are of another version than the control plane ({version}): {}", told.join("; "));
    Some(Finding::warning("proxies", message, "start these pods again, and they get the new one"))
}

/// The tag of the proxy's image; a digest beside it says the same, and one without a tag says nothing of the version.
fn proxy_version(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let image = containers.into_iter().find(|c| c.name == names::CONTAINER_PROXY)?.image.as_deref()?;
    let (image, _) = image.split_once('@').unwrap_or((image, ""));
    let (_, tag) = image.rsplit('/').next()?.split_once(':')?;
    Some(tag)
}

fn some(names: &[String]) -> String {
    let more = if names.len() > NAMED { ", ..." } else { "" };
    format!("{}{more}", names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(namespace: &str, labels: Value, image: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"namespace": namespace, "name": "p", "labels": labels},
            "spec": {"containers": [{"name": "app"}], "initContainers": [{"name": names::CONTAINER_PROXY, "image": image}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_slips_through_only_if_it_should_have_a_proxy() {
        let meshed = BTreeSet::from(["shop".to_owned()]);
        let without = |namespace: &str, labels: Value| slipped(&[pod(namespace, labels, "")], &meshed).is_some();
        assert!(without("shop", json!({})));
        assert!(!without("shop", json!({"mesh-injection": "disabled"})));
        assert!(!without("shop", json!({"meshctl.dev/proxy": "true"})));
        assert!(!without("other", json!({})));
        assert!(without("other", json!({"mesh-injection": "enabled"})));
        assert!(!without("mesh-system", json!({"mesh-injection": "enabled"})));
    }

    #[test]
    fn what_the_injector_leaves_alone_has_not_slipped_through() {
        let meshed = BTreeSet::from(["shop".to_owned()]);
        let slips = |spec: Value| {
            let pod = json!({"metadata": {"namespace": "shop", "name": "p"}, "spec": spec});
            slipped(&[serde_json::from_value(pod).unwrap()], &meshed).is_some()
        };
        let containers = json!([{"name": "app"}]);
        assert!(slips(json!({"containers": containers, "nodeSelector": {"kubernetes.io/os": "linux"}})));
        assert!(!slips(json!({"containers": containers, "nodeSelector": {"kubernetes.io/os": "windows"}})));
        assert!(!slips(json!({"containers": containers, "os": {"name": "windows"}})));
        assert!(!slips(json!({"containers": containers, "hostNetwork": true})));
    }

    #[test]
    fn a_proxy_of_another_version_is_told() {
        let meshed = json!({"meshctl.dev/proxy": "true"});
        let at = |image: &str| outdated(&[pod("shop", meshed.clone(), image)], "0.2.0").map(|f| f.message);
        assert_eq!(at("registry:5000/x/mesh-proxy:0.2.0"), None);
        assert!(at("registry:5000/x/mesh-proxy:0.1.0").unwrap().contains("0.1.0 in shop/p"));
        assert_eq!(at("registry:5000/x/mesh-proxy"), None, "nobody knows");
        let digest = format!("@sha256:{}", "0".repeat(64));
        assert_eq!(at(&format!("registry:5000/x/mesh-proxy:0.2.0{digest}")), None);
        assert_eq!(at(&format!("registry:5000/x/mesh-proxy{digest}")), None, "nobody knows");
        let told = at(&format!("registry:5000/x/mesh-proxy:0.1.0{digest}")).unwrap();
        assert!(told.contains("): 0.1.0 in shop/p"), "{told}");
    }
}
