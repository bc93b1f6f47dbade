//! What the data path reads: the xDS resources in force, swapped as a whole.
//!
//! In: decoded resources from [`crate::xds`]. Out: `Arc`s of them by name, and the names that the application asks for.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use crate::config::{Cluster, Endpoints, Listener, Name, RouteTable};

/// The answer to "what is the resource of this name?".
#[derive(Clone, Debug)]
pub enum Found<T> {
    Yes(T),
    /// The control plane says that there is none.
    Absent,
    /// No answer in time, no control plane, or a resource that had to be refused.
    Unknown,
}

/// A resource with its name, as it is put into a snapshot.
#[derive(Clone, Debug)]
pub enum Resource {
    Listener(Arc<Listener>),
    Routes(Arc<RouteTable>),
    Cluster(Arc<Cluster>),
    Endpoints(Arc<Endpoints>),
    Name(String, Arc<Name>),
}

/// All resources that were in force at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    listeners: HashMap<Arc<str>, Arc<Listener>>,
    routes: HashMap<Arc<str>, Arc<RouteTable>>,
    clusters: HashMap<Arc<str>, Arc<Cluster>>,
    endpoints: HashMap<Arc<str>, Arc<Endpoints>>,
    names: HashMap<Arc<str>, Arc<Name>>,
}

impl Snapshot {
    pub fn listener(&self, name: &str) -> Option<&Arc<Listener>> {
        self.listeners.get(name)
    }

    pub fn routes(&self, name: &str) -> Option<&Arc<RouteTable>> {
        self.routes.get(name)
    }

    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.get(name)
    }

    pub fn endpoints(&self, name: &str) -> Option<&Arc<Endpoints>> {
        self.endpoints.get(name)
    }

    pub fn name(&self, question: &str) -> Option<&Arc<Name>> {
        self.names.get(question)
    }

    fn insert(&mut self, resource: Resource) {
        match resource {
            Resource::Listener(it) => drop(self.listeners.insert(it.name.as_str().into(), it)),
            Resource::Routes(it) => drop(self.routes.insert(it.name.as_str().into(), it)),
            Resource::Cluster(it) => drop(self.clusters.insert(it.name.as_str().into(), it)),
            Resource::Endpoints(it) => drop(self.endpoints.insert(it.name.as_str().into(), it)),
            Resource::Name(name, it) => drop(self.names.insert(name.into(), it)),
        }
    }
}

/// The current [`Snapshot`], and the way to ask for what is not in it yet.
#[derive(Clone, Debug)]
pub struct Store {
    current: Arc<ArcSwap<Snapshot>>,
}

impl Store {
    /// A store that holds these resources and has no control plane: everything else is unknown.
    pub fn of(resources: impl IntoIterator<Item = Resource>) -> Self {
        let mut snapshot = Snapshot::default();
        resources.into_iter().for_each(|r| snapshot.insert(r));
        Self { current: Arc::new(ArcSwap::from_pointee(snapshot)) }
    }

    /// The snapshot in force now. Takes no lock.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    pub async fn listener(&self, name: &str) -> Found<Arc<Listener>> {
        self.load().listener(name).map_or(Found::Unknown, |it| Found::Yes(it.clone()))
    }

    pub async fn routes(&self, name: &str) -> Found<Arc<RouteTable>> {
        self.load().routes(name).map_or(Found::Unknown, |it| Found::Yes(it.clone()))
    }

    pub async fn cluster(&self, name: &str) -> Found<Arc<Cluster>> {
        self.load().cluster(name).map_or(Found::Unknown, |it| Found::Yes(it.clone()))
    }

    pub async fn endpoints(&self, name: &str) -> Found<Arc<Endpoints>> {
        self.load().endpoints(name).map_or(Found::Unknown, |it| Found::Yes(it.clone()))
    }

    pub async fn name(&self, question: &str) -> Found<Arc<Name>> {
        self.load().name(question).map_or(Found::Unknown, |it| Found::Yes(it.clone()))
    }
}
