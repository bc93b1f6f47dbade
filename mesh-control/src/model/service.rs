//! Services: declared by objects, implied by workloads, and one for each version of each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::identity::Identity;
use mesh_common::names;
use mesh_common::resource::{Key, Kind, ServicePort, TargetPort};

use super::policy::Policy;
use super::{Condition, FaultRule, Name, Routes, Status, Workload};

#[derive(Debug)]
pub struct Service {
    pub name: Name,
    pub fqdn: String,
    /// The service that this is a version of, such as `reviews` of `reviews-v2`.
    pub version_of: Option<String>,
    /// It has no virtual address: its name stands for its workloads' addresses.
    pub headless: bool,
    /// Its workloads are called even if they say that they are not ready.
    pub ready_or_not: bool,
    /// The calls of one address go to the same workload, unless a policy for the service says otherwise.
    pub sticky: bool,
    pub virtual_addresses: Vec<IpAddr>,
    pub ports: BTreeMap<u16, Port>,
    /// Ports for datagrams. Their numbers may be those of other ports too.
    pub udp_ports: BTreeMap<u16, Port>,
    pub workloads: Vec<Arc<Workload>>,
    /// Addresses that the object asks for.
    pub(super) wanted_addresses: Vec<IpAddr>,
}

#[derive(Debug)]
pub struct Port {
    pub number: u16,
    pub name: String,
    pub protocol: Protocol,
    pub endpoints: Vec<Endpoint>,
    pub policy: Policy,
    /// For callers of the service's own namespace, and of all that have no routes of their own.
    pub routes: Routes,
    /// For callers of other namespaces that have routes of their own for this service.
    pub consumer_routes: BTreeMap<String, Routes>,
    pub faults: Vec<Arc<FaultRule>>,
}

#[derive(Clone, Debug)]
pub struct Endpoint {
    pub workload: Arc<Workload>,
    pub port: u16,
}

impl Endpoint {
    /// Who answers there over mutual TLS.
    pub fn identity(&self) -> Option<&Identity> {
        self.workload.identity_at(self.port)
    }
}

/// Protocols in which the server speaks first, with the ports that IANA gave them.
const SERVER_FIRST: [(&str, &[u16]); 6] =
    [("ftp", &[21]), ("ssh", &[22]), ("smtp", &[25, 587]), ("pop3", &[110]), ("imap", &[143]), ("mysql", &[3306])];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    Http2,
    Grpc,
    Tcp,
    Udp,
    /// Not known: found out for each connection.
    Detect,
}

impl Protocol {
    /// From what a workload says of its port.
    pub(super) fn of_workload(text: &str) -> Option<Self> {
        if text == "udp" { Some(Self::Udp) } else { Self::parse(text) }
    }

    /// From a port's `appProtocol`.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "http" | "http1" | "kubernetes.io/ws" => Self::Http,
            "http2" | "h2c" | "kubernetes.io/h2c" => Self::Http2,
            "grpc" => Self::Grpc,
            "tcp" | "tls" | "https" | "kubernetes.io/wss" | "mongo" | "mysql" | "postgres" | "redis" => Self::Tcp,
            _ if SERVER_FIRST.iter().any(|(name, _)| text.eq_ignore_ascii_case(name)) => Self::Tcp,
            _ => return None,
        })
    }

    /// What is spoken at a port of which nobody says anything: where a server speaks first, nothing would come that tells.
    fn of_number(port: u16) -> Self {
        if SERVER_FIRST.iter().any(|(_, ports)| ports.contains(&port)) { Self::Tcp } else { Self::Detect }
    }

    /// From a port's name, by the field's habit: `http`, `grpc-web`, `tcp-db`.
    fn from_name(name: &str) -> Option<Self> {
        Self::parse(name.split('-').next().unwrap_or_default())
    }

    pub fn may_be_http(self) -> bool {
        !matches!(self, Self::Tcp | Self::Udp)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Detect => "",
        }
    }
}

impl Service {
    fn new(name: Name) -> Self {
        Self {
            fqdn: names::fqdn(&name.name, &name.namespace),
            name,
            version_of: None,
            headless: false,
            ready_or_not: false,
            sticky: false,
            virtual_addresses: Vec::new(),
            ports: BTreeMap::new(),
            udp_ports: BTreeMap::new(),
            workloads: Vec::new(),
            wanted_addresses: Vec::new(),
        }
    }

    /// The port of this name.
    pub fn port_named(&self, name: &str) -> Option<&Port> {
        self.all_ports().find(|port| port.name == name)
    }

    pub fn all_ports(&self) -> impl Iterator<Item = &Port> {
        self.ports.values().chain(self.udp_ports.values())
    }

    pub(super) fn all_ports_mut(&mut self) -> impl Iterator<Item = &mut Port> {
        self.ports.values_mut().chain(self.udp_ports.values_mut())
    }
}

impl Port {
    fn new(number: u16, name: &str, protocol: Protocol) -> Self {
        Self {
            number,
            name: name.to_owned(),
            protocol,
            endpoints: Vec::new(),
            policy: Policy::default(),
            routes: Routes::default(),
            consumer_routes: BTreeMap::new(),
            faults: Vec::new(),
        }
    }

    /// The routes for callers of that namespace.
    pub fn routes_for(&self, namespace: &str) -> &Routes {
        self.consumer_routes.get(namespace).unwrap_or(&self.routes)
    }
}

/// A service without a name, and its port of unknown protocol.
pub(super) fn unnamed() -> (Service, Port) {
    let service = Service { fqdn: String::new(), ..Service::new(Name::new("", "")) };
    (service, Port::new(0, "", Protocol::Detect))
}

type Services = BTreeMap<Name, Service>;

/// `places` are workloads as services call them that have written down where.
pub(super) fn assemble(
    declared: &[&mesh_common::resource::Service],
    workloads: &BTreeMap<Name, Arc<Workload>>,
    places: &[(Name, Arc<Workload>)],
    statuses: &mut BTreeMap<Key, Status>,
) -> Services {
    let mut by_namespace: BTreeMap<&str, Vec<&Arc<Workload>>> = BTreeMap::new();
    let mut by_service: BTreeMap<Name, Vec<&Arc<Workload>>> = BTreeMap::new();
    for workload in workloads.values() {
        by_namespace.entry(&workload.name.namespace).or_default().push(workload);
        if !workload.service.is_empty() {
            let name = Name::new(&workload.name.namespace, &workload.service);
            by_service.entry(name).or_default().push(workload);
        }
    }
    for (service, workload) in places {
        by_service.entry(service.clone()).or_default().push(workload);
    }
    let mut services = Services::new();
    for object in declared {
        let name = Name::new(object.metadata.namespace_or_default(), &object.metadata.name);
        let key = Key::new(Kind::Service, &name.namespace, &name.name);
        let members: Vec<_> = if object.spec.selector.is_empty() {
            by_service.get(&name).cloned().unwrap_or_default()
        } else {
            let selected = |w: &&&Arc<Workload>| object.spec.selects(&w.labels);
            let candidates = by_namespace.get(name.namespace.as_str());
            candidates.into_iter().flatten().filter(selected).copied().collect()
        };
        let status = statuses.entry(key).or_default();
        services.insert(name.clone(), from_object(name, &object.spec, &members, status));
    }
    for (name, members) in &by_service {
        if !services.contains_key(name) {
            services.insert(name.clone(), from_workloads(name.clone(), members, statuses));
        }
    }
    let mut of_versions = Vec::new();
    for service in services.values() {
        let (made, problems) = versions(service);
        of_versions.extend(made);
        if !problems.is_empty() {
            let key = Key::new(Kind::Service, &service.name.namespace, &service.name.name);
            statuses.entry(key).or_default().conditions.extend(problems);
        }
    }
    for version in of_versions {
        // A service of that name that somebody meant comes before one that is only a version.
        services.entry(version.name.clone()).or_insert(version);
    }
    services
}

fn from_object(
    name: Name,
    spec: &mesh_common::resource::ServiceSpec,
    members: &[&Arc<Workload>],
    status: &mut Status,
) -> Service {
    let mut service = Service::new(name);
    let given = spec.cluster_ip.iter().chain(&spec.cluster_ips);
    service.headless = given.clone().any(|ip| ip == "None");
    service.wanted_addresses = given.filter_map(|ip| ip.parse().ok()).collect();
    service.wanted_addresses.dedup();
    service.ready_or_not = spec.publish_not_ready_addresses == Some(true);
    service.sticky = spec.sticky();
    service.workloads = members.iter().map(|w| (*w).clone()).collect();
    for port in &spec.ports {
        let udp = match port.protocol.as_deref() {
            None | Some("TCP") => false,
            Some("UDP") => true,
            Some(other) => {
                let message = format!("port {} is {other}; the mesh leaves it alone", port.port);
                status.conditions.push(Condition::ignored("UnsupportedProtocol", message));
                continue;
            }
        };
        let target = port.target_port.as_ref();
        let endpoints: Vec<_> =
            members.iter().filter_map(|w| endpoint(w, w.port_for(udp, port.port, target)?)).collect();
        let protocol = if udp { Protocol::Udp } else { declared_protocol(port, &endpoints) };
        let mut made = Port::new(port.port, &port.name, protocol);
        made.endpoints = endpoints;
        let ports = if udp { &mut service.udp_ports } else { &mut service.ports };
        ports.insert(port.port, made);
    }
    if service.workloads.is_empty() && !spec.selector.is_empty() {
        let message = "no workload has the labels that the selector asks for";
        status.conditions.push(Condition::ignored("NoWorkloads", message));
    }
    service
}

fn declared_protocol(port: &ServicePort, endpoints: &[Endpoint]) -> Protocol {
    let target = match &port.target_port {
        Some(TargetPort::Name(name)) => Protocol::from_name(name),
        _ => None,
    };
    let of_workload = || endpoints.iter().find_map(|e| e.workload.port(false, e.port)).map(|p| p.protocol);
    let own = port.app_protocol.as_deref().and_then(Protocol::parse);
    let said = own.or_else(|| Protocol::from_name(&port.name)).or(target).or_else(of_workload);
    said.filter(|said| *said != Protocol::Detect).unwrap_or_else(|| Protocol::of_number(port.port))
}

/// The ports of a service that nobody declared are those of its workloads.
fn from_workloads(name: Name, members: &[&Arc<Workload>], statuses: &mut BTreeMap<Key, Status>) -> Service {
    let mut service = Service::new(name);
    service.workloads = members.iter().map(|w| (*w).clone()).collect();
    for workload in members {
        for port in &workload.ports {
            let ports = if port.is_udp() { &mut service.udp_ports } else { &mut service.ports };
            let known = ports.entry(port.service_port);
            let known = known.or_insert_with(|| Port::new(port.service_port, &port.name, port.protocol));
            if known.protocol == Protocol::Detect {
                known.protocol = port.protocol;
            } else if port.protocol != Protocol::Detect && port.protocol != known.protocol {
                let message = format!(
                    "port {} is {} here but {} at another workload of {}; it is taken for {}",
                    port.service_port,
                    port.protocol.as_str(),
                    known.protocol.as_str(),
                    service.name.name,
                    known.protocol.as_str(),
                );
                let key = Key::new(Kind::WorkloadEntry, &workload.name.namespace, &workload.name.name);
                let condition = Condition::ignored("ConflictingProtocol", message);
                statuses.entry(key).or_default().conditions.push(condition);
            }
            known.endpoints.extend(endpoint(workload, port.number));
        }
    }
    for port in service.ports.values_mut().filter(|port| port.protocol == Protocol::Detect) {
        port.protocol = Protocol::of_number(port.number);
    }
    service
}

fn endpoint(workload: &Arc<Workload>, port: u16) -> Option<Endpoint> {
    let endpoint = Endpoint { workload: workload.clone(), port };
    (!workload.addresses.is_empty()).then_some(endpoint)
}

/// `reviews-v1` and `reviews-v2`, when `reviews` has workloads of versions v1 and v2; and which versions make none.
fn versions(service: &Service) -> (Vec<Service>, Vec<Condition>) {
    let versions: BTreeSet<&str> = service.workloads.iter().map(|w| w.version.as_str()).collect();
    let mut versions: Vec<&str> = versions.into_iter().filter(|version| !version.is_empty()).collect();
    // Of two that make the same name, the one goes first that is in it as it is.
    versions.sort_by_key(|version| names::version_label(version) != *version);
    let mut made: BTreeMap<String, (&str, Service)> = BTreeMap::new();
    let mut problems = Vec::new();
    for version in versions {
        let name = names::version_service(&service.name.name, version);
        let problem = match made.get(&name) {
            Some((other, _)) => Some(format!(
                "the versions {other} and {version} make the same backend {name}, which has those of {other}"
            )),
            None if mesh_common::identity::check_label(&name).is_err() => {
                Some(format!("the version {version} makes no backend: {name} is no DNS label of at most 63 characters"))
            }
            None => None,
        };
        match problem {
            Some(message) => problems.push(Condition::ignored("NoVersionBackend", message)),
            None => drop(made.insert(name.clone(), (version, of_version(service, version, &name)))),
        }
    }
    (made.into_values().map(|(_, service)| service).collect(), problems)
}

fn of_version(service: &Service, version: &str, name: &str) -> Service {
    let mut made = Service::new(Name::new(&service.name.namespace, name));
    made.version_of = Some(service.name.name.clone());
    made.ready_or_not = service.ready_or_not;
    made.sticky = service.sticky;
    made.workloads = service.workloads.iter().filter(|w| w.version == version).cloned().collect();
    let copy = |port: &Port| {
        let mut copy = Port::new(port.number, &port.name, port.protocol);
        copy.endpoints = port.endpoints.iter().filter(|e| e.workload.version == version).cloned().collect();
        (port.number, copy)
    };
    made.ports = service.ports.values().map(copy).collect();
    made.udp_ports = service.udp_ports.values().map(copy).collect();
    made
}
