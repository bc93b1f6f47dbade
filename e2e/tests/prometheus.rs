//! A real Prometheus scrapes the control plane and the proxies, and its answers match the load that was sent.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use mesh_common::metrics;
use mesh_e2e::dashboards;
use mesh_e2e::mesh::{Mesh, User, free_port};
use mesh_e2e::process::{Process, eventually};

#[test]
fn prometheus_sees_the_load_that_was_sent() {
    let mesh = Mesh::start(User::Same).unwrap();
    let (client_metrics, server_metrics, stock_metrics) = (local_port(), local_port(), local_port());
    let server_args = ["--version", "v1", "--port", "9080:http", "--metrics", &server_metrics];
    let _reviews = mesh.run("reviews", &server_args, &["testapp", "http", "--version", "v1"]).unwrap();
    mesh.discovered("reviews", "v1").unwrap();
    let stock_args = ["--version", "v1", "--port", "7000:tcp", "--metrics", &stock_metrics];
    let stock_app = ["testapp", "tcp", "--listen", "0.0.0.0:7000", "--version", "v1"];
    let _stock = mesh.run("stock", &stock_args, &stock_app).unwrap();
    mesh.discovered("stock", "v1").unwrap();
    mesh.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: empty}\nspec: {ports: [{port: 9080, appProtocol: http}]}\n",
    )
    .unwrap();
    let targets = [&mesh.metrics, &client_metrics, &server_metrics, &stock_metrics].map(String::as_str);
    let prometheus = Prometheus::start(&mesh, &targets);

    // Requests that are answered, that the application fails, that nobody is there for, and byte streams; then it stays, so
    // that its proxy can be scraped.
    let load = format!("{} load --requests", mesh.program("testapp").display());
    let load = format!(
        "{load} 50 --url tcp://stock:7000 && {load} 40 --url http://reviews:9080/status/500 && \
         {load} 30 --url http://empty:9080/ && exec {load} 500 --url http://reviews:9080/status/200 --connections 2 --linger"
    );
    let args = ["--workload", "web-a", "--metrics", &client_metrics, "--access-log", "json"];
    let client = mesh.run("web", &args, &["/bin/sh", "-c", &load]).unwrap();
    eventually(Duration::from_secs(30), || {
        ensure!(client.stdout().lines().count() == 4, "the load is not over: {}", client.tail());
        Ok(())
    })
    .unwrap();

    prometheus.becomes("count(up == 1)", 4.0);
    for direction in ["inbound", "outbound"] {
        let labels = format!(
            "direction=\"{direction}\",response_code=\"200\",security=\"mutual_tls\",destination_version=\"v1\",source_identity=\"spiffe://mesh.local/ns/default/sa/web\""
        );
        prometheus.becomes(&format!("sum(mesh_requests_total{{{labels}}})"), 500.0);
        prometheus.becomes(&format!("sum(mesh_request_duration_seconds_count{{{labels}}})"), 500.0);
    }
    let count = |metric: &str, labels: &str, want: f64| prometheus.becomes(&format!("sum({metric}{{{labels}}})"), want);
    for direction in ["inbound", "outbound"] {
        let failed = format!("direction=\"{direction}\",response_code=\"500\",response_flags=\"-\"");
        count("mesh_requests_total", &failed, 40.0);
        let stock = format!(
            "direction=\"{direction}\",security=\"mutual_tls\",destination_service=\"stock.default.svc.cluster.local\""
        );
        count("mesh_tcp_connections_opened_total", &stock, 50.0);
        count("mesh_tcp_connections_closed_total", &format!("{stock},response_flags=\"-\""), 50.0);
        // `hello` there and `v1 hello` back, each with the end of its line.
        count("mesh_tcp_received_bytes_total", &stock, 50.0 * 6.0);
        count("mesh_tcp_sent_bytes_total", &stock, 50.0 * 9.0);
    }
    count("mesh_requests_total", "direction=\"outbound\",response_code=\"503\",response_flags=\"UH\"", 30.0);
    count("mesh_requests_total", "direction=\"outbound\"", 570.0);
    let log = mesh.proxy_logs("web-a").unwrap();
    let entries: Vec<serde_json::Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let logged = |code: u16, flags: &str| {
        entries.iter().filter(|it| it["response_code"] == code && it["response_flags"] == flags).count()
    };
    assert_eq!((logged(200, "-"), logged(500, "-"), logged(503, "UH")), (500, 40, 30), "{log}");

    let p99 = "histogram_quantile(0.99, sum by (le) (mesh_request_duration_seconds_bucket{direction=\"outbound\"}))";
    let p99 = prometheus.query(p99).unwrap();
    assert!(p99 > 0.0 && p99 < 5.0, "p99 is {p99} s");
    prometheus.becomes("sum(mesh_control_xds_streams)", 3.0);
    prometheus.becomes("count(mesh_proxy_certificate_expiry_timestamp_seconds > time())", 3.0);
    prometheus.becomes("mesh_control_certificates_issued_total", 3.0);
    prometheus.becomes("mesh_control_workloads", 3.0);
    prometheus.becomes("sum(mesh_control_xds_nacks_total) or vector(0)", 0.0);
    prometheus.becomes("count(mesh_control_xds_pushes_total{type=~\"LDS|RDS|CDS|EDS\"} > 0)", 4.0);
    // No series has a label whose values a client chooses.
    prometheus.becomes("count({__name__=~\"mesh_.*\", path!=\"\"}) or vector(0)", 0.0);
    prometheus.becomes("sum by (state) (mesh_control_proxies{state=\"synced\"})", 3.0);
    prometheus.becomes("max(mesh_control_oldest_push_seconds)", 0.0);
    // Somebody who speaks no TLS knocks at the door of the proxies.
    let mut stranger = std::net::TcpStream::connect(("127.0.0.1", mesh.ports()[0])).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    prometheus.becomes("sum(mesh_control_connections_refused_total)", 1.0);
    only_known_metrics(&prometheus);
    every_panel_has_series(&prometheus);
    every_rule_works(&prometheus);
}

/// The reference, from which the names come, has every metric that is there.
fn only_known_metrics(prometheus: &Prometheus) {
    let known: Vec<&str> = metrics::of_proxy().chain(metrics::of_control()).map(|metric| metric.name).collect();
    let found = prometheus.ask("group by (__name__) ({__name__=~\"mesh_.*|process_.*\"})").unwrap();
    assert!(found.len() > 30, "{found:?}");
    for series in found {
        let name = series["metric"]["__name__"].as_str().unwrap();
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|it| name.strip_suffix(it)).unwrap_or(name);
        assert!(known.contains(&name) || known.contains(&base), "{name} is not in mesh-common/src/metrics.rs");
    }
}

/// Panels that stay empty as long as nothing of their kind has happened.
const EMPTY: [&str; 1] = ["Rejections by type"];

fn every_panel_has_series(prometheus: &Prometheus) {
    for dashboard in dashboards::all().unwrap() {
        for panel in dashboard.panels.iter().filter(|panel| !EMPTY.contains(&panel.title.as_str())) {
            for query in panel.queries_for_all() {
                let check = || {
                    let found = prometheus.ask(&query)?;
                    ensure!(!found.is_empty(), "{}: {}: {query} gives no series", dashboard.name, panel.title);
                    Ok(())
                };
                eventually(Duration::from_secs(10), check).unwrap();
            }
        }
    }
}

/// Each was evaluated without an error, and those about errors see the ones that the load made.
fn every_rule_works(prometheus: &Prometheus) {
    let url = prometheus.url.replace("/query", "/rules");
    let check = || {
        let output = Command::new("curl").args(["-sS", "-m", "5", &url]).output()?;
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).context("Prometheus gave no JSON")?;
        let groups = answer["data"]["groups"].as_array().context("there are no groups")?;
        let rules: Vec<_> = groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten()).collect();
        ensure!(rules.len() == 20, "{} rules are there", rules.len());
        for rule in rules {
            ensure!(rule["health"] == "ok", "{rule}");
        }
        let empty = "mesh:service_failures:ratio_rate5m{destination_service=\"empty.default.svc.cluster.local\"}";
        ensure!(!prometheus.ask(empty)?.is_empty(), "{empty} is not recorded");
        Ok(())
    };
    eventually(Duration::from_secs(90), check).unwrap();
}

fn local_port() -> String {
    format!("127.0.0.1:{}", free_port().unwrap())
}

struct Prometheus {
    url: String,
    process: Process,
}

impl Prometheus {
    fn start(mesh: &Mesh, targets: &[&str]) -> Self {
        let address = local_port();
        let file = mesh.logs().join("prometheus.yml");
        let rules = ["recording.yaml", "alerting.yaml"].map(|name| dashboards::rules().join(name));
        let config = serde_json::json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "rule_files": rules,
            "scrape_configs": [{"job_name": "mesh", "static_configs": [{"targets": targets}]}],
        });
        std::fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", mesh.logs().join("prometheus").display()));
        command.arg(format!("--web.listen-address={address}"));
        let process = Process::start("prometheus", command, &mesh.logs()).unwrap();
        Self { url: format!("http://{address}/api/v1/query"), process }
    }

    fn query(&self, query: &str) -> anyhow::Result<f64> {
        let series = self.ask(query)?;
        let value = series.first().and_then(|series| series["value"][1].as_str());
        Ok(value.with_context(|| format!("{query} gives no series"))?.parse()?)
    }

    fn ask(&self, query: &str) -> anyhow::Result<Vec<serde_json::Value>> {
        let argument = format!("query={query}");
        let output =
            Command::new("curl").args(["-sS", "-m", "5", "-G", "--data-urlencode", &argument, &self.url]).output()?;
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).context("Prometheus gave no JSON")?;
        Ok(answer["data"]["result"].as_array().with_context(|| format!("{query}: {answer}"))?.clone())
    }

    fn becomes(&self, query: &str, want: f64) {
        let check = || {
            let got = self.query(query)?;
            ensure!(got == want, "{query} is {got}, not {want}");
            Ok(())
        };
        eventually(Duration::from_secs(20), check).unwrap_or_else(|error| panic!("{error:#}\n{}", self.process.tail()));
    }
}
