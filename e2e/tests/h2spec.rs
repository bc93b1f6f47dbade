//! The HTTP/2 of both listeners by h2spec, the conformance tests of RFC 9113's frames and RFC 7541's headers, with those for
//! what an endpoint only should do.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use mesh_e2e::lan::Lan;
use mesh_e2e::mesh::{self, Mesh, User};
use mesh_e2e::process::{Process, eventually};

/// Hosts: the workload, and one outside of the mesh.
const WORKLOAD: usize = 0;
const OUTSIDE: usize = 1;
/// All that h2spec has; fewer means that some were not run.
const TESTS: usize = 146;
/// What h2spec takes for a failure where a port takes HTTP/1.1 too: what does not begin with HTTP/2's preface is a request line
/// there, and the server of HTTP/1.1 answers the broken one with 400 (RFC 9112, section 3) before it ends the connection.
/// RFC 9113 (3.4) lets GOAWAY be left out just so. h2spec wants to see nothing before the end.
const NO_PREFACE: [&str; 4] = [
    "× 2: Sends invalid connection preface",
    "-> The endpoint MUST terminate the TCP connection.",
    "Expected: Connection closed",
    "Actual: Error: http2: failed reading the frame payload: unexpected EOF, note that the frame header looked like an HTTP/1.1 header",
];

/// Fails unless h2spec has run everything, and everything passed but what is `known`. `ran` is what it printed.
fn passed(ran: &str, known: &[&str]) -> anyhow::Result<()> {
    let failed = usize::from(!known.is_empty());
    let summary = ran.lines().rev().find(|line| line.contains(" tests, ")).context("no summary")?;
    let report = ran.split_once("Failures:").map(|(_, report)| report).unwrap_or_default();
    let wanted = format!("{TESTS} tests, {} passed, 0 skipped, {failed} failed", TESTS - failed);
    ensure!(summary.trim() == wanted, "{summary}\n{report}");
    // Beside the headings of the chapters.
    let said = report.lines().map(str::trim).skip_while(|line| !line.starts_with('×'));
    let said: Vec<_> = said.take_while(|line| !line.is_empty()).collect();
    ensure!(said == known, "{report}");
    Ok(())
}

/// The header's length is such that a frame of five is longer than the proxy's frames may be (64 KiB), as a test wants it.
fn target(host: &str, port: u16) -> [String; 7] {
    let port = port.to_string();
    ["--strict", "--host", host, "--port", &port, "--timeout=5", "--max-header-length=16000"].map(str::to_owned)
}

#[test]
fn what_the_application_says_to_its_proxy() {
    let mesh = Mesh::start(User::Same).unwrap();
    let reviews = mesh.echo("reviews", "v1").unwrap();
    let program = mesh.program("h2spec");
    fs::copy(mesh::h2spec().unwrap(), &program).unwrap();
    let address = mesh.virtual_address("reviews").unwrap().to_string();
    let args = target(&address, 9080);
    let app: Vec<&str> = ["h2spec"].into_iter().chain(args.iter().map(String::as_str)).collect();
    let mut h2spec = mesh.run("web", &[], &app).unwrap();
    h2spec.wait(Duration::from_secs(300)).unwrap();
    passed(&h2spec.stdout(), &NO_PREFACE).unwrap_or_else(|error| panic!("{error:#}\n{}", reviews.tail()));
}

#[test]
fn what_peers_say_to_the_application_s_proxy() {
    let mesh = Mesh::start(User::Same).unwrap();
    let lan = Lan::new(User::Same, 2).unwrap();
    let mut app = lan.on(WORKLOAD, mesh.program("testapp"));
    app.args(["http", "--version", "v1"]);
    let _app = Process::start("app", app, &mesh.logs()).unwrap();
    let output = lan.on(WORKLOAD, mesh.program("mesh-proxy")).arg("intercept").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let control = format!("unix:{}", mesh.data().join("proxy.sock").display());
    let host = Lan::address(0).to_string();
    let mut proxy = lan.on(WORKLOAD, mesh.program("mesh-proxy"));
    proxy.args(["run", "--control", &control, "--token-file"]).arg(mesh.token("reviews").unwrap());
    proxy.args(["--service", "reviews", "--version", "v1", "--workload", "reviews-v1-a", "--port", "9080:http"]);
    proxy.args(["--address", &host, "--dns-upstream", &Lan::address(1).to_string()]);
    let proxy = Process::start("proxy", proxy, &mesh.logs()).unwrap();
    mesh.discovered("reviews", "v1").unwrap_or_else(|error| panic!("{error:#}: {}", proxy.tail()));

    // In clear, a permissive port passes HTTP on to the application as it came: the proxy speaks it over mutual TLS only.
    let mut peer = lan.on(OUTSIDE, mesh.program("testapp"));
    peer.args(["peer", "--control", &control, "--listen", "127.0.0.1:9000", "--to", &format!("{host}:9080")]);
    peer.arg("--token-file").arg(mesh.token("web").unwrap());
    let mut peer = Process::start("peer", peer, &mesh.logs()).unwrap();
    eventually(Duration::from_secs(20), || {
        ensure!(peer.running() && peer.stdout().contains("ready"), "{}", peer.tail());
        Ok(())
    })
    .unwrap();
    let mut h2spec = lan.on(OUTSIDE, mesh::h2spec().unwrap());
    let output = h2spec.args(target("127.0.0.1", 9000)).output().unwrap();
    passed(&String::from_utf8_lossy(&output.stdout), &[]).unwrap_or_else(|error| panic!("{error:#}\n{}", proxy.tail()));
}
