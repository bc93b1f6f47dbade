//! What a proxy costs a pod: the time until it is ready, and memory.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use mesh_e2e::cluster::{Cluster, Namespace, apps};
use mesh_e2e::process::eventually;
use serde_json::{Value, json};

const ROUNDS: u32 = 10;
/// Between two rounds: each begins at another part of the second after which the kubelet looks again.
const STEP: Duration = Duration::from_millis(1700);
/// That a proxy may add to what a pod of the same shape takes, and may take itself; and until all of a round are ready.
const MOST: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(60);

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.meshed("startup")?;
    measure(&namespace, &["init", "sidecar"])?;
    let memory = eventually(Duration::from_secs(30), || {
        let memory: Vec<_> =
            cluster.proxy_memory()?.into_iter().filter(|(pod, _)| pod.starts_with("startup/")).collect();
        ensure!(memory.len() == ROUNDS as usize, "the kubelet knows of {} proxies", memory.len());
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

/// Pods without anything, with containers of these names that do nothing, and with a proxy; all three at once, so that the
/// kubelet looks at them at the same times.
fn measure(namespace: &Namespace, added: &[&str]) -> anyhow::Result<()> {
    let round = |number: u32| {
        std::thread::sleep(STEP * number);
        let pods = [
            outside(pod(&format!("bare-{number}"))),
            outside(same_shape(pod(&format!("hollow-{number}")), added)),
            pod(&format!("pod-{number}")),
        ];
        ready(namespace, &pods)
    };
    let times: Vec<[Duration; 3]> = all_at_once((0..ROUNDS).map(|number| move || round(number)))?;
    let [bare, hollow, with] = [0, 1, 2].map(|kind| mean(times.iter().map(|times| times[kind])));
    let own = (0..ROUNDS).map(|number| own_time(namespace, &format!("pod-{number}"))).collect::<Result<Vec<_>, _>>()?;
    let own = mean(own.into_iter());
    let (which, do_) = (added.join(" and "), if added.len() > 1 { "do" } else { "does" });
    println!("   ready after {bare:.2?}; with {which} that {do_} nothing {hollow:.2?}; with a proxy {with:.2?}");
    println!("   of which the proxy itself, from its start until it is ready: {own:.0?}");
    let most = MOST * slowness()?;
    ensure!(own < most, "the proxy takes {own:.0?} to be ready");
    let more = with.saturating_sub(hollow);
    ensure!(more < most, "the proxy adds {more:.0?} to a pod of the same shape: {times:.2?}");
    Ok(())
}

/// By which the limits on time are multiplied, on a host that has much else to do beside.
fn slowness() -> anyhow::Result<u32> {
    let set = std::env::var("E2E_SLOWNESS").unwrap_or_else(|_| "1".to_owned());
    set.parse().with_context(|| format!("E2E_SLOWNESS={set} is no number"))
}

/// What the proxy says of itself.
fn own_time(namespace: &Namespace, pod: &str) -> anyhow::Result<Duration> {
    let log = namespace.kubectl(&["logs", pod, "-c", "mesh-proxy"])?;
    let millis = log.split_once("ready after_ms=").and_then(|(_, rest)| rest.split_whitespace().next());
    Ok(Duration::from_millis(millis.context("the proxy does not say when it was ready")?.parse()?))
}

/// How long each takes from now until it is ready.
fn ready<const N: usize>(namespace: &Namespace, pods: &[Value; N]) -> anyhow::Result<[Duration; N]> {
    let timeout = format!("--timeout={}s", (PATIENCE * slowness()?).as_secs());
    let start = Instant::now();
    namespace.apply(pods)?;
    let wait = |pod: &Value| {
        let name = format!("pod/{}", pod["metadata"]["name"].as_str().unwrap_or_default());
        namespace.kubectl(&["wait", "--for=condition=Ready", &timeout, &name])?;
        Ok(start.elapsed())
    };
    let times = all_at_once(pods.iter().map(|pod| move || wait(pod)))?;
    times.try_into().map_err(|_| anyhow!("{N} times expected"))
}

fn all_at_once<T: Send>(
    tasks: impl Iterator<Item = impl FnOnce() -> anyhow::Result<T> + Send>,
) -> anyhow::Result<Vec<T>> {
    std::thread::scope(|scope| {
        let running: Vec<_> = tasks.map(|task| scope.spawn(task)).collect();
        running.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?).collect()
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

fn mean(durations: impl ExactSizeIterator<Item = Duration>) -> Duration {
    let count = u32::try_from(durations.len().max(1)).unwrap_or(u32::MAX);
    durations.sum::<Duration>() / count
}
