//! A sidecar that is started by hand on a host of its own: what it needs before it is ready, whom it lets in, and what it
//! answers to questions for names.

#![allow(clippy::unwrap_used)]

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::ensure;
use mesh_e2e::as_root_and_without;
use mesh_e2e::lan::Lan;
use mesh_e2e::mesh::{Mesh, User};
use mesh_e2e::process::{Process, eventually};

as_root_and_without!(a_sidecar_by_hand);

const PERMISSIVE: &str = "apiVersion: meshctl.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: open}
spec: {mode: PERMISSIVE}
";
/// Hosts: the workload, and one outside of the mesh that is its resolver too.
const WORKLOAD: usize = 0;
const OUTSIDE: usize = 1;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn proxy(mesh: &Mesh, lan: &Lan) -> Command {
    let mut proxy = lan.on(WORKLOAD, mesh.program("mesh-proxy"));
    proxy.arg("run").arg("--control").arg(format!("unix:{}", mesh.data().join("proxy.sock").display()));
    proxy.arg("--token-file").arg(mesh.token("reviews").unwrap());
    proxy.args(["--service", "reviews", "--version", "v1", "--workload", "reviews-v1-a", "--port", "9080:http"]);
    proxy.args(["--address", &Lan::address(0).to_string(), "--dns-upstream", &Lan::address(1).to_string()]);
    proxy
}

fn intercept(mesh: &Mesh, lan: &Lan, args: &[&str]) {
    let output = lan.on(WORKLOAD, mesh.program("mesh-proxy")).arg("intercept").args(args).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

fn a_sidecar_by_hand(user: User) {
    let mesh = Mesh::start(user).unwrap();
    let lan = Lan::new(user, 2).unwrap();
    let mut app = lan.on(WORKLOAD, mesh.program("testapp"));
    app.args(["http", "--version", "v1"]);
    let _app = Process::start("app", app, &mesh.logs()).unwrap();

    // Not ready without the redirect, nor with one that leads elsewhere; and it says what is missing.
    for (rules, says) in [
        (None, "mesh-proxy intercept"),
        (Some(["--outbound-port", "15999"]), "did not arrive at port 15001"),
        (Some(["--dns-port", "15999"]), "did not arrive at port 15053"),
    ] {
        if let Some(rules) = rules {
            intercept(&mesh, &lan, &rules);
        }
        let mut proxy = Process::start("refused", proxy(&mesh, &lan), &mesh.logs()).unwrap();
        let status = proxy.wait(Duration::from_secs(20)).unwrap();
        assert_eq!(status.code(), Some(1), "{rules:?}: {}", proxy.tail());
        let log = proxy.stdout() + &proxy.stderr();
        assert!(log.contains("self-test") && log.contains(says), "{rules:?}: {log}");
        assert_eq!(mesh.workloads("reviews", "v1").unwrap(), 0, "it was never there for others");
    }
    intercept(&mesh, &lan, &[]);
    let proxy = Process::start("proxy", proxy(&mesh, &lan), &mesh.logs()).unwrap();
    mesh.discovered("reviews", "v1").unwrap_or_else(|error| panic!("{error:#}: {}", proxy.tail()));

    names_of_the_mesh_resolve_and_others_go_to_the_resolver(&mesh, &lan);
    strict_ports_take_nobody_from_outside(&mesh, &lan);
}

fn names_of_the_mesh_resolve_and_others_go_to_the_resolver(mesh: &Mesh, lan: &Lan) {
    let script = mesh.script("dns.py").unwrap();
    let mut resolver = lan.on(OUTSIDE, "python3");
    resolver.args([&script, "serve", &Lan::address(1).to_string(), "192.0.2.77"]);
    let resolver = Process::start("resolver", resolver, &mesh.logs()).unwrap();
    eventually(Duration::from_secs(10), || {
        ensure!(resolver.stdout().contains("serving"), "{}", resolver.tail());
        Ok(())
    })
    .unwrap();
    let address = mesh.virtual_address("reviews").unwrap().to_string();
    let asked = [
        ("reviews", address.as_str()),
        ("reviews.default", &address),
        ("reviews.default.svc", &address),
        ("reviews.default.svc.cluster.local", &address),
        ("elsewhere.example", "192.0.2.77"),
        ("reviews.example", "192.0.2.77"),
    ];
    // Any resolver that the application asks: this one does not even exist.
    let mut ask = lan.on(WORKLOAD, "python3");
    let output = ask.args([&script, "ask", "198.51.100.53"]).args(asked.map(|(name, _)| name)).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let want: String = asked.iter().map(|(name, answer)| format!("{name} {answer}\n")).collect();
    assert_eq!(said(&output), want);
}

/// Plain text, TLS without a certificate, and TLS with a stranger's; until the port is opened to them.
fn strict_ports_take_nobody_from_outside(mesh: &Mesh, lan: &Lan) {
    let (key, certificate) = (mesh.logs().join("key.pem"), mesh.logs().join("stranger.pem"));
    let mut openssl = lan.on(OUTSIDE, "openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]);
    openssl.args(["-subj", "/CN=stranger", "-addext", "subjectAltName=URI:spiffe://mesh.local/ns/default/sa/web"]);
    let output = openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let host = format!("{}:9080", Lan::address(0));
    let call = |url: &str, args: &[&str]| -> Output {
        lan.on(OUTSIDE, "curl").args(["-sS", "-k", "-m", "5"]).args(args).arg(url).output().unwrap()
    };
    let (plain, secured) = (format!("http://{host}/"), format!("https://{host}/"));
    let stranger = ["--cert", &certificate.to_string_lossy(), "--key", &key.to_string_lossy()];
    for (url, args) in
        [(&plain, &[][..]), (&secured, &[]), (&secured, &stranger), (&plain, &["--http2-prior-knowledge"])]
    {
        let output = call(url, args);
        assert!(!output.status.success() && output.stdout.is_empty(), "{url} {args:?}: {}", said(&output));
        assert_ne!(output.status.code(), Some(28), "{url} {args:?} was left hanging: {}", said(&output));
    }
    mesh.apply(PERMISSIVE).unwrap();
    let output = call(&plain, &[]);
    assert!(output.status.success() && said(&output).contains("\"version\":\"v1\""), "{}", said(&output));
}

/// Without root and where the host allows no user namespaces, it says so, and how to go on.
#[test]
fn where_namespaces_are_forbidden_meshctl_says_what_to_do() {
    let user = User::Unprivileged;
    let (mesh, nobody) = (Mesh::start(user).unwrap(), user.id().unwrap());
    // A user namespace in which no other can be made.
    let script =
        "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --ambient-caps=-all --inh-caps=-all \"$@\"";
    let forbidden = |args: &[&str]| -> Output {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-current-user", "--keep-caps", "sh", "-c", script, "sh"]);
        command.arg(mesh.program("meshctl")).args(args).current_dir(mesh.folder());
        let control = format!("unix:{}", mesh.data().join("control.sock").display());
        command.env("HOME", mesh.data()).env("MESH_CONTROL", control).uid(nobody).gid(nobody).output().unwrap()
    };
    let token = mesh.token("web").unwrap();
    let run = ["run", "--service", "web", "--token-file", &token.to_string_lossy(), "--", "true"];
    for args in [&["demo", "--port", "0", "--once"][..], &run] {
        let output = forbidden(args);
        let error = said(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
        for part in ["User namespaces are off", "sysctl -w user.max_user_namespaces", "sudo"] {
            assert!(error.contains(part), "{args:?}: {part:?} is not in: {error}");
        }
    }
}
