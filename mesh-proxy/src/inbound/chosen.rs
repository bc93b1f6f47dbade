use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::config::{DownstreamTls, Listener, NetworkFilter};
use crate::detect::{self, Detected};
use crate::snapshot::Store;

/// Why one is refused that would be given nothing now.
pub(crate) const NOT_TAKEN: &str = "connections like this one are not taken any more";

/// What a connection was given by its listener, and what it would be given now: a policy that has changed since also holds
/// for those who are in already.
#[derive(Debug)]
pub(crate) struct Chosen {
    port: u16,
    detected: Detected,
    pub(super) tls: Option<DownstreamTls>,
    /// The filter, and the listener that it is of.
    current: ArcSwap<(Arc<Listener>, NetworkFilter)>,
}

impl Chosen {
    /// `None` if the listener takes no such connection.
    pub(crate) fn new(listener: &Arc<Listener>, port: u16, detected: &Detected) -> Option<Self> {
        let chain = detect::chain(listener, port, detected)?;
        Some(Self {
            port,
            detected: detected.clone(),
            tls: chain.tls.clone(),
            current: ArcSwap::from_pointee((listener.clone(), chain.filter.clone())),
        })
    }

    pub(crate) fn filter(&self) -> NetworkFilter {
        self.current.load().1.clone()
    }

    /// The filter by the listener in force; `None` if it takes no such connection any more.
    pub(crate) fn now(&self, store: &Store) -> Option<NetworkFilter> {
        let current = self.current.load();
        let snapshot = store.load();
        // Without a listener, the last one goes on.
        let Some(listener) = snapshot.listener(&current.0.name).filter(|it| !Arc::ptr_eq(it, &current.0)) else {
            return Some(current.1.clone());
        };
        let chain = detect::chain(listener, self.port, &self.detected)?;
        if chain.tls.is_some() != self.tls.is_some() {
            return None;
        }
        self.current.store(Arc::new((listener.clone(), chain.filter.clone())));
        Some(chain.filter.clone())
    }
}
