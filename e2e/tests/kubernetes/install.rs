//! The mesh comes into a cluster, a second time changes nothing, and what is removed is gone.

use anyhow::ensure;
use mesh_e2e::cluster::Cluster;

pub fn install(cluster: &Cluster) -> anyhow::Result<()> {
    let installed = cluster.meshctl(&["install"])?;
    ensure!(installed.contains("All is well."), "{installed}");
    let again = cluster.meshctl(&["install"])?;
    ensure!(again.contains("Nothing had to be changed"), "{again}");
    Ok(())
}

pub fn remove(cluster: &Cluster) -> anyhow::Result<()> {
    let meshed = ["delete", "namespaces", "-l", "mesh-injection=enabled", "--timeout=120s"];
    cluster.kubectl(&meshed)?;
    cluster.meshctl(&["uninstall", "--yes", "--gateway-api-crds"]).map(drop)
}

/// Everything that an installation could leave behind.
pub fn leftovers(cluster: &Cluster) -> anyhow::Result<String> {
    let kinds = "namespaces,crds,clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingwebhookconfigurations";
    cluster.kubectl(&["get", kinds, "-o", "name"])
}
