//! The embedded store of standalone mode: objects by key, versioned, and join tokens; all of it durable.
//!
//! In: batches of objects, each batch taken whole or not at all. Out: an immutable picture of all objects after each
//! commit, to whoever watches.
//!
//! All objects are in memory; the file is written through and read once, at start. Methods that change something block
//! until the change is on the disk.

#[cfg(test)]
mod crash;
mod db;
mod error;
#[cfg(test)]
mod tests;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use mesh_common::resource::{DEFAULT_NAMESPACE, Key, Object};
use mesh_common::token::to_hex;
use rustls::crypto::aws_lc_rs;
use serde_json::Value;
use tokio::sync::watch;

use crate::objects::Objects;
use crate::trail::{Record, Subject, Trail, Verb, Who};
use db::{Change, Contents, Db};

pub use db::guarded;
pub use error::StoreError;
pub use tokens::{DEFAULT_TTL, MAX_TTL, TokenError, Tokens};

/// One object, as JSON.
pub const MAX_OBJECT_BYTES: usize = 1 << 20;
/// All objects together.
pub const MAX_TOTAL_BYTES: usize = 256 << 20;
/// Objects of one batch.
pub const MAX_BATCH: usize = 10_000;

/// A handle; clones share the store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    /// In whose name it is changed by way of this handle.
    who: Arc<Who>,
}

struct Inner {
    db: Arc<Db>,
    tokens: Arc<Tokens>,
    current: watch::Sender<Arc<Objects>>,
    /// Held by whoever changes something; the size of each object in the file.
    writer: Mutex<BTreeMap<Key, usize>>,
    /// As they were when the store was opened.
    notes: BTreeMap<String, Vec<u8>>,
    /// Where changes are written down, if anywhere.
    trail: OnceLock<Trail>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Applied {
    /// In the order of the objects applied.
    pub results: Vec<(Key, Outcome)>,
    /// The revision that holds them. Unless something changed, it is an old one.
    pub revision: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Created,
    Configured,
    Unchanged,
}

impl Store {
    /// Opens the store in `dir`, or begins one. No other process may have it open.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let (db, Contents { revision, objects, tokens, notes }) = Db::open(dir)?;
        let mut sizes = BTreeMap::new();
        let mut by_key = BTreeMap::new();
        for (name, value) in objects {
            let unreadable = |reason: String| StoreError::Unreadable { key: name.clone(), reason };
            let text = std::str::from_utf8(&value).map_err(|error| unreadable(error.to_string()))?;
            let object = Object::from_json(text).map_err(|error| unreadable(error.to_string()))?;
            sizes.insert(object.key(), value.len());
            by_key.insert(object.key(), Arc::new(object));
        }
        let db = Arc::new(db);
        let tokens = Arc::new(Tokens::open(db.clone(), tokens)?);
        let objects = Objects {
            revision,
            objects: by_key,
            committed_at: Instant::now(),
            seen: Default::default(),
            accounts: None,
        };
        let current = watch::Sender::new(Arc::new(objects));
        Ok(Self {
            inner: Arc::new(Inner {
                db,
                tokens,
                current,
                writer: Mutex::new(sizes),
                notes: notes.into_iter().collect(),
                trail: OnceLock::new(),
            }),
            who: Arc::default(),
        })
    }

    /// From now on, changes are written down there.
    pub fn keep_trail(&self, trail: Trail) {
        // The first one stays.
        let _ = self.inner.trail.set(trail);
    }

    pub fn trail(&self) -> Option<&Trail> {
        self.inner.trail.get()
    }

    /// Writes down that something was made, or goes, which is no object of the mesh. Waits for the disk.
    pub fn write_down_thing(&self, verb: Verb, object: Subject, facts: Value) {
        if let Some(trail) = self.trail() {
            trail.record(&[Record::of_thing(Timestamp::now(), &self.who, verb, object, facts)]);
        }
    }

    /// A handle for changes in somebody's name. Those of others are in the control plane's own.
    pub fn by(&self, who: Who) -> Self {
        Self { inner: self.inner.clone(), who: Arc::new(who) }
    }

    pub fn tokens(&self) -> Arc<Tokens> {
        self.inner.tokens.clone()
    }

    /// What [`write_note`](Self::write_note) wrote before the store was opened.
    pub fn note(&self, name: &str) -> Option<&[u8]> {
        self.inner.notes.get(name).map(Vec::as_slice)
    }

    /// Keeps what is no object but must outlive the process, such as which addresses were given. It has no revision.
    pub fn write_note(&self, name: &str, value: Vec<u8>) -> Result<(), StoreError> {
        self.inner.db.write_notes(&[(name.to_owned(), Some(value))])
    }

    pub fn current(&self) -> Arc<Objects> {
        self.inner.current.borrow().clone()
    }

    /// Changes as they are committed; one who is slow sees the newest only.
    pub fn watch(&self) -> watch::Receiver<Arc<Objects>> {
        self.inner.current.subscribe()
    }

    /// Creates or replaces all of the objects, or none. An object with a `resourceVersion` is taken only if the stored
    /// one still has it. Version, generation, creation time and uid are given by the store. With `dry_run` it only
    /// tells what would happen.
    pub fn apply(&self, objects: Vec<Object>, dry_run: bool) -> Result<Applied, StoreError> {
        if objects.len() > MAX_BATCH {
            return Err(StoreError::Batch(objects.len()));
        }
        let mut sizes = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.current();
        let revision = before.revision + 1;
        let mut after = before.objects.clone();
        let mut total: usize = sizes.values().sum();
        let mut results = Vec::with_capacity(objects.len());
        let mut changes: Vec<(Key, Vec<u8>)> = Vec::new();
        let mut seen = BTreeSet::new();

        for mut object in objects {
            object.set_default_namespace(DEFAULT_NAMESPACE);
            let key = object.key();
            if !seen.insert(key.clone()) {
                return Err(StoreError::Twice(key));
            }
            let stored = before.objects.get(&key).map(Arc::as_ref);
            check_version(&object, stored)?;
            let outcome = outcome(&object, stored);
            if outcome != Outcome::Unchanged {
                stamp(&mut object, stored, revision)?;
                let bytes = object.to_json().to_string().into_bytes();
                if bytes.len() > MAX_OBJECT_BYTES {
                    return Err(StoreError::TooLarge { key, bytes: bytes.len() });
                }
                total += bytes.len();
                total -= sizes.get(&key).copied().unwrap_or_default();
                after.insert(key.clone(), Arc::new(object));
                changes.push((key.clone(), bytes));
            }
            results.push((key, outcome));
        }

        if changes.is_empty() || dry_run {
            return Ok(Applied { results, revision: before.revision });
        }
        if total > MAX_TOTAL_BYTES {
            return Err(StoreError::Full);
        }
        let lengths: Vec<(Key, usize)> = changes.iter().map(|(key, bytes)| (key.clone(), bytes.len())).collect();
        let changes: Vec<Change> = changes.into_iter().map(|(key, bytes)| (file_key(&key), Some(bytes))).collect();
        self.inner.db.write_objects(revision, &changes)?;
        self.write_down(revision, lengths.iter().map(|(key, _)| key), &before.objects, &after);
        sizes.extend(lengths);
        self.publish(revision, after);
        Ok(Applied { results, revision })
    }

    /// Deletes all of the objects, or none; one that does not exist is an error unless `ignore_missing`. Returns what
    /// was deleted and the revision without it.
    pub fn delete(&self, keys: &[Key], ignore_missing: bool) -> Result<(Vec<Key>, u64), StoreError> {
        self.delete_as_read(keys, ignore_missing, &[])
    }

    /// The same, if those that are read have these versions still or are gone.
    pub fn delete_as_read(
        &self,
        keys: &[Key],
        ignore_missing: bool,
        read: &[(Key, String)],
    ) -> Result<(Vec<Key>, u64), StoreError> {
        self.remove(|before| {
            for (key, given) in read {
                let stored = before.get(key).map(|stored| stored.metadata().resource_version.as_deref());
                if let Some(current) = stored.map(Option::unwrap_or_default).filter(|current| current != given) {
                    let (key, given, current) = (key.clone(), given.clone(), current.to_owned());
                    return Err(StoreError::Conflict { key, given, current });
                }
            }
            let (found, missing): (Vec<&Key>, Vec<&Key>) = keys.iter().partition(|key| before.contains_key(key));
            match missing.first() {
                Some(key) if !ignore_missing => Err(StoreError::NotFound((*key).clone())),
                _ => Ok(found.into_iter().cloned().collect()),
            }
        })
    }

    /// Deletes those objects that nobody has changed since the caller looked at them.
    pub fn delete_unchanged(&self, objects: &[Arc<Object>]) -> Result<(Vec<Key>, u64), StoreError> {
        self.remove(|before| {
            let same = |object: &&Arc<Object>| {
                before
                    .get(&object.key())
                    .is_some_and(|stored| stored.metadata().resource_version == object.metadata().resource_version)
            };
            Ok(objects.iter().filter(same).map(|object| object.key()).collect())
        })
    }

    fn remove(
        &self,
        select: impl FnOnce(&BTreeMap<Key, Arc<Object>>) -> Result<BTreeSet<Key>, StoreError>,
    ) -> Result<(Vec<Key>, u64), StoreError> {
        let mut sizes = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.current();
        let gone = select(&before.objects)?;
        if gone.is_empty() {
            return Ok((Vec::new(), before.revision));
        }
        let revision = before.revision + 1;
        let changes: Vec<Change> = gone.iter().map(|key| (file_key(key), None)).collect();
        self.inner.db.write_objects(revision, &changes)?;

        let mut after = before.objects.clone();
        for key in &gone {
            after.remove(key);
            sizes.remove(key);
        }
        self.write_down(revision, gone.iter(), &before.objects, &after);
        self.publish(revision, after);
        Ok((gone.into_iter().collect(), revision))
    }

    /// By whoever holds the lock of writers, so that the trail has the order of the revisions.
    fn write_down<'a>(
        &self,
        revision: u64,
        keys: impl Iterator<Item = &'a Key>,
        before: &BTreeMap<Key, Arc<Object>>,
        after: &BTreeMap<Key, Arc<Object>>,
    ) {
        let Some(trail) = self.trail() else { return };
        let now = Timestamp::now();
        let record = |key: &Key| {
            let [before, after] = [before, after].map(|objects| objects.get(key).map(Arc::as_ref));
            Record::of(now, &self.who, revision, before, after)
        };
        trail.record(&keys.filter_map(record).collect::<Vec<_>>());
    }

    fn publish(&self, revision: u64, objects: BTreeMap<Key, Arc<Object>>) {
        let objects =
            Objects { revision, objects, committed_at: Instant::now(), seen: Default::default(), accounts: None };
        self.inner.current.send_replace(Arc::new(objects));
    }
}

fn check_version(object: &Object, stored: Option<&Object>) -> Result<(), StoreError> {
    let Some(given) = object.metadata().resource_version.as_deref().filter(|given| !given.is_empty()) else {
        return Ok(());
    };
    match stored.map(|stored| stored.metadata().resource_version.as_deref().unwrap_or_default()) {
        Some(current) if current == given => Ok(()),
        Some(current) => {
            Err(StoreError::Conflict { key: object.key(), given: given.to_owned(), current: current.to_owned() })
        }
        None => Err(StoreError::Vanished { key: object.key() }),
    }
}

fn outcome(object: &Object, stored: Option<&Object>) -> Outcome {
    let Some(stored) = stored else { return Outcome::Created };
    let [new, old] = [object, stored].map(|object| {
        let mut object = object.clone();
        let metadata = object.metadata_mut();
        (metadata.resource_version, metadata.generation, metadata.creation_timestamp, metadata.uid) =
            (None, None, None, None);
        object
    });
    if new == old { Outcome::Unchanged } else { Outcome::Configured }
}

/// What the store gives to an object. The generation counts changes of its spec.
fn stamp(object: &mut Object, stored: Option<&Object>, revision: u64) -> Result<(), StoreError> {
    let spec = |object: &Object| object.to_json().get("spec").cloned();
    let (generation, created, uid) = match stored {
        Some(stored) => {
            let metadata = stored.metadata();
            let changed = i64::from(spec(stored) != spec(object));
            let generation = metadata.generation.unwrap_or(1) + changed;
            (generation, metadata.creation_timestamp.clone(), metadata.uid.clone())
        }
        None => {
            let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
            (1, Some(now.to_string()), Some(uid()?))
        }
    };
    let metadata = object.metadata_mut();
    metadata.resource_version = Some(revision.to_string());
    metadata.generation = Some(generation);
    metadata.creation_timestamp = created;
    metadata.uid = uid;
    Ok(())
}

/// A random UUID (RFC 9562, version 4).
fn uid() -> Result<String, StoreError> {
    let mut bytes: [u8; 16] = random_bytes()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = to_hex(&bytes);
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

fn file_key(key: &Key) -> String {
    format!("{}/{}/{}", key.kind, key.namespace, key.name)
}

/// Does work that waits for the disk where it keeps nobody else waiting.
pub async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(StoreError::Interrupted.into()))
}

/// From the system's source, fit for secrets.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut bytes = [0; N];
    aws_lc_rs::default_provider().secure_random.fill(&mut bytes).map_err(|_| StoreError::Random)?;
    Ok(bytes)
}
