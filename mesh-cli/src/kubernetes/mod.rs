//! A mesh in Kubernetes, as its user sees it: objects are read and written through the API server, with the user's own
//! rights, and the replicas of mesh-control are asked over port-forwarding, which needs the right to do that.

pub mod access;
mod batch;
pub mod check;
#[cfg(test)]
pub mod fake;
mod follow;
pub mod forward;
mod merge;
mod objects;
pub mod plane;
mod replicas;
pub mod resource;
pub mod roots;
#[cfg(test)]
mod tests;
pub mod webhooks;

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, NamespaceResourceScope};
use kube::{Client, Resource};
use mesh_common::resource::{GATEWAY_GROUP, Kind};
use tokio::sync::OnceCell;

pub use access::Access;

/// A connection to the API server.
#[derive(Clone)]
pub struct Cluster {
    pub client: Client,
    /// Name of the context in the kubeconfig.
    pub context: String,
    pub server: String,
    /// Where the kinds of Gateway API are in this cluster; asked for once.
    served: Arc<OnceCell<BTreeMap<Kind, ApiResource>>>,
}

impl Cluster {
    pub fn new(client: Client, context: String, server: String) -> Self {
        Self { client, context, server, served: Arc::default() }
    }

    /// Where a kind of the mesh is: in the newest version that this cluster serves, of those that are known here.
    pub async fn kind(&self, kind: Kind) -> ApiResource {
        if kind.group() != GATEWAY_GROUP {
            return resource::newest(kind);
        }
        let served = self.served.get_or_init(|| resource::served(&self.client)).await;
        served.get(&kind).cloned().unwrap_or_else(|| resource::newest(kind))
    }

    /// Objects of a kind that is told at run time; without a namespace, those of the cluster or of all namespaces.
    pub fn dynamic(&self, resource: &ApiResource, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, resource),
            None => Api::all_with(self.client.clone(), resource),
        }
    }

    pub fn all<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = ()>,
    {
        Api::all(self.client.clone())
    }

    pub fn namespaced<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }
}
