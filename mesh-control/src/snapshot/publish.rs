//! From the store's commits to snapshots, in time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Commit, Snapshot};
use crate::model::{self, Addresses, Keys, Settings};
use crate::objects::Objects;

/// Commits that follow a snapshot within this time go out together.
const MERGE: Duration = Duration::from_millis(50);

/// The snapshot to begin with. `before` are the virtual addresses that the control plane gave before it was restarted.
pub fn first(objects: &Objects, keys: &Arc<Keys>, settings: &Settings, before: &Addresses) -> Snapshot {
    build(objects, commit(objects), &[], keys, settings, before, None)
}

/// Makes a snapshot of each state of the store, for as long as the store lives: of the first commit after a quiet time at
/// once, of those that follow closely together; and of each change of the keys that were fetched. `keep` is called with virtual addresses before anybody is told of them.
pub async fn publish(
    mut objects: watch::Receiver<Arc<Objects>>,
    mut keys: watch::Receiver<Arc<Keys>>,
    settings: Settings,
    snapshots: watch::Sender<Arc<Snapshot>>,
    keep: impl Fn(&Addresses) + Clone + Send + 'static,
) {
    let settings = Arc::new(settings);
    // The store may have moved on since `first`.
    objects.mark_changed();
    keys.mark_changed();
    let mut not_before = Instant::now();
    while let Some((current, merged)) = next(&mut objects, &mut keys, not_before).await {
        let previous = snapshots.borrow().clone();
        let fetched = keys.borrow_and_update().clone();
        let last = match current.revision == previous.revision {
            true if *previous.model.keys() == fetched => continue,
            // The objects are the same.
            true => Commit { revision: current.revision, at: std::time::Instant::now() },
            false => commit(&current),
        };
        not_before = Instant::now() + MERGE;
        let (settings, keep) = (settings.clone(), keep.clone());
        let built = tokio::task::spawn_blocking(move || {
            let before = previous.model.addresses();
            let snapshot = build(&current, last, &merged, &fetched, &settings, before, Some(&previous));
            if snapshot.model.addresses() != before {
                keep(snapshot.model.addresses());
            }
            snapshot
        });
        let built = built.await;
        match built {
            Ok(snapshot) => {
                tracing::debug!(revision = snapshot.revision, "new snapshot");
                snapshots.send_replace(Arc::new(snapshot));
            }
            // Proxies keep what they have; the next commit tries again.
            Err(error) => tracing::error!(%error, "the objects of the store could not be compiled; please report this"),
        }
    }
}

/// Waits for a commit or other keys, and then until `not_before` for more. The last one and those that it overtook.
async fn next(
    objects: &mut watch::Receiver<Arc<Objects>>,
    keys: &mut watch::Receiver<Arc<Keys>>,
    not_before: Instant,
) -> Option<(Arc<Objects>, Vec<Commit>)> {
    tokio::select! {
        changed = objects.changed() => changed.ok()?,
        Ok(()) = keys.changed() => (),
    }
    let mut current = objects.borrow_and_update().clone();
    let mut merged = Vec::new();
    while let Ok(changed) = tokio::time::timeout_at(not_before, objects.changed()).await {
        changed.ok()?;
        merged.push(commit(&current));
        current = objects.borrow_and_update().clone();
    }
    Some((current, merged))
}

fn commit(objects: &Objects) -> Commit {
    Commit { revision: objects.revision, at: objects.committed_at }
}

fn build(
    objects: &Objects,
    last: Commit,
    merged: &[Commit],
    keys: &Arc<Keys>,
    settings: &Settings,
    before: &Addresses,
    previous: Option<&Snapshot>,
) -> Snapshot {
    let begun = std::time::Instant::now();
    let mut model = model::build(&objects.objects, settings, before).with_keys(keys);
    if let Some(accounts) = &objects.accounts {
        model = model.with_accounts(accounts, &objects.objects);
    }
    let snapshot = Snapshot::new(last, merged, model, previous);
    metrics::histogram!("mesh_control_snapshot_build_seconds").record(begun.elapsed());
    metrics::gauge!("mesh_control_snapshot_revision").set(objects.revision as f64);
    snapshot
}
