//! `meshctl bug-report`: one archive with what somebody needs to know who is to help, and no secrets.

mod archive;
mod cluster;

use std::path::PathBuf;

use clap::Parser;
use jiff::{Timestamp, Unit};
use mesh_common::proto::control::{ListProxiesRequest, Proxy};
use mesh_common::secrets::{redacted, shown_text};
use serde::Serialize;
use serde_json::Value;

use self::archive::Archive;
use crate::args::Cli;
use crate::client::Location;
use crate::commands::{Context, dispatch};
use crate::failure::Failure;
use crate::logs::{self, Log};
use crate::output::Output;

/// Files, and the commands that write them.
const COMMANDS: [(&str, &str); 10] = [
    ("version.json", "version -o json"),
    ("check.txt", "check -o wide"),
    ("proxies.json", "proxy status -o json"),
    ("objects.json", "get all -A -o json"),
    ("services.json", "get services -A -o json"),
    ("workloads.json", "get workloads -A -o json"),
    ("certificates.json", "certs -o json"),
    ("traffic.json", "top --window 1m -o json"),
    ("topology.json", "topology --window 1m -o json"),
    ("authorization.txt", "authz list -o wide"),
];
/// In a cluster the API server has them.
const CHANGES: (&str, &str) = ("changes.json", "audit tail --lines 500 -o json");

/// Collect what is needed to find out what is wrong
///
/// Writes one archive: versions, what `meshctl check` says, the mesh's objects, proxies with their configuration and their logs, services, certificates and
/// traffic, the control plane's log and, in a cluster, its pods, nodes and events. Private keys, tokens, passwords, headers that prove an identity, and
/// queries of addresses are left out. What cannot be had is named in the file `about.txt` and does not keep the rest away.
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
    #[arg(long, value_name = "NUMBER", default_value_t = 5000)]
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
        archive.add(file, clean(&text))?;
        archive.missing(line, failure);
    }
    let proxies = proxies(context, args, &mut archive).await;
    for id in &proxies {
        let line = format!("proxy config all {id} -o json");
        let (text, failure) = output_of(context, &line).await;
        archive.add(&format!("proxies/{}.json", file_name(id)), clean(&text))?;
        archive.missing(&line, failure);
    }
    match logs::of_control(context).await {
        Ok(all) => add_logs(&mut archive, "control-plane", &all, args.lines).await?,
        Err(failure) => archive.missing("the control plane's log", Some(failure)),
    }
    match logs::of_proxies(context, None).await {
        Ok(mut all) => {
            all.retain(|log| proxies.iter().any(|id| *id == log.id || id.starts_with(&format!("{}.", log.id))));
            add_logs(&mut archive, "proxies", &all, args.lines).await?;
        }
        Err(failure) => archive.missing("logs of proxies", Some(failure)),
    }
    if let Location::Cluster(access) = &context.location {
        for (file, found) in cluster::parts(access).await {
            match found {
                Ok(value) => archive.add(&format!("cluster/{file}"), document(&value))?,
                Err(failure) => archive.missing(file, Some(failure)),
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
    let failure = Box::pin(dispatch(&inner, cli.command)).await.err();
    // A command that has printed what is wrong, as `check` does, has failed without a word.
    (captured.text(), failure.filter(|failure| !failure.message.is_empty()))
}

/// The ids of those that are looked at more closely.
async fn proxies(context: &Context, args: &Args, archive: &mut Archive) -> Vec<String> {
    let listed = async {
        let control = context.connect().await?;
        Ok::<_, Failure>(control.mesh().list_proxies(ListProxiesRequest {}).await?.into_inner().proxies)
    };
    let mut listed = match listed.await {
        Ok(listed) => listed,
        Err(failure) => {
            archive.missing("configurations of proxies", Some(failure));
            return args.proxies.clone();
        }
    };
    if !args.proxies.is_empty() {
        let find = |name: &String| match crate::views::proxies::find(&listed, name, context.namespace()) {
            Ok(proxy) => proxy.id.clone(),
            Err(_) => name.clone(),
        };
        return args.proxies.iter().map(find).collect();
    }
    let rejects = |proxy: &Proxy| proxy.types.iter().any(|it| !it.nack.is_empty());
    listed.sort_by_key(|proxy| (!rejects(proxy), proxy.id.clone()));
    if listed.len() > args.most {
        let why = format!("only {} of {} are in here: --most, or --proxy", args.most, listed.len());
        archive.missing("further proxies", Some(Failure::new(why)));
    }
    listed.into_iter().take(args.most).map(|proxy| proxy.id).collect()
}

async fn add_logs(archive: &mut Archive, folder: &str, all: &[Log], lines: u32) -> Result<(), Failure> {
    for log in all {
        match log.last(lines, false).await {
            Ok(text) => archive.add(&format!("{folder}/{}.log", file_name(&log.id)), clean(&text))?,
            Err(failure) => archive.missing(&format!("the log of {}", log.id), Some(failure)),
        }
    }
    Ok(())
}

/// Names come from elsewhere, and must not lead out of the archive.
fn file_name(id: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    id.chars().map(plain).collect::<String>().trim_start_matches('.').to_owned()
}

/// Without secrets: JSON documents by their fields, anything else by its words.
fn clean(text: &str) -> String {
    let documents: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(text).into_iter().collect();
    match documents {
        Ok(documents) => documents.iter().map(document).collect(),
        Err(_) => text.lines().map(|line| line_of(line) + "\n").collect(),
    }
}

fn document(value: &Value) -> String {
    format!("{:#}\n", redacted(value))
}

/// A log may be of lines of JSON.
fn line_of(line: &str) -> String {
    match serde_json::from_str::<Value>(line) {
        Ok(value) if value.is_object() => redacted(&value).to_string(),
        _ => shown_text(line).into_owned(),
    }
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
    fn documents_and_lines_lose_their_secrets_and_nothing_else() {
        let json = r#"{"headers": [{"name": "authorization", "value": "Bearer s3cret"}, {"name": "x", "value": "y"}]}"#;
        let text = clean(json);
        assert!(!text.contains("s3cret") && text.contains("\"y\""), "{text}");
        let text = clean(&format!("{json}\n{json}\n"));
        assert!(!text.contains("s3cret") && text.matches("\"y\"").count() == 2, "{text}");
        let log = format!("INFO a: GET /a?token=s3cret status=200\n{json}\n");
        let text = clean(&log);
        assert!(!text.contains("s3cret") && text.contains("status=200") && text.contains("\"y\""), "{text}");
        assert_eq!(clean(""), "");
    }

    #[test]
    fn names_stay_in_the_archive() {
        assert_eq!(file_name("web-1.shop"), "web-1.shop");
        assert_eq!(file_name("../../etc/passwd"), "_.._etc_passwd");
        assert_eq!(file_name("a/b c"), "a_b_c");
    }
}
