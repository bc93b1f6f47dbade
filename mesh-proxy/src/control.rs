//! How the proxy reaches its control plane: HTTP/2 over TLS 1.3, over TCP or a unix socket.
//!
//! In: an address and a TLS configuration. Out: a gRPC channel that is connected.

mod host;

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use host::Host;
use hyper_util::rt::TokioIo;
use mesh_common::names::port;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// So long a connection is not answered before another one is begun.
const SILENCE: Duration = Duration::from_millis(500);
/// A control plane that vanished without closing the connection is noticed within the sum of the two.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the control plane is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    Tcp(Host),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not the address of a control plane; write unix:PATH or https://HOST:15012")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(wrong()) } else { Ok(Self::Unix(path.into())) };
        }
        let uri: http::Uri = text.parse().map_err(|_| wrong())?;
        match (uri.scheme_str(), uri.host(), uri.path()) {
            (Some("https"), Some(host), "" | "/") if uri.query().is_none() => {
                let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                Ok(Self::Tcp(Host::new(host, uri.port_u16().unwrap_or(port::XDS))))
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(Host { name, port, .. }) if name.contains(':') => write!(f, "https://[{name}]:{port}"),
            Self::Tcp(Host { name, port, .. }) => write!(f, "https://{name}:{port}"),
        }
    }
}

/// Connects, handshake included.
pub async fn dial(address: &Address, tls: Arc<ClientConfig>) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn({
        let address = address.clone();
        move |_| {
            let (address, tls) = (address.clone(), tls.clone());
            async move { connect(&address, tls).await.map(TokioIo::new) }
        }
    });
    Endpoint::from_static("http://mesh-control")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

async fn connect(address: &Address, tls: Arc<ClientConfig>) -> io::Result<TlsStream<Box<dyn Io>>> {
    // Peers are verified by SPIFFE ID: the name is only what SNI says.
    let (socket, name): (Box<dyn Io>, _) = match address {
        Address::Unix(path) => (Box::new(UnixStream::connect(path).await?), "mesh-control"),
        Address::Tcp(host) => (Box::new(tcp(host).await?), host.name.as_str()),
    };
    let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    TlsConnector::from(tls).connect(name, socket).await
}

async fn tcp(host: &Host) -> io::Result<TcpStream> {
    first_open(&host.addresses().await?, |address| async move {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        crate::listen::mark(&socket);
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    })
    .await
}

/// The first connection that somebody takes. One that nobody answers may have been led to a replica that is gone, and would be
/// for as long as it is tried: others are begun beside it, at the next address or at the same once more.
async fn first_open<S, F>(addresses: &[SocketAddr], open: impl Fn(SocketAddr) -> F) -> io::Result<S>
where
    F: Future<Output = io::Result<S>>,
{
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let (mut opening, mut untried) = (FuturesUnordered::new(), addresses.len());
    for address in addresses.iter().cycle() {
        opening.push(open(*address));
        untried = untried.saturating_sub(1);
        let mut next = std::pin::pin!(tokio::time::sleep(SILENCE));
        loop {
            tokio::select! {
                Some(opened) = opening.next() => match opened {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = error,
                },
                () = &mut next => break,
            }
            match (opening.is_empty(), untried) {
                (true, 0) => return Err(last),
                (true, _) => break,
                (false, _) => (),
            }
        }
    }
    Err(last)
}

/// An error with all that caused it: gRPC's own say only "transport error".
pub fn explain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// A gRPC status as one sentence.
pub fn explain_status(status: &tonic::Status) -> String {
    match (status.message(), status.source()) {
        ("", None) => status.code().description().to_owned(),
        ("", Some(source)) => explain(source),
        (message, _) => message.to_owned(),
    }
}

/// Waiting times between attempts: exponential from `base` to `max`, with full jitter, so that the proxies of a mesh
/// do not come back all at once.
#[derive(Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    attempt: u32,
}

impl Backoff {
    pub fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, attempt: 0 }
    }

    /// How long to wait before the next attempt; `random` is from 0 to 1.
    pub fn next(&mut self, random: f64) -> Duration {
        let ceiling = self.base.saturating_mul(1 << self.attempt.min(16)).min(self.max);
        self.attempt = self.attempt.saturating_add(1);
        // Never at once: a control plane that refuses must not be asked in a tight loop.
        ceiling.mul_f64(0.25 + 0.75 * random.clamp(0.0, 1.0))
    }

    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_addresses() {
        let tcp = |host: &str, port| Address::Tcp(Host::new(host.to_owned(), port));
        assert_eq!("unix:/run/mesh/proxy.sock".parse(), Ok(Address::Unix("/run/mesh/proxy.sock".into())));
        assert_eq!("https://control.example:15012".parse(), Ok(tcp("control.example", 15012)));
        assert_eq!("https://10.0.0.1".parse(), Ok(tcp("10.0.0.1", 15012)));
        assert_eq!("https://[fd00::1]:1/".parse(), Ok(tcp("fd00::1", 1)));
        for wrong in ["", "unix:", "http://control:15010", "https://", "control:15012", "https://a/b", "https://a?b"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
        assert_eq!(tcp("fd00::1", 1).to_string(), "https://[fd00::1]:1");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_holds_up_nobody_else() {
        use std::sync::Mutex;
        let addresses: Vec<SocketAddr> = ["10.0.0.1:1", "10.0.0.2:1"].map(|it| it.parse().unwrap()).to_vec();
        // What comes of the attempts, one after the other, and how long it takes; and the attempts that were made.
        let attempts = async |count: usize, outcomes: &[Option<Result<u8, io::ErrorKind>>]| {
            let made = Mutex::new(Vec::new());
            let began = tokio::time::Instant::now();
            let opened = first_open(&addresses[..count], |address| {
                let mut made = made.lock().unwrap();
                let outcome = outcomes[made.len()];
                made.push(address.ip().to_string());
                async move {
                    match outcome {
                        None => std::future::pending().await,
                        Some(outcome) => outcome.map_err(io::Error::from),
                    }
                }
            });
            let opened = opened.await.map_err(|error| error.kind());
            (opened, made.into_inner().unwrap().join(" "), began.elapsed())
        };
        let refused = io::ErrorKind::ConnectionRefused;
        let (now, later) = (Duration::ZERO, SILENCE);
        for (count, outcomes, expected) in [
            (2, &[Some(Ok(1))][..], (Ok(1), "10.0.0.1", now)),
            (2, &[Some(Err(refused)), Some(Ok(2))], (Ok(2), "10.0.0.1 10.0.0.2", now)),
            (2, &[Some(Err(refused)), Some(Err(refused))], (Err(refused), "10.0.0.1 10.0.0.2", now)),
            (1, &[Some(Err(refused))], (Err(refused), "10.0.0.1", now)),
            (1, &[None, Some(Ok(2))], (Ok(2), "10.0.0.1 10.0.0.1", later)),
            (2, &[None, None, Some(Ok(3))], (Ok(3), "10.0.0.1 10.0.0.2 10.0.0.1", later * 2)),
            (2, &[None, Some(Err(refused)), Some(Ok(3))], (Ok(3), "10.0.0.1 10.0.0.2 10.0.0.1", later * 2)),
            (0, &[], (Err(io::ErrorKind::AddrNotAvailable), "", now)),
        ] {
            let (opened, made, took) = attempts(count, outcomes).await;
            assert_eq!((opened, made.as_str()), (expected.0, expected.1), "{outcomes:?}");
            assert!(took >= expected.2 && took < expected.2 + later / 2, "{outcomes:?} took {took:?}");
        }
    }

    #[test]
    fn backs_off_up_to_the_maximum_and_starts_again() {
        let (base, max) = (Duration::from_millis(100), Duration::from_secs(10));
        let mut backoff = Backoff::new(base, max);
        assert_eq!(backoff.next(1.0), base);
        assert_eq!(backoff.next(1.0), base * 2);
        assert_eq!(backoff.next(0.0), base);
        for _ in 0..100 {
            backoff.next(0.5);
        }
        assert_eq!(backoff.next(1.0), max);
        backoff.reset();
        assert_eq!(backoff.next(1.0), base);
    }
}
