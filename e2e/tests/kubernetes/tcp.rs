//! Bytes that are no HTTP go where a TCPRoute says, in exact shares, over mutual TLS.

use std::time::Duration;

use anyhow::ensure;
use mesh_e2e::app::load::Report;
use mesh_e2e::cluster::{Cluster, Namespace, apps};
use mesh_e2e::process::eventually;
use serde_json::{Value, json};

const LOAD: [&str; 6] = ["--url", "tcp://lines:9080", "--connections", "2", "--requests", "100"];

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.meshed("tcp")?;
    let mut service = apps::service("lines");
    service["spec"]["ports"][0]["name"] = "tcp".into();
    let servers = ["v1", "v2"].map(server);
    namespace.apply(&[service, apps::service_account("web"), apps::client("web")])?;
    namespace.apply(&servers)?;
    ["lines-v1", "lines-v2", "web"].iter().try_for_each(|deployment| namespace.rolled_out(deployment))?;
    // Without a route, all of them serve.
    goes(&namespace, |v1, v2| v1 > 0 && v2 > 0)?;
    for (v1, v2) in [(100, 0), (70, 30), (0, 100)] {
        namespace.apply(&[route(v1, v2)])?;
        namespace.condition("tcproute/lines", "Accepted", "True")?;
        namespace.condition("tcproute/lines", "ResolvedRefs", "True")?;
        goes(&namespace, |of_v1, of_v2| (of_v1, of_v2) == (v1.into(), v2.into()))?;
    }
    let metrics = namespace.metrics("lines")?;
    let over_mtls = |line: &&str| {
        line.starts_with("mesh_tcp_connections_opened_total{")
            && line.contains("direction=\"inbound\"")
            && line.contains("security=\"mutual_tls\"")
    };
    let count = |line: &str| line.rsplit(' ').next()?.parse::<u64>().ok();
    let opened: u64 = metrics.lines().filter(over_mtls).filter_map(count).sum();
    ensure!(opened >= 400, "{opened} connections came over mutual TLS: {metrics}");
    Ok(())
}

/// Answers line by line.
fn server(version: &str) -> Value {
    let mut server = apps::server("lines", version);
    let container = &mut server["spec"]["template"]["spec"]["containers"][0];
    container["args"] = json!(["tcp", "--version", version]);
    container["readinessProbe"] = json!({"tcpSocket": {"port": apps::PORT}, "periodSeconds": 1});
    server
}

fn route(v1: u32, v2: u32) -> Value {
    let mut route =
        apps::http_route("lines", json!([{"backendRefs": apps::backends(&[("lines-v1", v1), ("lines-v2", v2)])}]));
    route["kind"] = "TCPRoute".into();
    route
}

/// Every connection is answered, by whom is right.
fn goes(namespace: &Namespace, right: impl Fn(u64, u64) -> bool) -> anyhow::Result<()> {
    eventually(Duration::from_secs(10), || {
        let report: Report = namespace.load("web", &LOAD)?;
        let by = |version: &str| report.by_version.get(version).copied().unwrap_or(0);
        let (v1, v2) = (by("v1"), by("v2"));
        ensure!(report.failed == 0 && v1 + v2 == 100 && right(v1, v2), "{report:?}");
        Ok(())
    })
}
