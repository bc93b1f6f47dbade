//! The mesh comes into a cluster, a second time changes nothing, and what is removed is gone.

use std::time::Duration;

use anyhow::{Context, ensure};
use mesh_e2e::cluster::{Cluster, Namespace, apps};
use mesh_e2e::process::eventually;
use serde_json::{Value, json};

use crate::{cni, inject};

const GATEWAY_API: &str = ".gateway.networking.k8s.io";

/// In somebody's cluster the suite takes away nothing but what it has brought: it does not begin where it could not tell.
pub fn may_come_and_go(cluster: &Cluster, before: &str) -> anyhow::Result<()> {
    if cluster.is_ours() {
        return Ok(());
    }
    let installed = before.lines().find(|line| line.contains("meshctl.dev") || *line == "namespace/mesh-system");
    ensure!(installed.is_none(), "there is a mesh in this cluster already: {}", installed.unwrap_or_default());
    let meshed = cluster.kubectl(&["get", "namespaces", "-l", "mesh-injection", "-o", "name"])?;
    ensure!(meshed.is_empty(), "namespaces of this cluster have the label mesh-injection: {meshed}");
    let left = cluster.namespaces_of_tests()?;
    ensure!(
        left.is_empty(),
        "a run of this suite was killed and has left {left}: `kubectl delete namespaces -l mesh-e2e`"
    );
    Ok(())
}

pub fn install(cluster: &Cluster) -> anyhow::Result<()> {
    // So short that without a renewal no check would go far: neither webhooks nor proxies could reach it.
    let installed = cluster.meshctl(&["install", "--set", "control.certificateSeconds=120"])?;
    ensure!(installed.contains("All is well."), "{installed}");
    let again = cluster.meshctl(&["install"])?;
    ensure!(again.contains("Nothing had to be changed"), "{again}");
    Ok(())
}

/// Takes everything away in which the mesh was tried, and the mesh, and looks at what is left.
pub fn remove(cluster: &Cluster, before: &str) -> anyhow::Result<()> {
    cluster.without_namespaces()?;
    nobody_answers(cluster)?;
    {
        let namespace = cluster.unmeshed("removal")?;
        judged(&namespace)?;
        let meshed = cluster.meshed("removal-meshed")?;
        proxied(&meshed, &namespace)?;
        let network = cni::network(cluster)?;
        cni::enable(cluster)?;
        // Kinds of Gateway API stay, with everybody's routes.
        let said = cluster.shell("meshctl uninstall --yes")?;
        let left = cni::network(cluster)?;
        ensure!(left == network, "the node's network configuration is not what it was: {left:?}");
        forgotten(&namespace)?;
        without_proxies(&said, &[&meshed, &namespace])?;
    }
    cluster.without_namespaces()?;
    if !had_gateway_api(before) {
        cluster.meshctl(&["uninstall", "--yes", "--gateway-api-crds"])?;
    }
    without_new_kinds(cluster, before)?;
    let after = leftovers(cluster)?;
    ensure!(after == before, "there was:\n{before}\nand there is:\n{after}");
    Ok(())
}

/// The same for a cluster that stays, after something has failed: without looking, and as far as it goes.
pub fn clean(cluster: &Cluster, before: &str) -> anyhow::Result<()> {
    let namespaces = cluster.without_namespaces();
    let all = ["uninstall", "--yes", "--gateway-api-crds"];
    cluster.meshctl(if had_gateway_api(before) { &all[..2] } else { &all })?;
    without_new_kinds(cluster, before)?;
    namespaces
}

/// What was added to a Gateway API that was there in part.
fn without_new_kinds(cluster: &Cluster, before: &str) -> anyhow::Result<()> {
    let now = leftovers(cluster)?;
    let mut new = now.lines().filter(|line| line.ends_with(GATEWAY_API) && !before.lines().any(|had| had == *line));
    new.try_for_each(|kind| cluster.kubectl(&["delete", kind, "--timeout=60s"]).map(drop))
}

fn had_gateway_api(before: &str) -> bool {
    before.lines().any(|line| line.ends_with(GATEWAY_API))
}

/// Without a terminal there is nobody to ask, and nothing is removed.
fn nobody_answers(cluster: &Cluster) -> anyhow::Result<()> {
    let before = leftovers(cluster)?;
    let refused = cluster.meshctl(&["uninstall"]).err().context("it was removed without an answer")?.to_string();
    ensure!(refused.contains("exit status: 2") && refused.contains("--yes answers it"), "{refused}");
    ensure!(leftovers(cluster)? == before, "something was removed: {}", leftovers(cluster)?);
    cluster.rolled_out("mesh-system", "mesh-control")
}

/// A route with a word of the mesh in its status, and one of somebody else.
fn judged(namespace: &Namespace) -> anyhow::Result<()> {
    let rules = json!([{"backendRefs": apps::backends(&[("reviews", 1)])}]);
    namespace.apply(&[apps::service("reviews"), apps::http_route("reviews", rules)])?;
    namespace.condition("httproute/reviews", "Accepted", "True")?;
    let mut parents = parents(namespace)?;
    let mut other = parents[0].clone();
    other["controllerName"] = OTHER.into();
    parents.insert(0, other);
    let patch = json!({"status": {"parents": parents}}).to_string();
    namespace.kubectl(&["patch", "httproute/reviews", "--subresource=status", "--type=merge", "-p", &patch]).map(drop)
}

fn forgotten(namespace: &Namespace) -> anyhow::Result<()> {
    let left = parents(namespace)?;
    let controllers: Vec<&str> = left.iter().filter_map(|parent| parent["controllerName"].as_str()).collect();
    ensure!(controllers == [OTHER], "the status of a route that stays is by {controllers:?}");
    Ok(())
}

/// Pods with a proxy, from the webhook and by hand.
fn proxied(by_webhook: &Namespace, by_hand: &Namespace) -> anyhow::Result<()> {
    let client = [apps::service_account("web"), apps::client("web")];
    by_webhook.apply(&client)?;
    // Of one there is no pod, and will be some night.
    let nightly = apps::cron_job("nightly", &[]);
    inject::apply(by_hand, &[&client[..], &[nightly]].concat())?;
    for namespace in [by_webhook, by_hand] {
        namespace.rolled_out("web")?;
        ensure!(!proxies(namespace)?.is_empty(), "no pod of {} has a proxy", namespace.name);
    }
    Ok(())
}

/// What `uninstall` says takes the proxies out of pods that stay, and their applications run on.
fn without_proxies(said: &str, namespaces: &[&Namespace]) -> anyhow::Result<()> {
    let advice: Vec<&str> = said.lines().filter(|line| line.starts_with("  kubectl ")).collect();
    ensure!(advice.len() == 3, "not what to do for both namespaces: {said}");
    for line in advice {
        // Whoever else changes an object in between, such as its controller, has it refused.
        eventually(Duration::from_secs(20), || namespaces[0].cluster.shell(line))?;
    }
    let nightly = namespaces[1].get(&["cronjob/nightly"])?.to_string();
    ensure!(!nightly.contains("mesh-proxy"), "a template still has the proxy: {nightly}");
    for namespace in namespaces {
        namespace.rolled_out("web")?;
        eventually(Duration::from_secs(60), || {
            let left = proxies(namespace)?;
            ensure!(left.is_empty(), "{left} still have a proxy");
            Ok(())
        })?;
    }
    Ok(())
}

fn proxies(namespace: &Namespace) -> anyhow::Result<String> {
    namespace.kubectl(&["get", "pods", "-l", "meshctl.dev/proxy=true", "-o", "name"])
}

const OTHER: &str = "example.com/other";

fn parents(namespace: &Namespace) -> anyhow::Result<Vec<Value>> {
    let route = namespace.get(&["httproute/reviews"])?;
    route["status"]["parents"].as_array().cloned().with_context(|| format!("no status: {route}"))
}

/// Everything that an installation could leave behind: kinds of objects for the whole cluster, all of them; and what is ours by
/// its name in every namespace, among it the roots and what the CNI plugin needs.
pub fn leftovers(cluster: &Cluster) -> anyhow::Result<String> {
    let kinds = "namespaces,crds,clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingwebhookconfigurations";
    let of_cluster = cluster.kubectl(&["get", kinds, "-o", "name"])?;
    let kinds = "configmaps,secrets,serviceaccounts,services,deployments,daemonsets,roles,rolebindings,\
        poddisruptionbudgets,leases,endpointslices";
    let columns = "custom-columns=:kind,:metadata.namespace,:metadata.name";
    let all = cluster.kubectl(&["get", kinds, "--all-namespaces", "--no-headers", "-o", columns])?;
    let is_ours = |line: &&str| line.split_whitespace().nth(2).is_some_and(|name| name.starts_with("mesh-"));
    let ours = all.lines().filter(is_ours).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    Ok(of_cluster.lines().map(str::to_owned).chain(ours).collect::<Vec<_>>().join("\n"))
}
