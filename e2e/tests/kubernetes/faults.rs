//! Delays, aborts and resets hit the share of the callers that was asked for, and nobody else.

use std::time::Duration;

use anyhow::ensure;
use mesh_e2e::app::load::Report;
use mesh_e2e::cluster::Cluster;
use mesh_e2e::process::eventually;
use serde_json::{Value, json};

/// Shares are exact over a thousand.
const LOAD: [&str; 8] =
    ["--url", "http://reviews:9080/", "--connections", "100", "--requests", "1000", "--slow", "900"];

/// A fault, and whether this is what a thousand requests of the caller look like that it hits.
type Case = (Value, fn(&Report) -> bool);

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.meshed("faults")?;
    namespace.shop(&["web", "other"])?;
    let cases: [Case; 3] = [
        (json!({"percent": 50, "delay": {"duration": "1s"}}), |r| (r.slow, r.good(), r.failed) == (500, 1000, 0)),
        (json!({"percent": 25, "abort": {"httpStatus": 503}}), |r| {
            (r.by_status.get(&503), r.good(), r.failed) == (Some(&250), 750, 0)
        }),
        (json!({"percent": 50, "reset": {}}), |r| (r.failed, r.good()) == (500, 500)),
    ];
    for (fault, hit) in cases {
        namespace.apply(&[injection(&fault)])?;
        namespace.condition("faultinjection/web", "Accepted", "True")?;
        eventually(Duration::from_secs(15), || {
            let report = namespace.load("web", &LOAD)?;
            ensure!(hit(&report), "{fault}: {report:?}");
            Ok(())
        })?;
        let spared = namespace.load("other", &LOAD)?;
        ensure!((spared.slow, spared.good(), spared.failed) == (0, 1000, 0), "{fault} hit another caller: {spared:?}");
    }
    namespace.delete(&["faultinjection/web"])?;
    eventually(Duration::from_secs(10), || {
        let report = namespace.load("web", &LOAD)?;
        ensure!((report.slow, report.good()) == (0, 1000), "{report:?}");
        Ok(())
    })
}

fn injection(fault: &Value) -> Value {
    json!({
        "apiVersion": "meshctl.dev/v1alpha1", "kind": "FaultInjection", "metadata": {"name": "web"},
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": "reviews"}],
            "from": [{"serviceAccount": "web"}],
            "faults": [fault],
        },
    })
}
