//! What the data path reads: the xDS resources in force, swapped as a whole.
//!
//! In: decoded resources from [`crate::xds`]. Out: `Arc`s of them by name, and the names that the application asks for,
//! which become subscriptions. A resource that is here is found without a lock; only the first question for a name, and
//! a question whose answer is "there is none", look at the table of subscriptions.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use mesh_common::names::LISTENER_INBOUND;
use tokio::sync::{Notify, watch};

use crate::config::{Cluster, Endpoints, Listener, Name, RouteTable};

mod interest;
mod link;
mod resource;
mod rounds;

pub(crate) use interest::Subscriptions;
use interest::{Asked, Interest};
use link::{Link, Moment};
use resource::{Held, Key};
pub use resource::{Resource, Type};

/// How long a question waits for the control plane.
const WAIT: Duration = Duration::from_secs(5);
/// The same for a name: there is somebody else to ask, and an application that waits for it.
const NAME_WAIT: Duration = Duration::from_secs(1);

/// The answer to "what is the resource of this name?".
#[derive(Clone, Debug)]
pub enum Found<T> {
    Yes(T),
    /// The control plane says that there is none.
    Absent,
    /// No answer in time, no control plane, or a resource that had to be refused.
    Unknown,
}

/// All resources that were in force at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    clock: Arc<Clock>,
    listeners: Map<Listener>,
    routes: Map<RouteTable>,
    clusters: Map<Cluster>,
    endpoints: Map<Endpoints>,
    names: Map<Name>,
    /// The version of the whole configuration that brought the listener for what comes in.
    inbound_version: Option<Arc<str>>,
}

/// Behind an `Arc` for each type, so that a change of one type copies no other.
type Map<T> = Arc<HashMap<Arc<str>, Entry<T>>>;

#[derive(Debug)]
struct Entry<T> {
    value: Arc<T>,
    used: Arc<Used>,
}

// Not derived, because that would ask for `T: Clone`.
impl<T> Clone for Entry<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), used: self.used.clone() }
    }
}

/// Seconds since the store was made, kept by [`Store::sweep`]: coarse, and free to read.
#[derive(Debug, Default)]
struct Clock(AtomicU32);

impl Clock {
    fn now(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// When something was last used, by [`Clock`].
#[derive(Debug, Default)]
struct Used(AtomicU32);

impl Used {
    fn touch(&self, now: u32) {
        // Read first: a cache line that nobody writes stays shared among the workers.
        if self.0.load(Ordering::Relaxed) != now {
            self.0.store(now, Ordering::Relaxed);
        }
    }

    fn last(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Snapshot {
    pub fn listener(&self, name: &str) -> Option<&Arc<Listener>> {
        self.get(name)
    }

    /// The control plane's name for the configuration as it was when it last changed the listener for what comes in; empty if
    /// it gives none.
    pub fn inbound_version(&self) -> &str {
        self.inbound_version.as_deref().unwrap_or_default()
    }

    pub fn routes(&self, name: &str) -> Option<&Arc<RouteTable>> {
        self.get(name)
    }

    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.get(name)
    }

    pub fn endpoints(&self, name: &str) -> Option<&Arc<Endpoints>> {
        self.get(name)
    }

    /// For what is done by the clock and not for a request: it does not count as use.
    pub(crate) fn peek_cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.get(name).map(|entry| &entry.value)
    }

    pub(crate) fn peek_endpoints(&self, name: &str) -> Option<&Arc<Endpoints>> {
        self.endpoints.get(name).map(|entry| &entry.value)
    }

    pub fn name(&self, question: &str) -> Option<&Arc<Name>> {
        self.get(question)
    }

    /// Whether an endpoint with a proxy of the mesh has this address. Looks at all of them.
    pub fn is_workload(&self, ip: IpAddr) -> bool {
        let mut endpoints = self.endpoints.values().flat_map(|entry| &entry.value.endpoints);
        endpoints.any(|endpoint| endpoint.mesh && endpoint.address.ip() == ip)
    }

    /// Names of all resources of a type, in no order.
    pub fn held(&self, ty: Type) -> Vec<Arc<str>> {
        match ty {
            Type::Listener => self.listeners.keys().cloned().collect(),
            Type::Routes => self.routes.keys().cloned().collect(),
            Type::Cluster => self.clusters.keys().cloned().collect(),
            Type::Endpoints => self.endpoints.keys().cloned().collect(),
            Type::Name => self.names.keys().cloned().collect(),
        }
    }

    fn get<T: Held>(&self, name: &str) -> Option<&Arc<T>> {
        let entry = T::map(self).get(name)?;
        entry.used.touch(self.clock.now());
        Some(&entry.value)
    }

    fn insert(&mut self, name: Arc<str>, resource: Resource, used: Arc<Used>) {
        match resource {
            Resource::Listener(value) => drop(Arc::make_mut(&mut self.listeners).insert(name, Entry { value, used })),
            Resource::Routes(value) => drop(Arc::make_mut(&mut self.routes).insert(name, Entry { value, used })),
            Resource::Cluster(value) => drop(Arc::make_mut(&mut self.clusters).insert(name, Entry { value, used })),
            Resource::Endpoints(value) => drop(Arc::make_mut(&mut self.endpoints).insert(name, Entry { value, used })),
            Resource::Name(_, value) => drop(Arc::make_mut(&mut self.names).insert(name, Entry { value, used })),
        }
    }

    fn remove(&mut self, ty: Type, name: &str) {
        match ty {
            Type::Listener => forget(&mut self.listeners, name),
            Type::Routes => forget(&mut self.routes, name),
            Type::Cluster => forget(&mut self.clusters, name),
            Type::Endpoints => forget(&mut self.endpoints, name),
            Type::Name => forget(&mut self.names, name),
        }
    }
}

/// Most names that go were never here, and need no copy of the map.
fn forget<T>(map: &mut Map<T>, name: &str) {
    if map.contains_key(name) {
        Arc::make_mut(map).remove(name);
    }
}

/// The current [`Snapshot`], and the way to ask for what is not in it yet. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    current: ArcSwap<Snapshot>,
    clock: Arc<Clock>,
    started: Instant,
    interest: Mutex<Interest>,
    /// Told when there are subscriptions to send.
    wanted: Notify,
    /// Told when there are new listeners.
    listeners: watch::Sender<()>,
}

/// What one response of the control plane changes, of one type.
#[derive(Debug, Default)]
pub(crate) struct Update {
    /// Of the whole configuration, by the control plane.
    pub(crate) version: String,
    /// With their versions.
    pub(crate) resources: Vec<(String, Resource)>,
    pub(crate) removed: Vec<String>,
    /// Names of resources that could not be decoded: whoever waits for one that was never there has its answer.
    pub(crate) refused: Vec<String>,
}

impl Store {
    /// An empty store, whose questions wait for a control plane.
    pub fn new(now: Instant) -> Self {
        Self::with(Snapshot::default(), Interest::new(Link::awaited()), now)
    }

    /// A store that holds these resources and has no control plane: everything else is unknown.
    pub fn of(resources: impl IntoIterator<Item = Resource>) -> Self {
        let mut snapshot = Snapshot::default();
        for resource in resources {
            snapshot.insert(resource.name().into(), resource, Arc::default());
        }
        Self::with(snapshot, Interest::new(Link::none()), Instant::now())
    }

    fn with(snapshot: Snapshot, interest: Interest, started: Instant) -> Self {
        let clock = snapshot.clock.clone();
        let current = ArcSwap::from_pointee(snapshot);
        let shared = Shared {
            current,
            clock,
            started,
            interest: Mutex::new(interest),
            wanted: Notify::new(),
            listeners: watch::Sender::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The snapshot in force now. Takes no lock.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.shared.current.load()
    }

    /// The listener for a destination address, `ip:port`, or `inbound`.
    pub async fn listener(&self, name: &str) -> Found<Arc<Listener>> {
        self.find(name, WAIT).await
    }

    pub async fn routes(&self, name: &str) -> Found<Arc<RouteTable>> {
        self.find(name, WAIT).await
    }

    pub async fn cluster(&self, name: &str) -> Found<Arc<Cluster>> {
        self.find(name, WAIT).await
    }

    pub async fn endpoints(&self, name: &str) -> Found<Arc<Endpoints>> {
        self.find(name, WAIT).await
    }

    /// What a DNS name means in the mesh; lower case, no trailing dot.
    pub async fn name(&self, question: &str) -> Found<Arc<Name>> {
        self.find(question, NAME_WAIT).await
    }

    async fn find<T: Held>(&self, name: &str, wait: Duration) -> Found<Arc<T>> {
        if let Some(value) = self.load().get(name) {
            return Found::Yes(Arc::clone(value));
        }
        let deadline = tokio::time::Instant::now() + wait;
        // Of the first question: what was heard since then shows that the control plane is alive.
        let mut asked = None;
        loop {
            let answer = match self.ask(T::TYPE, name) {
                Asked::Present => None,
                Asked::Absent => return Found::Absent,
                Asked::Unknown => return Found::Unknown,
                Asked::Wait(answer, moment) => {
                    asked.get_or_insert(moment);
                    Some(answer)
                }
            };
            if let Some(answer) = answer
                && tokio::time::timeout_at(deadline, answer).await.is_err()
            {
                asked.into_iter().for_each(|asked| self.unanswered(asked));
                return Found::Unknown;
            }
            if let Some(value) = self.load().get(name) {
                return Found::Yes(Arc::clone(value));
            }
            if tokio::time::Instant::now() >= deadline {
                return Found::Unknown;
            }
        }
    }

    fn ask(&self, ty: Type, name: &str) -> Asked {
        let mut interest = self.interest();
        let (asked, evicted) = interest.ask(ty, name, self.shared.clock.now());
        self.drop_from_snapshot(&evicted);
        let wake = interest.has_changes();
        drop(interest);
        if wake {
            self.shared.wanted.notify_one();
        }
        asked
    }

    /// Puts a response in force, and answers those who waited for it. Subscribes to what the new resources refer to, so
    /// that the first request finds it.
    pub(crate) fn apply(&self, ty: Type, update: Update) {
        let mut interest = self.interest();
        let mut next = Snapshot::clone(&self.shared.current.load());
        let now = self.shared.clock.now();
        let mut answered = Vec::new();
        for (version, mut resource) in update.resources {
            // One that nobody wants any more, or that was never asked for.
            let Some((name, used)) = interest.present(ty, resource.name(), version, &mut answered) else { continue };
            if ty == Type::Listener && &*name == LISTENER_INBOUND {
                next.inbound_version = Some(update.version.as_str().into());
            }
            rounds::go_on(&mut resource, &next);
            interest.follow(&resource, now);
            next.insert(name, resource, used);
        }
        for name in &update.removed {
            if interest.absent(ty, name, now, &mut answered) {
                next.remove(ty, name);
            }
        }
        for name in &update.refused {
            interest.refused(ty, name, &mut answered);
        }
        self.shared.current.store(Arc::new(next));
        let wake = interest.has_changes();
        drop(interest);
        answered.iter().for_each(|waiters| waiters.notify_waiters());
        if ty == Type::Listener {
            self.shared.listeners.send_replace(());
        }
        if wake {
            self.shared.wanted.notify_one();
        }
    }

    /// Has changed when listeners may have.
    pub(crate) fn listener_changes(&self) -> watch::Receiver<()> {
        self.shared.listeners.subscribe()
    }

    /// Drops what nobody used for ten minutes, and what was removed but still referred to until now. To be called
    /// every few seconds; it is also what moves the coarse clock.
    pub fn sweep(&self, now: Instant) {
        let seconds = u32::try_from(now.saturating_duration_since(self.shared.started).as_secs()).unwrap_or(u32::MAX);
        self.shared.clock.0.store(seconds, Ordering::Relaxed);
        let mut interest = self.interest();
        let evicted = interest.sweep(seconds);
        self.drop_from_snapshot(&evicted);
        let wake = interest.has_changes();
        drop(interest);
        if wake {
            self.shared.wanted.notify_one();
        }
    }

    /// The control plane has sent a message, or opened a stream.
    pub(crate) fn heard(&self) {
        if self.interest().link().heard() {
            tracing::info!("the control plane answers again");
        }
    }

    /// The stream ended, or could not be opened; `worked`: it was of use, and whoever asks may wait for the next one. If it
    /// was not, questions for what is not here are answered at once with [`Found::Unknown`] until something is heard again,
    /// and nothing is evicted. True if that is new.
    pub(crate) fn ended(&self, worked: bool) -> bool {
        self.while_waiting(|link| link.ended(worked))
    }

    /// A question was not answered in its time. If nothing else was heard meanwhile either, the control plane hangs, and it is as
    /// if its stream had ended.
    fn unanswered(&self, asked: Moment) {
        if self.while_waiting(|link| link.unanswered(asked)) {
            tracing::warn!("the control plane does not answer; going on with what is here");
        }
    }

    /// Wakes those who wait for an answer if `change` says that none will come.
    fn while_waiting(&self, change: impl FnOnce(&mut Link) -> bool) -> bool {
        let mut interest = self.interest();
        let hopeless = change(interest.link());
        let waiting = if hopeless { interest.waiting() } else { Vec::new() };
        drop(interest);
        waiting.iter().for_each(|waiters| waiters.notify_waiters());
        hopeless
    }

    /// Whether questions wait for the control plane.
    pub fn reachable(&self) -> bool {
        self.interest().link().answers()
    }

    /// Ends when [`changes`](Self::changes) has something.
    pub(crate) async fn wanted(&self) {
        self.shared.wanted.notified().await;
    }

    /// What to tell the control plane since the last call, or since [`resubscribe`](Self::resubscribe).
    pub(crate) fn changes(&self) -> Vec<(Type, Subscriptions)> {
        self.interest().changes()
    }

    /// What to tell a control plane that knows nothing: all names, and the versions that are here.
    pub(crate) fn resubscribe(&self) -> Vec<(Type, Subscriptions)> {
        self.interest().resubscribe()
    }

    /// How many names are subscribed to.
    pub fn subscribed(&self, ty: Type) -> usize {
        self.interest().subscribed(ty)
    }

    fn drop_from_snapshot(&self, evicted: &[Key]) {
        if evicted.is_empty() {
            return;
        }
        let mut next = Snapshot::clone(&self.shared.current.load());
        evicted.iter().for_each(|(ty, name)| next.remove(*ty, name));
        self.shared.current.store(Arc::new(next));
    }

    /// Every writer of the snapshot holds this lock.
    fn interest(&self) -> MutexGuard<'_, Interest> {
        self.shared.interest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
