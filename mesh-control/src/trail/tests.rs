use std::time::Duration;

use jiff::Timestamp;
use mesh_common::resource::Object;
use serde_json::json;
use tokio_stream::StreamExt;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_900_000_000 + second).unwrap()
}

fn service(name: &str, port: u16) -> Object {
    let json = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"ports": [{"port": port}]}});
    Object::from_json(&json.to_string()).unwrap()
}

fn user(name: &str) -> Who {
    Who::User { name: Some(name.into()), uid: Some(1000) }
}

fn record(second: i64, who: &Who, before: Option<&Object>, after: Option<&Object>) -> Record {
    Record::of(at(second), who, 7, before, after).unwrap()
}

fn trail() -> (Trail, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Trail::open(&dir.path().join(FILE)).unwrap(), dir)
}

async fn all(trail: &Trail, query: Query) -> Vec<Record> {
    let told: Vec<Told> = trail.ask(query).collect().await;
    told.into_iter().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}

#[test]
fn a_record_has_what_was_and_what_is() {
    let (old, new) = (service("a", 80), service("a", 81));
    let changed = record(0, &user("ada"), Some(&old), Some(&new));
    assert_eq!((changed.verb, changed.revision, changed.hidden), (Verb::Update, Some(7), false));
    assert_eq!(changed.object, Subject { kind: "Service".into(), namespace: "shop".into(), name: "a".into() });
    let port = |value: &Option<serde_json::Value>| value.as_ref().unwrap()["spec"]["ports"][0]["port"].as_u64();
    assert_eq!((port(&changed.before), port(&changed.after)), (Some(80), Some(81)));
    let made = record(0, &Who::MeshControl, None, Some(&new));
    assert_eq!((made.verb, made.before), (Verb::Create, None));
    assert_eq!(record(0, &Who::MeshControl, Some(&new), None).verb, Verb::Delete);
    assert_eq!(Record::of(at(0), &Who::MeshControl, 7, None, None), None);
}

#[test]
fn a_change_of_what_is_not_shown_is_said_to_be_one() {
    let rules = |keys: &str| {
        let json = json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": "RequestAuthentication", "metadata": {"name": "login"},
            "spec": {"jwtRules": [{"issuer": "https://login", "jwks": keys}]}});
        Object::from_json(&json.to_string()).unwrap()
    };
    let changed = record(0, &user("ada"), Some(&rules("{\"keys\": [1]}")), Some(&rules("{\"keys\": [2]}")));
    assert!(changed.hidden && changed.before == changed.after, "{changed:?}");
    assert!(!record(0, &user("ada"), Some(&rules("1")), Some(&rules("1"))).hidden);
}

#[tokio::test]
async fn records_are_found_by_who_what_and_when() {
    let (trail, _dir) = trail();
    assert_eq!(all(&trail, Query::default()).await, []);
    let web = Who::Workload { name: "spiffe://mesh.local/ns/shop/sa/web".into() };
    let records = [
        record(0, &user("ada"), None, Some(&service("a", 80))),
        record(10, &user("bob"), Some(&service("a", 80)), Some(&service("a", 81))),
        record(20, &web, None, Some(&service("b", 80))),
        record(30, &Who::MeshControl, Some(&service("b", 80)), None),
    ];
    trail.record(&records[..2]);
    trail.record(&records[2..]);
    assert_eq!(all(&trail, Query::default()).await, records);
    let some = |text: &str| Some(text.to_owned());
    for (query, found) in [
        (Query { since: Some(at(10)), ..Query::default() }, &[1, 2, 3][..]),
        (Query { who: some("ada"), ..Query::default() }, &[0]),
        (Query { who: some("1000"), ..Query::default() }, &[0, 1]),
        (Query { who: some("sa/web"), ..Query::default() }, &[2]),
        (Query { who: some("mesh-control"), ..Query::default() }, &[3]),
        (Query { kind: some("service"), name: some("a"), ..Query::default() }, &[0, 1]),
        (Query { kind: some("HTTPRoute"), ..Query::default() }, &[]),
        (Query { namespace: some("other"), ..Query::default() }, &[]),
        (Query { last: Some(2), ..Query::default() }, &[2, 3]),
        (Query { last: Some(1), name: some("a"), ..Query::default() }, &[1]),
    ] {
        let expected: Vec<Record> = found.iter().map(|index| records[*index].clone()).collect();
        assert_eq!(all(&trail, query.clone()).await, expected, "{query:?}");
    }
}

#[tokio::test]
async fn who_follows_is_told_of_each_once() {
    let (trail, dir) = trail();
    trail.record(&[record(0, &user("ada"), None, Some(&service("a", 80)))]);
    let mut told = trail.ask(Query { follow: true, kind: Some("Service".into()), ..Query::default() });
    let mut next = async || -> String {
        let line = tokio::time::timeout(Duration::from_secs(20), told.next()).await.expect("nothing is told");
        serde_json::from_str::<Record>(&line.unwrap().unwrap()).unwrap().object.name
    };
    assert_eq!(next().await, "a");
    trail.record(&[record(1, &user("ada"), None, Some(&service("b", 80)))]);
    trail.record(&[record(2, &user("ada"), None, Some(&service("c", 80)))]);
    assert_eq!((next().await, next().await), ("b".into(), "c".into()));
    // A later process goes on, past what a crash has cut off.
    let path = dir.path().join(FILE);
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str("{\"time\":");
    std::fs::write(&path, text).unwrap();
    drop(trail);
    let trail = Trail::open(&path).unwrap();
    trail.record(&[record(3, &user("ada"), None, Some(&service("d", 80)))]);
    let names: Vec<String> = all(&trail, Query::default()).await.into_iter().map(|it| it.object.name).collect();
    assert_eq!(names, ["a", "b", "c", "d"]);
}
