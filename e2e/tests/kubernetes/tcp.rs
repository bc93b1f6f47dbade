//! Bytes that are no HTTP go where a TCPRoute says, in exact shares, over mutual TLS; TLS of the applications' own goes by its
//! server name, where TLSRoutes say.

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
    let servers = ["v1", "v2"].map(|version| server("lines", "tcp", version));
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
    by_server_name(&namespace)
}

fn by_server_name(namespace: &Namespace) -> anyhow::Result<()> {
    let mut service = apps::service("secrets");
    service["spec"]["ports"][0]["name"] = "tls".into();
    namespace.apply(&[service])?;
    namespace.apply(&["v1", "v2"].map(|version| server("secrets", "tls", version)))?;
    ["secrets-v1", "secrets-v2"].iter().try_for_each(|deployment| namespace.rolled_out(deployment))?;
    namespace.apply(&[tls_route("one", "one.example.com", "v1"), tls_route("others", "*.example.com", "v2")])?;
    for route in ["tlsroute/one", "tlsroute/others"] {
        namespace.condition(route, "Accepted", "True")?;
        namespace.condition(route, "ResolvedRefs", "True")?;
    }
    let expected = [
        "one.example.com: v1 one.example.com",
        "two.example.com: v2 two.example.com",
        "a.b.example.com: v2 a.b.example.com",
        "example.net: refused",
    ];
    eventually(Duration::from_secs(10), || {
        let names = ["one.example.com", "two.example.com", "a.b.example.com", "example.net"];
        let said = namespace.exec("web", &[&["ask-tls", "secrets:9080"], &names[..]].concat())?;
        ensure!(said.lines().eq(expected), "{said}, not {expected:?}");
        Ok(())
    })
}

fn server(name: &str, command: &str, version: &str) -> Value {
    let mut server = apps::server(name, version);
    let container = &mut server["spec"]["template"]["spec"]["containers"][0];
    container["args"] = json!([command, "--version", version]);
    container["readinessProbe"] = json!({"tcpSocket": {"port": apps::PORT}, "periodSeconds": 1});
    server
}

fn route(v1: u32, v2: u32) -> Value {
    let mut route =
        apps::http_route("lines", json!([{"backendRefs": apps::backends(&[("lines-v1", v1), ("lines-v2", v2)])}]));
    route["kind"] = "TCPRoute".into();
    route
}

fn tls_route(name: &str, host: &str, version: &str) -> Value {
    let backends = apps::backends(&[(&format!("secrets-{version}"), 1)]);
    let mut route = apps::http_route("secrets", json!([{"backendRefs": backends}]));
    (route["kind"], route["metadata"]["name"], route["spec"]["hostnames"]) =
        ("TLSRoute".into(), name.into(), json!([host]));
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
