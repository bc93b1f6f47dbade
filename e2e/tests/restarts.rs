//! Every workload of a service is replaced while clients call it, and no request fails.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use anyhow::ensure;
use mesh_e2e::mesh::{Load, Mesh, User};
use mesh_e2e::process::{Process, eventually};

const REPLICAS: usize = 3;
/// From each of the three clients.
const REQUESTS: u64 = 7000;

struct Service<'a> {
    mesh: &'a Mesh,
    graceful: bool,
    replicas: Vec<Process>,
}

impl<'a> Service<'a> {
    fn start(mesh: &'a Mesh, graceful: bool) -> Self {
        let mut service = Self { mesh, graceful, replicas: Vec::new() };
        for _ in 0..REPLICAS {
            service.add();
        }
        service
    }

    fn add(&mut self) {
        let mut app = vec!["testapp", "http"];
        app.extend(self.graceful.then_some("--graceful"));
        let args = ["--version", "v1", "--port", "9080:http"];
        self.replicas.push(self.mesh.run("reviews", &args, &app).unwrap());
        let wanted = self.replicas.len();
        eventually(Duration::from_secs(30), || {
            let found = self.mesh.workloads("reviews", "v1")?;
            ensure!(found == wanted, "{found} of {wanted} workloads are discovered");
            Ok(())
        })
        .unwrap();
    }

    /// One after the other, as a Deployment is rolled: a new one serves before an old one is told to end.
    fn roll(&mut self) {
        for _ in 0..REPLICAS {
            self.add();
            let mut old = self.replicas.remove(0);
            let status = old.end().unwrap();
            assert!(status.code().is_some(), "{status}: {}", old.tail());
        }
    }
}

fn clients(mesh: &Mesh) -> Vec<(&'static str, Load)> {
    let load = |kind: &'static str, more: &[&str]| {
        let requests = REQUESTS.to_string();
        let mut args = vec!["--url", "http://reviews:9080/", "--connections", "6", "--rate", "400"];
        args.extend(["--linger", "--requests", &requests]);
        args.extend(more);
        (kind, mesh.load("web", &args).unwrap())
    };
    vec![load("HTTP/1.1", &[]), load("HTTP/2", &["--http2"]), load("gRPC", &["--grpc"])]
}

/// Rolls until all has been sent, and looks at every reply.
fn rolling(graceful: bool) {
    let mesh = Mesh::start(User::Same).unwrap();
    let mut service = Service::start(&mesh, graceful);
    let clients = clients(&mesh);
    let began = Instant::now();
    let mut rounds = 0;
    while clients.iter().any(|(_, client)| client.0.stdout().is_empty()) {
        assert!(began.elapsed() < Duration::from_secs(150), "the clients are too slow");
        service.roll();
        rounds += 1;
    }
    for (kind, client) in clients {
        let report = client.stop().unwrap();
        println!("{kind}: {} requests, {rounds} rounds, p99 {:.1} ms", report.requests, report.p99_ms);
        assert_eq!((report.failed, report.closed, report.good()), (0, 0, REQUESTS), "{kind}: {report:?}");
    }
}

#[test]
fn rolling_applications_that_finish_what_they_have_loses_nothing() {
    rolling(true);
}

/// They take whatever they have with them: by then they have nothing.
#[test]
fn rolling_applications_that_end_at_once_loses_nothing() {
    rolling(false);
}
