//! What the objects mean together: services, workloads, routes, policies. Immutable and pure: equal objects make an equal
//! model, and nothing here knows who asks or which protocol the answer takes.
//!
//! In: objects. Out: a [`Model`], with conditions for what can't be as it was asked.

mod condition;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::identity::Identity;
use mesh_common::resource::{Key, Object};

pub use condition::Condition;

/// What is fixed when the control plane starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub trust_domain: String,
}

#[derive(Debug)]
pub struct Model {
    services: BTreeMap<Name, Service>,
    workloads: BTreeMap<Name, Arc<Workload>>,
    conditions: BTreeMap<Key, Vec<Condition>>,
}

/// Namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    pub namespace: String,
    pub name: String,
}

#[derive(Debug)]
pub struct Service {
    pub name: Name,
    pub fqdn: String,
    /// The service that this is a version of, such as `reviews` of `reviews-v2`.
    pub version_of: Option<String>,
    pub virtual_addresses: Vec<IpAddr>,
    pub ports: BTreeMap<u16, Port>,
    pub workloads: Vec<Arc<Workload>>,
}

#[derive(Debug)]
pub struct Port {}

#[derive(Debug, PartialEq, Eq)]
pub struct Workload {
    pub name: Name,
    pub service: String,
    pub version: String,
    pub addresses: Vec<IpAddr>,
    /// `None` for one without a proxy.
    pub identity: Option<Identity>,
    pub healthy: bool,
    pub registered: bool,
}

/// `previous` keeps virtual addresses where they were.
pub fn build(_objects: &BTreeMap<Key, Arc<Object>>, _settings: &Settings, _previous: Option<&Model>) -> Model {
    Model { services: BTreeMap::new(), workloads: BTreeMap::new(), conditions: BTreeMap::new() }
}

impl Model {
    /// Services in the order of their names, with those made for versions.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.get(&Name { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    pub fn workload(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(&Name { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// What is to be said about an object.
    pub fn conditions(&self, key: &Key) -> &[Condition] {
        self.conditions.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// The `status` of an object, in the form that its kind has.
    pub fn status(&self, _key: &Key) -> serde_json::Value {
        serde_json::json!({})
    }

    /// Sentences about what is allowed but probably not meant, such as a backend that does not exist.
    pub fn warnings(&self, key: &Key) -> Vec<String> {
        self.conditions(key).iter().filter(|c| c.is_problem()).map(|c| c.message.clone()).collect()
    }
}
