//! The proxy's TLS configurations, made from its current SVID.
//!
//! In: SVIDs from the identity task, TLS contexts of listeners and clusters. Out: rustls configurations, made once for
//! each kind of peer. They look up certificate and trust bundle at each handshake, so that a rotation needs no new
//! configuration and the sessions that may be resumed stay with the identities that they were made for.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use mesh_common::identity::Identity;
use mesh_common::tls::{
    CONTROL_ACCOUNT, CONTROL_NAMESPACE, ClientVerifier, Peers, ServerVerifier, SharedBundle, SharedCertificate,
    TlsError, TrustBundle, client_config, server_config,
};
use rustls::client::{ClientSessionMemoryCache, Resumption};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};

use crate::config::{DownstreamTls, UpstreamTls};
use crate::error::{Error, Kind};

mod sessions;

pub use mesh_common::tls::peer_identity;

/// Kinds of peers to remember configurations for; beyond that the memory of all of them is dropped. A kind is a set of
/// identities, so that this is about the number of services that one application talks to.
const MAX_CONFIGS: usize = 1024;
/// Servers to remember sessions with, for each kind.
const CLIENT_SESSIONS: usize = 64;

/// An own certificate with what belongs to it.
#[derive(Debug)]
pub struct Svid {
    pub identity: Identity,
    pub certificate: Arc<CertifiedKey>,
    pub bundle: TrustBundle,
    /// End of its validity, Unix seconds.
    pub not_after: i64,
}

/// TLS with the SVID of the moment. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    certificate: SharedCertificate,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Current>,
    servers: HashMap<DownstreamTls, Arc<ServerConfig>>,
    /// By the identities of the peer, then by ALPN protocol.
    clients: HashMap<Vec<Identity>, HashMap<Vec<u8>, Arc<ClientConfig>>>,
}

#[derive(Debug)]
struct Current {
    identity: Arc<Identity>,
    not_after: i64,
    bundle: SharedBundle,
    since: SystemTime,
    /// Why there is no newer one, since the last attempt to get it.
    failure: Option<String>,
}

/// The certificate that peers are shown, and what became of its renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    pub leaf: CertificateDer<'static>,
    pub since: SystemTime,
    pub failure: Option<String>,
}

impl Tls {
    /// From now on, all handshakes are made with this SVID. Connections that are open stay.
    pub fn rotate(&self, svid: Svid) {
        let mut state = self.state();
        let same_trust = state.current.as_ref().is_some_and(|current| {
            let old = current.bundle.load();
            *current.identity == svid.identity && old.roots() == svid.bundle.roots()
        });
        if !same_trust {
            // Sessions were made with peers that the new roots may not know.
            state.servers.clear();
            state.clients.clear();
        }
        self.shared.certificate.store(svid.certificate);
        let bundle = match state.current.take() {
            Some(current) => {
                current.bundle.store(svid.bundle);
                current.bundle
            }
            None => SharedBundle::new(svid.bundle),
        };
        let (identity, not_after) = (Arc::new(svid.identity), svid.not_after);
        state.current = Some(Current { identity, not_after, bundle, since: SystemTime::now(), failure: None });
    }

    /// The certificate could not be renewed, for this reason.
    pub fn not_renewed(&self, reason: String) {
        if let Some(current) = &mut self.state().current {
            current.failure = Some(reason);
        }
    }

    /// For a chain that terminates mutual TLS.
    pub fn server(&self, tls: &DownstreamTls) -> Result<Arc<ServerConfig>, Error> {
        let mut state = self.state();
        if let Some(config) = state.servers.get(tls) {
            return Ok(config.clone());
        }
        let bundle = state.bundle()?;
        let verifier = ClientVerifier::new(bundle, Peers::TrustDomain, tls.require_client_certificate);
        let certificate = Arc::new(self.shared.certificate.clone());
        let mut config = server_config(Arc::new(verifier), certificate, tls.alpn.clone()).map_err(unusable)?;
        config.session_storage = Arc::new(sessions::Sessions::new(Instant::now));
        config.send_tls13_tickets = 1;
        let config = Arc::new(config);
        if state.servers.len() >= MAX_CONFIGS {
            state.servers.clear();
        }
        state.servers.insert(tls.clone(), config.clone());
        Ok(config)
    }

    /// For connections to the cluster's endpoints, offering just `alpn`.
    pub fn client(&self, tls: &UpstreamTls, alpn: &[u8]) -> Result<Arc<ClientConfig>, Error> {
        self.client_for(&tls.identities, alpn)
    }

    /// For connections to the control plane, gRPC.
    pub fn control(&self) -> Result<Arc<ClientConfig>, Error> {
        let domain = self.state().current.as_ref().map(|it| it.identity.trust_domain.clone()).ok_or_else(none_yet)?;
        let control = Identity::new(&domain, CONTROL_NAMESPACE, CONTROL_ACCOUNT).map_err(unusable)?;
        self.client_for(&[control], b"h2")
    }

    fn client_for(&self, identities: &[Identity], alpn: &[u8]) -> Result<Arc<ClientConfig>, Error> {
        let mut state = self.state();
        if let Some(config) = state.clients.get(identities).and_then(|it| it.get(alpn)) {
            return Ok(config.clone());
        }
        let peers = if identities.is_empty() { Peers::TrustDomain } else { Peers::Only(identities.to_vec()) };
        let verifier = ServerVerifier::new(state.bundle()?, peers);
        let certificate = Arc::new(self.shared.certificate.clone());
        let mut config = client_config(Arc::new(verifier), certificate, vec![alpn.to_vec()]).map_err(unusable)?;
        // Its own store: a session made with one identity must not be resumed with who has another.
        config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(CLIENT_SESSIONS)));
        let config = Arc::new(config);
        if state.clients.len() >= MAX_CONFIGS {
            state.clients.clear();
        }
        state.clients.entry(identities.to_vec()).or_default().insert(alpn.to_vec(), config.clone());
        Ok(config)
    }

    /// What to hand to rustls as the name of the peer at `address`. Peers are verified by their SPIFFE ID, so that the
    /// name only decides which sessions may be resumed, and the SNI where the cluster has one.
    pub fn server_name(tls: &UpstreamTls, address: SocketAddr) -> ServerName<'static> {
        match tls.sni.is_empty() {
            false => ServerName::try_from(tls.sni.clone()).unwrap_or(ServerName::IpAddress(address.ip().into())),
            true => ServerName::IpAddress(address.ip().into()),
        }
    }

    /// The proxy's own identity, once it has one.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.state().current.as_ref().map(|it| it.identity.clone())
    }

    /// End of the certificate's validity, in Unix seconds.
    pub fn expires(&self) -> Option<i64> {
        self.state().current.as_ref().map(|it| it.not_after)
    }

    /// What is shown in handshakes, the leaf first.
    pub fn chain(&self) -> Option<Vec<CertificateDer<'static>>> {
        self.shared.certificate.load().map(|it| it.cert.clone())
    }

    /// What the control plane is told of the certificate; `None` before there is one.
    pub fn served(&self) -> Option<Served> {
        let state = self.state();
        let current = state.current.as_ref()?;
        let leaf = self.shared.certificate.load()?.cert.first()?.clone();
        Some(Served { leaf, since: current.since, failure: current.failure.clone() })
    }

    /// What peers are verified by.
    pub fn bundle(&self) -> Option<Arc<TrustBundle>> {
        self.state().current.as_ref().map(|it| it.bundle.load())
    }

    /// Held for a moment once in a connection's life, never over I/O.
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn bundle(&self) -> Result<SharedBundle, Error> {
        self.current.as_ref().map(|it| it.bundle.clone()).ok_or_else(none_yet)
    }
}

fn none_yet() -> Error {
    Error::because(Kind::Configuration, "the proxy has no certificate yet")
}

fn unusable(error: impl Into<TlsError>) -> Error {
    Error::because(Kind::Configuration, error.into())
}

#[cfg(test)]
pub(crate) mod tests;
