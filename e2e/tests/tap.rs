//! `meshctl tap` shows each request once with the reason for where it went, no secret, and is in nobody's way.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::{Context, ensure};
use mesh_e2e::as_root_and_without;
use mesh_e2e::mesh::{Mesh, User};
use mesh_e2e::process::{Process, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

as_root_and_without!(each_request_is_shown_once_with_its_reason_and_no_secret);

const OBJECTS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews}
spec:
  parentRefs: [{group: '', kind: Service, name: reviews}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /status}}]
    retry: {attempts: 2, codes: [503], backoff: 1ms}
    backendRefs: [{name: reviews-v1, port: 9080}]
  - matches: [{headers: [{name: end-user, value: jason}]}]
    backendRefs: [{name: reviews-v2, port: 9080}]
  - backendRefs:
    - {name: reviews-v1, port: 9080, weight: 90}
    - {name: reviews-v2, port: 9080, weight: 10}
---
apiVersion: meshctl.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: readers}
spec:
  targetRefs: [{kind: Service, name: reviews}]
  rules: [{from: [{serviceAccounts: [web]}]}]
---
apiVersion: meshctl.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-admin}
spec:
  action: DENY
  targetRefs: [{kind: Service, name: reviews}]
  rules: [{to: [{ports: [9080], paths: ['/admin*']}]}]
---
apiVersion: meshctl.dev/v1alpha1
kind: FaultInjection
metadata: {name: broken}
spec:
  targetRefs: [{kind: Service, name: reviews}]
  faults: [{percent: 100, abort: {httpStatus: 418}, match: {headers: [{name: x-break, value: 'yes'}]}}]
";

/// A `meshctl tap` that is asking somebody.
fn tap(mesh: &Mesh, name: &str, args: &[&str]) -> Process {
    let mut command = mesh.command("meshctl");
    command.arg("--control").arg(format!("unix:{}", mesh.data().join("control.sock").display()));
    command.arg("tap").args(args);
    let tap = Process::start(name, command, &mesh.logs()).unwrap();
    eventually(Duration::from_secs(10), || {
        ensure!(tap.stderr().contains("Ctrl-C ends"), "{}", tap.tail());
        Ok(())
    })
    .unwrap();
    tap
}

fn lines(text: &str) -> Vec<Value> {
    // The last one may be on its way.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn each_request_is_shown_once_with_its_reason_and_no_secret(user: User) {
    let mesh = Mesh::start(user).unwrap();
    let _v1 = mesh.echo("reviews", "v1").unwrap();
    let _v2 = mesh.echo("reviews", "v2").unwrap();
    let stock = ["testapp", "tcp", "--listen", "0.0.0.0:7000", "--version", "v1"];
    let _stock = mesh.run("stock", &["--version", "v1", "--port", "7000:tcp"], &stock).unwrap();
    mesh.discovered("stock", "v1").unwrap();
    mesh.apply(OBJECTS).unwrap();

    // Calls until it is told to begin, so that the tap is at its proxy by then.
    let go = mesh.logs().join("go");
    let testapp = mesh.program("testapp").display().to_string();
    let secrets = "-H 'authorization: Bearer s3cret' -H 'cookie: sid=s3cret' -H 'x-other: s3cret'";
    let url = "http://reviews:9080";
    let script = format!(
        "get() {{ curl -sS -m 10 -o /dev/null \"$@\"; }}
         until [ -e {go} ]; do get {url}/warm; sleep 0.1; done
         get '{url}/canary/[1-10]?token=s3cret'
         get -H 'end-user: jason' {secrets} {url}/jason?password=s3cret
         get -H 'x-break: yes' {url}/broken
         get {url}/admin/x
         get {url}/status/503
         {testapp} load --requests 1 --url tcp://stock:7000 >/dev/null
         exec sleep 60",
        go = go.display(),
    );
    let web = mesh.run("web", &[], &["/bin/sh", "-c", &script]).unwrap();
    let headers = ["--header", "authorization", "--header", "cookie", "--header", "end-user", "--header", "x-version"];
    let shown = tap(&mesh, "tap", &[&headers[..], &["-o", "json"]].concat());
    eventually(Duration::from_secs(20), || {
        // By the caller's side: its proxy is asked.
        let warm = |line: &Value| line["path"] == "/warm" && line["direction"] == "outbound";
        ensure!(lines(&shown.stdout()).iter().any(warm), "{}\n{}", shown.tail(), web.tail());
        Ok(())
    })
    .unwrap();
    // Whose proxy has told something is known to be asked by whoever taps from now on.
    let errors = tap(&mesh, "errors", &["--from", "web", "--to", "reviews", "--status", "418", "--status", "5xx"]);
    std::fs::write(&go, "").unwrap();
    let of = |path: &str| -> anyhow::Result<Value> {
        let found: Vec<Value> = lines(&shown.stdout()).into_iter().filter(|line| line["path"] == path).collect();
        ensure!(found.len() == 1, "{path} is shown {} times: {found:#?}\n{}", found.len(), web.tail());
        Ok(found[0].clone())
    };
    let stream =
        || lines(&shown.stdout()).into_iter().find(|line| line["service"] == "stock.default.svc.cluster.local");
    eventually(Duration::from_secs(20), || {
        of("/status/503")?;
        stream().context("no byte stream").map(drop)
    })
    .unwrap();
    // Nothing is added to it any more.
    std::thread::sleep(Duration::from_secs(2));

    let route =
        |rule: u32, matched: &str| json!({"name": format!("HTTPRoute/default/reviews/{rule}"), "matched": matched});
    let allowed = json!({"verdict": "allowed", "name": "default/readers[0]"});
    let mut versions = Vec::new();
    for number in 1..=10 {
        let canary = of(&format!("/canary/{number}")).unwrap();
        let version = canary["backend"]["version"].as_str().unwrap().to_owned();
        let weight = if version == "v1" { 90 } else { 10 };
        assert_eq!((&canary["backend"]["weight"], &canary["backend"]["ofWeights"]), (&json!(weight), &json!(100)));
        assert_eq!((&canary["route"], &canary["policy"]), (&route(2, "all"), &allowed), "{canary:#}");
        assert_eq!(
            (&canary["status"], &canary["attempts"], &canary["mutualTls"]),
            (&json!(200), &json!(1), &json!(true))
        );
        assert_eq!((&canary["direction"], &canary["caller"]), (&json!("outbound"), &json!("web.default")));
        assert!(canary["responseHeaders"]["x-version"] == json!([version]), "{canary:#}");
        versions.push(version);
    }
    // Whatever the calls before have left of the round.
    assert!((8..=10).contains(&versions.iter().filter(|it| *it == "v1").count()), "{versions:?}");

    let jason = of("/jason").unwrap();
    assert_eq!((&jason["route"], &jason["backend"]["version"]), (&route(1, "header end-user=jason"), &json!("v2")));
    let sent = json!({"authorization": ["[redacted]"], "cookie": ["[redacted]"], "end-user": ["jason"]});
    assert_eq!(jason["requestHeaders"], sent, "{jason:#}");
    let broken = of("/broken").unwrap();
    assert_eq!(
        (&broken["status"], &broken["flags"], &broken["faults"]),
        (&json!(418), &json!("FI"), &json!(["abort"]))
    );
    assert_eq!((&broken["attempts"], &broken["reason"]), (&json!(0), &json!("fault injected")), "{broken:#}");
    let denied = of("/admin/x").unwrap();
    assert_eq!(
        (&denied["status"], &denied["policy"]),
        (&json!(403), &json!({"verdict": "denied", "name": "default/no-admin[0]"}))
    );
    assert_eq!(denied["server"]["flags"], "UAEX", "{denied:#}");
    let retried = of("/status/503").unwrap();
    assert_eq!((&retried["status"], &retried["attempts"]), (&json!(503), &json!(3)), "{retried:#}");
    let tries: Vec<_> = retried["tries"].as_array().unwrap().iter().map(|it| it["status"].clone()).collect();
    assert_eq!((tries, &retried["route"]), (vec![json!(503); 3], &route(0, "path prefix /status")));
    let stream = stream().unwrap();
    assert_eq!((stream.get("method"), &stream["backend"]["workload"].is_string()), (None, &true), "{stream:#}");

    // For people; it ends well when it is told to.
    let mut errors = errors;
    let text = errors.stdout();
    let paths = ["GET /broken  418", "GET /status/503  503"];
    assert!(text.lines().count() == 2 && paths.iter().all(|path| text.matches(path).count() == 1), "{text}");
    assert!(
        text.contains("web.default -> reviews") && text.contains("3 tries: ") && text.contains("fault: abort"),
        "{text}"
    );
    errors.signal(Signal::SIGINT).unwrap();
    assert!(errors.wait(Duration::from_secs(5)).unwrap().success(), "{}", errors.tail());
    for tap in [&shown, &errors] {
        assert!(!(tap.stdout() + &tap.stderr()).contains("s3cret"), "{}", tap.tail());
    }
}

fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// And one that asks for little is told how much more there was.
#[test]
fn a_reader_that_stalls_slows_nobody_and_costs_no_memory() {
    let mesh = Mesh::start(User::Same).unwrap();
    let _v1 = mesh.echo("reviews", "v1").unwrap();
    let url = format!("http://reviews:9080/{}", "long/".repeat(40));
    let load = ["--url", &url, "--connections", "16", "--rate", "400", "--slow", "1000"];
    let load = mesh.load("web", &load).unwrap();
    load.flowing().unwrap();
    let mut slow = tap(&mesh, "slow", &["--max-rate", "10", "--for", "3s", "-o", "json"]);
    assert!(slow.wait(Duration::from_secs(10)).unwrap().success(), "{}", slow.tail());
    // Two sides of each, 10 at once and 10 in a second.
    let told = lines(&slow.stdout()).len();
    assert!((20..=60).contains(&told) && slow.stderr().contains(" more not shown"), "{told}: {}", slow.tail());

    let stalled = tap(&mesh, "stalled", &["--max-rate", "1000"]);
    let programs = [mesh.control.as_ref().unwrap().id(), load.0.child("mesh-proxy").unwrap()];
    std::thread::sleep(Duration::from_secs(3));
    let before = programs.map(memory);
    stalled.signal(Signal::SIGSTOP).unwrap();
    std::thread::sleep(Duration::from_secs(20));
    let grown: Vec<u64> =
        programs.map(memory).iter().zip(before).map(|(now, then)| now.saturating_sub(then) >> 20).collect();
    println!("grown by {grown:?} MiB");
    assert!(grown.iter().all(|grown| *grown <= 24), "{grown:?} MiB");
    // Whoever comes beside it is served.
    let beside = mesh.meshctl(&["tap", "--count", "5", "--for", "10s", "-o", "name"]).unwrap();
    assert_eq!(beside, "service/reviews\n".repeat(5));
    stalled.signal(Signal::SIGCONT).unwrap();
    eventually(Duration::from_secs(10), || {
        ensure!(stalled.stderr().contains(" more not shown"), "{}", stalled.tail());
        Ok(())
    })
    .unwrap();
    let report = load.stop().unwrap();
    println!("p99 {} ms, at most {} ms", report.p99_ms, report.max_ms);
    assert_eq!((report.failed, report.closed, report.slow, report.good()), (0, 0, 0, report.requests), "{report:?}");
}

/// However it ends, a tap is over with its reader or its control plane.
#[test]
fn taps_end_with_who_has_asked() {
    let mut mesh = Mesh::start(User::Same).unwrap();
    let _v1 = mesh.echo("reviews", "v1").unwrap();
    let all: Vec<_> = (0..8).map(|number| tap(&mesh, &format!("tap-{number}"), &[])).collect();
    let one_more = || mesh.meshctl(&["tap", "--for", "100ms"]);
    let refused = one_more().unwrap_err().to_string();
    assert!(refused.contains("8 taps are open already"), "{refused}");
    all.iter().for_each(|tap| tap.signal(Signal::SIGKILL).unwrap());
    eventually(Duration::from_secs(5), one_more).unwrap();

    let mut left = tap(&mesh, "left", &[]);
    let mut control = mesh.control.take().unwrap();
    control.signal(Signal::SIGKILL).unwrap();
    let code = left.wait(Duration::from_secs(20)).unwrap().code();
    assert_eq!(code, Some(5), "{}", left.tail());
    control.wait(Duration::from_secs(5)).unwrap();
    mesh.start_control().unwrap();
    // A proxy tells the next one that asks.
    let web = mesh.load("web", &["--url", "http://reviews:9080/", "--rate", "20"]).unwrap();
    web.flowing().unwrap();
    let shown = mesh.meshctl(&["tap", "--count", "3", "--for", "20s", "-o", "name"]).unwrap();
    assert_eq!(shown, "service/reviews\n".repeat(3));
}
