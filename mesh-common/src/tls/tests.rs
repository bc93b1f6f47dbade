use std::io::{Read, Write};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{ClientConnection, ServerConnection};
use rustls_pki_types::PrivatePkcs8KeyDer;

use super::*;

const NOW: u64 = 1_800_000_000;

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn root(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    fn bundle(&self) -> SharedBundle {
        SharedBundle::new(TrustBundle::new("mesh.local", vec![self.root()]).unwrap())
    }

    /// A certificate with these URI names that is valid for an hour around `from`.
    fn issue(&self, uris: &[&str], from: u64) -> SharedCertificate {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let start = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(from);
        params.not_before = start.into();
        params.not_after = (start + Duration::from_secs(3600)).into();
        let issuer: &Issuer<'static, KeyPair> = &self.issuer;
        let leaf = params.signed_by(&key, issuer).unwrap();
        let chain = vec![leaf.der().clone(), self.root()];
        let shared = SharedCertificate::default();
        shared.store(certified_key(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into()).unwrap());
        shared
    }
}

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(NOW))
}

fn leaf(certificate: &SharedCertificate) -> Vec<CertificateDer<'static>> {
    certificate.load().unwrap().cert.clone()
}

fn verify(verifier: &dyn ServerCertVerifier, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
    let name = ServerName::try_from("ignored.example").unwrap();
    verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], now()).map(drop)
}

const WEB: &str = "spiffe://mesh.local/ns/shop/sa/web";

#[test]
fn admits_the_identity_that_was_asked_for_and_no_other() {
    let authority = Authority::new();
    let chain = leaf(&authority.issue(&[WEB], NOW - 60));
    let only = |id: &str| ServerVerifier::new(authority.bundle(), Peers::Only(vec![id.parse().unwrap()]));
    verify(&only(WEB), &chain).unwrap();
    verify(&ServerVerifier::new(authority.bundle(), Peers::TrustDomain), &chain).unwrap();
    for other in ["spiffe://mesh.local/ns/shop/sa/web2", "spiffe://mesh.local/ns/other/sa/web"] {
        let error = verify(&only(other), &chain).unwrap_err();
        assert_eq!(error, CertificateError::NotValidForName.into(), "{other}");
    }
    let nobody = ServerVerifier::new(authority.bundle(), Peers::Only(vec![]));
    verify(&nobody, &chain).unwrap_err();
}

#[test]
fn refuses_another_trust_domain_even_from_the_same_root() {
    let authority = Authority::new();
    let chain = leaf(&authority.issue(&["spiffe://other.local/ns/shop/sa/web"], NOW - 60));
    let verifier = ServerVerifier::new(authority.bundle(), Peers::TrustDomain);
    assert_eq!(verify(&verifier, &chain).unwrap_err(), CertificateError::NotValidForName.into());
}

#[test]
fn refuses_another_root_with_the_right_name() {
    let chain = leaf(&Authority::new().issue(&[WEB], NOW - 60));
    let verifier = ServerVerifier::new(Authority::new().bundle(), Peers::TrustDomain);
    assert!(matches!(
        verify(&verifier, &chain).unwrap_err(),
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)
    ));
}

#[test]
fn refuses_what_is_expired_or_not_valid_yet() {
    let authority = Authority::new();
    let verifier = ServerVerifier::new(authority.bundle(), Peers::TrustDomain);
    let client = ClientVerifier::new(authority.bundle(), Peers::TrustDomain, true);
    for from in [NOW - 7200, NOW + 60] {
        let chain = leaf(&authority.issue(&[WEB], from));
        let error = verify(&verifier, &chain).unwrap_err();
        assert!(matches!(
            error,
            rustls::Error::InvalidCertificate(
                CertificateError::ExpiredContext { .. } | CertificateError::NotValidYetContext { .. }
            )
        ));
        client.verify_client_cert(&chain[0], &chain[1..], now()).unwrap_err();
    }
}

#[test]
fn refuses_two_names_no_name_and_names_of_another_form() {
    let authority = Authority::new();
    let verifier = ServerVerifier::new(authority.bundle(), Peers::TrustDomain);
    for uris in [&[WEB, "spiffe://mesh.local/ns/shop/sa/admin"][..], &[], &["https://mesh.local/ns/shop/sa/web"]] {
        let chain = leaf(&authority.issue(uris, NOW - 60));
        assert_eq!(peer_identity(&chain), None);
        verify(&verifier, &chain).unwrap_err();
    }
}

#[test]
fn the_pin_names_the_root_and_only_the_control_plane_may_show_it() {
    let authority = Authority::new();
    let control = leaf(&authority.issue(&["spiffe://any.domain/ns/mesh-system/sa/mesh-control"], NOW - 60));
    let pinned = PinnedVerifier::new(sha256(&authority.root()));
    verify(&pinned, &control).unwrap();
    verify(&PinnedVerifier::new(sha256(&Authority::new().root())), &control).unwrap_err();
    let rooted = |authority: &Authority| PinnedVerifier::with_roots(&[authority.root()]).unwrap();
    verify(&rooted(&authority), &control).unwrap();
    verify(&rooted(&Authority::new()), &control).unwrap_err();
    assert!(matches!(PinnedVerifier::with_roots(&[]), Err(TlsError::NoRoots)));
    verify(&pinned, &control[..1]).unwrap_err();
    verify(&pinned, &leaf(&authority.issue(&[WEB], NOW - 60))).unwrap_err();
    // Whoever presents the right root beside a chain of its own is still a stranger.
    let mut forged = leaf(&Authority::new().issue(&["spiffe://any.domain/ns/mesh-system/sa/mesh-control"], NOW - 60));
    forged.push(authority.root());
    verify(&pinned, &forged).unwrap_err();
}

#[test]
fn a_handshake_shows_both_sides_who_the_other_is() {
    let authority = Authority::new();
    let start = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() - 60;
    let certificate = authority.issue(&[WEB], start);
    let alpn = vec![b"mesh-h2".to_vec()];
    let server = server_config(
        Arc::new(ClientVerifier::new(authority.bundle(), Peers::TrustDomain, true)),
        Arc::new(certificate.clone()),
        alpn.clone(),
    )
    .unwrap();
    let client = client_config(
        Arc::new(ServerVerifier::new(authority.bundle(), Peers::Only(vec![WEB.parse().unwrap()]))),
        Arc::new(certificate),
        alpn,
    )
    .unwrap();
    let mut client =
        ClientConnection::new(Arc::new(client), ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into())).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets().unwrap();
        let mut wire = Vec::new();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets().unwrap();
    }
    assert_eq!(peer_identity(client.peer_certificates().unwrap()).unwrap().to_string(), WEB);
    assert_eq!(peer_identity(server.peer_certificates().unwrap()).unwrap().to_string(), WEB);
    assert_eq!(server.alpn_protocol(), Some(&b"mesh-h2"[..]));
    client.writer().write_all(b"hello").unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    server.read_tls(&mut wire.as_slice()).unwrap();
    server.process_new_packets().unwrap();
    let mut text = [0; 5];
    server.reader().read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello");
}
