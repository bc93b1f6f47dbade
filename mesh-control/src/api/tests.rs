use mesh_common::resource::LABEL_REGISTERED;
use serde_json::{Value, json};
use tonic::Code;

use super::*;
use crate::auth::Authenticator;
use crate::ca::DEFAULT_TTL;
use crate::snapshot;

fn open(dir: &std::path::Path) -> MeshService {
    let store = Store::open(&dir.join("data")).unwrap();
    let ca = Arc::new(Ca::open(&dir.join("ca"), "mesh.local", Timestamp::now()).unwrap());
    let settings = Settings { trust_domain: "mesh.local".to_owned() };
    let (publish, snapshots) = tokio::sync::watch::channel(Arc::new(snapshot::first(
        &store.current(),
        &Default::default(),
        &settings,
        &Default::default(),
    )));
    tokio::spawn(snapshot::publish(
        store.watch(),
        tokio::sync::watch::channel(Arc::default()).1,
        settings.clone(),
        publish,
        |_| (),
    ));
    let xds = Xds::new(snapshots.clone(), ca.clone(), Authenticator::Tokens(store.tokens()));
    let objects = store.watch();
    let store = Some(store);
    let tls = Arc::new(ServerTls::new(ca.clone(), &[], DEFAULT_TTL, Timestamp::now()).unwrap());
    MeshService {
        objects,
        store,
        ca,
        tls,
        xds,
        snapshots,
        reports: Reports::new(Instant::now()),
        settings,
        log: None,
        data_dir: dir.to_owned(),
        started: Instant::now(),
        listeners: Vec::new(),
    }
}

fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}})
}

async fn apply(api: &MeshService, objects: &[Value]) -> Result<ApplyResponse, Status> {
    let objects = objects.iter().map(Value::to_string).collect();
    api.apply(Request::new(ApplyRequest { objects, ..ApplyRequest::default() })).await.map(Response::into_inner)
}

async fn list(api: &MeshService, kind: &str, namespace: &str, name: &str) -> Vec<Value> {
    let [kind, namespace, name] = [kind, namespace, name].map(str::to_owned);
    let response = api.list(Request::new(ListRequest { kind, namespace, name })).await.unwrap().into_inner();
    response.objects.iter().map(|text| serde_json::from_str(text).unwrap()).collect()
}

#[tokio::test]
async fn objects_are_taken_together_or_refused_with_reasons() {
    let dir = tempfile::tempdir().unwrap();
    let api = open(dir.path());
    let applied = apply(&api, &[service("a"), service("b")]).await.unwrap();
    assert_eq!(applied.revision, 1);
    assert!(applied.results.iter().all(|result| result.outcome() == apply_result::Outcome::Created));
    assert_eq!(applied.results[0].key.as_ref().unwrap().namespace, "default");

    let mut unknown = service("c");
    unknown["spec"]["prots"] = json!([]);
    let refused = apply(&api, &[service("d"), unknown, json!({"kind": "Pod"})]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("prots") && refused.message().contains("object 3"), "{}", refused.message());
    assert_eq!(list(&api, "", "", "").await.len(), 2);

    let mut entry = json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": "WorkloadEntry",
        "metadata": {"name": "vm", "labels": {"meshctl.dev/registered": "true"}},
        "spec": {"service": "a", "addresses": ["10.0.0.1"], "ports": [{"port": 80}]}});
    let refused = apply(&api, &[entry.clone()]).await.unwrap_err();
    assert!(refused.message().contains("meshctl.dev/registered"), "{}", refused.message());
    entry["metadata"]["labels"] = json!({});
    apply(&api, &[entry]).await.unwrap();

    let config = json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": "default"},
        "spec": {"trustDomain": "other.example"}});
    let refused = apply(&api, &[config]).await.unwrap_err();
    assert!(refused.message().contains("spec.trustDomain"), "{}", refused.message());
}

#[tokio::test]
async fn changes_are_checked_against_the_version_they_were_made_from() {
    let dir = tempfile::tempdir().unwrap();
    let api = open(dir.path());
    apply(&api, &[service("a")]).await.unwrap();
    let mut read = list(&api, "svc", "default", "a").await.remove(0);
    assert_eq!(read["metadata"]["resourceVersion"], "1");
    read["spec"]["ports"][0]["port"] = json!(81);
    apply(&api, &[read.clone()]).await.unwrap();
    read["spec"]["ports"][0]["port"] = json!(82);
    assert_eq!(apply(&api, &[read]).await.unwrap_err().code(), Code::Aborted);

    let delete = |name: &str, ignore_missing| {
        let key = ObjectKey { kind: "service".to_owned(), namespace: String::new(), name: name.to_owned() };
        api.delete(Request::new(DeleteRequest { keys: vec![key], ignore_missing, preconditions: Vec::new() }))
    };
    let as_read = |resource_version: &str| {
        let key = ObjectKey { kind: "service".to_owned(), namespace: String::new(), name: "a".to_owned() };
        let (keys, resource_version) = (vec![key.clone()], resource_version.to_owned());
        let preconditions = vec![Precondition { key: Some(key), resource_version, uid: String::new() }];
        api.delete(Request::new(DeleteRequest { keys, ignore_missing: true, preconditions }))
    };
    assert_eq!(as_read("1").await.unwrap_err().code(), Code::Aborted);
    assert_eq!(as_read("2").await.unwrap().into_inner().deleted.len(), 1);
    // It is gone, whatever it was.
    assert_eq!(as_read("1").await.unwrap().into_inner().deleted, []);
    apply(&api, &[service("a")]).await.unwrap();
    assert_eq!(delete("x", false).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(delete("x", true).await.unwrap().into_inner().deleted, []);
    assert_eq!(delete("a", false).await.unwrap().into_inner().deleted.len(), 1);
    let bad = DeleteRequest {
        keys: vec![ObjectKey { kind: "pod".to_owned(), ..ObjectKey::default() }],
        ..DeleteRequest::default()
    };
    assert_eq!(api.delete(Request::new(bad)).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_watcher_sees_what_is_there_and_what_changes() {
    let dir = tempfile::tempdir().unwrap();
    let api = open(dir.path());
    apply(&api, &[service("a"), service("b")]).await.unwrap();
    let request = WatchRequest { kind: "Service".to_owned(), namespace: "default".to_owned() };
    let mut events = api.watch(Request::new(request)).await.unwrap().into_inner();
    let mut next = async || {
        let event = events.next().await.unwrap().unwrap();
        (event.r#type(), event.key.unwrap_or_default().name, event.revision)
    };
    use watch_event::Type;
    assert_eq!(next().await, (Type::Applied, "a".to_owned(), 1));
    assert_eq!(next().await, (Type::Applied, "b".to_owned(), 1));
    assert_eq!(next().await, (Type::Synced, String::new(), 1));
    apply(&api, &[service("a"), service("c")]).await.unwrap();
    assert_eq!(next().await, (Type::Applied, "c".to_owned(), 2));
    let key = mesh_common::resource::Key::new(mesh_common::resource::Kind::Service, "default", "a");
    api.store.as_ref().unwrap().delete(&[key], false).unwrap();
    assert_eq!(next().await, (Type::Deleted, "a".to_owned(), 3));
}

#[tokio::test]
async fn what_an_object_lacks_is_a_warning_and_a_condition() {
    let dir = tempfile::tempdir().unwrap();
    let api = open(dir.path());
    let route = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "r"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "a", "port": 80}],
                 "rules": [{"backendRefs": [{"name": "missing", "port": 80}]}]}});
    let applied = apply(&api, &[service("a"), route]).await.unwrap();
    assert_eq!(applied.results[0].warnings, [""; 0]);
    assert!(applied.results[1].warnings.iter().any(|text| text.contains("missing")), "{applied:?}");

    // The snapshot follows the store.
    api.snapshots.clone().wait_for(|snapshot| snapshot.revision == applied.revision).await.unwrap();
    let listed = list(&api, "httproutes", "", "r").await.remove(0);
    let conditions = listed["status"].to_string();
    assert!(conditions.contains("ResolvedRefs") && conditions.contains("missing"), "{listed}");
    let findings = api.get_status(Request::new(GetStatusRequest {})).await.unwrap().into_inner().findings;
    assert!(findings.iter().any(|finding| finding.subject == "HTTPRoute default/r"), "{findings:?}");
    assert!(findings.iter().any(|finding| finding.subject == "Service default/a"), "{findings:?}");

    let services = api.list_services(Request::new(ListServicesRequest {})).await.unwrap().into_inner().services;
    assert_eq!((services.len(), services[0].name.as_str(), &services[0].ports), (1, "a", &vec![80]));
    assert!(!services[0].virtual_addresses.is_empty());
}

#[tokio::test]
async fn tokens_are_for_workloads() {
    let dir = tempfile::tempdir().unwrap();
    let api = open(dir.path());
    let create = |namespace: &str, service_account: &str, ttl_seconds| {
        let [namespace, service_account] = [namespace, service_account].map(str::to_owned);
        api.create_token(Request::new(CreateTokenRequest { namespace, service_account, ttl_seconds, uses: 0 }))
    };
    let token = create("", "web", 0).await.unwrap().into_inner();
    assert_eq!(token.spiffe_id, "spiffe://mesh.local/ns/default/sa/web");
    let redeemed = api.store.as_ref().unwrap().tokens().redeem(&token.token, Timestamp::now()).unwrap();
    assert_eq!(redeemed.to_string(), token.spiffe_id);
    assert!(api.store.as_ref().unwrap().tokens().is_empty());

    assert_eq!(create("mesh-system", "mesh-control", 0).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(create("", "", 0).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(create("", "web", u64::MAX).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn tells_how_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let api = open(dir.path());
    let status = api.get_status(Request::new(GetStatusRequest {})).await.unwrap().into_inner();
    assert_eq!((status.trust_domain.as_str(), status.revision), ("mesh.local", 0));
    assert!(status.findings.iter().all(|finding| finding.level() == finding::Level::Ok), "{:?}", status.findings);
    let late = findings::findings(
        &api.snapshot().model,
        &api.store.as_ref().unwrap().current(),
        &[Proxy {
            id: "web.default".to_owned(),
            types: vec![ProxyType { r#type: "LDS".to_owned(), nack: "no".to_owned(), ..ProxyType::default() }],
            ..Proxy::default()
        }],
        Timestamp::now(),
        Timestamp::now(),
    );
    assert_eq!((late[0].level(), late[0].subject.as_str()), (finding::Level::Error, "proxy web.default"));
    assert_eq!((late[1].level(), late[1].subject.as_str()), (finding::Level::Warning, "root certificate"));

    let ahead = WaitRequest { revision: 9, timeout_ms: 1, ..WaitRequest::default() };
    assert_eq!(api.wait(Request::new(ahead)).await.err().unwrap().code(), Code::DeadlineExceeded);
    let mut wait = api.wait(Request::new(WaitRequest::default())).await.unwrap().into_inner();
    assert!(wait.next().await.unwrap().unwrap().done);
}

#[tokio::test]
async fn a_root_is_replaced_in_steps_that_are_refused_out_of_turn() {
    let dir = tempfile::tempdir().unwrap();
    let mut api = open(dir.path());
    let audit = dir.path().join("audit.log");
    api.store.as_ref().unwrap().keep_trail(crate::trail::Trail::open(&audit).unwrap());
    let step = |api: &MeshService, step: i32, force| {
        let api = api.clone();
        async move { api.rotate_root(Request::new(RotateRootRequest { step, force })).await.map(Response::into_inner) }
    };
    let [none, begin, end] = [Step::Unspecified, Step::Begin, Step::End].map(i32::from);
    assert_eq!(step(&api, none, false).await.unwrap(), RotateRootResponse::default());
    assert_eq!(step(&api, 9, false).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(step(&api, end, true).await.unwrap_err().code(), Code::FailedPrecondition);
    assert!(step(&api, begin, false).await.unwrap().began_unix > 0);
    assert_eq!(step(&api, begin, false).await.unwrap_err().code(), Code::FailedPrecondition);
    let listed = api.list_certificates(Request::new(ListCertificatesRequest {})).await.unwrap().into_inner();
    let roles: Vec<_> = listed.authorities.iter().map(AuthorityCertificate::role).collect();
    use authority_certificate::Role::{ControlPlane, FormerRoot, Intermediate, Root};
    assert_eq!(roles, [Root, FormerRoot, Intermediate, ControlPlane]);
    // The own certificate is of the new one at once.
    let intermediate = certificates::distinguished_name(&api.ca.intermediate_der()).unwrap();
    assert_eq!(listed.authorities[3].certificate.as_ref().unwrap().issuer, intermediate);

    // Whoever has registered and is away, is waited for, and so is everybody after a start.
    assert!(step(&api, end, false).await.unwrap_err().message().contains("just started"));
    let entry = json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": "WorkloadEntry",
        "metadata": {"name": "web-1", "labels": {LABEL_REGISTERED: "true"}}, "spec": {"addresses": ["10.0.0.9"]}});
    let store = api.store.clone().unwrap();
    store.apply(vec![mesh_common::resource::Object::from_json(&entry.to_string()).unwrap()], false).unwrap();
    api.objects.changed().await.unwrap();
    let behind = step(&api, none, false).await.unwrap().behind;
    assert_eq!(behind.iter().map(|it| it.id.as_str()).collect::<Vec<_>>(), ["web-1.default"]);
    assert!(step(&api, end, false).await.unwrap_err().message().starts_with("1 workloads"));
    assert_eq!(step(&api, end, true).await.unwrap(), RotateRootResponse::default());
    assert_eq!(api.ca.roots_der().len(), 1);

    api.store = None;
    assert_eq!(step(&api, begin, false).await.unwrap_err().code(), Code::FailedPrecondition);
    let records = std::fs::read_to_string(&audit).unwrap();
    let of =
        |verb: &str| records.lines().filter(|line| line.contains("RootCertificate") && line.contains(verb)).count();
    assert_eq!((of("\"create\""), of("\"delete\"")), (1, 1), "{records}");
}
