//! A real Prometheus in the cluster scrapes what the annotations name that the injection sets, and shows the shares of a
//! canary and the faults, to the request.

use std::time::Duration;

use anyhow::{Context, ensure};
use mesh_e2e::cluster::{Cluster, apps};
use mesh_e2e::process::eventually;
use serde_json::{Value, json};

const MANIFEST: &str = include_str!("../../kubernetes/manifests/prometheus.yaml");
const LOAD: [&str; 6] = ["--url", "http://reviews:9080/", "--connections", "4", "--requests", "1000"];

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let (namespace, monitoring) = (cluster.meshed("metrics")?, cluster.unmeshed("monitoring")?);
    namespace.shop(&["web"])?;
    monitoring.apply(&[config(cluster)?])?;
    cluster.apply(MANIFEST)?;
    monitoring.rolled_out("prometheus")?;
    let weights = apps::backends(&[("reviews-v1", 7), ("reviews-v2", 3)]);
    namespace.apply(&[apps::http_route("reviews", json!([{"backendRefs": weights}]))])?;
    // What was sent before the weights were in force is counted as well.
    let (mut v1, mut v2) = (0, 0);
    eventually(Duration::from_secs(10), || {
        let report = namespace.load("web", &LOAD)?;
        let share = |version: &str| report.by_version.get(version).copied().unwrap_or(0);
        (v1, v2) = (v1 + share("v1"), v2 + share("v2"));
        ensure!((share("v1"), share("v2")) == (700, 300), "{report:?}");
        Ok(())
    })?;
    for direction in ["inbound", "outbound"] {
        for (version, sent) in [("v1", v1), ("v2", v2)] {
            let query = format!(
                "sum(mesh_requests_total{{direction=\"{direction}\",namespace=\"metrics\",destination_version=\"{version}\",response_code=\"200\",security=\"mutual_tls\",source_identity=\"spiffe://mesh.local/ns/metrics/sa/web\"}})"
            );
            becomes(cluster, &query, sent)?;
        }
    }
    namespace.apply(&[json!({
        "apiVersion": "meshctl.dev/v1alpha1", "kind": "FaultInjection", "metadata": {"name": "web"},
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": "reviews"}], "from": [{"serviceAccount": "web"}],
            "faults": [{"percent": 20, "abort": {"httpStatus": 418}}],
        },
    })])?;
    let mut hit = 0;
    eventually(Duration::from_secs(10), || {
        let report = namespace.load("web", &LOAD)?;
        let now = report.by_status.get(&418).copied().unwrap_or(0);
        hit += now;
        ensure!(now == 200, "{report:?}");
        Ok(())
    })?;
    becomes(
        cluster,
        "sum(mesh_requests_total{namespace=\"metrics\",response_code=\"418\",response_flags=\"FI\"})",
        hit,
    )?;
    // Both replicas of the control plane, as their own annotations say.
    becomes(cluster, "count(up{namespace=\"mesh-system\"} == 1)", 2)
}

/// The targets that Kubernetes service discovery finds by the annotations. Distributions build Prometheus without it.
fn config(cluster: &Cluster) -> anyhow::Result<Value> {
    let pods = cluster.get(&["pods", "--all-namespaces"])?;
    let target = |pod: &Value| {
        let annotation = |name: &str| pod["metadata"]["annotations"][format!("prometheus.io/{name}")].as_str();
        (annotation("scrape")? == "true").then_some(())?;
        let target = format!("{}:{}", pod["status"]["podIP"].as_str()?, annotation("port")?);
        Some(json!({"targets": [target], "labels": {"namespace": pod["metadata"]["namespace"]}}))
    };
    let targets: Vec<Value> = pods["items"].as_array().into_iter().flatten().filter_map(target).collect();
    let prometheus = json!({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [{"job_name": "pods", "static_configs": targets}],
    });
    Ok(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "prometheus"},
        "data": {"prometheus.yml": prometheus.to_string()},
    }))
}

fn becomes(cluster: &Cluster, query: &str, wanted: u64) -> anyhow::Result<()> {
    eventually(Duration::from_secs(20), || {
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = "/api/v1/namespaces/monitoring/services/prometheus:9090/proxy/api/v1/query?query=";
        let answer = cluster.raw(&format!("{path}{escaped}"))?;
        let value = answer["data"]["result"][0]["value"][1].as_str().with_context(|| format!("{query}: {answer}"))?;
        ensure!(value == wanted.to_string(), "{query} is {value}, not {wanted}");
        Ok(())
    })
}
