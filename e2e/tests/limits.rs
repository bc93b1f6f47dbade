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
