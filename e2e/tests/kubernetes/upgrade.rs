//! The mesh gets another version and the one from before again. There is one build only, so both are the same programs: what
//! is tried is the way from one image to the other.

use anyhow::ensure;
use mesh_e2e::cluster::{Cluster, Namespace};
use serde_json::Value;

/// A tag that the images of the mesh have as well (see `e2e/kubernetes/images`).
const NEXT: &str = "99.0.0";

/// The Deployments of the namespace are started again each time, as it takes for their pods to get another proxy.
pub fn there_and_back(
    namespace: &Namespace,
    start_again: impl Fn(&Namespace) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let cluster = namespace.cluster;
    let before = versions(cluster, namespace)?;
    let said = cluster.meshctl(&["upgrade", "--tag", NEXT])?;
    ensure!(said.contains(&format!("gets {NEXT}")), "{said}");
    ensure!(said.contains("start these pods again, and they get the new one") && said.contains("1 warning."), "{said}");
    ensure!(
        versions(cluster, namespace)? == (vec![NEXT.to_owned()], before.1.clone()),
        "proxies have changed by themselves"
    );
    start_again(namespace)?;
    ensure!(versions(cluster, namespace)?.1.contains(&NEXT.to_owned()), "no pod has the new proxy");
    // Without --force nobody goes back.
    let refused = cluster.meshctl(&["upgrade"]).err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(refused.contains("is older") && refused.contains("--force"), "{refused}");
    let back = cluster.meshctl(&["upgrade", "--force"])?;
    ensure!(back.contains("start these pods again"), "{back}");
    start_again(namespace)?;
    // The clients, which nobody has started again, have kept theirs.
    let after = versions(cluster, namespace)?;
    ensure!(after == before, "{after:?}, not {before:?}");
    Ok(())
}

/// Tags of the images of the control plane and of the proxies of a namespace.
fn versions(cluster: &Cluster, namespace: &Namespace) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let control = cluster.get(&["pods", "-n", "mesh-system", "-l", "app.kubernetes.io/name=mesh-control"])?;
    Ok((tags(&control, "containers", "mesh-control"), tags(&namespace.get(&["pods"])?, "initContainers", "mesh-proxy")))
}

fn tags(pods: &Value, field: &str, container: &str) -> Vec<String> {
    let tag = |pod: &Value| {
        let found = pod["spec"][field].as_array()?.iter().find(|it| it["name"] == container)?;
        Some(found["image"].as_str()?.rsplit_once(':')?.1.to_owned())
    };
    let running = |pod: &&Value| pod["metadata"]["deletionTimestamp"] == Value::Null;
    let mut tags: Vec<String> =
        pods["items"].as_array().into_iter().flatten().filter(running).filter_map(tag).collect();
    tags.sort();
    tags.dedup();
    tags
}
