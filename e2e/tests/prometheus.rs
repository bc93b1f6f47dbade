//! A real Prometheus scrapes the control plane and the proxies, and its answers match the load that was sent.

#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use mesh_e2e::mesh::{Mesh, User, free_port};
use mesh_e2e::process::{Process, eventually};

#[test]
fn prometheus_sees_the_load_that_was_sent() {
    let mesh = Mesh::start(User::Same).unwrap();
    let (client_metrics, server_metrics) = (local_port(), local_port());
    let server_args = ["--version", "v1", "--port", "9080:http", "--metrics", &server_metrics];
    let _reviews = mesh.run("reviews", &server_args, &["testapp", "http", "--version", "v1"]).unwrap();
    mesh.discovered("reviews", "v1").unwrap();
    let prometheus = Prometheus::start(&mesh, &[&mesh.metrics, &client_metrics, &server_metrics]);

    // Stays after its 500 requests, so that its proxy can be scraped.
    let load = [
        "testapp",
        "load",
        "--url",
        "http://reviews:9080/status/200",
        "--requests",
        "500",
        "--connections",
        "2",
        "--linger",
    ];
    let client = mesh.run("web", &["--metrics", &client_metrics], &load).unwrap();
    eventually(Duration::from_secs(30), || {
        ensure!(client.stdout().contains("by_status"), "the load is not over: {}", client.tail());
        Ok(())
    })
    .unwrap();

    prometheus.becomes("count(up == 1)", 3.0);
    for direction in ["inbound", "outbound"] {
        let labels = format!(
            "direction=\"{direction}\",response_code=\"200\",security=\"mutual_tls\",destination_version=\"v1\",source_identity=\"spiffe://mesh.local/ns/default/sa/web\""
        );
        prometheus.becomes(&format!("sum(mesh_requests_total{{{labels}}})"), 500.0);
        prometheus.becomes(&format!("sum(mesh_request_duration_seconds_count{{{labels}}})"), 500.0);
    }
    let p99 = "histogram_quantile(0.99, sum by (le) (mesh_request_duration_seconds_bucket{direction=\"outbound\"}))";
    let p99 = prometheus.query(p99).unwrap();
    assert!(p99 > 0.0 && p99 < 5.0, "p99 is {p99} s");
    prometheus.becomes("sum(mesh_control_xds_streams)", 2.0);
    prometheus.becomes("count(mesh_proxy_certificate_expiry_timestamp_seconds > time())", 2.0);
    // No series has a label whose values a client chooses.
    prometheus.becomes("count({__name__=~\"mesh_.*\", path!=\"\"}) or vector(0)", 0.0);
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
        let config = serde_json::json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
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
        let argument = format!("query={query}");
        let output =
            Command::new("curl").args(["-sS", "-m", "5", "-G", "--data-urlencode", &argument, &self.url]).output()?;
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).context("Prometheus gave no JSON")?;
        let value = answer["data"]["result"][0]["value"][1].as_str();
        Ok(value.with_context(|| format!("{query}: {answer}"))?.parse()?)
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
