//! The types of resource, and what each refers to.

use std::sync::{Arc, Weak};

use mesh_common::names;

use super::{Map, Snapshot};
use crate::config::{
    Action, Cluster, Discovery, Endpoints, FilterChain, Listener, Name, NetworkFilter, RouteSource, RouteTable,
    WeightedClusters,
};

/// The xDS types that the proxy subscribes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    Cluster,
    Endpoints,
    Listener,
    Routes,
    Name,
}

impl Type {
    /// In the order of make before break.
    pub const ALL: [Self; 5] = [Self::Cluster, Self::Endpoints, Self::Listener, Self::Routes, Self::Name];

    pub fn url(self) -> &'static str {
        match self {
            Self::Cluster => names::TYPE_CLUSTER,
            Self::Endpoints => names::TYPE_ENDPOINTS,
            Self::Listener => names::TYPE_LISTENER,
            Self::Routes => names::TYPE_ROUTE,
            Self::Name => names::TYPE_NAME,
        }
    }

    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.url() == url)
    }

    /// As xDS users abbreviate it; for logs and metrics.
    pub fn short(self) -> &'static str {
        match self {
            Self::Cluster => "CDS",
            Self::Endpoints => "EDS",
            Self::Listener => "LDS",
            Self::Routes => "RDS",
            Self::Name => "NAME",
        }
    }
}

/// One resource among all.
pub(super) type Key = (Type, Arc<str>);

/// A decoded resource.
#[derive(Clone, Debug)]
pub enum Resource {
    Listener(Arc<Listener>),
    Routes(Arc<RouteTable>),
    Cluster(Arc<Cluster>),
    Endpoints(Arc<Endpoints>),
    Name(String, Arc<Name>),
}

impl Resource {
    pub fn name(&self) -> &str {
        match self {
            Self::Listener(it) => &it.name,
            Self::Routes(it) => &it.name,
            Self::Cluster(it) => &it.name,
            Self::Endpoints(it) => &it.name,
            Self::Name(name, _) => name,
        }
    }

    pub fn ty(&self) -> Type {
        match self {
            Self::Listener(_) => Type::Listener,
            Self::Routes(_) => Type::Routes,
            Self::Cluster(_) => Type::Cluster,
            Self::Endpoints(_) => Type::Endpoints,
            Self::Name(..) => Type::Name,
        }
    }

    /// What has to be there for this to work.
    pub(super) fn references(&self) -> Vec<Key> {
        let mut found = Vec::new();
        match self {
            Self::Listener(it) => {
                it.chains.iter().chain(&it.default_chain).for_each(|chain| of_chain(chain, &mut found));
                it.udp.iter().for_each(|udp| of_choices(&udp.clusters, &mut found));
            }
            Self::Routes(it) => of_table(it, &mut found),
            Self::Cluster(it) => {
                if let Discovery::Eds(name) = &it.discovery {
                    found.push((Type::Endpoints, name.as_str().into()));
                }
            }
            Self::Endpoints(_) | Self::Name(..) => {}
        }
        found
    }

    pub(super) fn holder(&self) -> Option<Holder> {
        match self {
            Self::Listener(it) => Some(Holder::Listener(Arc::downgrade(it))),
            Self::Routes(it) => Some(Holder::Routes(Arc::downgrade(it))),
            Self::Cluster(it) => Some(Holder::Cluster(Arc::downgrade(it))),
            Self::Endpoints(_) | Self::Name(..) => None,
        }
    }
}

/// Tells whether anybody, the snapshot or a request, still holds a resource.
#[derive(Debug)]
pub(super) enum Holder {
    Listener(Weak<Listener>),
    Routes(Weak<RouteTable>),
    Cluster(Weak<Cluster>),
}

impl Holder {
    pub(super) fn alive(&self) -> bool {
        match self {
            Self::Listener(it) => it.strong_count() > 0,
            Self::Routes(it) => it.strong_count() > 0,
            Self::Cluster(it) => it.strong_count() > 0,
        }
    }
}

fn of_chain(chain: &FilterChain, found: &mut Vec<Key>) {
    match &chain.filter {
        NetworkFilter::Http(manager) => match &manager.routes {
            RouteSource::Rds(name) => found.push((Type::Routes, name.as_str().into())),
            RouteSource::Inline(table) => of_table(table, found),
        },
        NetworkFilter::Tcp(proxy) => of_choices(&proxy.clusters, found),
    }
}

fn of_table(table: &RouteTable, found: &mut Vec<Key>) {
    for route in table.virtual_hosts.iter().flat_map(|host| &host.routes) {
        if let Action::Forward(forward) = &route.action {
            of_choices(&forward.clusters, found);
            found.extend(forward.mirrors.iter().map(|mirror| (Type::Cluster, mirror.cluster.clone())));
        }
    }
}

fn of_choices(clusters: &WeightedClusters, found: &mut Vec<Key>) {
    found.extend(clusters.choices().iter().map(|choice| (Type::Cluster, choice.cluster.clone())));
}

/// A resource type that a snapshot holds in a map of its own.
pub(super) trait Held: Sized {
    const TYPE: Type;
    fn map(snapshot: &Snapshot) -> &Map<Self>;
}

impl Held for Listener {
    const TYPE: Type = Type::Listener;
    fn map(snapshot: &Snapshot) -> &Map<Self> {
        &snapshot.listeners
    }
}

impl Held for RouteTable {
    const TYPE: Type = Type::Routes;
    fn map(snapshot: &Snapshot) -> &Map<Self> {
        &snapshot.routes
    }
}

impl Held for Cluster {
    const TYPE: Type = Type::Cluster;
    fn map(snapshot: &Snapshot) -> &Map<Self> {
        &snapshot.clusters
    }
}

impl Held for Endpoints {
    const TYPE: Type = Type::Endpoints;
    fn map(snapshot: &Snapshot) -> &Map<Self> {
        &snapshot.endpoints
    }
}

impl Held for Name {
    const TYPE: Type = Type::Name;
    fn map(snapshot: &Snapshot) -> &Map<Self> {
        &snapshot.names
    }
}
