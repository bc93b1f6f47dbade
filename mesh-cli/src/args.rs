//! The command line: global options and the tree of commands. Each command's own arguments are defined beside its code.

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Parser, Subcommand};

use crate::client::ControlAddress;
use crate::commands;
use crate::output::Format;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  the command line is wrong
  3  what was named does not exist
  4  refused: the object is not valid, or was changed by somebody else meanwhile
  5  the control plane cannot be reached
  6  not finished in the time given";

/// Runs and inspects a service mesh
///
/// meshctl works on a mesh on this machine, over the unix socket in mesh-control's data folder, or on one in Kubernetes,
/// through the API server and with the rights of the kubeconfig's user. --control (or MESH_CONTROL) names a socket,
/// --context or --kubeconfig a cluster. Without any of these it takes the first that answers of $MESH_DATA/control.sock,
/// ~/.mesh/control.sock and ~/.mesh/demo/control.sock, or else the kubeconfig's current context, as kubectl does.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, styles = STYLES, max_term_width = 110, after_long_help = EXIT_CODES)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The control plane's socket
    #[arg(long, global = true, env = "MESH_CONTROL", hide_env_values = true, value_name = "unix:PATH")]
    pub control: Option<ControlAddress>,
    /// The context of the kubeconfig
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "control")]
    pub context: Option<String>,
    /// The kubeconfig file [default: $KUBECONFIG, or ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "control")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of the objects [default: that of the context, or default]
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// How results are written
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "table|wide|json|yaml|name"
    )]
    pub output: Format,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Demo(crate::demo::Args),
    Run(crate::run::Args),
    Token(commands::token::Args),
    Apply(commands::apply::Args),
    Get(commands::get::Args),
    Delete(commands::delete::Args),
    Edit(commands::edit::Args),
    Route(commands::route::Args),
    Fault(commands::fault::Args),
    Wait(commands::wait::Args),
    Authz(commands::authz::Args),
    Top(commands::top::Args),
    Topology(commands::topology::Args),
    Tap(commands::tap::Args),
    Audit(commands::audit::Args),
    Certs(commands::certs::Args),
    Proxy(commands::proxy::Args),
    Logs(commands::logs::Args),
    LogLevel(commands::log_level::Args),
    BugReport(commands::bug_report::Args),
    Inject(commands::inject::Args),
    Uninject(commands::inject::UninjectArgs),
    Check(commands::check::Args),
    Install(commands::install::Args),
    Upgrade(commands::upgrade::Args),
    Uninstall(commands::uninstall::Args),
    Version(commands::version::Args),
    Completion(commands::completion::Args),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }
}
