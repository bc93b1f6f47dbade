//! What a workload takes, seen by its callers.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::ensure;
use mesh_e2e::mesh::{Mesh, User};
use mesh_e2e::process::eventually;

const BY_CALLER: &str = "apiVersion: meshctl.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: limited}
spec:
  targetRefs: [{kind: Service, name: reviews}]
  limits: {requests: {rate: 5, per: 1h, by: CallerIdentity}}
";

#[test]
fn each_caller_has_what_the_limit_gives_and_is_told_when_to_come_again() {
    let mesh = Mesh::start(User::Same).unwrap();
    let mut reviews = mesh.echo("reviews", "v1").unwrap();
    let requests = ["--url", "http://reviews:9080/", "--connections", "1", "--requests", "10"];
    let report = mesh.load("web", &requests).unwrap().report().unwrap();
    assert_eq!(report.by_status.get(&200), Some(&10), "{report:?}");

    mesh.apply(BY_CALLER).unwrap();
    for caller in ["web", "shop"] {
        let report = mesh.load(caller, &requests).unwrap().report().unwrap();
        let [passed, refused] = [200, 429].map(|status| report.by_status.get(&status).copied());
        assert_eq!((passed, refused, report.failed), (Some(5), Some(5), 0), "{caller}: {report:?}");
    }
    let refused = mesh.curl("web", &["-i", "http://reviews:9080/"]).unwrap().to_ascii_lowercase();
    assert!(refused.starts_with("http/1.1 429"), "{refused}");
    for says in
        ["ratelimit: \"mesh\";r=0;t=", "ratelimit-policy: \"mesh\";q=5;w=3600", "retry-after: ", "too many requests"]
    {
        assert!(refused.contains(says), "{says} is not in: {refused}");
    }
    mesh.meshctl(&["delete", "trafficpolicy", "limited"]).unwrap();
    mesh.wait().unwrap();
    eventually(Duration::from_secs(5), || {
        let report = mesh.load("web", &requests)?.report()?;
        ensure!(report.by_status.get(&200) == Some(&10), "{report:?}");
        Ok(())
    })
    .unwrap();
    assert!(reviews.running());
}

const CONCURRENT: &str = "apiVersion: meshctl.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: limited}
spec:
  targetRefs: [{kind: Service, name: reviews}]
  limits: {concurrentRequests: {max: 10, perCaller: 2}}
";

#[test]
fn a_caller_has_so_many_requests_at_a_time_and_others_have_their_own() {
    let mesh = Mesh::start(User::Same).unwrap();
    let _reviews = mesh.echo("reviews", "v1").unwrap();
    // Slow ones, all of them at once.
    let requests = ["--url", "http://reviews:9080/sleep/2000", "--connections", "6", "--requests", "6"];
    let report = mesh.load("web", &requests).unwrap().report().unwrap();
    assert_eq!(report.by_status.get(&200), Some(&6), "{report:?}");

    mesh.apply(CONCURRENT).unwrap();
    let loads = ["web", "shop"].map(|caller| mesh.load(caller, &requests).unwrap());
    for load in loads {
        let report = load.report().unwrap();
        let [passed, refused] = [200, 503].map(|status| report.by_status.get(&status).copied().unwrap_or(0));
        assert_eq!((passed + refused, report.failed), (6, 0), "{report:?}");
        // A client that starts slowly may have its last request out when the first is back.
        assert!((2..=4).contains(&passed), "{report:?}");
    }
    // One after the other is never too much.
    let orderly = ["--url", "http://reviews:9080/", "--connections", "1", "--requests", "10"];
    let report = mesh.load("web", &orderly).unwrap().report().unwrap();
    assert_eq!(report.by_status.get(&200), Some(&10), "{report:?}");
}

const BANDWIDTH: &str = "apiVersion: meshctl.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: limited}
spec:
  targetRefs: [{kind: Service, name: reviews}]
  limits: {bandwidth: {up: 50Ki, perCaller: {down: 50Ki}}}
";

/// How long a caller needs for 100 KiB from the service, or with a body for that.
fn seconds(mesh: &Mesh, caller: &str, more: &[&str]) -> f64 {
    let args = ["-s", "-o", "/dev/null", "-w", "%{http_code} %{time_total}"];
    let told = mesh.curl(caller, &[&args, more].concat()).unwrap();
    let (status, seconds) = told.trim().split_once(' ').unwrap();
    assert_eq!(status, "200", "{told}");
    seconds.parse().unwrap()
}

#[test]
fn bytes_come_and_go_no_faster_than_the_bandwidth_that_the_port_has() {
    let mesh = Mesh::start(User::Same).unwrap();
    let _reviews = mesh.echo("reviews", "v1").unwrap();
    let data = "x".repeat(100 << 10);
    let (down, up) = (["http://reviews:9080/bytes/102400"], ["--data", &data, "http://reviews:9080/"]);
    let free = seconds(&mesh, "web", &down);
    mesh.apply(BANDWIDTH).unwrap();
    mesh.wait().unwrap();
    // A fifth of a second's worth is saved, and two callers do not share what they get.
    let loads = ["web", "shop"].map(|caller| {
        let args = ["--url", down[0], "--connections", "2", "--requests", "2"];
        mesh.load(caller, &args).unwrap()
    });
    for load in loads {
        let report = load.report().unwrap();
        assert_eq!((report.good(), report.failed), (2, 0), "{report:?}");
        assert!(report.max_ms >= 3700.0, "{report:?}");
    }
    let sent = seconds(&mesh, "web", &up);
    assert!(sent >= 1.7, "{sent} s");
    mesh.meshctl(&["delete", "trafficpolicy", "limited"]).unwrap();
    mesh.wait().unwrap();
    eventually(Duration::from_secs(5), || {
        let again = seconds(&mesh, "web", &down);
        ensure!(again < 1.0, "{again} s, and {free} s before");
        Ok(())
    })
    .unwrap();
}
