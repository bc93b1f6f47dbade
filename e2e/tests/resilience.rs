//! What must and must not fail when a part is killed with SIGKILL under load.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use mesh_e2e::app::load;
use mesh_e2e::as_root_and_without;
use mesh_e2e::mesh::{Mesh, User};
use mesh_e2e::process::{Process, eventually};
use mesh_e2e::resolver::Resolver;
use nix::sys::signal::Signal;

as_root_and_without!(
    killing_the_control_plane_costs_nothing,
    killing_an_application_costs_at_most_what_it_held,
    killing_a_proxy_costs_at_most_what_it_held,
    killing_meshctl_run_costs_at_most_what_it_held,
    killing_a_callers_proxy_ends_that_caller_alone,
);

const LOAD: [&str; 6] = ["--url", "http://reviews:9080/", "--connections", "8", "--rate", "400"];

/// Nothing fails. Proxies keep what they have, and take up again by themselves; also when their certificates, good for ten
/// seconds here and renewed after five, have to be renewed meanwhile.
fn killing_the_control_plane_costs_nothing(user: User) {
    let mut mesh = Mesh::start(user).unwrap();
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
fn killing_an_application_costs_at_most_what_it_held(user: User) {
    let mesh = Mesh::start(user).unwrap();
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

/// A server's proxy that is killed takes its requests in flight with it, and no others: the workload leaves discovery at
/// once, its application is ended, and nothing is left of it.
fn killing_a_proxy_costs_at_most_what_it_held(user: User) {
    killing_one_of_two(user, |two| two.signal_child("mesh-proxy", Signal::SIGKILL).unwrap(), Some(1));
}

/// So does `meshctl run` itself, which can say nothing any more and end nobody.
fn killing_meshctl_run_costs_at_most_what_it_held(user: User) {
    killing_one_of_two(user, |two| two.signal(Signal::SIGKILL).unwrap(), None);
}

fn killing_one_of_two(user: User, kill: impl FnOnce(&Process), code: Option<i32>) {
    let mesh = Mesh::start(user).unwrap();
    let _one = mesh.echo("reviews", "v1").unwrap();
    let mut two = mesh.echo("reviews", "v2").unwrap();
    let parts = ["mesh-proxy", "testapp"].map(|program| two.child(program).unwrap());
    let load = mesh.load("web", &LOAD).unwrap();
    load.flowing().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    kill(&two);
    let killed = Instant::now();
    eventually(Duration::from_secs(2), || {
        let workloads = mesh.meshctl(&["get", "workloads", "-o", "json"])?;
        anyhow::ensure!(!workloads.contains("reviews-v2-"), "still there: {workloads}");
        Ok(())
    })
    .unwrap();
    println!("gone from discovery after {:?}", killed.elapsed());
    assert_eq!(two.wait(Duration::from_secs(10)).unwrap().code(), code, "{}", two.tail());
    eventually(Duration::from_secs(5), || {
        // Nobody may have collected it yet whose parent was killed.
        let is_dead = |status: String| status.contains("State:\tZ");
        let runs = |id: &u32| std::fs::read_to_string(format!("/proc/{id}/status")).is_ok_and(|it| !is_dead(it));
        anyhow::ensure!(!parts.iter().any(runs), "the proxy or the application goes on");
        let folders = std::fs::read_dir(mesh.data().join("workloads"))?.flatten();
        let left: Vec<_> = folders.map(|it| it.file_name().into_string().unwrap()).collect();
        anyhow::ensure!(!left.iter().any(|name| name.starts_with("reviews-v2")), "{left:?}");
        Ok(())
    })
    .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let report = load.stop().unwrap();
    println!(
        "{} of {} failed, the slowest took {:.0} ms",
        report.requests - report.good(),
        report.requests,
        report.max_ms
    );
    assert!(report.requests - report.good() <= 8, "{report:?}");
    assert_eq!(report.closed, 0, "{report:?}");
    assert!(report.by_version["v1"] > report.by_version["v2"], "{report:?}");
    // Nobody waits until the connect timeout is over, which is 5 s; who has sent a request already waits until a ping is not
    // answered, which takes 3 s.
    assert!(report.max_ms < 10_000.0, "{report:?}");
}

/// A caller without its proxy would have no network, or one past the mesh: it is ended. Other callers lose nothing.
fn killing_a_callers_proxy_ends_that_caller_alone(user: User) {
    let mesh = Mesh::start(user).unwrap();
    let _reviews = mesh.echo("reviews", "v1").unwrap();
    let other = mesh.load("web", &LOAD).unwrap();
    let mut caller = mesh.load("shop", &LOAD).unwrap();
    caller.flowing().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let application = caller.0.child("testapp").unwrap();
    caller.0.signal_child("mesh-proxy", Signal::SIGKILL).unwrap();
    let status = caller.0.wait(Duration::from_secs(10)).unwrap();
    assert_eq!(status.code(), Some(1), "{}", caller.0.tail());
    let reason = "The application was ended because mesh-proxy ended (signal: 9 (SIGKILL)); its log is ";
    assert!(caller.0.stderr().contains(reason), "{}", caller.0.tail());
    assert!(!Path::new(&format!("/proc/{application}")).exists(), "the application goes on");
    // It was asked to end, and so could say what it has seen: all that it was answered came from the mesh.
    let seen: load::Report = serde_json::from_str(caller.0.stdout().lines().last().unwrap()).unwrap();
    assert!(seen.by_version["v1"] >= 100, "{seen:?}");
    eventually(Duration::from_secs(5), || {
        let proxies = mesh.meshctl(&["proxy", "status", "-o", "json"])?;
        anyhow::ensure!(!proxies.contains("/sa/shop\""), "still there: {proxies}");
        Ok(())
    })
    .unwrap();
    // Another one of the same name takes its place.
    assert_eq!(mesh.curl("shop", &["-o", "/dev/null", "-w", "%{http_code}", "http://reviews:9080/"]).unwrap(), "200");
    let report = other.stop().unwrap();
    assert_eq!((report.failed, report.closed, report.good()), (0, 0, report.requests), "{report:?}");
}

/// A control plane that hangs for longer than a connection to it may be silent counts as gone. When it goes on, it is taken up
/// again, and what is written then is followed.
#[test]
fn a_control_plane_that_hangs_for_long_is_taken_up_again() {
    let mesh = Mesh::start(User::Same).unwrap();
    let _v1 = mesh.echo("reviews", "v1").unwrap();
    let _v2 = mesh.echo("reviews", "v2").unwrap();
    mesh.meshctl(&["route", "set-weight", "reviews", "v1=100", "v2=0"]).unwrap();
    mesh.wait().unwrap();
    let load = mesh.load("web", &LOAD).unwrap();
    load.flowing().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let control = mesh.control.as_ref().unwrap();
    control.signal(Signal::SIGSTOP).unwrap();
    // Asked after ten seconds, and given up after five more.
    let given_up = eventually(Duration::from_secs(40), || {
        let log = mesh.proxy_logs("web")?;
        anyhow::ensure!(log.contains("the stream to the control plane ended"), "{log}");
        Ok(())
    });
    control.signal(Signal::SIGCONT).unwrap();
    given_up.unwrap();
    // The latest of its lines says that it is connected.
    eventually(Duration::from_secs(30), || {
        for workload in ["web", "reviews-v1", "reviews-v2"] {
            let log = mesh.proxy_logs(workload)?;
            let lost = log.rfind("the stream to the control plane ended");
            anyhow::ensure!(log.rfind("following the control plane") > lost, "{workload}: {log}");
        }
        Ok(())
    })
    .unwrap();
    mesh.meshctl(&["route", "set-weight", "reviews", "v1=0", "v2=100"]).unwrap();
    mesh.wait().unwrap();
    assert_eq!(mesh.workloads("reviews", "v1").unwrap() + mesh.workloads("reviews", "v2").unwrap(), 2);
    std::thread::sleep(Duration::from_secs(1));
    let report = load.stop().unwrap();
    assert_eq!((report.failed, report.closed, report.good()), (0, 0, report.requests), "{report:?}");
    assert!(report.by_version["v1"] >= 300 && report.by_version["v2"] >= 100, "{report:?}");
}

/// Without a control plane, a workload's own address that was not called before: that of one that the caller knows from its
/// service is not called in plaintext, though it would answer; anybody else's is (decision 16).
#[test]
fn without_a_control_plane_a_known_workload_is_not_called_in_plaintext() {
    let mut mesh = Mesh::start(User::Same).unwrap();
    mesh.apply(
        "apiVersion: meshctl.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: migrating}\nspec: {mode: PERMISSIVE}\n",
    )
    .unwrap();
    let _reviews = mesh.echo("reviews", "v1").unwrap();
    let _ratings = mesh.echo("ratings", "v1").unwrap();
    let [known, unknown] = ["reviews", "ratings"].map(|service| mesh.addresses(service).unwrap()[0]);
    let gone = mesh.folder().join("gone");
    let call = |target: &str| format!("curl -sS -m 15 -o /dev/null -w '%{{http_code}}\\n' http://{target}:9080/");
    let script = format!(
        "{}; while [ ! -e {} ]; do sleep 0.05; done; {}; {}; {}",
        call("reviews"),
        gone.display(),
        call(&known.to_string()),
        call(&unknown.to_string()),
        call("reviews"),
    );
    let mut client = mesh.run("web", &[], &["/bin/sh", "-c", &script]).unwrap();
    eventually(Duration::from_secs(20), || {
        anyhow::ensure!(client.stdout().lines().count() == 1, "{}", client.tail());
        Ok(())
    })
    .unwrap();
    let mut control = mesh.control.take().unwrap();
    control.signal(Signal::SIGKILL).unwrap();
    control.wait(Duration::from_secs(5)).unwrap();
    eventually(Duration::from_secs(10), || {
        let log = mesh.proxy_logs("web")?;
        anyhow::ensure!(log.contains("the control plane cannot be reached"), "{log}");
        Ok(())
    })
    .unwrap();
    std::fs::write(&gone, "").unwrap();
    client.wait(Duration::from_secs(60)).unwrap();
    let codes = client.stdout();
    assert_eq!(codes.lines().collect::<Vec<_>>(), ["200", "000", "200", "200"], "{}", client.tail());
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

/// Nobody refuses anybody, while some hang on the former root and some on the new one, and while some know only one of them; also
/// when the control plane is killed in the middle of it.
#[test]
fn replacing_the_root_certificate_costs_nothing() {
    let mut mesh = Mesh::start(User::Same).unwrap();
    mesh.environment.push(("MESH_CERTIFICATE_TTL", "20".to_owned()));
    let _v1 = mesh.echo("reviews", "v1").unwrap();
    let _v2 = mesh.echo("reviews", "v2").unwrap();
    let load = mesh.load("web", &LOAD).unwrap();
    load.flowing().unwrap();
    let roots = |mesh: &Mesh| {
        let text = std::fs::read_to_string(mesh.data().join("ca/bundle.pem")).unwrap();
        text.split_inclusive("-----END CERTIFICATE-----\n").map(str::to_owned).collect::<Vec<_>>()
    };
    let called = |mesh: &Mesh, from: &str| {
        // Both versions, over connections that are new.
        for _ in 0..4 {
            let asked = ["-o", "/dev/null", "-w", "%{http_code}", "http://reviews:9080/"];
            assert_eq!(mesh.curl(from, &asked).unwrap(), "200", "{from}");
        }
    };
    let status = |mesh: &Mesh| mesh.meshctl(&["certs", "rotate-root", "--status"]).unwrap();
    let before = roots(&mesh);
    assert_eq!((before.len(), status(&mesh).as_str()), (1, "The root is not being replaced.\n"));

    let output = mesh.meshctl_output(&["certs", "rotate-root", "--yes", "--wait-timeout", "100ms"]).unwrap();
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    assert!(status(&mesh).contains(" of 3 workloads have followed"), "{}", status(&mesh));
    let both = roots(&mesh);
    assert_eq!((both.len(), &both[1]), (2, &before[0]));
    called(&mesh, "between");
    let mut control = mesh.control.take().unwrap();
    control.signal(Signal::SIGKILL).unwrap();
    control.wait(Duration::from_secs(5)).unwrap();
    mesh.start_control().unwrap();
    assert_eq!(roots(&mesh), both);

    let said = mesh.meshctl(&["certs", "rotate-root", "--yes"]).unwrap();
    let last: Vec<_> = said.lines().rev().take(2).collect();
    assert!(said.contains(" It goes on.") && last[0].starts_with("The root before is trusted no more"), "{said}");
    assert!(last[1].ends_with(" workloads have followed.") && last[1].starts_with("3 of 3 "), "{said}");
    assert_eq!(roots(&mesh), both[..1]);
    called(&mesh, "late");
    let table = mesh.meshctl(&["certs"]).unwrap();
    assert!(table.lines().filter(|line| line.starts_with("root")).count() == 1 && !table.contains("former"), "{table}");
    // Beyond the next renewals, by which all know the new root alone.
    std::thread::sleep(Duration::from_secs(12));
    called(&mesh, "later");
    let report = load.stop().unwrap();
    assert_eq!((report.failed, report.closed, report.good()), (0, 0, report.requests), "{report:?}");
    let changes = mesh.meshctl(&["audit", "query", "--object", "RootCertificate"]).unwrap();
    let of =
        |verb: &str| changes.lines().filter(|line| line.contains(verb) && line.contains(" RootCertificate ")).count();
    assert_eq!((of(" create "), of(" delete ")), (1, 1), "{changes}");
}
