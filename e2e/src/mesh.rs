//! A whole mesh in a temporary folder: `mesh-control`, and applications behind sidecars started with `meshctl run`.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use crate::app::load;
use crate::process::{Process, eventually};
use crate::resolver::Resolver;

/// Who runs the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// Whoever runs the tests.
    Same,
    /// An unprivileged user, so that everything happens in a user namespace. Needs root to become that user.
    Unprivileged,
}

impl User {
    /// The user and group to become.
    pub fn id(self) -> Option<u32> {
        match self {
            Self::Same => None,
            Self::Unprivileged => Some(65_532),
        }
    }
}

/// Tests `NAME::as_root` and `NAME::without_root` of each function, which takes the `User`.
#[macro_export]
macro_rules! as_root_and_without {
    ($($test:ident),+ $(,)?) => {$(
        mod $test {
            use $crate::mesh::User;

            #[test]
            fn as_root() {
                super::$test(User::Same);
            }

            #[test]
            fn without_root() {
                super::$test(User::Unprivileged);
            }
        }
    )+};
}

const PROGRAMS: [&str; 5] = ["mesh-control", "mesh-proxy", "meshctl", "shop", "testapp"];

pub struct Mesh {
    pub control: Option<Process>,
    pub metrics: String,
    pub xds_plaintext: String,
    /// For the programs that are started from now on.
    pub environment: Vec<(&'static str, String)>,
    folder: TempDir,
    user: User,
    ports: [u16; 3],
}

impl Mesh {
    pub fn start(user: User) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("mesh-e2e-").tempdir()?;
        for part in ["bin", "data", "logs"] {
            fs::create_dir(folder.path().join(part))?;
        }
        for program in PROGRAMS {
            // Copies, because an unprivileged user may not be let into the folder where they were built.
            let copy = folder.path().join("bin").join(program);
            fs::copy(built(program)?, &copy).with_context(|| format!("cannot copy {program}"))?;
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
        }
        if let Some(id) = user.id() {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
            for part in ["data", "logs"] {
                std::os::unix::fs::chown(folder.path().join(part), Some(id), Some(id))?;
            }
        }
        let ports = [free_port()?, free_port()?, free_port()?];
        let mut mesh = Self {
            control: None,
            metrics: format!("127.0.0.1:{}", ports[2]),
            xds_plaintext: format!("127.0.0.1:{}", ports[1]),
            environment: Vec::new(),
            folder,
            user,
            ports,
        };
        mesh.start_control()?;
        Ok(mesh)
    }

    /// Starts the control plane on the data folder as it is.
    pub fn start_control(&mut self) -> anyhow::Result<()> {
        let mut command = self.command("mesh-control");
        command.args(["--mode", "standalone", "--data"]).arg(self.data());
        command.args(["--listen-xds", &format!("127.0.0.1:{}", self.ports[0])]);
        command.args(["--listen-plaintext", &self.xds_plaintext, "--listen-metrics", &self.metrics]);
        let mut control = Process::start("mesh-control", command, &self.logs())?;
        eventually(Duration::from_secs(10), || {
            ensure!(control.running(), "mesh-control ended:\n{}", control.tail());
            self.meshctl(&["version"]).map(drop)
        })?;
        self.control = Some(control);
        Ok(())
    }

    /// The TCP ports of the control plane: xDS over TLS, plaintext xDS, metrics.
    pub fn ports(&self) -> [u16; 3] {
        self.ports
    }

    /// The IPv4 addresses of a service's workloads.
    pub fn addresses(&self, service: &str) -> anyhow::Result<Vec<Ipv4Addr>> {
        let json: serde_json::Value = serde_json::from_str(&self.meshctl(&["get", "workloads", "-o", "json"])?)?;
        let workloads = json.as_array().context("not a list of workloads")?.iter().filter(|w| w["service"] == service);
        let texts = workloads.flat_map(|w| w["addresses"].as_array().cloned().unwrap_or_default());
        Ok(texts.filter_map(|t| t.as_str()?.parse().ok()).collect())
    }

    /// The IPv4 virtual address of a service.
    pub fn virtual_address(&self, service: &str) -> anyhow::Result<Ipv4Addr> {
        let json: serde_json::Value = serde_json::from_str(&self.meshctl(&["get", "services", "-o", "json"])?)?;
        let services = json.as_array().context("not a list of services")?;
        let found = services.iter().find(|s| s["name"] == service).with_context(|| format!("no service {service}"))?;
        let addresses = found["virtualAddresses"].as_array().context("no virtualAddresses")?;
        let address = addresses.iter().find_map(|a| a.as_str()?.parse().ok());
        address.with_context(|| format!("{service} has no IPv4 virtual address"))
    }

    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_path_buf()
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn logs(&self) -> PathBuf {
        self.folder.path().join("logs")
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.path().join("bin").join(name)
    }

    /// A program of the mesh, run as the mesh's user with its data folder.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.program(program));
        command.env("MESH_DATA", self.data()).env("HOME", self.data()).env_remove("MESH_CONTROL");
        command.env("RUST_BACKTRACE", "1").current_dir(self.folder.path());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(id) = self.user.id() {
            command.uid(id).gid(id);
        }
        command
    }

    /// Runs `meshctl` and gives its standard output; an exit code other than 0 is an error.
    pub fn meshctl(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.meshctl_output(args)?;
        if !output.status.success() {
            bail!("meshctl {}: {}\n{}", args.join(" "), output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub fn meshctl_output(&self, args: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.command("meshctl");
        command.arg("--control").arg(format!("unix:{}", self.data().join("control.sock").display()));
        command.args(args).output().context("cannot start meshctl")
    }

    /// Applies objects written as YAML, and waits until they are in force.
    pub fn apply(&self, yaml: &str) -> anyhow::Result<()> {
        let file = self.logs().join("apply.yaml");
        fs::write(&file, yaml)?;
        self.meshctl(&["apply", "-f", &file.to_string_lossy()])?;
        self.wait()
    }

    /// Waits until the newest revision is in force at every proxy.
    pub fn wait(&self) -> anyhow::Result<()> {
        self.meshctl(&["wait", "--timeout", "20s"]).map(drop)
    }

    /// Makes a token for a service account, in a file.
    pub fn token(&self, service_account: &str) -> anyhow::Result<PathBuf> {
        let token = self.meshctl(&["token", "create", "--service-account", service_account])?;
        let file = self.data().join(format!("token-{service_account}-{}", self.next()));
        fs::write(&file, token.trim())?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
        Ok(file)
    }

    /// Starts an application behind a sidecar: `meshctl run <args> -- <app>`.
    pub fn run(&self, service: &str, args: &[&str], app: &[&str]) -> anyhow::Result<Process> {
        let command = self.run_command(service, args, app)?;
        Process::start(&format!("{service}-{}", self.next()), command, &self.logs())
    }

    /// The same where that answers what the mesh does not know. Needs root, whoever runs the mesh.
    pub fn run_resolving(&self, resolver: &Resolver, service: &str, app: &[&str]) -> anyhow::Result<Process> {
        let command = resolver.used_by(self.user, &self.run_command(service, &[], app)?);
        Process::start(&format!("{service}-{}", self.next()), command, &self.logs())
    }

    fn run_command(&self, service: &str, args: &[&str], app: &[&str]) -> anyhow::Result<Command> {
        let token = self.token(service)?;
        let mut command = self.command("meshctl");
        command.arg("--control").arg(format!("unix:{}", self.data().join("control.sock").display()));
        command.args(["run", "--service", service, "--token-file"]).arg(token).args(args).arg("--");
        command.arg(self.program(app.first().context("no application")?)).args(app.get(1..).unwrap_or_default());
        Ok(command)
    }

    /// What the proxies have logged whose workloads' names begin so.
    pub fn proxy_logs(&self, workload: &str) -> anyhow::Result<String> {
        let files = fs::read_dir(self.data().join("logs"))?.flatten();
        let of_it = files.filter(|file| file.file_name().to_string_lossy().starts_with(workload));
        Ok(of_it.map(|file| fs::read_to_string(file.path()).unwrap_or_default()).collect())
    }

    /// A copy of `e2e/clients/<name>` that the mesh's user may read, as text for a command line.
    pub fn script(&self, name: &str) -> anyhow::Result<String> {
        let copy = self.program(name);
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name), &copy)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
        Ok(copy.display().to_string())
    }

    /// Runs `curl` behind a sidecar of its own, and gives what it printed.
    pub fn curl(&self, account: &str, args: &[&str]) -> anyhow::Result<String> {
        let app: Vec<&str> = ["/usr/bin/curl", "-sS", "-m", "10"].iter().chain(args).copied().collect();
        let mut curl = self.run(account, &[], &app)?;
        let status = curl.wait(Duration::from_secs(20))?;
        ensure!(status.success(), "curl {}: {status}\n{}", args.join(" "), curl.tail());
        Ok(curl.stdout())
    }

    /// Starts `testapp http` as a version of a service, and waits until it can be discovered.
    pub fn echo(&self, service: &str, version: &str) -> anyhow::Result<Process> {
        let args = ["--version", version, "--port", "9080:http"];
        let process = self.run(service, &args, &["testapp", "http", "--version", version])?;
        self.discovered(service, version).with_context(|| process.tail())?;
        Ok(process)
    }

    /// Waits until a healthy workload of the service's version is known to the control plane.
    pub fn discovered(&self, service: &str, version: &str) -> anyhow::Result<()> {
        eventually(Duration::from_secs(20), || {
            ensure!(self.workloads(service, version)? > 0, "{service} {version} is not discovered");
            Ok(())
        })
    }

    /// How many healthy workloads the control plane knows of a service's version.
    pub fn workloads(&self, service: &str, version: &str) -> anyhow::Result<usize> {
        let json: serde_json::Value = serde_json::from_str(&self.meshctl(&["get", "workloads", "-o", "json"])?)?;
        let fits = |w: &&serde_json::Value| w["service"] == service && w["version"] == version && w["healthy"] == true;
        Ok(json.as_array().context("not a list of workloads")?.iter().filter(fits).count())
    }

    /// Starts a client behind a sidecar, as service account `account`.
    pub fn load(&self, account: &str, args: &[&str]) -> anyhow::Result<Load> {
        let app: Vec<&str> = ["testapp", "load"].iter().chain(args).copied().collect();
        Ok(Load(self.run(account, &[], &app)?))
    }

    fn next(&self) -> u32 {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }
}

/// A running `testapp load`.
pub struct Load(pub Process);

impl Load {
    /// Waits until requests are answered, which a client that has only joined may be far from: its names are asked for
    /// when they are first used.
    pub fn flowing(&self) -> anyhow::Result<()> {
        eventually(Duration::from_secs(20), || {
            let flows = self.0.stderr().lines().any(|line| line == load::FLOWING);
            ensure!(flows, "no request was answered:\n{}", self.0.tail());
            Ok(())
        })
    }

    /// Waits until it has sent all that it was asked to.
    pub fn report(mut self) -> anyhow::Result<load::Report> {
        let status = self.0.wait(Duration::from_secs(120))?;
        self.parse(status.success())
    }

    /// Tells it to end.
    pub fn stop(mut self) -> anyhow::Result<load::Report> {
        let status = self.0.end()?;
        self.parse(status.success())
    }

    fn parse(&self, success: bool) -> anyhow::Result<load::Report> {
        ensure!(success, "the client failed:\n{}", self.0.tail());
        let out = self.0.stdout();
        let line = out.lines().last().with_context(|| format!("the client said nothing:\n{}", self.0.tail()))?;
        serde_json::from_str(line).with_context(|| format!("not a report: {line}"))
    }
}

pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A program of this build: from the folder that `e2e/test.sh` names, or from one above the running test.
fn built(program: &str) -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let named = std::env::var_os("MESH_E2E_PROGRAMS").map(PathBuf::from);
    let folders = named.iter().map(PathBuf::as_path).chain(exe.ancestors());
    let path = folders.map(|folder| folder.join(program)).find(|path| path.is_file());
    path.with_context(|| format!("{program} is not built: run `bash e2e/test.sh build`"))
}

/// Python with grpcio, as `e2e/test.sh` installs it.
pub fn python() -> anyhow::Result<PathBuf> {
    from_environment("MESH_E2E_PYTHON")
}

/// Envoy, as `e2e/test.sh` installs it.
pub fn envoy() -> anyhow::Result<PathBuf> {
    from_environment("MESH_E2E_ENVOY")
}

/// The conformance tests of HTTP/2, as `e2e/test.sh` builds them.
pub fn h2spec() -> anyhow::Result<PathBuf> {
    from_environment("MESH_E2E_H2SPEC")
}

fn from_environment(name: &str) -> anyhow::Result<PathBuf> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .with_context(|| format!("{name} is not set: run `bash e2e/test.sh system`"))
}
