//! `meshctl certs rotate-root`: another root, and everybody on it.

use std::time::Duration;

use jiff::Timestamp;
use mesh_common::proto::control::rotate_root_request::Step;
use mesh_common::proto::control::{RotateRootRequest, RotateRootResponse};

use crate::client::Control;
use crate::commands::Context;
use crate::confirm::confirm;
use crate::failure::{Exit, Failure};
use crate::output::Format;
use crate::output::time::parse_positive_duration;
use crate::views::rotation;

const POLL: Duration = Duration::from_millis(500);
const ENDED: &str = "The root before is trusted no more; by each workload, from its next certificate on.";

/// Replace the root certificate, without a moment in which somebody is not trusted
///
/// From the beginning on, all certificates that are issued hang on a new root; the one before is trusted as well, and its key is not kept. A workload gets a
/// certificate of the new root when it renews its own, which is at half of its life: within half an hour, where nobody chose another life. Workloads that know
/// only the root before verify the others by a certificate between the two. When everybody has followed, the root before is trusted no more: by the control plane
/// and by Envoys at once, by each other workload when it next renews. This may be stopped at any time: run again, it goes on.
///
/// With --force nobody is waited for. Where the key of the root may be in the hands of somebody else, that is the way from the beginning on: all workloads are
/// cut off from the control plane then, and have to be started again with new tokens. Until that, each of them goes on trusting the root before.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl certs rotate-root
  meshctl certs rotate-root --status
  meshctl certs rotate-root --yes --wait-timeout 2h")]
pub struct Args {
    /// Show how far it is, and change nothing
    #[arg(long, conflicts_with_all = ["yes", "force", "wait_timeout"])]
    status: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Trust the root before no more, now; whoever has no certificate of the new one is cut off until it joins again
    #[arg(long, conflicts_with = "wait_timeout")]
    force: bool,
    /// How long to wait until all have followed [default: until they have]
    #[arg(long, value_name = "DURATION", value_parser = parse_positive_duration)]
    wait_timeout: Option<Duration>,
}

pub async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let control = context.connect().await?;
    let found = ask(&control, Step::Unspecified, false).await?;
    if args.status {
        return show(context, &found);
    }
    if args.force {
        return at_once(context, args, &control, &found).await;
    }
    if found.began_unix == 0 {
        sure(
            context,
            args,
            "All certificates will hang on a new root. The one before stays trusted until everybody has followed.",
        )?;
        let begun = ask(&control, Step::Begin, false).await?;
        context.out.line(&rotation::begun(&begun, Timestamp::now()))?;
    } else {
        context.out.line(&format!("{} It goes on.", rotation::begun(&found, Timestamp::now())))?;
    }
    let all = follow(context, &control);
    match args.wait_timeout {
        None => all.await?,
        Some(limit) => tokio::time::timeout(limit, all).await.map_err(|_| late())??,
    }
    context.out.line(ENDED)
}

async fn at_once(context: &Context, args: &Args, control: &Control, found: &RotateRootResponse) -> Result<(), Failure> {
    if found.began_unix == 0 {
        sure(
            context,
            args,
            "The control plane will take no certificate that there is: each workload has to be started again, with a new token.",
        )?;
        ask(control, Step::Begin, true).await?;
        return context.out.line(
            "The root was replaced. Start all workloads again, with new tokens: until then they trust the root before.",
        );
    }
    sure(context, args, &format!("{} workloads will be cut off until they join again.", found.behind.len()))?;
    ask(control, Step::End, true).await?;
    context.out.line(ENDED)
}

fn sure(context: &Context, args: &Args, what: &str) -> Result<(), Failure> {
    if args.yes {
        return Ok(());
    }
    context.out.note(what);
    confirm("Nothing was changed.")
}

/// Until everybody has followed, and the replacement is ended.
async fn follow(context: &Context, control: &Control) -> Result<(), Failure> {
    let (mut told, mut why) = (String::new(), String::new());
    loop {
        let found = ask(control, Step::Unspecified, false).await?;
        if found.began_unix == 0 {
            // Somebody else has ended it.
            return Ok(());
        }
        let now = rotation::progress(&found, Timestamp::now());
        if now.counts != told {
            context.out.line(&format!("{}{}", now.counts, now.next))?;
            told = now.counts;
        }
        if found.behind.is_empty() {
            match ask(control, Step::End, false).await {
                Ok(_) => return Ok(()),
                // One may have come meanwhile that has not followed.
                Err(failure) if failure.exit == Exit::Refused && failure.message == why => (),
                Err(failure) if failure.exit == Exit::Refused => {
                    context.out.note(&failure.message);
                    why = failure.message;
                }
                Err(failure) => return Err(failure),
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn ask(control: &Control, step: Step, force: bool) -> Result<RotateRootResponse, Failure> {
    let request = RotateRootRequest { step: step.into(), force };
    Ok(control.mesh().rotate_root(request).await?.into_inner())
}

fn show(context: &Context, found: &RotateRootResponse) -> Result<(), Failure> {
    let (out, now) = (&context.out, Timestamp::now());
    match out.format {
        Format::Json | Format::Yaml => out.data(&rotation::view(found)),
        Format::Name => found.behind.iter().try_for_each(|it| out.line(&it.id)),
        Format::Table | Format::Wide => {
            out.line(&rotation::begun(found, now))?;
            if found.began_unix > 0 {
                let progress = rotation::progress(found, now);
                out.line(&format!("{}{}", progress.counts, progress.next))?;
            }
            Ok(())
        }
    }
}

fn late() -> Failure {
    Failure::with(Exit::TimedOut, "Not everybody has followed in this time; both roots are trusted meanwhile.")
        .hint("`meshctl certs rotate-root` goes on, and with --status says who is behind.")
}
