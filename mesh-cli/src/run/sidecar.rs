//! A workload's namespace with its proxy running in it.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::time::Duration;

use mesh_common::names::port;
use rustix::process::{Pid, Signal};
use tokio::process::Child;

use super::dns::{self, HostResolver};
use super::programs;
use crate::failure::{Exit, Failure};
use crate::local::AdminProxy;
use crate::netns::{self, Lease, Who};
use crate::state::State;

/// How long a proxy may take to be ready: it needs its certificate and its first configuration.
const START: Duration = Duration::from_secs(20);
/// How long a proxy may take to end: it finishes the requests that it has.
const DRAIN: Duration = Duration::from_secs(15);
/// How long the application waits at most for its peers, before it is told to end.
const DEPART: Duration = Duration::from_secs(16);
/// How often it is looked whether the control plane takes the workload.
const LOOK: Duration = Duration::from_secs(1);
/// How much of the proxy's log is shown when it fails.
const LOG_LINES: u32 = 12;

/// What to start.
pub struct Plan {
    /// Of the control plane, whose socket for proxies is there.
    pub data: PathBuf,
    pub service: String,
    pub version: String,
    pub workload: String,
    pub ports: Vec<Port>,
    pub health: Option<String>,
    pub token_file: PathBuf,
    /// On the host.
    pub metrics: TcpListener,
    pub forwards: Vec<Forward>,
    pub access_log: String,
    pub audit_log: Option<AuditLog>,
}

/// Where the proxy's decisions about access are written.
pub struct AuditLog {
    pub file: PathBuf,
    /// Percents of what is let in.
    pub allowed: f64,
}

/// A listener on the host whose connections the proxy takes to a service, `FQDN:PORT`.
pub struct Forward {
    pub listener: TcpListener,
    pub target: String,
}

/// `PORT[:PROTOCOL[:SERVICE PORT]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub port: u16,
    text: String,
    service_port: Option<u16>,
}

impl Port {
    pub fn service_port(&self) -> u16 {
        self.service_port.unwrap_or(self.port)
    }
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            text.parse::<u16>()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| format!("`{text}` is not a port (1 to 65535)"))
        };
        let mut parts = text.split(':');
        let port = number(parts.next().unwrap_or_default())?;
        match parts.next() {
            None | Some("" | "http" | "http2" | "grpc" | "tcp" | "udp") => {}
            Some(other) => {
                return Err(format!(
                    "`{other}` is not a protocol: take http, http2, grpc, tcp or udp, or leave it out"
                ));
            }
        }
        let service_port = parts.next().map(number).transpose()?;
        if parts.next().is_some() {
            return Err("there are too many colons: write PORT:PROTOCOL:SERVICE PORT".into());
        }
        Ok(Self { port, text: text.to_owned(), service_port })
    }
}

pub struct Sidecar {
    /// Where the proxy's metrics are, on the host.
    pub metrics: SocketAddr,
    /// The proxy's log.
    pub log: PathBuf,
    lease: Lease,
    proxy: Child,
    admin: AdminProxy,
    // After the proxy, which writes there.
    state: State,
    _resolver: Option<HostResolver>,
}

impl Sidecar {
    /// Returns when the proxy is ready. Dropped before that, it leaves nothing.
    pub async fn start(plan: Plan) -> Result<Self, Failure> {
        let program = programs::find("mesh-proxy")?;
        let lease = netns::lease(&plan.data).map_err(|error| Failure::new(format!("{error}.")))?;
        let log = log_file(&plan).map_err(|error| {
            Failure::new(format!("The data folder {} cannot be used: {error}.", plan.data.display()))
        })?;
        let state = State::take(&plan.data, &plan.workload)?;
        intercept(&lease, &program).await?;
        let metrics = plan.metrics.local_addr()?;
        let resolver = dns::host_resolver();
        let proxy = spawn_proxy(&lease, &program, &plan, &log, state.folder(), resolver.as_ref())?;
        let admin = AdminProxy::of(&plan.data, &plan.workload);
        let mut sidecar = Self { metrics, log, lease, proxy, admin, state, _resolver: resolver };
        sidecar.wait_until_ready().await?;
        Ok(sidecar)
    }

    /// A command that runs a program behind this proxy. To be spawned from a thread that stays.
    pub fn application(&self, program: &OsStr) -> Command {
        self.lease.command(Who::Application, program, &[])
    }

    /// Returns when the proxy or the network is gone, with a sentence about it.
    pub async fn lost(&mut self) -> String {
        tokio::select! {
            ended = self.proxy.wait() => match ended {
                Ok(status) => format!("mesh-proxy ended ({status}); its log is {}", self.log.display()),
                Err(error) => format!("mesh-proxy cannot be watched: {error}"),
            },
            _ = self.lease.lost() => "the process that holds the mesh's network ended".to_owned(),
        }
    }

    /// How the proxy ended, if it has.
    pub fn proxy_ended(&mut self) -> Option<ExitStatus> {
        self.proxy.try_wait().ok().flatten()
    }

    /// Returns when no peer calls the application any more, or the proxy cannot bring that about.
    pub fn drained(&self) -> impl Future<Output = ()> + Send + use<> {
        let admin = self.admin.clone();
        async move {
            if let Ok(Err(failure)) = tokio::time::timeout(DEPART, admin.drain()).await {
                tracing::debug!(%failure, "the application ends without having been taken out of the mesh before");
            }
        }
    }

    /// Says each time when the control plane begins to refuse the workload. Runs until it is dropped.
    pub fn refusals(&self, tell: fn(&str)) -> impl Future<Output = Infallible> + Send + use<> {
        let admin = self.admin.clone();
        async move {
            let mut told = None;
            loop {
                let refusal = admin.refusal().await;
                if let Some(reason) = refusal.as_deref().filter(|_| refusal != told) {
                    tell(reason);
                }
                told = refusal;
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    /// Tells the proxy to leave the mesh, and waits until it has.
    pub async fn stop(mut self) {
        if let Some(pid) = self.proxy.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
            if tokio::time::timeout(DRAIN, self.proxy.wait()).await.is_err() {
                let _ = self.proxy.kill().await;
            }
        }
        drop(self.state);
    }

    async fn wait_until_ready(&mut self) -> Result<(), Failure> {
        let address = SocketAddr::from(([127, 0, 0, 1], port::READY)).to_string();
        let mut waiting = tokio::process::Command::from(self.lease.ready_command(&address, START));
        waiting.stdin(Stdio::null()).kill_on_drop(true);
        let mut exit = Exit::Failed;
        let reason = tokio::select! {
            output = waiting.output() => {
                let output = output?;
                if output.status.success() {
                    return Ok(());
                }
                format!("mesh-proxy was not ready after {} seconds: {}", START.as_secs(), String::from_utf8_lossy(&output.stdout).trim())
            }
            status = self.proxy.wait() => {
                let status = status?;
                if status.code() == Some(i32::from(Exit::Usage.code())) {
                    exit = Exit::Usage;
                }
                format!("mesh-proxy ended before it was ready ({status})")
            }
        };
        Err(Failure::with(exit, format!("{}.\n{}", reason.trim_end_matches('.'), last_lines(&self.log)))
            .hint(format!("Its whole log is {}.", self.log.display())))
    }
}

fn log_file(plan: &Plan) -> io::Result<PathBuf> {
    let logs = plan.data.join("logs");
    fs::create_dir_all(&logs)?;
    Ok(logs.join(format!("{}.log", plan.workload)))
}

/// Writes the redirect of the namespace. A program of its own, so that what forbids it is said before anything else runs.
pub async fn intercept(lease: &Lease, program: &Path) -> Result<(), Failure> {
    let mut command = lease.command(Who::Proxy, program.as_os_str(), &[]);
    command.args(["intercept", "--udp"]).stdin(Stdio::null());
    let output = tokio::process::Command::from(command).kill_on_drop(true).output().await?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("The application's connections cannot be intercepted: {}", said.trim())))
}

fn spawn_proxy(
    lease: &Lease,
    program: &Path,
    plan: &Plan,
    log: &Path,
    state: &Path,
    resolver: Option<&HostResolver>,
) -> Result<Child, Failure> {
    let mut inherit = vec![plan.metrics.as_fd()];
    inherit.extend(resolver.iter().flat_map(|it| [it.udp.as_fd(), it.whole.as_fd()]));
    inherit.extend(plan.forwards.iter().map(|forward| forward.listener.as_fd()));
    let mut command = lease.command(Who::Proxy, program.as_os_str(), &inherit);
    let control = format!("unix:{}", plan.data.join("proxy.sock").display());
    command.args(["run", "--control", &control]).arg("--token-file").arg(&plan.token_file);
    command.arg("--state-dir").arg(state);
    command.args(["--workload", &plan.workload, "--intercept", "yes"]);
    // Who only calls others is known by its service account, and nobody looks for it.
    if !plan.ports.is_empty() {
        command.args(["--service", &plan.service]);
    }
    if !plan.version.is_empty() {
        command.args(["--version", &plan.version]);
    }
    for address in lease.addresses() {
        command.args(["--address", &address.to_string()]);
    }
    for port in &plan.ports {
        command.args(["--port", &port.text]);
    }
    if let Some(health) = &plan.health {
        command.args(["--health", health]);
    }
    command.args(["--metrics-fd", &plan.metrics.as_raw_fd().to_string(), "--access-log", &plan.access_log]);
    if let Some(audit) = &plan.audit_log {
        command.arg("--audit-log").arg(&audit.file).args(["--audit-log-allowed", &audit.allowed.to_string()]);
    }
    if let Some(resolver) = resolver {
        command.args(["--dns-upstream-fd", &resolver.udp.as_raw_fd().to_string()]);
        command.args(["--dns-upstream-whole-fd", &resolver.whole.as_raw_fd().to_string()]);
    }
    for forward in &plan.forwards {
        command.args(["--forward", &format!("fd:{}={}", forward.listener.as_raw_fd(), forward.target)]);
    }
    let log = File::create(log)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // Not in the terminal's foreground group: Ctrl-C is for the application, the proxy goes after it.
    let mut command = tokio::process::Command::from(command);
    command.process_group(0).kill_on_drop(true);
    command.spawn().map_err(|error| Failure::with(Exit::Failed, format!("Cannot start mesh-proxy: {error}.")))
}

fn last_lines(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(crate::logs::last_lines(&bytes, LOG_LINES)).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_parsed_and_mistakes_named() {
        let port: Port = "9080:http:80".parse().unwrap();
        assert_eq!((port.port, port.service_port()), (9080, 80));
        assert_eq!("9080".parse::<Port>().unwrap().service_port(), 9080);
        for (bad, word) in
            [("0", "port"), ("http", "port"), ("80:https", "protocol"), ("80:tcp:x", "port"), ("80:tcp:1:2", "colons")]
        {
            let error = bad.parse::<Port>().unwrap_err();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }
}
