//! `meshctl bug-report`: one archive with what somebody needs to know who is to help, and no secrets.

mod archive;
mod clean;
mod cluster;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use jiff::{Timestamp, Unit};
use mesh_common::proto::control::{ListProxiesRequest, Proxy};
use serde::Serialize;

use self::archive::Archive;
use crate::args::Cli;
use crate::client::Location;
use crate::commands::{Context, dispatch};
use crate::failure::{Exit, Failure};
use crate::logs::{self, Log};
use crate::output::Output;

/// Files, and the commands that write them.
const COMMANDS: [(&str, &str); 9] = [
    ("version.json", "version -o json"),
    ("check.txt", "check -o wide"),
    ("proxies.json", "proxy status -o json"),
    ("objects.json", "get all -A -o json"),
    ("services.json", "get services -A -o json"),
    ("workloads.json", "get workloads -A -o json"),
    ("certificates.json", "certs -o json"),
    ("traffic.json", "top --window 1m -o json"),
    ("topology.json", "topology --window 1m -o json"),
];
/// In a cluster the API server has them.
const CHANGES: (&str, &str) = ("changes.json", "audit tail --lines 500 -o json");
/// For each part: what is slow may be what is wrong.
const PATIENCE: Duration = Duration::from_secs(30);

/// Collect what is needed to find out what is wrong
///
/// Writes one archive: versions, what `meshctl check` says, the mesh's objects, proxies with their configuration and their logs, services, certificates and
/// traffic, the control plane's log and, in a cluster, its pods, nodes and events. Private keys, tokens, passwords, headers that prove an identity, and
/// queries of addresses are left out. What cannot be had, or not within 30 seconds, is named in the file `about.txt` and does not keep the rest away.
/// Look through it before you give it to somebody: paths, host names and addresses are in there.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl bug-report
  meshctl bug-report --proxy web --proxy reviews-v2
  meshctl bug-report --lines 20000 --file /tmp/report.tar.gz")]
pub struct Args {
    /// The archive; it must not exist [default: mesh-bug-report-TIME.tar.gz]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Only the configuration and the log of this proxy; may be given several times
    #[arg(long = "proxy", value_name = "PROXY")]
    proxies: Vec<String>,
    /// Of how many proxies the configuration and the log are taken, if none are named; first of those that have rejected something
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    most: usize,
    /// How many lines of each log
    #[arg(long, value_name = "NUMBER", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    lines: u32,
}

#[derive(Serialize)]
struct Written {
    file: String,
    parts: Vec<String>,
    missing: Vec<String>,
}

pub async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let now = Timestamp::now();
    let name = format!("mesh-bug-report-{}", now.strftime("%Y%m%d-%H%M%S"));
    let path = args.file.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    // First, so that nothing is collected for nothing.
    let mut archive = Archive::create(&path, name, now)?;
    let changes = (!matches!(context.location, Location::Cluster(_))).then_some(CHANGES);
    for (file, line) in COMMANDS.into_iter().chain(changes) {
        let (text, failure) = output_of(context, line).await;
        archive.add(file, clean::output(&text))?;
        archive.missing(line, failure);
    }
    let proxies = proxies(context, args, &mut archive).await;
    for id in &proxies.configured {
        let line = config_of(id);
        let (text, failure) = output_of(context, &line).await;
        archive.add(&format!("proxies/{}.json", file_name(id)), clean::output(&text))?;
        archive.missing(&line, failure);
    }
    match limited(logs::of_control(context)).await {
        Ok(all) if all.is_empty() => archive.missing("the control plane's log", Some(Failure::new("It has no pods."))),
        Ok(all) => add_logs(&mut archive, "control-plane", &all, args.lines).await?,
        Err(failure) => archive.missing("the control plane's log", Some(failure)),
    }
    add_logs(&mut archive, "proxies", &proxies.logs, args.lines).await?;
    if let Location::Cluster(access) = &context.location {
        for (file, found) in cluster::parts(access).await {
            match found {
                Ok(value) => archive.add(&format!("cluster/{file}"), clean::document(&value))?,
                Err(failure) => archive.missing(&format!("cluster/{file}"), Some(failure)),
            }
        }
    }
    let (parts, missing) = archive.finish(&about(context, now))?;
    let written = Written { file: path.display().to_string(), parts, missing };
    let out = &context.out;
    if !out.for_people() {
        return out.data(&written);
    }
    out.line(&format!("{} has {} files.", written.file, written.parts.len()))?;
    written.missing.iter().try_for_each(|it| out.line(&format!("missing: {it}")))?;
    out.line("Secrets are left out as far as they can be told. Look through it before you give it to somebody.")
}

/// What a command prints, also if it fails, and why it does.
async fn output_of(context: &Context, line: &str) -> (String, Option<Failure>) {
    let words = ["meshctl"].into_iter().chain(line.split_whitespace());
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => return (String::new(), Some(Failure::usage(error.to_string()))),
    };
    let (out, captured) = Output::captured(cli.global.output);
    let inner = Context {
        location: context.location.clone(),
        access: context.access.clone(),
        namespace: None,
        default_namespace: context.default_namespace.clone(),
        out,
    };
    // Boxed: this is one of the commands itself.
    let failure = limited(Box::pin(dispatch(&inner, cli.command))).await.err();
    // A command that has printed what is wrong, as `check` does, has failed without a word.
    (captured.text(), failure.filter(|failure| !failure.message.is_empty()))
}

fn config_of(id: &str) -> String {
    format!("proxy config all {id} -o json")
}

async fn limited<T>(part: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = |_| Err(Failure::with(Exit::TimedOut, format!("It took longer than {} seconds.", PATIENCE.as_secs())));
    tokio::time::timeout(PATIENCE, part).await.unwrap_or_else(late)
}

/// Those that are looked at more closely.
#[derive(Default)]
struct Chosen {
    /// The ids of those whose configuration is asked for.
    configured: Vec<String>,
    logs: Vec<Log>,
}

async fn proxies(context: &Context, args: &Args, archive: &mut Archive) -> Chosen {
    let listed = limited(async {
        let control = context.connect().await?;
        Ok(control.mesh().list_proxies(ListProxiesRequest {}).await?.into_inner().proxies)
    });
    match listed.await {
        Ok(listed) => connected(context, args, listed, archive).await,
        Err(failure) => {
            archive.missing("configurations of proxies", Some(failure));
            Chosen { configured: Vec::new(), logs: logged(context, args, archive).await }
        }
    }
}

/// Of those that the control plane knows.
async fn connected(context: &Context, args: &Args, mut listed: Vec<Proxy>, archive: &mut Archive) -> Chosen {
    let mut chosen = Chosen::default();
    let rejects = |proxy: &Proxy| proxy.types.iter().any(|it| !it.nack.is_empty());
    listed.sort_by_key(|proxy| (!rejects(proxy), proxy.id.clone()));
    let mut found = Vec::new();
    for name in &args.proxies {
        match crate::views::proxies::find(&listed, name, context.namespace()) {
            Ok(proxy) => found.push((proxy.id.clone(), limited(logs::of_id(context, &proxy.id)).await)),
            // One that cannot connect has a log all the same, and `proxy config` says why it has nothing else.
            Err(_) => found.push((name.clone(), limited(logs::of_proxy(context, name)).await)),
        }
    }
    if args.proxies.is_empty() {
        more_than(args.most, listed.len(), archive);
        for proxy in listed.iter().take(args.most) {
            found.push((proxy.id.clone(), limited(logs::of_id(context, &proxy.id)).await));
        }
    }
    for (id, log) in found {
        match log {
            Ok(log) => chosen.logs.push(log),
            Err(failure) => archive.missing(&log_of(&id), Some(failure)),
        }
        chosen.configured.push(id);
    }
    chosen
}

/// Of those that have logs, where the control plane does not say which proxies there are.
async fn logged(context: &Context, args: &Args, archive: &mut Archive) -> Vec<Log> {
    let mut logs = Vec::new();
    for name in &args.proxies {
        match limited(logs::of_proxy(context, name)).await {
            Ok(log) => logs.push(log),
            Err(failure) => archive.missing(&log_of(name), Some(failure)),
        }
    }
    if !args.proxies.is_empty() {
        return logs;
    }
    let mut all = limited(logs::of_proxies(context, None)).await;
    if let Err(failure) = all {
        archive.missing("logs of proxies in other namespaces", Some(failure));
        all = limited(logs::of_proxies(context, Some(context.namespace()))).await;
    }
    match all {
        Ok(all) => {
            more_than(args.most, all.len(), archive);
            logs.extend(all.into_iter().take(args.most));
        }
        Err(failure) => archive.missing("logs of proxies", Some(failure)),
    }
    logs
}

fn more_than(most: usize, there: usize, archive: &mut Archive) {
    let why = || Failure::new(format!("only {most} of {there} are in here: --most, or --proxy"));
    archive.missing("further proxies", (there > most).then(why));
}

fn log_of(id: &str) -> String {
    format!("the log of {id}")
}

async fn add_logs(archive: &mut Archive, folder: &str, all: &[Log], lines: u32) -> Result<(), Failure> {
    for log in all {
        match limited(log.last(lines, false)).await {
            Ok(text) => archive.add(&format!("{folder}/{}.log", file_name(&log.id)), clean::log(&text))?,
            Err(failure) => archive.missing(&log_of(&log.id), Some(failure)),
        }
    }
    Ok(())
}

/// Names come from elsewhere, and must not lead out of the archive.
fn file_name(id: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    id.chars().map(plain).collect::<String>().trim_start_matches('.').to_owned()
}

fn about(context: &Context, now: Timestamp) -> String {
    let place = match &context.location {
        Location::Cluster(_) => "a mesh in Kubernetes",
        Location::Given(_) | Location::Search(_) => "a mesh on one machine",
    };
    let (version, now) = (env!("CARGO_PKG_VERSION"), now.round(Unit::Second).unwrap_or(now));
    format!("Made at {now} by meshctl {version}, of {place}. Secrets are left out: [redacted].\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_commands_are_such() {
        let config = ("config", &*config_of("web-1.default"));
        for (_, line) in COMMANDS.into_iter().chain([CHANGES, config]) {
            let words = ["meshctl"].into_iter().chain(line.split_whitespace());
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_never_comes_is_not_waited_for() {
        let late = limited(std::future::pending::<Result<(), Failure>>()).await.unwrap_err();
        assert_eq!(late.exit, Exit::TimedOut);
    }

    #[test]
    fn names_stay_in_the_archive() {
        assert_eq!(file_name("web-1.shop"), "web-1.shop");
        assert_eq!(file_name("../../etc/passwd"), "_.._etc_passwd");
        assert_eq!(file_name("a/b c"), "a_b_c");
    }
}
