//! `meshctl inject` puts the proxy into manifests of a namespace that the webhook leaves alone: their pods call each other over
//! mutual TLS, Jobs end by themselves, and `meshctl uninject` gives back what there was.

use std::time::Duration;

use anyhow::{Context, ensure};
use mesh_e2e::app::load::Report;
use mesh_e2e::cluster::{Cluster, Namespace, apps};
use mesh_e2e::process::eventually;
use serde_json::{Value, json};

const REQUESTS: u64 = 100;

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.unmeshed("inject")?;
    let reviews = apps::server("reviews", "v1");
    let plain = as_stored(&namespace, &reviews)?;
    apply(&namespace, &servers(reviews))?;
    for workload in ["deployment/reviews-v1", "statefulset/ledger", "daemonset/agent", "deployment/web"] {
        namespace.kubectl(&["rollout", "status", "--timeout=120s", workload])?;
    }
    for (server, url) in [
        ("reviews", "http://reviews:9080/"),
        ("ledger", "http://ledger:9080/"),
        ("ledger", "http://ledger-0.ledger:9080/"),
        ("agent", "http://agent:9080/"),
    ] {
        over_mtls(&namespace, server, url).with_context(|| format!("to {server}"))?;
    }
    jobs(&namespace)?;
    uninjected(&namespace, &plain)
}

fn servers(reviews: Value) -> Vec<Value> {
    let mut stateful = of_kind("StatefulSet", "ledger");
    stateful["spec"]["serviceName"] = "ledger".into();
    let mut headless = apps::service("ledger");
    headless["spec"]["clusterIP"] = "None".into();
    vec![
        apps::service("reviews"),
        reviews,
        headless,
        stateful,
        apps::service("agent"),
        of_kind("DaemonSet", "agent"),
        apps::service_account("web"),
        apps::client("web"),
    ]
}

/// What serves in another kind than a Deployment.
fn of_kind(kind: &str, name: &str) -> Value {
    let mut server = apps::server(name, "v1");
    (server["kind"], server["metadata"]["name"]) = (kind.into(), name.into());
    server
}

/// `meshctl inject -f - | kubectl apply -f -`
pub fn apply(namespace: &Namespace, objects: &[Value]) -> anyhow::Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    let injected = namespace.cluster.meshctl_on(&["inject", "-f", "-"], &list)?;
    namespace.kubectl_with(&["apply", "-f", "-"], &injected).map(drop)
}

/// The caller's proxy and that of the called one have counted every request as one over mutual TLS.
fn over_mtls(namespace: &Namespace, server: &str, url: &str) -> anyhow::Result<()> {
    let load = ["--url", url, "--requests", &REQUESTS.to_string()];
    // The caller's proxy may not have heard yet that it is ready.
    eventually(Duration::from_secs(10), || {
        let report = namespace.load("web", &load)?;
        ensure!(report.good() == REQUESTS, "{report:?}");
        Ok(())
    })?;
    let counted = || anyhow::Ok([namespace.over_mtls("web", "outbound")?, namespace.over_mtls(server, "inbound")?]);
    let before = counted()?;
    let report = namespace.load("web", &load)?;
    ensure!(report.good() == REQUESTS, "{report:?}");
    let after = counted()?;
    ensure!(after == before.map(|count| count + REQUESTS), "from {before:?} to {after:?}");
    Ok(())
}

/// A Job, and one that a CronJob makes: they call in the mesh, and end although a proxy is in their pods.
fn jobs(namespace: &Namespace) -> anyhow::Result<()> {
    let args = ["--url", "http://reviews:9080/", "--requests", &REQUESTS.to_string()];
    let before = namespace.over_mtls("reviews", "inbound")?;
    apply(namespace, &[apps::job("once", &args), apps::cron_job("nightly", &args)])?;
    namespace.kubectl(&["create", "job", "now", "--from=cronjob/nightly"])?;
    for job in ["once", "now"] {
        let report: Report = namespace.completed(job)?;
        ensure!(report.good() == REQUESTS, "{job}: {report:?}");
    }
    let served = namespace.over_mtls("reviews", "inbound")? - before;
    ensure!(served == 2 * REQUESTS, "{served} requests of the jobs came over mutual TLS");
    Ok(())
}

/// `kubectl get | meshctl uninject | kubectl apply`: the pods are as if they had never been injected, and go on serving.
fn uninjected(namespace: &Namespace, plain: &Value) -> anyhow::Result<()> {
    let injected = template(&namespace.get(&["deployment/reviews-v1"])?);
    ensure!(injected != *plain, "the Deployment was not injected: {injected}");
    // Whoever else changes the object in between, such as its controller, has it refused.
    eventually(Duration::from_secs(20), || {
        let live = namespace.kubectl(&["get", "deployment/reviews-v1", "-o", "yaml"])?;
        let without = namespace.cluster.meshctl_on(&["uninject", "-f", "-"], &live)?;
        namespace.kubectl_with(&["apply", "-f", "-"], &without)
    })?;
    let back = template(&namespace.get(&["deployment/reviews-v1"])?);
    ensure!(back == *plain, "not what it was before the injection:\n{back}\n{plain}");
    namespace.rolled_out("reviews-v1")?;
    eventually(Duration::from_secs(60), || {
        let pods = namespace.get(&["pods", "-l", "app=reviews"])?;
        let pods = pods["items"].as_array().context("no list of pods")?;
        ensure!(pods.len() == 1, "{} pods", pods.len());
        ensure!(pods[0]["spec"]["initContainers"] == Value::Null, "{}", pods[0]["spec"]);
        ensure!(pods[0]["metadata"]["annotations"]["meshctl.dev/injected"] == Value::Null, "{}", pods[0]["metadata"]);
        Ok(())
    })?;
    let served = || {
        let report = namespace.load("web", &["--url", "http://reviews:9080/", "--requests", &REQUESTS.to_string()])?;
        ensure!(report.good() == REQUESTS, "{report:?}");
        Ok(())
    };
    eventually(Duration::from_secs(10), served)?;
    let before = namespace.over_mtls("web", "outbound")?;
    served()?;
    ensure!(namespace.over_mtls("web", "outbound")? == before, "it has no proxy, and was called over mutual TLS");
    Ok(())
}

/// What the API server makes of a Deployment's pods that nothing is injected into, defaults filled in. Nothing is stored.
fn as_stored(namespace: &Namespace, deployment: &Value) -> anyhow::Result<Value> {
    let made =
        namespace.kubectl_with(&["create", "--dry-run=server", "-o", "json", "-f", "-"], &deployment.to_string())?;
    Ok(template(&serde_json::from_str(&made)?))
}

fn template(deployment: &Value) -> Value {
    let mut template = deployment["spec"]["template"].clone();
    // Null, which some print and some do not.
    if let Some(metadata) = template["metadata"].as_object_mut() {
        metadata.remove("creationTimestamp");
    }
    template
}
