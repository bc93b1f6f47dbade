//! Versions of one Service get exactly the shares that a route gives them, without a failed request on the way; a Job
//! with a proxy ends by itself.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use mesh_e2e::app::load::Report;
use mesh_e2e::cluster::{Cluster, Namespace, apps};
use mesh_e2e::process::eventually;
use serde_json::json;

const URL: [&str; 2] = ["--url", "http://reviews:9080/"];

/// Clients that go on while weights change.
const STEADY: [(&str, &[&str]); 3] =
    [("steady-http1", &[]), ("steady-http2", &["--http2"]), ("steady-grpc", &["--grpc"])];

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.meshed("canary")?;
    namespace.shop(&["web"])?;
    for (v1, v2) in [(100, 0), (90, 10), (50, 50), (0, 100)] {
        set_weight(&namespace, v1, v2)?;
        namespace.condition("httproute/reviews", "Accepted", "True")?;
        settled(&namespace, v1, v2)?;
        for protocol in [&[][..], &["--http2"], &["--grpc"]] {
            let args = [&URL[..], &["--connections", "4", "--requests", "1000"], protocol].concat();
            let report = namespace.load("web", &args)?;
            let shares = (u64::from(v1) * 10, u64::from(v2) * 10);
            ensure!(versions(&report) == shares && clean(&report, 1000), "{v1}/{v2} {protocol:?}: {report:?}");
        }
    }
    crossed(&namespace)?;
    let by_job = namespace.job("once", &[&URL[..], &["--requests", "100"]].concat())?;
    ensure!(clean(&by_job, 100), "{by_job:?}");
    Ok(())
}

/// Weights change, by kubectl and by meshctl, while calls go on over each protocol.
fn crossed(namespace: &Namespace) -> anyhow::Result<()> {
    for (name, protocol) in STEADY {
        let args = [&URL[..], &["--connections", "4", "--rate", "300", "--at-least", "3000"], protocol].concat();
        namespace.apply(&[apps::load(name, &args)])?;
    }
    for (name, _) in STEADY {
        namespace.kubectl(&["wait", "--for=condition=Ready", "--timeout=30s", &format!("pod/{name}")])?;
    }
    let changes = [(100, 0), (90, 10), (50, 50), (0, 100), (50, 50), (100, 0)];
    for (index, (v1, v2)) in changes.into_iter().enumerate() {
        // By turns.
        if index % 2 == 0 {
            set_weight(namespace, v1, v2)?;
        } else {
            let weights = apps::backends(&[("reviews-v1", v1), ("reviews-v2", v2)]);
            namespace.apply(&[apps::http_route("reviews", json!([{"backendRefs": weights}]))])?;
        }
        settled(namespace, v1, v2)?;
    }
    for (name, _) in STEADY {
        namespace.stop(name)?;
    }
    for (name, _) in STEADY {
        let report = namespace.ended(name)?;
        let (v1, v2) = versions(&report);
        ensure!(clean(&report, report.requests) && v1 > 0 && v2 > 0, "{name}: {report:?}");
        println!("   {name}: {} requests crossed six changes of weights, none failed", report.requests);
    }
    Ok(())
}

fn set_weight(namespace: &Namespace, v1: u32, v2: u32) -> anyhow::Result<()> {
    let weights = [format!("v1={v1}"), format!("v2={v2}")];
    let args = ["-n", &namespace.name, "route", "set-weight", "reviews", &weights[0], &weights[1], "--wait"];
    namespace.cluster.meshctl(&args).map(drop)
}

/// Waits until the client's proxy has these weights; even then nothing may fail. A hundred requests show each of them.
fn settled(namespace: &Namespace, v1: u32, v2: u32) -> anyhow::Result<()> {
    eventually(Duration::from_secs(10), || {
        let report = namespace.load("web", &[&URL[..], &["--requests", "100"]].concat())?;
        assert!(clean(&report, 100), "{report:?}");
        ensure!(versions(&report) == (v1.into(), v2.into()), "{report:?}");
        Ok(())
    })
}

fn versions(report: &Report) -> (u64, u64) {
    let share = |version: &str| report.by_version.get(version).copied().unwrap_or(0);
    (share("v1"), share("v2"))
}

fn clean(report: &Report, requests: u64) -> bool {
    report.failed == 0 && report.by_status == BTreeMap::from([(200, requests)])
}
