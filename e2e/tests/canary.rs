//! Shares are exact, and changing them costs nobody a request or a connection.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use mesh_e2e::as_root_and_without;
use mesh_e2e::mesh::{Load, Mesh, User, free_port};
use mesh_e2e::process::eventually;

as_root_and_without!(shares_are_exact, a_thousand_weight_changes_cost_nothing);

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
fn shares_stay_exact_while_other_things_change() {
    let mesh = Mesh::start(User::Same).unwrap();
    let _v1 = mesh.echo("reviews", "v1").unwrap();
    let _v2 = mesh.echo("reviews", "v2").unwrap();
    mesh.meshctl(&["route", "set-weight", "reviews", "v1=99", "v2=1"]).unwrap();
    mesh.wait().unwrap();
    let url = ["--url", "http://reviews:9080/", "--connections", "4", "--requests", "1000", "--rate", "250"];
    let load = mesh.load("web", &url).unwrap();
    load.flowing().unwrap();
    for i in 1..=20 {
        mesh.apply(&format!(
            "apiVersion: meshctl.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: reviews}}\nspec:\n  targetRefs: [{{kind: Service, name: reviews}}]\n  \
             timeouts: {{request: {i}0s}}\n"
        ))
        .unwrap();
        mesh.wait().unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    let report = load.report().unwrap();
    let share = |version: &str| report.by_version.get(version).copied().unwrap_or(0);
    assert_eq!((share("v1"), share("v2"), report.failed), (990, 10, 0), "{report:?}");
}

fn a_thousand_weight_changes_cost_nothing(user: User) {
    let mesh = Mesh::start(user).unwrap();
    let _v1 = mesh.echo("reviews", "v1").unwrap();
    let _v2 = mesh.echo("reviews", "v2").unwrap();
    mesh.meshctl(&["route", "set-weight", "reviews", "v1=50", "v2=50"]).unwrap();
    mesh.wait().unwrap();
    let metrics = format!("127.0.0.1:{}", free_port().unwrap());
    let app = ["testapp", "load", "--url", "http://reviews:9080/", "--connections", "8", "--rate", "800"];
    let load = Load(mesh.run("web", &["--metrics", &metrics], &app).unwrap());
    load.flowing().unwrap();
    let sent = responses(&metrics, "type=\"RDS\"").unwrap();
    let proxy = load.0.child("mesh-proxy").unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let before = connections(proxy);
    for i in 0..1000 {
        let v1 = (i * 37) % 101;
        mesh.meshctl(&["route", "set-weight", "reviews", &format!("v1={v1}"), &format!("v2={}", 100 - v1)]).unwrap();
    }
    mesh.wait().unwrap();
    // Those that follow each other fast are sent as one, so not all of them came by themselves; but many did.
    let sent = responses(&metrics, "type=\"RDS\"").unwrap() - sent;
    assert!(sent >= 100, "{sent} changes have reached the caller's proxy");
    // Those of the caller's proxy to both versions.
    assert!(before.len() >= 2, "{before:?}");
    assert_eq!(connections(proxy), before);
    let report = load.stop().unwrap();
    assert_eq!((report.failed, report.closed, report.opened), (0, 0, 8), "{report:?}");
    assert_eq!(report.good(), report.requests, "{report:?}");
    assert!(report.requests > 1000, "{report:?}");
}

#[test]
fn a_change_is_sent_to_no_proxy_that_it_does_not_concern() {
    const CHANGES: u64 = 5;
    let mesh = Mesh::start(User::Same).unwrap();
    let _servers = [("reviews", "v1"), ("reviews", "v2"), ("ratings", "v1")].map(|(s, v)| mesh.echo(s, v).unwrap());
    let caller = |account: &str, service: &str| {
        let metrics = format!("127.0.0.1:{}", free_port().unwrap());
        let url = format!("http://{service}:9080/");
        let app = ["testapp", "load", "--url", &url, "--rate", "20"];
        (mesh.run(account, &["--metrics", &metrics], &app).unwrap(), metrics)
    };
    let ((_web, web), (_other, other)) = (caller("web", "reviews"), caller("other", "ratings"));
    // Each has asked for what its application uses.
    for metrics in [&web, &other] {
        eventually(Duration::from_secs(20), || {
            let first = responses(metrics, "type=\"RDS\"")?;
            let all = responses(metrics, "")?;
            std::thread::sleep(Duration::from_millis(500));
            ensure!(first > 0 && responses(metrics, "")? == all, "{metrics} is still being configured");
            Ok(())
        })
        .unwrap();
    }
    let before = [&web, &other].map(|metrics| responses(metrics, "").unwrap());
    for i in 1..=CHANGES {
        mesh.meshctl(&["route", "set-weight", "reviews", &format!("v1={i}"), "v2=10"]).unwrap();
        mesh.wait().unwrap();
    }
    let after = [&web, &other].map(|metrics| responses(metrics, "").unwrap());
    assert!(after[0] >= before[0] + CHANGES, "the caller of reviews: {before:?}, {after:?}");
    assert_eq!(after[1], before[1], "the caller of ratings: {before:?}, {after:?}");
}

/// How many discovery responses with this label a proxy has got.
fn responses(metrics: &str, label: &str) -> anyhow::Result<u64> {
    let output = Command::new("curl").args(["-sS", "-m", "5", &format!("http://{metrics}/metrics")]).output()?;
    ensure!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout)?;
    let of_it = text.lines().filter(|l| l.starts_with("mesh_xds_responses_total{") && l.contains(label));
    Ok(of_it.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
}

/// Open connections to port 9080 of workloads in a process's network namespace: both ends, which no other connection has had before.
fn connections(pid: u32) -> BTreeSet<String> {
    const ESTABLISHED: &str = "01";
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let columns = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = columns.filter(|column| column[2].ends_with(&format!(":{:04X}", 9080)) && column[3] == ESTABLISHED);
    ours.map(|column| format!("{} {}", column[1], column[2])).collect()
}
