//! Upstream connections: which endpoint of a cluster takes a request or a byte stream, and the connections to it.
//!
//! In: cluster names and requests. Out: responses and byte streams. State that outlives a snapshot (pools, balancing,
//! circuit breakers) is kept here under the cluster's name, so that a change of configuration closes no connection.

mod stream;

use std::sync::Arc;

use crate::config::Endpoint;
use crate::error::{Error, Kind};
use crate::listen::{Downstream, Security};
use crate::snapshot::Store;
use crate::tls::Tls;

pub use stream::UpstreamStream;

/// All clusters that this proxy has talked to. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Upstreams {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    tls: Tls,
}

/// A byte stream to an endpoint.
#[derive(Debug)]
pub struct TcpUpstream {
    pub io: UpstreamStream,
    /// The endpoint, for records.
    pub endpoint: Arc<Endpoint>,
    pub security: Security,
}

impl Upstreams {
    pub fn new(store: Store, tls: Tls) -> Self {
        Self { inner: Arc::new(Inner { store, tls }) }
    }

    /// A byte stream to an endpoint of the cluster, over mutual TLS (ALPN `mesh-tcp`) when the endpoint is in the mesh.
    pub async fn connect_tcp(&self, cluster: &str, _downstream: &Downstream) -> Result<TcpUpstream, Error> {
        let _ = (&self.inner.store, &self.inner.tls);
        Err(Error::because(Kind::NoCluster, cluster))
    }
}
