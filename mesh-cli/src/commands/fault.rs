//! `meshctl fault`: injects faults for a limited time, lists and clears them.

use std::time::Duration;

use clap::Subcommand;
use jiff::Timestamp;
use mesh_common::resource::{ByteRate, FaultInjection, Key, Kind, Object};
use serde::Serialize;

use crate::commands::Context;
use crate::commands::wait::Waiting;
use crate::failure::Failure;
use crate::faults::{self, Effect, Order, View};
use crate::kinds;
use crate::objects::{self, Change, Done, Selection};
use crate::output::time::{human_duration, parse_positive_duration};
use crate::output::{Cell, Format, Table};
use crate::routes::conditions::Conditions;

/// Inject faults into calls of a service
///
/// Faults happen in the callers' proxies and end by themselves, even when the control plane is gone by then.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl fault delay reviews --percent 50 --delay 2s --for 1m --from web
  meshctl fault abort reviews --percent 10 --status 503
  meshctl fault abort ratings --grpc-status 14
  meshctl fault reset stock --percent 5
  meshctl fault throttle reviews --rate 64Ki --percent 50 --for 5m --from web
  meshctl fault list
  meshctl fault clear")]
pub struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Delay(Delay),
    Abort(Abort),
    Reset(Reset),
    Throttle(Throttle),
    List(List),
    Clear(Clear),
}

#[derive(Debug, clap::Args)]
struct Common {
    /// The service whose calls are hit
    #[arg(value_name = "SERVICE")]
    service: String,
    /// Share of the requests (for TCP, connections) that are hit; up to four decimals
    #[arg(long, value_name = "P", default_value = "100", value_parser = percent)]
    percent: f64,
    /// How long the fault lasts
    #[arg(long = "for", value_name = "DURATION", default_value = "5m", value_parser = parse_positive_duration)]
    lifetime: Duration,
    /// Let the fault last until it is cleared
    #[arg(long, conflicts_with = "lifetime")]
    until_cleared: bool,
    /// Only calls of this service or service account; may be given more than once
    #[arg(long, value_name = "CALLER")]
    from: Vec<String>,
    /// Only requests with this header; all that are given must be there
    #[arg(long, value_name = "NAME=VALUE")]
    header: Vec<String>,
    /// Name of the FaultInjection object; made from the rest if not given
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    waiting: Waiting,
}

/// Delay requests before they are sent
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl fault delay reviews --delay 2s
  meshctl fault delay reviews --percent 50 --delay 300ms --for 10m --from web")]
struct Delay {
    #[command(flatten)]
    common: Common,
    /// How long a request that is hit waits
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_positive_duration)]
    delay: Duration,
}

/// Answer requests with an error instead of sending them
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl fault abort reviews --percent 10 --status 503
  meshctl fault abort ratings --grpc-status 14 --header end-user=jason")]
struct Abort {
    #[command(flatten)]
    common: Common,
    /// HTTP status of the answer
    #[arg(long, value_name = "CODE", default_value_t = 503, value_parser = clap::value_parser!(u16).range(200..600))]
    status: u16,
    /// gRPC status of the answer to gRPC requests; follows from the HTTP status if not given
    #[arg(long, value_name = "CODE", value_parser = clap::value_parser!(u32).range(1..17))]
    grpc_status: Option<u32>,
}

/// Reset connections (HTTP/1.1, TCP) or streams (HTTP/2, gRPC)
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  meshctl fault reset stock --percent 5 --for 1m")]
struct Reset {
    #[command(flatten)]
    common: Common,
}

/// Slow down what comes back
///
/// Each response, or byte stream of TCP, by itself: its bytes come no faster than the rate. One that is under way when the
/// fault ends goes on at full speed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl fault throttle reviews --rate 64Ki
  meshctl fault throttle reviews --rate 64Ki --percent 50 --for 5m --from web")]
struct Throttle {
    #[command(flatten)]
    common: Common,
    /// Bytes per second: a whole number, also with k, M, G, Ki, Mi or Gi
    #[arg(long, value_name = "RATE")]
    rate: ByteRate,
}

/// Show the faults that there are
#[derive(Debug, clap::Args)]
struct List {
    /// Faults of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
}

/// End faults now
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl fault clear                         all faults of the namespace
  meshctl fault clear reviews                 the faults of a service
  meshctl fault clear reviews-delay-from-web  one fault")]
struct Clear {
    /// Only the faults of this service, or the one with this name
    #[arg(value_name = "SERVICE|NAME")]
    which: Option<String>,
    /// Faults of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    #[command(flatten)]
    waiting: Waiting,
}

pub async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    match args.command {
        Action::Delay(args) => inject(context, &args.common, Effect::Delay(args.delay)).await,
        Action::Abort(args) => {
            let effect = Effect::Abort { http_status: args.status, grpc_status: args.grpc_status };
            inject(context, &args.common, effect).await
        }
        Action::Reset(args) => inject(context, &args.common, Effect::Reset).await,
        Action::Throttle(args) => inject(context, &args.common, Effect::Throttle(args.rate)).await,
        Action::List(args) => list(context, &args).await,
        Action::Clear(args) => clear(context, &args).await,
    }
}

fn percent(text: &str) -> Result<f64, String> {
    let number: f64 = text.trim_end_matches('%').parse().map_err(|_| format!("`{text}` is not a number"))?;
    let scaled = number * 10_000.0;
    if !(number > 0.0 && number <= 100.0) {
        return Err("it must be more than 0 and at most 100".to_owned());
    }
    if (scaled - scaled.round()).abs() > 1e-6 {
        return Err("it may have four decimals at most".to_owned());
    }
    Ok(number)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Injected<'a> {
    outcome: &'a str,
    revision: u64,
    #[serde(flatten)]
    fault: View,
}

async fn inject(context: &Context, common: &Common, effect: Effect) -> Result<(), Failure> {
    let headers = common.header.iter().map(|text| {
        let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
        let pair = pair.map(|(name, value)| (name.to_owned(), value.to_owned()));
        pair.ok_or_else(|| Failure::usage(format!("`{text}` must be NAME=VALUE.")))
    });
    let header = headers.collect::<Result<_, _>>()?;
    let order = Order {
        namespace: context.namespace().to_owned(),
        service: common.service.clone(),
        name: common.name.clone(),
        percent: common.percent,
        effect,
        from: common.from.clone(),
        headers: Conditions { header, ..Conditions::default() }.headers(),
        lifetime: (!common.until_cleared).then_some(common.lifetime),
    };
    let now = Timestamp::now();
    let fault = faults::object(&order, now).map_err(|_| {
        Failure::usage("The fault would last longer than there are dates.").hint("Use --until-cleared.")
    })?;
    let object = Object::FaultInjection(fault.clone());
    if let Some(wrong) = mesh_common::resource::validate(&object).first() {
        return Err(Failure::refused(crate::failure::sentence(&wrong.to_string())));
    }
    let control = context.connect().await?;
    let written = objects::apply(&control, &object).await?;
    for warning in &written.result.warnings {
        context.out.note(&format!("warning: {warning}"));
    }
    let outcome = objects::outcome(&written.result);
    let Some(view) = faults::views(&fault, now).into_iter().next() else { return Ok(()) };
    if context.out.format == Format::Name {
        context.out.line(&kinds::short(&object.key()))?;
    } else if context.out.for_people() {
        let end = match order.lifetime {
            Some(lifetime) => format!("for {}", human_duration(lifetime)),
            None => "until it is cleared".to_owned(),
        };
        context.out.line(&format!(
            "{} {outcome}: {}, {end} (revision {})",
            object.key(),
            faults::in_words(&view),
            written.revision
        ))?;
        context.out.note(&format!("End it with: meshctl fault clear {}{}", view.name, namespace_flag(context)));
    } else {
        context.out.data(&Injected { outcome, revision: written.revision, fault: view })?;
    }
    common.waiting.after(context, &control, written.revision).await
}

fn namespace_flag(context: &Context) -> String {
    context.namespace.as_ref().map(|n| format!(" -n {n}")).unwrap_or_default()
}

async fn list(context: &Context, args: &List) -> Result<(), Failure> {
    let control = context.connect().await?;
    let now = Timestamp::now();
    let objects = all(&control, context, args.all_namespaces).await?;
    if context.out.format == Format::Name {
        return objects.iter().try_for_each(|fault| context.out.line(&kinds::short(&key(fault))));
    }
    let views: Vec<View> = objects.iter().flat_map(|fault| faults::views(fault, now)).collect();
    if !context.out.for_people() {
        return context.out.data(&views);
    }
    if views.is_empty() {
        context.out.note("There are no faults.");
        return Ok(());
    }
    context.out.table(&table(&views, args.all_namespaces, now))
}

fn table(views: &[View], namespaces: bool, now: Timestamp) -> Table {
    let mut table = Table::new(match namespaces {
        true => &["NAMESPACE", "NAME", "CALLS OF", "BY", "REQUESTS", "EFFECT", "PERCENT", "ENDS IN"],
        false => &["NAME", "CALLS OF", "BY", "REQUESTS", "EFFECT", "PERCENT", "ENDS IN"],
    });
    for view in views {
        let all = |list: &[String], none: &str| if list.is_empty() { none.to_owned() } else { list.join(", ") };
        let left = faults::time_left(view, now);
        let mut cells = vec![
            view.name.clone().into(),
            view.target.clone().into(),
            all(&view.from, "all").into(),
            all(&view.matches, "all").into(),
            view.effect.clone().into(),
            format!("{} %", view.percent).into(),
            if view.over { Cell::dim(left) } else { left.into() },
        ];
        if namespaces {
            cells.insert(0, view.namespace.clone().into());
        }
        table.row(cells);
    }
    table
}

async fn clear(context: &Context, args: &Clear) -> Result<(), Failure> {
    let control = context.connect().await?;
    let meant = |object: &&Object| match (object, &args.which) {
        (Object::FaultInjection(_), None) => true,
        (Object::FaultInjection(fault), Some(which)) => {
            let of_service = fault.spec.target_refs.iter().any(|t| t.kind == "Service" && t.name == *which);
            of_service || fault.metadata.name == *which
        }
        _ => false,
    };
    let decide = |objects: &[Object]| {
        let keys: Vec<Key> = objects.iter().filter(meant).map(Object::key).collect();
        match (&args.which, keys.is_empty()) {
            (Some(which), true) => Err(Failure::not_found(format!("There is no fault of or named {which}."))
                .hint("`meshctl fault list -A` shows all.")),
            (None, true) => Ok(Change::Nothing),
            (_, false) => Ok(Change::Delete(keys)),
        }
    };
    let namespace = if args.all_namespaces { "" } else { context.namespace() };
    match objects::change(&control, &[Kind::FaultInjection], namespace, decide).await? {
        Done::Deleted(deleted, revision) => {
            objects::report_deleted(context, &deleted)?;
            args.waiting.after(context, &control, revision).await
        }
        _ => objects::report_deleted(context, &[]),
    }
}

fn key(fault: &FaultInjection) -> Key {
    Key::new(Kind::FaultInjection, fault.metadata.namespace_or_default(), &fault.metadata.name)
}

async fn all(
    control: &crate::client::Control,
    context: &Context,
    all_namespaces: bool,
) -> Result<Vec<FaultInjection>, Failure> {
    let namespace = if all_namespaces { String::new() } else { context.namespace().to_owned() };
    let selection = Selection { kind: Some(Kind::FaultInjection), namespace, name: String::new() };
    let stored = objects::list(control, &selection).await?.into_iter();
    Ok(stored
        .filter_map(|s| match s.object {
            Object::FaultInjection(fault) => Some(fault),
            _ => None,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_has_four_decimals_at_most() {
        assert_eq!(percent("50"), Ok(50.0));
        assert_eq!(percent("0.0001%"), Ok(0.0001));
        for text in ["0", "-1", "100.1", "0.00001", "many", "NaN"] {
            assert!(percent(text).is_err(), "{text}");
        }
    }
}
