//! `meshctl audit`: who has changed what in the mesh.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use mesh_common::proto::control::QueryAuditRequest;
use mesh_common::resource::Kind;
use serde_json::Value;

use crate::commands::Context;
use crate::failure::Failure;
use crate::output::Format;
use crate::output::time::parse_positive_duration;
use crate::views::audit;

/// What is no object, and is written down too.
const NO_OBJECTS: [&str; 2] = ["JoinToken", "RootCertificate"];

/// Show who has changed what in the mesh
///
/// mesh-control writes down each change of its objects, each join token that is made, and each root certificate that comes and goes: when, who, and what was there before and is after. Who that was is
/// the user at the other end of its socket, or the identity of a proxy that registers its workload. Keys and values of headers that prove an identity are
/// left out. In Kubernetes changes are made at the API server, whose audit log has them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl audit tail --follow
  meshctl audit query --since 1h --who ada
  meshctl audit query --object httproute/reviews -o json")]
pub struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Tail(Tail),
    Query(Query),
}

/// Show the last changes
#[derive(Debug, clap::Args)]
struct Tail {
    /// How many
    #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    lines: u32,
    /// Go on with those that come, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    filter: Filter,
}

/// Show all changes that are kept, or those that are asked for
#[derive(Debug, clap::Args)]
struct Query {
    /// Only changes of the last time, such as 30m or 2d
    #[arg(long, value_name = "DURATION", value_parser = parse_positive_duration)]
    since: Option<Duration>,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, clap::Args)]
struct Filter {
    /// Only changes of this object, or of this kind
    #[arg(long, value_name = "KIND[/NAME]")]
    object: Option<String>,
    /// Only changes by users or proxies with this in their name, or by the user with this uid
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
}

pub async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    let (filter, mut request) = match args.command {
        Action::Tail(args) => {
            let request = QueryAuditRequest { last: args.lines, follow: args.follow, ..Default::default() };
            (args.filter, request)
        }
        Action::Query(args) => {
            let since = args.since.map(|since| SystemTime::now().checked_sub(since).unwrap_or(UNIX_EPOCH));
            let since = since.map(|since| since.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis());
            let since_unix_ms = since.map_or(0, |since| i64::try_from(since).unwrap_or(i64::MAX).max(1));
            (args.filter, QueryAuditRequest { since_unix_ms, ..Default::default() })
        }
    };
    if let Some(object) = &filter.object {
        (request.kind, request.name) = subject(object)?;
    }
    request.who = filter.who.unwrap_or_default();
    request.namespace = context.namespace.clone().unwrap_or_default();
    let follows = request.follow;
    let control = context.connect().await?;
    let mut entries = control.mesh().query_audit(request).await?.into_inner();
    let out = &context.out;
    let mut table = audit::table();
    let mut none = true;
    while let Some(entry) = entries.message().await? {
        none = false;
        let record: Value = serde_json::from_str(&entry.json)
            .map_err(|error| Failure::new(format!("The control plane answers strangely: {error}.")))?;
        match out.format {
            Format::Json | Format::Yaml => out.streamed(&record)?,
            Format::Name => out.line(&name(&record))?,
            Format::Table | Format::Wide if follows => {
                let cells = audit::row(&record);
                let texts: Vec<&str> =
                    cells.iter().map(|cell| cell.text.as_str()).filter(|it| !it.is_empty()).collect();
                out.line(&texts.join("  "))?;
            }
            Format::Table | Format::Wide => table.row(audit::row(&record)),
        }
    }
    match (out.for_people(), none) {
        (true, true) => out.note("No change like that is written down."),
        (true, false) if !follows => out.table(&table)?,
        _ => {}
    }
    Ok(())
}

fn name(record: &Value) -> String {
    let text = |field: &str| record["object"][field].as_str().unwrap_or_default();
    format!("{}/{}", text("kind").to_lowercase(), text("name"))
}

/// `httproute/reviews`, or a kind alone.
fn subject(text: &str) -> Result<(String, String), Failure> {
    let (kind, name) = text.split_once('/').unwrap_or((text, ""));
    if let Some(kind) = NO_OBJECTS.into_iter().find(|it| it.eq_ignore_ascii_case(kind)) {
        return Ok((kind.to_owned(), name.to_owned()));
    }
    let kind = Kind::parse(kind).map_err(|error| Failure::usage(format!("--object: {error}.")))?;
    Ok((kind.as_str().to_owned(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_named_as_elsewhere() {
        let named = |text: &str| subject(text).unwrap();
        assert_eq!(named("httproutes/reviews"), ("HTTPRoute".into(), "reviews".into()));
        assert_eq!(named("svc"), ("Service".into(), String::new()));
        assert_eq!(named("jointoken/abc"), ("JoinToken".into(), "abc".into()));
        assert_eq!(named("rootcertificate"), ("RootCertificate".into(), String::new()));
        assert!(subject("pod/x").is_err());
    }
}
