use mesh_common::proto::workload::WorkloadPort;

use super::*;

fn identity(account: &str) -> Identity {
    Identity::new("mesh.local", "shop", account).unwrap()
}

/// From the machine of mesh-control.
fn near(account: &str) -> Registrant {
    Registrant { identity: identity(account), origin: Origin::Unix }
}

fn far(account: &str, ip: &str) -> Registrant {
    Registrant { identity: identity(account), origin: Origin::Ip(ip.parse().unwrap()) }
}

/// At an address of its own.
fn registration(name: &str) -> Registration {
    Registration {
        name: name.to_owned(),
        service: "reviews".to_owned(),
        version: "v2".to_owned(),
        addresses: vec![format!("10.0.0.{}", name.as_bytes()[0]), format!("fd00::{}", name.as_bytes()[0])],
        ports: vec![WorkloadPort { port: 9080, protocol: "http".to_owned(), ..WorkloadPort::default() }],
        ..Registration::default()
    }
}

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn entry(store: &Store, key: &Key) -> Option<WorkloadEntry> {
    match store.current().objects.get(key).map(Arc::as_ref) {
        Some(Object::WorkloadEntry(entry)) => Some(entry.clone()),
        _ => None,
    }
}

#[tokio::test]
async fn an_entry_lives_as_long_as_its_stream() {
    let (_dir, store) = open();
    let now = Instant::now();
    let registry = Registry::new(store.clone(), now);
    let who = near("reviews");
    let (claim, revision) = registry.register(&who, &registration("reviews-v2-a"), false).await.unwrap();
    assert_eq!(claim.key.to_string(), "WorkloadEntry shop/reviews-v2-a");
    assert_eq!(revision, 1);
    let stored = entry(&store, &claim.key).unwrap();
    assert_eq!(stored.spec.service_account, "reviews");
    assert_eq!((stored.spec.healthy, stored.spec.mesh), (Some(false), Some(true)));
    assert!(is_registered(&stored.into()));

    registry.update(&claim, &who, &registration("reviews-v2-a"), true).await.unwrap();
    assert_eq!(entry(&store, &claim.key).unwrap().spec.healthy, Some(true));
    registry.leave(&claim).await.unwrap();
    assert!(entry(&store, &claim.key).is_none());
}

#[tokio::test]
async fn a_broken_stream_has_its_grace() {
    let (_dir, store) = open();
    let now = Instant::now();
    let registry = Registry::new(store.clone(), now);
    let who = near("reviews");
    let (first, _) = registry.register(&who, &registration("a"), true).await.unwrap();
    registry.lost(&first, now);
    assert!(registry.expire(now + GRACE / 2).await.unwrap().is_empty());

    // It comes back: the end of the old stream, noticed late, has no say any more.
    let (second, _) = registry.register(&who, &registration("a"), true).await.unwrap();
    registry.lost(&first, now);
    registry.leave(&first).await.unwrap();
    assert!(registry.update(&first, &who, &registration("a"), false).await.is_err());
    assert!(registry.expire(now + GRACE * 2).await.unwrap().is_empty());
    assert!(entry(&store, &second.key).is_some());

    // After a restart of mesh-control, those that don't come back go, and what the operator wrote stays.
    let (third, _) = registry.register(&who, &registration("b"), true).await.unwrap();
    let mut written = entry::from_registration(&who, &registration("c"), true).unwrap();
    written.metadata.labels.clear();
    store.apply(vec![written.into()], false).unwrap();
    let registry = Registry::new(store.clone(), now);
    registry.register(&who, &registration("a"), true).await.unwrap();
    assert!(registry.expire(now + GRACE / 2).await.unwrap().is_empty());
    assert_eq!(registry.expire(now + GRACE).await.unwrap(), [third.key]);
    assert_eq!(store.current().objects.len(), 2);
}

#[tokio::test]
async fn who_is_not_heard_of_is_lost_until_it_is() {
    let (_dir, store) = open();
    let now = Instant::now();
    let registry = Registry::new(store.clone(), now);
    let who = near("reviews");
    let is_lost = |claim: &Claim| entry(&store, &claim.key).unwrap().metadata.labels.contains_key(LABEL_LOST);
    let (a, _) = registry.register(&who, &registration("a"), true).await.unwrap();
    let (b, _) = registry.register(&who, &registration("b"), true).await.unwrap();
    registry.lost(&a, now);
    let early = now + LOST_AFTER - Duration::from_millis(1);
    assert!(registry.mark_lost(early).await.unwrap().is_empty());
    assert_eq!(registry.mark_lost(now + LOST_AFTER).await.unwrap(), std::slice::from_ref(&a.key));
    assert!(is_lost(&a) && !is_lost(&b));
    // Once, and the grace time is what it was.
    assert!(registry.mark_lost(now + LOST_AFTER * 2).await.unwrap().is_empty());
    assert!(registry.expire(now + GRACE - Duration::from_millis(1)).await.unwrap().is_empty());

    let (a, _) = registry.register(&who, &registration("a"), true).await.unwrap();
    assert!(!is_lost(&a));
    assert!(registry.mark_lost(now + GRACE).await.unwrap().is_empty());
    assert!(registry.expire(now + GRACE).await.unwrap().is_empty());

    // One that is gone before is not made anew.
    registry.lost(&b, now);
    registry.depart(&identity("reviews"), "b").await.unwrap();
    assert!(registry.mark_lost(now + LOST_AFTER).await.unwrap().is_empty());
    assert!(entry(&store, &b.key).is_none());

    // A restart of mesh-control, after which all are without a stream, loses nobody.
    let registry = Registry::new(store.clone(), now);
    assert!(registry.mark_lost(now + GRACE).await.unwrap().is_empty());
    // Nor does its end.
    let (a, _) = registry.register(&who, &registration("a"), true).await.unwrap();
    registry.close();
    registry.lost(&a, now);
    assert!(registry.mark_lost(now + GRACE).await.unwrap().is_empty());
}

#[tokio::test]
async fn nobody_takes_the_name_of_another() {
    let (_dir, store) = open();
    let registry = Registry::new(store.clone(), Instant::now());
    let (claim, _) = registry.register(&near("reviews"), &registration("a"), true).await.unwrap();
    let refused = registry.register(&near("web"), &registration("a"), true).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    assert!(registry.holds(&claim));
    assert_eq!(entry(&store, &claim.key).unwrap().spec.service_account, "reviews");

    let mut written = entry::from_registration(&near("reviews"), &registration("vm"), true).unwrap();
    written.metadata.labels.clear();
    store.apply(vec![written.into()], false).unwrap();
    let refused = registry.register(&near("reviews"), &registration("vm"), true).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::AlreadyExists);
}

async fn register(registry: &Registry, account: &str, registration: &Registration) -> Result<Claim, tonic::Code> {
    registry.register(&near(account), registration, true).await.map(|(claim, _)| claim).map_err(|e| e.code())
}

fn service(yaml: &str) -> Object {
    let text = format!("apiVersion: v1\nkind: Service\n{yaml}");
    mesh_common::resource::parse_yaml("test", &text).unwrap().remove(0)
}

#[tokio::test]
async fn nobody_joins_the_service_of_another() {
    let (_dir, store) = open();
    let registry = Registry::new(store.clone(), Instant::now());
    let claim = register(&registry, "reviews", &registration("a")).await.unwrap();
    let refused = registry.register(&near("evil"), &registration("b"), true).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    assert!(refused.message().contains("meshctl.dev/service-accounts"), "{}", refused.message());
    assert!(refused.message().contains("of service account reviews"), "{}", refused.message());
    register(&registry, "reviews", &registration("c")).await.unwrap();

    // Nor by the name of its version, nor by a later change of what it registered.
    let of_version = Registration { service: "reviews-v2".into(), version: String::new(), ..registration("b") };
    assert_eq!(register(&registry, "evil", &of_version).await, Err(tonic::Code::PermissionDenied));
    let other = Registration { service: "other".into(), ..registration("b") };
    let evil = register(&registry, "evil", &other).await.unwrap();
    let refused = registry.update(&evil, &near("evil"), &registration("b"), true).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    registry.update(&evil, &near("evil"), &other, false).await.unwrap();

    // It is free again when its last workload has gone, and what the operator wrote counts like what registered.
    for name in ["a", "c"] {
        registry.depart(&identity("reviews"), name).await.unwrap();
    }
    registry.leave(&claim).await.unwrap();
    register(&registry, "web", &registration("d")).await.unwrap();
    registry.depart(&identity("web"), "d").await.unwrap();
    let mut written = entry::from_registration(&near("reviews"), &registration("vm"), true).unwrap();
    written.metadata.labels.clear();
    written.spec.service_account.clear();
    store.apply(vec![written.into()], false).unwrap();
    assert_eq!(register(&registry, "web", &registration("d")).await, Err(tonic::Code::PermissionDenied));
}

#[tokio::test]
async fn nobody_joins_the_service_of_another_by_its_selector() {
    let (_dir, store) = open();
    let registry = Registry::new(store.clone(), Instant::now());
    let object = "metadata: {name: shown, namespace: shop}\nspec: {selector: {app: reviews}, ports: [{port: 80}]}";
    store.apply(vec![service(object)], false).unwrap();
    register(&registry, "reviews", &registration("a")).await.unwrap();
    let mut labelled = Registration { service: String::new(), ..registration("b") };
    register(&registry, "evil", &labelled).await.unwrap();
    labelled.labels.insert("app".to_owned(), "reviews".to_owned());
    assert_eq!(register(&registry, "evil", &labelled).await, Err(tonic::Code::PermissionDenied));
}

#[tokio::test]
async fn a_service_says_whose_workloads_it_takes() {
    let (_dir, store) = open();
    let registry = Registry::new(store.clone(), Instant::now());
    let object = |accounts: &str| {
        service(&format!(
            "metadata: {{name: reviews, namespace: shop, annotations: {{meshctl.dev/service-accounts: {accounts:?}}}}}\n\
             spec: {{ports: [{{port: 9080}}]}}"
        ))
    };
    store.apply(vec![object("reviews, canary")], false).unwrap();
    assert_eq!(register(&registry, "evil", &registration("c")).await, Err(tonic::Code::PermissionDenied));
    register(&registry, "reviews", &registration("a")).await.unwrap();
    let canary = register(&registry, "canary", &registration("b")).await.unwrap();

    // Whoever is struck off the list is out with its next message.
    store.apply(vec![object("reviews")], false).unwrap();
    let refused = registry.update(&canary, &near("canary"), &registration("b"), true).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    store.apply(vec![object("")], false).unwrap();
    assert_eq!(register(&registry, "reviews", &registration("a")).await, Err(tonic::Code::PermissionDenied));
}

#[tokio::test]
async fn who_departs_is_gone_before_its_stream_is() {
    let (_dir, store) = open();
    let registry = Registry::new(store.clone(), Instant::now());
    let (claim, revision) = registry.register(&near("reviews"), &registration("a"), true).await.unwrap();
    let refused = registry.depart(&identity("web"), "a").await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    assert!(entry(&store, &claim.key).is_some());

    assert_eq!(registry.depart(&identity("reviews"), "a").await.unwrap(), revision + 1);
    assert!(entry(&store, &claim.key).is_none());
    assert_eq!(registry.depart(&identity("reviews"), "a").await.unwrap(), revision + 1);
    assert_eq!(registry.depart(&identity("reviews"), "nobody").await.unwrap(), revision + 1);
    registry.leave(&claim).await.unwrap();

    let mut written = entry::from_registration(&near("reviews"), &registration("vm"), true).unwrap();
    written.metadata.labels.clear();
    store.apply(vec![written.into()], false).unwrap();
    let refused = registry.depart(&identity("reviews"), "vm").await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::AlreadyExists);
}

#[test]
fn registrations_are_checked() {
    let check = |change: fn(&mut Registration)| {
        let mut registration = registration("a");
        change(&mut registration);
        entry::from_registration(&near("reviews"), &registration, true).map(|_| ())
    };
    assert_eq!(check(|_| {}), Ok(()));
    assert_eq!(check(|r| r.namespace = "shop".into()), Ok(()));
    assert_eq!(check(|r| (r.service, r.addresses) = (String::new(), vec![])), Ok(()));
    for change in [
        (|r| r.namespace = "other".into()) as fn(&mut Registration),
        |r| r.name = String::new(),
        |r| r.name = "../a".into(),
        |r| r.service = "Reviews".into(),
        |r| r.addresses = vec!["reviews.example.org".into()],
        |r| r.addresses = vec!["0.0.0.0".into()],
        |r| r.addresses.clear(),
        |r| r.addresses = vec!["10.0.0.1".into(); 17],
        |r| r.ports[0].port = 0,
        |r| r.ports[0].port = 65536,
        |r| r.ports[0].service_port = 70000,
        |r| r.ports[0].protocol = "quic".into(),
        |r| r.weight = u32::MAX,
        |r| r.locality = "a\nb".into(),
        |r| _ = r.labels.insert("meshctl.dev/registered".into(), "false".into()),
        |r| _ = r.labels.insert("a b".into(), "x".into()),
    ] {
        check(change).unwrap_err();
    }
}

#[tokio::test]
async fn nobody_takes_the_address_of_another() {
    let (_dir, store) = open();
    let now = Instant::now();
    let registry = Registry::new(store.clone(), now);
    let at = |name: &str, service: &str, address: &str, port: u32| {
        let ports = vec![WorkloadPort { port, ..WorkloadPort::default() }];
        Registration { service: service.into(), addresses: vec![address.into()], ports, ..registration(name) }
    };
    let owner = far("reviews", "10.0.0.1");
    let (claim, _) = registry.register(&owner, &at("a", "reviews", "10.0.0.1", 80), true).await.unwrap();
    let refused = |result: Result<(Claim, u64), Status>| {
        let status = result.unwrap_err();
        assert_eq!(status.code(), tonic::Code::PermissionDenied);
        status.message().to_owned()
    };
    // Neither from elsewhere, nor from the same machine, however it is written.
    for text in ["10.0.0.1", "::ffff:10.0.0.1"] {
        for who in [far("evil", "10.0.0.2"), far("evil", "10.0.0.1"), near("evil")] {
            let why = refused(registry.register(&who, &at("b", "evil", text, 80), true).await);
            assert!(why.contains("WorkloadEntry shop/a") && why.contains("or a port of your own"), "{why}");
        }
    }
    // A service account of the same name elsewhere is another identity, and who lists no ports may serve any.
    let stranger = Identity::new("mesh.local", "other", "reviews").unwrap();
    let stranger = Registrant { identity: stranger, origin: Origin::Unix };
    refused(registry.register(&stranger, &at("b", "reviews", "10.0.0.1", 80), true).await);
    let any = Registration { ports: vec![], ..at("b", "evil", "10.0.0.1", 80) };
    refused(registry.register(&near("evil"), &any, true).await);
    // Nor by a later change. Another port of the same machine is free, and so is one's own for a second workload.
    let (other, _) = registry.register(&near("evil"), &at("b", "evil", "10.0.0.1", 81), true).await.unwrap();
    let changed = registry.update(&other, &near("evil"), &at("b", "evil", "10.0.0.1", 80), true).await;
    assert_eq!(changed.unwrap_err().code(), tonic::Code::PermissionDenied);
    registry.register(&owner, &at("c", "reviews", "10.0.0.1", 80), true).await.unwrap();
    registry.depart(&owner.identity, "c").await.unwrap();

    // In its grace time, it gives way to nobody but who has the address. Then it is refused itself.
    registry.lost(&claim, now);
    refused(registry.register(&far("web", "10.0.0.2"), &at("d", "web", "10.0.0.1", 80), true).await);
    registry.register(&far("web", "10.0.0.1"), &at("d", "web", "10.0.0.1", 80), true).await.unwrap();
    refused(registry.register(&owner, &at("a", "reviews", "10.0.0.1", 80), true).await);
}

#[tokio::test]
async fn nobody_takes_the_address_of_a_service() {
    let (_dir, store) = open();
    let registry = Registry::new(store.clone(), Instant::now());
    let object = "metadata: {name: shown, namespace: shop}\nspec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}";
    store.apply(vec![service(object)], false).unwrap();
    let claims = |address: &str| Registration { addresses: vec![address.to_owned()], ..registration("a") };
    let refused = registry.register(&near("reviews"), &claims("10.96.0.7"), true).await.unwrap_err();
    assert!(refused.message().contains("clusterIP of Service shop/shown"), "{}", refused.message());
    for address in ["240.240.0.7", "169.254.169.254"] {
        let refused = registry.register(&near("reviews"), &claims(address), true).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    }
    let refused = registry.register(&far("reviews", "10.0.0.2"), &claims("127.0.0.1"), true).await.unwrap_err();
    assert!(refused.message().contains("loopback"), "{}", refused.message());
    registry.register(&near("reviews"), &claims("127.0.0.1"), true).await.unwrap();
}
