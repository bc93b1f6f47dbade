//! What a proxy costs a pod: the time until it is ready, and memory.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use mesh_e2e::cluster::{Cluster, Namespace, apps};
use mesh_e2e::process::eventually;
use serde_json::{Value, json};

const ROUNDS: usize = 5;
/// That a proxy may add to what a pod of the same shape takes, and may take itself.
const MOST: Duration = Duration::from_millis(500);

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.meshed("startup")?;
    measure(&namespace, &["init", "sidecar"])?;
    let memory = eventually(Duration::from_secs(30), || {
        let memory: Vec<_> =
            cluster.proxy_memory()?.into_iter().filter(|(pod, _)| pod.starts_with("startup/")).collect();
        ensure!(memory.len() == ROUNDS, "the kubelet knows of {} proxies", memory.len());
        Ok(memory)
    })?;
    let megabytes: Vec<String> = memory.iter().map(|(_, bytes)| format!("{:.1}", *bytes as f64 / 1e6)).collect();
    println!("   resident memory of idle proxies: {} MB", megabytes.join(", "));
    Ok(())
}

/// The same where the nodes write the rules: there is one container less.
pub fn with_cni(namespace: &Namespace) -> anyhow::Result<()> {
    measure(namespace, &["sidecar"])
}

/// Pods without anything, with containers of these names that do nothing, and with a proxy, each time all at once: when the
/// kubelet looks, it looks at all of them.
fn measure(namespace: &Namespace, added: &[&str]) -> anyhow::Result<()> {
    let (mut bare, mut hollow, mut with, mut own) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for number in 0..ROUNDS {
        let pods = [
            outside(pod(&format!("bare-{number}"))),
            outside(same_shape(pod(&format!("hollow-{number}")), added)),
            pod(&format!("pod-{number}")),
        ];
        let [of_bare, of_hollow, of_pod] = ready(namespace, &pods)?;
        bare.push(of_bare);
        hollow.push(of_hollow);
        with.push(of_pod);
        let log = namespace.kubectl(&["logs", &format!("pod-{number}"), "-c", "mesh-proxy"])?;
        let millis = log.split_once("ready after_ms=").and_then(|(_, rest)| rest.split_whitespace().next());
        own.push(Duration::from_millis(millis.context("the proxy does not say when it was ready")?.parse()?));
    }
    println!("   {bare:.2?} {hollow:.2?} {with:.2?} {own:.2?}");
    let (bare, hollow, with, own) = (mean(&bare), mean(&hollow), mean(&with), mean(&own));
    println!(
        "   ready after {bare:.2?}; with {} that {} nothing {hollow:.2?}; with a proxy {with:.2?}, of which the proxy itself {own:.2?}",
        added.join(" and "),
        if added.len() > 1 { "do" } else { "does" },
    );
    ensure!(own < MOST, "the proxy takes {own:.0?} to be ready");
    let more = with.saturating_sub(hollow);
    ensure!(more < MOST, "the proxy adds {more:.0?} to a pod of the same shape");
    Ok(())
}

/// How long each takes from now until it is ready.
fn ready<const N: usize>(namespace: &Namespace, pods: &[Value; N]) -> anyhow::Result<[Duration; N]> {
    let start = Instant::now();
    namespace.apply(pods)?;
    let wait = |pod: &Value| {
        let name = format!("pod/{}", pod["metadata"]["name"].as_str().unwrap_or_default());
        namespace.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", &name])?;
        anyhow::Ok(start.elapsed())
    };
    std::thread::scope(|scope| {
        let waiting: Vec<_> = pods.iter().map(|pod| scope.spawn(move || wait(pod))).collect();
        let mut times = [Duration::ZERO; N];
        for (time, waiting) in times.iter_mut().zip(waiting) {
            *time = waiting.join().map_err(|_| anyhow::anyhow!("a thread ended"))??;
        }
        Ok(times)
    })
}

/// Such as the Pod Security level `restricted` takes.
fn pod(name: &str) -> Value {
    let mut pod = apps::load(name, &[]);
    pod["spec"]["containers"][0]["args"] = json!(["idle"]);
    apps::restrict(&mut pod["spec"]);
    pod
}

fn outside(mut pod: Value) -> Value {
    pod["metadata"]["labels"]["mesh-injection"] = "disabled".into();
    pod
}

/// The kubelet looks only once a second whether an init container has ended or a sidecar runs: what it takes for that is
/// its own.
fn same_shape(mut pod: Value, added: &[&str]) -> Value {
    let container = |name: &str| {
        let mut container = pod["spec"]["containers"][0].clone();
        container["name"] = name.into();
        match name {
            "sidecar" => {
                container["args"] = json!(["http"]);
                container["restartPolicy"] = "Always".into();
                container["startupProbe"] = json!({"httpGet": {"path": "/", "port": apps::PORT}, "periodSeconds": 1});
            }
            _ => container["args"] = json!(["garbage"]),
        }
        container
    };
    pod["spec"]["initContainers"] = added.iter().map(|name| container(name)).collect();
    pod
}

fn mean(durations: &[Duration]) -> Duration {
    durations.iter().sum::<Duration>() / u32::try_from(durations.len().max(1)).unwrap_or(1)
}
