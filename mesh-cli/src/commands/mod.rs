//! One module for each command: its arguments with their help, and what it does.

pub mod apply;
pub mod check;
pub mod completion;
pub mod delete;
pub mod edit;
pub mod fault;
pub mod get;
pub mod inject;
pub mod log_level;
pub mod proxy;
pub mod route;
pub mod token;
pub mod version;
pub mod wait;

use crate::args::{Cli, Command, Global};
use crate::client::{Control, Location};
use crate::failure::Failure;
use crate::output::Output;

/// What every command is given.
pub struct Context {
    pub location: Location,
    /// As the user named it; `None` is `default`, or whatever an object says of itself.
    pub namespace: Option<String>,
    pub out: Output,
}

impl Context {
    fn new(global: Global) -> Self {
        Self {
            location: Location::new(global.control),
            namespace: global.namespace,
            out: Output::stdout(global.output),
        }
    }

    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }

    pub async fn connect(&self) -> Result<Control, Failure> {
        Control::connect(&self.location).await
    }
}

pub async fn run(cli: Cli) -> Result<(), Failure> {
    dispatch(&Context::new(cli.global), cli.command).await
}

async fn dispatch(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Demo(args) => crate::demo::execute(context, args).await,
        Command::Run(args) => crate::run::execute(context, args).await,
        Command::Token(args) => token::run(context, args).await,
        Command::Apply(args) => apply::run(context, args).await,
        Command::Get(args) => get::run(context, args).await,
        Command::Delete(args) => delete::run(context, args).await,
        Command::Edit(args) => edit::run(context, args).await,
        Command::Route(args) => route::run(context, args).await,
        Command::Fault(args) => fault::run(context, args).await,
        Command::Wait(args) => wait::run(context, args).await,
        Command::Proxy(args) => proxy::run(context, args).await,
        Command::LogLevel(args) => log_level::run(context, args).await,
        Command::Inject(args) => inject::run(context, args).await,
        Command::Uninject(args) => inject::run_uninject(context, args).await,
        Command::Check(args) => check::run(context, args).await,
        Command::Version(args) => version::run(context, args).await,
        Command::Completion(args) => completion::run(context, &args),
    }
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
