//! The control plane's Deployment, and the kinds that it works with.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use mesh_common::resource::Kind;

use crate::failure::Failure;
use crate::install::{CONTROL, LABEL_VERSION, NAMESPACE, PLUGIN_NAMESPACE, SELECTOR, chart, gateway, rollout};
use crate::kubernetes::Cluster;
use crate::views::findings::Finding;

const KINDS: &str = "kinds";
const PLUGIN: &str = "mesh-cni";

pub async fn definitions(cluster: &Cluster) -> Result<Vec<Finding>, Failure> {
    let (mut missing, mut unfit) = (Vec::new(), Vec::new());
    for crd in gateway::crds()?.iter().chain(&chart::crds()?) {
        let live = cluster.all::<CustomResourceDefinition>().get_opt(crd.name()).await?;
        match live.filter(is_established) {
            Some(live) => unfit.extend(misfit(&live)),
            None => missing.push(crd.name().to_owned()),
        }
    }
    if !missing.is_empty() {
        let message = format!("the API server does not know {}", missing.join(", "));
        unfit.insert(0, Finding::error(KINDS, message, "`meshctl install` installs what is missing"));
    }
    if unfit.is_empty() {
        unfit.push(Finding::ok(KINDS, "Gateway API's kinds and those of the mesh are there"));
    }
    Ok(unfit)
}

fn is_established(crd: &CustomResourceDefinition) -> bool {
    let conditions = crd.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Established" && c.status == "True")
}

/// A kind that is there, and not as the control plane needs it. Whoever has none of its objects misses nothing, so this is no
/// error.
fn misfit(live: &CustomResourceDefinition) -> Option<Finding> {
    let names = &live.spec.names;
    let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == names.kind && kind.group() == live.spec.group)?;
    let served: Vec<_> = live.spec.versions.iter().filter(|version| version.served).collect();
    let full = |name: &str| format!("{}/{name}", live.spec.group);
    // The control plane goes by the same order.
    let read = kind.api_versions().iter().find_map(|known| served.iter().find(|it| full(&it.name) == **known));
    let message = match read {
        None => {
            let names: Vec<String> = served.iter().map(|version| full(&version.name)).collect();
            let served = if names.is_empty() { "in no version".to_owned() } else { format!("as {}", names.join(", ")) };
            let known = kind.api_versions().join(" or ");
            format!(
                "{kind} is served {served}, and known to the mesh as {known}: its objects are without effect and get no status"
            )
        }
        // It has none.
        Some(_) if kind == Kind::ReferenceGrant => return None,
        Some(version) if version.subresources.as_ref().is_some_and(|it| it.status.is_some()) => return None,
        Some(version) => {
            format!("{kind} is defined without a status in {}, so it never says what became of it", full(&version.name))
        }
    };
    Some(Finding::warning(KINDS, message, gateway::how_to_renew(live)))
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

    /// A definition of this kind, with a status in each version.
    fn definition(kind: Kind, versions: &[(&str, bool)]) -> CustomResourceDefinition {
        let version = |(name, served): &(&str, bool)| json!({"name": name, "served": served, "storage": false, "subresources": {"status": {}}});
        let annotations = json!({"gateway.networking.k8s.io/bundle-version": "v1.4.0", "gateway.networking.k8s.io/channel": "experimental"});
        serde_json::from_value(json!({
            "metadata": {"name": format!("{}.{}", kind.plural(), kind.group()), "annotations": annotations},
            "spec": {"group": kind.group(), "scope": "Namespaced", "names": {"kind": kind.as_str(), "plural": kind.plural()},
                "versions": versions.iter().map(version).collect::<Vec<_>>()},
        }))
        .unwrap()
    }

    #[test]
    fn what_meshctl_installs_is_as_the_control_plane_needs_it() {
        for crd in gateway::crds().unwrap().into_iter().chain(chart::crds().unwrap()) {
            assert_eq!(misfit(&serde_json::from_value(crd.0.clone()).unwrap()), None, "{crd}");
        }
    }

    #[test]
    fn a_kind_that_is_served_in_other_versions_only_is_told_with_what_to_do() {
        for versions in [&[("v1", true)][..], &[("v1alpha2", true)], &[("v1", true), ("v1alpha2", true)]] {
            assert_eq!(misfit(&definition(Kind::TcpRoute, versions)), None, "{versions:?}");
        }
        let finding = misfit(&definition(Kind::GrpcRoute, &[("v1", false), ("v1alpha2", true)])).unwrap();
        assert_eq!((finding.level, finding.subject.as_str()), (Level::Warning, "kinds"));
        let said = "GRPCRoute is served as gateway.networking.k8s.io/v1alpha2, and known to the mesh as gateway.networking.k8s.io/v1:";
        assert!(finding.message.starts_with(said), "{}", finding.message);
        assert!(finding.remedy.unwrap().contains("experimental-install.yaml"));
        let none = misfit(&definition(Kind::TrafficPolicy, &[("v1alpha1", false)])).unwrap();
        assert!(none.message.contains("served in no version"), "{}", none.message);
        assert!(none.remedy.unwrap().contains("meshctl install"));
    }

    #[test]
    fn a_kind_without_a_status_in_the_version_that_is_read_is_told() {
        let mut routes = definition(Kind::TlsRoute, &[("v1alpha2", true), ("v1alpha3", true)]);
        routes.spec.versions[0].subresources = None;
        assert_eq!(misfit(&routes), None, "it is not the one that is read");
        routes.spec.versions[1].subresources = None;
        let told = misfit(&routes).unwrap().message;
        assert!(told.contains("TLSRoute is defined without a status in gateway.networking.k8s.io/v1alpha3"), "{told}");
        let mut grants = definition(Kind::ReferenceGrant, &[("v1beta1", true)]);
        grants.spec.versions[0].subresources = None;
        assert_eq!(misfit(&grants), None);
    }

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
