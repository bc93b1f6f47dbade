//! The proxy's TLS configurations, made from its current SVID.
//!
//! In: SVIDs from the identity task, TLS contexts of listeners and clusters. Out: rustls configurations, made once for
//! each kind of peer and replaced when the SVID rotates.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use mesh_common::identity::Identity;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;

use crate::config::{DownstreamTls, UpstreamTls};
use crate::error::{Error, Kind};

pub use mesh_common::tls::peer_identity;

/// TLS with the SVID of the moment.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    current: Arc<ArcSwapOption<Credentials>>,
}

#[derive(Debug)]
struct Credentials {
    identity: Arc<Identity>,
    not_after: i64,
}

impl Tls {
    /// For a chain that terminates mutual TLS.
    pub fn server(&self, _tls: &DownstreamTls) -> Result<Arc<ServerConfig>, Error> {
        Err(Error::because(Kind::Configuration, "the proxy has no certificate yet"))
    }

    /// For connections to the cluster's endpoints, offering just `alpn`.
    pub fn client(&self, _tls: &UpstreamTls, _alpn: &[u8]) -> Result<Arc<ClientConfig>, Error> {
        Err(Error::because(Kind::Configuration, "the proxy has no certificate yet"))
    }

    /// What to hand to rustls as the name of the peer at `address`. Peers are verified by their SPIFFE ID, so that the
    /// name only decides which sessions may be resumed, and the SNI where the cluster has one.
    pub fn server_name(tls: &UpstreamTls, address: SocketAddr) -> ServerName<'static> {
        ServerName::try_from(tls.sni.clone()).unwrap_or_else(|_| ServerName::IpAddress(address.ip().into()))
    }

    /// The proxy's own identity, once it has one.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.current.load().as_ref().map(|it| it.identity.clone())
    }

    /// End of the certificate's validity, in Unix seconds.
    pub fn expires(&self) -> Option<i64> {
        self.current.load().as_ref().map(|it| it.not_after)
    }
}
