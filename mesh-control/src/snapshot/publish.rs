//! From the store's commits to snapshots, in time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Snapshot;
use crate::model::{self, Settings};
use crate::store::Objects;

/// Commits that follow a snapshot within this time go out together.
const MERGE: Duration = Duration::from_millis(50);

/// The snapshot to begin with.
pub fn first(objects: &Objects, settings: &Settings) -> Snapshot {
    build(objects, settings, None)
}

/// Makes a snapshot of each state of the store, for as long as the store lives: of the first commit after a quiet time at
/// once, of those that follow closely together.
pub async fn publish(
    mut objects: watch::Receiver<Arc<Objects>>,
    settings: Settings,
    snapshots: watch::Sender<Arc<Snapshot>>,
) {
    let settings = Arc::new(settings);
    // The store may have moved on since `first`.
    objects.mark_changed();
    while objects.changed().await.is_ok() {
        let begun = tokio::time::Instant::now();
        let current = objects.borrow_and_update().clone();
        let previous = snapshots.borrow().clone();
        if current.revision == previous.revision {
            continue;
        }
        let settings = settings.clone();
        let built = tokio::task::spawn_blocking(move || build(&current, &settings, Some(&previous))).await;
        match built {
            Ok(snapshot) => {
                tracing::debug!(revision = snapshot.revision, "new snapshot");
                snapshots.send_replace(Arc::new(snapshot));
            }
            // Proxies keep what they have; the next commit tries again.
            Err(error) => tracing::error!(%error, "the objects of the store could not be compiled; please report this"),
        }
        tokio::time::sleep_until(begun + MERGE).await;
    }
}

fn build(objects: &Objects, settings: &Settings, previous: Option<&Snapshot>) -> Snapshot {
    let begun = Instant::now();
    let model = model::build(&objects.objects, settings, previous.map(|previous| &*previous.model));
    let snapshot = Snapshot::new(objects.revision, objects.committed_at, model, previous);
    metrics::histogram!("mesh_control_snapshot_build_seconds").record(begun.elapsed());
    metrics::gauge!("mesh_control_snapshot_revision").set(objects.revision as f64);
    snapshot
}
