//! A trace goes through services and holds together, whatever took part in it; and nobody waits for where it is gathered.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use mesh_e2e::app::collector::Line;
use mesh_e2e::mesh::{Mesh, User, free_port};
use mesh_e2e::process::{Process, eventually};

/// All of it is sampled, and goes to this port of `collector`.
fn telemetry(port: u16, protocol: &str) -> String {
    format!(
        "apiVersion: meshctl.dev/v1alpha1\nkind: Telemetry\nmetadata: {{name: default, namespace: mesh-system}}\n\
         spec: {{tracing: {{samplingPercent: 100, backend: {{name: collector, namespace: default, port: {port}, protocol: {protocol}}}}}}}\n"
    )
}

/// A second workload of `reviews`, at whose address nobody listens.
const NOBODY: &str = "
apiVersion: meshctl.dev/v1alpha1
kind: WorkloadEntry
metadata: {name: nobody}
spec: {service: reviews, version: v9, addresses: [127.0.0.1], ports: [{port: 1, servicePort: 9080, protocol: http}]}
";

struct Shop {
    mesh: Mesh,
    collector: Process,
    _parts: Vec<Process>,
}

impl Shop {
    /// `web` calls `reviews`, and `reviews` calls `ratings`.
    fn start(collector: &[&str]) -> Self {
        let mesh = Mesh::start(User::Same).unwrap();
        let ports = ["--version", "v1", "--port", "4317:grpc", "--port", "4318:http"];
        let collector = mesh.run("collector", &ports, &[&["testapp", "collector"], collector].concat()).unwrap();
        let mut parts = Vec::new();
        for (part, protocol) in [("web", "http"), ("reviews", "http"), ("ratings", "grpc")] {
            let port = format!("9080:{protocol}");
            parts.push(mesh.run(part, &["--version", "v1", "--port", &port], &["shop", part]).unwrap());
        }
        let stock = ["shop", "stock"];
        parts.push(mesh.run("stock", &["--version", "v1", "--port", "9070:tcp"], &stock).unwrap());
        for part in ["web", "reviews", "ratings", "stock", "collector"] {
            mesh.discovered(part, "v1").unwrap();
        }
        Self { mesh, collector, _parts: parts }
    }

    /// The spans of each trace so far, without those of requests that are no part of the shop.
    fn traces(&self) -> BTreeMap<String, Vec<Line>> {
        let mut traces: BTreeMap<String, Vec<Line>> = BTreeMap::new();
        let out = self.collector.stdout();
        // The last line may be on its way.
        for line in out.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()) {
            traces.entry(line.trace.clone()).or_default().push(line);
        }
        traces
    }
}

const LOAD: [&str; 4] = ["--url", "http://web:9080/api/reviews/1", "--requests", "40"];

#[test]
fn a_trace_through_three_services_with_a_retry_and_a_fault_holds_together() {
    let shop = Shop::start(&[]);
    shop.mesh.apply(&format!("{NOBODY}---\n{}", telemetry(4317, "OtlpGrpc"))).unwrap();
    shop.mesh
        .meshctl(&["fault", "delay", "ratings", "--percent", "100", "--delay", "20ms", "--for", "5m", "--wait"])
        .unwrap();
    let report = shop.mesh.load("client", &LOAD).unwrap().report().unwrap();
    assert_eq!((report.good(), report.failed), (40, 0), "{report:?}");

    let whole = || -> anyhow::Result<Vec<Vec<Line>>> {
        let traces = shop.traces();
        let whole: Vec<_> =
            traces.into_values().filter(|spans| spans.iter().any(|it| it.service == "client")).collect();
        ensure!(whole.len() == 40, "{} traces of 40 have begun", whole.len());
        let complete = whole.iter().filter(|spans| hops(spans).is_ok());
        ensure!(complete.count() == 40, "{:#?}", whole.iter().find_map(|spans| Some((hops(spans).err()?, spans))));
        Ok(whole)
    };
    let mut result = whole();
    eventually(Duration::from_secs(20), || {
        result = whole();
        ensure!(result.is_ok(), "{:?}", result.as_ref().err());
        Ok(())
    })
    .unwrap();
    let traces = result.unwrap();
    // Half of the first tries went to nobody.
    let retried = traces.iter().filter(|spans| spans.iter().any(|it| attribute(it, "error.type") == "UF")).count();
    assert!((5..=35).contains(&retried), "{retried}");
}

fn attribute<'a>(span: &'a Line, key: &str) -> &'a str {
    span.attributes.get(key).and_then(|it| it.as_str()).unwrap_or_default()
}

/// Follows the trace from the client to `ratings` by the names of spans.
fn hops(spans: &[Line]) -> anyhow::Result<()> {
    let mut roots = spans.iter().filter(|it| it.parent.is_none());
    let root = roots.next().context("no span without a parent")?;
    ensure!(roots.next().is_none(), "two spans without a parent");
    ensure!(root.service == "client" && root.kind == "CLIENT", "{root:?}");
    let mut used = 1;
    let mut caller = root;
    for service in ["web", "reviews", "ratings"] {
        // What the caller tried, if that was not one thing only.
        let mut tries: Vec<&Line> =
            spans.iter().filter(|it| it.service == caller.service && is_child(it, caller)).collect();
        used += tries.len();
        if tries.is_empty() {
            tries.push(caller);
        } else {
            ensure!(tries.len() == 2 && service == "reviews", "{tries:?}");
            let failed = tries.iter().filter(|it| attribute(it, "error.type") == "UF").count();
            ensure!(failed == 1, "{tries:?}");
            ensure!(attribute(caller, "mesh.attempts") == "2", "{caller:?}");
        }
        let called = |it: &&Line| it.service == service && tries.iter().any(|tried| is_child(it, tried));
        let servers: Vec<&Line> = spans.iter().filter(called).collect();
        let [server] = servers.as_slice() else { anyhow::bail!("{} spans of {service}", servers.len()) };
        ensure!(server.kind == "SERVER", "{server:?}");
        ensure!(attribute(server, "http.response.status_code") == "200", "{server:?}");
        let identity = format!("spiffe://mesh.local/ns/default/sa/{}", caller.service);
        ensure!(attribute(server, "mesh.peer.identity") == identity, "{server:?}");
        used += 1;
        if service == "ratings" {
            ensure!(attribute(caller, "mesh.fault") == "delay", "{caller:?}");
            ensure!(attribute(server, "rpc.grpc.status_code") == "0", "{server:?}");
            break;
        }
        let next: Vec<&Line> = spans.iter().filter(|it| is_child(it, server)).collect();
        let [next] = next.as_slice() else { anyhow::bail!("{} calls by {service}", next.len()) };
        ensure!(next.service == service && next.kind == "CLIENT", "{next:?}");
        used += 1;
        caller = next;
    }
    ensure!(used == spans.len(), "{used} of {} spans are of the way", spans.len());
    Ok(())
}

fn is_child(span: &Line, parent: &Line) -> bool {
    span.parent.as_deref() == Some(&parent.id)
}

#[test]
fn spans_go_over_http_and_to_zipkin_too_and_a_scope_may_be_without() {
    let shop = Shop::start(&[]);
    for (protocol, by) in [("OtlpHttp", "http"), ("Zipkin", "zipkin")] {
        shop.mesh.apply(&telemetry(4318, protocol)).unwrap();
        let report = shop.mesh.load("client", &[&LOAD[..3], &["5"]].concat()).unwrap().report().unwrap();
        assert_eq!(report.good(), 5, "{report:?}");
        eventually(Duration::from_secs(20), || {
            let traces = shop.traces();
            let mut of_it = traces.values().filter(|spans| spans.iter().all(|it| it.by == by));
            ensure!(of_it.any(|spans| hops_without_fault(spans)), "no whole trace came by {by}");
            Ok(())
        })
        .unwrap();
    }
    // A narrower scope says no.
    shop.mesh
        .apply(
            "apiVersion: meshctl.dev/v1alpha1\nkind: Telemetry\nmetadata: {name: web}\n\
             spec: {targetRefs: [{kind: Service, name: web}], tracing: {enabled: false}}\n",
        )
        .unwrap();
    let before = shop.traces().len();
    let report = shop.mesh.load("client", &LOAD).unwrap().report().unwrap();
    assert_eq!(report.good(), 40, "{report:?}");
    eventually(Duration::from_secs(20), || {
        let traces = shop.traces();
        ensure!(traces.len() >= before + 40, "{} traces", traces.len());
        let new = traces.values().filter(|spans| !hops_without_fault(spans));
        ensure!(new.count() >= 40, "not yet");
        Ok(())
    })
    .unwrap();
}

/// Every service of the way has its part in it.
fn hops_without_fault(spans: &[Line]) -> bool {
    ["client", "web", "reviews", "ratings"].iter().all(|service| spans.iter().any(|it| it.service == *service))
}

#[test]
fn a_backend_that_hangs_slows_no_request_and_what_is_dropped_is_counted() {
    let shop = Shop::start(&["--hang"]);
    let load = ["--url", "http://web:9080/", "--requests", "4000", "--connections", "4"];
    let calm = shop.mesh.load("client", &load).unwrap().report().unwrap();
    shop.mesh.apply(&telemetry(4317, "OtlpGrpc")).unwrap();
    let metrics = format!("127.0.0.1:{}", free_port().unwrap());
    let app: Vec<&str> = ["testapp", "load", "--linger"].iter().chain(&load).copied().collect();
    let mut client = shop.mesh.run("client", &["--metrics", &metrics], &app).unwrap();
    eventually(Duration::from_secs(60), || {
        ensure!(client.stdout().lines().count() == 1, "the load is not over: {}", client.tail());
        Ok(())
    })
    .unwrap();
    let report: mesh_e2e::app::load::Report = serde_json::from_str(client.stdout().trim()).unwrap();
    assert_eq!((report.good(), report.failed), (4000, 0), "{report:?}");
    // The backend takes 5 s to be given up; nobody waits for a part of that.
    assert!(report.max_ms < calm.max_ms.max(100.0) * 10.0, "{report:?} and before {calm:?}");
    let dropped = || -> anyhow::Result<f64> {
        let output = Command::new("curl").args(["-sS", "-m", "5", &format!("http://{metrics}/metrics")]).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().filter(|line| line.starts_with("mesh_trace_spans_dropped_total{"));
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    };
    eventually(Duration::from_secs(40), || {
        let dropped = dropped()?;
        // What the queue has no room for, beside a batch that is on its way, and then that batch.
        ensure!(dropped >= 4000.0 - 2048.0, "{dropped} are dropped");
        Ok(())
    })
    .unwrap();
    client.end().unwrap();
}
