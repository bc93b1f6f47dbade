//! Datagrams between workloads: balancing by session, weights, endpoints that go, metrics, and policies by address.

#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use mesh_e2e::mesh::{Mesh, User, free_port};
use mesh_e2e::process::{Process, eventually};

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: UDPRoute
metadata: {name: echo}
spec:
  parentRefs: [{group: '', kind: Service, name: echo}]
  rules: [{backendRefs: [{name: echo-v1, port: 9000, weight: 90}, {name: echo-v2, port: 9000, weight: 10}]}]
";

fn deny(blocks: &str) -> String {
    format!(
        "apiVersion: meshctl.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: closed}}\nspec:\n  targetRefs: [{{kind: Service, name: echo}}]\n  \
         action: DENY\n  rules: [{{from: [{{ipBlocks: [{blocks}]}}], to: [{{ports: [9000]}}]}}]\n"
    )
}

fn serve(mesh: &Mesh, script: &str, version: &str) -> Process {
    let app = ["/usr/bin/python3", script, "serve", "9000", version];
    let server = mesh.run("echo", &["--version", version, "--port", "9000:udp"], &app).unwrap();
    mesh.discovered("echo", version).unwrap_or_else(|error| panic!("{error:#}\n{}", server.tail()));
    server
}

/// What a client that asks says, line by line.
fn ask(mesh: &Mesh, script: &str, host: &str, count: &str) -> Vec<String> {
    let app = ["/usr/bin/python3", script, "ask", host, "9000", count];
    let mut client = mesh.run("web", &[], &app).unwrap();
    let status = client.wait(Duration::from_secs(60)).unwrap();
    assert!(status.success(), "{}", client.tail());
    client.stdout().lines().map(str::to_owned).collect()
}

#[test]
fn datagrams_of_a_session_go_to_one_endpoint() {
    let mesh = Mesh::start(User::Same).unwrap();
    let script = mesh.script("udp.py").unwrap();
    let first = serve(&mesh, &script, "v1");
    let _second = serve(&mesh, &script, "v2");

    // Both versions, and every reply came from the address that was asked.
    let answers = ask(&mesh, &script, "echo", "20");
    assert!(answers.len() == 2 && answers[0].starts_with("v1: ") && answers[1].starts_with("v2: "), "{answers:?}");
    mesh.apply(ROUTE).unwrap();
    mesh.wait().unwrap();
    assert_eq!(ask(&mesh, &script, "echo", "100"), ["v1: 90", "v2: 10"]);
    assert_eq!(ask(&mesh, &script, "echo-v2", "3"), ["v2: 3"]);
    mesh.meshctl(&["route", "set-weight", "echo", "v1=0", "v2=100"]).unwrap();
    mesh.wait().unwrap();
    assert_eq!(ask(&mesh, &script, "echo", "10"), ["v2: 10"]);

    let policy = deny("192.0.2.0/24");
    mesh.apply(&policy).unwrap();
    mesh.wait().unwrap();
    assert_eq!(ask(&mesh, &script, "echo", "2"), ["v2: 2"]);
    policies_hold_for_sessions_that_are_open(&mesh, &script);
    an_endpoint_that_goes_is_left(&mesh, &script, first);
}

fn policies_hold_for_sessions_that_are_open(mesh: &Mesh, script: &str) {
    let client = mesh.run("web", &[], &["/usr/bin/python3", script, "keep", "echo", "9000"]).unwrap();
    let says = |lines: &[&str]| {
        eventually(Duration::from_secs(20), || {
            let stdout = client.stdout();
            let said: Vec<_> = stdout.lines().collect();
            ensure!(said == lines, "{said:?}, not {lines:?}\n{}", client.tail());
            Ok(())
        })
        .unwrap()
    };
    says(&["v2"]);
    mesh.apply(&deny("0.0.0.0/0, '::/0'")).unwrap();
    says(&["v2", "nobody"]);
    mesh.apply(&deny("192.0.2.0/24")).unwrap();
    says(&["v2", "nobody", "v2"]);
}

fn an_endpoint_that_goes_is_left(mesh: &Mesh, script: &str, first: Process) {
    mesh.meshctl(&["route", "set-weight", "echo", "v1=100", "v2=0"]).unwrap();
    mesh.wait().unwrap();
    let metrics = free_port().unwrap();
    let app = ["/usr/bin/python3", script, "keep", "echo", "9000"];
    let client = mesh.run("web", &["--metrics", &format!("127.0.0.1:{metrics}")], &app).unwrap();
    let says = |line: &str| {
        eventually(Duration::from_secs(20), || {
            let stdout = client.stdout();
            ensure!(stdout.lines().last() == Some(line), "{stdout}\n{}", client.tail());
            Ok(())
        })
        .unwrap()
    };
    says("v1");
    let value = |name: &str, labels: &[&str]| -> f64 {
        let url = format!("http://127.0.0.1:{metrics}/metrics");
        let output = Command::new("curl").args(["-sS", "-m", "5", &url]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().filter(|it| it.starts_with(name) && labels.iter().all(|label| it.contains(label)));
        lines.filter_map(|it| it.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    let v1 = ["destination_service=\"echo.default.svc.cluster.local\"", "destination_version=\"v1\""];
    assert_eq!(value("mesh_udp_sessions_active", &[]), 1.0);
    assert_eq!(value("mesh_udp_sessions_total", &v1), 1.0);
    let sent = value("mesh_udp_datagrams_total", &[&v1[..], &["direction=\"to_upstream\""]].concat());
    let back = value("mesh_udp_datagrams_total", &[&v1[..], &["direction=\"to_downstream\""]].concat());
    assert!(sent >= 1.0 && back >= 1.0, "{sent} there, {back} back");
    assert!(value("mesh_udp_bytes_total", &v1) > sent + back);

    // The service itself has both; the session stays with the first for as long as that is there, however much it sends.
    mesh.meshctl(&["delete", "udproute", "echo"]).unwrap();
    mesh.wait().unwrap();
    let all = || value("mesh_udp_datagrams_total", &["direction=\"to_upstream\""]);
    let until_then = all();
    eventually(Duration::from_secs(20), || {
        ensure!(all() > until_then + 10.0, "{} datagrams after {until_then}", all());
        Ok(())
    })
    .unwrap();
    let answered = client.stdout();
    drop(first);
    says("v2");
    // The same socket of the client, and no other session of it.
    assert!(answered.lines().all(|line| line == "v1" || line == "nobody"), "{answered}");
    assert_eq!(value("mesh_udp_sessions_active", &[]), 1.0);
}
