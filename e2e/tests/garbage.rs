//! Bad input hurts nobody: broken bytes on every port, and broken objects.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use mesh_e2e::app::garbage;
use mesh_e2e::mesh::{Mesh, User};
use mesh_e2e::process::Process;

const LOAD: [&str; 6] = ["--url", "http://reviews:9080/", "--connections", "4", "--rate", "100"];

#[test]
fn broken_bytes_on_every_port_hurt_nobody() {
    let mut mesh = Mesh::start(User::Same).unwrap();
    let mut reviews = mesh.echo("reviews", "v1").unwrap();
    let load = mesh.load("web", &LOAD).unwrap();

    for port in mesh.ports() {
        garbage::tcp(([127, 0, 0, 1], port).into());
    }
    for socket in ["proxy.sock", "control.sock"] {
        garbage::unix(&mesh.data().join(socket));
    }
    // The ports of a proxy, from the application beside it.
    let own = ["127.0.0.1:15001", "127.0.0.1:15006", "127.0.0.1:15021", "127.0.0.1:15053", "127.0.0.1:15090"];
    let app: Vec<&str> = ["testapp", "garbage"].into_iter().chain(own).collect();
    end(mesh.run("thrower", &[], &app).unwrap());
    // A workload's own address, through both proxies.
    let targets: Vec<String> = mesh.addresses("reviews").unwrap().iter().map(|a| format!("{a}:9080")).collect();
    assert!(!targets.is_empty());
    let app: Vec<&str> = ["testapp", "garbage"].into_iter().chain(targets.iter().map(String::as_str)).collect();
    end(mesh.run("thrower", &[], &app).unwrap());

    assert!(mesh.control.as_mut().unwrap().running(), "{}", mesh.control.unwrap().tail());
    assert!(reviews.running(), "{}", reviews.tail());
    let report = load.stop().unwrap();
    assert_eq!((report.failed, report.closed, report.good()), (0, 0, report.requests), "{report:?}");
    for process in [mesh.control.as_ref().unwrap(), &reviews] {
        assert!(!process.stderr().contains("panicked"), "{}", process.tail());
    }
}

fn end(mut process: Process) {
    let status = process.wait(Duration::from_secs(60)).unwrap();
    assert!(status.success(), "{}", process.tail());
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
