//! When snapshots are made, and what they share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time;

use super::*;
use crate::compile::ClientKind;
use crate::model::{Fetched, Keys, Settings};
use crate::objects::Objects;

fn settings() -> Settings {
    Settings { trust_domain: "mesh.local".to_owned() }
}

fn no_keys() -> watch::Receiver<Arc<Keys>> {
    watch::channel(Arc::default()).1
}

fn objects(revision: u64) -> Arc<Objects> {
    Arc::new(Objects {
        revision,
        objects: Default::default(),
        committed_at: Instant::now(),
        seen: Default::default(),
        accounts: None,
    })
}

fn scope(workload: &str) -> Scope {
    Scope {
        namespace: "default".to_owned(),
        identity: None,
        service: String::new(),
        version: String::new(),
        workload: workload.to_owned(),
        inbound_ports: Vec::new(),
        client: ClientKind::Mesh,
        faults: true,
        throttles: true,
        peak_ewma: true,
        limits: true,
        audits: true,
        asks: true,
        locality: Default::default(),
    }
}

/// Virtual time: nothing here sleeps.
#[tokio::test(start_paused = true)]
async fn the_first_commit_goes_out_at_once_and_the_following_together() {
    let (commit, watched) = watch::channel(objects(1));
    let (sender, mut snapshots) =
        watch::channel(Arc::new(first(&objects(1), &Default::default(), &settings(), &Default::default())));
    let publisher = tokio::spawn(publish(watched, no_keys(), settings(), sender, |_| ()));
    time::sleep(Duration::from_secs(1)).await;
    assert!(!snapshots.has_changed().unwrap());

    let start = time::Instant::now();
    commit.send_replace(objects(2));
    snapshots.changed().await.unwrap();
    assert_eq!((snapshots.borrow_and_update().revision, start.elapsed()), (2, Duration::ZERO));

    for revision in 3..=6 {
        time::sleep(Duration::from_millis(5)).await;
        commit.send_replace(objects(revision));
    }
    snapshots.changed().await.unwrap();
    assert_eq!(snapshots.borrow_and_update().revision, 6);
    let merged = start.elapsed();
    assert!((45..=55).contains(&merged.as_millis()), "{merged:?}");

    time::sleep(Duration::from_secs(1)).await;
    let start = time::Instant::now();
    commit.send_replace(objects(7));
    snapshots.changed().await.unwrap();
    assert_eq!((snapshots.borrow_and_update().revision, start.elapsed()), (7, Duration::ZERO));

    drop(commit);
    publisher.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn other_keys_make_a_snapshot_of_the_same_objects() {
    let (_commit, watched) = watch::channel(objects(3));
    let (keys, fetched) = watch::channel(Arc::new(Keys::default()));
    let begun = first(&objects(3), &Default::default(), &settings(), &Default::default());
    let (sender, mut snapshots) = watch::channel(Arc::new(begun));
    tokio::spawn(publish(watched, fetched, settings(), sender, |_| ()));
    time::sleep(Duration::from_secs(1)).await;
    assert!(!snapshots.has_changed().unwrap());
    let jwks = Fetched { jwks: Some("{}".into()), error: None };
    keys.send_replace(Arc::new(Keys([("https://a/k".to_owned(), jwks)].into())));
    snapshots.changed().await.unwrap();
    let snapshot = snapshots.borrow_and_update().clone();
    assert_eq!((snapshot.revision, snapshot.commits.len()), (3, 1));
    assert_eq!(snapshot.model.keys_from("https://a/k"), Some("{}"));
    keys.send_replace(Arc::new(Keys::clone(snapshot.model.keys())));
    time::sleep(Duration::from_secs(1)).await;
    assert!(!snapshots.has_changed().unwrap(), "the same keys are no change");
}

#[test]
fn commit_times_are_remembered_also_of_what_was_merged() {
    let begun = Instant::now();
    let commit = |revision: u64| Commit { revision, at: begun + Duration::from_millis(revision) };
    let model = || crate::model::build(&Default::default(), &settings(), &Default::default());
    let one = Snapshot::new(commit(1), &[], model(), None);
    let four = Snapshot::new(commit(4), &[commit(2), commit(3)], model(), Some(&one));
    let mut last = Snapshot::new(commit(6), &[], model(), Some(&four));
    assert_eq!(
        [1, 2, 3, 4, 5, 6, 7].map(|revision| last.committed(revision)),
        [1, 2, 3, 4, 6, 6, 6].map(|r| commit(r).at)
    );
    // The time that a change takes counts from the oldest commit.
    assert_eq!([one.committed_at, four.committed_at, last.committed_at], [1, 2, 6].map(|r| commit(r).at));
    for revision in 7..200 {
        last = Snapshot::new(commit(revision), &[], model(), Some(&last));
    }
    assert_eq!(last.commits.len(), COMMITS);
}

#[test]
fn equal_askers_share_what_they_see_while_there_is_one() {
    let snapshot = Arc::new(first(&objects(1), &Default::default(), &settings(), &Default::default()));
    let one = snapshot.scoped(&scope("a"));
    assert!(Arc::ptr_eq(&one, &snapshot.scoped(&scope("a"))));
    assert!(!Arc::ptr_eq(&one, &snapshot.scoped(&scope("b"))));
    drop(one);
    let _other = snapshot.scoped(&scope("c"));
    assert_eq!(snapshot.scopes.lock().unwrap().len(), 1);
}
