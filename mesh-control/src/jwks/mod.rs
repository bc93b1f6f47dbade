//! Keys of those whose tokens are taken, fetched for all proxies by the control plane.
//!
//! In: the objects that say where keys are. Out: [`Keys`] in a watch channel, for the next snapshot. Good keys stay until there
//! are others that are good: neither an issuer that is away nor one that says something wrong takes them away.

mod fetch;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

pub use fetch::Fetcher;

use crate::model::{Fetched, Keys, jwks_uris};
use crate::objects::Objects;

/// Issuers publish keys before they use them.
const REFRESH: Duration = Duration::from_secs(300);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(60);
/// From more places nothing is fetched: what objects may say is bounded, and not by how much they say.
const MAX_URIS: usize = 128;
/// How long a start waits for keys that are not there: without them, tokens that proxies took before would be refused.
const PATIENCE: Duration = Duration::from_secs(5);

/// The keys to begin with: those that were kept, and for the rest one attempt each.
pub async fn first(objects: &Objects, kept: Keys, fetcher: &Arc<Fetcher>) -> Keys {
    let wanted: BTreeSet<String> = wanted(objects);
    let mut keys = kept;
    keys.0.retain(|uri, _| wanted.contains(uri));
    let mut attempts = JoinSet::new();
    for uri in wanted.into_iter().filter(|uri| !keys.0.contains_key(uri)) {
        let fetcher = fetcher.clone();
        attempts.spawn(async move { (fetcher.fetch(&uri).await, uri) });
    }
    let all = async {
        while let Some(attempt) = attempts.join_next().await {
            if let Ok((result, uri)) = attempt {
                take(&mut keys, uri, result);
            }
        }
    };
    // What takes longer goes on in `keep`.
    let _ = tokio::time::timeout(PATIENCE, all).await;
    keys
}

/// Fetches what the objects name, again and again, for as long as there are objects. `save` gets all keys when some are new.
pub async fn keep(
    mut objects: watch::Receiver<Arc<Objects>>,
    keys: watch::Sender<Arc<Keys>>,
    fetcher: Arc<Fetcher>,
    save: impl Fn(&Keys),
) {
    let (results, mut fetched) = mpsc::channel(16);
    let mut following: HashMap<String, AbortHandle> = HashMap::new();
    let mut tasks = JoinSet::new();
    objects.mark_changed();
    loop {
        tokio::select! {
            changed = objects.changed() => {
                if changed.is_err() {
                    return;
                }
                let wanted = wanted(&objects.borrow_and_update());
                following.retain(|uri, task| {
                    let stays = wanted.contains(uri);
                    if !stays {
                        task.abort();
                    }
                    stays
                });
                for uri in wanted {
                    let (fetcher, results) = (fetcher.clone(), results.clone());
                    let start = |uri: &String| tasks.spawn(follow(uri.clone(), fetcher, results));
                    following.entry(uri).or_insert_with_key(start);
                }
                if keys.borrow().0.keys().any(|uri| !following.contains_key(uri)) {
                    keys.send_modify(|keys| Arc::make_mut(keys).0.retain(|uri, _| following.contains_key(uri)));
                    save(&keys.borrow());
                }
            }
            Some((uri, result)) = fetched.recv() => {
                if !following.contains_key(&uri) {
                    continue;
                }
                let mut next = Keys::clone(&keys.borrow());
                let good = result.is_ok();
                take(&mut next, uri, result);
                if next != **keys.borrow() {
                    if good {
                        save(&next);
                    }
                    keys.send_replace(Arc::new(next));
                }
            }
            Some(_) = tasks.join_next() => (),
        }
    }
}

fn wanted(objects: &Objects) -> BTreeSet<String> {
    let all = jwks_uris(objects.objects.values());
    if all.len() > MAX_URIS {
        tracing::warn!(count = all.len(), "keys are fetched from {MAX_URIS} places only");
    }
    all.into_iter().take(MAX_URIS).map(str::to_owned).collect()
}

/// Takes note of what came of an attempt. One that failed leaves good keys as they are.
fn take(keys: &mut Keys, uri: String, result: Result<String, String>) {
    let known = keys.0.entry(uri).or_default();
    match result {
        Ok(jwks) if known.jwks.as_deref() == Some(&*jwks) => known.error = None,
        Ok(jwks) => *known = Fetched { jwks: Some(jwks.into()), error: None },
        Err(error) if known.jwks.is_none() => known.error = Some(error),
        Err(_) => (),
    }
}

async fn follow(uri: String, fetcher: Arc<Fetcher>, results: mpsc::Sender<(String, Result<String, String>)>) {
    let mut retry = FIRST_RETRY;
    loop {
        let result = fetcher.fetch(&uri).await;
        let wait = match &result {
            Ok(_) => {
                retry = FIRST_RETRY;
                REFRESH
            }
            Err(error) => {
                tracing::warn!(uri, error, "cannot fetch the keys of an issuer; those that are known stay");
                let wait = retry;
                retry = (retry * 2).min(MAX_RETRY);
                wait
            }
        };
        let outcome = if result.is_ok() { "ok" } else { "failed" };
        metrics::counter!("mesh_control_jwks_fetches_total", "result" => outcome).increment(1);
        if results.send((uri.clone(), result)).await.is_err() {
            return;
        }
        tokio::time::sleep(wait.mul_f64(0.9 + fastrand::f64() / 5.0)).await;
    }
}
