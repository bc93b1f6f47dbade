//! `meshctl logs`: what the control plane, or a proxy, has logged.

use futures_util::{StreamExt, stream};

use crate::commands::Context;
use crate::failure::Failure;
use crate::logs::{self, Log};
use crate::views::proxies;

/// Show what the control plane or a proxy has logged
///
/// Without a name, that of the control plane: in a cluster that of each replica. A proxy is named by its id, by its workload's
/// name, or by a beginning of it that no other of the namespace has. It need not be connected, nor does the control plane have to
/// answer: in a cluster the API server is asked, on one machine the files below the data folder are read.
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
    let wanted = match &args.proxy {
        None => logs::of_control(context).await?,
        Some(name) => vec![proxy(context, name).await?],
    };
    if wanted.is_empty() {
        return Err(Failure::not_found("The control plane has no pods.").hint("`meshctl check` says more."));
    }
    let single = wanted.len() == 1;
    let marked = |log: &Log, line: &str| match single {
        true => context.out.line(line),
        false => context.out.line(&format!("{} {line}", log.id)),
    };
    if !args.follow {
        for log in &wanted {
            log.last(args.lines, args.previous).await?.lines().try_for_each(|line| marked(log, line))?;
        }
        return Ok(());
    }
    let mut all = stream::SelectAll::new();
    for log in wanted {
        let lines = log.follow(args.lines).await?;
        all.push(lines.map(move |line| (log.clone(), line)));
    }
    while let Some((log, line)) = all.next().await {
        marked(&log, &line?)?;
    }
    Ok(())
}

async fn proxy(context: &Context, name: &str) -> Result<Log, Failure> {
    // An id says its namespace.
    let of = (!name.contains('.')).then(|| context.namespace());
    let all = logs::of_proxies(context, of).await?;
    let find = |name| proxies::find_by(&all, |log| (&log.id, &log.namespace), name, of.unwrap_or_default());
    // Files are called by workloads alone.
    let found = find(name).or_else(|several| name.rsplit_once('.').map_or(Err(several), |(workload, _)| find(workload)));
    found.cloned().map_err(|several| match several.as_slice() {
        [] => Failure::not_found(format!("No proxy {name} has a log here."))
            .hint("`meshctl proxy status` shows the proxies; those of other machines have their logs there."),
        several => Failure::not_found(format!("{} proxies begin with {name}: {}.", several.len(), several.join(", ")))
            .hint("Write enough of the name to tell them apart."),
    })
}
