use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{http1, http2};

/// An endpoint's connections. Outlives the snapshots that the endpoint is in.
#[derive(Debug)]
pub(crate) struct Host {
    pub(super) address: SocketAddr,
    /// Connections to it carry mutual TLS.
    pub(super) secure: bool,
    pub(super) http1: http1::Pool,
    pub(super) http2: http2::Pool,
    /// Requests and byte streams that it serves now.
    load: AtomicUsize,
    /// It is not an endpoint any more: what is in flight ends in peace, and no connection is kept.
    retired: AtomicBool,
}

impl Host {
    pub(super) fn new(address: SocketAddr, secure: bool) -> Self {
        Self {
            address,
            secure,
            http1: http1::Pool::default(),
            http2: http2::Pool::default(),
            load: AtomicUsize::new(0),
            retired: AtomicBool::new(false),
        }
    }

    pub(super) fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.http1.clear();
        self.http2.clear();
    }
}

/// Counts as load of the host until it is dropped.
#[derive(Debug)]
pub(crate) struct Load(pub(super) Arc<Host>);

impl Load {
    pub(super) fn new(host: Arc<Host>) -> Self {
        host.load.fetch_add(1, Ordering::Relaxed);
        Self(host)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.load.fetch_sub(1, Ordering::Relaxed);
    }
}
