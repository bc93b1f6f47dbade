//! Each kind of fault hits the share that was asked for, only the callers that were named, and is gone after its time.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use mesh_e2e::app::load::Report;
use mesh_e2e::as_root_and_without;
use mesh_e2e::mesh::{Mesh, User};
use mesh_e2e::process::{Process, eventually};

as_root_and_without!(
    delay_hits_half_of_one_callers_requests,
    abort_hits_its_share_and_can_be_cleared,
    reset_breaks_http_and_tcp_connections,
    a_reset_ends_after_its_time_without_a_control_plane_and_spares_other_callers,
);

/// Shares are exact over a thousand.
const HTTP: [&str; 8] = ["--url", "http://reviews:9080/", "--connections", "40", "--requests", "1000", "--slow", "250"];

fn shop(user: User) -> (Mesh, Process) {
    let mesh = Mesh::start(user).unwrap();
    let reviews = mesh.echo("reviews", "v1").unwrap();
    (mesh, reviews)
}

fn report(mesh: &Mesh, account: &str, args: &[&str]) -> Report {
    mesh.load(account, args).unwrap().report().unwrap()
}

fn delay_hits_half_of_one_callers_requests(user: User) {
    let (mesh, _reviews) = shop(user);
    mesh.meshctl(&["fault", "delay", "reviews", "--percent", "50", "--delay", "300ms", "--for", "5m", "--from", "web"])
        .unwrap();
    mesh.wait().unwrap();
    let hit = report(&mesh, "web", &HTTP);
    assert_eq!((hit.slow, hit.good(), hit.failed), (500, 1000, 0), "{hit:?}");
    assert!(hit.max_ms < 600.0, "{hit:?}");
    let spared = report(&mesh, "other", &HTTP);
    assert_eq!((spared.slow, spared.good()), (0, 1000), "{spared:?}");
}

fn abort_hits_its_share_and_can_be_cleared(user: User) {
    let (mesh, _reviews) = shop(user);
    mesh.meshctl(&["fault", "abort", "reviews", "--percent", "25", "--status", "418", "--for", "5m", "--from", "web"])
        .unwrap();
    mesh.wait().unwrap();
    let hit = report(&mesh, "web", &HTTP);
    assert_eq!((hit.by_status.get(&418), hit.by_status.get(&200)), (Some(&250), Some(&750)), "{hit:?}");
    let spared = report(&mesh, "other", &HTTP);
    assert_eq!(spared.by_status.get(&200), Some(&1000), "{spared:?}");
    assert!(mesh.meshctl(&["fault", "list"]).unwrap().contains("reviews"));
    mesh.meshctl(&["fault", "clear"]).unwrap();
    mesh.wait().unwrap();
    let after = report(&mesh, "web", &HTTP);
    assert_eq!(after.by_status.get(&200), Some(&1000), "{after:?}");

    // Only requests with a header, by everybody; gRPC calls get a gRPC status.
    mesh.meshctl(&[
        "fault",
        "abort",
        "reviews",
        "--status",
        "418",
        "--grpc-status",
        "8",
        "--header",
        "end-user=jason",
        "--wait",
    ])
    .unwrap();
    let few = ["--url", "http://reviews:9080/", "--requests", "50"];
    let [jason, ada] =
        ["end-user: jason", "end-user: ada"].map(|h| report(&mesh, "web", &[&few[..], &["--header", h]].concat()));
    assert_eq!((jason.by_status.get(&418), ada.by_status.get(&200)), (Some(&50), Some(&50)), "{jason:?} {ada:?}");
    let [jason, ada] = ["end-user: jason", "end-user: ada"]
        .map(|h| report(&mesh, "web", &[&few[..], &["--grpc", "--header", h]].concat()));
    // The reply is a good one of HTTP, over a connection that stays.
    assert_eq!((jason.failed, ada.failed, ada.by_status.get(&200)), (50, 0, Some(&50)), "{jason:?} {ada:?}");
    assert!(jason.errors.iter().all(|e| e.contains("gRPC status \"8\"")), "{jason:?}");
}

fn reset_breaks_http_and_tcp_connections(user: User) {
    let (mesh, _reviews) = shop(user);
    let _stock = mesh
        .run("stock", &["--version", "v1", "--port", "7000:tcp"], &["testapp", "tcp", "--listen", "0.0.0.0:7000"])
        .unwrap();
    mesh.discovered("stock", "v1").unwrap();
    for service in ["reviews", "stock"] {
        mesh.meshctl(&["fault", "reset", service, "--percent", "50", "--for", "5m", "--from", "web"]).unwrap();
    }
    mesh.wait().unwrap();
    let http = report(&mesh, "web", &HTTP);
    assert_eq!((http.failed, http.good()), (500, 500), "{http:?}");
    let tcp_args = ["--url", "tcp://stock:7000", "--connections", "4", "--requests", "1000"];
    let tcp = report(&mesh, "web", &tcp_args);
    assert_eq!((tcp.failed, tcp.by_version.get("v1")), (500, Some(&500)), "{tcp:?}");
    assert!(tcp.errors.iter().all(|e| e.contains("reset")), "{tcp:?}");
    // It was stock that was called, though no connection has reached it.
    eventually(Duration::from_secs(10), || {
        let args = ["top", "callers", "--from", "web", "--service", "stock", "--window", "1m", "-o", "json"];
        let rows: serde_json::Value = serde_json::from_str(&mesh.meshctl(&args)?)?;
        let failed = &rows[0]["connectionsFailed"];
        anyhow::ensure!(*failed == 500 && rows[0]["flags"]["FI"] == 500, "{rows:#}");
        Ok(())
    })
    .unwrap();
    let spared = report(&mesh, "other", &tcp_args);
    assert_eq!((spared.failed, spared.by_version.get("v1")), (0, Some(&1000)), "{spared:?}");
}

/// Half of one caller's responses come as slowly as was asked for, and nothing else.
#[test]
fn throttle_slows_down_its_share_of_http_and_tcp() {
    let (mesh, _reviews) = shop(User::Same);
    let _stock = mesh
        .run("stock", &["--version", "v1", "--port", "7000:tcp"], &["testapp", "tcp", "--listen", "0.0.0.0:7000"])
        .unwrap();
    mesh.discovered("stock", "v1").unwrap();
    // A reply of 100 KiB takes two seconds or longer; one line of text, nine bytes at least, more than three.
    for (service, rate) in [("reviews", "50Ki"), ("stock", "3")] {
        let fault = ["fault", "throttle", service, "--rate", rate, "--percent", "50", "--for", "5m", "--from", "web"];
        mesh.meshctl(&fault).unwrap();
    }
    mesh.wait().unwrap();
    let http =
        ["--url", "http://reviews:9080/bytes/102400", "--connections", "50", "--requests", "100", "--slow", "1990"];
    let tcp = ["--url", "tcp://stock:7000", "--connections", "50", "--requests", "100", "--slow", "1990"];
    for args in [http, tcp] {
        let hit = report(&mesh, "web", &args);
        // A share is exact over a thousand; of a hundred in a row half are hit, give or take a few.
        assert!((45..=55).contains(&hit.slow) && hit.failed == 0 && hit.requests == 100, "{hit:?}");
        let spared = report(&mesh, "other", &args);
        assert_eq!((spared.slow, spared.failed, spared.requests), (0, 0, 100), "{spared:?}");
    }
    // One that is under way is let go when the fault is over; at its rate it would take a day.
    mesh.meshctl(&["fault", "clear"]).unwrap();
    mesh.meshctl(&["fault", "throttle", "reviews", "--rate", "1", "--for", "3s", "--wait"]).unwrap();
    let one = ["--url", "http://reviews:9080/bytes/102400", "--requests", "1", "--slow", "500"];
    let report = report(&mesh, "web", &one);
    assert_eq!((report.slow, report.good()), (1, 1), "{report:?}");
    assert!(report.max_ms < 15_000.0, "{report:?}");
}

/// A fault ends by itself, even when the control plane is not there to say so.
#[test]
fn a_fault_ends_after_its_time_without_a_control_plane() {
    let (mut mesh, _reviews) = shop(User::Same);
    let args = ["--url", "http://reviews:9080/", "--rate", "50", "--connections", "4"];
    let load = mesh.load("web", &args).unwrap();
    load.flowing().unwrap();
    mesh.meshctl(&["fault", "abort", "reviews", "--percent", "100", "--status", "503", "--for", "4s"]).unwrap();
    mesh.wait().unwrap();
    let begun = Instant::now();
    let control = mesh.control.take().unwrap();
    control.signal(nix::sys::signal::Signal::SIGKILL).unwrap();
    std::thread::sleep(Duration::from_secs(7).saturating_sub(begun.elapsed()));
    let report = load.stop().unwrap();
    let hit = report.by_status.get(&503).copied().unwrap_or(0);
    // 4 s of 50 requests a second, give or take the way there.
    assert!((150..=230).contains(&hit), "{report:?}");
    assert!(report.by_status.get(&200).is_some_and(|good| *good > 80), "{report:?}");
}

/// Delays end after their time with the control plane's help, which removes the object too.
#[test]
fn a_delay_ends_after_its_time() {
    let (mesh, _reviews) = shop(User::Same);
    let args = ["--url", "http://reviews:9080/", "--rate", "50", "--connections", "20", "--slow", "150"];
    let load = mesh.load("web", &args).unwrap();
    load.flowing().unwrap();
    mesh.meshctl(&["fault", "delay", "reviews", "--percent", "100", "--delay", "200ms", "--for", "2s", "--wait"])
        .unwrap();
    eventually(Duration::from_secs(8), || {
        let faults = mesh.meshctl(&["fault", "list", "-o", "json"])?;
        anyhow::ensure!(faults.trim() == "[]", "{faults}");
        Ok(())
    })
    .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let report = load.stop().unwrap();
    // 2 s of 50 requests a second, give or take the way there.
    assert!((60..=120).contains(&report.slow), "{report:?}");
    assert!(report.good() == report.requests && report.requests - report.slow > 40, "{report:?}");
}

/// Resets hit the HTTP requests of the caller that was named, and end by themselves.
fn a_reset_ends_after_its_time_without_a_control_plane_and_spares_other_callers(user: User) {
    let (mut mesh, _reviews) = shop(user);
    let args = ["--url", "http://reviews:9080/", "--rate", "50", "--connections", "4"];
    let [web, other] = ["web", "other"].map(|account| mesh.load(account, &args).unwrap());
    web.flowing().unwrap();
    other.flowing().unwrap();
    let fault = ["fault", "reset", "reviews", "--percent", "100", "--for", "3s", "--from", "web", "--wait"];
    mesh.meshctl(&fault).unwrap();
    let control = mesh.control.take().unwrap();
    control.signal(nix::sys::signal::Signal::SIGKILL).unwrap();
    std::thread::sleep(Duration::from_secs(5));
    let (web, other) = (web.stop().unwrap(), other.stop().unwrap());
    // 3 s of 50 requests a second; a client whose connection was reset waits before it makes another.
    assert!((60..=170).contains(&web.failed), "{web:?}");
    assert!(web.good() > 60, "the reset has not ended: {web:?}");
    assert_eq!((other.failed, other.closed, other.good()), (0, 0, other.requests), "{other:?}");
}
