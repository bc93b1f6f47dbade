//! Everything that the demo has started, and its end.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::future::{join_all, try_join_all};
use mesh_common::names::{self, port};
use mesh_common::proto::control::CreateTokenRequest;
use rustix::process::{Pid, Signal};
use tokio::process::Child;

use super::folder::Folder;
use super::parts::{self, Part};
use crate::client::{Control, ControlAddress, Location};
use crate::failure::Failure;
use crate::netns;
use crate::run::sidecar::{Forward, Plan, Sidecar};
use crate::run::{find_program, listen_on};

const CONTROL_START: Duration = Duration::from_secs(10);
/// Somebody may take a port between our look at it and mesh-control's; another demo that starts now does.
const CONTROL_TRIES: u32 = 3;
const STOP: Duration = Duration::from_secs(5);
/// Of mesh-control, if they are free: xDS over TLS, plaintext xDS, metrics.
const CONTROL_PORTS: [u16; 3] = [port::XDS, port::XDS_PLAINTEXT, port::CONTROL_METRICS];
/// The first of the proxies' metrics ports, if they are free.
const METRICS_PORT: u16 = 15090;

pub(super) struct Running {
    /// Of the shop, on the host's loopback.
    pub(super) port: u16,
    pub(super) socket: PathBuf,
    pub(super) control_metrics: SocketAddr,
    pub(super) workloads: Vec<Workload>,
    pub(super) prometheus: PathBuf,
    pub(super) python: bool,
    control: Child,
    /// Locked as long as anything runs in it.
    folder: Folder,
}

pub(super) struct Workload {
    pub(super) part: Part,
    pub(super) sidecar: Sidecar,
    application: Option<Child>,
}

impl Running {
    pub(super) async fn start(folder: Folder, port: u16, say: impl Fn(&str)) -> Result<Self, Failure> {
        // First, because nothing is worth starting if the shop cannot be shown.
        let shop = listen_on(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        let port = shop.local_addr()?.port();
        say("Starting the control plane ...");
        let socket = folder.path.join("control.sock");
        let (control, connection, control_metrics) = start_control(&folder, &socket).await?;
        say("Starting the shop: each part in a network namespace of its own, beside its own proxy ...");
        let parts = parts::all(&folder)?;
        let python =
            parts.iter().any(|part| part.command.iter().any(|word| word.to_string_lossy().ends_with("web.py")));
        let mut shop = Some(shop);
        let starting = parts.into_iter().enumerate().map(|(index, part)| {
            let entry = (part.service == parts::GATEWAY).then(|| shop.take()).flatten();
            start_workload(&folder, &connection, index, part, entry)
        });
        // Collected first: the gateway takes the listener along when its future is made.
        let starting: Vec<_> = starting.collect();
        let workloads = try_join_all(starting).await?;
        let prometheus = write_prometheus(&folder, control_metrics, &workloads)?;
        Ok(Self { port, socket, control_metrics, workloads, prometheus, python, control, folder })
    }

    /// Names of what has ended by itself, with where its log is.
    pub(super) fn ended(&mut self) -> Vec<String> {
        let mut ended = Vec::new();
        for workload in &mut self.workloads {
            if let Some(Ok(Some(status))) = workload.application.as_mut().map(Child::try_wait) {
                ended.push(format!("{} ended ({status})", workload.part.name()));
            }
            if let Some(status) = workload.sidecar.proxy_ended() {
                ended.push(format!("the proxy of {} ended ({status})", workload.part.name()));
            }
        }
        if let Ok(Some(status)) = self.control.try_wait() {
            ended.push(format!("mesh-control ended ({status})"));
        }
        ended
    }

    /// Applications first, so that no proxy has work left; the control plane last, so that all can leave the mesh.
    pub(super) async fn stop(mut self) {
        let workloads = std::mem::take(&mut self.workloads);
        join_all(workloads.into_iter().map(|mut workload| async move {
            if let Some(application) = &mut workload.application {
                end(application).await;
            }
            workload.sidecar.stop().await;
        }))
        .await;
        end(&mut self.control).await;
        netns::gone(&self.folder.path).await;
    }
}

async fn end(child: &mut Child) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
        let _ = rustix::process::kill_process(pid, Signal::TERM);
        if tokio::time::timeout(STOP, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
    }
}

/// With its preferred ports or, when those turn out to be taken, with any.
async fn start_control(folder: &Folder, socket: &Path) -> Result<(Child, Control, SocketAddr), Failure> {
    let (mut wanted, mut left) = (CONTROL_PORTS, CONTROL_TRIES);
    loop {
        left -= 1;
        let addresses = free_addresses(wanted)?;
        let mut control = spawn_control(folder, addresses)?;
        match connect(socket, &mut control, &folder.path).await {
            Ok(connection) => return Ok((control, connection, addresses[2])),
            Err(_) if left > 0 && control.try_wait()?.is_some() => wanted = [0; 3],
            Err(failure) => return Err(failure),
        }
    }
}

fn spawn_control(folder: &Folder, [xds, plaintext, metrics]: [SocketAddr; 3]) -> Result<Child, Failure> {
    let mut command = netns::tied_command(find_program("mesh-control")?.as_os_str());
    command.args(["--mode", "standalone", "--data"]).arg(&folder.path);
    command.args(["--listen-xds", &xds.to_string(), "--listen-plaintext", &plaintext.to_string()]);
    command.args(["--listen-metrics", &metrics.to_string()]);
    spawn(command, &folder.path.join("logs/mesh-control.log"))
}

/// In the background, as far as the terminal and its Ctrl-C are concerned.
fn spawn(mut command: Command, log: &Path) -> Result<Child, Failure> {
    std::fs::create_dir_all(log.parent().unwrap_or(log))?;
    let log = File::create(log)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut command = tokio::process::Command::from(command);
    let program = command.as_std().get_program().to_owned();
    command
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Failure::new(format!("Cannot start {}: {error}.", program.display())))
}

async fn connect(socket: &Path, control: &mut Child, data: &Path) -> Result<Control, Failure> {
    let deadline = Instant::now() + CONTROL_START;
    let location = Location::Given(ControlAddress(socket.to_owned()));
    loop {
        let failure = match Control::connect(&location).await {
            Ok(connection) => return Ok(connection),
            Err(failure) => failure,
        };
        let log = data.join("logs/mesh-control.log");
        if let Some(status) = control.try_wait()? {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            return Err(Failure::new(format!("mesh-control ended at once ({status}):\n{}", said.trim())));
        }
        if Instant::now() > deadline {
            return Err(failure.hint(format!("See {}.", log.display())));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn start_workload(
    folder: &Folder,
    control: &Control,
    index: usize,
    part: Part,
    entry: Option<TcpListener>,
) -> Result<Workload, Failure> {
    let name = part.name();
    let service_account = part.service.to_owned();
    let request = CreateTokenRequest { service_account, uses: 1, ..Default::default() };
    let token = control.mesh().create_token(request).await?.into_inner().token;
    let token_file = folder.write(&format!("tokens/{name}"), &token)?;
    let ports = match part.port {
        "" => Vec::new(),
        port => vec![port.parse().map_err(Failure::usage)?],
    };
    let (service, port) = parts::ENTRY;
    let target = format!("{}:{port}", names::fqdn(service, "default"));
    let sidecar = Sidecar::start(Plan {
        data: folder.path.clone(),
        service: part.service.to_owned(),
        version: part.version.to_owned(),
        workload: name.clone(),
        ports,
        health: part.health.map(str::to_owned),
        token_file,
        metrics: listen_preferring(METRICS_PORT + u16::try_from(index).unwrap_or(0))?,
        forwards: entry.into_iter().map(|listener| Forward { listener, target: target.clone() }).collect(),
        access_log: "text".into(),
        audit_log: None,
    })
    .await?;
    let application = match part.command.split_first() {
        Some((program, arguments)) => {
            let mut command = sidecar.application(program);
            command.args(arguments);
            Some(spawn(command, &folder.path.join(format!("logs/{name}.app.log")))?)
        }
        None => None,
    };
    Ok(Workload { part, sidecar, application })
}

/// On this port of the loopback interface if it is free, else on any other.
fn listen_preferring(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
}

fn free_addresses(ports: [u16; 3]) -> io::Result<[SocketAddr; 3]> {
    let [xds, plaintext, metrics] = ports.map(listen_preferring);
    // All are held until all are found, so that no two are the same.
    let held = [xds?, plaintext?, metrics?];
    let [xds, plaintext, metrics] = held.each_ref().map(TcpListener::local_addr);
    Ok([xds?, plaintext?, metrics?])
}

/// A configuration that a Prometheus on this machine can be started with.
fn write_prometheus(folder: &Folder, control: SocketAddr, workloads: &[Workload]) -> Result<PathBuf, Failure> {
    let mut text = String::from(
        "# prometheus --config.file=prometheus.yml\n\
         global:\n  scrape_interval: 5s\n\
         scrape_configs:\n",
    );
    text.push_str(&format!("  - job_name: mesh-control\n    static_configs:\n      - targets: [\"{control}\"]\n"));
    text.push_str("  - job_name: mesh-proxy\n    static_configs:\n");
    for workload in workloads {
        let (target, name) = (workload.sidecar.metrics, workload.part.name());
        text.push_str(&format!("      - targets: [\"{target}\"]\n        labels: {{ workload: {name} }}\n"));
    }
    folder.write("prometheus.yml", &text)
}
