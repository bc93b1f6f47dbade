//! `meshctl log-level`: what the control plane logs, changed while it runs.

use mesh_common::proto::control::SetLogFilterRequest;
use serde::Serialize;

use crate::commands::Context;
use crate::failure::Failure;

/// Change what the control plane logs
///
/// The filter has the syntax of RUST_LOG: a level (error, warn, info, debug, trace), or levels for parts of the program.
/// The change holds until the control plane is started again.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl log-level debug
  meshctl log-level info,mesh_control::xds=trace")]
pub struct Args {
    /// The new filter
    #[arg(value_name = "FILTER")]
    filter: String,
}

#[derive(Serialize)]
struct Changed<'a> {
    filter: &'a str,
    previous: &'a str,
}

pub async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    let control = context.connect().await?;
    let request = SetLogFilterRequest { filter: args.filter.clone() };
    let previous = control.mesh().set_log_filter(request).await?.into_inner().previous;
    if context.out.for_people() {
        return context.out.line(&format!("The control plane logs by `{}` now; it was `{previous}`.", args.filter));
    }
    context.out.data(&Changed { filter: &args.filter, previous: &previous })
}
