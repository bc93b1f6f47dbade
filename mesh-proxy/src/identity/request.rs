//! One key with its signing request, and the SVID that becomes of it.

use std::time::{Duration, SystemTime};

use mesh_common::identity::Identity;
use mesh_common::proto::ca::SignResponse;
use mesh_common::tls::{TlsError, TrustBundle, certified_key, peer_identity, sha256};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::tls::Svid;

#[derive(Debug, thiserror::Error)]
pub enum ResponseError {
    #[error("it holds no certificate")]
    Empty,
    #[error("its certificate has no SPIFFE ID, or another one ({certificate:?}) than it says ({said:?})")]
    Identity { certificate: Option<String>, said: String },
    #[error("its trust bundle does not hold the root that the join token names")]
    Root,
    #[error("it has expired already; compare the clocks of this machine and of the control plane's")]
    Expired,
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A private key that is made for one certificate.
pub(super) struct KeyRequest {
    key: KeyPair,
    csr: Vec<u8>,
}

impl KeyRequest {
    /// ECDSA P-256: small and quick in handshakes, and every TLS library knows it.
    pub(super) fn new() -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        // Empty: the authority decides what is in the certificate.
        let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
        Ok(Self { key, csr })
    }

    pub(super) fn csr(&self) -> &[u8] {
        &self.csr
    }

    /// `pin` is the SHA-256 of a root that must be among those of the trust bundle.
    pub(super) fn complete(
        self,
        response: SignResponse,
        pin: Option<&[u8; 32]>,
        now: SystemTime,
    ) -> Result<Svid, ResponseError> {
        let chain: Vec<CertificateDer<'static>> = response.chain.into_iter().map(CertificateDer::from).collect();
        if chain.is_empty() {
            return Err(ResponseError::Empty);
        }
        let identity: Identity = match peer_identity(&chain) {
            Some(identity) if identity.to_string() == response.spiffe_id => identity,
            other => {
                let certificate = other.map(|it| it.to_string());
                return Err(ResponseError::Identity { certificate, said: response.spiffe_id });
            }
        };
        let roots: Vec<CertificateDer<'static>> = response.roots.into_iter().map(CertificateDer::from).collect();
        if pin.is_some_and(|pin| !roots.iter().any(|root| sha256(root) == *pin)) {
            return Err(ResponseError::Root);
        }
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(response.not_after).unwrap_or(0));
        if end <= now {
            return Err(ResponseError::Expired);
        }
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        let certificate = certified_key(chain, key.into())?;
        let bundle = TrustBundle::new(&identity.trust_domain, roots)?;
        Ok(Svid { identity, certificate, bundle, not_after: response.not_after })
    }
}
