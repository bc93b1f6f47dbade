use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;

use mesh_common::proto::ca::SignRequest;
use mesh_common::proto::ca::certificate_authority_server::CertificateAuthority;
use mesh_common::tls::{
    Peers, PinnedVerifier, ServerVerifier, SharedBundle, SharedCertificate, TrustBundle, certified_key, client_config,
    peer_identity,
};
use rcgen::{CertificateParams, DistinguishedName, DnType, PublicKeyData};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tonic::Code;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;
use crate::auth::{Authenticator, Peer, PeerCertificate, Transport};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn web() -> Identity {
    Identity::new("mesh.local", "shop", "web").unwrap()
}

/// A request that asks for the names of somebody else.
fn request(key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::new(vec!["spiffe.example".to_owned(), "10.0.0.1".to_owned()]).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "spiffe://mesh.local/ns/mesh-system/sa/mesh-control");
    params.serialize_request(key).unwrap().der().to_vec()
}

fn now() -> Timestamp {
    leaf::whole_seconds(Timestamp::now())
}

#[test]
fn signs_for_the_proven_identity_alone() {
    let dir = tempfile::tempdir().unwrap();
    let now = now();
    let ca = Ca::open(&dir.path().join("ca"), "mesh.local", now).unwrap();
    let key = KeyPair::generate().unwrap();
    let issued = ca.sign_csr(&request(&key), &web(), Duration::ZERO, now).unwrap();

    assert_eq!(issued.chain.len(), 2);
    assert_eq!(issued.not_after, now + HOUR);
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    assert_eq!(names.value.general_names.len(), 1);
    assert_eq!(peer_identity(&[CertificateDer::from(issued.chain[0].clone())]), Some(web()));
    assert_eq!(leaf.public_key().subject_public_key.data.as_ref(), key.public_key_raw());
    assert_eq!(leaf.validity().not_before.timestamp(), (now - BACKDATE).as_second());
    assert_eq!(leaf.validity().not_after.timestamp(), issued.not_after.as_second());
    assert!(!leaf.is_ca());

    // The same key again is another certificate.
    let again = ca.sign_csr(&request(&key), &web(), Duration::ZERO, now).unwrap();
    let (_, second) = X509Certificate::from_der(&again.chain[0]).unwrap();
    assert_ne!(leaf.raw_serial(), second.raw_serial());

    let foreign = Identity::new("other.example", "shop", "web").unwrap();
    assert!(matches!(ca.sign_csr(&request(&key), &foreign, HOUR, now), Err(CaError::ForeignIdentity(..))));
}

#[test]
fn lifetimes_have_limits() {
    let dir = tempfile::tempdir().unwrap();
    let start = now();
    let ca = Ca::open(dir.path().join("ca").as_path(), "mesh.local", start).unwrap();
    let csr = request(&KeyPair::generate().unwrap());
    let until = |ttl, now| ca.sign_csr(&csr, &web(), ttl, now).unwrap().not_after;
    assert_eq!(until(DAY * 30, start), start + DAY);
    assert_eq!(until(Duration::from_secs(1), start), start + MIN_TTL);

    // Near the end of the intermediate, nothing outlives it; renewed, it lasts again.
    let end = ca.intermediate_not_after();
    assert_eq!(until(DAY, end - HOUR), end);
    assert!(!ca.renew(start + DAY).unwrap());
    assert!(ca.renew(end - HOUR).unwrap());
    assert_eq!(until(DAY, end - HOUR), end - HOUR + DAY);
    // And the new one is what a restart finds.
    let renewed = ca.keys.load().intermediate.certificate.clone();
    let ca = Ca::open(dir.path().join("ca").as_path(), "mesh.local", end - HOUR).unwrap();
    assert_eq!(ca.keys.load().intermediate.certificate, renewed);

    let root_end = ca.root_not_after();
    ca.renew(root_end - HOUR).unwrap();
    assert_eq!(ca.intermediate_not_after(), root_end);
    assert!(matches!(Ca::open(dir.path().join("ca").as_path(), "mesh.local", root_end), Err(CaError::RootExpired(_))));
}

#[test]
fn refuses_requests_that_prove_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open(&dir.path().join("ca"), "mesh.local", now()).unwrap();
    let good = request(&KeyPair::generate().unwrap());
    let sign = |csr: &[u8]| ca.sign_csr(csr, &web(), HOUR, now());
    sign(&good).unwrap();
    for csr in [&b""[..], b"garbage", &good[..good.len() - 1], &[&good[..], b"x"].concat(), &vec![0x30; 20_000]] {
        assert!(matches!(sign(csr), Err(CaError::Request(_))));
    }
    // A bit flipped in the signed part or the signature is seen; elsewhere it may be one that means nothing.
    let key = |csr: &[u8]| csr::verified_key(csr).map(|key| key.der_bytes().to_vec());
    let whole = key(&good).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert!(key(&bad).is_ok_and(|key| key == whole) || key(&bad).is_err(), "byte {at}");
    }
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        sign(&request(&KeyPair::generate_for(algorithm).unwrap())).unwrap();
    }
}

#[test]
fn keys_are_private_and_files_belong_together() {
    let data = tempfile::tempdir().unwrap();
    let dir = data.path().join("ca");
    let open = || Ca::open(&dir, "mesh.local", now());
    let first = open().unwrap().root_fingerprint();
    assert_eq!(open().unwrap().root_fingerprint(), first);
    let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!([mode("."), mode(ROOT_FILE), mode(INTERMEDIATE_FILE), mode(BUNDLE_FILE)], [0o700, 0o600, 0o600, 0o644]);
    assert!(!fs::read_to_string(dir.join(BUNDLE_FILE)).unwrap().contains("PRIVATE"));

    let root = dir.join(ROOT_FILE);
    fs::set_permissions(&root, fs::Permissions::from_mode(0o640)).unwrap();
    let error = open().err().unwrap().to_string();
    assert!(error.contains("chmod 600") && error.contains("root.pem"), "{error}");
    fs::set_permissions(&root, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(open().err().unwrap().to_string().contains("chmod 700"));
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();

    let error = Ca::open(&dir, "other.example", now()).err().unwrap().to_string();
    assert!(error.contains("\"mesh.local\"") && error.contains("\"other.example\""), "{error}");

    let [good, intermediate] = [&root, &dir.join(INTERMEDIATE_FILE)].map(|path| fs::read(path).unwrap());
    for bad in [&b""[..], b"garbage", &good[..good.len() / 2], &intermediate] {
        fs::write(&root, bad).unwrap();
        assert!(matches!(open(), Err(CaError::Damaged { .. } | CaError::TrustDomain { .. })));
    }
    fs::remove_file(&root).unwrap();
    assert!(matches!(open(), Err(CaError::Missing { .. })));
    fs::write(&root, &good).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(dir.join(INTERMEDIATE_FILE)).unwrap();
    assert_eq!(open().unwrap().root_fingerprint(), first);
}

/// Both ends of a handshake in memory, with a byte each way.
fn handshake(client: rustls::ClientConfig, server: rustls::ServerConfig) -> Result<Option<Identity>, rustls::Error> {
    let mut client = rustls::ClientConnection::new(Arc::new(client), "mesh-control".try_into().unwrap()).unwrap();
    let mut server = rustls::ServerConnection::new(Arc::new(server)).unwrap();
    client.writer().write_all(b"x").unwrap();
    while client.is_handshaking() || server.is_handshaking() || client.wants_write() || server.wants_write() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut wire = wire.as_slice();
        while !wire.is_empty() {
            server.read_tls(&mut wire).unwrap();
            server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut wire = wire.as_slice();
        while !wire.is_empty() {
            client.read_tls(&mut wire).unwrap();
            client.process_new_packets()?;
        }
    }
    let mut byte = [0];
    server.reader().read_exact(&mut byte).unwrap();
    Ok(server.peer_certificates().and_then(peer_identity))
}

fn certified(pair: &KeyPairPem) -> Arc<SharedCertificate> {
    let chain = CertificateDer::pem_slice_iter(pair.chain_pem.as_bytes()).map(Result::unwrap).collect();
    let certificate = SharedCertificate::default();
    certificate.store(certified_key(chain, PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).unwrap()).unwrap());
    Arc::new(certificate)
}

#[test]
fn servers_and_workloads_meet_in_mutual_tls() {
    let dir = tempfile::tempdir().unwrap();
    let now = now();
    let ca = Arc::new(Ca::open(&dir.path().join("ca"), "mesh.local", now).unwrap());
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let server = ServerTls::new(ca.clone(), &names, DEFAULT_TTL, now).unwrap();
    let roots: Vec<_> = ca.roots_der().into_iter().map(CertificateDer::from).collect();
    let bundle = SharedBundle::new(TrustBundle::new("mesh.local", roots).unwrap());
    let verifier =
        || Arc::new(ServerVerifier::new(bundle.clone(), Peers::Only(vec![control_identity("mesh.local").unwrap()])));
    let alpn = || vec![b"h2".to_vec()];

    // Before it has a certificate, a workload knows the control plane by the fingerprint of the root.
    let nobody = Arc::new(SharedCertificate::default());
    let pinned = client_config(Arc::new(PinnedVerifier::new(ca.root_fingerprint())), nobody.clone(), alpn()).unwrap();
    assert_eq!(handshake(pinned, server.config().unwrap()), Ok(None));
    let wrong = client_config(Arc::new(PinnedVerifier::new([0; 32])), nobody, alpn()).unwrap();
    assert!(handshake(wrong, server.config().unwrap()).is_err());

    let own = ca.issue_with_key(&web(), HOUR, now).unwrap();
    let mutual = client_config(verifier(), certified(&own), alpn()).unwrap();
    assert_eq!(handshake(mutual, server.config().unwrap()), Ok(Some(web())));

    // Certificates of another mesh, or of yesterday, are refused.
    let other =
        Ca::open(&dir.path().join("other"), "mesh.local", now).unwrap().issue_with_key(&web(), HOUR, now).unwrap();
    let old = ca.issue_with_key(&web(), HOUR, now - DAY).unwrap();
    for pair in [other, old] {
        let client = client_config(verifier(), certified(&pair), alpn()).unwrap();
        assert!(handshake(client, server.config().unwrap()).is_err());
    }

    assert_eq!(server.not_after(), now + HOUR);
    assert!(!server.renew(now + HOUR / 3).unwrap());
    assert!(server.renew(now + HOUR / 2).unwrap());
    assert_eq!(server.not_after(), now + HOUR / 2 + HOUR);
}

#[test]
fn replicas_that_share_keys_are_one_authority() {
    let now = Timestamp::now();
    let (first, [root, intermediate]) = Ca::create("mesh.local", now).unwrap();
    let second = Ca::from_pem(&root, &intermediate, "mesh.local", now).unwrap();
    assert_eq!(first.roots_pem(), second.roots_pem());
    assert!(Ca::from_pem(&root, &intermediate, "other", now).is_err());
    let (_, [_, foreign]) = Ca::create("mesh.local", now).unwrap();
    assert!(Ca::from_pem(&root, &foreign, "mesh.local", now).is_err());
    // Whatever the age of what they share, it signs.
    let late = now + Duration::from_secs(300 * 24 * 3600);
    let aged = Ca::from_pem(&root, &intermediate, "mesh.local", late).unwrap();
    assert_eq!(aged.roots_pem(), first.roots_pem());
}

/// A client's verifier that trusts these roots alone, and its chain.
fn client(roots: &[Vec<u8>], own: &KeyPairPem) -> rustls::ClientConfig {
    let roots = roots.iter().cloned().map(CertificateDer::from).collect();
    let bundle = SharedBundle::new(TrustBundle::new("mesh.local", roots).unwrap());
    let control = Peers::Only(vec![control_identity("mesh.local").unwrap()]);
    client_config(Arc::new(ServerVerifier::new(bundle, control)), certified(own), vec![b"h2".to_vec()]).unwrap()
}

#[test]
fn a_root_is_replaced_under_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("ca");
    // What is issued later must be valid by the real clock.
    let now = now() - HOUR;
    let later = now + HOUR;
    let ca = Arc::new(Ca::open(&dir, "mesh.local", now).unwrap());
    let server = ServerTls::new(ca.clone(), &[], DAY, now).unwrap();
    let config = server.config().unwrap();
    let first = ca.roots_der();
    let (old, pin) = (ca.issue_with_key(&web(), DAY, later).unwrap(), ca.root_fingerprint());
    let pinned = |pin| {
        let nobody = Arc::new(SharedCertificate::default());
        client_config(Arc::new(PinnedVerifier::new(pin)), nobody, vec![b"h2".to_vec()]).unwrap()
    };
    assert!(matches!(ca.end_rotation(), Err(CaError::NotRotating)));

    ca.rotate(later, false).unwrap();
    let rotation = later;
    assert_eq!(ca.rotating_since(), Some(rotation));
    assert!(matches!(ca.rotate(later, false), Err(CaError::Rotating(began)) if began == later));
    assert!(server.renew(later).unwrap() && !server.renew(later).unwrap());
    let both = ca.roots_der();
    assert_eq!((both.len(), &both[1]), (2, &first[0]));
    let new = ca.issue_with_key(&web(), DAY, later).unwrap();
    // Whoever knows only the former root, only the new one or both meets everybody, with certificates of either.
    for (roots, own) in [(&first[..], &old), (&first, &new), (&both, &old), (&both[..1], &new)] {
        assert_eq!(handshake(client(roots, own), config.clone()), Ok(Some(web())));
    }
    for pin in [pin, ca.root_fingerprint()] {
        assert_eq!(handshake(pinned(pin), config.clone()), Ok(None));
    }
    // A restart goes on with it.
    let again = Ca::open(&dir, "mesh.local", later).unwrap();
    assert_eq!((again.rotating_since(), again.roots_der()), (Some(rotation), both.clone()));
    assert_eq!(again.intermediate_der(), ca.intermediate_der());

    // Replicas that share these keys go on with it too.
    let [root, intermediate] = [ROOT_FILE, INTERMEDIATE_FILE].map(|name| fs::read_to_string(dir.join(name)).unwrap());
    let replica = Ca::from_pem(&root, &intermediate, "mesh.local", later).unwrap();
    assert_eq!((replica.rotating_since(), replica.roots_der()), (Some(rotation), both.clone()));
    assert!(matches!(replica.end_rotation(), Err(CaError::NoFolder)));

    assert_eq!(*ca.distrust().borrow(), None);
    ca.end_rotation().unwrap();
    assert!(ca.distrust().borrow().is_some());
    assert!(server.renew(later).unwrap());
    assert_eq!((ca.rotating_since(), ca.roots_der()), (None, both[..1].to_vec()));
    assert_eq!(handshake(client(&both, &new), config.clone()), Ok(Some(web())));
    assert!(handshake(client(&both, &old), config.clone()).is_err());
    assert!(handshake(client(&first, &new), config.clone()).is_err());
    assert!(handshake(pinned(pin), config).is_err());
    let again = Ca::open(&dir, "mesh.local", later).unwrap();
    assert_eq!((again.rotating_since(), again.roots_der()), (None, both[..1].to_vec()));
    assert_eq!(fs::read_to_string(dir.join(BUNDLE_FILE)).unwrap(), again.roots_pem());
}

#[test]
fn a_root_that_somebody_has_stolen_is_replaced_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("ca");
    let now = now() - HOUR;
    let ca = Arc::new(Ca::open(&dir, "mesh.local", now).unwrap());
    let server = ServerTls::new(ca.clone(), &[], DAY, now).unwrap();
    let (first, old) = (ca.roots_der(), ca.issue_with_key(&web(), DAY, now).unwrap());
    ca.rotate(now + HOUR, true).unwrap();
    assert!(ca.rotating_since().is_none() && ca.distrust().borrow().is_some() && server.renew(now + HOUR).unwrap());
    let (roots, new) = (ca.roots_der(), ca.issue_with_key(&web(), DAY, now + HOUR).unwrap());
    assert!(roots.len() == 1 && roots != first);
    assert_eq!(handshake(client(&roots, &new), server.config().unwrap()), Ok(Some(web())));
    assert!(handshake(client(&roots, &old), server.config().unwrap()).is_err());
    assert!(handshake(client(&first, &new), server.config().unwrap()).is_err());
    let again = Ca::open(&dir, "mesh.local", now + HOUR).unwrap();
    assert_eq!((again.roots_der(), again.intermediate_der()), (roots, ca.intermediate_der()));
}

#[tokio::test]
async fn what_is_trusted_no_more_signs_nothing_over_connections_that_are_open() {
    let dir = tempfile::tempdir().unwrap();
    let now = Timestamp::now();
    let ca = Arc::new(Ca::open(&dir.path().join("ca"), "mesh.local", now).unwrap());
    let store = crate::store::Store::open(&dir.path().join("data")).unwrap();
    let service = CaService::new(ca.clone(), Authenticator::Tokens(store.tokens()));
    let csr = request(&KeyPair::generate().unwrap());
    let sign = |identity: Identity, verified| {
        let certificate = PeerCertificate { identity, not_after: now + HOUR, verified };
        let mut asked = tonic::Request::new(SignRequest { csr: csr.clone(), ttl_seconds: 0 });
        asked.extensions_mut().insert(Peer::new("10.0.0.1:7".to_owned(), Transport::Tls, Some(certificate)));
        let service = &service;
        async move { service.sign(asked).await.map(drop).map_err(|status| status.code()) }
    };
    let began = Instant::now();
    assert_eq!(sign(web(), began).await, Ok(()));
    ca.rotate(now, false).unwrap();
    assert_eq!(sign(web(), began).await, Ok(()));
    ca.end_rotation().unwrap();
    assert_eq!(sign(web(), began).await, Err(Code::Unauthenticated));
    assert_eq!(sign(web(), Instant::now()).await, Ok(()));
    // Nobody is given what only the control plane itself has.
    let control = control_identity("mesh.local").unwrap();
    assert_eq!(sign(control, Instant::now()).await, Err(Code::PermissionDenied));
}

#[test]
fn a_change_that_was_broken_off_is_completed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("ca");
    let now = now();
    let ca = Ca::open(&dir, "mesh.local", now).unwrap();
    let before = fs::read(dir.join(INTERMEDIATE_FILE)).unwrap();
    ca.rotate(now + HOUR, false).unwrap();
    fs::write(dir.join(INTERMEDIATE_FILE), &before).unwrap();
    fs::remove_file(dir.join(BUNDLE_FILE)).unwrap();
    let again = Ca::open(&dir, "mesh.local", now + HOUR).unwrap();
    assert_eq!(again.rotating_since(), ca.rotating_since());
    assert_eq!(fs::read_to_string(dir.join(BUNDLE_FILE)).unwrap(), ca.roots_pem());
    assert!(authority::is_signed_by(&again.intermediate_der().into(), &again.roots_der()[0].clone().into()));

    // What belongs to another root, or is too little or too much, is not taken.
    let text = fs::read_to_string(dir.join(ROOT_FILE)).unwrap();
    let (_, [other, _]) = Ca::create("mesh.local", now).unwrap();
    let certificate = other.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
    let third = text.rfind("-----BEGIN CERTIFICATE-----").unwrap();
    for bad in [format!("{text}{certificate}"), text[..third].to_owned(), format!("{}{certificate}", &text[..third])] {
        fs::write(dir.join(ROOT_FILE), bad).unwrap();
        assert!(matches!(Ca::open(&dir, "mesh.local", now + HOUR), Err(CaError::Damaged { .. })));
    }
}

#[test]
fn a_disk_that_takes_no_root_changes_nothing_and_one_that_takes_no_more_is_made_up_for() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("ca");
    let now = now();
    let ca = Ca::open(&dir, "mesh.local", now).unwrap();
    let roots = ca.roots_der();
    // A folder in the place of the new file: root may write anywhere, but not there.
    fs::create_dir(dir.join("root.new")).unwrap();
    assert!(matches!(ca.rotate(now + HOUR, false), Err(CaError::Io { .. })));
    assert_eq!((ca.rotating_since(), ca.roots_der()), (None, roots.clone()));
    fs::remove_dir(dir.join("root.new")).unwrap();
    fs::create_dir(dir.join("bundle.new")).unwrap();
    assert!(matches!(ca.rotate(now + HOUR, false), Err(CaError::Io { .. })));
    assert!(ca.rotating_since().is_some() && ca.roots_der()[1] == roots[0]);
    fs::remove_dir(dir.join("bundle.new")).unwrap();
    let again = Ca::open(&dir, "mesh.local", now + HOUR).unwrap();
    assert_eq!((again.rotating_since(), again.roots_der()), (ca.rotating_since(), ca.roots_der()));
}
