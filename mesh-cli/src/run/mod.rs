//! `meshctl run`: an application behind a sidecar, on this machine.
//!
//! In: who the workload is, and the application's command line. Out: a network namespace ([`crate::netns`]) with
//! `mesh-proxy` in it, and then, once that is ready, the application, whose terminal, signals and exit code are this command's
//! own. When the application has ended the proxy is told to leave the mesh, and everything is gone.

mod application;
mod dns;
mod programs;
pub mod sidecar;

use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::str::FromStr;

use mesh_common::identity::check_label;
use mesh_common::names;

use crate::client::{Control, Location, Place};
use crate::commands::Context;
use crate::failure::{Exit, Failure};
use sidecar::{AuditLog, Forward, Plan, Port, Sidecar};

pub use programs::find as find_program;

/// Run an application in the mesh, behind a proxy of its own
///
/// The application gets a network namespace. Its connections go through the proxy and names of services resolve; it is
/// discovered while it is healthy and gone when it ends. Its exit code is the exit code of this command. Should its proxy
/// end, the application is ended too, with exit code 1: no connection of it goes past the mesh. Should this command be
/// killed, so are both, and the application is gone from discovery at once.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  meshctl run --service reviews --version v2 --port 9080:http --token-file reviews.token -- ./reviews"
)]
pub struct Args {
    /// Service that the application is part of, or goes by when it only calls others
    #[arg(long, value_name = "NAME", value_parser = label)]
    service: String,
    /// Version of the service
    #[arg(long, default_value = "", hide_default_value = true, value_parser = label_or_nothing)]
    version: String,
    /// A port that the application listens on; protocols are http, http2, grpc, tcp and udp, and all but udp detected by default (may be repeated)
    #[arg(long = "port", value_name = "PORT[:PROTOCOL[:SERVICE PORT]]")]
    ports: Vec<Port>,
    /// File with the join token (see `meshctl token create`)
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// Name of this workload, unique in its namespace [default: made of service and version]
    #[arg(long, value_name = "NAME", value_parser = label)]
    workload: Option<String>,
    /// When the application counts as healthy: `tcp` (its first port that is not UDP accepts connections), `http:/path`, or `none` (always)
    #[arg(long, value_name = "CHECK")]
    health: Option<String>,
    /// Make a port of the application reachable on this machine (may be repeated)
    #[arg(long, value_name = "ADDRESS:PORT:APPLICATION PORT")]
    publish: Vec<Publish>,
    /// Where the proxy's metrics are served on this machine; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    metrics: SocketAddr,
    /// How the proxy logs requests: off, text or json
    #[arg(long, default_value = "off", value_name = "FORMAT", value_parser = ["off", "text", "json"], hide_possible_values = true)]
    access_log: String,
    /// File for the proxy's decisions about who may come in: all refusals, and what AUDIT policies match
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,
    /// Share of what is let in that is written there too, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, value_parser = percent, requires = "audit_log")]
    audit_log_allowed: f64,
    /// Program and arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    application: Vec<OsString>,
}

/// `127.0.0.1:8080:9080`
#[derive(Clone, Debug, PartialEq, Eq)]
struct Publish {
    listen: SocketAddr,
    port: u16,
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.rsplit_once(':').and_then(|(listen, port)| Some((listen.parse().ok()?, port.parse().ok()?)));
        let (listen, port) = parts
            .ok_or_else(|| format!("`{text}` is not ADDRESS:PORT:APPLICATION PORT, such as 127.0.0.1:8080:9080"))?;
        Ok(Self { listen, port })
    }
}

fn label(text: &str) -> Result<String, String> {
    check_label(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

fn label_or_nothing(text: &str) -> Result<String, String> {
    if text.is_empty() { Ok(String::new()) } else { label(text) }
}

fn percent(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
    share.ok_or_else(|| format!("`{text}` is not a share in percent, from 0 to 100"))
}

pub async fn execute(context: &Context, args: Args) -> Result<(), Failure> {
    let data = data_folder(&context.location).await?;
    if !args.token_file.is_file() {
        return Err(Failure::not_found(format!("There is no token file {}.", args.token_file.display()))
            .hint(format!("Make one with `meshctl token create --service-account {} > FILE`.", args.service)));
    }
    let Some((program, arguments)) = args.application.split_first() else {
        return Err(Failure::usage("There is no application to run."));
    };
    programs::must_exist(program)?;
    let mut forwards = Vec::new();
    for Publish { listen, port } in args.publish {
        let listener = listen_on(listen)?;
        let port = args.ports.iter().find(|known| known.port == port).map_or(port, Port::service_port);
        let target = format!("{}:{port}", names::fqdn(&args.service, context.namespace()));
        forwards.push(Forward { listener, target });
    }
    let plan = Plan {
        workload: args.workload.unwrap_or_else(|| workload_name(&args.service, &args.version)),
        service: args.service,
        version: args.version,
        health: args.health,
        ports: args.ports,
        token_file: args.token_file,
        metrics: listen_on(args.metrics)?,
        forwards,
        access_log: args.access_log,
        audit_log: args.audit_log.map(|file| AuditLog { file, allowed: args.audit_log_allowed }),
        data,
    };
    let mut signals = application::Signals::listen()?;
    let starting = Sidecar::start(plan);
    let mut sidecar = tokio::select! {
        sidecar = starting => sidecar?,
        // What has been started dies with the future.
        signal = signals.next() => return Err(Failure::silent(application::killed_by(signal))),
    };
    let mut command = sidecar.application(program);
    command.args(arguments);
    let refusals = sidecar.refusals(|reason| eprintln!("warning: the mesh does not take this workload. {reason}"));
    let ended = tokio::select! {
        ended = application::run(command.into(), &mut signals, &mut sidecar) => ended,
        never = refusals => match never {},
    };
    sidecar.stop().await;
    match ended? {
        0 => Ok(()),
        code => Err(Failure::silent(Exit::Application(code))),
    }
}

/// The folder of the control plane that other commands would talk to. Everything in it belongs to one mesh: its runs share a
/// network.
async fn data_folder(location: &Location) -> Result<PathBuf, Failure> {
    let control = Control::connect(location).await?;
    let Place::Socket(socket) = control.place else {
        return Err(Failure::usage("`meshctl run` is for a mesh on this machine; in Kubernetes, applications run in pods.")
            .hint("Label the namespace mesh-injection=enabled, or use `meshctl inject`; for a mesh on this machine, --control."));
    };
    let socket = socket.canonicalize().unwrap_or(socket);
    Ok(socket.parent().map(PathBuf::from).unwrap_or_default())
}

pub fn listen_on(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).map_err(|error| {
        Failure::new(format!("Cannot listen on {address}: {error}.")).hint("Choose another port, or 0 for a free one.")
    })
}

/// `reviews-v2-k3x9q`
pub fn workload_name(service: &str, version: &str) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut seed = u64::from(std::process::id()) ^ nanoseconds();
    let random = (0..5).map(|_| {
        // One step of splitmix64: enough to tell workloads apart, and the registry refuses a name that is taken.
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^= mixed >> 27;
        char::from(LETTERS[usize::try_from(mixed % LETTERS.len() as u64).unwrap_or(0)])
    });
    let random: String = random.collect();
    [service, version, &random].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
}

fn nanoseconds() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_secs().wrapping_mul(1_000_000_000).wrapping_add(u64::from(now.subsec_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports_are_parsed() {
        let parse = |text: &str| text.parse::<Publish>();
        assert_eq!(parse("127.0.0.1:8080:9080").unwrap().port, 9080);
        assert_eq!(parse("[::1]:8080:9080").unwrap().listen, "[::1]:8080".parse().unwrap());
        for bad in ["8080:9080", "127.0.0.1:8080", "localhost:8080:9080", ""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_the_proxy_would_refuse_is_a_wrong_command_line() {
        use clap::{Args as _, FromArgMatches as _};
        let parse = |more: &[&str]| {
            let line = ["run", "--service", "web", "--token-file", "t"].iter().chain(more).chain(&["--", "true"]);
            Args::augment_args(clap::Command::new("run"))
                .try_get_matches_from(line)
                .map(|it| Args::from_arg_matches(&it))
        };
        assert_eq!(parse(&["--version", "v1", "--access-log", "json"]).unwrap().unwrap().version, "v1");
        assert_eq!(parse(&[]).unwrap().unwrap().version, "");
        for bad in [
            ["--version", "V_1"],
            ["--workload", ""],
            ["--workload", "Web"],
            ["--access-log", "xml"],
            ["--audit-log-allowed", "1"],
        ] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn workload_names_say_what_they_are_and_differ() {
        let names: std::collections::BTreeSet<_> = (0..50).map(|_| workload_name("reviews", "v2")).collect();
        assert!(names.len() > 45);
        assert!(names.iter().all(|name| name.starts_with("reviews-v2-") && name.len() == 16), "{names:?}");
        assert!(workload_name("web", "").starts_with("web-"));
    }
}
