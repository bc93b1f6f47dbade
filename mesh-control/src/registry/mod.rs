//! Workloads that register themselves through their proxies: each is a `WorkloadEntry` object for as long as its stream
//! lives, and for a grace time after the stream broke, unless it is known that the proxy's process has ended.
//!
//! In: registrations with proven identities, ends of streams, the time. Out: objects in the store.

mod address;
mod depart;
mod entry;
mod member;
mod process;
mod service;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesh_common::identity::Identity;
use mesh_common::proto::workload::Registration;
use mesh_common::resource::{Key, Kind, LABEL_LOST, LABEL_REGISTERED, Object, WorkloadEntry};
use tonic::Status;

use crate::store::{MAX_BATCH, Store, StoreError, blocking};
use crate::trail::Who;

pub use address::Origin;
pub use depart::PLATFORM_LAG;
pub use service::{RegistryService, Workloads};

/// How long a workload stays when its stream broke, or when mesh-control restarted.
pub const GRACE: Duration = Duration::from_secs(30);
/// After that long without a stream it counts as lost. A proxy that lives has tried four times by then.
pub const LOST_AFTER: Duration = Duration::from_secs(5);

/// A handle; clones share the registry.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    sessions: Mutex<Sessions>,
    /// Held over a look at the store and the write that hangs on it, so that two identities can't both find a name free.
    writing: tokio::sync::Mutex<()>,
    closed: AtomicBool,
}

#[derive(Default)]
struct Sessions {
    by_key: BTreeMap<Key, Session>,
    newest: u64,
}

/// The stream that speaks for an entry.
struct Session {
    id: u64,
    /// Set while there is no stream.
    gone: Option<Gone>,
}

/// What becomes of an entry without a stream.
struct Gone {
    /// When it counts as lost. `None`: it does already, or will not, as after a restart of mesh-control.
    lost: Option<Instant>,
    /// When it goes.
    removed: Instant,
}

/// Who registers, and from where.
#[derive(Clone, Debug)]
pub struct Registrant {
    pub identity: Identity,
    pub origin: Origin,
}

/// Names one stream's claim to an entry. A later stream for the same entry takes the claim over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub key: Key,
    id: u64,
}

impl Registry {
    /// Entries that are in the store already get the grace time to show up again.
    pub fn new(store: Store, now: Instant) -> Self {
        let mut sessions = Sessions::default();
        for (key, object) in store.current().select(Some(Kind::WorkloadEntry), None, None) {
            if is_registered(object) {
                let gone = Gone { lost: None, removed: now + GRACE };
                sessions.by_key.insert(key.clone(), Session { id: 0, gone: Some(gone) });
            }
        }
        let inner = Inner {
            store,
            sessions: Mutex::new(sessions),
            writing: tokio::sync::Mutex::default(),
            closed: AtomicBool::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Registers, or registers anew. Returns the claim and the revision that holds the entry.
    pub async fn register(
        &self,
        registrant: &Registrant,
        registration: &Registration,
        healthy: bool,
    ) -> Result<(Claim, u64), Status> {
        let entry = entry::from_registration(registrant, registration, healthy)
            .map_err(|reason| Status::invalid_argument(format!("registration refused: {reason}")))?;
        let key = Object::from(entry.clone()).key();
        // Held to the end: between the write and the claim, the entry must not be found without a stream.
        let _writing = self.inner.writing.lock().await;
        let revision = self.put(registrant, &key, entry).await?;

        let mut sessions = self.sessions();
        sessions.newest += 1;
        let id = sessions.newest;
        if sessions.by_key.insert(key.clone(), Session { id, gone: None }).is_some_and(|old| old.gone.is_none()) {
            tracing::warn!(workload = %key, "registered by a second stream, which takes over");
        }
        metrics::gauge!("mesh_control_workloads").set(sessions.by_key.len() as f64);
        Ok((Claim { key, id }, revision))
    }

    /// Changes the entry of a claim that is still held. Returns the revision that holds the change.
    pub async fn update(
        &self,
        claim: &Claim,
        registrant: &Registrant,
        registration: &Registration,
        healthy: bool,
    ) -> Result<u64, Status> {
        let entry = entry::from_registration(registrant, registration, healthy)
            .map_err(|reason| Status::invalid_argument(format!("registration refused: {reason}")))?;
        let _writing = self.inner.writing.lock().await;
        if !self.holds(claim) {
            return Err(Status::aborted("another stream has registered this workload"));
        }
        self.put(registrant, &claim.key, entry).await
    }

    /// Whether `claim` still speaks for its entry.
    pub fn holds(&self, claim: &Claim) -> bool {
        self.sessions().by_key.get(&claim.key).is_some_and(|session| session.id == claim.id)
    }

    /// The stream ended in good order, the workload says that it is leaving, or its proxy is dead: the entry goes now.
    pub async fn leave(&self, claim: &Claim) -> Result<(), StoreError> {
        let _writing = self.inner.writing.lock().await;
        if !self.holds(claim) || self.is_closed() {
            return Ok(());
        }
        let (store, key) = (self.inner.store.clone(), claim.key.clone());
        blocking(move || store.delete(&[key], true)).await?;
        let mut sessions = self.sessions();
        sessions.by_key.remove(&claim.key);
        metrics::gauge!("mesh_control_workloads").set(sessions.by_key.len() as f64);
        Ok(())
    }

    /// The workload is ending, whatever becomes of its stream. Returns the revision that is without the entry.
    pub async fn depart(&self, identity: &Identity, name: &str) -> Result<u64, Status> {
        let key = Key::new(Kind::WorkloadEntry, &identity.namespace, name);
        let _writing = self.inner.writing.lock().await;
        let current = self.inner.store.current();
        let Some(stored) = current.objects.get(&key) else { return Ok(current.revision) };
        refuse_takeover(identity, &key, stored)?;
        let (store, keys) = (self.inner.store.by(Who::workload(identity)), vec![key.clone()]);
        let (_, revision) = blocking(move || store.delete(&keys, true)).await.map_err(|error| {
            tracing::error!(workload = %key, %error, "cannot remove a workload that is ending");
            Status::unavailable(error.to_string())
        })?;
        tracing::info!(workload = %key, "is ending");
        Ok(revision)
    }

    /// The stream broke: the entry stays for the grace time.
    pub fn lost(&self, claim: &Claim, now: Instant) {
        if let Some(session) = self.sessions().by_key.get_mut(&claim.key).filter(|session| session.id == claim.id) {
            session.gone = Some(Gone { lost: Some(now + LOST_AFTER), removed: now + GRACE });
        }
    }

    /// Marks entries whose streams broke some time ago, so that others are called while there are enough; call it from time
    /// to time. A proxy that registers anew takes the mark away.
    pub async fn mark_lost(&self, now: Instant) -> Result<Vec<Key>, StoreError> {
        let _writing = self.inner.writing.lock().await;
        if self.is_closed() {
            return Ok(Vec::new());
        }
        let is_due = |session: &Session| session.gone.as_ref().and_then(|gone| gone.lost).is_some_and(|at| at <= now);
        let due: Vec<Key> = {
            let sessions = self.sessions();
            let due = sessions.by_key.iter().filter(|(_, session)| is_due(session));
            due.map(|(key, _)| key.clone()).take(MAX_BATCH).collect()
        };
        if due.is_empty() {
            return Ok(due);
        }
        let current = self.inner.store.current();
        let marked = due.iter().filter_map(|key| match current.objects.get(key).map(AsRef::as_ref) {
            Some(Object::WorkloadEntry(entry)) => {
                let mut entry = entry.clone();
                entry.metadata.labels.insert(LABEL_LOST.to_owned(), "true".to_owned());
                Some(Object::from(entry))
            }
            _ => None,
        });
        let (store, marked) = (self.inner.store.clone(), marked.collect::<Vec<_>>());
        let keys = marked.iter().map(Object::key).collect();
        if !marked.is_empty() {
            blocking(move || store.apply(marked, false)).await?;
        }
        let mut sessions = self.sessions();
        for key in &due {
            if let Some(gone) = sessions.by_key.get_mut(key).and_then(|session| session.gone.as_mut()) {
                gone.lost = None;
            }
        }
        Ok(keys)
    }

    /// Removes entries whose grace time is over; call it from time to time.
    pub async fn expire(&self, now: Instant) -> Result<Vec<Key>, StoreError> {
        let _writing = self.inner.writing.lock().await;
        if self.is_closed() {
            return Ok(Vec::new());
        }
        let over = |session: &Session| session.gone.as_ref().is_some_and(|gone| gone.removed <= now);
        let gone: Vec<Key> = {
            let sessions = self.sessions();
            sessions.by_key.iter().filter(|(_, session)| over(session)).map(|(key, _)| key.clone()).collect()
        };
        if gone.is_empty() {
            return Ok(gone);
        }
        let (store, keys) = (self.inner.store.clone(), gone.clone());
        blocking(move || store.delete(&keys, true)).await?;
        let mut sessions = self.sessions();
        sessions.by_key.retain(|_, session| !over(session));
        metrics::gauge!("mesh_control_workloads").set(sessions.by_key.len() as f64);
        Ok(gone)
    }

    /// From now on nothing is removed: mesh-control is ending, and takes the streams with it.
    pub fn close(&self) {
        self.inner.closed.store(true, Ordering::Relaxed);
    }

    fn is_closed(&self) -> bool {
        self.inner.closed.load(Ordering::Relaxed)
    }

    /// The caller holds `writing`.
    async fn put(&self, registrant: &Registrant, key: &Key, entry: WorkloadEntry) -> Result<u64, Status> {
        let Registrant { identity, origin } = registrant;
        let current = self.inner.store.current();
        if let Some(stored) = current.objects.get(key) {
            refuse_takeover(identity, key, stored)?;
        }
        member::refuse_foreign(identity, key, &entry, &current.objects)?;
        let has_stream = |key: &Key| self.sessions().by_key.get(key).is_some_and(|session| session.gone.is_none());
        address::refuse_held(identity, *origin, key, &entry, &current.objects, has_stream)?;
        let store = self.inner.store.by(Who::workload(identity));
        let applied = blocking(move || store.apply(vec![entry.into()], false)).await.map_err(|error| {
            tracing::error!(workload = %key, %error, "cannot store a registration");
            Status::unavailable(error.to_string())
        })?;
        Ok(applied.revision)
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, Sessions> {
        self.inner.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name belongs to the identity that registered it first, and one that the operator wrote belongs to the operator.
fn refuse_takeover(identity: &Identity, key: &Key, stored: &Object) -> Result<(), Status> {
    let Object::WorkloadEntry(entry) = stored else { return Ok(()) };
    if !is_registered(stored) {
        return Err(Status::already_exists(format!("{key} was written by the operator; register under another name")));
    }
    if entry.spec.service_account != identity.service_account {
        return Err(Status::permission_denied(format!(
            "{key} belongs to another service account; register under another name"
        )));
    }
    Ok(())
}

fn is_registered(object: &Object) -> bool {
    object.metadata().labels.get(LABEL_REGISTERED).is_some_and(|value| value == "true")
}
