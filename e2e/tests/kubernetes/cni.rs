//! Where pods may have no NET_ADMIN, the plugin of the node's network writes the rules: traffic is as mutual TLS as elsewhere,
//! a pod that cannot have its rules does not run, and when the plugin is not wanted any more nothing of it is in force.

use std::time::Duration;

use anyhow::{Context, ensure};
use mesh_e2e::cluster::{Cluster, Namespace, apps};
use mesh_e2e::process::eventually;
use serde_json::{Value, json};

use crate::startup;

const LOAD: [&str; 6] = ["--url", "http://reviews:9080/", "--connections", "2", "--requests", "200"];

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let before = network(cluster)?;
    enable(cluster)?;
    ensure!(cluster.meshctl(&["install"])?.contains("Nothing had to be changed"), "a second time");

    let namespace = cluster.meshed("cni")?;
    cluster.kubectl(&["label", "namespace", "cni", "pod-security.kubernetes.io/enforce=restricted"])?;
    shop(&namespace)?;
    let injected = without_rights(&namespace)?;
    intercepted(&namespace)?;
    refused_by_plugin(&namespace)?;
    startup::with_cni(&namespace)?;
    without_daemon(&namespace)?;

    let off = ["--set", "cni.enabled=false"];
    let announced = cluster.meshctl(&[&["upgrade", "--dry-run"], &off[..]].concat())?;
    ensure!(announced.contains("- DaemonSet kube-system/mesh-cni"), "{announced}");
    let removed = cluster.meshctl(&[&["upgrade"], &off[..]].concat())?;
    ensure!(removed.contains("DaemonSet kube-system/mesh-cni deleted"), "{removed}");
    eventually(Duration::from_secs(30), || {
        let pods = cluster.kubectl(&[
            "-n",
            "kube-system",
            "get",
            "pods",
            "-l",
            "app.kubernetes.io/name=mesh-cni",
            "-o",
            "name",
        ])?;
        ensure!(pods.is_empty(), "{pods}");
        Ok(())
    })?;
    let after = network(cluster)?;
    ensure!(after == before, "the node's network configuration is not what it was: {after:?}");
    intercepted(&namespace)?;
    without_rules(&namespace, injected)
}

/// In a mesh that is installed.
pub fn enable(cluster: &Cluster) -> anyhow::Result<()> {
    let (bin, conf) = cluster.cni()?;
    let folders = [format!("cni.binDir={bin}"), format!("cni.confDir={conf}")];
    let on = ["--set", "cni.enabled=true", "--set", &folders[0], "--set", &folders[1]];
    let installed = cluster.meshctl(&[&["install"], &on[..]].concat())?;
    ensure!(installed.contains("DaemonSet kube-system/mesh-cni created"), "{installed}");
    Ok(())
}

fn shop(namespace: &Namespace) -> anyhow::Result<()> {
    let deployments = [apps::server("reviews", "v1"), apps::client("web")].map(|mut deployment| {
        apps::restrict(&mut deployment["spec"]["template"]["spec"]);
        deployment
    });
    namespace.apply(&[apps::service("reviews"), apps::service_account("web")])?;
    namespace.apply(&deployments)?;
    ["reviews-v1", "web"].iter().try_for_each(|deployment| namespace.rolled_out(deployment))
}

/// An injected pod, in which nothing may change its network.
fn without_rights(namespace: &Namespace) -> anyhow::Result<Value> {
    let pods = namespace.get(&["pods", "-l", "app=web"])?;
    let pod = &pods["items"][0];
    let names: Vec<&str> =
        pod["spec"]["initContainers"].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect();
    ensure!(names == ["mesh-proxy"], "{names:?}");
    ensure!(!pod["spec"].to_string().contains("NET_ADMIN"), "{pod}");
    Ok(pod.clone())
}

/// Both proxies have counted every request, as one over mutual TLS.
fn intercepted(namespace: &Namespace) -> anyhow::Result<()> {
    let before = [namespace.over_mtls("web", "outbound")?, namespace.over_mtls("reviews", "inbound")?];
    let report = namespace.load("web", &LOAD)?;
    ensure!(report.good() == 200, "{report:?}");
    let after = [namespace.over_mtls("web", "outbound")?, namespace.over_mtls("reviews", "inbound")?];
    ensure!(after == before.map(|count| count + 200), "from {before:?} to {after:?}");
    Ok(())
}

/// A pod that asks for rules which cannot be written is not started, and its events say why.
fn refused_by_plugin(namespace: &Namespace) -> anyhow::Result<()> {
    let mut pod = apps::load("refused", &[]);
    apps::restrict(&mut pod["spec"]);
    // As no injection would leave it.
    pod["metadata"]["labels"]["mesh-injection"] = "disabled".into();
    pod["metadata"]["annotations"] =
        json!({"meshctl.dev/interception": "cni", "meshctl.dev/exclude-outbound-cidrs": "nonsense"});
    namespace.apply(&[pod])?;
    eventually(Duration::from_secs(20), || {
        let events = namespace.kubectl(&["events", "--for=pod/refused", "--types=Warning"])?;
        ensure!(events.contains("FailedCreatePodSandBox") && events.contains("not a range of addresses"), "{events}");
        Ok(())
    })?;
    let pod = namespace.get(&["pod/refused"])?;
    ensure!(pod["status"]["containerStatuses"][0]["state"]["waiting"] != Value::Null, "{}", pod["status"]);
    namespace.delete(&["pod/refused", "--grace-period=0", "--force"])
}

/// While the daemon of the node is being replaced, pods have their rules all the same.
fn without_daemon(namespace: &Namespace) -> anyhow::Result<()> {
    let cluster = namespace.cluster;
    let of_daemon = ["-n", "kube-system", "delete", "pods", "-l", "app.kubernetes.io/name=mesh-cni", "--wait=false"];
    cluster.kubectl(&of_daemon)?;
    namespace.delete(&["pods", "-l", "app=web", "--wait=false"])?;
    namespace.kubectl(&["rollout", "status", "--timeout=60s", "deployment/web"])?;
    cluster.kubectl(&["-n", "kube-system", "rollout", "status", "--timeout=60s", "daemonset/mesh-cni"])?;
    let found = cluster.meshctl(&["check"])?;
    ensure!(found.contains("the CNI plugin is in force on"), "{found}");
    eventually(Duration::from_secs(20), || {
        let pods = namespace.get(&["pods", "-l", "app=web"])?;
        ensure!(pods["items"].as_array().is_some_and(|pods| pods.len() == 1), "the old pod is still there: {pods}");
        Ok(())
    })?;
    intercepted(namespace)
}

/// A pod that counts on the plugin where it is not any more: its application does not start, and the proxy says why.
fn without_rules(namespace: &Namespace, mut pod: Value) -> anyhow::Result<()> {
    let (labels, annotations) = (pod["metadata"]["labels"].take(), pod["metadata"]["annotations"].take());
    pod["metadata"] = json!({"name": "without-rules", "labels": labels, "annotations": annotations});
    pod["metadata"]["labels"]["app"] = "without-rules".into();
    // As if `meshctl inject` had made it: what was the webhook's own, it would make anew, with an init container.
    let record = &mut pod["metadata"]["annotations"]["meshctl.dev/injected"];
    let by_meshctl = record.as_str().context("no record of the injection")?.replace("\"webhook\":true,", "");
    *record = by_meshctl.into();
    let fields = pod["spec"].as_object_mut().context("a pod without a spec")?;
    fields.remove("nodeName");
    pod["status"].take();
    namespace.apply(&[pod])?;
    eventually(Duration::from_secs(20), || {
        let log = namespace.kubectl(&["logs", "pod/without-rules", "-c", "mesh-proxy"])?;
        ensure!(log.contains("self-test of the interception failed"), "{log}");
        Ok(())
    })?;
    let pod = namespace.get(&["pod/without-rules"])?;
    let app = &pod["status"]["containerStatuses"][0];
    ensure!(app["started"] == json!(false) && app["state"]["waiting"] != Value::Null, "{}", pod["status"]);
    namespace.delete(&["pod/without-rules", "--grace-period=0", "--force"])
}

/// A node's network configuration, which has to be again what it was. None where nobody can look.
pub fn network(cluster: &Cluster) -> anyhow::Result<Option<Vec<(String, Value)>>> {
    if !cluster.is_ours() {
        println!("   the nodes of a cluster that is not ours are not looked into");
        return Ok(None);
    }
    let files = cluster.cni_files()?;
    ensure!(!files.is_empty(), "the node has no network configuration");
    Ok(Some(files))
}
