//! A snapshot as one kind of asker sees it: resources compiled on first use.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::{Encoded, Snapshot};
use crate::compile::{self, ResourceType, Scope};

/// Lives as long as an asker holds it, and with it what it has compiled.
#[derive(Debug)]
pub struct Scoped {
    snapshot: Arc<Snapshot>,
    scope: Scope,
    /// Only what exists: the names that do not are without number.
    resources: Mutex<HashMap<(ResourceType, String), Arc<Encoded>>>,
    names: [OnceLock<Arc<BTreeSet<String>>>; ResourceType::ALL.len()],
}

impl Scoped {
    pub(super) fn new(snapshot: Arc<Snapshot>, scope: Scope) -> Self {
        Self { snapshot, scope, resources: Mutex::default(), names: Default::default() }
    }

    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    pub fn get(&self, ty: ResourceType, name: &str) -> Option<Arc<Encoded>> {
        let key = (ty, name.to_owned());
        let resources = || self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = resources().get(&key) {
            return Some(held.clone());
        }
        // Compiled without the lock; should two do so at once, interning leaves one copy.
        let any = compile::resource(&self.snapshot.model, &self.scope, ty, name)?;
        let encoded = self.snapshot.interner.intern(any);
        resources().insert(key, encoded.clone());
        Some(encoded)
    }

    /// What a wildcard covers.
    pub fn names(&self, ty: ResourceType) -> Arc<BTreeSet<String>> {
        let compiled = || Arc::new(compile::names(&self.snapshot.model, &self.scope, ty).into_iter().collect());
        self.names[ty as usize].get_or_init(compiled).clone()
    }
}
