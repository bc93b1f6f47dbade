//! Shares are exact, and changing them costs nobody a request or a connection.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use mesh_e2e::mesh::{Mesh, User};

#[test]
fn shares_are_exact_as_root() {
    shares_are_exact(User::Same);
}

#[test]
fn shares_are_exact_without_root() {
    shares_are_exact(User::Unprivileged);
}

fn shares_are_exact(user: User) {
    let mesh = Mesh::start(user).unwrap();
    let _v1 = mesh.echo("reviews", "v1").unwrap();
    let _v2 = mesh.echo("reviews", "v2").unwrap();
    for (v1, v2) in [(100, 0), (90, 10), (50, 50), (0, 100)] {
        mesh.meshctl(&["route", "set-weight", "reviews", &format!("v1={v1}"), &format!("v2={v2}")]).unwrap();
        mesh.wait().unwrap();
        let load =
            mesh.load("web", &["--url", "http://reviews:9080/", "--connections", "4", "--requests", "1000"]).unwrap();
        let report = load.report().unwrap();
        let share = |version: &str| report.by_version.get(version).copied().unwrap_or(0);
        assert_eq!((share("v1"), share("v2")), (v1 * 10, v2 * 10), "{report:?}");
        assert_eq!((report.failed, report.closed, report.good()), (0, 0, 1000), "{report:?}");
    }
}

#[test]
fn a_thousand_weight_changes_cost_nothing() {
    let mesh = Mesh::start(User::Same).unwrap();
    let _v1 = mesh.echo("reviews", "v1").unwrap();
    let _v2 = mesh.echo("reviews", "v2").unwrap();
    mesh.meshctl(&["route", "set-weight", "reviews", "v1=50", "v2=50"]).unwrap();
    mesh.wait().unwrap();
    let load = mesh.load("web", &["--url", "http://reviews:9080/", "--connections", "8", "--rate", "800"]).unwrap();
    mesh.connected("web").unwrap();
    let proxy = load.0.child("mesh-proxy").unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let before = connections(proxy);
    for i in 0..1000 {
        let v1 = (i * 37) % 101;
        mesh.meshctl(&["route", "set-weight", "reviews", &format!("v1={v1}"), &format!("v2={}", 100 - v1)]).unwrap();
    }
    mesh.wait().unwrap();
    // Those of the caller's proxy to both versions.
    assert!(before.len() >= 2, "{before:?}");
    assert_eq!(connections(proxy), before);
    let report = load.stop().unwrap();
    assert_eq!((report.failed, report.closed, report.opened), (0, 0, 8), "{report:?}");
    assert_eq!(report.good(), report.requests, "{report:?}");
    assert!(report.requests > 1000, "{report:?}");
}

/// Open connections to port 9080 of workloads in a process's network namespace: both ends, which no other connection has had before.
fn connections(pid: u32) -> BTreeSet<String> {
    const ESTABLISHED: &str = "01";
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let columns = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = columns.filter(|column| column[2].ends_with(&format!(":{:04X}", 9080)) && column[3] == ESTABLISHED);
    ours.map(|column| format!("{} {}", column[1], column[2])).collect()
}
