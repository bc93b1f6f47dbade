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

/// A revision of the store and when it came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    pub revision: u64,
    pub at: Instant,
}

/// One consistent state of everything that can be asked for.
#[derive(Debug)]
pub struct Snapshot {
    pub revision: u64,
    /// When the oldest commit that is new in it was made.
    pub committed_at: Instant,
    pub model: Arc<Model>,
    /// The last commits, the oldest first, up to this revision.
    commits: Vec<Commit>,
    scopes: Mutex<HashMap<Scope, Weak<Scoped>>>,
    interner: Arc<encoded::Interner>,
}

impl Snapshot {
    /// `last` is the commit that `model` was made of, `merged` those that came before it and after `previous`, the oldest
    /// first. Copies of equal resources are taken over from `previous`.
    pub fn new(last: Commit, merged: &[Commit], model: Model, previous: Option<&Self>) -> Self {
        let mut commits = previous.map(|previous| previous.commits.clone()).unwrap_or_default();
        commits.extend(merged.iter().filter(|commit| commit.revision < last.revision));
        if commits.last().is_none_or(|known| known.revision != last.revision) {
            commits.push(last);
        }
        commits.drain(..commits.len().saturating_sub(COMMITS));
        let interner = previous.map(|previous| previous.interner.clone()).unwrap_or_default();
        interner.sweep();
        Self {
            revision: last.revision,
            committed_at: merged.first().unwrap_or(&last).at,
            model: Arc::new(model),
            commits,
            scopes: Mutex::default(),
            interner,
        }
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
        let commit = self.commits.iter().find(|commit| commit.revision >= revision);
        commit.map_or(self.committed_at, |commit| commit.at)
    }
}
