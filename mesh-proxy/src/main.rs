//! `mesh-proxy`: the program around the library.

mod run;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use mesh_common::telemetry;
use mesh_proxy::bootstrap::{Cli, Command};
use mesh_proxy::{cni, intercept};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if cni::is_called() {
        return cni::execute();
    }
    let result = match Cli::parse().command {
        Command::Intercept(args) => intercept::execute(&args).map_err(anyhow::Error::from),
        Command::CniInstall(args) if args.check => cni::is_installed(&args),
        Command::CniInstall(args) => install(&args),
        Command::Run(args) => args.check().map_err(anyhow::Error::from).and_then(|bootstrap| {
            let log = telemetry::init(&bootstrap.log, bootstrap.log_format)?;
            report_panics();
            raise_open_files();
            start(bootstrap, log)
        }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Until SIGTERM or Ctrl-C.
fn install(args: &cni::InstallArgs) -> anyhow::Result<()> {
    telemetry::init("info", telemetry::LogFormat::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        let mut stop = run::Stop::new()?;
        cni::install(args, async { stop.told().await }).await
    })
}

/// Configuration and traffic have threads of their own, so that neither a large configuration nor heavy traffic keeps
/// the other waiting.
fn start(bootstrap: mesh_proxy::bootstrap::Bootstrap, log: telemetry::LogFilter) -> anyhow::Result<()> {
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let data = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(bootstrap.workers)
        .thread_name("traffic")
        .enable_all()
        .build()
        .context("cannot start threads")?;
    let result = control.block_on(run::run(bootstrap, log, data.handle().clone()));
    // What is still open after the drain is cut.
    data.shutdown_background();
    result
}

/// A panic is a mistake of ours: it belongs into the log, in the log's format, and ends one connection only.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}; please report this")));
}

/// Two file descriptors for each connection are soon more than the usual soft limit allows.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}
