//! The work that only one replica may do: what others in the cluster read of the mesh.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, Preconditions};
use kube::runtime::watcher;
use kube::{Client, Error};
use mesh_common::resource::Kind;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::events::{Events, transitions};
use super::lease::Election;
use super::{Source, View, retry, standing, trust};
use crate::ca::Ca;
use crate::housekeeping::has_expired;
use crate::objects::Objects;
use crate::snapshot::Snapshot;

const RENEW: Duration = Duration::from_secs(4);
/// How often a replica that doesn't lead looks whether it may.
const STAND_BY: Duration = Duration::from_secs(1);
/// How often what nobody tells us about is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// A status that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Does the leader's work while this replica leads, until `stopping`; then it gives the lease back.
pub async fn lead(
    client: Client,
    ca: Arc<Ca>,
    source: Source,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    stopping: watch::Receiver<bool>,
) {
    let me = std::env::var("POD_NAME").unwrap_or_else(|_| format!("mesh-control-{:016x}", fastrand::u64(..)));
    let election = Election::new(client.clone(), me.clone());
    let begin = || {
        let leader = Leader { client: client.clone(), ca: ca.clone(), me: me.clone() };
        tokio::spawn(leader.work(source.clone(), snapshots.clone()))
    };
    stand(election, stopping, begin).await;
}

/// Stands for election until `stopping`, and does the work that `begin` begins whenever it is elected.
async fn stand(mut election: Election, mut stopping: watch::Receiver<bool>, begin: impl Fn() -> JoinHandle<()>) {
    let mut work: Option<JoinHandle<()>> = None;
    loop {
        // A renewal that hangs must not keep the work going, however late it was begun.
        let working = work.is_some();
        let at_most =
            |election: &Election, time: Duration| election.left().filter(|_| working).unwrap_or(time).min(time);
        let leads = tokio::time::timeout(at_most(&election, RENEW), election.run()).await.unwrap_or(false);
        match (leads, work.as_ref().is_some_and(|work| !work.is_finished())) {
            (true, false) => {
                tracing::info!("this replica leads");
                work = Some(begin());
            }
            (false, true) => {
                tracing::info!("this replica leads no more");
                work.take().into_iter().for_each(|work| work.abort());
            }
            _ => {}
        }
        // Whoever sent it has ended as well, when there is no sender any more.
        let stops = stopping.wait_for(|it| *it);
        let pause = at_most(&election, if leads { RENEW } else { STAND_BY });
        if tokio::time::timeout(pause, stops).await.is_ok() {
            break;
        }
    }
    if let Some(work) = work {
        work.abort();
        let _ = work.await;
    }
    match election.release().await {
        Ok(()) => tracing::debug!("the lease is nobody's, if it was ours"),
        Err(error) => tracing::warn!(%error, "cannot give the lease back; another replica takes it when it is old"),
    }
}

#[derive(Clone)]
struct Leader {
    client: Client,
    ca: Arc<Ca>,
    /// The replica's name.
    me: String,
}

impl Leader {
    async fn work(self, source: Source, snapshots: watch::Receiver<Arc<Snapshot>>) {
        let Source { objects, view } = source;
        let (events, writing) = Events::new(self.client.clone(), self.me.clone());
        let statuses = self.write_statuses(view, snapshots, events);
        tokio::join!(self.spread_trust(), statuses, writing, self.end_faults(objects));
    }

    /// At once in a new namespace, as pods there wait for it.
    async fn spread_trust(&self) {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let mut namespaces = retry::events(namespaces).boxed();
        let root = self.ca.roots_pem();
        loop {
            if let Err(error) = trust::publish(&self.client, &root).await {
                tracing::warn!(%error, "cannot look after the trust bundles");
            }
            if let Err(error) = trust::certify(&self.client, &root).await {
                tracing::warn!(%error, "cannot look after the webhooks' certificates");
            }
            let look = Instant::now() + LOOK;
            // Of many namespaces that come together, as at the first listing, one round is enough.
            while let Ok(Some(event)) = tokio::time::timeout_at(look, namespaces.next()).await {
                if matches!(event, Ok(watcher::Event::Apply(_) | watcher::Event::InitDone)) {
                    break;
                }
            }
        }
    }

    async fn write_statuses(
        &self,
        mut view: watch::Receiver<Arc<View>>,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        events: Events,
    ) {
        loop {
            let (now, snapshot) = (view.borrow_and_update().clone(), snapshots.borrow_and_update().clone());
            // A generation is spoken about only once the model knows it.
            let well = snapshot.revision < now.revision || self.write_round(&now, &snapshot, &events).await;
            let retry = async {
                match well {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(RETRY.mul_f64(1.0 + fastrand::f64())).await,
                }
            };
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                changed = snapshots.changed() => if changed.is_err() { return },
                () = retry => {}
            }
        }
    }

    /// False: something could not be written.
    async fn write_round(&self, view: &View, snapshot: &Snapshot, events: &Events) -> bool {
        let mut well = true;
        let mut apis: BTreeMap<Kind, ApiResource> = BTreeMap::new();
        for (key, standing) in &view.written {
            let status = snapshot.model.status(key);
            let Some(fresh) = standing::wanted(key.kind, standing, &status, Timestamp::now()) else { continue };
            let resource = apis.entry(key.kind).or_insert_with(|| resource(key.kind));
            let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.namespace, resource);
            // Whoever wrote in between is not overwritten: the watch brings what they wrote, and then it is our turn again.
            let patch =
                json!({"metadata": {"resourceVersion": standing.resource_version.to_string()}, "status": &fresh});
            match api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => events.tell(key, standing, transitions(standing, &fresh)),
                Err(Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => {
                    tracing::warn!(object = %key, %error, "cannot write its status");
                    well = false;
                }
            }
        }
        well
    }

    /// Proxies end faults by themselves; this is for those who read the objects.
    async fn end_faults(&self, objects: watch::Receiver<Arc<Objects>>) {
        let resource = resource(Kind::FaultInjection);
        loop {
            tokio::time::sleep(RETRY).await;
            let (now, current) = (Timestamp::now(), objects.borrow().clone());
            let over =
                current.select(Some(Kind::FaultInjection), None, None).filter(|(_, fault)| has_expired(fault, now));
            for (key, fault) in over {
                let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.namespace, &resource);
                let metadata = fault.metadata();
                // One that was changed in between may have more time.
                let unchanged =
                    Preconditions { uid: metadata.uid.clone(), resource_version: metadata.resource_version.clone() };
                match api
                    .delete(&key.name, &DeleteParams { preconditions: Some(unchanged), ..Default::default() })
                    .await
                {
                    Ok(_) => tracing::info!(object = %key, "removed, its time is over"),
                    Err(Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                    Err(error) => tracing::warn!(object = %key, %error, "cannot remove it, though its time is over"),
                }
            }
        }
    }
}

fn resource(kind: Kind) -> ApiResource {
    let api_version = kind.served_version();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind.as_str()), kind.plural())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::super::lease::tests::{Mood, Server};
    use super::*;

    /// Counts itself while it runs.
    struct Running(Arc<AtomicU32>);

    impl Drop for Running {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Else its status would never be written, and nobody would be told.
    #[test]
    fn kinds_are_written_in_a_version_that_is_served() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/gateway-api");
        for kind in [Kind::HttpRoute, Kind::GrpcRoute, Kind::TcpRoute, Kind::TlsRoute, Kind::UdpRoute] {
            let resource = resource(kind);
            let file = folder.join(format!("gateway.networking.k8s.io_{}.yaml", resource.plural));
            let text = std::fs::read_to_string(file).unwrap();
            let (_, of_version) = text.split_once(&format!("\n    name: {}\n", resource.version)).unwrap();
            let served = of_version.lines().find(|line| line.starts_with("    served: ")).unwrap();
            assert_eq!(served, "    served: true", "{kind} {}", resource.version);
        }
    }

    /// A replica that counts how often it does the work.
    fn replica(server: &Server, name: &str) -> (watch::Sender<bool>, Arc<AtomicU32>, JoinHandle<()>) {
        let (stop, stopping) = watch::channel(false);
        let running = Arc::new(AtomicU32::new(0));
        let counter = running.clone();
        let begin = move || {
            counter.fetch_add(1, Ordering::SeqCst);
            let running = Running(counter.clone());
            tokio::spawn(async move {
                let _running = running;
                std::future::pending().await
            })
        };
        let task = tokio::spawn(stand(Election::new(server.client(), name.to_owned()), stopping, begin));
        (stop, running, task)
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_stops_before_another_may_begin_however_the_api_server_fails() {
        let server = Server::default();
        let (_stop, running, _task) = replica(&server, "a");
        let begun = Instant::now();
        let at = |millis: u64| tokio::time::sleep_until(begun + Duration::from_millis(millis));
        at(100).await;
        assert_eq!(running.load(Ordering::SeqCst), 1);
        server.becomes(Mood::Refuses);
        at(9_000).await;
        server.becomes(Mood::Hangs);
        at(9_900).await;
        assert_eq!(running.load(Ordering::SeqCst), 1);
        at(10_100).await;
        assert_eq!(running.load(Ordering::SeqCst), 0);
        server.becomes(Mood::Well);
        at(20_000).await;
        assert_eq!(running.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_ends_hands_over_in_about_a_second() {
        let server = Server::default();
        let (stop, first, ended) = replica(&server, "a");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (_stop, second, _task) = replica(&server, "b");
        tokio::time::sleep(Duration::from_secs(20)).await;
        let count = |of: &AtomicU32| of.load(Ordering::SeqCst);
        assert_eq!((count(&first), count(&second), server.holder().as_deref()), (1, 0, Some("a")));

        let begun = Instant::now();
        stop.send_replace(true);
        ended.await.unwrap();
        // The work ended before the lease was given back.
        assert_eq!((count(&first), server.holder()), (0, None));
        while count(&second) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(begun.elapsed() <= STAND_BY + Duration::from_millis(100), "{:?}", begun.elapsed());
        assert_eq!(server.holder().as_deref(), Some("b"));
    }
}
