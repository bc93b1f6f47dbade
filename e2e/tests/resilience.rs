//! What must and must not fail when a part is killed with SIGKILL under load.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use anyhow::Context;
use mesh_e2e::mesh::{Mesh, User};
use mesh_e2e::process::eventually;
use mesh_e2e::resolver::Resolver;
use nix::sys::signal::Signal;

const LOAD: [&str; 6] = ["--url", "http://reviews:9080/", "--connections", "8", "--rate", "400"];

/// Nothing fails. Proxies keep what they have, and take up again by themselves; also when their certificates, good for ten
/// seconds here and renewed after five, have to be renewed meanwhile.
#[test]
fn killing_the_control_plane_costs_nothing() {
    let mut mesh = Mesh::start(User::Same).unwrap();
    mesh.environment.push(("MESH_CERTIFICATE_TTL", "10".to_owned()));
    let _v1 = mesh.echo("reviews", "v1").unwrap();
    let _v2 = mesh.echo("reviews", "v2").unwrap();
    mesh.meshctl(&["route", "set-weight", "reviews", "v1=100", "v2=0"]).unwrap();
    mesh.wait().unwrap();
    let load = mesh.load("web", &LOAD).unwrap();
    let began = Instant::now();
    std::thread::sleep(Duration::from_secs(1));
    for _ in 0..3 {
        let mut control = mesh.control.take().unwrap();
        control.signal(Signal::SIGKILL).unwrap();
        control.wait(Duration::from_secs(5)).unwrap();
        std::thread::sleep(Duration::from_secs(1));
        mesh.start_control().unwrap();
    }
    // What was acknowledged before is still there, and new changes reach the same proxies.
    assert_eq!(mesh.workloads("reviews", "v1").unwrap(), 1);
    eventually(Duration::from_secs(30), || {
        let proxies: serde_json::Value = serde_json::from_str(&mesh.meshctl(&["proxy", "status", "-o", "json"])?)?;
        anyhow::ensure!(proxies.as_array().is_some_and(|p| p.len() == 3), "not all proxies are back: {proxies}");
        Ok(())
    })
    .unwrap();
    mesh.meshctl(&["route", "set-weight", "reviews", "v1=0", "v2=100"]).unwrap();
    mesh.wait().unwrap();
    // Beyond the end of the first certificates, and the second.
    std::thread::sleep(Duration::from_secs(21).saturating_sub(began.elapsed()));
    for workload in ["web", "reviews-v1", "reviews-v2"] {
        let log = mesh.proxy_logs(workload).unwrap();
        let certificates = log.matches("the proxy has a certificate").count();
        assert!(certificates >= 3, "{workload} had {certificates} certificates in 21 s:\n{log}");
        assert!(!log.contains("has expired"), "{log}");
    }
    // New connections are made with the new ones.
    assert_eq!(mesh.curl("late", &["-o", "/dev/null", "-w", "%{http_code}", "http://reviews:9080/"]).unwrap(), "200");
    let report = load.stop().unwrap();
    assert_eq!((report.failed, report.closed, report.good()), (0, 0, report.requests), "{report:?}");
    assert!(report.by_version["v2"] >= 300 && report.by_version["v1"] >= 300, "{report:?}");
}

/// The application's death is seen at once: requests that it had taken may fail (one for each connection at most), the
/// others go to the version that is left, and the workload is gone from discovery.
#[test]
fn killing_an_application_costs_at_most_what_it_held() {
    let mesh = Mesh::start(User::Same).unwrap();
    let _one = mesh.echo("reviews", "v1").unwrap();
    let mut two = mesh.echo("reviews", "v2").unwrap();
    let load = mesh.load("web", &LOAD).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    two.signal_child("testapp", Signal::SIGKILL).unwrap();
    let status = two.wait(Duration::from_secs(10)).unwrap();
    assert_eq!(status.code(), Some(137), "{}", two.tail());
    assert_eq!(mesh.workloads("reviews", "v2").unwrap(), 0);
    std::thread::sleep(Duration::from_secs(1));
    let report = load.stop().unwrap();
    assert!(report.requests - report.good() <= 8, "{report:?}");
    assert_eq!(report.closed, 0, "{report:?}");
    assert!(report.by_version["v1"] > report.by_version["v2"], "{report:?}");
}

/// A server's proxy that is killed takes its requests in flight with it, and no others.
#[test]
fn killing_a_proxy_costs_at_most_what_it_held() {
    let mesh = Mesh::start(User::Same).unwrap();
    let _one = mesh.echo("reviews", "v1").unwrap();
    let two = mesh.echo("reviews", "v2").unwrap();
    let load = mesh.load("web", &LOAD).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    two.signal_child("mesh-proxy", Signal::SIGKILL).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let report = load.stop().unwrap();
    assert!(report.requests - report.good() <= 8, "{report:?}");
    assert_eq!(report.closed, 0, "{report:?}");
}

/// A control plane that hangs takes what is sent to it and says nothing: the first new name takes the time that it may, all
/// after it fall back at once, and what is known is not touched. When it goes on, so does everything.
#[test]
fn a_control_plane_that_hangs_costs_the_first_new_name_a_second() {
    let mesh = Mesh::start(User::Same).unwrap();
    let resolver = Resolver::start().unwrap();
    let _reviews = mesh.echo("reviews", "v1").unwrap();
    let _ratings = mesh.echo("ratings", "v1").unwrap();
    let (script, folder) = (mesh.script("silence.py").unwrap(), mesh.folder());
    // The fabric's own address, where nobody listens.
    let app = ["/usr/bin/python3", &script, &folder.display().to_string(), "10.77.0.1"];
    let mut client = mesh.run_resolving(&resolver, "web", &app).unwrap();
    let said = |line: usize| {
        eventually(Duration::from_secs(40), || {
            client.stdout().lines().nth(line).map(str::to_owned).with_context(|| client.tail())
        })
        .unwrap()
    };
    said(0);
    let control = mesh.control.as_ref().unwrap();
    control.signal(Signal::SIGSTOP).unwrap();
    std::fs::write(folder.join("stopped"), "").unwrap();
    let times: serde_json::Value = serde_json::from_str(&said(1)).unwrap();
    control.signal(Signal::SIGCONT).unwrap();
    std::fs::write(folder.join("continued"), "").unwrap();
    let first = times["first"].as_f64().unwrap();
    assert!((0.9..2.5).contains(&first), "{times}");
    let later = ["names", "addresses", "known"].map(|kind| times[kind].as_array().unwrap().clone()).concat();
    assert!(later.len() == 12 && later.iter().all(|it| it.as_f64().unwrap() < 0.3), "{times}");
    let after: serde_json::Value = serde_json::from_str(&said(2)).unwrap();
    assert!(["new name", "new address"].iter().all(|it| after[it].as_f64().unwrap() < 0.3), "{after}");
    assert!(client.wait(Duration::from_secs(10)).unwrap().success());
}
