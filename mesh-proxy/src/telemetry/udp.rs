//! Metrics of datagrams.

use std::fmt;
use std::sync::Arc;

use metrics::{Counter, Label};

use super::metrics::{ActiveConnection, Metrics, counter, destination, overflow_labels};
use super::series::{Cost, Key, Plan};
use crate::config::Endpoint;
use crate::listen::{Downstream, Security};

pub(super) const ACTIVE: &str = "mesh_udp_sessions_active";
const SESSIONS: &str = "mesh_udp_sessions_total";
const DATAGRAMS: &str = "mesh_udp_datagrams_total";
const BYTES: &str = "mesh_udp_bytes_total";
const DROPPED: &str = "mesh_udp_datagrams_dropped_total";

/// Why a datagram goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpDrop {
    /// Nothing in the mesh has the address.
    NoRoute,
    /// A configuration that is not here yet.
    Configuration,
    /// The service has no endpoint that could take it.
    NoUpstream,
    /// There are as many sessions as there may be.
    Overflow,
    /// Too many datagrams wait.
    Queue,
    /// The endpoint's machine says that nobody takes it.
    Refused,
    /// The kernel does not send it.
    Failed,
}

/// Counters of one destination's label set.
#[derive(Clone)]
pub struct UdpMetrics {
    sessions: Counter,
    datagrams: [Counter; 2],
    bytes: [Counter; 2],
    /// Shared by all sessions that are open: while one is, the label set is not idle.
    open: Arc<()>,
}

impl UdpMetrics {
    pub(crate) fn to_upstream(&self, bytes: usize) {
        self.count(0, bytes);
    }

    pub(crate) fn to_downstream(&self, bytes: usize) {
        self.count(1, bytes);
    }

    fn count(&self, direction: usize, bytes: usize) {
        self.datagrams[direction].increment(1);
        self.bytes[direction].increment(bytes as u64);
    }

    /// Whether sessions use it. Tells the recorder so, though no datagram may flow.
    pub(super) fn is_open(&self) -> bool {
        let open = Arc::strong_count(&self.open) > 1;
        if open {
            self.datagrams.iter().chain(&self.bytes).for_each(|counter| counter.increment(0));
        }
        open
    }
}

impl fmt::Debug for UdpMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpMetrics").finish_non_exhaustive()
    }
}

impl Metrics {
    pub(super) fn udp_session(&self) -> ActiveConnection {
        ActiveConnection::of(&self.proxy.udp_sessions)
    }

    pub(super) fn udp_upstream(&self, downstream: &Downstream, endpoint: &Endpoint, cluster: &str) -> UdpMetrics {
        let key = Key {
            direction: downstream.direction,
            security: Security::None,
            source: None,
            destination: destination(downstream, Some(endpoint), cluster, ""),
            route: "",
            status: 0,
            grpc_status: None,
            flags: "",
        };
        let plan = || {
            let labels = self.destination_labels(&key);
            let group = self.udp.hash(&labels);
            Plan { cost: Cost { own: 0, shared: 5, group }, make: Box::new(|| self.udp_handles(labels)) }
        };
        let known = self.udp.with(&key, self.seconds(), &self.budget, plan, UdpMetrics::clone);
        let handles = known.unwrap_or_else(|| {
            self.overflowed();
            self.udp_handles(overflow_labels())
        });
        handles.sessions.increment(1);
        handles
    }

    pub(super) fn udp_dropped(&self, why: UdpDrop) {
        let reason = match why {
            UdpDrop::NoRoute => "no_route",
            UdpDrop::Configuration => "configuration",
            UdpDrop::NoUpstream => "no_upstream",
            UdpDrop::Overflow => "overflow",
            UdpDrop::Queue => "queue",
            UdpDrop::Refused => "refused",
            UdpDrop::Failed => "failed",
        };
        counter(&self.recorder, DROPPED, vec![Label::new("reason", reason)]).increment(1);
    }

    /// Where to, without the single workload.
    fn destination_labels(&self, key: &Key<'_>) -> Vec<Label> {
        let wanted = ["source_workload", "destination_service", "destination_version"];
        self.peers(key, false).into_iter().filter(|label| wanted.contains(&label.key())).collect()
    }

    fn udp_handles(&self, labels: Vec<Label>) -> UdpMetrics {
        let both = |name: &'static str| {
            ["to_upstream", "to_downstream"].map(|direction| {
                let direction = Label::new("direction", direction);
                counter(&self.recorder, name, labels.iter().cloned().chain([direction]).collect())
            })
        };
        let (datagrams, bytes) = (both(DATAGRAMS), both(BYTES));
        let sessions = counter(&self.recorder, SESSIONS, labels);
        UdpMetrics { sessions, datagrams, bytes, open: Arc::new(()) }
    }
}
