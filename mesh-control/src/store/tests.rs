use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};

use mesh_common::identity::Identity;

use super::*;

pub(super) fn service(name: &str, port: u16) -> Object {
    Object::from_json(&format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}","namespace":"default"}},"spec":{{"ports":[{{"port":{port}}}]}}}}"#
    ))
    .unwrap()
}

fn version(object: &Object) -> &str {
    object.metadata().resource_version.as_deref().unwrap()
}

fn stored(store: &Store, name: &str) -> Arc<Object> {
    store.current().objects[&service(name, 1).key()].clone()
}

#[test]
fn versions_generations_and_outcomes() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let key = service("a", 1).key();

    let applied = store.apply(vec![service("a", 1)], false).unwrap();
    assert_eq!(applied, Applied { results: vec![(key.clone(), Outcome::Created)], revision: 1 });
    let first = stored(&store, "a");
    assert_eq!((version(&first), first.metadata().generation), ("1", Some(1)));
    assert!(first.metadata().uid.as_ref().is_some_and(|uid| uid.len() == 36));

    let same = store.apply(vec![service("a", 1)], false).unwrap();
    assert_eq!(same, Applied { results: vec![(key.clone(), Outcome::Unchanged)], revision: 1 });

    let mut labelled = service("a", 1);
    labelled.metadata_mut().labels.insert("x".into(), "y".into());
    store.apply(vec![labelled], false).unwrap();
    assert_eq!((version(&stored(&store, "a")), stored(&store, "a").metadata().generation), ("2", Some(1)));

    let dry = store.apply(vec![service("a", 2), service("b", 1)], true).unwrap();
    assert_eq!(
        dry.results.iter().map(|(_, outcome)| *outcome).collect::<Vec<_>>(),
        [Outcome::Configured, Outcome::Created]
    );
    assert_eq!(store.current().revision, 2);

    store.apply(vec![service("a", 2)], false).unwrap();
    let third = stored(&store, "a");
    assert_eq!((version(&third), third.metadata().generation), ("3", Some(2)));
    assert_eq!(third.metadata().uid, first.metadata().uid);
    assert_eq!(third.metadata().creation_timestamp, first.metadata().creation_timestamp);

    drop(store);
    let again = Store::open(dir.path()).unwrap();
    assert_eq!(again.current().revision, 3);
    assert_eq!(stored(&again, "a"), third);
}

#[test]
fn a_batch_is_taken_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.apply(vec![service("a", 1)], false).unwrap();

    let mut stale = service("a", 2);
    stale.metadata_mut().resource_version = Some("7".into());
    let error = store.apply(vec![service("b", 1), stale], false).unwrap_err();
    assert!(matches!(error, StoreError::Conflict { .. }), "{error}");
    let mut vanished = service("c", 2);
    vanished.metadata_mut().resource_version = Some("1".into());
    assert!(matches!(store.apply(vec![service("b", 1), vanished], false), Err(StoreError::Vanished { .. })));
    assert!(matches!(store.apply(vec![service("b", 1), service("b", 2)], false), Err(StoreError::Twice(_))));
    let mut large = service("b", 1);
    large.metadata_mut().annotations.insert("x".into(), "y".repeat(MAX_OBJECT_BYTES));
    assert!(matches!(store.apply(vec![service("c", 1), large], false), Err(StoreError::TooLarge { .. })));
    assert_eq!(store.current().objects.len(), 1);
    assert_eq!(store.current().revision, 1);

    let mut current = service("a", 2);
    current.metadata_mut().resource_version = Some("1".into());
    store.apply(vec![current], false).unwrap();
    assert_eq!(version(&stored(&store, "a")), "2");
}

#[test]
fn deletes_and_tells_watchers() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut watch = store.watch();
    store.apply(vec![service("a", 1), service("b", 1)], false).unwrap();
    assert!(watch.has_changed().unwrap());
    let [a, b, c] = ["a", "b", "c"].map(|name| service(name, 1).key());

    assert!(matches!(store.delete(&[a.clone(), c.clone()], false), Err(StoreError::NotFound(_))));
    assert_eq!(store.delete(&[a.clone(), c.clone()], true).unwrap(), (vec![a], 2));
    assert_eq!(store.delete(&[c], true).unwrap(), (vec![], 2));
    assert_eq!(watch.borrow_and_update().objects.len(), 1);

    let seen = stored(&store, "b");
    store.apply(vec![service("b", 2)], false).unwrap();
    assert_eq!(store.delete_unchanged(&[seen]).unwrap(), (vec![], 3));
    assert_eq!(store.delete_unchanged(&[stored(&store, "b")]).unwrap(), (vec![b], 4));
    drop(store);
    assert!(Store::open(dir.path()).unwrap().current().objects.is_empty());
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let error = Store::open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("another mesh-control") && error.contains(&std::process::id().to_string()), "{error}");
    drop(store);
    Store::open(dir.path()).unwrap();
}

#[test]
fn files_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let _store = Store::open(&data).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    assert_eq!(mode(&data.join("store.redb")), 0o600);
}

#[test]
fn tokens_are_used_up_and_expire() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::new("mesh.local", "shop", "web").unwrap();
    let now = Timestamp::UNIX_EPOCH;
    let minute = std::time::Duration::from_secs(60);
    let store = Store::open(dir.path()).unwrap();
    let (single, expires) = store.tokens().create(&identity, minute, 1, [3; 32], now).unwrap();
    let (twice, _) = store.tokens().create(&identity, minute, 2, [3; 32], now).unwrap();
    assert_eq!(expires, now + minute);

    assert_eq!(store.tokens().check(&single.reveal(), now).unwrap(), identity);
    assert_eq!(store.tokens().redeem(&single.reveal(), now).unwrap(), identity);
    assert!(matches!(store.tokens().redeem(&single.reveal(), now), Err(TokenError::Unknown)));
    assert!(matches!(store.tokens().redeem("mesh1.x", now), Err(TokenError::Malformed(_))));
    let forged = mesh_common::token::JoinToken::new(from_id(twice.id()), [0; 32], [3; 32]);
    assert!(matches!(store.tokens().redeem(&forged.reveal(), now), Err(TokenError::Unknown)));

    // A use counts across restarts, and the secret is nowhere on the disk.
    store.tokens().redeem(&twice.reveal(), now).unwrap();
    drop(store);
    let bytes = fs::read(dir.path().join("store.redb")).unwrap();
    let text = twice.reveal();
    let secret = text.split('.').nth(2).unwrap().as_bytes();
    assert!(!bytes.windows(secret.len()).any(|window| window == secret));
    let store = Store::open(dir.path()).unwrap();
    assert!(matches!(store.tokens().redeem(&twice.reveal(), now + minute), Err(TokenError::Expired(_))));
    store.tokens().redeem(&twice.reveal(), now).unwrap();
    assert!(matches!(store.tokens().redeem(&twice.reveal(), now), Err(TokenError::Unknown)));

    store.tokens().create(&identity, minute, 1, [3; 32], now).unwrap();
    assert_eq!(store.tokens().purge(now).unwrap(), 0);
    assert_eq!(store.tokens().purge(now + minute).unwrap(), 1);
    assert!(store.tokens().is_empty());
    assert!(matches!(store.tokens().create(&identity, minute, 0, [3; 32], now), Err(TokenError::Limits)));
}

fn from_id(id: &str) -> [u8; 8] {
    mesh_common::token::from_hex(id).unwrap()
}

/// Opening must end in a store or in an error that names the file.
fn open_damaged(dir: &Path, what: &str) -> bool {
    match Store::open(dir) {
        Ok(store) => {
            // What can be opened can be written as well, or says why not.
            let _ = store.apply(vec![service("after", 1)], false);
            true
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("store"), "{what}: {text}");
            false
        }
    }
}

fn filled(dir: &Path) -> Vec<u8> {
    let store = Store::open(dir).unwrap();
    for batch in 0..5 {
        store.apply((0..20).map(|n| service(&format!("s-{batch}-{n}"), 80)).collect(), false).unwrap();
    }
    drop(store);
    fs::read(dir.join("store.redb")).unwrap()
}

/// Panics that become errors need not be printed a thousand times.
fn hush() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !guarded() {
            print(panic);
        }
    }));
}

#[test]
fn garbage_and_truncated_files_are_errors() {
    hush();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let good = filled(dir.path());
    let mut random = fastrand::Rng::with_seed(1);

    for size in [1, 100, 4096, 100_000] {
        let garbage: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(size).collect();
        fs::write(&path, garbage).unwrap();
        assert!(!open_damaged(dir.path(), "garbage"));
    }
    for _ in 0..20 {
        let length = random.usize(1..good.len());
        fs::write(&path, &good[..length]).unwrap();
        assert!(!open_damaged(dir.path(), &format!("cut at {length}")));
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(!open_damaged(dir.path(), "a folder"));
    fs::remove_dir(&path).unwrap();
    fs::File::create(&path).unwrap().set_len(db::MAX_FILE_BYTES + 1).unwrap();
    let error = Store::open(dir.path()).err().unwrap();
    assert!(matches!(error, StoreError::Oversized { .. }), "{error}");
    // The lock was let go each time.
    fs::remove_file(&path).unwrap();
    assert!(open_damaged(dir.path(), "anew"));
}

#[test]
fn flipped_bits_never_panic_nor_pass_for_data() {
    hush();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let good = filled(dir.path());
    let objects = |dir: &Path| Store::open(dir).map(|store| store.current().objects.clone());
    let whole = objects(dir.path()).unwrap();
    let good = if good.is_empty() { good } else { fs::read(&path).unwrap() };
    let mut random = fastrand::Rng::with_seed(2);

    for round in 0..150 {
        // The header, where every bit means something, gets its share.
        let at = if round % 3 == 0 { random.usize(0..512) } else { random.usize(0..good.len()) };
        fs::write(&path, &good).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[good[at] ^ (1 << random.u8(0..8))], at as u64).unwrap();
        drop(file);
        // Either it is found out, or it hit what nobody reads.
        if let Ok(read) = objects(dir.path()) {
            assert_eq!(read, whole, "bit at {at}");
        }
    }
}
