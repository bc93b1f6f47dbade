//! What the objects mean together: services, workloads, routes, policies. Immutable and pure: equal objects make an equal
//! model, and nothing here knows who asks or which protocol the answer takes.
//!
//! In: objects. Out: a [`Model`], with conditions for what can't be as it was asked.

mod accounts;
mod address;
mod attach;
mod authorization;
mod condition;
mod fault;
mod objects;
mod peer;
mod policy;
mod request_authentication;
mod route;
mod service;
mod span;
mod tracing;
mod workload;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::names::{self, CLUSTER_DOMAIN};
use mesh_common::resource::{JwtRule, Key, Kind, MESH_NAMESPACE, Object, PeerMode};

pub use accounts::Accounts;
pub use address::Addresses;
pub use authorization::Authorization;
pub use condition::Condition;
pub use fault::{Caller, CallerName, FaultKind, FaultRule};
pub use policy::Policy;
pub use request_authentication::{Fetched, Keys, jwks_uris};
pub use route::{Action, Backend, Forward, Mirror, PathMatch, PathRewrite, Route, RouteMatch, Routes, TlsStreams};
pub use service::{Endpoint, Port, Protocol, Service};
pub use span::Reach;
pub use tracing::Tracing;
pub(crate) use workload::selectable_labels;
pub use workload::{Called, Workload, WorkloadPort};

use attach::{Attached, Attacher};
use authorization::Authorizations;
use condition::Status;
use fault::Faults;
use objects::Sorted;
use peer::Peers;
use policy::Policies;
use request_authentication::RequestAuthentications;
use route::Age;
use tracing::Telemetries;

/// What is fixed when the control plane starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub trust_domain: String,
}

#[derive(Debug)]
pub struct Model {
    services: BTreeMap<Name, Service>,
    /// Names that stand for others.
    aliases: BTreeMap<Name, String>,
    workloads: BTreeMap<Name, Arc<Workload>>,
    /// Names of the services that each workload serves.
    served: BTreeMap<Name, Vec<String>>,
    destinations: BTreeMap<(IpAddr, u16), Destination>,
    /// Virtual addresses of UDP ports.
    udp_destinations: BTreeMap<(IpAddr, u16), Name>,
    /// Workloads whose proxies answer at ports that nobody names, by address.
    intercepted: BTreeMap<IpAddr, Arc<Workload>>,
    /// What stands for the service of such a port.
    unnamed: (Service, Port),
    /// Ports that byte streams are routed to.
    stream_backends: BTreeSet<(Name, u16)>,
    peers: Peers,
    authorizations: Authorizations,
    request_authentications: RequestAuthentications,
    keys: Arc<Keys>,
    telemetries: Telemetries,
    addresses: Addresses,
    statuses: BTreeMap<Key, Status>,
}

/// Namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    pub namespace: String,
    pub name: String,
}

impl Name {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What an address and port stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A virtual address, and the service's port.
    Service(Name, u16),
    /// One workload's own address, and the port of the service that it serves there.
    Workload { workload: Name, service: Name, service_port: u16 },
}

/// Virtual addresses stay where they were before.
pub fn build(objects: &BTreeMap<Key, Arc<Object>>, settings: &Settings, before: &Addresses) -> Model {
    let sorted = Sorted::new(objects);
    let mut statuses = BTreeMap::new();
    let mut workloads = BTreeMap::new();
    let mut places = Vec::new();
    for entry in &sorted.workload_entries {
        let key = Key::new(Kind::WorkloadEntry, entry.metadata.namespace_or_default(), &entry.metadata.name);
        if let Some(workload) = Workload::new(entry, &settings.trust_domain, statuses.entry(key).or_default()) {
            match entry.place_of() {
                Some((namespace, name)) => places.push((Name::new(namespace, name), workload)),
                None => drop(workloads.insert(workload.name.clone(), Arc::new(workload))),
            }
        }
    }
    let place = |(of, place): (Name, Workload)| {
        let service = Name::new(&place.name.namespace, &place.service);
        // Of somebody who is not known, nobody can tell who would answer there.
        Some((service, Arc::new(workloads.get(&of)?.called_at(place))))
    };
    let places: Vec<_> = places.into_iter().filter_map(place).collect();
    let mut services = service::assemble(&sorted.services, &workloads, &places, &mut statuses);
    let addresses = give_addresses(&mut services, before, &mut statuses);

    let exists = |key: &Key, section: Option<&str>| sorted.has(&services, key, section);
    let policies = Policies::new(sorted.retries(), &sorted.traffic_policies, exists, &mut statuses);
    let only_streams = |key: &Key| {
        let service = services.get(&policy::service_name(key)).filter(|_| key.kind == Kind::Service);
        service.is_some_and(|service| service.all_ports().all(|port| !port.protocol.may_be_http()))
    };
    let faults = Faults::new(&sorted.fault_injections, exists, only_streams, &services, &mut statuses);
    if let Some(domain) = sorted.trust_domain().filter(|domain| **domain != settings.trust_domain) {
        let message = format!("the trust domain is {} since the mesh was made, and stays so", settings.trust_domain);
        let condition = Condition::ignored("TrustDomainFixed", format!("{message}, not {domain}"));
        let key = Key::new(Kind::MeshConfig, MESH_NAMESPACE, "default");
        statuses.entry(key).or_default().conditions.push(condition);
    }
    let known = |name: &Name| services.contains_key(name);
    let peers = Peers::new(&sorted.peer_authentications, known, &mut statuses);
    let policies_of_access = &sorted.authorization_policies;
    let protocol = |name: &Name, port: u16| Some(services.get(name)?.ports.get(&port)?.protocol);
    let authorizations =
        Authorizations::new(policies_of_access, &settings.trust_domain, known, protocol, &mut statuses);
    let tokens = &sorted.request_authentications;
    let request_authentications = RequestAuthentications::new(tokens, known, &mut statuses);
    let telemetries = Telemetries::new(&sorted.telemetries, known, protocol, &mut statuses);
    for service in services.values_mut() {
        let key = Key::new(Kind::Service, &service.name.namespace, &service.name.name);
        let policies: Vec<_> = service.all_ports().map(|port| policies.for_port(service, &port.name)).collect();
        for (port, policy) in service.all_ports_mut().zip(policies) {
            port.policy = policy;
            port.faults = faults.of(&key, (!port.name.is_empty()).then_some(&*port.name));
        }
    }

    let mut attacher = Attacher::new(&services, &policies, &faults, &sorted, &mut statuses);
    sorted.http_routes.iter().for_each(|route| attacher.http_route(route));
    sorted.grpc_routes.iter().for_each(|route| attacher.grpc_route(route));
    sorted.tcp_routes.iter().for_each(|route| attacher.tcp_route(route));
    sorted.tls_routes.iter().for_each(|route| attacher.tls_route(route));
    sorted.udp_routes.iter().for_each(|route| attacher.udp_route(route));
    let attached = attacher.finish();
    let of_names = attached.tls.values().flatten().flat_map(|streams| &streams.backends);
    let stream_backends = attached.tcp.values().flatten().chain(of_names).filter(|backend| backend.found);
    let stream_backends = stream_backends.map(|backend| (backend.service.clone(), backend.port)).collect();
    place_routes(&mut services, attached);

    statuses.retain(|key, status| objects.contains_key(key) && *status != Status::default());
    Model {
        served: served(&services),
        destinations: destinations(&services),
        udp_destinations: udp_destinations(&services),
        intercepted: intercepted(&workloads),
        unnamed: service::unnamed(),
        aliases: sorted.aliases,
        services,
        workloads,
        stream_backends,
        peers,
        authorizations,
        request_authentications,
        keys: Arc::default(),
        telemetries,
        addresses,
        statuses,
    }
}

/// The address that a service asks for, or one of ours.
fn give_addresses(
    services: &mut BTreeMap<Name, Service>,
    before: &Addresses,
    statuses: &mut BTreeMap<Key, Status>,
) -> Addresses {
    let mut reserved = BTreeSet::new();
    for service in services.values_mut() {
        let taken = service.wanted_addresses.iter().find(|address| reserved.contains(*address)).copied();
        if let Some(taken) = taken {
            let message = format!("{taken} is another Service's address already; this one gets a different one");
            let key = Key::new(Kind::Service, &service.name.namespace, &service.name.name);
            statuses.entry(key).or_default().conditions.push(Condition::ignored("AddressTaken", message));
            service.wanted_addresses.clear();
        }
        reserved.extend(service.wanted_addresses.iter().copied());
    }
    let unaddressed = |s: &&Service| !s.headless && s.wanted_addresses.is_empty();
    let names = services.values().filter(unaddressed).map(|s| s.fqdn.as_str());
    let pairs = address::allocate(names, &reserved, &before.0);
    for service in services.values_mut() {
        service.virtual_addresses = match pairs.get(&service.fqdn) {
            Some(pair) => pair.addresses(),
            None => service.wanted_addresses.clone(),
        };
    }
    Addresses(pairs)
}

fn place_routes(services: &mut BTreeMap<Name, Service>, attached: Attached) {
    let mut port_routes = |(name, number, consumer): (Name, u16, Option<String>), set: &mut dyn FnMut(&mut Routes)| {
        let Some(port) = services.get_mut(&name).and_then(|service| service.ports.get_mut(&number)) else { return };
        set(match consumer {
            Some(namespace) => port.consumer_routes.entry(namespace).or_default(),
            None => &mut port.routes,
        });
    };
    for (place, routes) in attached.http {
        let mut routes = Some(routes);
        port_routes(place, &mut |to| to.http = routes.take());
    }
    for (place, streams) in attached.tls {
        port_routes(place, &mut |to| to.tls = streams.clone());
    }
    for (place, backends) in attached.tcp {
        port_routes(place, &mut |to| to.tcp = Some(backends.clone()));
    }
    for ((name, number, consumer), backends) in attached.udp {
        let Some(port) = services.get_mut(&name).and_then(|service| service.udp_ports.get_mut(&number)) else {
            continue;
        };
        let to = match consumer {
            Some(namespace) => port.consumer_routes.entry(namespace).or_default(),
            None => &mut port.routes,
        };
        to.udp = Some(backends);
    }
}

fn udp_destinations(services: &BTreeMap<Name, Service>) -> BTreeMap<(IpAddr, u16), Name> {
    let of_service = |service: &Service| {
        let ports = |address: &IpAddr| {
            let address = *address;
            service.udp_ports.keys().map(move |port| (address, *port)).collect::<Vec<_>>()
        };
        let name = service.name.clone();
        let all: Vec<_> = service.virtual_addresses.iter().flat_map(ports).collect();
        all.into_iter().map(move |at| (at, name.clone()))
    };
    services.values().flat_map(of_service).collect()
}

/// A service of another namespace that has written down a workload's address says nothing about the workload.
fn served(services: &BTreeMap<Name, Service>) -> BTreeMap<Name, Vec<String>> {
    let mut served: BTreeMap<Name, Vec<String>> = BTreeMap::new();
    for service in services.values() {
        for workload in service.workloads.iter().filter(|it| it.name.namespace == service.name.namespace) {
            let names = served.entry(workload.name.clone()).or_default();
            // One that is written down at two places serves once.
            if names.last() != Some(&service.name.name) {
                names.push(service.name.name.clone());
            }
        }
    }
    served
}

fn destinations(services: &BTreeMap<Name, Service>) -> BTreeMap<(IpAddr, u16), Destination> {
    let mut destinations = BTreeMap::new();
    for service in services.values() {
        for address in &service.virtual_addresses {
            for port in service.ports.keys() {
                let destination = Destination::Service(service.name.clone(), *port);
                destinations.insert((*address, *port), destination);
            }
        }
    }
    // The service that the workload says it serves speaks for it, then any other of its namespace.
    let rank = |service: &Service, endpoint: &Endpoint| {
        let workload = &endpoint.workload;
        let own = workload.service == service.name.name;
        if workload.name.namespace != service.name.namespace { 2 } else { u8::from(!own) }
    };
    for at in 0..3 {
        for service in services.values().filter(|service| service.version_of.is_none()) {
            for port in service.ports.values() {
                for endpoint in port.endpoints.iter().filter(|endpoint| rank(service, endpoint) == at) {
                    for address in &endpoint.workload.addresses {
                        let destination = Destination::Workload {
                            workload: endpoint.workload.name.clone(),
                            service: service.name.clone(),
                            service_port: port.number,
                        };
                        destinations.entry((*address, endpoint.port)).or_insert(destination);
                    }
                }
            }
        }
    }
    destinations
}

/// An address that several have tells nobody's identity.
fn intercepted(workloads: &BTreeMap<Name, Arc<Workload>>) -> BTreeMap<IpAddr, Arc<Workload>> {
    let mut by_address: BTreeMap<IpAddr, Vec<&Arc<Workload>>> = BTreeMap::new();
    for workload in workloads.values() {
        workload.addresses.iter().for_each(|address| by_address.entry(*address).or_default().push(workload));
    }
    let alone = |(address, workloads): (IpAddr, Vec<&Arc<Workload>>)| match workloads.as_slice() {
        [only] if only.intercepted => Some((address, Arc::clone(only))),
        _ => None,
    };
    by_address.into_iter().filter_map(alone).collect()
}

/// What a DNS name names, when asked in that namespace.
fn by_dns(question: &str, namespace: &str) -> Option<Name> {
    let name = question.strip_suffix(CLUSTER_DOMAIN).and_then(|rest| rest.strip_suffix(".svc."));
    let name = name.or_else(|| question.strip_suffix(".svc"));
    let (name, namespace) = match (name, question.split_once('.')) {
        (Some(name), _) => name.split_once('.')?,
        (None, Some(both)) => both,
        (None, None) => (question, namespace),
    };
    Some(Name::new(namespace, name))
}

impl Model {
    /// What the next model is to be built with, so that addresses stay.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Services in the order of their names, with those made for versions.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.get(&Name::new(namespace, name))
    }

    pub fn port(&self, service: &Name, number: u16) -> Option<(&Service, &Port)> {
        let service = self.services.get(service)?;
        Some((service, service.ports.get(&number)?))
    }

    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    pub fn workload(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(&Name::new(namespace, name))
    }

    /// Whether any service has this workload among its endpoints.
    pub fn serves(&self, workload: &Name) -> bool {
        self.served.contains_key(workload)
    }

    /// Whether a service has nobody to call but workloads that are going to end, and this is one of them.
    pub fn needs(&self, workload: &Name) -> bool {
        let served = self.served.get(workload).into_iter().flatten();
        let mut services = served.filter_map(|name| self.service(&workload.namespace, name));
        self.workload(&workload.namespace, &workload.name).is_some_and(|it| it.lingers)
            && services.any(|service| !service.workloads.iter().any(|other| other.healthy))
    }

    pub fn destination(&self, address: IpAddr, port: u16) -> Option<&Destination> {
        self.destinations.get(&(address, port))
    }

    /// The workload whose proxy answers at an address and port that is no [`destination`](Self::destination), and what stands
    /// for the service that it serves there.
    pub fn unnamed(&self, address: IpAddr, port: u16) -> Option<(&Arc<Workload>, &Service, &Port)> {
        if self.destinations.contains_key(&(address, port)) {
            return None;
        }
        let workload = self.intercepted.get(&address).filter(|workload| workload.answers_at(port))?;
        Some((workload, &self.unnamed.0, &self.unnamed.1))
    }

    /// The service, and its UDP port, that a virtual address stands for.
    pub fn udp_destination(&self, address: IpAddr, port: u16) -> Option<(&Service, &Port)> {
        let service = self.services.get(self.udp_destinations.get(&(address, port))?)?;
        Some((service, service.udp_ports.get(&port)?))
    }

    pub fn udp_destinations(&self) -> impl Iterator<Item = (IpAddr, u16)> {
        self.udp_destinations.keys().copied()
    }

    pub fn destinations(&self) -> impl Iterator<Item = (IpAddr, u16)> {
        self.destinations.keys().copied()
    }

    /// Where services expect a workload to serve them, and what they speak there.
    pub fn target_ports(&self, workload: &Name) -> Vec<(u16, Protocol)> {
        let served = self.served.get(workload).into_iter().flatten();
        let services = served.filter_map(|name| self.service(&workload.namespace, name));
        let ports = services.filter(|service| service.version_of.is_none()).flat_map(|service| service.ports.values());
        let target = |port: &Port| {
            let endpoint = port.endpoints.iter().find(|endpoint| endpoint.workload.name == *workload)?;
            Some((endpoint.port, port.protocol))
        };
        ports.filter_map(target).collect()
    }

    /// A limit of this port of a workload: what its service's version says, or else the first service that leads there.
    pub fn limit<T>(&self, workload: &Name, port: u16, limit: impl Fn(&Policy) -> Option<&T>) -> Option<&T> {
        let names = self.served.get(workload).into_iter().flatten();
        let mut services: Vec<_> = names.filter_map(|name| self.service(&workload.namespace, name)).collect();
        services.sort_by_key(|service| service.version_of.is_none());
        let leads = |it: &&Port| it.endpoints.iter().any(|at| at.port == port && at.workload.name == *workload);
        let mut ports = services.into_iter().flat_map(|service| service.ports.values()).filter(leads);
        ports.find_map(|port| limit(&port.policy))
    }

    /// Whether a TCPRoute or TLSRoute sends byte streams to this port.
    pub fn takes_streams(&self, service: &Name, port: u16) -> bool {
        self.stream_backends.contains(&(service.clone(), port))
    }

    /// The service that a DNS name stands for, when asked in that namespace: `reviews`, `reviews.default`,
    /// `reviews.default.svc` or the full name, in lower case.
    pub fn service_by_dns(&self, question: &str, namespace: &str) -> Option<&Service> {
        self.services.get(&by_dns(question, namespace)?)
    }

    /// What a DNS name stands for that is only another name, and its full form.
    pub fn alias_by_dns(&self, question: &str, namespace: &str) -> Option<(&str, String)> {
        let name = by_dns(question, namespace)?;
        Some((self.aliases.get(&name)?, names::fqdn(&name.name, &name.namespace)))
    }

    /// Names of Services that only stand for others.
    pub fn aliases(&self) -> impl Iterator<Item = &Name> {
        self.aliases.keys().filter(|name| !self.services.contains_key(name))
    }

    /// Whether a workload's port takes plaintext. `service` and `version` speak for a workload that is not known here.
    pub fn peer_mode(&self, namespace: &str, workload: &str, service: &str, version: &str, port: u16) -> PeerMode {
        self.peers.mode(namespace, &self.serving(namespace, workload, service, version), port)
    }

    /// The policies of access that hold for a workload, in the order of their names; `service` and `version` as before.
    pub fn authorizations(&self, namespace: &str, workload: &str, service: &str, version: &str) -> Vec<&Authorization> {
        self.authorizations.of(namespace, &self.serving(namespace, workload, service, version))
    }

    /// With the keys that were fetched.
    #[must_use]
    pub fn with_keys(mut self, keys: &Arc<Keys>) -> Self {
        self.request_authentications.tell_keys(keys, &mut self.statuses);
        self.keys = keys.clone();
        self
    }

    pub fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    /// The JWKS that was fetched from there.
    pub fn keys_from(&self, uri: &str) -> Option<&str> {
        self.keys.0.get(uri)?.jwks.as_deref()
    }

    /// Whose tokens are taken at a workload, in the order of their issuers; `service` and `version` as before.
    pub fn jwt_rules(&self, namespace: &str, workload: &str, service: &str, version: &str) -> Vec<&JwtRule> {
        self.request_authentications.of(namespace, &self.serving(namespace, workload, service, version))
    }

    /// What is done about the traces of a workload's requests; `service` and `version` as before.
    pub fn tracing(&self, namespace: &str, workload: &str, service: &str, version: &str) -> Option<Tracing> {
        self.telemetries.of(namespace, &self.serving(namespace, workload, service, version))
    }

    pub fn trust_domain(&self) -> &str {
        &self.authorizations.trust_domain
    }

    /// Names of the services that a workload serves.
    fn serving<'a>(&'a self, namespace: &str, workload: &str, service: &'a str, version: &str) -> Vec<Cow<'a, str>> {
        match self.served.get(&Name::new(namespace, workload)) {
            Some(served) => served.iter().map(|name| Cow::Borrowed(name.as_str())).collect(),
            None => vec![Cow::Borrowed(service), Cow::Owned(names::version_service(service, version))],
        }
    }

    /// What is to be said about an object.
    pub fn conditions(&self, key: &Key) -> Vec<&Condition> {
        self.statuses.get(key).into_iter().flat_map(Status::all).collect()
    }

    /// The `status` of an object, in the form that its kind has.
    pub fn status(&self, key: &Key) -> serde_json::Value {
        self.statuses.get(key).map_or_else(|| serde_json::json!({}), Status::to_json)
    }

    /// Sentences about what is allowed but probably not meant, such as a backend that does not exist.
    pub fn warnings(&self, key: &Key) -> Vec<String> {
        self.conditions(key).into_iter().filter(|c| c.is_problem()).map(|c| c.message.clone()).collect()
    }
}

#[cfg(test)]
mod tests;
