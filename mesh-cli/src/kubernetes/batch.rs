//! Several objects at once, though the API server has no transactions: all is tried first, so that what it refuses is known
//! before anything is changed. What is done when something fails nevertheless is told.

use kube::api::{DeleteParams, Preconditions};
use mesh_common::resource::{Key, Object};

use super::Cluster;
use super::objects::{self, Refused, Taken, named};
use crate::failure::{Exit, Failure};
use crate::install::manifest::Outcome;

/// Creates or changes all of them.
pub async fn apply(cluster: &Cluster, wanted: &[Object], dry_run: bool, force: bool) -> Result<Vec<Taken>, Refused> {
    if dry_run || wanted.len() > 1 {
        let mut tried = Vec::new();
        for object in wanted {
            tried.push(objects::write(cluster, object, true, force).await?);
        }
        if dry_run {
            return Ok(tried);
        }
    }
    let mut taken: Vec<Taken> = Vec::new();
    for (index, object) in wanted.iter().enumerate() {
        match objects::write(cluster, object, false, force).await {
            Ok(one) => taken.push(one),
            Err(refused) => {
                if taken.iter().all(|taken| taken.outcome == Outcome::Unchanged) {
                    return Err(refused);
                }
                let keys: Vec<Key> = wanted.iter().map(Object::key).collect();
                let done = keys.iter().cloned().zip(taken.iter().map(|taken| taken.outcome.as_str()));
                let done: Vec<_> = done.collect();
                return Err(Refused::Failed(halfway(refused.into_failure(), "applied", &done, &keys[index..])));
            }
        }
    }
    Ok(taken)
}

/// Deletes those that are there; nothing if one is missing and that is not meant, or if one is not what the caller has read.
pub async fn delete(
    cluster: &Cluster,
    keys: &[Key],
    ignore_missing: bool,
    read: &[(Key, Preconditions)],
) -> Result<Vec<Key>, Refused> {
    let as_read = |key: &Key| read.iter().find(|(of, _)| of == key).map(|(_, preconditions)| preconditions.clone());
    let mut there = Vec::new();
    if keys.len() > 1 {
        for key in keys {
            if remove(cluster, key, as_read(key), true).await? {
                there.push(key.clone());
            } else if !ignore_missing {
                return Err(missing(key));
            }
        }
    } else {
        there = keys.to_vec();
    }
    let mut deleted: Vec<Key> = Vec::new();
    for (index, key) in there.iter().enumerate() {
        match remove(cluster, key, as_read(key), false).await {
            Ok(true) => deleted.push(key.clone()),
            // Somebody else has done it since it was seen.
            Ok(false) if ignore_missing || keys.len() > 1 => {}
            Ok(false) => return Err(missing(key)),
            Err(refused) if deleted.is_empty() => return Err(refused),
            Err(refused) => {
                let done: Vec<_> = deleted.into_iter().map(|key| (key, "deleted")).collect();
                return Err(Refused::Failed(halfway(refused.into_failure(), "deleted", &done, &there[index..])));
            }
        }
    }
    Ok(deleted)
}

/// False: it is not there.
async fn remove(
    cluster: &Cluster,
    key: &Key,
    preconditions: Option<Preconditions>,
    dry_run: bool,
) -> Result<bool, Refused> {
    let api = cluster.dynamic(&cluster.kind(key.kind).await, Some(&key.namespace));
    let read = preconditions.is_some();
    match api.delete(&key.name, &DeleteParams { dry_run, preconditions, ..DeleteParams::default() }).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(kube::Error::Api(status)) if status.code == 409 && read => {
            Err(Refused::Conflict(format!("{key} was changed meanwhile")))
        }
        Err(error) => Err(named(key, error.into()).into()),
    }
}

fn missing(key: &Key) -> Refused {
    Refused::Failed(Failure::not_found(format!("{key} does not exist; nothing was deleted.")))
}

/// Says what was done before the failure and what was not. `left` begins with the object that failed.
fn halfway(failure: Failure, what: &str, done: &[(Key, &str)], left: &[Key]) -> Failure {
    let named = |keys: &[Key]| keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let done: Vec<String> = done.iter().map(|(key, outcome)| format!("{key} ({outcome})")).collect();
    // Without an answer it is not known whether the request came to its end.
    let (unknown, not) = left.split_at(usize::from(failure.exit == Exit::Unreachable));
    let mut message = format!("{}\nOnly a part was {what}: {}.", failure.message, done.join(", "));
    for (how, keys) in [("Perhaps", unknown), ("Not", not)] {
        if !keys.is_empty() {
            message.push_str(&format!(" {how} {what}: {}.", named(keys)));
        }
    }
    let again = "Then do the same again; what is done already does not hinder it.";
    Failure::new(message).hint(match failure.hint {
        Some(hint) => format!("{hint} {again}"),
        None => format!("Mend that. {again}"),
    })
}
