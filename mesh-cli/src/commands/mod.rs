//! One module for each command: its arguments with their help, and what it does.

pub mod apply;
pub mod audit;
pub mod authz;
pub mod bug_report;
pub mod certs;
pub mod check;
pub mod completion;
pub mod delete;
pub mod edit;
pub mod fault;
pub mod get;
pub mod inject;
pub mod install;
pub mod log_level;
pub mod logs;
pub mod proxy;
pub mod route;
pub mod tap;
pub mod token;
pub mod top;
pub mod topology;
pub mod uninstall;
pub mod upgrade;
pub mod version;
pub mod wait;

use mesh_common::resource::DEFAULT_NAMESPACE;

use crate::args::{Cli, Command, Global};
use crate::client::{Control, Location};
use crate::failure::Failure;
use crate::kubernetes::{Access, Cluster};
use crate::output::Output;

/// What every command is given.
pub struct Context {
    pub location: Location,
    /// The API server that the command line names, for the commands that are about nothing else.
    pub access: Access,
    /// As the user named it; `None` is [`Context::namespace`], or whatever an object says of itself.
    pub namespace: Option<String>,
    /// Where objects are that name no namespace.
    pub default_namespace: String,
    pub out: Output,
}

impl Context {
    async fn new(global: Global) -> Self {
        let access = Access { kubeconfig: global.kubeconfig, context: global.context };
        let location = Location::find(global.control, &access).await;
        let default_namespace = match &location {
            Location::Cluster(access) => access.namespace(),
            Location::Given(_) | Location::Search(_) => None,
        };
        Self {
            location,
            access,
            namespace: global.namespace,
            default_namespace: default_namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
            out: Output::stdout(global.output),
        }
    }

    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or(&self.default_namespace)
    }

    pub async fn connect(&self) -> Result<Control, Failure> {
        Control::connect(&self.location).await
    }

    /// The API server alone, whether the mesh is there or not.
    pub async fn cluster(&self) -> Result<Cluster, Failure> {
        if matches!(self.location, Location::Given(_)) {
            return Err(Failure::usage("This command is about Kubernetes, but --control (or MESH_CONTROL) is given."));
        }
        self.access.connect().await
    }
}

pub async fn run(cli: Cli) -> Result<(), Failure> {
    dispatch(&Context::new(cli.global).await, cli.command).await
}

pub async fn dispatch(context: &Context, command: Command) -> Result<(), Failure> {
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
        Command::Authz(args) => authz::run(context, args).await,
        Command::Top(args) => top::run(context, &args).await,
        Command::Topology(args) => topology::run(context, &args).await,
        Command::Tap(args) => tap::run(context, args).await,
        Command::Audit(args) => audit::run(context, args).await,
        Command::Certs(args) => certs::run(context, &args).await,
        Command::Proxy(args) => proxy::run(context, args).await,
        Command::Logs(args) => logs::run(context, &args).await,
        Command::BugReport(args) => bug_report::run(context, &args).await,
        Command::LogLevel(args) => log_level::run(context, args).await,
        Command::Inject(args) => inject::run(context, args).await,
        Command::Uninject(args) => inject::run_uninject(context, args).await,
        Command::Check(args) => check::run(context, args).await,
        Command::Install(args) => install::run(context, args).await,
        Command::Upgrade(args) => upgrade::run(context, args).await,
        Command::Uninstall(args) => uninstall::run(context, args).await,
        Command::Version(args) => version::run(context, args).await,
        Command::Completion(args) => completion::run(context, &args),
    }
}

#[cfg(test)]
pub mod fake;
#[cfg(test)]
pub mod tests;
