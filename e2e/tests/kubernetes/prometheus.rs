//! A real Prometheus in the cluster scrapes what the annotations name that the injection sets, and shows the shares of a
//! canary, and the faults of each kind with whom they hit, to the request.

use std::time::Duration;

use anyhow::{Context, ensure};
use mesh_e2e::app::load::Report;
use mesh_e2e::cluster::{Cluster, Namespace, apps};
use mesh_e2e::process::eventually;
use serde_json::{Value, json};

const MANIFEST: &str = include_str!("../../kubernetes/manifests/prometheus.yaml");
const LOAD: [&str; 4] = ["--url", "http://reviews:9080/", "--requests", "1000"];

/// One kind of fault at a time, for `web` alone.
struct Fault {
    kind: &'static str,
    args: &'static [&'static str],
    /// How many of a thousand requests were hit, as the one who sends them sees it.
    hits: fn(&Report) -> u64,
    /// How many of them were answered as if nothing had been.
    good: u64,
}

const FAULTS: [Fault; 3] = [
    // Which is a gRPC status for gRPC.
    Fault { kind: "abort", args: &["--status", "418"], hits: |r| status(r, 418) + r.failed, good: 800 },
    Fault { kind: "delay", args: &["--delay", "2s"], hits: |r| r.slow, good: 1000 },
    Fault { kind: "reset", args: &[], hits: |r| r.failed, good: 800 },
];
/// Of a thousand.
const HIT: u64 = 200;

/// HTTP/1.1, and HTTP/2 with statuses of its own.
const PROTOCOLS: [&[&str]; 2] = [&[], &["--grpc"]];

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let (namespace, monitoring) = (cluster.meshed("metrics")?, cluster.unmeshed("monitoring")?);
    namespace.shop(&["web", "other"])?;
    monitoring.apply(&[config(cluster)?])?;
    cluster.apply(MANIFEST)?;
    monitoring.rolled_out("prometheus")?;
    shares(&namespace)?;
    faults(&namespace)?;
    // Both replicas of the control plane, as their own annotations say.
    becomes(cluster, "count(up{namespace=\"mesh-system\"} == 1)", 2)
}

fn shares(namespace: &Namespace) -> anyhow::Result<()> {
    let weights = apps::backends(&[("reviews-v1", 7), ("reviews-v2", 3)]);
    namespace.apply(&[apps::http_route("reviews", json!([{"backendRefs": weights}]))])?;
    // What was sent before the weights were in force is counted as well.
    let (mut v1, mut v2) = (0, 0);
    eventually(Duration::from_secs(10), || {
        let report = namespace.load("web", &[&LOAD[..], &["--connections", "4"]].concat())?;
        let share = |version: &str| report.by_version.get(version).copied().unwrap_or(0);
        (v1, v2) = (v1 + share("v1"), v2 + share("v2"));
        ensure!((share("v1"), share("v2")) == (700, 300), "{report:?}");
        Ok(())
    })?;
    for direction in ["inbound", "outbound"] {
        for (version, sent) in [("v1", v1), ("v2", v2)] {
            let labels = format!(
                "direction=\"{direction}\",destination_version=\"{version}\",response_code=\"200\",security=\"mutual_tls\""
            );
            becomes(namespace.cluster, &requests("web", &labels), sent)?;
        }
    }
    Ok(())
}

/// Each is counted where it happens, at the caller that it was meant for, to the request; and at nobody else.
fn faults(namespace: &Namespace) -> anyhow::Result<()> {
    let cluster = namespace.cluster;
    let meshctl = |args: &[&str]| cluster.meshctl(&[&["-n", &namespace.name], args].concat());
    for fault in &FAULTS {
        let order = ["fault", fault.kind, "reviews", "--percent", "20", "--from", "web", "--wait"];
        meshctl(&[&order[..], fault.args].concat())?;
        for protocol in PROTOCOLS {
            let kind = fault.kind;
            let load = [&LOAD[..], &["--connections", "100", "--slow", "1900"], protocol].concat();
            let report = namespace.load("web", &load)?;
            let seen = ((fault.hits)(&report), status(&report, 200));
            ensure!(seen == (HIT, fault.good), "{kind} {protocol:?}: {report:?}");
            let spared = namespace.load("other", &load)?;
            let seen = (status(&spared, 200), spared.failed, spared.slow);
            ensure!(seen == (1000, 0, 0), "{kind} {protocol:?} hit another caller: {spared:?}");
        }
        meshctl(&["fault", "clear", "reviews", "--wait"])?;
    }
    let loads = PROTOCOLS.len() as u64;
    // The proxy that injects is the caller's.
    let injected = |pods: &str, labels: &str| {
        format!("sum(mesh_faults_injected_total{{namespace=\"metrics\",pod{pods}{labels}}}) or vector(0)")
    };
    for fault in &FAULTS {
        let of_web = injected("=~\"web-.*\"", &format!(",fault=\"{}\"", fault.kind));
        becomes(cluster, &of_web, HIT * loads)?;
    }
    // An abort and a reset end a request, with a status, with that of gRPC, and with none.
    for (labels, wanted) in [
        ("response_code=\"418\",grpc_status=\"-\"", HIT),
        ("response_code=\"200\",grpc_status!=\"-\"", HIT),
        ("response_code=\"0\"", HIT * loads),
    ] {
        let labels = format!("direction=\"outbound\",response_flags=\"FI\",{labels}");
        becomes(cluster, &requests("web", &labels), wanted)?;
    }
    becomes(cluster, &requests("web", "response_flags=\"FI\""), 2 * HIT * loads)?;
    becomes(cluster, &slow("web"), HIT * loads)?;

    // All that the other caller has sent is there, and nothing was done to it.
    let all = FAULTS.len() as u64 * loads * 1000;
    for direction in ["inbound", "outbound"] {
        let good = format!("direction=\"{direction}\",response_code=\"200\",response_flags=\"-\"");
        for labels in [&good, &format!("direction=\"{direction}\"")] {
            becomes(cluster, &requests("other", labels), all)?;
        }
    }
    becomes(cluster, &injected("!~\"web-.*\"", ""), 0)?;
    becomes(cluster, &slow("other"), 0)
}

/// Requests by a caller to anybody.
fn requests(caller: &str, labels: &str) -> String {
    format!("sum(mesh_requests_total{{{},{labels}}})", of(caller))
}

/// Of these, those that took longer than the callers wait for who is not delayed.
fn slow(caller: &str) -> String {
    let labels = format!("{},direction=\"outbound\"", of(caller));
    let metric = "mesh_request_duration_seconds";
    format!("sum({metric}_count{{{labels}}}) - sum({metric}_bucket{{{labels},le=\"1.5\"}})")
}

fn of(caller: &str) -> String {
    format!("namespace=\"metrics\",source_identity=\"spiffe://mesh.local/ns/metrics/sa/{caller}\"")
}

fn status(report: &Report, status: u16) -> u64 {
    report.by_status.get(&status).copied().unwrap_or(0)
}

/// The targets that Kubernetes service discovery finds by the annotations. Distributions build Prometheus without it.
fn config(cluster: &Cluster) -> anyhow::Result<Value> {
    let pods = cluster.get(&["pods", "--all-namespaces"])?;
    let target = |pod: &Value| {
        let annotation = |name: &str| pod["metadata"]["annotations"][format!("prometheus.io/{name}")].as_str();
        (annotation("scrape")? == "true").then_some(())?;
        let target = format!("{}:{}", pod["status"]["podIP"].as_str()?, annotation("port")?);
        let labels = json!({"namespace": pod["metadata"]["namespace"], "pod": pod["metadata"]["name"]});
        Some(json!({"targets": [target], "labels": labels}))
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
