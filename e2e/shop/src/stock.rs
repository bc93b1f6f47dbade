//! `stock`: how many of a product are left. A line of text for each line of text, over TCP.

use std::net::SocketAddr;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Longer than any question.
const LINE: u64 = 64;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value = "0.0.0.0:9070")]
    listen: SocketAddr,
    #[arg(long, default_value = "v1")]
    version: String,
}

pub async fn serve(args: Args) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let version = args.version.clone();
        tokio::spawn(async move { answer(stream, &version).await });
    }
}

async fn answer(stream: TcpStream, version: &str) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if (&mut stream).take(LINE).read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let reply = match line.strip_prefix("GET ").and_then(|product| product.trim().parse::<u32>().ok()) {
            Some(product) => format!("stock {version} {}\n", 17 + product % 5),
            None => "? write GET and a number\n".to_owned(),
        };
        stream.write_all(reply.as_bytes()).await?;
    }
}
