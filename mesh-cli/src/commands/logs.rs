//! `meshctl logs`: what the control plane, or a proxy, has logged.

use futures_util::{StreamExt, stream};

use crate::commands::Context;
use crate::failure::{Exit, Failure};
use crate::logs::{self, Log};

/// Show what the control plane or a proxy has logged
///
/// Without a name, that of the control plane: in a cluster that of each replica. A proxy is named by its id, by its workload's
/// name, or by a beginning of it that no other of the namespace has. It need not be connected, nor does the control plane have to
/// answer: in a cluster the API server is asked, on one machine the files below the data folder are read. Where there is a kubeconfig as well and the
/// control plane of this machine does not answer, name its socket with --control.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl logs
  meshctl logs web --follow
  meshctl -n shop logs reviews-v2 --lines 1000
  meshctl -n shop logs web --previous")]
pub struct Args {
    /// The proxy
    #[arg(value_name = "PROXY")]
    proxy: Option<String>,
    /// How many lines
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    lines: u32,
    /// Go on with those that come, until Ctrl-C
    #[arg(short, long, conflicts_with = "previous")]
    follow: bool,
    /// Of the program that ran before, where the kubelet has started it again
    #[arg(long)]
    previous: bool,
}

pub async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    if let Some(name) = &args.proxy {
        let log = logs::of_proxy(context, name).await?;
        return one(context, args, &log).await;
    }
    match logs::of_control(context).await?.as_slice() {
        [] => Err(Failure::not_found("The control plane has no pods.").hint("`meshctl check` says more.")),
        [log] => one(context, args, log).await,
        several => all(context, args, several).await,
    }
}

async fn one(context: &Context, args: &Args, log: &Log) -> Result<(), Failure> {
    if !args.follow {
        return log.last(args.lines, args.previous).await?.lines().try_for_each(|line| context.out.line(line));
    }
    let mut lines = log.follow(args.lines).await?;
    while let Some(line) = lines.next().await {
        context.out.line(&line?)?;
    }
    Ok(())
}

/// Each line with the name of its log. One that fails does not keep the others away.
async fn all(context: &Context, args: &Args, logs: &[Log]) -> Result<(), Failure> {
    let marked = |log: &Log, line: &str| context.out.line(&format!("{} {line}", log.id));
    let mut failed: Option<Exit> = None;
    let mut note = |log: &Log, failure: &Failure| {
        context.out.note(&format!("warning: the log of {}: {}", log.id, failure.message));
        failed.get_or_insert(failure.exit);
    };
    let mut following = stream::SelectAll::new();
    for log in logs {
        if args.follow {
            match log.follow(args.lines).await {
                Ok(lines) => following.push(lines.map(move |line| (log, line))),
                Err(failure) => note(log, &failure),
            }
            continue;
        }
        match log.last(args.lines, args.previous).await {
            Ok(text) => text.lines().try_for_each(|line| marked(log, line))?,
            Err(failure) => note(log, &failure),
        }
    }
    while let Some((log, line)) = following.next().await {
        match line {
            Ok(line) => marked(log, &line)?,
            Err(failure) => note(log, &failure),
        }
    }
    failed.map_or(Ok(()), |exit| Err(Failure::silent(exit)))
}
