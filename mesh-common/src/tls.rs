//! Mutual TLS 1.3 by SPIFFE identity, over rustls.
//!
//! In: certificates of the trust bundle, the own certificate, and the identities that a peer may have. Out: rustls
//! verifiers and configurations. A peer is who its certificate's only URI name says it is, if the chain leads to a root
//! of the bundle; DNS names and IP addresses in certificates are of no consequence.

use std::sync::{Arc, LazyLock, PoisonError, RwLock};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ResolvesClientCert};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, TrustAnchor, UnixTime};
use sha2::{Digest, Sha256};
use webpki::{EndEntityCert, KeyUsage};

use crate::identity::{Identity, IdentityError, check_trust_domain};

/// Namespace and service account of the control plane, in every trust domain.
pub const CONTROL_NAMESPACE: &str = "mesh-system";
pub const CONTROL_ACCOUNT: &str = "mesh-control";

/// How far the beginning of a workload's certificate lies back, for machines whose clocks are behind.
pub const BACKDATE: Duration = Duration::from_secs(60);

/// How long before its root certificate ends a mesh's operator is told so.
pub const ROOT_ENDS_SOON: Duration = Duration::from_secs(180 * 24 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the trust bundle is empty; it must hold at least one root certificate")]
    NoRoots,
    #[error("root certificate {index} of the trust bundle cannot be used")]
    Root { index: usize, source: webpki::Error },
    #[error(transparent)]
    TrustDomain(#[from] IdentityError),
    #[error("the certificate and its key cannot be used")]
    Certificate(#[source] rustls::Error),
    #[error("the certificate holds no SPIFFE ID of the form spiffe://<trust-domain>/ns/<namespace>/sa/<account>")]
    NoIdentity,
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

/// The cryptography that everything in the mesh uses.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

/// The roots of a trust domain.
#[derive(Debug)]
pub struct TrustBundle {
    trust_domain: String,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

impl TrustBundle {
    pub fn new(trust_domain: &str, roots: Vec<CertificateDer<'static>>) -> Result<Self, TlsError> {
        check_trust_domain(trust_domain)?;
        let anchors = anchors(&roots)?;
        Ok(Self { trust_domain: trust_domain.to_owned(), roots, anchors })
    }

    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The identity of a peer of this trust domain, if its chain is valid now.
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: KeyUsage,
        now: UnixTime,
    ) -> Result<Identity, rustls::Error> {
        let identity = verify_chain(&self.anchors, leaf, intermediates, usage, now)?;
        if identity.trust_domain != self.trust_domain {
            return Err(CertificateError::NotValidForName.into());
        }
        Ok(identity)
    }
}

fn anchors(roots: &[CertificateDer<'_>]) -> Result<Vec<TrustAnchor<'static>>, TlsError> {
    if roots.is_empty() {
        return Err(TlsError::NoRoots);
    }
    let anchor = |(index, root)| match webpki::anchor_from_trusted_cert(root) {
        Ok(anchor) => Ok(anchor.to_owned()),
        Err(source) => Err(TlsError::Root { index, source }),
    };
    roots.iter().enumerate().map(anchor).collect()
}

/// The trust bundle of the moment. All who hold a clone see the new one at their next handshake.
#[derive(Clone, Debug)]
pub struct SharedBundle(Arc<RwLock<Arc<TrustBundle>>>);

impl SharedBundle {
    pub fn new(bundle: TrustBundle) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(bundle))))
    }

    pub fn load(&self) -> Arc<TrustBundle> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn store(&self, bundle: TrustBundle) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(bundle);
    }
}

/// The own certificate of the moment, shown in every handshake; `None` until there is one.
#[derive(Clone, Debug, Default)]
pub struct SharedCertificate(Arc<RwLock<Option<Arc<CertifiedKey>>>>);

impl SharedCertificate {
    pub fn load(&self) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn store(&self, certificate: Arc<CertifiedKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(certificate);
    }
}

impl ResolvesServerCert for SharedCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.load()
    }
}

impl ResolvesClientCert for SharedCertificate {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.load()
    }

    fn has_certs(&self) -> bool {
        self.load().is_some()
    }
}

/// A chain (the leaf first) with its PKCS#8 or SEC1 key, ready for handshakes.
pub fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let key = provider().key_provider.load_private_key(key).map_err(TlsError::Certificate)?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(TlsError::Certificate)?;
    Ok(Arc::new(certified))
}

/// Who may be at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Any workload of the trust domain.
    TrustDomain,
    /// Just these.
    Only(Vec<Identity>),
}

impl Peers {
    fn admit(&self, identity: &Identity) -> Result<(), rustls::Error> {
        match self {
            Self::TrustDomain => Ok(()),
            Self::Only(allowed) if allowed.contains(identity) => Ok(()),
            Self::Only(_) => Err(CertificateError::NotValidForName.into()),
        }
    }
}

/// Verifies servers, on behalf of a client.
#[derive(Debug)]
pub struct ServerVerifier {
    bundle: SharedBundle,
    peers: Peers,
}

impl ServerVerifier {
    pub fn new(bundle: SharedBundle, peers: Peers) -> Self {
        Self { bundle, peers }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let identity = self.bundle.load().verify(leaf, intermediates, KeyUsage::server_auth(), now)?;
        self.peers.admit(&identity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Verifies the control plane before its trust domain is known: its leaf must be the control plane's, and its chain must
/// lead to a root that is known already.
#[derive(Debug)]
pub struct PinnedVerifier {
    pin: Pin,
}

#[derive(Debug)]
enum Pin {
    /// SHA-256 of the root that the chain itself must hold, from a join token.
    Fingerprint([u8; 32]),
    Roots(Vec<TrustAnchor<'static>>),
}

impl PinnedVerifier {
    pub fn new(root_sha256: [u8; 32]) -> Self {
        Self { pin: Pin::Fingerprint(root_sha256) }
    }

    pub fn with_roots(roots: &[CertificateDer<'_>]) -> Result<Self, TlsError> {
        Ok(Self { pin: Pin::Roots(anchors(roots)?) })
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Identity, rustls::Error> {
        match &self.pin {
            Pin::Roots(roots) => verify_chain(roots, leaf, intermediates, KeyUsage::server_auth(), now),
            Pin::Fingerprint(pin) => {
                let root = intermediates
                    .iter()
                    .find(|certificate| sha256(certificate) == *pin)
                    .ok_or(CertificateError::UnknownIssuer)?;
                let anchor = webpki::anchor_from_trusted_cert(root).map_err(certificate_error)?;
                verify_chain(&[anchor], leaf, intermediates, KeyUsage::server_auth(), now)
            }
        }
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let identity = self.verify(leaf, intermediates, now)?;
        if identity.namespace != CONTROL_NAMESPACE || identity.service_account != CONTROL_ACCOUNT {
            return Err(CertificateError::NotValidForName.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Verifies clients, on behalf of a server.
#[derive(Debug)]
pub struct ClientVerifier {
    bundle: SharedBundle,
    peers: Peers,
    mandatory: bool,
}

impl ClientVerifier {
    /// With `mandatory` false a client without any certificate is let in; one with a wrong certificate never is.
    pub fn new(bundle: SharedBundle, peers: Peers, mandatory: bool) -> Self {
        Self { bundle, peers, mandatory }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let identity = self.bundle.load().verify(leaf, intermediates, KeyUsage::client_auth(), now)?;
        self.peers.admit(&identity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A TLS 1.3 server that verifies its clients.
pub fn server_config(
    verifier: Arc<dyn ClientCertVerifier>,
    certificate: Arc<dyn ResolvesServerCert>,
    alpn: Vec<Vec<u8>>,
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Setup)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = alpn;
    Ok(config)
}

/// A TLS 1.3 client; `certificate` may have none to show.
pub fn client_config(
    verifier: Arc<dyn ServerCertVerifier>,
    certificate: Arc<dyn ResolvesClientCert>,
    alpn: Vec<Vec<u8>>,
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Setup)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(certificate);
    config.alpn_protocols = alpn;
    Ok(config)
}

/// The SPIFFE ID in the leaf, the first of `certs`: its only URI name, in the mesh's form. Says nothing about whether
/// the chain is valid: ask only about the certificates of a finished handshake.
pub fn peer_identity(certs: &[CertificateDer<'_>]) -> Option<Identity> {
    identity_of(&EndEntityCert::try_from(certs.first()?).ok()?)
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// SPIFFE X.509-SVID, section 2: exactly one URI name.
fn identity_of(leaf: &EndEntityCert<'_>) -> Option<Identity> {
    let mut names = leaf.valid_uri_names();
    match (names.next(), names.next()) {
        (Some(name), None) => name.parse().ok(),
        _ => None,
    }
}

fn verify_chain(
    anchors: &[TrustAnchor<'_>],
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    usage: KeyUsage,
    now: UnixTime,
) -> Result<Identity, rustls::Error> {
    let leaf = EndEntityCert::try_from(leaf).map_err(certificate_error)?;
    let algorithms = provider().signature_verification_algorithms.all;
    leaf.verify_for_usage(algorithms, anchors, intermediates, now, usage, None, None).map_err(certificate_error)?;
    identity_of(&leaf).ok_or_else(|| CertificateError::NotValidForName.into())
}

/// rustls turns these into TLS alerts, so that the other side's log says what is wrong.
fn certificate_error(error: webpki::Error) -> rustls::Error {
    use webpki::Error as E;
    match error {
        E::BadDer | E::BadDerTime | E::TrailingData(_) => CertificateError::BadEncoding,
        E::CertNotValidYet { time, not_before } => CertificateError::NotValidYetContext { time, not_before },
        E::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        E::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        E::UnknownIssuer => CertificateError::UnknownIssuer,
        E::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        other => CertificateError::Other(rustls::OtherError(Arc::new(other))),
    }
    .into()
}

fn only_tls13() -> rustls::Error {
    rustls::Error::General("the mesh speaks TLS 1.3 only".into())
}

#[cfg(test)]
mod tests;
