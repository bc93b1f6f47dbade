//! `meshctl route`: splits a service's traffic between its versions by editing the route that is attached to it.

mod facts;
mod list;
mod set;

use clap::Subcommand;

use crate::commands::Context;
use crate::commands::wait::Waiting;
use crate::failure::Failure;
use crate::routes::attached::RouteName;
use crate::routes::conditions::Conditions;
use crate::routes::shares::Share;

/// Split traffic between the versions of a service
///
/// The commands edit the HTTPRoute (or GRPCRoute, TCPRoute or UDPRoute) that is attached to the service, or make one. Rules that are
/// not concerned stay as they are.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl route set-weight reviews v1=90 v2=10 --wait
  meshctl route set-match reviews --header end-user=jason v2
  meshctl route list
  meshctl route reset reviews")]
pub struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    SetWeight(SetWeight),
    SetMatch(SetMatch),
    List(List),
    Reset(Reset),
}

/// What the commands that edit have in common.
#[derive(Debug, clap::Args)]
struct Target {
    /// The service whose traffic is split
    #[arg(value_name = "SERVICE")]
    service: String,
    /// The route to edit, where several are attached to the service
    #[arg(long, value_name = "[KIND/]NAME")]
    route: Option<RouteName>,
    /// The service's port, where it has several
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
}

/// Set which share of the requests each version gets
///
/// Sets the shares of all requests that no other rule of the route is for. A version that is not named gets nothing.
/// Weights are relative to their sum; a version without a weight has 100.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl route set-weight reviews v1=90 v2=10
  meshctl route set-weight reviews v2              all requests to v2
  meshctl route set-weight reviews v1=1 v2=1 --wait")]
struct SetWeight {
    #[command(flatten)]
    target: Target,
    /// Versions and their weights
    #[arg(required = true, value_name = "VERSION=WEIGHT")]
    shares: Vec<Share>,
    /// Also take versions that have no workload yet
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    waiting: Waiting,
}

/// Send certain requests to a version
///
/// Adds a rule for requests that satisfy all conditions, or changes the one that there is. Other requests go where they
/// went before. More conditions make a rule come first, by Gateway API's order of precedence.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl route set-match reviews --header end-user=jason v2
  meshctl route set-match reviews --cookie user=jason v2
  meshctl route set-match reviews --path /api --method GET v1=50 v2=50
  meshctl route set-match ratings --method shop.Ratings/Get v2")]
struct SetMatch {
    #[command(flatten)]
    target: Target,
    /// Versions and their weights
    #[arg(required = true, value_name = "VERSION[=WEIGHT]")]
    shares: Vec<Share>,
    /// Also take versions that have no workload yet
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    waiting: Waiting,
    // The last: its heading would be that of what follows.
    #[command(flatten)]
    conditions: Conditions,
}

/// Show where the requests of each service go
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl route list
  meshctl route list reviews -o json")]
struct List {
    /// Only this service
    #[arg(value_name = "SERVICE")]
    service: Option<String>,
    /// Services of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
}

/// Undo splits: requests go to all versions again
///
/// Without conditions all rules that split the service's traffic are undone; with conditions, the rule for just these.
/// Rules that also have filters, timeouts or retries keep them. A route that makes no difference any more is deleted.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl route reset reviews
  meshctl route reset reviews --header end-user=jason")]
struct Reset {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    conditions: Conditions,
}

pub async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    match args.command {
        Action::SetWeight(args) => set::weight(context, args).await,
        Action::SetMatch(args) => set::matching(context, args).await,
        Action::List(args) => list::run(context, &args).await,
        Action::Reset(args) => set::reset(context, args).await,
    }
}
