use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use mesh_common::tls::certified_key;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::{ClientConnection, HandshakeKind, ServerConnection};
use rustls_pki_types::PrivatePkcs8KeyDer;

use super::*;

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn root(&self) -> Vec<u8> {
        self.0.der().to_vec()
    }

    pub(crate) fn leaf(&self, account: &str, key: &KeyPair) -> Vec<u8> {
        self.leaf_for(account, key)
    }

    pub(crate) fn leaf_for(&self, account: &str, key: &impl rcgen::PublicKeyData) -> Vec<u8> {
        self.sign(&id(account), key)
    }

    fn sign(&self, identity: &Identity, key: &impl rcgen::PublicKeyData) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().unwrap())];
        params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
        params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
        params.signed_by(key, &self.0).unwrap().der().to_vec()
    }

    /// What mesh-control shows: its root comes along.
    pub(crate) fn control(&self) -> SharedCertificate {
        let key = KeyPair::generate().unwrap();
        let identity = Identity::new("mesh.local", CONTROL_NAMESPACE, CONTROL_ACCOUNT).unwrap();
        let chain = vec![self.sign(&identity, &key).into(), self.root().into()];
        let shared = SharedCertificate::default();
        shared.store(certified_key(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into()).unwrap());
        shared
    }

    pub(crate) fn svid(&self, account: &str) -> Svid {
        let key = KeyPair::generate().unwrap();
        let chain = vec![self.leaf(account, &key).into()];
        Svid {
            identity: id(account),
            certificate: certified_key(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into()).unwrap(),
            bundle: TrustBundle::new("mesh.local", vec![self.root().into()]).unwrap(),
            not_after: 4_000_000_000,
        }
    }
}

pub(crate) fn id(account: &str) -> Identity {
    Identity::new("mesh.local", "shop", account).unwrap()
}

fn tls(authority: &Authority, account: &str) -> Tls {
    let tls = Tls::default();
    tls.rotate(authority.svid(account));
    tls
}

fn downstream() -> DownstreamTls {
    DownstreamTls { require_client_certificate: true, alpn: vec![b"mesh-h2".to_vec(), b"mesh-tcp".to_vec()] }
}

fn upstream(accounts: &[&str]) -> UpstreamTls {
    UpstreamTls { identities: accounts.iter().map(|it| id(it)).collect(), alpn: vec![], sni: String::new() }
}

/// Both ends after the handshake and its tickets.
fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> io::Result<(ClientConnection, ServerConnection)> {
    let name = Tls::server_name(&upstream(&[]), (Ipv4Addr::LOCALHOST, 1).into());
    let mut client = ClientConnection::new(client, name).map_err(io::Error::other)?;
    let mut server = ServerConnection::new(server).map_err(io::Error::other)?;
    for _ in 0..4 {
        let mut wire = Vec::new();
        client.write_tls(&mut wire)?;
        server.read_tls(&mut wire.as_slice())?;
        server.process_new_packets().map_err(io::Error::other)?;
        let mut wire = Vec::new();
        server.write_tls(&mut wire)?;
        client.read_tls(&mut wire.as_slice())?;
        client.process_new_packets().map_err(io::Error::other)?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

#[test]
fn before_the_first_certificate_there_is_no_tls() {
    let tls = Tls::default();
    assert_eq!(tls.server(&downstream()).unwrap_err().kind, Kind::Configuration);
    assert_eq!(tls.client(&upstream(&["web"]), b"mesh-h2").unwrap_err().kind, Kind::Configuration);
    assert!(tls.control().is_err() && tls.identity().is_none() && tls.expires().is_none());
}

#[test]
fn both_sides_know_each_other() {
    let authority = Authority::new();
    let (web, reviews) = (tls(&authority, "web"), tls(&authority, "reviews"));
    let client = web.client(&upstream(&["reviews"]), b"mesh-tcp").unwrap();
    let (client, server) = shake(client, reviews.server(&downstream()).unwrap()).unwrap();
    assert_eq!(peer_identity(client.peer_certificates().unwrap()), Some(id("reviews")));
    assert_eq!(peer_identity(server.peer_certificates().unwrap()), Some(id("web")));
    assert_eq!(server.alpn_protocol(), Some(&b"mesh-tcp"[..]));
}

#[test]
fn another_identity_or_another_root_is_refused() {
    let authority = Authority::new();
    let (web, reviews) = (tls(&authority, "web"), tls(&authority, "reviews"));
    let wrong = web.client(&upstream(&["ratings", "web"]), b"mesh-h2").unwrap();
    assert!(shake(wrong, reviews.server(&downstream()).unwrap()).is_err());
    let stranger = tls(&Authority::new(), "web");
    let right_name = stranger.client(&upstream(&["reviews"]), b"mesh-h2").unwrap();
    assert!(shake(right_name, reviews.server(&downstream()).unwrap()).is_err());
    let client = web.client(&upstream(&["reviews"]), b"mesh-h2").unwrap();
    let impostor = tls(&Authority::new(), "reviews");
    assert!(shake(client, impostor.server(&downstream()).unwrap()).is_err());
}

#[test]
fn configurations_are_made_once_and_survive_a_rotation() {
    let authority = Authority::new();
    let (web, reviews) = (tls(&authority, "web"), tls(&authority, "reviews"));
    let client = web.client(&upstream(&["reviews"]), b"mesh-h2").unwrap();
    let server = reviews.server(&downstream()).unwrap();
    assert!(Arc::ptr_eq(&client, &web.client(&upstream(&["reviews"]), b"mesh-h2").unwrap()));
    assert!(!Arc::ptr_eq(&client, &web.client(&upstream(&["reviews"]), b"mesh-tcp").unwrap()));
    let (first, _) = shake(client.clone(), server.clone()).unwrap();
    assert_eq!(first.handshake_kind(), Some(HandshakeKind::Full));

    let (_, before) = shake(web.client(&upstream(&[]), b"mesh-h2").unwrap(), server.clone()).unwrap();
    web.rotate(authority.svid("web"));
    assert!(Arc::ptr_eq(&client, &web.client(&upstream(&["reviews"]), b"mesh-h2").unwrap()));
    // Sessions of the same identities go on.
    let (second, resumed) = shake(client, server.clone()).unwrap();
    assert_eq!(second.handshake_kind(), Some(HandshakeKind::Resumed));
    assert_eq!(peer_identity(resumed.peer_certificates().unwrap()), Some(id("web")));
    // A full handshake shows the new certificate.
    let fresh = web.client(&upstream(&["reviews", "web"]), b"mesh-h2").unwrap();
    let (_, after) = shake(fresh, server).unwrap();
    assert_ne!(before.peer_certificates(), after.peer_certificates());
}

#[test]
fn a_session_is_not_resumed_under_other_identities() {
    let authority = Authority::new();
    let (web, reviews) = (tls(&authority, "web"), tls(&authority, "reviews"));
    let server = reviews.server(&downstream()).unwrap();
    shake(web.client(&upstream(&["reviews"]), b"mesh-h2").unwrap(), server.clone()).unwrap();
    assert!(shake(web.client(&upstream(&["ratings"]), b"mesh-h2").unwrap(), server).is_err());
}

#[test]
fn new_roots_end_old_sessions() {
    let (old, new) = (Authority::new(), Authority::new());
    let (web, reviews) = (tls(&old, "web"), tls(&old, "reviews"));
    let client = web.client(&upstream(&["reviews"]), b"mesh-h2").unwrap();
    shake(client, reviews.server(&downstream()).unwrap()).unwrap();
    web.rotate(new.svid("web"));
    let client = web.client(&upstream(&["reviews"]), b"mesh-h2").unwrap();
    assert!(shake(client.clone(), reviews.server(&downstream()).unwrap()).is_err());
    reviews.rotate(new.svid("reviews"));
    shake(client, reviews.server(&downstream()).unwrap()).unwrap();
}
