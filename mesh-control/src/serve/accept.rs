//! Accepts connections, up to a limit, and gives each a short time to show that it is what this door is for.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use metrics::{counter, gauge};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_stream::wrappers::ReceiverStream;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::connection::{Connection, Distrusted, Io};
use crate::auth::{Peer, PeerCertificate, Transport};
use crate::ca::{Ca, CaError, ServerTls};

/// How long to leave a listener alone that has no more file descriptors to give.
const PAUSE: Duration = Duration::from_millis(100);

pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections open at the same time; further ones are closed at once.
    pub connections: usize,
    /// For the TLS handshake and the first bytes of HTTP/2.
    pub handshake: Duration,
    /// For a certificate or a token, on a door with TLS. Who proves no identity has nothing to stay for.
    pub proof: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 10_000, handshake: Duration::from_secs(10), proof: Duration::from_secs(10) }
    }
}

/// TLS of a door, and the authority that says when what was verified is to be verified again.
#[derive(Clone)]
pub struct DoorTls {
    acceptor: TlsAcceptor,
    ca: Arc<Ca>,
}

impl DoorTls {
    pub fn new(tls: &ServerTls) -> Result<Self, CaError> {
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(tls.config()?)), ca: tls.ca().clone() })
    }
}

/// One listening socket with what is behind it.
pub struct Door {
    /// For logs and metrics: `xds`, `plaintext`, `proxy`, `control`.
    pub name: &'static str,
    pub listener: Listener,
    /// Without it the door speaks plaintext.
    pub tls: Option<DoorTls>,
    pub transport: Transport,
    pub limits: Limits,
}

impl Door {
    /// Connections that are ready to be served. Accepting ends when the stream is dropped.
    pub fn incoming(self) -> ReceiverStream<io::Result<Connection>> {
        let (ready, stream) = mpsc::channel(16);
        tokio::spawn(async move {
            let closed = ready.clone();
            tokio::select! {
                () = closed.closed() => {}
                () = self.accept_all(ready) => {}
            }
        });
        ReceiverStream::new(stream)
    }

    async fn accept_all(self, ready: mpsc::Sender<io::Result<Connection>>) {
        let name = self.name;
        let permits = Arc::new(Semaphore::new(self.limits.connections));
        loop {
            let (io, address, process, user) = match self.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(listener = name, %error, "cannot accept a connection; is the limit of open files too low?");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = permits.clone().try_acquire_owned() else {
                counter!("mesh_control_connections_refused_total", "listener" => name, "reason" => "limit")
                    .increment(1);
                continue;
            };
            let open_one = Open::new(name, permit);
            let (tls, transport, ready) = (self.tls.clone(), self.transport, ready.clone());
            let Limits { handshake: limit, proof, .. } = self.limits;
            tokio::spawn(async move {
                let peer = Peer { process, user, ..Peer::new(address.clone(), transport, None) };
                let opened = tokio::time::timeout(limit, open(io, peer, tls, proof, open_one)).await;
                let reason = match opened {
                    Ok(Ok(None)) => return,
                    Ok(Ok(Some(connection))) => {
                        // Nobody takes it any more when the server is ending.
                        let _ = ready.send(Ok(connection)).await;
                        return;
                    }
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "it said nothing in time".to_owned(),
                };
                counter!("mesh_control_connections_refused_total", "listener" => name, "reason" => "handshake")
                    .increment(1);
                tracing::debug!(listener = name, peer = address, reason, "closed a connection");
            });
        }
    }

    /// A connection, its peer's address, and the process and its user there if that is on this machine and can be seen.
    async fn accept(&self) -> io::Result<(Box<dyn Io>, String, Option<i32>, Option<u32>)> {
        match &self.listener {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Answers are small and awaited.
                let _ = stream.set_nodelay(true);
                Ok((Box::new(stream), address.to_string(), None, None))
            }
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let peer = stream.peer_cred().ok();
                let process = peer.and_then(|peer| peer.pid()).filter(|pid| *pid > 0);
                Ok((Box::new(stream), "unix".to_owned(), process, peer.map(|peer| peer.uid())))
            }
        }
    }
}

/// A connection's place under the limit, from the accept to its end.
pub(super) struct Open {
    pub name: &'static str,
    _permit: OwnedSemaphorePermit,
}

impl Open {
    pub(super) fn new(name: &'static str, permit: OwnedSemaphorePermit) -> Self {
        gauge!("mesh_control_connections", "listener" => name).increment(1);
        Self { name, _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        gauge!("mesh_control_connections", "listener" => self.name).decrement(1);
    }
}

async fn open(
    io: Box<dyn Io>,
    peer: Peer,
    tls: Option<DoorTls>,
    proof: Duration,
    open: Open,
) -> io::Result<Option<Connection>> {
    let Some(tls) = tls else {
        return Connection::open(io, peer, None, None, open).await;
    };
    let began = Instant::now();
    let stream = tls.acceptor.accept(io).await?;
    let certificate = match stream.get_ref().1.peer_certificates() {
        Some(chain) => Some(peer_certificate(chain, began).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the client's certificate holds no SPIFFE ID")
        })?),
        None => None,
    };
    let distrusted = certificate.as_ref().map(|it| Box::pin(distrusted(tls.ca.distrust(), it.verified)) as Distrusted);
    let Peer { process, user, .. } = peer;
    let peer = Peer { process, user, ..Peer::new(peer.address, peer.transport, certificate) };
    Connection::open(Box::new(stream), peer, Some(proof), distrusted, open).await
}

/// Ends when something is trusted no more by which a certificate may have been verified then.
async fn distrusted(mut distrust: watch::Receiver<Option<Instant>>, verified: Instant) {
    if distrust.wait_for(|at| at.is_some_and(|at| verified <= at)).await.is_err() {
        // The process is ending.
        std::future::pending().await
    }
}

/// Of a chain that the handshake has verified.
fn peer_certificate(chain: &[CertificateDer<'_>], verified: Instant) -> Option<PeerCertificate> {
    let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
    let not_after = Timestamp::from_second(leaf.validity().not_after.timestamp()).ok()?;
    Some(PeerCertificate { identity: mesh_common::tls::peer_identity(chain)?, not_after, verified })
}
