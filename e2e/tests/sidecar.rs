//! A sidecar that is started by hand on a host of its own: what it needs before it is ready, whom it lets in, and what it
//! answers to questions for names.

#![allow(clippy::unwrap_used)]

use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::ensure;
use mesh_e2e::as_root_and_without;
use mesh_e2e::lan::Lan;
use mesh_e2e::mesh::{Mesh, User};
use mesh_e2e::process::{Process, eventually};
use nix::sys::signal::Signal;

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
    intercept_on(mesh, lan, WORKLOAD, args);
}

fn intercept_on(mesh: &Mesh, lan: &Lan, host: usize, args: &[&str]) {
    let output = lan.on(host, mesh.program("mesh-proxy")).arg("intercept").args(args).output().unwrap();
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
        (Some(["--inbound-port", "15999"]), "do not arrive at port 15006"),
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

/// A proxy that is killed where the control plane cannot see its process, as on another machine: callers pass the workload
/// over after 5 s, as long as another one is heard of. One that lost its connection alone is there all the time.
#[test]
fn a_sidecar_that_vanishes_is_passed_over_until_it_is_back() {
    let mesh = Mesh::start(User::Same).unwrap();
    let lan = Lan::new(User::Same, 2).unwrap();
    let away = Relay::start(&mesh.folder().join("away.sock"), &mesh.data().join("proxy.sock")).unwrap();
    let start = |host: u8| {
        intercept_on(&mesh, &lan, host.into(), &[]);
        let name = format!("reviews-v{host}");
        let mut proxy = lan.on(host.into(), mesh.program("mesh-proxy"));
        proxy.args(["run", "--control", &format!("unix:{}", away.path.display()), "--token-file"]);
        proxy.arg(mesh.token("reviews").unwrap()).args(["--service", "reviews", "--workload", &name]);
        proxy.args(["--version", &format!("v{host}"), "--port", "9080:http", "--health", "none"]);
        proxy.args(["--address", &Lan::address(host).to_string(), "--dns-upstream", "192.0.2.1"]);
        let proxy = Process::start(&name, proxy, &mesh.logs()).unwrap();
        mesh.discovered("reviews", &format!("v{host}")).unwrap_or_else(|error| panic!("{error:#}: {}", proxy.tail()));
        proxy
    };
    let (stays, vanishes) = (start(0), start(1));
    let known = |version: &str| mesh.workloads("reviews", version).unwrap();
    let listed = || mesh.meshctl(&["get", "workloads", "-o", "json"]).unwrap().contains("reviews-v1");

    // Every connection breaks, and both proxies live.
    away.cut();
    let cut = Instant::now();
    eventually(Duration::from_secs(5), || {
        for proxy in [&stays, &vanishes] {
            let log = proxy.stdout() + &proxy.stderr();
            ensure!(log.matches("the workload is registered").count() == 2, "it is not back: {log}");
        }
        Ok(())
    })
    .unwrap();
    vanishes.signal(Signal::SIGKILL).unwrap();
    let killed = Instant::now();
    println!("all back after {:?}", cut.elapsed());
    while known("v1") == 1 {
        assert!(killed.elapsed() < Duration::from_secs(10), "it is not passed over");
        assert_eq!(known("v0"), 1, "{}", stays.tail());
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("passed over after {:?}", killed.elapsed());
    assert!(killed.elapsed() > Duration::from_secs(4), "{:?}", killed.elapsed());
    assert!(listed() && known("v0") == 1);
    let again = start(1);
    assert_eq!((known("v0"), known("v1")), (1, 1), "{}", again.tail());
}

/// A machine between a proxy and the control plane.
struct Relay {
    path: PathBuf,
    open: Arc<Mutex<Vec<UnixStream>>>,
}

impl Relay {
    /// Takes connections at `path` to `target` for as long as the test runs.
    fn start(path: &Path, target: &Path) -> std::io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let open = Arc::new(Mutex::new(Vec::new()));
        let (all, target) = (open.clone(), target.to_owned());
        std::thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                let Ok(far) = UnixStream::connect(&target) else { continue };
                for (mut from, mut to) in
                    [(&near, &far), (&far, &near)].map(|it| (it.0.try_clone().unwrap(), it.1.try_clone().unwrap()))
                {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                all.lock().unwrap().extend([near, far]);
            }
        });
        Ok(Self { path: path.to_owned(), open })
    }

    fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
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
