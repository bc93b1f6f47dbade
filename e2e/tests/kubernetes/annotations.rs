//! What a pod's annotations ask for is in its spec and in force; a pod that stays out of the mesh is left as it is.

use std::time::Duration;

use anyhow::{Context, ensure};
use mesh_e2e::cluster::{Cluster, Namespace, apps};
use mesh_e2e::process::eventually;
use serde_json::{Value, json};

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.meshed("annotations")?;
    namespace.shop(&[])?;
    let server = pod(&namespace, "app=reviews,version=v1")?;
    let address = server["status"]["podIP"].as_str().context("a pod without an address")?;
    let mut picky = apps::client("picky");
    picky["spec"]["template"]["metadata"]["annotations"] = json!({
        "meshctl.dev/exclude-outbound-cidrs": format!("{address}/32,192.0.2.0/24"),
        "meshctl.dev/exclude-outbound-ports": "9443,3306",
        "meshctl.dev/exclude-inbound-ports": "22",
        "meshctl.dev/proxy-cpu": "20m",
        "meshctl.dev/proxy-memory": "48Mi",
        "meshctl.dev/proxy-memory-limit": "512Mi",
        "meshctl.dev/log-level": "mesh_proxy::run=info,warn",
        "meshctl.dev/access-log": "json",
    });
    let mut out = apps::client("out");
    out["spec"]["template"]["metadata"]["labels"]["mesh-injection"] = "disabled".into();
    namespace.apply(&[apps::service_account("picky"), picky, apps::service_account("out"), out])?;
    namespace.rolled_out("picky")?;
    namespace.rolled_out("out")?;
    spec(&namespace, address)?;
    in_force(&namespace, address)?;
    opted_out(&namespace)
}

fn spec(namespace: &Namespace, address: &str) -> anyhow::Result<()> {
    let pod = pod(namespace, "app=picky")?;
    let [init, proxy] = [0, 1].map(|index| &pod["spec"]["initContainers"][index]);
    ensure!((&init["name"], &proxy["name"]) == (&json!("mesh-init"), &json!("mesh-proxy")), "{pod}");
    let resources = json!({"requests": {"cpu": "20m", "memory": "48Mi"}, "limits": {"memory": "512Mi"}});
    ensure!((&init["resources"], &proxy["resources"]) == (&resources, &resources), "{pod}");
    let args = |container: &Value| {
        container["args"].as_array().map(|args| args.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "))
    };
    let init = args(init).unwrap_or_default();
    for wanted in [
        "--exclude-inbound-ports 15021,15090,22",
        "--exclude-outbound-ports 9443,3306",
        &format!("--exclude-cidrs {address}/32,192.0.2.0/24"),
    ] {
        ensure!(init.contains(wanted), "{wanted}: {init}");
    }
    let proxy = args(proxy).unwrap_or_default();
    ensure!(proxy.contains("--log=mesh_proxy::run=info,warn") && proxy.contains("--access-log=json"), "{proxy}");
    Ok(())
}

/// The address that is left alone is called without mutual TLS, which it does not take; the others of the Service are not.
fn in_force(namespace: &Namespace, address: &str) -> anyhow::Result<()> {
    let report = namespace.load("picky", &["--url", &format!("http://{address}:9080/"), "--requests", "20"])?;
    ensure!(report.good() == 0, "{report:?}");
    let report = namespace.load("picky", &["--url", "http://reviews:9080/", "--requests", "20"])?;
    ensure!(report.good() == 20, "{report:?}");
    eventually(Duration::from_secs(5), || {
        let log = namespace.kubectl(&["logs", "deployment/picky", "-c", "mesh-proxy"])?;
        let requests = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["response_code"] == 200);
        ensure!(requests.count() == 20, "the access log: {log}");
        ensure!(log.contains("mesh_proxy::run: ready") && !log.contains("mesh_proxy::xds"), "the log level: {log}");
        Ok(())
    })
}

fn opted_out(namespace: &Namespace) -> anyhow::Result<()> {
    let pod = pod(namespace, "app=out")?;
    ensure!(pod["spec"]["initContainers"] == Value::Null, "{pod}");
    ensure!(pod["metadata"]["annotations"]["meshctl.dev/injected"] == Value::Null, "{pod}");
    let report = namespace.load("out", &["--url", "http://reviews:9080/", "--requests", "20"])?;
    ensure!(report.good() == 0, "{report:?}");
    Ok(())
}

fn pod(namespace: &Namespace, labels: &str) -> anyhow::Result<Value> {
    Ok(namespace.get(&["pods", "-l", labels])?["items"][0].take())
}
