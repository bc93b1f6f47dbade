//! The replica that leads is killed: another one writes statuses and events then, within the time of a lease.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use mesh_e2e::cluster::{Cluster, apps};
use mesh_e2e::process::eventually;
use serde_json::{Value, json};

/// The lease's 15 seconds, a look of the other replica, and the way to the status.
const PATIENCE: Duration = Duration::from_secs(22);

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.meshed("leader")?;
    namespace.apply(&[apps::service("reviews"), apps::service("ratings")])?;
    let killed = leader(cluster)?;
    let start = Instant::now();
    cluster.kill("mesh-system", &killed)?;
    let route = |backend: &str| apps::http_route("reviews", json!([{"backendRefs": apps::backends(&[(backend, 1)])}]));
    namespace.apply(&[route("nowhere")])?;
    let next = eventually(PATIENCE, || {
        let next = leader(cluster)?;
        ensure!(next != killed, "{killed} still leads");
        Ok(next)
    })?;
    println!("   another replica leads {:.1} s after the first was killed", start.elapsed().as_secs_f64());
    cluster.kubectl(&["-n", "mesh-system", "get", "pod", &next])?;
    let (reason, _) = namespace.condition("httproute/reviews", "ResolvedRefs", "False")?;
    ensure!(reason == "BackendNotFound", "{reason}");
    let told = |kind: &str, reason: &str, text: &str| {
        eventually(Duration::from_secs(10), || {
            let events = namespace.kubectl(&["events", "--for=httproute/reviews", "--types", kind])?;
            ensure!(events.contains(reason) && events.contains(text), "{reason}, {text}: {events}");
            Ok(())
        })
    };
    told("Warning", "BackendNotFound", "no Service leader/nowhere")?;
    namespace.apply(&[route("ratings")])?;
    told("Normal", "ResolvedRefs", "is true again")?;
    // The same once more is the same event, counted.
    namespace.apply(&[route("nowhere")])?;
    eventually(Duration::from_secs(10), || {
        let events = namespace.get(&["events.v1.events.k8s.io"])?;
        let mut events = events["items"].as_array().into_iter().flatten();
        let repeated =
            |event: &Value| event["reason"] == "BackendNotFound" && event["series"]["count"].as_u64() >= Some(2);
        ensure!(events.any(repeated), "no event has come twice");
        Ok(())
    })?;
    cluster.rolled_out("mesh-system", "mesh-control")
}

fn leader(cluster: &Cluster) -> anyhow::Result<String> {
    let lease = cluster.get(&["lease/mesh-control", "-n", "mesh-system"])?;
    lease["spec"]["holderIdentity"].as_str().map(str::to_owned).context("nobody leads")
}
