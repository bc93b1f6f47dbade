//! TLS of mesh-control's own servers: its certificate, renewed by itself, and the verification of clients'.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use mesh_common::identity::{Identity, IdentityError};
use mesh_common::tls::{
    CONTROL_ACCOUNT, CONTROL_NAMESPACE, ClientVerifier, Peers, SharedCertificate, certified_key, server_config,
};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch::Receiver;

use super::{Ca, CaError};

/// Who mesh-control is to its clients.
pub fn control_identity(trust_domain: &str) -> Result<Identity, IdentityError> {
    Identity::new(trust_domain, CONTROL_NAMESPACE, CONTROL_ACCOUNT)
}

pub struct ServerTls {
    ca: Arc<Ca>,
    identity: Identity,
    names: Vec<SanType>,
    ttl: Duration,
    /// What new connections get.
    certificate: SharedCertificate,
    made: Mutex<Made>,
}

/// What is known of it.
struct Made {
    not_after: Timestamp,
    /// Of the authority, since it was made.
    changes: Receiver<()>,
}

impl ServerTls {
    /// `names`: DNS names and addresses besides the SPIFFE ID, for clients that verify those. `ttl`: how long a certificate lives.
    pub fn new(ca: Arc<Ca>, names: &[String], ttl: Duration, now: Timestamp) -> Result<Self, CaError> {
        let identity = control_identity(ca.trust_domain())?;
        let names = names
            .iter()
            .map(|name| match name.parse::<IpAddr>() {
                Ok(address) => Ok(SanType::IpAddress(address)),
                Err(_) => Ok(SanType::DnsName(name.as_str().try_into()?)),
            })
            .collect::<Result<Vec<_>, CaError>>()?;
        let tls = Self {
            made: Mutex::new(Made { not_after: Timestamp::MIN, changes: ca.changes() }),
            ca,
            identity,
            names,
            ttl,
            certificate: SharedCertificate::default(),
        };
        tls.renew(now)?;
        Ok(tls)
    }

    /// TLS 1.3 with HTTP/2 only. A client may show a certificate of this mesh, or none.
    pub fn config(&self) -> Result<rustls::ServerConfig, CaError> {
        let verifier = ClientVerifier::new(self.ca.bundle.clone(), Peers::TrustDomain, false);
        let mut config = server_config(Arc::new(verifier), Arc::new(self.certificate.clone()), vec![b"h2".to_vec()])?;
        // A resumed session would not show the client's certificate again; connections here are few and long.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(config)
    }

    /// Renews the certificate, and the intermediate that signs, each when it is past half of its life. Call it once a second or
    /// so; what fails is logged, and tried again the next time.
    pub async fn keep(self: &Arc<Self>, now: Timestamp) {
        let tls = self.clone();
        let renewing = tokio::task::spawn_blocking(move || {
            tls.ca.renew(now)?;
            tls.renew(now)
        });
        match renewing.await {
            Ok(Ok(true)) => tracing::debug!(until = %self.not_after(), "renewed the server's certificate"),
            Ok(Ok(false)) => (),
            Ok(Err(error)) => tracing::error!(%error, "cannot renew a certificate of mesh-control"),
            // Only when the process is ending.
            Err(_) => (),
        }
    }

    /// Renews the certificate when it is past half of its life, or hangs on what has changed since. True: it was.
    pub fn renew(&self, now: Timestamp) -> Result<bool, CaError> {
        let mut made = self.made();
        // An error is that the authority is gone, which is held here.
        let changed = made.changes.has_changed().unwrap_or(false);
        if !changed && now + self.ttl / 2 < made.not_after {
            return Ok(false);
        }
        // Before anything is made: what changes from here on is seen the next time.
        made.changes.mark_unchanged();
        made.not_after = self.issue(now).inspect_err(|_| made.changes.mark_changed())?;
        Ok(true)
    }

    fn made(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn issue(&self, now: Timestamp) -> Result<Timestamp, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let issued = self.ca.sign(&key, &self.identity, &self.names, self.ttl, now)?;
        // The roots go with it, so that a workload that knows only the fingerprint of one (from a join token) can check it.
        let chain = issued.chain.into_iter().chain(self.ca.roots_der()).map(CertificateDer::from).collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        self.certificate.store(certified_key(chain, key)?);
        Ok(issued.not_after)
    }

    pub fn ca(&self) -> &Arc<Ca> {
        &self.ca
    }

    /// What clients are shown, DER.
    pub fn certificate_der(&self) -> Option<Vec<u8>> {
        Some(self.certificate.load()?.cert.first()?.to_vec())
    }

    pub fn not_after(&self) -> Timestamp {
        self.made().not_after
    }
}
