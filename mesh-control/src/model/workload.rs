use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_common::identity::Identity;
use mesh_common::names::port;
use mesh_common::resource::{Key, Kind, LABEL_LOST, LABEL_TERMINATING, TargetPort, WorkloadEntry};

use super::{Condition, Name, Protocol, Status};

/// The proxy's own, which are not those of the application.
const PROXY_PORTS: [u16; 4] = [port::OUTBOUND, port::INBOUND, port::READY, port::PROXY_METRICS];

/// A process that serves a service, calls others, or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub name: Name,
    /// "" if it only calls others.
    pub service: String,
    pub version: String,
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<WorkloadPort>,
    /// Its own labels, and `app` and `version` from its service.
    pub labels: BTreeMap<String, String>,
    /// `None` for one without a proxy.
    pub identity: Option<Identity>,
    /// Its proxy takes the connections to all of its ports but the excluded ones.
    pub intercepted: bool,
    pub excluded_ports: Vec<u16>,
    /// It is ready, is not going to end, and its proxy is heard of.
    pub healthy: bool,
    /// It was healthy when its proxy was last heard of, which is some time ago.
    pub lost: bool,
    /// It is ready, but is going to end, or its platform has not heard of its node for some time.
    pub lingers: bool,
    pub registered: bool,
    pub weight: u32,
    /// Region, zone, sub-zone.
    pub locality: [String; 3],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadPort {
    pub number: u16,
    pub service_port: u16,
    pub protocol: Protocol,
    pub name: String,
}

impl Workload {
    /// The workload, if its identity can be made out.
    pub(super) fn new(entry: &WorkloadEntry, trust_domain: &str, status: &mut Status) -> Option<Self> {
        let key = Key::new(Kind::WorkloadEntry, entry.metadata.namespace_or_default(), &entry.metadata.name);
        let spec = &entry.spec;
        let identity = match entry.in_mesh() {
            false => None,
            true => match Identity::new(trust_domain, &key.namespace, &spec.service_account) {
                Ok(identity) => Some(identity),
                Err(error) => {
                    status.conditions.push(Condition::not_accepted("Invalid", error.to_string()));
                    return None;
                }
            },
        };
        let ready = spec.healthy.unwrap_or(true);
        let terminating = entry.metadata.labels.get(LABEL_TERMINATING).is_some_and(|value| value == "true");
        let silent = entry.metadata.labels.get(LABEL_LOST).is_some_and(|value| value == "true");
        let mut locality = spec.locality.as_deref().unwrap_or_default().split('/').map(str::to_owned);
        let mut part = || locality.next().unwrap_or_default();
        Some(Self {
            service: spec.service.clone(),
            version: spec.version.clone(),
            addresses: spec.addresses.clone(),
            ports: spec.ports.iter().map(WorkloadPort::new).collect(),
            labels: selectable_labels(entry),
            intercepted: identity.is_some() && entry.intercepted(),
            excluded_ports: entry.excluded_ports(),
            identity,
            healthy: ready && !terminating && !silent,
            lost: ready && !terminating && silent && entry.registered(),
            lingers: ready && (terminating || silent && !entry.registered()),
            registered: entry.registered(),
            weight: spec.weight.unwrap_or(1).max(1),
            locality: [part(), part(), part()],
            name: Name { namespace: key.namespace, name: key.name },
        })
    }

    /// The same workload as a service calls it that has written down where, and whether it is well there.
    pub(super) fn called_at(&self, place: Self) -> Self {
        let ending = self.is_terminating();
        let nowhere = self.locality.iter().all(String::is_empty);
        Self {
            addresses: place.addresses,
            ports: place.ports,
            healthy: place.healthy && !ending,
            lost: false,
            lingers: place.healthy && ending,
            weight: place.weight,
            locality: if nowhere { place.locality } else { self.locality.clone() },
            ..self.clone()
        }
    }

    /// Who answers at this port over mutual TLS: nobody where the application does so itself.
    pub fn identity_at(&self, port: u16) -> Option<&Identity> {
        self.identity.as_ref().filter(|_| !self.excluded_ports.contains(&port))
    }

    /// Whether its proxy answers at this port even if nobody names it.
    pub(super) fn answers_at(&self, port: u16) -> bool {
        self.intercepted && !PROXY_PORTS.contains(&port) && self.identity_at(port).is_some()
    }

    /// Its platform is ending it.
    pub fn is_terminating(&self) -> bool {
        self.labels.get(LABEL_TERMINATING).is_some_and(|value| value == "true")
    }

    /// Its ports of UDP, or all others.
    fn ports(&self, udp: bool) -> impl Iterator<Item = &WorkloadPort> {
        self.ports.iter().filter(move |port| port.is_udp() == udp)
    }

    pub(super) fn port(&self, udp: bool, number: u16) -> Option<&WorkloadPort> {
        self.ports(udp).find(|port| port.number == number)
    }

    /// The workload's own port for a port of a declared service. A number that the service names counts even if the workload
    /// does not list it; where the service names none, a workload that lists no such ports serves whatever it is asked for.
    pub(super) fn port_for(&self, udp: bool, service_port: u16, target: Option<&TargetPort>) -> Option<u16> {
        if let Some(port) = self.ports(udp).find(|p| p.service_port == service_port && p.number != service_port) {
            return Some(port.number);
        }
        match target {
            Some(TargetPort::Name(name)) => self.ports(udp).find(|p| p.name == *name).map(|p| p.number),
            Some(TargetPort::Number(number)) => Some(*number),
            None => self.serves(udp, service_port),
        }
    }

    fn serves(&self, udp: bool, number: u16) -> Option<u16> {
        (self.ports(udp).next().is_none() || self.port(udp, number).is_some()).then_some(number)
    }
}

/// Which of a service's workloads are called, beside those that are healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Called {
    lost: bool,
    lingering: bool,
}

impl Called {
    /// When the proxies of most workloads are not heard of, the way to the control plane is the more likely reason, and what
    /// the others then get is at most twice what they had. Those that linger are better than nobody.
    pub fn of<'a>(workloads: impl Iterator<Item = &'a Workload>) -> Self {
        let (mut healthy, mut lost) = (0_usize, 0_usize);
        for workload in workloads {
            healthy += usize::from(workload.healthy);
            lost += usize::from(workload.lost);
        }
        Self { lost: lost > healthy, lingering: healthy == 0 }
    }

    pub fn includes(self, workload: &Workload) -> bool {
        workload.healthy || workload.lost && self.lost || workload.lingers && self.lingering
    }
}

impl WorkloadPort {
    pub fn is_udp(&self) -> bool {
        self.protocol == Protocol::Udp
    }

    fn new(port: &mesh_common::resource::WorkloadPort) -> Self {
        Self {
            number: port.port,
            service_port: port.service_port.unwrap_or(port.port),
            protocol: Protocol::of_workload(port.protocol.as_deref().unwrap_or_default()).unwrap_or(Protocol::Detect),
            name: port.name.clone().unwrap_or_default(),
        }
    }
}

/// What a Service may select by: what people expect to be there is there, even if nobody wrote it.
pub(crate) fn selectable_labels(entry: &WorkloadEntry) -> BTreeMap<String, String> {
    let mut labels = entry.metadata.labels.clone();
    let spec = &entry.spec;
    for (keys, value) in
        [(["app", "app.kubernetes.io/name"], &spec.service), (["version", "app.kubernetes.io/version"], &spec.version)]
    {
        // Whoever wrote one of the two meant what they wrote, and no more.
        if !value.is_empty() && !keys.iter().any(|key| labels.contains_key(*key)) {
            labels.extend(keys.map(|key| (key.to_owned(), value.clone())));
        }
    }
    labels
}
