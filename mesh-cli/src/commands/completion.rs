//! `meshctl completion`: scripts that complete the command line.

use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell;

use crate::args::Cli;
use crate::commands::Context;
use crate::failure::Failure;

/// Print a shell's completion script
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  source <(meshctl completion bash)
  meshctl completion zsh > ~/.zfunc/_meshctl
  meshctl completion fish > ~/.config/fish/completions/meshctl.fish")]
pub struct Args {
    /// The shell that reads the script
    shell: Supported,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Supported {
    Bash,
    Zsh,
    Fish,
}

pub fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let shell = match args.shell {
        Supported::Bash => Shell::Bash,
        Supported::Zsh => Shell::Zsh,
        Supported::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "meshctl", &mut script);
    context.out.line(String::from_utf8_lossy(&script).trim_end())
}
