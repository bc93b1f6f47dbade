//! `meshctl demo`: a whole mesh with a shop in it, on this machine, for as long as the command runs.
//!
//! ```text
//! browser or load on the host's loopback -> gateway -> web -> reviews v1 | v2 -> ratings -> stock
//!                                                      HTTP/1.1          gRPC        TCP
//! ```
//!
//! In: nothing but a data folder. Out: a table of what flows, read from the proxies' own metrics, or with `--once` a verdict
//! ([`once`]). What it starts: [`build`] makes the programs, [`parts`] says which workloads there are, [`running`] starts and
//! ends them, [`load`] sends requests, [`live`] shows them.

mod build;
mod folder;
mod live;
mod load;
mod metrics;
mod once;
mod parts;
mod running;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::commands::Context;
use crate::failure::{Exit, Failure};
use folder::Folder;
use load::Client;
use running::Running;

/// From the start to the first good request, on a slow machine.
const FIRST_REQUEST: Duration = Duration::from_secs(30);

/// Start a whole mesh with a small shop in it, and show what flows
///
/// Runs until Ctrl-C, and leaves nothing behind but its data folder. Needs no root: it runs in namespaces of its own.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl demo
  meshctl demo --once")]
pub struct Args {
    /// Play a canary and faults, compare what was asked with what was measured, and end; the exit code is 1 when one is off
    #[arg(long)]
    once: bool,
    /// Folder of everything that the demo writes [default: ~/.mesh/demo]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Port of the shop on this machine's loopback interface; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Requests a second that the demo sends itself; 0 for none
    #[arg(long, default_value_t = 20)]
    rate: u32,
}

pub async fn execute(context: &Context, args: Args) -> Result<(), Failure> {
    let mut stop = Stop::listen()?;
    let (mut running, client) = tokio::select! {
        started = start(context, &args) => started?,
        // What has been started dies with the future.
        code = stop.signal() => return Err(Failure::silent(code)),
    };
    let ended = tokio::select! {
        ended = play(context, &args, &mut running, &client) => ended,
        code = stop.signal() => match args.once {
            true => Err(Failure::silent(code)),
            false => Ok(()),
        },
    };
    tokio::select! {
        () = running.stop() => ended,
        // Somebody is in a hurry.
        code = stop.signal() => Err(Failure::silent(code)),
    }
}

async fn start(context: &Context, args: &Args) -> Result<(Running, Client), Failure> {
    build::programs().await?;
    let folder = Folder::prepare(args.data.clone())?;
    let started = Instant::now();
    let running = Running::start(folder, args.port, |what| context.out.note(what)).await?;
    let client = Client::new(SocketAddr::from((Ipv4Addr::LOCALHOST, running.port)));
    client.first_good(FIRST_REQUEST).await?;
    let took = started.elapsed();
    context.out.note(&format!("First good request through the mesh after {:.1} s.\n", took.as_secs_f64()));
    Ok((running, client))
}

async fn play(context: &Context, args: &Args, running: &mut Running, client: &Client) -> Result<(), Failure> {
    match args.once {
        true => once::play(context, running, client).await,
        false => live::show(context, running, client, args.rate).await,
    }
}

/// The signals that end the demo.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Stop {
    fn listen() -> std::io::Result<Self> {
        let [interrupt, terminate, hangup] =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        Ok(Self { interrupt: interrupt?, terminate: terminate?, hangup: hangup? })
    }

    /// The exit code that fits the signal.
    async fn signal(&mut self) -> Exit {
        tokio::select! {
            _ = self.interrupt.recv() => Exit::Application(130),
            _ = self.terminate.recv() => Exit::Application(143),
            _ = self.hangup.recv() => Exit::Application(129),
        }
    }
}
