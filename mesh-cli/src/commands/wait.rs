//! `meshctl wait`: until a change is in force at all proxies that it concerns.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use mesh_common::proto::control::{WaitProgress, WaitRequest};
use serde::Serialize;

use crate::client::Control;
use crate::commands::Context;
use crate::failure::{Exit, Failure};
use crate::output::time::{human_duration, parse_positive_duration};

/// How much longer than the server we wait, before we say ourselves that the time is over.
const GRACE: Duration = Duration::from_secs(2);
/// Proxies named in a message.
const NAMED: usize = 5;

/// Wait until the newest change is in force at all proxies
///
/// A proxy that is not concerned by the change counts as having it. Ends with exit code 1 when all others have it
/// and some reject it, and with 6 when the time is over. In Kubernetes, it waits for everything that there is when it begins,
/// which is also what a revision that has been comes to; one that is yet to come is refused there.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl apply -f shop/ && meshctl wait
  meshctl wait --revision 42 --timeout 5s")]
pub struct Args {
    /// Revision of the store, as `apply` prints it, now or yet to come; the newest if not given
    #[arg(long, value_name = "N")]
    revision: Option<u64>,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_positive_duration)]
    timeout: Duration,
}

/// The same for commands that change something.
#[derive(Debug, Default, clap::Args)]
pub struct Waiting {
    /// Wait until the change is in force at all proxies, and say how long it took
    #[arg(long)]
    wait: bool,
    /// How long to wait at most [default: 30s]
    #[arg(long, value_name = "DURATION", requires = "wait", value_parser = parse_positive_duration)]
    timeout: Option<Duration>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    revision: u64,
    proxies: u32,
    synced: u32,
    elapsed_ms: u64,
}

pub async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    let control = context.connect().await?;
    let last = follow(&control, args.revision.unwrap_or(0), args.timeout).await?;
    if context.out.for_people() {
        return context.out.line(&in_force(&last));
    }
    let WaitProgress { revision, proxies, synced, elapsed_ms, .. } = last;
    context.out.data(&Outcome { revision, proxies, synced, elapsed_ms })
}

impl Waiting {
    /// Waits if the user asked for it; the result is a remark, the command's own output is its result.
    pub async fn after(&self, context: &Context, control: &Control, revision: u64) -> Result<(), Failure> {
        if self.wait {
            let last = follow(control, revision, self.timeout.unwrap_or(Duration::from_secs(30))).await?;
            context.out.note(&in_force(&last));
        }
        Ok(())
    }
}

/// Follows the progress until the revision is in force; shows it on standard error when that is a terminal.
pub async fn follow(control: &Control, revision: u64, timeout: Duration) -> Result<WaitProgress, Failure> {
    let line = ProgressLine::new();
    let mut last = WaitProgress::default();
    let ended = tokio::time::timeout(timeout + GRACE, progress(control, revision, timeout, &line, &mut last)).await;
    line.clear();
    match ended {
        Err(_) => Err(too_late(&last, timeout)),
        Ok(Err(status)) if status.code() == tonic::Code::DeadlineExceeded && last.proxies > 0 => {
            Err(too_late(&last, timeout))
        }
        Ok(Err(status)) => Err(status.into()),
        Ok(Ok(())) if last.done => Ok(last),
        // Ended before its time: every proxy that is still without the change has refused it.
        Ok(Ok(())) if !last.rejected.is_empty() && line.since.elapsed() < timeout => Err(rejected(&last)),
        Ok(Ok(())) => Err(too_late(&last, timeout)),
    }
}

async fn progress(
    control: &Control,
    revision: u64,
    timeout: Duration,
    line: &ProgressLine,
    last: &mut WaitProgress,
) -> Result<(), tonic::Status> {
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let request = WaitRequest { revision, timeout_ms, ..WaitRequest::default() };
    let mut stream = control.mesh().wait(request).await?.into_inner();
    while let Some(step) = stream.message().await? {
        line.show(&step);
        *last = step;
        if last.done {
            break;
        }
    }
    Ok(())
}

fn in_force(last: &WaitProgress) -> String {
    let took = human_duration(Duration::from_millis(last.elapsed_ms));
    match last.proxies {
        0 => format!("Revision {} is stored; no proxy is connected that it could concern.", last.revision),
        1 => format!("Revision {} is in force at the one proxy, {took} after it was stored.", last.revision),
        n => format!("Revision {} is in force at all {n} proxies, {took} after it was stored.", last.revision),
    }
}

fn too_late(last: &WaitProgress, timeout: Duration) -> Failure {
    let pending = last.pending.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    let more = last.pending.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let message = match pending.is_empty() {
        true => format!("Not in force after {}.", human_duration(timeout)),
        false => format!(
            "Not in force after {}: {} of {} proxies have it. Still without: {pending}{more}.",
            human_duration(timeout),
            last.synced,
            last.proxies
        ),
    };
    Failure::with(Exit::TimedOut, message).hint("`meshctl proxy status` shows what each proxy has acknowledged.")
}

fn rejected(last: &WaitProgress) -> Failure {
    let message = format!("Proxies rejected the change and stay with what they had:\n  {}", last.rejected.join("\n  "));
    Failure::new(message).hint("`meshctl proxy status NAME` shows the whole reason.")
}

/// One line on a terminal that is written over again and again.
struct ProgressLine {
    shown: bool,
    since: Instant,
}

impl ProgressLine {
    fn new() -> Self {
        Self { shown: std::io::stderr().is_terminal(), since: Instant::now() }
    }

    fn show(&self, step: &WaitProgress) {
        if self.shown && !step.done {
            let first = step.pending.first().map(|node| format!(", waiting for {node}")).unwrap_or_default();
            let seconds = self.since.elapsed().as_secs();
            eprint!("\r\x1b[K{} of {} proxies{first} ({seconds}s)", step.synced, step.proxies);
            let _ = std::io::stderr().flush();
        }
    }

    fn clear(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_failure_names_a_few_of_those_that_are_missing() {
        let pending = (1..=7).map(|i| format!("p{i}")).collect();
        let last = WaitProgress { proxies: 9, synced: 2, pending, ..Default::default() };
        let failure = too_late(&last, Duration::from_secs(30));
        assert_eq!(failure.exit, Exit::TimedOut);
        assert_eq!(
            failure.message,
            "Not in force after 30s: 2 of 9 proxies have it. Still without: p1, p2, p3, p4, p5 and 2 more."
        );
    }

    #[test]
    fn success_says_how_long_it_took() {
        let last =
            WaitProgress { revision: 7, proxies: 4, synced: 4, done: true, elapsed_ms: 38, ..Default::default() };
        assert_eq!(in_force(&last), "Revision 7 is in force at all 4 proxies, 38 ms after it was stored.");
    }
}
