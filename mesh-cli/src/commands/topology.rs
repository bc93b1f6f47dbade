//! `meshctl topology`: who calls whom.

use crate::commands::Context;
use crate::commands::top::{Filter, ask};
use crate::failure::Failure;
use crate::output::Format;
use crate::views::topology::Topology;
use crate::views::traffic::short;

/// Show who calls whom
///
/// From what the proxies report to the control plane: services, and the calls between them with their numbers. As a tree, from those that nobody calls; with
/// -o json or -o yaml as nodes and edges; with --dot for Graphviz. Who has no service is shown by its service account, NAME.NAMESPACE, and who proves no
/// identity as `unknown`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl topology
  meshctl topology --from web --window 1m
  meshctl topology --dot | dot -Tsvg > mesh.svg")]
pub struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Print a graph in the language of Graphviz
    #[arg(long)]
    dot: bool,
}

pub async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let control = context.connect().await?;
    let (calls, nothing) = ask(context, &control, &args.filter).await?;
    let (out, topology) = (&context.out, Topology::of(&calls));
    if args.dot {
        if !out.for_people() {
            return Err(Failure::usage("--dot is a format of its own: leave -o out."));
        }
        return out.line(topology.dot(context.namespace()).trim_end());
    }
    match (out.format, nothing) {
        (Format::Json | Format::Yaml, _) => out.data(&topology.view()),
        (Format::Name, _) => {
            let mut names = topology.nodes().into_iter().map(|node| short(node, context.namespace()));
            names.try_for_each(|name| out.line(&format!("service/{name}")))
        }
        (Format::Table | Format::Wide, Some(nothing)) => {
            out.note(&nothing);
            Ok(())
        }
        (Format::Table | Format::Wide, None) => out.table(&topology.tree(context.namespace())),
    }
}
