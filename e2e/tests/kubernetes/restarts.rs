//! Everything is replaced while clients call over HTTP/1.1, HTTP/2 and gRPC, and no request fails.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use mesh_e2e::cluster::{Cluster, Namespace, apps};
use mesh_e2e::process::eventually;
use serde_json::{Value, json};

use crate::upgrade;

struct Client {
    name: &'static str,
    url: &'static str,
    protocol: &'static [&'static str],
    /// Requests a second. All servers are evicted at once, and what waits meanwhile is answered afterwards: more than this, a
    /// node of two cores that also runs the cluster in a container does not catch up with while the next servers start.
    rate: u64,
    /// In all, at least.
    requests: u64,
}

const SERVICE: &str = "http://reviews:9080/";
/// Of the first three together, at least.
const REQUESTS: u64 = 200_000;

const CLIENTS: [Client; 5] = [
    Client { name: "http1", url: SERVICE, protocol: &[], rate: 600, requests: REQUESTS.div_ceil(3) },
    Client { name: "http2", url: SERVICE, protocol: &["--http2"], rate: 600, requests: REQUESTS.div_ceil(3) },
    Client { name: "grpc", url: SERVICE, protocol: &["--grpc"], rate: 600, requests: REQUESTS.div_ceil(3) },
    // Through a server that calls the other ones itself.
    Client { name: "through", url: "http://middle:9080/", protocol: &[], rate: 100, requests: 1000 },
    // Answers that are on their way for two seconds.
    Client {
        name: "streams",
        url: "http://reviews:9080/stream/2000",
        protocol: &["--grpc", "--slow", "10000"],
        rate: 10,
        requests: 100,
    },
];

/// Of a client: after so long it has given up. All servers of a service are evicted at once, and the next need their time.
const PATIENCE: Duration = Duration::from_secs(30);

const APISERVER_AWAY: Duration = Duration::from_secs(20);

type Disruption = fn(&Namespace) -> anyhow::Result<()>;

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.meshed("restarts")?;
    namespace.shop(&[])?;
    namespace.apply(&[apps::service("middle"), middle(), with_sleep(apps::server("reviews", "v2"))])?;
    rolled_out(&namespace)?;
    for Client { name, url, protocol, rate, requests } in CLIENTS {
        // Enough connections for those that take long.
        let (rate, least, connections) = (rate.to_string(), requests.to_string(), if rate < 100 { "40" } else { "6" });
        let args = ["--url", url, "--connections", connections, "--rate", &rate, "--at-least", &least];
        namespace.apply(&[apps::load(name, &[&args[..], protocol].concat())])?;
    }
    for Client { name, .. } in CLIENTS {
        namespace.kubectl(&["wait", "--for=condition=Ready", "--timeout=30s", &format!("pod/{name}")])?;
    }
    let began = Instant::now();
    let disruptions: [(&str, Disruption); 6] = [
        ("every Deployment restarted", roll),
        ("scaled from 1 to 10 and back", scale),
        ("the node's pods evicted at once, as when it is drained", evict_pods),
        ("mesh-control restarted, then a replica killed", restart_control),
        ("the mesh upgraded, and taken back", |namespace| upgrade::there_and_back(namespace, roll)),
        ("API server killed, and away for a while", kill_apiserver),
    ];
    for (what, disrupt) in disruptions {
        let from = began.elapsed().as_secs_f64();
        disrupt(&namespace)?;
        println!("   {from:.0} s to {:.0} s: {what}", began.elapsed().as_secs_f64());
    }
    for Client { name, .. } in CLIENTS {
        namespace.stop(name)?;
    }
    let (mut total, mut bad) = (0, Vec::new());
    for Client { name, requests, .. } in CLIENTS {
        let report = namespace.ended(name)?;
        ensure!(report.requests >= requests, "{name} sent only {} requests", report.requests);
        total += report.requests;
        println!(
            "   {name}: {} requests, p99 {:.1} ms, at most {:.1} ms, {} connections closed",
            report.requests, report.p99_ms, report.max_ms, report.closed
        );
        let waited = Duration::from_secs_f64(report.max_ms / 1e3);
        if report.by_status.get(&200) != Some(&report.requests) || report.failed > 0 || waited > PATIENCE {
            bad.push((name, report));
        }
    }
    ensure!(bad.is_empty(), "{bad:#?}");
    println!("   {total} requests in all");
    Ok(())
}

/// A server that calls others, and whose hook does what the mesh advises for hooks that are commands.
fn middle() -> Value {
    let mut deployment = apps::server("middle", "v1");
    let container = &mut deployment["spec"]["template"]["spec"]["containers"][0];
    container["args"] = json!(["http", "--forward", SERVICE]);
    // It is well when those are not that it calls.
    container["readinessProbe"]["httpGet"]["path"] = "/status/200".into();
    let command = ["/testapp", "load", "--requests", "1", "--url", "http://localhost:15021/drain"];
    container["lifecycle"] = json!({"preStop": {"exec": {"command": command}}});
    deployment
}

/// As people write it who have no mesh.
fn with_sleep(mut deployment: Value) -> Value {
    let container = &mut deployment["spec"]["template"]["spec"]["containers"][0];
    container["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 1}}});
    deployment
}

fn roll(namespace: &Namespace) -> anyhow::Result<()> {
    namespace.kubectl(&["rollout", "restart", "deployment"])?;
    rolled_out(namespace)
}

fn rolled_out(namespace: &Namespace) -> anyhow::Result<()> {
    ["reviews-v1", "reviews-v2", "middle-v1"].iter().try_for_each(|deployment| namespace.rolled_out(deployment))
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

/// Eviction of a node's pods, as `kubectl drain` does it, but for the cordon, since there may be no other node: the servers,
/// CoreDNS and the control plane at once, whose budget holds its second replica back until there is another. The clients stay,
/// since it is they who count.
fn evict_pods(namespace: &Namespace) -> anyhow::Result<()> {
    let cluster = namespace.cluster;
    let servers = pods(cluster, &namespace.name, "app in (reviews,middle)")?;
    let node = servers.first().context("no server runs")?.node.clone();
    let on_node = |pods: Vec<Pod>| pods.into_iter().filter(|pod| pod.node == node).collect::<Vec<_>>();
    let control = on_node(pods(cluster, "mesh-system", "app.kubernetes.io/name=mesh-control")?);
    let mut at_once = on_node(servers);
    if cluster.is_ours() {
        at_once.extend(on_node(pods(cluster, "kube-system", "k8s-app=kube-dns")?));
    } else {
        println!("   CoreDNS of a cluster that is not ours is left alone");
    }
    at_once.iter().try_for_each(|pod| evict(cluster, pod))?;
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
    let evicted = [at_once, control].concat();
    gone(cluster, &evicted)?;
    rolled_out(namespace)?;
    cluster.rolled_out("mesh-system", "mesh-control")?;
    if cluster.is_ours() {
        cluster.rolled_out("kube-system", "coredns")?;
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
