//! The command line of `mesh-proxy`, checked as a whole before anything starts.
//!
//! In: arguments. Out: [`Bootstrap`], in which nothing contradicts anything.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use mesh_common::identity::check_label;
use mesh_common::inject::Probes;
use mesh_common::names::port;
use mesh_common::telemetry::LogFormat;

use crate::cni;
use crate::control::Address;
use crate::forward::Forward;
use crate::intercept;
use crate::listen::{Bind, Settings};
use crate::overload::{OverloadLimits, limit_of_cgroup};
use crate::registry::Port;
use crate::registry::health::Check;
use crate::telemetry::{AccessLog, AuditOptions, AuditTo};

/// The data plane of the mesh: sidecar, gateway and agent of a machine.
#[derive(Debug, Parser)]
#[command(name = "mesh-proxy", version, propagate_version = false)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Carry the traffic of one workload
    Run(Box<RunArgs>),
    Intercept(intercept::Args),
    CniInstall(cni::InstallArgs),
}

#[derive(Debug, clap::Args)]
#[command(disable_version_flag = true)]
pub struct RunArgs {
    /// The control plane: unix:PATH, or https://HOST:15012
    #[arg(long, value_name = "ADDRESS")]
    control: Address,
    /// File with a join token or a service account's, for the first certificate; read anew at each use
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// File with root certificates by which the control plane is verified at first, for a token of a Kubernetes service
    /// account, which names none as a join token does
    #[arg(long, value_name = "FILE", requires = "token_file")]
    trust_bundle: Option<PathBuf>,
    /// Folder for copies of the certificate and the trust bundle, to look at; keys stay in memory
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Lifetime to ask for certificates, in seconds; the control plane may shorten it
    #[arg(long, value_name = "SECONDS", default_value_t = 0, hide_default_value = true, env = "MESH_CERTIFICATE_TTL")]
    certificate_ttl: u64,

    /// Service that the application provides; none for one that only calls others
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    service: String,
    /// Version of it
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    version: String,
    /// Name of the workload, unique in its namespace [default: SERVICE-VERSION-RANDOM]
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// Address where peers reach the workload (may be repeated)
    #[arg(long = "address", value_name = "IP")]
    addresses: Vec<IpAddr>,
    /// Port of the application, with its protocol (http, http2, grpc, tcp, udp; detected when there is none, but never as udp) and the port of
    /// the service when that is another one (may be repeated)
    #[arg(long = "port", value_name = "PORT[:PROTOCOL[:SERVICE_PORT]]", value_parser = application_port)]
    ports: Vec<Port>,
    /// When the application counts as healthy: tcp, http:/PATH, or none (always) [default: tcp where there is a port]
    #[arg(long, value_name = "CHECK")]
    health: Option<Check>,
    /// Label of the workload (may be repeated)
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Where it runs: region/zone/subzone
    #[arg(long, value_name = "LOCALITY", default_value = "", hide_default_value = true)]
    locality: String,
    /// Share of the service's requests, beside the other workloads' weights
    #[arg(long, value_name = "WEIGHT", default_value_t = 1)]
    weight: u32,

    /// Threads for traffic [default: as many as there are processors, at most 2]
    #[arg(long, value_name = "NUMBER")]
    workers: Option<usize>,
    /// Whether the application's connections are redirected here, which is then tested before the proxy is ready; auto:
    /// yes, unless there are --forward listeners and no --port
    #[arg(long, value_name = "WHETHER", default_value = "auto")]
    intercept: Intercept,
    #[arg(long, value_name = "PORT", default_value_t = port::OUTBOUND)]
    outbound_port: u16,
    #[arg(long, value_name = "PORT", default_value_t = port::INBOUND)]
    inbound_port: u16,
    /// Port for DNS on the loopback address; 0: no DNS
    #[arg(long, value_name = "PORT", default_value_t = port::DNS)]
    dns_port: u16,
    /// Where to answer about readiness, configuration and log levels
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::from(([127, 0, 0, 1], port::READY)))]
    ready_addr: SocketAddr,
    /// Where to answer Prometheus
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::from(([0, 0, 0, 0], port::PROXY_METRICS)))]
    metrics_addr: SocketAddr,
    /// Listening socket for that, opened by who starts this program
    #[arg(long, value_name = "FD", conflicts_with = "metrics_addr")]
    metrics_fd: Option<RawFd>,
    /// Resolver for names that are not the mesh's (may be repeated) [default: those in /etc/resolv.conf]
    #[arg(long = "dns-upstream", value_name = "ADDRESS", value_parser = resolver)]
    dns_upstreams: Vec<SocketAddr>,
    /// UDP socket that is connected to such a resolver, opened by who starts this program
    #[arg(long, value_name = "FD")]
    dns_upstream_fd: Option<RawFd>,
    /// Unix datagram socket to who starts this program, for replies that UDP cuts off: it asks that resolver over TCP
    #[arg(long, value_name = "FD", requires = "dns_upstream_fd")]
    dns_upstream_whole_fd: Option<RawFd>,
    /// Listener that leads to a service of the mesh, for clients that are not intercepted (may be repeated)
    #[arg(long = "forward", value_name = "LISTEN=SERVICE:PORT")]
    forwards: Vec<Forward>,
    /// Open connections at most, both ways together
    #[arg(long, value_name = "NUMBER", default_value_t = Settings::default().max_connections)]
    max_connections: usize,
    /// Sessions of datagrams at most; each needs a file descriptor
    #[arg(long, value_name = "NUMBER", default_value_t = Settings::default().max_udp_sessions)]
    max_udp_sessions: usize,
    /// Bytes of memory that the proxy may hold: with nine tenths of them it refuses new requests [default: what its control
    /// group may hold, if that is limited]
    #[arg(long, value_name = "BYTES")]
    max_memory: Option<u64>,
    /// How late the proxy's tasks may run on average, in milliseconds, before it refuses new requests; 0: however late
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    max_lag: u64,
    /// What /app-health/CONTAINER/WHICH on the ready port asks of the application, as JSON
    #[arg(long, value_name = "JSON", env = "MESH_PROBES", hide = true)]
    probes: Option<String>,
    /// Address that the application is probed by, in the Host header
    #[arg(long, value_name = "IP", env = "POD_IP", hide = true)]
    pod_ip: Option<IpAddr>,
    /// Answer /drain on the ready port: for who ends the application, which waits there until nobody calls it any more
    #[arg(long)]
    drain_endpoint: bool,
    /// How long open connections may go on when the proxy is told to end, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = Settings::default().drain_timeout.as_secs())]
    drain_timeout: u64,
    /// How long who ends the application gives it for that, in seconds: /drain takes at most five sixths of it
    #[arg(long, value_name = "SECONDS")]
    grace: Option<u64>,

    /// Access log: off, text or json
    #[arg(long, value_name = "FORMAT", default_value = "off")]
    access_log: AccessLog,
    /// File for it [default: standard output]
    #[arg(long, value_name = "FILE")]
    access_log_file: Option<PathBuf>,
    /// File for decisions about who may come in, as lines of JSON: all refusals, what AUDIT policies match, and a share of the
    /// rest; -: standard output
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,
    /// Share of what is let in that is written there too, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    audit_log_allowed: f64,
    /// Size at which that file begins anew, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    audit_log_size: u64,
    /// Full files that are kept beside it
    #[arg(long, value_name = "NUMBER", default_value_t = 4, value_parser = clap::value_parser!(u16).range(..=1000))]
    audit_log_keep: u16,
    /// Log levels, in the syntax of RUST_LOG: `info`, `mesh_proxy=debug,info`, ...
    #[arg(long, value_name = "FILTER", default_value = "info", env = "MESH_LOG")]
    log: String,
    /// Log format: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", env = "MESH_LOG_FORMAT")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Intercept {
    Auto,
    Yes,
    No,
}

/// Two arguments that do not go together, or one that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BootstrapError {
    #[error("--{argument} {value:?}: {reason}")]
    Value { argument: &'static str, value: String, reason: String },
    #[error("a workload with --service needs an --address where peers reach it")]
    NoAddress,
    #[error("a workload with --service needs at least one --port")]
    NoPort,
    #[error("--port is of use only together with --service")]
    NoService,
    #[error("{0} is there twice among the ports that the proxy listens on and those of the application")]
    SamePort(u16),
}

/// How to run.
#[derive(Debug)]
pub struct Bootstrap {
    pub control: Address,
    pub token_file: Option<PathBuf>,
    pub trust_bundle: Option<PathBuf>,
    pub state_dir: Option<PathBuf>,
    pub certificate_ttl: Duration,
    pub service: String,
    pub version: String,
    pub workload: String,
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<Port>,
    pub health: Check,
    pub labels: BTreeMap<String, String>,
    pub locality: String,
    pub weight: u32,
    pub workers: usize,
    /// The redirect must work before the proxy is ready.
    pub intercepted: bool,
    /// `None`: no DNS.
    pub dns_port: Option<u16>,
    pub ready: Bind,
    pub metrics: Bind,
    /// `None`: those of the host's own configuration.
    pub dns_upstreams: Option<Vec<SocketAddr>>,
    pub dns_upstream_fd: Option<RawFd>,
    pub dns_upstream_whole_fd: Option<RawFd>,
    pub forwards: Vec<Forward>,
    pub drain_endpoint: bool,
    /// What who ends the application gives it for that.
    pub grace: Option<Duration>,
    pub probes: Probes,
    pub pod_ip: Option<IpAddr>,
    pub settings: Settings,
    pub access_log: AccessLog,
    pub access_log_file: Option<PathBuf>,
    pub audit_log: Option<AuditOptions>,
    pub log: String,
    pub log_format: LogFormat,
}

impl RunArgs {
    pub fn check(self) -> Result<Bootstrap, BootstrapError> {
        let value =
            |argument, value: &str, reason: String| BootstrapError::Value { argument, value: value.to_owned(), reason };
        if !self.service.is_empty() {
            check_label(&self.service).map_err(|error| value("service", &self.service, error.to_string()))?;
        }
        let registers = !self.addresses.is_empty();
        let workload = self.workload.unwrap_or_else(|| generated_name(&self.service, &self.version));
        if registers {
            check_label(&workload).map_err(|error| value("workload", &workload, error.to_string()))?;
        } else if !is_kubernetes_name(&workload, 253) {
            return Err(value(
                "workload",
                &workload,
                "a workload's name has letters, digits, `-`, `_` and `.`".to_owned(),
            ));
        }
        // What only metrics say may be what a Kubernetes label may: 1.2.3
        if registers && !self.version.is_empty() {
            check_label(&self.version).map_err(|error| value("version", &self.version, error.to_string()))?;
        } else if !self.version.is_empty() && !is_kubernetes_name(&self.version, 63) {
            return Err(value("version", &self.version, "a version has letters, digits, `-`, `_` and `.`".to_owned()));
        }
        let probes = match &self.probes {
            None => Probes::new(),
            Some(text) => serde_json::from_str(text)
                .map_err(|error| value("probes", text, format!("this cannot be read: {error}")))?,
        };
        match (self.service.is_empty(), self.ports.is_empty()) {
            (false, true) => return Err(BootstrapError::NoPort),
            (true, false) => return Err(BootstrapError::NoService),
            (false, false) if self.addresses.is_empty() => return Err(BootstrapError::NoAddress),
            _ => {}
        }
        // A number means one port of TCP and another of UDP.
        let mut used = vec![(self.outbound_port, false), (self.inbound_port, false), (self.outbound_port, true)];
        used.extend(self.ports.iter().map(|it| (it.port, it.protocol == "udp")));
        used.sort_unstable();
        if let Some(twice) = used.windows(2).find(|it| it[0] == it[1]) {
            return Err(BootstrapError::SamePort(twice[0].0));
        }
        if self.workers == Some(0) {
            return Err(value("workers", "0", "there must be one at least".to_owned()));
        }
        if !(0.0..=100.0).contains(&self.audit_log_allowed) {
            let text = self.audit_log_allowed.to_string();
            return Err(value("audit-log-allowed", &text, "a share is from 0 to 100 percent".to_owned()));
        }
        let audit_log = self.audit_log.map(|file| AuditOptions {
            to: match file.as_os_str() == "-" {
                true => AuditTo::Stdout,
                false => AuditTo::File {
                    path: file,
                    max_bytes: self.audit_log_size << 20,
                    keep: usize::from(self.audit_log_keep),
                },
            },
            allowed: self.audit_log_allowed / 100.0,
        });
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let own_upstreams = !self.dns_upstreams.is_empty() || self.dns_upstream_fd.is_some();
        // A UDP port accepts nothing that could be asked for.
        let asked = self.ports.iter().any(|it| it.protocol != "udp");
        let default_check = if asked { Check::Tcp { port: None } } else { Check::None };
        Ok(Bootstrap {
            control: self.control,
            token_file: self.token_file,
            trust_bundle: self.trust_bundle,
            state_dir: self.state_dir,
            certificate_ttl: Duration::from_secs(self.certificate_ttl),
            service: self.service,
            version: self.version,
            workload,
            addresses: self.addresses,
            health: self.health.unwrap_or(default_check),
            labels: self.labels.into_iter().collect(),
            locality: self.locality,
            weight: self.weight,
            workers: self.workers.unwrap_or_else(|| processors.min(2)),
            intercepted: match self.intercept {
                Intercept::Auto => self.forwards.is_empty() || !self.ports.is_empty(),
                Intercept::Yes => true,
                Intercept::No => false,
            },
            ports: self.ports,
            dns_port: Some(self.dns_port).filter(|port| *port > 0),
            ready: Bind::Address(self.ready_addr),
            metrics: self.metrics_fd.map_or(Bind::Address(self.metrics_addr), Bind::Inherited),
            dns_upstreams: own_upstreams.then_some(self.dns_upstreams),
            dns_upstream_fd: self.dns_upstream_fd,
            dns_upstream_whole_fd: self.dns_upstream_whole_fd,
            forwards: self.forwards,
            drain_endpoint: self.drain_endpoint,
            grace: self.grace.map(Duration::from_secs),
            probes,
            pod_ip: self.pod_ip,
            settings: Settings {
                outbound_port: self.outbound_port,
                inbound_port: self.inbound_port,
                max_connections: self.max_connections,
                max_udp_sessions: self.max_udp_sessions,
                drain_timeout: Duration::from_secs(self.drain_timeout),
                overload: OverloadLimits {
                    memory: self.max_memory.or_else(limit_of_cgroup).filter(|bytes| *bytes > 0),
                    lag: Some(Duration::from_millis(self.max_lag)).filter(|lag| !lag.is_zero()),
                },
                ..Settings::default()
            },
            access_log: self.access_log,
            access_log_file: self.access_log_file,
            audit_log,
            log: self.log,
            log_format: self.log_format,
        })
    }
}

/// What names of pods and values of labels are made of.
fn is_kubernetes_name(text: &str, length: usize) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=length).contains(&text.len()) && text.bytes().all(allowed)
}

/// `<service>-<version>-<random>`, as far as that fits into a label.
fn generated_name(service: &str, version: &str) -> String {
    let random: String = std::iter::repeat_with(fastrand::lowercase).take(6).collect();
    let parts = [service, version].into_iter().filter(|it| !it.is_empty());
    let mut name = parts.collect::<Vec<_>>().join("-");
    name.truncate(56);
    match name.trim_end_matches('-') {
        "" => format!("workload-{random}"),
        name => format!("{name}-{random}"),
    }
}

/// `9080`, `9080:http`, `9080:grpc:80`
fn application_port(text: &str) -> Result<Port, String> {
    let number = |digits: &str| {
        let port = digits.parse::<u16>().ok().filter(|port| *port > 0);
        port.ok_or_else(|| format!("{digits:?} is not a port from 1 to 65535"))
    };
    let mut parts = text.split(':');
    let port = number(parts.next().unwrap_or_default())?;
    let protocol = parts.next().unwrap_or_default();
    if !matches!(protocol, "" | "http" | "http2" | "grpc" | "tcp" | "udp") {
        return Err(format!(
            "{protocol:?} is not a protocol; write http, http2, grpc, tcp or udp, or nothing to detect it"
        ));
    }
    let service_port = parts.next().map_or(Ok(port), number)?;
    match parts.next() {
        None => Ok(Port { port, protocol: protocol.to_owned(), service_port }),
        Some(_) => Err("there are too many colons; write PORT:PROTOCOL:SERVICE_PORT".to_owned()),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

/// An address, with port 53 unless it says another.
fn resolver(text: &str) -> Result<SocketAddr, String> {
    let address = IpAddr::from_str(text).map(|ip| SocketAddr::new(ip, 53));
    address.or_else(|_| text.parse()).map_err(|_| format!("{text:?} is not an IP address, with or without a port"))
}

/// The servers in the text of a `resolv.conf`.
pub fn nameservers(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten().and_then(|ip| resolver(ip).ok())
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use mesh_common::inject::{InjectConfig, Outcome, inject};

    use super::*;

    fn run(line: &str) -> Result<Bootstrap, String> {
        let words = ["mesh-proxy", "run"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).map_err(|error| error.to_string())?.command {
            Command::Run(args) => args.check().map_err(|error| error.to_string()),
            Command::Intercept(_) | Command::CniInstall(_) => unreachable!(),
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_sidecar() {
        let it = run("--control unix:/run/proxy.sock --token-file /t --service reviews --version v1 --workload reviews-v1-x \
             --address 10.0.0.1 --port 9080:http:80 --port 9090 --metrics-fd 5 --dns-upstream-fd 6 --dns-upstream-whole-fd 8 --forward fd:7=web.default.svc.cluster.local:80")
        .unwrap();
        assert_eq!(it.ports[0], Port { port: 9080, protocol: "http".into(), service_port: 80 });
        assert_eq!(it.ports[1], Port { port: 9090, protocol: String::new(), service_port: 9090 });
        assert_eq!((it.health, it.intercepted), (Check::Tcp { port: None }, true));
        assert_eq!((it.metrics, it.dns_upstreams, it.dns_port), (Bind::Inherited(5), Some(vec![]), Some(15053)));
    }

    /// What the injection writes into pods is what this program understands.
    #[test]
    fn an_injected_pod() {
        let pod = serde_json::json!({
            "metadata": {
                "labels": { "version": "1.2.3" },
                "annotations": {
                    "meshctl.dev/exclude-outbound-ports": "3306",
                    "meshctl.dev/exclude-outbound-cidrs": "10.0.0.0/8,fd00::/8",
                    "meshctl.dev/access-log": "json",
                    "meshctl.dev/audit-log": "on",
                    "meshctl.dev/audit-log-allowed": "1.5",
                },
            },
            "spec": { "terminationGracePeriodSeconds": 12, "containers": [{ "name": "app", "livenessProbe": { "httpGet": { "port": 80, "path": "/$(x)" } } }] },
        });
        let Ok(Outcome::Injected(pod)) = inject(&pod, &InjectConfig::default()) else { unreachable!() };
        let command = |container: usize| {
            let container = &pod["spec"]["initContainers"][container];
            let args = container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap().to_owned());
            let probes = container["env"].as_array().into_iter().flatten().find(|it| it["name"] == "MESH_PROBES");
            let probes = probes.map(|it| format!("--probes={}", it["value"].as_str().unwrap()));
            let args = args.map(|arg| arg.replace("$(POD_NAME)", "web.v1-7d9f8b-abcde"));
            Cli::try_parse_from(std::iter::once("mesh-proxy".to_owned()).chain(args).chain(probes)).unwrap().command
        };
        let (Command::Intercept(init), Command::Run(run)) = (command(0), command(1)) else { unreachable!() };
        assert!(init.test && init.uids == [1337] && init.exclude_cidrs.len() == 2);
        assert_eq!(init.exclude_inbound_ports, [15021, 15090]);
        let run = run.check().unwrap();
        assert!(run.intercepted && run.drain_endpoint && run.trust_bundle.is_some() && run.addresses.is_empty());
        assert_eq!(run.audit_log, Some(AuditOptions { to: AuditTo::Stdout, allowed: 0.015 }));
        assert_eq!(run.grace, Some(Duration::from_secs(12)));
        assert_eq!((run.version.as_str(), run.workload.as_str()), ("1.2.3", "web.v1-7d9f8b-abcde"));
        assert_eq!(run.probes["app"].len(), 1);
        assert!(format!("{:?}", run.probes).contains("/$(x)"));
    }

    #[test]
    fn a_client_that_only_forwards_needs_no_redirect() {
        let it = run("--control https://c:15012 --forward 127.0.0.1:8080=web.default.svc.cluster.local:80").unwrap();
        assert!(!it.intercepted && it.service.is_empty() && it.workload.starts_with("workload-"));
        assert_eq!(it.health, Check::None);
        assert!(run("--control https://c --intercept yes --forward [::1]:1=a:1").unwrap().intercepted);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let with = |rest: &str| run(&format!("--control unix:/c {rest}")).unwrap_err();
        assert!(with("--service Reviews --port 1 --address 1.1.1.1").contains("--service \"Reviews\""));
        assert!(with("--service a --address 1.1.1.1").contains("--port"));
        assert!(with("--service a --port 80").contains("--address"));
        assert!(with("--port 80").contains("--service"));
        assert!(with("--service a --address 1.1.1.1 --port 15006").contains("15006 is there twice"));
        assert!(with("--service a --address 1.1.1.1 --port 80:smtp").contains("is not a protocol"));
        assert!(with("--service a --address 1.1.1.1 --port 0").contains("is not a port"));
        assert!(with("--workers 0").contains("one at least"));
        assert!(run("--control 10.0.0.1").unwrap_err().contains("unix:PATH"));
        assert!(run("").unwrap_err().contains("--control"));
    }

    #[test]
    fn decisions_are_written_where_it_is_said() {
        let it = |rest: &str| run(&format!("--control unix:/c {rest}"));
        assert_eq!(it("").unwrap().audit_log, None);
        let written = it("--audit-log - --audit-log-allowed 2.5").unwrap().audit_log;
        assert_eq!(written, Some(AuditOptions { to: AuditTo::Stdout, allowed: 0.025 }));
        let to = AuditTo::File { path: "/a".into(), max_bytes: 3 << 20, keep: 0 };
        let written = it("--audit-log /a --audit-log-size 3 --audit-log-keep 0").unwrap().audit_log;
        assert_eq!(written, Some(AuditOptions { to, allowed: 0.0 }));
        for wrong in
            ["--audit-log-allowed 101", "--audit-log-allowed -1", "--audit-log-allowed NaN", "--audit-log-size 0"]
        {
            assert!(it(&format!("--audit-log /a {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn generated_names_are_labels() {
        for (service, version) in
            [("", ""), ("a", "v1"), (&"x".repeat(63), "v1"), (&format!("{}-", "x".repeat(55)), "")]
        {
            check_label(&generated_name(service, version)).unwrap();
        }
    }

    #[test]
    fn reads_resolv_conf() {
        let text =
            "# comment\nsearch example\nnameserver 10.0.0.53\nnameserver  fd00::53\nnameserver x\noptions ndots:5\n";
        assert_eq!(
            nameservers(text),
            ["10.0.0.53:53".parse().unwrap(), "[fd00::53]:53".parse::<SocketAddr>().unwrap()]
        );
    }
}
