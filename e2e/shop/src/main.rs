//! A small shop, made to be watched: `web` calls `reviews` over HTTP/1.1, which calls `ratings` over gRPC, which asks
//! `stock` over plain TCP.
//!
//! In: requests, and where the next part is. Out: replies that name every part that took part, with its version. Nothing
//! here knows of a mesh: names are resolved, connections are made, and no header is passed on but `end-user`, `cookie` and those
//! of the trace, as every application has to do whose calls shall be in one trace.

mod http1;
mod ratings;
mod reviews;
mod stock;
mod web;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(version, about = "The parts of a small shop, as an example of applications in a mesh")]
struct Cli {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// The page, and JSON at /api/reviews/1
    Web(web::Args),
    /// What customers say: HTTP/1.1
    Reviews(reviews::Args),
    /// What customers think: gRPC
    Ratings(ratings::Args),
    /// How many are left: lines over TCP
    Stock(stock::Args),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let part = async {
        match Cli::parse().part {
            Part::Web(args) => web::serve(args).await,
            Part::Reviews(args) => reviews::serve(args).await,
            Part::Ratings(args) => ratings::serve(args).await,
            Part::Stock(args) => stock::serve(args).await,
        }
    };
    tokio::select! {
        ended = part => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}
