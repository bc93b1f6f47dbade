//! New connections to endpoints.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::names::{ALPN_H2, ALPN_HTTP1};
use rustls::ClientConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use super::UpstreamStream;
use super::cluster::speaks_mesh;
use super::host::Host;
use crate::application;
use crate::config::{Cluster, Discovery, UpstreamTls};
use crate::error::{Error, Kind};
use crate::listen::mark;
use crate::tls::Tls;

/// After this much silence the kernel asks whether the other side is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// How long an endpoint that was taken away meanwhile may take to answer: one that ends in peace still does.
const PARTING: Duration = Duration::from_secs(1);

/// How to secure connections to the mesh's endpoints.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    tls: Tls,
    timeout: Duration,
    context: Option<UpstreamTls>,
    /// An application that does not listen where it was called is looked for at the host's own address.
    anywhere: bool,
}

impl Connector {
    pub(super) fn new(tls: &Tls, cluster: &Cluster) -> Self {
        Self {
            tls: tls.clone(),
            timeout: cluster.connect_timeout,
            context: cluster.tls.clone(),
            // Of a port that nobody named, what listens on the loopback address alone does so to be left alone.
            anywhere: !matches!(cluster.discovery, Discovery::OriginalDestination),
        }
    }

    /// Connects within the cluster's connect timeout, with mutual TLS and this protocol where that is wanted.
    pub(super) async fn connect(&self, host: &Host, alpn: &[u8]) -> Result<UpstreamStream, Error> {
        let address = host.address;
        let context = if host.secure { self.context.as_ref() } else { None };
        let alpn: &[u8] = match alpn {
            ALPN_H2 if !context.is_none_or(speaks_mesh) => b"h2",
            ALPN_HTTP1 if !context.is_none_or(speaks_mesh) => b"http/1.1",
            mesh => mesh,
        };
        let secured = match context {
            Some(context) => Some((context, self.tls.client(context, alpn)?)),
            None => None,
        };
        let connected = async {
            let stream = match host.application() {
                Some(called) => self.application(called, address).await?,
                None => tcp(address).await.map_err(|error| refused(address, &error))?,
            };
            match secured {
                Some((context, config)) => handshake(stream, address, context, config, alpn).await,
                None => Ok(UpstreamStream::Plain(stream)),
            }
        };
        let gone = async {
            host.until_retired().await;
            tokio::time::sleep(PARTING).await;
        };
        let reason = tokio::select! {
            result = tokio::time::timeout(self.timeout, connected) => match result {
                Ok(result) => return result,
                Err(_) => "no answer in time",
            },
            () = gone => "no answer, and it is not an endpoint any more",
        };
        Err(Error::because(Kind::UpstreamConnect, format_args!("{address}: {reason}")))
    }

    /// To the application on this machine, called at `called`.
    async fn application(&self, called: SocketAddr, otherwise: SocketAddr) -> Result<TcpStream, Error> {
        match application::connect_at(called).await {
            Ok(stream) => Ok(tuned(stream)),
            Err(_) if self.anywhere => tcp(otherwise).await.map_err(|error| refused(otherwise, &error)),
            Err(error) => Err(refused(called, &error)),
        }
    }
}

fn refused(address: SocketAddr, error: &std::io::Error) -> Error {
    Error::because(Kind::UpstreamConnect, format_args!("{address}: {error}"))
}

async fn tcp(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    mark(&socket);
    Ok(tuned(socket.connect(address).await?))
}

fn tuned(stream: TcpStream) -> TcpStream {
    // Both are only improvements: a connection without them works.
    let _ = stream.set_nodelay(true);
    let keep_alive = TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE / 6).with_retries(6);
    let _ = SockRef::from(&stream).set_tcp_keepalive(&keep_alive);
    stream
}

async fn handshake(
    stream: TcpStream,
    address: SocketAddr,
    context: &UpstreamTls,
    config: Arc<ClientConfig>,
    alpn: &[u8],
) -> Result<UpstreamStream, Error> {
    let name = Tls::server_name(context, address);
    let stream = TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|e| Error::because(Kind::UpstreamTls, format_args!("{address}: {e}")))?;
    if stream.get_ref().1.alpn_protocol() != Some(alpn) {
        let wanted = String::from_utf8_lossy(alpn);
        return Err(Error::because(Kind::UpstreamTls, format_args!("{address} does not speak {wanted}")));
    }
    Ok(UpstreamStream::Tls(Box::new(stream)))
}
