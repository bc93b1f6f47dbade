//! TLS of mesh-control's own servers: its certificate, renewed by itself, and the verification of clients'.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use mesh_common::identity::{Identity, IdentityError};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{BACKDATE, Ca, CaError, DEFAULT_TTL};

/// Who mesh-control is to its clients.
pub fn control_identity(trust_domain: &str) -> Result<Identity, IdentityError> {
    Identity::new(trust_domain, "mesh-system", "mesh-control")
}

pub struct ServerTls {
    ca: Arc<Ca>,
    identity: Identity,
    names: Vec<SanType>,
    provider: Arc<CryptoProvider>,
    current: Arc<Current>,
}

/// The certificate that new connections get.
struct Current {
    key: ArcSwap<CertifiedKey>,
    not_after: ArcSwap<Timestamp>,
}

impl ServerTls {
    /// `names`: DNS names and addresses besides the SPIFFE ID, for clients that verify those.
    pub fn new(ca: Arc<Ca>, names: &[String], now: Timestamp) -> Result<Self, CaError> {
        let identity = control_identity(ca.trust_domain()).map_err(|error| CaError::Request(error.to_string()))?;
        let names = names
            .iter()
            .map(|name| match name.parse::<IpAddr>() {
                Ok(address) => Ok(SanType::IpAddress(address)),
                Err(_) => Ok(SanType::DnsName(name.as_str().try_into()?)),
            })
            .collect::<Result<Vec<_>, CaError>>()?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let (key, not_after) = issue(&ca, &identity, &names, &provider, now)?;
        let current =
            Arc::new(Current { key: ArcSwap::from_pointee(key), not_after: ArcSwap::from_pointee(not_after) });
        Ok(Self { ca, identity, names, provider, current })
    }

    /// TLS 1.3 with HTTP/2 only. A client may show a certificate of this mesh, or none.
    pub fn config(&self) -> Result<rustls::ServerConfig, rustls::Error> {
        let mut roots = RootCertStore::empty();
        for root in self.ca.roots_der() {
            roots.add(root.into())?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let mut config = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.current.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would not show the client's certificate again; connections here are few and long.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(config)
    }

    /// Renews the certificate when it is past half of its life; call it from time to time. True: it was renewed.
    pub fn renew(&self, now: Timestamp) -> Result<bool, CaError> {
        let half = DEFAULT_TTL / 2;
        if now + half < **self.current.not_after.load() {
            return Ok(false);
        }
        let (key, not_after) = issue(&self.ca, &self.identity, &self.names, &self.provider, now)?;
        self.current.key.store(Arc::new(key));
        self.current.not_after.store(Arc::new(not_after));
        Ok(true)
    }

    pub fn not_after(&self) -> Timestamp {
        **self.current.not_after.load()
    }
}

fn issue(
    ca: &Ca,
    identity: &Identity,
    names: &[SanType],
    provider: &CryptoProvider,
    now: Timestamp,
) -> Result<(CertifiedKey, Timestamp), CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let issued = ca.sign(&key, identity, names, DEFAULT_TTL, now)?;
    // The root goes with it, so that a workload that knows only its fingerprint (from a join token) can check it.
    let chain = issued.chain.into_iter().chain(ca.roots_der()).map(CertificateDer::from).collect();
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let certified = CertifiedKey::from_der(chain, der, provider)
        .map_err(|error| CaError::Request(format!("the server's own certificate: {error}")))?;
    tracing::debug!(%identity, until = %issued.not_after, backdated = ?BACKDATE, "issued the server's certificate");
    Ok((certified, issued.not_after))
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.load_full())
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current").field("not_after", &self.not_after.load()).finish_non_exhaustive()
    }
}
