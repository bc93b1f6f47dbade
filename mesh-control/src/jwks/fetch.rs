use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_common::jwt::{Jwks, MAX_JWKS_BYTES, check_uri};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

/// For all of one attempt.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Of each of the addresses that a name has.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Attempts at the same time.
const AT_ONCE: usize = 8;
const MAX_HEAD_BYTES: usize = 16 << 10;

/// Gets a JWKS. It follows no redirect, and what it gets is used if it is a JWKS and never shown to anybody if it is not: who may
/// write where keys are learns nothing of what else the control plane could reach.
pub struct Fetcher {
    /// Read when first needed.
    tls: OnceLock<Arc<ClientConfig>>,
    permits: Semaphore,
}

impl Default for Fetcher {
    fn default() -> Self {
        Self { tls: OnceLock::new(), permits: Semaphore::new(AT_ONCE) }
    }
}

impl Fetcher {
    /// Which trusts these roots and no others.
    pub fn with_roots(roots: RootCertStore) -> Self {
        let tls = OnceLock::from(Arc::new(config(roots)));
        Self { tls, ..Self::default() }
    }

    /// The keys that can be used, in one form; or what is wrong, in words that give nothing of the answer away.
    pub async fn fetch(&self, uri: &str) -> Result<String, String> {
        check_uri(uri)?;
        let _permit = self.permits.acquire().await.map_err(|error| error.to_string())?;
        let body = tokio::time::timeout(TIMEOUT, self.get(uri)).await.map_err(|_| "it took too long".to_owned())??;
        let text = std::str::from_utf8(&body).map_err(|_| "the answer is not text".to_owned())?;
        let keys = Jwks::parse(text).map_err(|error| format!("the answer is not a JWKS that can be used: {error}"))?;
        if keys.is_empty() {
            return Err("no key in the answer can be used".to_owned());
        }
        Ok(keys.canonical())
    }

    async fn get(&self, uri: &str) -> Result<Bytes, String> {
        let uri: Uri = uri.parse().map_err(|_| "it is not a URL".to_owned())?;
        let plain = uri.scheme_str() == Some("http");
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let stream = connect(&host, uri.port_u16().unwrap_or(if plain { 80 } else { 443 }), plain).await?;
        if plain {
            return ask(stream, &uri).await;
        }
        let name = ServerName::try_from(host).map_err(|_| "its host is no name".to_owned())?;
        let tls = match self.tls.get() {
            Some(tls) => tls.clone(),
            None => {
                let read = tokio::task::spawn_blocking(|| Arc::new(config(system_roots())));
                let read = read.await.map_err(|error| error.to_string())?;
                self.tls.get_or_init(|| read).clone()
            }
        };
        let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(|error| format!("TLS: {error}"))?;
        ask(stream, &uri).await
    }
}

fn config(roots: RootCertStore) -> ClientConfig {
    ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
}

/// Those of the machine, or that `SSL_CERT_FILE` names; where there are none, as in our image, those of Mozilla.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
    }
    roots
}

async fn connect(host: &str, port: u16, plain: bool) -> Result<TcpStream, String> {
    let addresses = tokio::net::lookup_host((host, port)).await.map_err(|error| format!("its host: {error}"))?;
    let mut failed = "its host has no address that may be asked".to_owned();
    for address in addresses.filter(|address| may_be_asked(address, plain)) {
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failed = format!("cannot connect: {error}"),
            Err(_) => failed = "cannot connect in time".to_owned(),
        }
    }
    Err(failed)
}

/// Link-local addresses are where clouds tell machines their secrets. A name that says loopback has to be one.
fn may_be_asked(address: &SocketAddr, plain: bool) -> bool {
    let link_local = match address.ip().to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let nowhere = address.ip().is_unspecified() || address.ip().is_multicast();
    !(link_local || nowhere) && (!plain || address.ip().to_canonical().is_loopback())
}

async fn ask<IO: AsyncRead + AsyncWrite + Send + Unpin + 'static>(io: IO, uri: &Uri) -> Result<Bytes, String> {
    let failed = |error: hyper::Error| format!("HTTP: {error}");
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_HEAD_BYTES);
    let (mut sender, connection) = builder.handshake(TokioIo::new(io)).await.map_err(failed)?;
    let path = uri.path_and_query().map_or("/", |it| it.as_str());
    let authority = uri.authority().map_or("", |it| it.as_str());
    let request = Request::get(path)
        .header(HOST, authority)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, "mesh-control")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(format!("the answer is {}", response.status().as_u16()));
        }
        let body = Limited::new(response.into_body(), MAX_JWKS_BYTES).collect().await;
        Ok(body.map_err(|_| format!("the answer broke off, or is longer than {MAX_JWKS_BYTES} bytes"))?.to_bytes())
    };
    tokio::pin!(connection);
    tokio::pin!(exchange);
    let mut open = true;
    loop {
        tokio::select! {
            result = &mut exchange => return result,
            // What went wrong with it is what the exchange ends with.
            _ = &mut connection, if open => open = false,
        }
    }
}
