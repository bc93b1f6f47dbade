//! What proxies are told, as of one revision of the store: the model and, as they are asked for, the resources that are
//! compiled from it.
//!
//! In: the store's objects after each commit. Out: a [`Snapshot`] in a watch channel.

mod encoded;
mod publish;
mod scoped;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use crate::compile::Scope;
use crate::model::Model;

pub use encoded::Encoded;
pub(crate) use encoded::short_hex;
pub use publish::{first, publish};
pub use scoped::Scoped;

/// Commits whose time is remembered.
const COMMITS: usize = 64;

/// One consistent state of everything that can be asked for.
#[derive(Debug)]
pub struct Snapshot {
    pub revision: u64,
    /// When `revision` was committed to the store.
    pub committed_at: Instant,
    pub model: Arc<Model>,
    /// Revisions and their commit times, the oldest first, up to this one.
    commits: Vec<(u64, Instant)>,
    scopes: Mutex<HashMap<Scope, Weak<Scoped>>>,
    interner: Arc<encoded::Interner>,
}

impl Snapshot {
    /// `previous` is the snapshot before, whose copies of equal resources are taken over.
    pub fn new(revision: u64, committed_at: Instant, model: Model, previous: Option<&Self>) -> Self {
        let mut commits = previous.map(|previous| previous.commits.clone()).unwrap_or_default();
        if commits.len() == COMMITS {
            commits.remove(0);
        }
        commits.push((revision, committed_at));
        let interner = previous.map(|previous| previous.interner.clone()).unwrap_or_default();
        interner.sweep();
        Self { revision, committed_at, model: Arc::new(model), commits, scopes: Mutex::default(), interner }
    }

    /// This snapshot as one kind of asker sees it. Equal askers share what they see.
    pub fn scoped(self: &Arc<Self>, scope: &Scope) -> Arc<Scoped> {
        let mut scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scoped) = scopes.get(scope).and_then(Weak::upgrade) {
            return scoped;
        }
        scopes.retain(|_, scoped| scoped.strong_count() > 0);
        let scoped = Arc::new(Scoped::new(self.clone(), scope.clone()));
        scopes.insert(scope.clone(), Arc::downgrade(&scoped));
        scoped
    }

    /// When this revision was committed; for one that is no longer remembered, when the oldest remembered one was.
    pub fn committed(&self, revision: u64) -> Instant {
        let commit = self.commits.iter().find(|(committed, _)| *committed >= revision);
        commit.map_or(self.committed_at, |(_, at)| *at)
    }
}
