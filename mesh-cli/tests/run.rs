//! `meshctl run` with real namespaces, and a script in the place of mesh-proxy that only says that it is ready: what the
//! application sees, and what is left when somebody is killed. Skipped where the host allows no namespaces.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

const PROXY: &str = r#"#!/bin/sh
[ "$1" = intercept ] && exit 0
exec python3 -c '
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", 15021), Handler).serve_forever()
'
"#;

struct Mesh {
    folder: TempDir,
    // Something that listens is all that `run` itself wants of a control plane.
    _control: UnixListener,
}

/// `None`: this host allows no namespaces, or has no Python.
fn mesh() -> Option<Mesh> {
    for probe in [["unshare", "-Urn", "true"], ["python3", "-c", "import http.server"]] {
        let output = Command::new(probe[0]).args(&probe[1..]).output();
        if !output.as_ref().is_ok_and(|output| output.status.success()) {
            let why = format!("`{}` does not work here ({output:?})", probe.join(" "));
            // Where everything has to be tested, it is a failure (`e2e/test.sh` says so).
            assert!(std::env::var_os("MESH_TEST_REQUIRE_NAMESPACES").is_none(), "cannot be tested: {why}");
            println!("SKIPPED: {why}");
            return None;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::copy(env!("CARGO_BIN_EXE_meshctl"), path.join("meshctl")).unwrap();
    fs::write(path.join("mesh-proxy"), PROXY).unwrap();
    fs::set_permissions(path.join("mesh-proxy"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(path.join("token"), "token").unwrap();
    let control = UnixListener::bind(path.join("control.sock")).unwrap();
    Some(Mesh { folder, _control: control })
}

impl Mesh {
    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new(self.path().join("meshctl"));
        command.arg("--control").arg(self.path().join("control.sock"));
        command.args(["run", "--service", "web", "--token-file"]).arg(self.path().join("token"));
        command.args(["--", "sh", "-c", script]).stdin(Stdio::null());
        command
    }

    fn run(&self, script: &str) -> Output {
        self.command(script).output().unwrap()
    }

    fn spawn(&self, script: &str) -> Child {
        self.command(script).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Processes that run a program of this mesh's folder or have it on their command line.
    fn processes(&self) -> Vec<String> {
        let folder = self.path().to_string_lossy().into_owned();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        lines
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .filter(|line| line.contains(&folder))
            .collect()
    }
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !check() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_application_sees_its_own_network_and_its_exit_code_is_passed_on() {
    let Some(mesh) = mesh() else { return };
    let script = "id -u; cat /etc/resolv.conf /proc/net/route /proc/net/if_inet6; echo problem >&2; exit 7";
    let output = mesh.run(script);
    let (out, err) = (text(&output), String::from_utf8_lossy(&output.stderr).into_owned());
    assert_eq!(output.status.code(), Some(7), "{out}{err}");
    assert_eq!(err, "problem\n");
    assert!(out.starts_with(&text(&Command::new("id").arg("-u").output().unwrap())), "{out}");
    assert!(out.contains("search default.svc.cluster.local"), "{out}");
    // A default route by 10.77.0.1, in the kernel's notation.
    assert!(out.contains("eth0\t00000000\t01004D0A"), "{out}");
    assert!(out.contains("fd006d657368004d"), "{out}");
    // What ends leaves no process, and the network goes with the last one.
    eventually("something is left", || mesh.processes().is_empty() && !mesh.path().join("fabric.sock").exists());
    assert!(fs::read_dir(mesh.path().join("workloads")).unwrap().next().is_none());
}

#[test]
fn workloads_reach_each_other_and_addresses_never_clash() {
    let Some(mesh) = mesh() else { return };
    let address = mesh.path().join("address");
    let serve = format!(
        "hostname -I 2>/dev/null >/dev/null; python3 -c \"
import socket
s = socket.create_server(('0.0.0.0', 9080))
p = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); p.connect(('10.77.0.1', 9))
open('{0}.new', 'w').write(p.getsockname()[0]); import os; os.rename('{0}.new', '{0}')
c, _ = s.accept(); c.sendall(b'hello from there')
\"",
        address.display()
    );
    let mut server = mesh.spawn(&serve);
    eventually("the server did not start", || address.exists());
    let first = fs::read_to_string(&address).unwrap();
    let ask = format!(
        "python3 -c \"
import socket
c = socket.create_connection(('{first}', 9080), 5); print(c.getsockname()[0], c.recv(99).decode())
\""
    );
    let output = mesh.run(&ask);
    let out = text(&output);
    assert!(out.contains("hello from there") && !out.starts_with(&first), "{out} {output:?}");
    assert!(server.wait().unwrap().success());
}

#[test]
fn a_kill_leaves_nothing() {
    let Some(mesh) = mesh() else { return };
    let started = mesh.path().join("started");
    let mut run = mesh.spawn(&format!("touch {0}; sh -c 'sleep 1000; true' {0} & wait", started.display()));
    eventually("the application did not start", || started.exists());
    run.kill().unwrap();
    run.wait().unwrap();
    eventually("something is left", || mesh.processes().is_empty() && !mesh.path().join("fabric.sock").exists());
}

#[test]
fn signals_reach_the_application() {
    let Some(mesh) = mesh() else { return };
    let (started, told) = (mesh.path().join("started"), mesh.path().join("told"));
    let script = format!(
        "trap 'touch {}; exit 3' TERM; touch {}; while :; do sleep 0.05; done",
        told.display(),
        started.display()
    );
    let mut run = mesh.spawn(&script);
    eventually("the application did not start", || started.exists());
    Command::new("kill").args(["-TERM", &run.id().to_string()]).status().unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(3));
    assert!(told.exists());
}

#[test]
fn a_proxy_that_cannot_start_is_explained() {
    let Some(mesh) = mesh() else { return };
    let script = "#!/bin/sh\n[ \"$1\" = intercept ] && exit 0\necho 'the token is used up' >&2\nexit 1\n";
    fs::write(mesh.path().join("mesh-proxy"), script).unwrap();
    let output = mesh.run("echo never");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("ended before it was ready") && err.contains("the token is used up"), "{err}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_program_that_is_missing_has_a_shells_exit_code() {
    let Some(mesh) = mesh() else { return };
    let mut command = Command::new(mesh.path().join("meshctl"));
    let token: PathBuf = mesh.path().join("token");
    command.arg("--control").arg(mesh.path().join("control.sock")).args(["run", "--service", "web", "--token-file"]);
    let started = mesh.path().join("started");
    let proxy = format!("#!/bin/sh\ntouch {}\nexit 1\n", started.display());
    fs::write(mesh.path().join("mesh-proxy"), proxy).unwrap();
    let output = command.arg(token).args(["--", "no-such-program"]).output().unwrap();
    assert_eq!(output.status.code(), Some(127), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("There is no program `no-such-program`"), "{output:?}");
    assert!(!started.exists(), "the proxy was started, and has used the token up");
}
