//! The work that only one replica may do: what others in the cluster read of the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::runtime::watcher;
use kube::{Client, Error};
use mesh_common::resource::{Key, Kind};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::events::{Events, transitions};
use super::lease::Election;
use super::presence::resource;
use super::{Source, Standing, View, retry, standing, trust};
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
        let mut refused = Refused::default();
        loop {
            let (now, snapshot) = (view.borrow_and_update().clone(), snapshots.borrow_and_update().clone());
            // A generation is spoken about only once the model knows it.
            let well =
                snapshot.revision < now.revision || self.write_round(&now, &snapshot, &events, &mut refused).await;
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
    async fn write_round(&self, view: &View, snapshot: &Snapshot, events: &Events, refused: &mut Refused) -> bool {
        let mut well = true;
        let mut apis: BTreeMap<Place, ApiResource> = BTreeMap::new();
        refused.begin(view);
        for (key, standing) in &view.written {
            let place = (key.kind, standing.api_version);
            if refused.is_hopeless(place) {
                continue;
            }
            let status = snapshot.model.status(key);
            let Some(fresh) = standing::wanted(key.kind, standing, &status, Timestamp::now()) else { continue };
            let resource = apis.entry(place).or_insert_with(|| resource(key.kind, standing.api_version));
            let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.namespace, resource);
            // Whoever wrote in between is not overwritten: the watch brings what they wrote, and then it is our turn again.
            let patch =
                json!({"metadata": {"resourceVersion": standing.resource_version.to_string()}, "status": &fresh});
            match api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => {
                    refused.taken(key, place);
                    events.tell(key, standing, transitions(standing, &fresh));
                }
                Err(Error::Api(status)) if status.code == 409 => {}
                Err(Error::Api(status)) if status.code == 404 => match refused.not_found(key, standing, Instant::now())
                {
                    NotFound::Again => well = false,
                    NotFound::Tell => tracing::warn!(
                        object = %key, api_version = standing.api_version,
                        "the API server knows no status of this kind in the version in which it has the objects, so what becomes \
                         of them is told nowhere but by `meshctl`; `meshctl check` says what to do"
                    ),
                    NotFound::Told => {}
                },
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
        let resource = resource(Kind::FaultInjection, Kind::FaultInjection.api_version());
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

/// Kind and version.
type Place = (Kind, &'static str);

/// Statuses of objects that the API server does not find. Mostly these are gone and the watch has not said so yet; but when an
/// object stays as it is, its kind has no status there.
#[derive(Default)]
struct Refused {
    /// The versions of objects that were not found, and since when.
    since: BTreeMap<Key, (u64, Instant)>,
    told: BTreeSet<Place>,
    /// Of those that were told, where this round has tried one. More of them would fare no better.
    tried: BTreeSet<Place>,
}

#[derive(Debug, PartialEq, Eq)]
enum NotFound {
    /// It is too early to tell.
    Again,
    Tell,
    Told,
}

impl Refused {
    fn begin(&mut self, view: &View) {
        self.tried.clear();
        self.since.retain(|key, _| view.written.contains_key(key));
    }

    fn is_hopeless(&self, place: Place) -> bool {
        self.tried.contains(&place)
    }

    fn taken(&mut self, key: &Key, place: Place) {
        self.since.remove(key);
        self.told.remove(&place);
    }

    fn not_found(&mut self, key: &Key, standing: &Standing, now: Instant) -> NotFound {
        let place = (key.kind, standing.api_version);
        if self.told.contains(&place) {
            self.tried.insert(place);
            return NotFound::Told;
        }
        let (version, since) = *self.since.entry(key.clone()).or_insert((standing.resource_version, now));
        if version != standing.resource_version {
            self.since.insert(key.clone(), (standing.resource_version, now));
            return NotFound::Again;
        }
        if now < since + LOOK {
            return NotFound::Again;
        }
        self.told.insert(place);
        self.tried.insert(place);
        NotFound::Tell
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::super::lease::tests::{Mood, Server};
    use super::*;
    use crate::model::{Addresses, Settings};

    /// Counts itself while it runs.
    struct Running(Arc<AtomicU32>);

    impl Drop for Running {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_that_is_not_found_again_and_again_is_told_once() {
        let of = |resource_version| Standing { api_version: "v1", resource_version, ..Standing::default() };
        let [a, b] = ["a", "b"].map(|name| Key::new(Kind::TcpRoute, "shop", name));
        let place = (Kind::TcpRoute, "v1");
        let (mut refused, start) = (Refused::default(), Instant::now());
        assert_eq!(refused.not_found(&a, &of(1), start), NotFound::Again);
        // It was changed, so it was there again.
        assert_eq!(refused.not_found(&a, &of(2), start + LOOK), NotFound::Again);
        assert_eq!(refused.not_found(&a, &of(2), start + LOOK), NotFound::Again);
        assert!(!refused.is_hopeless(place));
        assert_eq!(refused.not_found(&a, &of(2), start + LOOK * 2), NotFound::Tell);
        assert!(refused.is_hopeless(place) && !refused.is_hopeless((Kind::TcpRoute, "v2")));

        // The next round tries one of them.
        let written = [(b.clone(), of(1))].into();
        refused.begin(&View { revision: 1, written });
        assert!(!refused.is_hopeless(place) && refused.since.is_empty());
        assert_eq!(refused.not_found(&b, &of(1), start + LOOK * 3), NotFound::Told);
        assert!(refused.is_hopeless(place));
        // Another definition has come, and goes.
        refused.begin(&View::default());
        refused.taken(&b, place);
        assert_eq!(refused.not_found(&b, &of(1), start + LOOK * 4), NotFound::Again);
    }

    /// Writes the status of one TCPRoute that was read in this version, and gives the path that was written to.
    async fn written_to(api_version: &'static str) -> String {
        let asked: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
        let seen = asked.clone();
        let answer = move |request: http::Request<kube::client::Body>| {
            seen.lock().unwrap().push(request.uri().path().to_owned());
            let route = json!({"apiVersion": api_version, "kind": "TCPRoute", "metadata": {"name": "r"}});
            let response = http::Response::new(kube::client::Body::from(route.to_string().into_bytes()));
            std::future::ready(Ok::<_, std::convert::Infallible>(response))
        };
        let client = Client::new(tower::service_fn(answer), "default");
        let now = Timestamp::now();
        let ca = Arc::new(Ca::create("mesh.local", now).unwrap().0);
        let leader = Leader { client: client.clone(), ca, me: "a".to_owned() };
        let parents = json!([{"group": "", "kind": "Service", "name": "web"}]);
        let standing = Standing { api_version, refused: vec!["no".to_owned()], parents, ..Standing::default() };
        let written = [(Key::new(Kind::TcpRoute, "shop", "r"), standing)].into();
        let objects = Objects {
            revision: 1,
            objects: BTreeMap::new(),
            committed_at: std::time::Instant::now(),
            seen: BTreeMap::new(),
            accounts: None,
        };
        let settings = Settings { trust_domain: "mesh.local".to_owned() };
        let snapshot = crate::snapshot::first(&objects, &Arc::default(), &settings, &Addresses::default());
        let (events, _writing) = Events::new(client, "a".to_owned());
        let view = View { revision: 1, written };
        assert!(leader.write_round(&view, &snapshot, &events, &mut Refused::default()).await);
        let asked = asked.lock().unwrap();
        asked.join(" ")
    }

    #[tokio::test]
    async fn a_status_is_written_in_the_version_in_which_the_object_was_read() {
        for version in Kind::TcpRoute.api_versions() {
            let path = format!("/apis/{version}/namespaces/shop/tcproutes/r/status");
            assert_eq!(written_to(version).await, path);
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
