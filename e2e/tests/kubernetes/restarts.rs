//! Everything is replaced while clients call over HTTP/1.1, HTTP/2 and gRPC, and no request fails.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use mesh_e2e::cluster::{Cluster, Namespace, apps};
use mesh_e2e::process::eventually;
use serde_json::{Value, json};

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
        ("the pods of the node evicted, as when it is drained", evict_pods),
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

/// Eviction of a node's pods, as `kubectl drain` does it, but for the cordon, since there may be no other node: the servers' all at
/// once, then those of the control plane, whose budget holds its second replica back until there is another. One after the
/// other, since a server that drains asks the control plane whether it may end: without one, nobody would be left to call for
/// some seconds, and what waits then keeps a small node busy for the rest of the test. The clients stay, since it is they who
/// count.
fn evict_pods(namespace: &Namespace) -> anyhow::Result<()> {
    let cluster = namespace.cluster;
    let servers = pods(cluster, &namespace.name, "app=reviews")?;
    let node = servers.first().context("no server runs")?.node.clone();
    let on_node = |pods: Vec<Pod>| pods.into_iter().filter(|pod| pod.node == node).collect::<Vec<_>>();
    let servers = on_node(servers);
    let control = on_node(pods(cluster, "mesh-system", "app.kubernetes.io/name=mesh-control")?);
    servers.iter().try_for_each(|pod| evict(cluster, pod))?;
    gone(cluster, &servers)?;
    rolled_out(namespace)?;
    let mut held_back = 0;
    for pod in &control {
        eventually(Duration::from_secs(120), || {
            evict(cluster, pod).inspect_err(|error| {
                held_back += u32::from(error.to_string().contains("disruption budget"));
                std::thread::sleep(Duration::from_millis(500));
            })
        })?;
    }
    ensure!(control.len() < 2 || held_back > 0, "no budget held back a replica of the control plane");
    gone(cluster, &control)?;
    let mut evicted = [servers, control].concat();
    cluster.rolled_out("mesh-system", "mesh-control")?;
    if cluster.is_ours() {
        // By itself: where there is one only, a proxy that drains could not find the control plane.
        let dns = on_node(pods(cluster, "kube-system", "k8s-app=kube-dns")?);
        dns.iter().try_for_each(|pod| evict(cluster, pod))?;
        gone(cluster, &dns)?;
        cluster.rolled_out("kube-system", "coredns")?;
        evicted.extend(dns);
    } else {
        println!("   CoreDNS of a cluster that is not ours is left alone");
    }
    let names: Vec<&str> = evicted.iter().map(|pod| pod.name.as_str()).collect();
    println!("   evicted from {node}: {} (the last replica held back {held_back} times)", names.join(", "));
    Ok(())
}

#[derive(Clone)]
struct Pod {
    namespace: String,
    name: String,
    node: String,
}

/// Those that are not ending already.
fn pods(cluster: &Cluster, namespace: &str, labels: &str) -> anyhow::Result<Vec<Pod>> {
    let found = cluster.get(&["pods", "-n", namespace, "-l", labels])?;
    let running = |pod: &&Value| pod["metadata"]["deletionTimestamp"] == Value::Null;
    let pod = |pod: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Pod {
            namespace: namespace.to_owned(),
            name: text(&pod["metadata"]["name"]),
            node: text(&pod["spec"]["nodeName"]),
        }
    };
    Ok(found["items"].as_array().into_iter().flatten().filter(running).map(pod).collect())
}

/// An error where a budget holds it back.
fn evict(cluster: &Cluster, pod: &Pod) -> anyhow::Result<()> {
    let Pod { namespace, name, .. } = pod;
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction");
    let metadata = json!({"namespace": namespace, "name": name});
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata});
    cluster.kubectl_with(&["create", "--raw", &path, "-f", "-"], &eviction.to_string()).map(drop)
}

fn gone(cluster: &Cluster, evicted: &[Pod]) -> anyhow::Result<()> {
    eventually(Duration::from_secs(90), || {
        for pod in evicted {
            let left = cluster.kubectl(&[
                "-n",
                &pod.namespace,
                "get",
                "pod",
                &pod.name,
                "--ignore-not-found",
                "-o",
                "name",
            ])?;
            ensure!(left.trim().is_empty(), "{left} is still there");
        }
        Ok(())
    })
}

fn restart_control(namespace: &Namespace) -> anyhow::Result<()> {
    let cluster = namespace.cluster;
    cluster.kubectl(&["-n", "mesh-system", "rollout", "restart", "deployment/mesh-control"])?;
    cluster.rolled_out("mesh-system", "mesh-control")?;
    let replicas = pods(cluster, "mesh-system", "app.kubernetes.io/name=mesh-control")?;
    let name = &replicas.first().context("no replica runs")?.name;
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
