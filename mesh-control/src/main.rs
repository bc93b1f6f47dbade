//! `mesh-control`: the daemon around the library.

mod run;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use mesh_common::telemetry::{self, LogFilter};
use mesh_control::args::Args;
use mesh_control::store;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match start(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-control: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: Args) -> anyhow::Result<()> {
    let log = telemetry::init(&args.log, args.log_format)?;
    report_panics();
    raise_open_files();
    serve(args, log)
}

fn serve(args: Args, log: LogFilter) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    runtime.block_on(run::run(args, log))
}

/// A panic is a mistake of ours: it belongs into the log, in the log's format, and ends one task only.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        // Those that damaged store files provoke come out as errors.
        if !store::guarded() {
            tracing::error!("{panic}; please report this");
        }
    }));
}

/// One connection for each proxy is more than the usual soft limit allows.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}
