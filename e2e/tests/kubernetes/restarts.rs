//! Everything is replaced while clients call over HTTP/1.1, HTTP/2 and gRPC, and no request fails.

use std::time::{Duration, Instant};

use anyhow::ensure;
use mesh_e2e::cluster::{Cluster, Namespace, apps};
use mesh_e2e::process::eventually;
use serde_json::json;

const CLIENTS: [(&str, &[&str]); 3] = [("http1", &[]), ("http2", &["--http2"]), ("grpc", &["--grpc"])];
/// Of each client, a second.
const RATE: u64 = 1000;
/// Of all clients together, at least.
const REQUESTS: u64 = 200_000;

const APISERVER_AWAY: Duration = Duration::from_secs(20);

type Disruption = fn(&Namespace) -> anyhow::Result<()>;

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.meshed("restarts")?;
    namespace.shop(&[])?;
    for (name, protocol) in CLIENTS {
        let (rate, least) = (RATE.to_string(), REQUESTS.div_ceil(3).to_string());
        let args = ["--url", "http://reviews:9080/", "--connections", "6", "--rate", &rate, "--at-least", &least];
        namespace.apply(&[apps::load(name, &[&args[..], protocol].concat())])?;
    }
    for (name, _) in CLIENTS {
        namespace.kubectl(&["wait", "--for=condition=Ready", "--timeout=30s", &format!("pod/{name}")])?;
    }
    let began = Instant::now();
    let disruptions: [(&str, Disruption); 5] = [
        ("every Deployment restarted", roll),
        ("scaled from 1 to 10 and back", scale),
        ("all pods of the node deleted", delete_pods),
        ("mesh-control restarted, then a replica killed", restart_control),
        ("API server killed, and away for a while", kill_apiserver),
    ];
    for (what, disrupt) in disruptions {
        let from = began.elapsed().as_secs_f64();
        disrupt(&namespace)?;
        println!("   {from:.0} s to {:.0} s: {what}", began.elapsed().as_secs_f64());
    }
    for (name, _) in CLIENTS {
        namespace.stop(name)?;
    }
    let (mut total, mut bad) = (0, Vec::new());
    for (name, _) in CLIENTS {
        let report = namespace.ended(name)?;
        total += report.requests;
        println!(
            "   {name}: {} requests, p99 {:.1} ms, {} connections closed",
            report.requests, report.p99_ms, report.closed
        );
        if report.by_status.get(&200) != Some(&report.requests) || report.failed > 0 {
            bad.push((name, report));
        }
    }
    ensure!(bad.is_empty(), "{bad:#?}");
    ensure!(total >= REQUESTS, "only {total} requests were sent");
    Ok(())
}

fn roll(namespace: &Namespace) -> anyhow::Result<()> {
    namespace.kubectl(&["rollout", "restart", "deployment"])?;
    rolled_out(namespace)
}

fn rolled_out(namespace: &Namespace) -> anyhow::Result<()> {
    ["reviews-v1", "reviews-v2"].iter().try_for_each(|deployment| namespace.rolled_out(deployment))
}

fn scale(namespace: &Namespace) -> anyhow::Result<()> {
    namespace.kubectl(&["scale", "deployment/reviews-v1", "--replicas=10"])?;
    namespace.rolled_out("reviews-v1")?;
    namespace.kubectl(&["scale", "deployment/reviews-v1", "--replicas=1"])?;
    eventually(Duration::from_secs(60), || {
        let pods = namespace.get(&["pods", "-l", "app=reviews,version=v1"])?;
        let left = pods["items"].as_array().map_or(0, Vec::len);
        ensure!(left == 1, "{left} pods");
        Ok(())
    })
}

/// None is left to call then, until the first new one is ready.
fn delete_pods(namespace: &Namespace) -> anyhow::Result<()> {
    let pods = namespace.get(&["pods", "-l", "app=reviews"])?;
    let node = pods["items"][0]["spec"]["nodeName"].as_str().unwrap_or_default();
    namespace.delete(&["pods", "-l", "app=reviews", "--field-selector", &format!("spec.nodeName={node}")])?;
    rolled_out(namespace)
}

fn restart_control(namespace: &Namespace) -> anyhow::Result<()> {
    let cluster = namespace.cluster;
    cluster.kubectl(&["-n", "mesh-system", "rollout", "restart", "deployment/mesh-control"])?;
    cluster.rolled_out("mesh-system", "mesh-control")?;
    let pods = cluster.get(&["pods", "-n", "mesh-system", "-l", "app.kubernetes.io/name=mesh-control"])?;
    let running = |pod: &&serde_json::Value| pod["metadata"]["deletionTimestamp"] == json!(null);
    let pod = pods["items"].as_array().and_then(|pods| pods.iter().find(running));
    let name = pod.and_then(|pod| pod["metadata"]["name"].as_str()).unwrap_or_default();
    cluster.kubectl(&["-n", "mesh-system", "delete", "pod", name, "--grace-period=0", "--force"])?;
    cluster.rolled_out("mesh-system", "mesh-control")
}

/// What the clients call meanwhile needs none.
fn kill_apiserver(namespace: &Namespace) -> anyhow::Result<()> {
    if !namespace.cluster.is_ours() {
        println!("   the API server of a cluster that is not ours is left alone");
        return Ok(());
    }
    namespace.cluster.kill_apiserver(APISERVER_AWAY)?;
    // What has changed meanwhile, and what changes from now on, is seen.
    roll(namespace)
}
