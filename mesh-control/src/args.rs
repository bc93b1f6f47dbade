//! The command line of mesh-control.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use mesh_common::identity::check_trust_domain;
use mesh_common::inject::{InjectConfig, check_log_filter};
use mesh_common::names;
use mesh_common::telemetry::LogFormat;

use crate::ca::{DEFAULT_TTL, MAX_TTL, MIN_TTL};

/// The control plane of the mesh: keeps its objects, signs its certificates, and configures its proxies.
#[derive(Clone, Debug, Parser)]
#[command(name = "mesh-control", version, max_term_width = 110)]
pub struct Args {
    /// Where objects come from.
    #[arg(long, value_enum, default_value = "standalone")]
    pub mode: Mode,

    /// Folder of the store, the certificate authority and the sockets; made if it does not exist. Only for standalone mode.
    #[arg(long, value_name = "DIR", env = "MESH_DATA")]
    pub data: Option<PathBuf>,

    /// Address for proxies: xDS, certificates and registration, over TLS.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:15012")]
    pub listen_xds: SocketAddr,

    /// Address for xDS clients of this machine without TLS; it must be a loopback address. `off` for none.
    #[arg(long, value_name = "ADDRESS:PORT|off", default_value = "127.0.0.1:15010", value_parser = loopback)]
    pub listen_plaintext: Optional,

    /// Address of /metrics, /healthz, /readyz and /version. `off` for none. Default: 127.0.0.1:15014, and 0.0.0.0:15014 in
    /// Kubernetes.
    #[arg(long, value_name = "ADDRESS:PORT|off")]
    pub listen_metrics: Option<Optional>,

    /// In Kubernetes: the port on the loopback for `meshctl`, which comes by port forwarding. Default: 15016.
    #[arg(long, value_name = "PORT")]
    pub operator_port: Option<u16>,

    /// In Kubernetes: address of the admission webhooks, over TLS. `off` for none.
    #[arg(long, value_name = "ADDRESS:PORT|off", default_value = "[::]:15017")]
    pub listen_webhook: Optional,

    #[command(flatten)]
    pub inject: InjectArgs,

    /// The name that all identities begin with; fixed once the data folder is in use.
    #[arg(long, value_name = "NAME", default_value = "mesh.local", value_parser = trust_domain)]
    pub trust_domain: String,

    /// Log levels, in the syntax of RUST_LOG: `info`, `mesh_control=debug,info`, ...
    #[arg(long, value_name = "FILTER", default_value = "info", env = "MESH_LOG")]
    pub log: String,

    #[arg(long, value_name = "text|json", default_value = "text")]
    pub log_format: LogFormat,

    /// A further DNS name or IP address for the server's certificate; may be given several times.
    #[arg(long, value_name = "NAME", value_parser = subject_name)]
    pub san: Vec<String>,

    /// How long a certificate of its own servers lives, in seconds. They are renewed at half of that.
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_TTL.as_secs(), env = "MESH_CONTROL_CERTIFICATE_TTL",
          value_parser = clap::value_parser!(u64).range(MIN_TTL.as_secs()..=MAX_TTL.as_secs()))]
    pub certificate_ttl: u64,
}

/// What the webhook puts into pods.
#[derive(Clone, Debug, clap::Args)]
pub struct InjectArgs {
    /// In Kubernetes: image of the proxies.
    #[arg(long, value_name = "IMAGE", env = "MESH_PROXY_IMAGE", default_value_t = InjectConfig::default().image)]
    proxy_image: String,

    /// In Kubernetes: when that is pulled.
    #[arg(long, value_name = "POLICY", env = "MESH_PROXY_PULL_POLICY", default_value_t = InjectConfig::default().pull_policy,
          value_parser = ["IfNotPresent", "Always", "Never"])]
    proxy_pull_policy: String,

    /// In Kubernetes: processor time that is requested for a proxy.
    #[arg(long, value_name = "QUANTITY", env = "MESH_PROXY_CPU", default_value_t = InjectConfig::default().cpu)]
    proxy_cpu: String,

    /// In Kubernetes: memory that is requested for a proxy.
    #[arg(long, value_name = "QUANTITY", env = "MESH_PROXY_MEMORY", default_value_t = InjectConfig::default().memory)]
    proxy_memory: String,

    /// In Kubernetes: log levels of the proxies.
    #[arg(long, value_name = "FILTER", env = "MESH_PROXY_LOG", default_value_t = InjectConfig::default().log, value_parser = filter)]
    proxy_log: String,

    /// In Kubernetes: the nodes have the mesh's CNI plugin, so pods get no init container for the interception.
    #[arg(long, value_name = "BOOL", env = "MESH_CNI", action = clap::ArgAction::Set, default_value_t = false)]
    cni: bool,
}

impl InjectArgs {
    pub fn config(&self) -> InjectConfig {
        InjectConfig {
            image: self.proxy_image.clone(),
            pull_policy: self.proxy_pull_policy.clone(),
            cpu: self.proxy_cpu.clone(),
            memory: self.proxy_memory.clone(),
            log: self.proxy_log.clone(),
            cni: self.cni,
            ..InjectConfig::default()
        }
    }
}

impl Args {
    pub fn certificate_life(&self) -> Duration {
        Duration::from_secs(self.certificate_ttl)
    }

    pub fn metrics_address(&self) -> Option<SocketAddr> {
        let everywhere = self.mode == Mode::Kubernetes;
        let ip = if everywhere { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
        let default = SocketAddr::from((ip, names::port::CONTROL_METRICS));
        self.listen_metrics.map_or(Some(default), |given| given.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// An embedded store in the data folder.
    Standalone,
    /// The API server of the cluster that it runs in, or of KUBECONFIG.
    Kubernetes,
}

/// An address, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Optional(pub Option<SocketAddr>);

impl FromStr for Optional {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self(None)),
            _ => match text.parse() {
                Ok(address) => Ok(Self(Some(address))),
                Err(_) => {
                    Err("write an address with a port, such as 127.0.0.1:15010 or [::1]:15010, or `off`".to_owned())
                }
            },
        }
    }
}

fn filter(text: &str) -> Result<String, String> {
    check_log_filter(text).map(|()| text.to_owned())
}

fn loopback(text: &str) -> Result<Optional, String> {
    match text.parse()? {
        Optional(Some(address)) if !address.ip().is_loopback() => Err(format!(
            "{} is not a loopback address, and whoever reaches this port without TLS could read the mesh's configuration; use 127.0.0.1 or ::1",
            address.ip()
        )),
        fits => Ok(fits),
    }
}

fn trust_domain(text: &str) -> Result<String, String> {
    check_trust_domain(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

fn subject_name(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let fits = text.parse::<IpAddr>().is_ok() || (text.len() <= 253 && text.split('.').all(label));
    if fits { Ok(text.to_owned()) } else { Err("write a DNS name or an IP address".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &str) -> Result<Args, String> {
        let words = ["mesh-control", "--data", "/tmp/x"].into_iter().chain(arguments.split_whitespace());
        Args::try_parse_from(words).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_the_fields_conventions() {
        let args = parse("").unwrap();
        assert_eq!(args.listen_xds.port(), mesh_common::names::port::XDS);
        assert_eq!(args.listen_plaintext.0.unwrap().port(), mesh_common::names::port::XDS_PLAINTEXT);
        assert_eq!(args.metrics_address().unwrap().port(), mesh_common::names::port::CONTROL_METRICS);
        assert_eq!(args.mode, Mode::Standalone);
        assert!(args.metrics_address().unwrap().ip().is_loopback());
        let cluster = parse("--mode kubernetes").unwrap();
        assert!(cluster.metrics_address().unwrap().ip().is_unspecified());
        assert_eq!(parse("--listen-metrics off").unwrap().metrics_address(), None);
    }

    #[test]
    fn plaintext_stays_on_this_machine() {
        assert_eq!(parse("--listen-plaintext off").unwrap().listen_plaintext, Optional(None));
        assert!(parse("--listen-plaintext [::1]:1").is_ok());
        let error = parse("--listen-plaintext 0.0.0.0:15010").unwrap_err();
        assert!(error.contains("not a loopback address"), "{error}");
        assert!(parse("--listen-plaintext here").unwrap_err().contains("write an address"));
    }

    #[test]
    fn names_are_checked() {
        assert!(parse("--san control.example.org --san 10.0.0.1 --san ::1").is_ok());
        assert!(parse("--san a..b").is_err());
        assert!(parse("--trust-domain Mesh").is_err());
    }
}
