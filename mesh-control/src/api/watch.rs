//! The store's changes as events.

use std::sync::Arc;

use futures_util::Stream;
use mesh_common::proto::control::{WatchEvent, watch_event};
use mesh_common::resource::{Key, Kind, Object};
use tokio::sync::watch::Receiver;

use super::convert;
use crate::objects::Objects;

/// What there is, then `SYNCED`, then what changes. One who reads slowly misses states in between, never the last one.
pub(super) fn events(
    mut store: Receiver<Arc<Objects>>,
    kind: Option<Kind>,
    namespace: Option<String>,
) -> impl Stream<Item = WatchEvent> + Send {
    async_stream::stream! {
        let mut seen: Option<Arc<Objects>> = None;
        loop {
            let current = store.borrow_and_update().clone();
            for event in difference(seen.as_deref(), &current, kind, namespace.as_deref()) {
                yield event;
            }
            if seen.is_none() {
                let synced = watch_event::Type::Synced.into();
                yield WatchEvent { r#type: synced, revision: current.revision, ..WatchEvent::default() };
            }
            seen = Some(current);
            if store.changed().await.is_err() {
                return;
            }
        }
    }
}

fn difference(
    before: Option<&Objects>,
    after: &Objects,
    kind: Option<Kind>,
    namespace: Option<&str>,
) -> Vec<WatchEvent> {
    let event = |ty: watch_event::Type, key: &Key, object: &Object| WatchEvent {
        r#type: ty.into(),
        key: Some(convert::object_key(key)),
        object: object.to_json().to_string(),
        revision: after.revision,
    };
    let gone = before
        .into_iter()
        .flat_map(|before| before.select(kind, namespace, None))
        .filter(|(key, _)| !after.objects.contains_key(key))
        .map(|(key, object)| event(watch_event::Type::Deleted, key, object));
    let same = |key: &Key, object: &Arc<Object>| {
        before.and_then(|before| before.objects.get(key)).is_some_and(|old| Arc::ptr_eq(old, object))
    };
    let applied = after
        .select(kind, namespace, None)
        .filter(|(key, object)| !same(key, object))
        .map(|(key, object)| event(watch_event::Type::Applied, key, object));
    gone.chain(applied).collect()
}
