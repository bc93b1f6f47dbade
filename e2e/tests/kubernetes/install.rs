//! The mesh comes into a cluster, a second time changes nothing, and what is removed is gone.

use anyhow::ensure;
use mesh_e2e::cluster::Cluster;

/// In somebody's cluster the suite takes away nothing but what it has brought: it does not begin where it could not tell.
pub fn may_come_and_go(cluster: &Cluster, before: &str) -> anyhow::Result<()> {
    if cluster.is_ours() {
        return Ok(());
    }
    let installed = before.lines().find(|line| line.contains("meshctl.dev") || *line == "namespace/mesh-system");
    ensure!(installed.is_none(), "there is a mesh in this cluster already: {}", installed.unwrap_or_default());
    let meshed = cluster.kubectl(&["get", "namespaces", "-l", "mesh-injection", "-o", "name"])?;
    ensure!(meshed.is_empty(), "namespaces of this cluster have the label mesh-injection: {meshed}");
    Ok(())
}

pub fn install(cluster: &Cluster) -> anyhow::Result<()> {
    let installed = cluster.meshctl(&["install"])?;
    ensure!(installed.contains("All is well."), "{installed}");
    let again = cluster.meshctl(&["install"])?;
    ensure!(again.contains("Nothing had to be changed"), "{again}");
    Ok(())
}

pub fn remove(cluster: &Cluster, before: &str) -> anyhow::Result<()> {
    let meshed = ["delete", "namespaces", "-l", "mesh-injection=enabled", "--timeout=120s"];
    cluster.kubectl(&meshed)?;
    // Kinds of Gateway API that were there before stay, with everybody's routes.
    let all = ["uninstall", "--yes", "--gateway-api-crds"];
    let ours = !before.contains(".gateway.networking.k8s.io");
    cluster.meshctl(if ours { &all } else { &all[..2] }).map(drop)
}

/// Everything that an installation could leave behind.
pub fn leftovers(cluster: &Cluster) -> anyhow::Result<String> {
    let kinds = "namespaces,crds,clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingwebhookconfigurations";
    cluster.kubectl(&["get", kinds, "-o", "name"])
}
