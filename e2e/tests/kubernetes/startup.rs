//! What a proxy costs a pod: the time until it is ready, and memory.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use mesh_e2e::cluster::{Cluster, Namespace, apps};
use mesh_e2e::process::eventually;
use serde_json::{Value, json};

const PODS: usize = 3;
/// That a proxy may take until it is ready. The kubelet's own share would hide it: whole seconds, as chance will have it.
const MOST: Duration = Duration::from_millis(500);

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let (plain, meshed) = (cluster.unmeshed("startup-plain")?, cluster.meshed("startup")?);
    let (mut bare, mut hollow, mut with) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..PODS {
        bare.push(ready(&plain, pod(&format!("bare-{number}")))?);
        hollow.push(ready(&plain, same_shape(&format!("hollow-{number}")))?);
        with.push(ready(&meshed, pod(&format!("pod-{number}")))?);
    }
    let (bare, hollow, with) = (median(bare), median(hollow), median(with));
    println!(
        "   ready after {bare:.2?}; with an init container and a sidecar that do nothing {hollow:.2?}; with a proxy {with:.2?}"
    );
    let mut own = Vec::new();
    for number in 0..PODS {
        let log = meshed.kubectl(&["logs", &format!("pod-{number}"), "-c", "mesh-proxy"])?;
        let millis = log.split_once("ready after_ms=").and_then(|(_, rest)| rest.split_whitespace().next());
        own.push(Duration::from_millis(millis.context("the proxy does not say when it was ready")?.parse()?));
    }
    let own = median(own);
    println!("   of which the proxy itself, from its start until it is ready: {own:.0?}");
    ensure!(own < MOST, "the proxy takes {own:.0?} to be ready");
    let memory = eventually(Duration::from_secs(30), || {
        let memory: Vec<_> =
            cluster.proxy_memory()?.into_iter().filter(|(pod, _)| pod.starts_with("startup/")).collect();
        ensure!(memory.len() == PODS, "the kubelet knows of {} proxies", memory.len());
        Ok(memory)
    })?;
    let megabytes: Vec<String> = memory.iter().map(|(_, bytes)| format!("{:.1}", *bytes as f64 / 1e6)).collect();
    println!("   resident memory of idle proxies: {} MB", megabytes.join(", "));
    Ok(())
}

fn ready(namespace: &Namespace, pod: Value) -> anyhow::Result<Duration> {
    let name = format!("pod/{}", pod["metadata"]["name"].as_str().unwrap_or_default());
    let start = Instant::now();
    namespace.apply(&[pod])?;
    namespace.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", &name])?;
    Ok(start.elapsed())
}

fn pod(name: &str) -> Value {
    let mut pod = apps::load(name, &[]);
    pod["spec"]["containers"][0]["args"] = json!(["idle"]);
    pod
}

/// The kubelet looks only once a second whether an init container has ended or a sidecar runs: what it takes for that is
/// its own.
fn same_shape(name: &str) -> Value {
    let mut pod = pod(name);
    let container = |name: &str, args: &[&str]| {
        let mut container = pod["spec"]["containers"][0].clone();
        (container["name"], container["args"]) = (name.into(), json!(args));
        container
    };
    let mut sidecar = container("sidecar", &["http"]);
    sidecar["restartPolicy"] = "Always".into();
    sidecar["startupProbe"] = json!({"httpGet": {"path": "/", "port": apps::PORT}, "periodSeconds": 1});
    pod["spec"]["initContainers"] = json!([container("init", &["garbage"]), sidecar]);
    pod
}

fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort_unstable();
    durations[durations.len() / 2]
}
