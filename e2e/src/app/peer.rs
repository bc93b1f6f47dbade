//! A peer of the mesh for tools that can't be one: what comes in plainly goes out over mutual TLS, byte for byte.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use mesh_common::names::ALPN_H2;
use mesh_proxy::config::UpstreamTls;
use mesh_proxy::identity::Authority;
use mesh_proxy::tls::Tls;
use rustls::ClientConfig;
use tokio::io::{AsyncWriteExt, copy, sink, split};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    control: String,
    #[arg(long)]
    token_file: PathBuf,
    #[arg(long)]
    listen: SocketAddr,
    /// Where the peer's proxy is reached.
    #[arg(long)]
    to: SocketAddr,
}

/// Gets a certificate, says that it is ready, and serves.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let authority = Authority {
        address: args.control.parse()?,
        token_file: Some(args.token_file),
        trust_bundle: None,
        state_dir: None,
        ttl: Duration::ZERO,
    };
    let tls = Tls::default();
    authority.first(&tls).await?;
    let anyone = UpstreamTls { identities: Vec::new(), alpn: vec![ALPN_H2.to_vec()], sni: String::new() };
    let config = tls.client(&anyone, ALPN_H2)?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    println!("ready");
    loop {
        let (plain, _) = listener.accept().await?;
        let (config, to) = (config.clone(), args.to);
        tokio::spawn(async move {
            if let Err(error) = relay(plain, config, to).await {
                eprintln!("{error:#}");
            }
        });
    }
}

async fn relay(mut plain: TcpStream, config: Arc<ClientConfig>, to: SocketAddr) -> anyhow::Result<()> {
    let stream = TcpStream::connect(to).await?;
    for side in [&plain, &stream] {
        side.set_nodelay(true)?;
    }
    let name = rustls::pki_types::ServerName::IpAddress(to.ip().into());
    let secured = TlsConnector::from(config).connect(name, stream).await?;
    let (mut from_peer, mut to_peer) = split(secured);
    let (mut from_tool, mut to_tool) = plain.split();
    let up = async {
        if copy(&mut from_tool, &mut to_peer).await.is_ok() {
            to_peer.shutdown().await.ok();
        }
        // What a peer that has gone does not take any more: closed with bytes unread, a connection would be reset, and with it
        // what the peer said last.
        copy(&mut from_tool, &mut sink()).await.ok();
    };
    let down = async {
        let received = copy(&mut from_peer, &mut to_tool).await;
        to_tool.shutdown().await.ok();
        received
    };
    tokio::join!(up, down).1?;
    Ok(())
}
