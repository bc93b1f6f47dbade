//! Metric handles by label set: found without a lock and without an allocation, made when first used, forgotten when
//! idle, and never more than the cap allows.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use mesh_common::identity::Identity;

use crate::config::WorkloadInfo;
use crate::listen::{Direction, Security};

/// What tells one label set from another, borrowed from a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key<'a> {
    pub(super) direction: Direction,
    pub(super) security: Security,
    /// The peer of an inbound connection.
    pub(super) source: Option<&'a Identity>,
    pub(super) destination: Destination<'a>,
    pub(super) route: &'a str,
    pub(super) status: u16,
    pub(super) grpc_status: Option<u32>,
    pub(super) flags: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination<'a> {
    /// This proxy's own application.
    Local,
    Workload(&'a WorkloadInfo),
    /// No endpoint was chosen, or one that is not a workload of the mesh.
    Cluster(&'a str),
}

impl Hash for Key<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.direction.hash(state);
        self.security.hash(state);
        self.source.hash(state);
        match self.destination {
            Destination::Local => {}
            Destination::Workload(it) => (&it.service, &it.namespace, &it.workload, &it.version).hash(state),
            Destination::Cluster(name) => name.hash(state),
        }
        (self.route, self.status, self.grpc_status, self.flags).hash(state);
    }
}

#[derive(Debug)]
struct OwnedKey {
    direction: Direction,
    security: Security,
    source: Option<Identity>,
    destination: OwnedDestination,
    route: String,
    status: u16,
    grpc_status: Option<u32>,
    flags: &'static str,
}

#[derive(Debug)]
enum OwnedDestination {
    Local,
    Workload(WorkloadInfo),
    Cluster(String),
}

impl OwnedKey {
    fn of(key: &Key<'_>) -> Self {
        Self {
            direction: key.direction,
            security: key.security,
            source: key.source.cloned(),
            destination: match key.destination {
                Destination::Local => OwnedDestination::Local,
                Destination::Workload(it) => OwnedDestination::Workload(it.clone()),
                Destination::Cluster(name) => OwnedDestination::Cluster(name.to_owned()),
            },
            route: key.route.to_owned(),
            status: key.status,
            grpc_status: key.grpc_status,
            flags: key.flags,
        }
    }

    fn borrow(&self) -> Key<'_> {
        Key {
            direction: self.direction,
            security: self.security,
            source: self.source.as_ref(),
            destination: match &self.destination {
                OwnedDestination::Local => Destination::Local,
                OwnedDestination::Workload(it) => Destination::Workload(it),
                OwnedDestination::Cluster(name) => Destination::Cluster(name),
            },
            route: &self.route,
            status: self.status,
            grpc_status: self.grpc_status,
            flags: self.flags,
        }
    }
}

/// What the handles of one label set will cost, and how to make them.
pub(super) struct Plan<'a, H> {
    pub(super) cost: Cost,
    /// Only called when the budget allows it.
    pub(super) make: Box<dyn FnOnce() -> H + 'a>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    /// Series that only this label set has.
    pub(super) own: usize,
    /// Series that other label sets with the same `group` use too.
    pub(super) shared: usize,
    pub(super) group: u64,
}

struct Entry<H> {
    key: OwnedKey,
    handles: H,
    cost: Cost,
    used: AtomicU64,
}

type Entries<H> = HashMap<u64, Vec<Arc<Entry<H>>>>;

/// How many series there may be, over all tables.
#[derive(Debug)]
pub(super) struct Budget {
    max: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(super) fn new(max: usize) -> Self {
        Self { max, used: AtomicUsize::new(0) }
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, series: usize) -> bool {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(series).filter(|sum| *sum <= self.max)
            })
            .is_ok()
    }

    fn give_back(&self, series: usize) {
        self.used.fetch_sub(series, Ordering::Relaxed);
    }
}

/// Readers take the current map as it is; a new label set, which is rare, makes a new map.
pub(super) struct Table<H> {
    entries: ArcSwap<Entries<H>>,
    /// Held while the map is replaced.
    groups: Mutex<HashSet<u64>>,
    hasher: RandomState,
}

impl<H> Table<H> {
    pub(super) fn new() -> Self {
        Self {
            entries: ArcSwap::from_pointee(HashMap::new()),
            groups: Mutex::new(HashSet::new()),
            hasher: RandomState::new(),
        }
    }

    pub(super) fn hash(&self, value: impl Hash) -> u64 {
        self.hasher.hash_one(value)
    }

    /// Uses the handles of `key`, making them if they are new. `None`: the budget is spent.
    pub(super) fn with<'a, R>(
        &self,
        key: &Key<'_>,
        now: u64,
        budget: &Budget,
        plan: impl FnOnce() -> Plan<'a, H>,
        apply: impl FnOnce(&H) -> R,
    ) -> Option<R> {
        let hash = self.hash(key);
        if let Some(entry) = find(&self.entries.load(), hash, key) {
            entry.touch(now);
            return Some(apply(&entry.handles));
        }
        let entry = self.insert(hash, key, now, budget, plan)?;
        Some(apply(&entry.handles))
    }

    fn insert<'a>(
        &self,
        hash: u64,
        key: &Key<'_>,
        now: u64,
        budget: &Budget,
        plan: impl FnOnce() -> Plan<'a, H>,
    ) -> Option<Arc<Entry<H>>> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.entries.load_full();
        if let Some(entry) = find(&current, hash, key) {
            return Some(entry.clone());
        }
        let Plan { cost, make } = plan();
        let shared = if groups.contains(&cost.group) { 0 } else { cost.shared };
        if !budget.take(cost.own + shared) {
            return None;
        }
        groups.insert(cost.group);
        let entry = Arc::new(Entry { key: OwnedKey::of(key), handles: make(), cost, used: AtomicU64::new(now) });
        let mut next = Entries::clone(&current);
        next.entry(hash).or_default().push(entry.clone());
        self.entries.store(Arc::new(next));
        Some(entry)
    }

    pub(super) fn for_each(&self, mut look: impl FnMut(&Key<'_>, &H)) {
        self.entries.load().values().flatten().for_each(|entry| look(&entry.key.borrow(), &entry.handles));
    }

    /// Forgets what was last used before `oldest`, unless `keep` wants it.
    pub(super) fn sweep(&self, oldest: u64, budget: &Budget, keep: impl Fn(&H) -> bool) {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.entries.load_full();
        let stays = |entry: &Entry<H>| entry.used.load(Ordering::Relaxed) >= oldest || keep(&entry.handles);
        if current.values().flatten().all(|entry| stays(entry)) {
            return;
        }
        let mut next = Entries::clone(&current);
        let before = cost(&next);
        next.values_mut().for_each(|bucket| bucket.retain(|entry| stays(entry)));
        next.retain(|_, bucket| !bucket.is_empty());
        *groups = next.values().flatten().map(|entry| entry.cost.group).collect();
        budget.give_back(before - cost(&next));
        self.entries.store(Arc::new(next));
    }
}

impl<H> Entry<H> {
    fn touch(&self, now: u64) {
        // Most uses fall into the same second as the one before: don't write to a line that all threads read.
        if self.used.load(Ordering::Relaxed) != now {
            self.used.store(now, Ordering::Relaxed);
        }
    }
}

impl<H> std::fmt::Debug for Table<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("label_sets", &self.entries.load().len()).finish_non_exhaustive()
    }
}

fn find<'a, H>(entries: &'a Entries<H>, hash: u64, key: &Key<'_>) -> Option<&'a Arc<Entry<H>>> {
    entries.get(&hash)?.iter().find(|entry| entry.key.borrow() == *key)
}

fn cost<H>(entries: &Entries<H>) -> usize {
    let mut groups = HashSet::new();
    let cost_of = |entry: &Arc<Entry<H>>| {
        let shared = if groups.insert(entry.cost.group) { entry.cost.shared } else { 0 };
        entry.cost.own + shared
    };
    entries.values().flatten().map(cost_of).sum()
}
