//! The objects of a cluster, as they are now.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, PartialObjectMeta};
use mesh_common::resource::Kind;
use tokio::sync::{mpsc, watch};

use super::convert;
use super::tables::{Change, Tables, View, Watched};
use super::watch::{builtin, custom};
use crate::objects::Objects;

/// Changes that are waiting to be looked at.
const QUEUE: usize = 1024;
/// Changes that come within this time after others are looked at together.
const TOGETHER: Duration = Duration::from_millis(10);

/// What the API server has, as far as it matters to the mesh. A clone is the same.
#[derive(Clone)]
pub struct Source {
    pub objects: watch::Receiver<Arc<Objects>>,
    pub view: watch::Receiver<Arc<View>>,
}

impl Source {
    /// Watches from now on, for as long as the process lives; waits until every kind has been listed once. A kind that is
    /// not installed counts as listed, and is watched once it is.
    pub async fn start(client: &Client) -> Self {
        let (changes, mut received) = mpsc::channel(QUEUE);
        tokio::spawn(builtin(Api::<Pod>::all(client.clone()), Watched::Pod, convert::pod, changes.clone()));
        tokio::spawn(builtin(Api::<Node>::all(client.clone()), Watched::Node, convert::node, changes.clone()));
        let slices = Api::<EndpointSlice>::all(client.clone());
        tokio::spawn(builtin(slices, Watched::EndpointSlice, convert::slice, changes.clone()));
        let services = Api::<Service>::all(client.clone());
        tokio::spawn(builtin(services, Watched::Kind(Kind::Service), convert::service, changes.clone()));
        // Nothing waits for them: they only tell of names that are written wrongly.
        let accounts = Api::<PartialObjectMeta<ServiceAccount>>::all(client.clone());
        tokio::spawn(builtin(accounts, Watched::ServiceAccount, |_| None, changes.clone()));
        let mut kinds = vec![Watched::Pod, Watched::Node, Watched::EndpointSlice, Watched::Kind(Kind::Service)];
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Service) {
            tokio::spawn(custom(client.clone(), kind, changes.clone()));
            kinds.push(Watched::Kind(kind));
        }

        let mut tables = Tables::default();
        while !tables.complete(&kinds) {
            let Some((watched, change)) = received.recv().await else { break };
            tables.apply(watched, change);
        }
        let (objects, objects_seen) = watch::channel(Arc::new(tables.objects()));
        let (view, view_seen) = watch::channel(Arc::new(tables.view()));
        tracing::info!(objects = objects_seen.borrow().objects.len(), "the API server's objects are all here");
        tokio::spawn(keep(tables, received, objects, view));
        Self { objects: objects_seen, view: view_seen }
    }
}

async fn keep(
    mut tables: Tables,
    mut changes: mpsc::Receiver<(Watched, Change)>,
    objects: watch::Sender<Arc<Objects>>,
    view: watch::Sender<Arc<View>>,
) {
    while let Some((watched, change)) = changes.recv().await {
        tables.apply(watched, change);
        while let Ok((watched, change)) = changes.try_recv() {
            tables.apply(watched, change);
        }
        let next = tables.objects();
        view.send_replace(Arc::new(tables.view()));
        objects.send_replace(Arc::new(next));
        tokio::time::sleep(TOGETHER).await;
    }
}
