//! Bad input hurts nobody: broken bytes on every port, and broken objects.

#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use mesh_e2e::app::garbage;
use mesh_e2e::app::load::Report;
use mesh_e2e::as_root_and_without;
use mesh_e2e::mesh::{Mesh, User, free_port};
use mesh_e2e::process::eventually;

as_root_and_without!(broken_bytes_on_every_port_hurt_nobody);

const LOAD: [&str; 6] = ["--url", "http://reviews:9080/", "--connections", "4", "--rate", "100"];

fn broken_bytes_on_every_port_hurt_nobody(user: User) {
    let mut mesh = Mesh::start(user).unwrap();
    let mut reviews = mesh.echo("reviews", "v1").unwrap();
    let load = mesh.load("web", &LOAD).unwrap();

    for port in mesh.ports() {
        garbage::tcp(([127, 0, 0, 1], port).into()).unwrap();
    }
    let [xds, ..] = mesh.ports();
    let frames = mesh.script("tls_frames.py").unwrap();
    let output = Command::new("python3").args([&frames, &xds.to_string()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for socket in ["proxy.sock", "control.sock"] {
        garbage::unix(&mesh.data().join(socket)).unwrap();
    }
    // The ports of a proxy, from the application beside it, and a workload's own address, through both proxies. What was
    // so treated finds a service by its name and calls it.
    let own = "127.0.0.1:15001 127.0.0.1:15006 127.0.0.1:15021 127.0.0.1:15053";
    let targets: Vec<String> = mesh.addresses("reviews").unwrap().iter().map(|a| format!("{a}:9080")).collect();
    assert!(!targets.is_empty());
    let program = mesh.program("testapp").display().to_string();
    let then = format!(
        "{program} garbage {own} {} && exec {program} load --url http://reviews:9080/ --requests 20 --linger",
        targets.join(" ")
    );
    let metrics = format!("127.0.0.1:{}", free_port().unwrap());
    let args = ["--workload", "thrower", "--metrics", &metrics];
    let mut thrower = mesh.run("thrower", &args, &["/bin/sh", "-c", &then]).unwrap();
    eventually(Duration::from_secs(90), || {
        ensure!(thrower.running(), "it ended");
        ensure!(thrower.stdout().contains("by_status"), "no report yet");
        Ok(())
    })
    .unwrap_or_else(|error| panic!("{error:#}: {}", thrower.tail()));
    let last = thrower.stdout();
    let good: Report = serde_json::from_str(last.lines().last().unwrap()).unwrap();
    assert_eq!((good.good(), good.failed), (20, 0), "{good:?}");
    garbage::tcp(metrics.parse().unwrap()).unwrap();
    let scraped = Command::new("curl").args(["-sS", "-m", "5", &format!("http://{metrics}/metrics")]).output().unwrap();
    assert!(String::from_utf8_lossy(&scraped.stdout).contains("mesh_proxy_dns_queries_total"), "{scraped:?}");
    mesh.meshctl(&["check"]).unwrap();

    assert!(mesh.control.as_mut().unwrap().running(), "{}", mesh.control.unwrap().tail());
    assert!(reviews.running(), "{}", reviews.tail());
    let report = load.stop().unwrap();
    assert_eq!((report.failed, report.closed, report.good()), (0, 0, report.requests), "{report:?}");
    for process in [mesh.control.as_ref().unwrap(), &reviews, &thrower] {
        assert!(!process.stderr().contains("panicked"), "{}", process.tail());
    }
    let logs = mesh.proxy_logs("").unwrap();
    assert!(logs.contains("ready") && !logs.contains("panicked"), "{logs}");
}

#[test]
fn broken_objects_are_refused_with_place_and_reason() {
    let mesh = Mesh::start(User::Same).unwrap();
    let route = |spec: &str| {
        format!("apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: reviews\nspec:\n{spec}")
    };
    let good = route(
        "  parentRefs: [{group: \"\", kind: Service, name: reviews}]\n  rules:\n  - backendRefs: [{name: reviews-v1, port: 9080}]\n",
    );
    let unknown = route(
        "  parentRefs: [{group: \"\", kind: Service, name: reviews}]\n  rules:\n  - backendRef: [{name: reviews-v1}]\n",
    );
    let wrong = route(
        "  parentRefs: [{group: \"\", kind: Service, name: reviews}]\n  rules:\n  - backendRefs: [{name: reviews-v1, port: many}]\n",
    );
    for (name, text, says) in [
        ("malformed", "kind: [".to_owned(), vec!["malformed.yaml:"]),
        ("unknown", unknown.clone(), vec!["unknown.yaml:8", "backendRef", "backendRefs"]),
        ("wrong", wrong, vec!["wrong.yaml:8", "port"]),
        ("nokind", "apiVersion: v1\nmetadata: {name: x}\n".to_owned(), vec!["nokind.yaml:", "kind"]),
        // One bad object, and the good one before it is not taken either.
        ("both", format!("{good}---\n{unknown}"), vec!["both.yaml:", "backendRef"]),
    ] {
        let file = mesh.logs().join(format!("{name}.yaml"));
        std::fs::write(&file, text).unwrap();
        let output = mesh.meshctl_output(&["apply", "-f", &file.to_string_lossy()]).unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{name} was taken");
        for part in says {
            assert!(error.contains(part), "{name}: {part:?} is not in: {error}");
        }
        assert!(!mesh.meshctl(&["get", "httproutes", "-o", "name"]).unwrap().contains("reviews"), "{name}");
    }
}
