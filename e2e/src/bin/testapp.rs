//! One program for every part that an application plays in the tests.

use std::net::SocketAddr;

use clap::{Parser, Subcommand};
use mesh_e2e::app::{authorize, collector, echo, garbage, load, peer, sign, tls};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// An HTTP server that describes each request.
    Http {
        #[command(flatten)]
        server: echo::Server,
        /// Finish what it has when told to end, instead of ending at once.
        #[arg(long)]
        graceful: bool,
    },
    /// A TCP server that answers line by line.
    Tcp(Server),
    /// A server with TLS of its own.
    Tls(Server),
    /// Calls one of these by server names.
    AskTls(tls::Ask),
    /// An HTTP server that always answers with the same bytes.
    Fixed {
        #[arg(long, default_value = "0.0.0.0:9080")]
        listen: SocketAddr,
        #[arg(long, default_value_t = 100)]
        bytes: usize,
    },
    /// Decides about requests that proxies ask about.
    Authorize(authorize::Args),
    /// A backend for spans, which prints them.
    Collector(collector::Args),
    /// Throws broken bytes at each address, over TCP and UDP.
    Garbage { targets: Vec<SocketAddr> },
    /// A client that prints its report as JSON, at the end or when told to end.
    Load(load::Args),
    /// Asks the control plane for a certificate.
    Sign(sign::Args),
    /// Carries plain connections over mutual TLS to a workload's proxy, as one of its peers.
    Peer(peer::Args),
    /// Does nothing until told to end: a container in which others of these are started.
    Idle,
    /// Tells the first process of its container to end.
    Stop,
}

#[derive(clap::Args)]
struct Server {
    #[arg(long, default_value = "0.0.0.0:9080")]
    listen: SocketAddr,
    #[arg(long, default_value = "v1")]
    version: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let told = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    match Cli::parse().command {
        Command::Http { server, graceful: true } => echo::http(server, told).await,
        Command::Http { server, graceful: false } => {
            let serving = echo::http(server, std::future::pending());
            tokio::select! { done = serving => done, () = told => Ok(()) }
        }
        Command::Tcp(server) => {
            tokio::select! { done = echo::tcp(server.listen, server.version) => done, () = told => Ok(()) }
        }
        Command::Tls(server) => {
            tokio::select! { done = tls::serve(server.listen, server.version) => done, () = told => Ok(()) }
        }
        Command::AskTls(args) => tls::ask(args).await,
        Command::Fixed { listen, bytes } => {
            tokio::select! { done = echo::fixed(listen, bytes) => done, () = told => Ok(()) }
        }
        Command::Authorize(args) => {
            tokio::select! { done = authorize::run(args) => done, () = told => Ok(()) }
        }
        Command::Collector(args) => {
            tokio::select! { done = collector::run(args) => done, () = told => Ok(()) }
        }
        Command::Garbage { targets } => {
            for target in targets {
                garbage::tcp(target)?;
                garbage::udp(target)?;
            }
            Ok(())
        }
        Command::Sign(args) => {
            println!("{}", sign::run(args).await?);
            Ok(())
        }
        Command::Peer(args) => {
            tokio::select! { done = peer::run(args) => done, () = told => Ok(()) }
        }
        Command::Idle => {
            told.await;
            Ok(())
        }
        Command::Stop => Ok(kill(Pid::from_raw(1), Signal::SIGTERM)?),
        Command::Load(args) => {
            tokio::spawn(async move {
                told.await;
                stop.send_replace(true);
            });
            let linger = args.linger;
            let mut told = stopped.clone();
            println!("{}", serde_json::to_string(&load::run(args, stopped).await?)?);
            if linger {
                told.wait_for(|told| *told).await?;
            }
            Ok(())
        }
    }
}
