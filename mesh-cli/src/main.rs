//! `meshctl`, the command line of the mesh.
//!
//! In: arguments, object files, and what mesh-control answers over its unix socket. Out: tables for people, stable JSON and
//! YAML for programs, and exit codes that tell failures apart ([`failure::Exit`]). Decisions are made by the control plane;
//! what is decided here (which rule of a route to edit, how a table looks) is in pure functions with tests beside them.

mod args;
mod client;
mod commands;
mod confirm;
mod demo;
mod dump;
mod failure;
mod faults;
mod install;
mod kinds;
mod kubernetes;
mod local;
mod logs;
mod manifests;
mod netns;
mod objects;
mod output;
#[cfg(test)]
mod reference;
mod routes;
mod run;
#[cfg(test)]
mod schema;
mod state;
mod views;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;

fn main() -> ExitCode {
    if let Some(code) = netns::entry() {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(problem) => {
            let code = if problem.use_stderr() { failure::Exit::Usage.code() } else { 0 };
            // A closed output is no reason to fail: the reader has seen enough.
            let _ = problem.print();
            return ExitCode::from(code);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failure::Failure::new(format!("Cannot start the runtime: {error}.")).report(),
    };
    match runtime.block_on(commands::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
