//! `meshctl top`: what flows in the mesh, now.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use mesh_common::proto::control::ListTrafficRequest;
use tokio::signal::unix::{SignalKind, signal};

use crate::client::Control;
use crate::commands::Context;
use crate::failure::Failure;
use crate::output::Format;
use crate::output::time::{human_duration, parse_positive_duration};
use crate::views::top::{View, table};
use crate::views::traffic::{self, By, Call, Sort};

const REFRESH: Duration = Duration::from_secs(1);
/// As far back as the control plane remembers.
const LONGEST: Duration = Duration::from_secs(60);

/// Show what flows: requests in a second, failures, latency, mutual TLS
///
/// From what the proxies report to the control plane, with no Prometheus. A call is counted once: as its caller's proxy saw it, or as the called one's where the
/// caller has no proxy that reports. In a terminal the table is refreshed each second until Ctrl-C; elsewhere, with --once, -o json or -o yaml it is
/// printed once. A request has failed if its status is 500 or more, if it had no response, or if its gRPC status says that the server failed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl top
  meshctl top callers --service reviews --sort p99
  meshctl top routes --once
  meshctl top --window 1m -o json")]
pub struct Args {
    /// What the rows are about
    #[arg(value_name = "ROWS", value_enum, default_value_t)]
    by: By,
    #[command(flatten)]
    filter: Filter,
    /// Which rows come first
    #[arg(long, value_name = "ORDER", value_enum, default_value_t)]
    sort: Sort,
    /// Print it once
    #[arg(long)]
    once: bool,
}

/// Which calls, and since when.
#[derive(Debug, clap::Args)]
pub struct Filter {
    /// Only calls of this service
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// Only calls by this service, or by this service account as NAME.NAMESPACE
    #[arg(long, value_name = "CALLER")]
    from: Option<String>,
    /// The time that is looked at, up to 1m
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_window)]
    window: Duration,
}

fn parse_window(text: &str) -> Result<Duration, String> {
    match parse_positive_duration(text)? {
        window if window > LONGEST => Err("the control plane remembers one minute: give 1m or less".to_owned()),
        window => Ok(window),
    }
}

pub async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let control = context.connect().await?;
    let out = &context.out;
    if out.for_people() && !args.once && std::io::stdout().is_terminal() {
        return live(context, &control, args).await;
    }
    let (calls, nothing) = ask(context, &control, &args.filter).await?;
    let rows = traffic::group(&calls, args.by, args.sort);
    let namespace = context.namespace();
    match out.format {
        Format::Json | Format::Yaml => out.data(&rows.iter().map(View::of).collect::<Vec<_>>()),
        Format::Name => {
            let names: BTreeSet<_> = rows.iter().map(|(group, _)| traffic::short(&group.service, namespace)).collect();
            names.iter().try_for_each(|name| out.line(&format!("service/{name}")))
        }
        Format::Table | Format::Wide => match nothing {
            Some(nothing) => {
                out.note(&nothing);
                Ok(())
            }
            None => out.table(&table(&rows, args.by, namespace)),
        },
    }
}

/// The calls that are wanted; or, if there are none, why.
pub async fn ask(
    context: &Context,
    control: &Control,
    filter: &Filter,
) -> Result<(Vec<Call>, Option<String>), Failure> {
    let window_ms = u64::try_from(filter.window.as_millis()).unwrap_or(u64::MAX);
    let answer = control.mesh().list_traffic(ListTrafficRequest { window_ms }).await?.into_inner();
    let mut calls = traffic::calls(&answer);
    let is = |name: &str, wanted: &Option<String>| {
        wanted.as_ref().is_none_or(|word| traffic::is_named(name, word, context.namespace()))
    };
    calls.retain(|call| is(&call.service, &filter.service) && is(&call.caller, &filter.from));
    if let Some(namespace) = &context.namespace {
        calls.retain(|call| [&call.service, &call.caller].iter().any(|name| traffic::is_in(name, namespace)));
    }
    let window = human_duration(filter.window);
    let nothing = match (calls.is_empty(), answer.reporting.is_empty()) {
        (false, _) => None,
        (true, true) => Some("No proxy reports. `meshctl proxy status` shows those that are connected.".to_owned()),
        (true, false) => {
            Some(format!("None of these calls has ended in the last {window}; {} proxies report.", answer.proxies))
        }
    };
    Ok((calls, nothing))
}

/// Refreshes the table on a screen of its own, until a signal ends it.
async fn live(context: &Context, control: &Control, args: &Args) -> Result<(), Failure> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let _screen = Screen::enter()?;
    let mut every = tokio::time::interval(REFRESH);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let asking = async {
            every.tick().await;
            ask(context, control, &args.filter).await
        };
        let asked = tokio::select! {
            asked = asking => asked,
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        };
        let text = match asked {
            Ok((_, Some(nothing))) => nothing,
            Ok((calls, None)) => {
                let rows = traffic::group(&calls, args.by, args.sort);
                context.out.text(&table(&rows, args.by, context.namespace()))
            }
            // It may be restarting; what it says is shown until it is back.
            Err(failure) => failure.to_string(),
        };
        let window = human_duration(args.filter.window);
        Screen::show(&format!("Calls in the last {window} from {}. Ctrl-C ends.\n\n{text}", control.place))?;
    }
}

/// The terminal's second screen; the first one comes back when this is dropped.
struct Screen;

impl Screen {
    fn enter() -> Result<Self, Failure> {
        let mut out = std::io::stdout().lock();
        out.write_all(b"\x1b[?1049h\x1b[?25l")?;
        out.flush()?;
        Ok(Self)
    }

    /// As much as there is room for.
    fn show(text: &str) -> Result<(), Failure> {
        // A terminal that does not know its size says that it has none.
        let size = rustix::termios::tcgetwinsize(std::io::stdout()).map_or(0, |size| usize::from(size.ws_row));
        let rows = if size == 0 { 24 } else { size };
        let lines: Vec<&str> = text.lines().collect();
        let room = rows.saturating_sub(1).max(1);
        let mut shown: Vec<String> = lines.iter().take(room).map(|line| format!("{line}\x1b[K")).collect();
        if lines.len() > room {
            let left = lines.len() - room + 1;
            shown.truncate(room - 1);
            shown.push(format!("... and {left} more\x1b[K"));
        }
        let mut out = std::io::stdout().lock();
        write!(out, "\x1b[H{}\x1b[J", shown.join("\r\n"))?;
        Ok(out.flush()?)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = std::io::stdout().lock();
        // A terminal that is gone needs nothing.
        let _ = out.write_all(b"\x1b[?25h\x1b[?1049l").and_then(|()| out.flush());
    }
}
