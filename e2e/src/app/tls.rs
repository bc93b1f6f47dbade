//! TLS that is the applications' own: a server that says under which name it was called, and a client that calls it by several.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use mesh_common::tls::provider;
use mesh_proxy::probe::trusting;
use rustls::ServerConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

#[derive(Clone, Debug, clap::Args)]
pub struct Ask {
    /// Host and port.
    to: String,
    /// What to call the server.
    names: Vec<String>,
}

/// With a certificate that nobody has signed.
pub async fn serve(address: SocketAddr, version: String) -> anyhow::Result<()> {
    let own = rcgen::generate_simple_self_signed(vec!["own.example.com".to_owned()])?;
    let key = own.signing_key.serialize_der().try_into().map_err(anyhow::Error::msg)?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, version) = (acceptor.clone(), version.clone());
        tokio::spawn(async move { answer(stream, acceptor, &version).await });
    }
}

async fn answer(stream: TcpStream, acceptor: TlsAcceptor, version: &str) -> std::io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let name = stream.get_ref().1.server_name().unwrap_or("-").to_owned();
    stream.write_all(format!("{version} {name}").as_bytes()).await?;
    stream.shutdown().await
}

/// Prints a line for each name: who answered, and by which name it was called there.
pub async fn ask(args: Ask) -> anyhow::Result<()> {
    // Whoever answers is right: who it is, it says.
    let config = trusting().map_err(|failure| anyhow::anyhow!(failure.reason))?;
    let connector = TlsConnector::from(config);
    for name in args.names {
        let answer = call(&args.to, &connector, name.clone()).await;
        println!("{name}: {}", answer.unwrap_or_else(|_| "refused".to_owned()));
    }
    Ok(())
}

async fn call(to: &str, connector: &TlsConnector, name: String) -> anyhow::Result<String> {
    let stream = TcpStream::connect(to).await?;
    let mut stream = connector.connect(ServerName::try_from(name)?, stream).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
