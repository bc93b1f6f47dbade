//! Whole commands against an API server and the replicas of a control plane: what is asked of them, what is changed, and what
//! the user is told when that is refused.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Parser;
use mesh_common::proto::control::watch_event::Type;
use mesh_common::proto::control::{Proxy, TapAsked, TapRequest, TapResponse, WaitProgress, WatchEvent};
use mesh_common::proto::telemetry::TapEvent;
use mesh_common::resource::Kind;
use serde_json::{Value, json};

use super::fake::{ApiServer, Behind};
use super::roots;
use crate::args::Cli;
use crate::commands::dispatch;
use crate::commands::fake::{self, Fake};
use crate::failure::{Exit, Failure};
use crate::output::Format;

async fn meshctl(server: &ApiServer, line: &str) -> Result<String, Failure> {
    let words = ["meshctl"].into_iter().chain(line.split_whitespace());
    let cli = Cli::try_parse_from(words).map_err(|e| Failure::usage(e.to_string()))?;
    let (context, captured) = server.context(cli.global.output);
    dispatch(&context, cli.command).await.map(|()| captured.text())
}

/// `apply` of this text.
async fn apply(server: &ApiServer, yaml: &str, options: &str) -> Result<String, Failure> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("objects.yaml");
    std::fs::write(&file, yaml).unwrap();
    meshctl(server, &format!("apply -f {} {options}", file.display())).await
}

fn route(name: &str, backend: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: shop}}
spec:
  parentRefs: [{{group: '', kind: Service, name: reviews}}]
  rules: [{{backendRefs: [{{name: {backend}, port: 9080}}]}}]
"
    )
}

fn backend(server: &ApiServer, name: &str) -> Option<String> {
    let route = server.state().store.get(Kind::HttpRoute, "shop", name)?;
    Some(route.pointer("/spec/rules/0/backendRefs/0/name")?.as_str()?.to_owned())
}

fn asked(server: &ApiServer) -> Vec<String> {
    std::mem::take(&mut server.state().asked)
}

/// What is not recorded is how the versions were found out.
#[tokio::test]
async fn objects_are_read_and_written_in_the_version_that_the_cluster_serves() {
    let server = ApiServer::start().await;
    server.state().older =
        [("tcproutes", "v1alpha2"), ("referencegrants", "v1beta1"), ("grpcroutes", "v1alpha2")].into();
    let tcp = "
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: t, namespace: shop}
spec: {parentRefs: [{group: '', kind: Service, name: db}], rules: [{backendRefs: [{name: db, port: 70}]}]}
";
    assert_eq!(apply(&server, tcp, "").await.unwrap(), "TCPRoute shop/t created\n");
    let stored = server.state().store.get(Kind::TcpRoute, "shop", "t").unwrap();
    assert_eq!(stored["apiVersion"], "gateway.networking.k8s.io/v1alpha2");
    assert_eq!(meshctl(&server, "get tcproutes -o name").await.unwrap(), "tcproute/t\n");
    assert!(meshctl(&server, "get referencegrants").await.is_ok());
    assert!(meshctl(&server, "get httproutes").await.is_ok());
    assert_eq!(meshctl(&server, "delete tcproute t").await.unwrap(), "TCPRoute shop/t deleted\n");
    // There in a version that is not known here.
    let unknown = meshctl(&server, "get grpcroutes").await.unwrap_err();
    assert!(unknown.hint.unwrap().contains("meshctl check"));
}

#[tokio::test]
async fn a_batch_is_tried_as_a_whole_before_it_is_written() {
    let server = ApiServer::start().await;
    let both = route("a", "v1") + &route("b", "v1");
    assert_eq!(apply(&server, &both, "").await.unwrap(), "HTTPRoute shop/a created\nHTTPRoute shop/b created\n");
    let lines = |dry_run: &str| {
        ["a", "b"].map(|n| [format!("GET httproutes shop/{n}"), format!("PATCH httproutes shop/{n}{dry_run}")]).concat()
    };
    assert_eq!(asked(&server), [lines(" (dry run)"), lines("")].concat());

    let changed = route("a", "v1") + &route("b", "v2");
    let text = apply(&server, &changed, "--dry-run").await.unwrap();
    assert_eq!(text, "HTTPRoute shop/a unchanged (dry run)\nHTTPRoute shop/b configured (dry run)\n");
    assert_eq!(backend(&server, "b").as_deref(), Some("v1"));
    let json: Value = serde_json::from_str(&apply(&server, &changed, "-o json").await.unwrap()).unwrap();
    assert_eq!(
        (&json["results"][0]["outcome"], &json["results"][1]["outcome"]),
        (&json!("unchanged"), &json!("configured"))
    );
    assert_eq!(
        (json["revision"].as_u64(), backend(&server, "b").as_deref()),
        (Some(server.state().store.version()), Some("v2"))
    );
}

#[tokio::test]
async fn what_the_api_server_refuses_is_told_and_nothing_is_changed() {
    for (code, more, exit, part) in [
        (
            422,
            json!({"reason": "Invalid", "message": "HTTPRoute \"b\" is invalid: spec.rules[0]: Invalid value: \"object\": no"}),
            Exit::Refused,
            "HTTPRoute shop/b: HTTPRoute \"b\" is invalid: spec.rules[0]",
        ),
        (
            403,
            json!({"reason": "Forbidden", "message": "httproutes is forbidden: User \"ada\" cannot patch"}),
            Exit::Failed,
            "User \"ada\" cannot patch",
        ),
        (
            404,
            json!({"reason": "NotFound", "message": "namespaces \"shop\" not found"}),
            Exit::NotFound,
            "\"shop\" not found",
        ),
        (503, json!({"reason": "ServiceUnavailable", "message": "etcd has no leader"}), Exit::Unreachable, "no leader"),
    ] {
        let server = ApiServer::start().await;
        server.state().refuse("PATCH httproutes shop/b (dry run)", code, more);
        let begun = Instant::now();
        let failure = apply(&server, &(route("a", "v1") + &route("b", "v1")), "").await.unwrap_err();
        assert_eq!(failure.exit, exit, "{code}: {failure}");
        // Whether it is asked again or not: somebody is waiting.
        assert!(begun.elapsed() < Duration::from_secs(20), "{code}: {:?}", begun.elapsed());
        assert!(failure.message.contains(part), "{code}: {failure}");
        assert_eq!((backend(&server, "a"), server.state().store.version()), (None, 0), "{code}");
    }
}

#[tokio::test]
async fn an_api_server_that_is_gone_is_told_as_such() {
    let server = ApiServer::start().await;
    server.stop();
    for line in ["get httproutes", "delete httproute a", "route list", "wait"] {
        let failure = meshctl(&server, line).await.unwrap_err();
        assert_eq!(failure.exit, Exit::Unreachable, "{line}: {failure}");
        assert!(failure.message.contains("API server cannot be reached"), "{line}: {failure}");
    }
    assert_eq!(apply(&server, &route("a", "v1"), "").await.unwrap_err().exit, Exit::Unreachable);
}

#[tokio::test]
async fn objects_are_found_by_name_and_namespace() {
    let server = ApiServer::start().await;
    server
        .state()
        .store
        .put("kubectl", &(route("a", "v1") + &route("b", "v1").replace("namespace: shop", "namespace: other")));
    assert_eq!(meshctl(&server, "get httproutes -o name").await.unwrap(), "httproute/a\n");
    assert_eq!(meshctl(&server, "get httproutes -A -o name").await.unwrap(), "httproute/b\nhttproute/a\n");
    assert_eq!(meshctl(&server, "get httproute b").await.unwrap_err().exit, Exit::NotFound);
    assert_eq!(meshctl(&server, "delete httproute b").await.unwrap_err().exit, Exit::NotFound);
    // One that is missing keeps the others.
    assert_eq!(meshctl(&server, "delete httproute a b").await.unwrap_err().exit, Exit::NotFound);
    assert!(backend(&server, "a").is_some());
    assert_eq!(
        meshctl(&server, "delete httproute a b --ignore-not-found").await.unwrap(),
        "HTTPRoute shop/a deleted\n"
    );
    assert!(backend(&server, "a").is_none());
    server.state().refuse("LIST httproutes shop", 403, json!({"message": "httproutes is forbidden"}));
    assert_eq!(meshctl(&server, "get httproutes").await.unwrap_err().exit, Exit::Failed);
    server.state().refuse(
        "LIST httproutes shop",
        404,
        json!({"message": "the server could not find the requested resource"}),
    );
    let failure = meshctl(&server, "get httproutes").await.unwrap_err();
    assert!(failure.exit == Exit::NotFound && failure.message.contains("does not know the kind"), "{failure}");
}

#[tokio::test]
async fn fields_of_others_are_not_taken() {
    let server = ApiServer::start().await;
    server.state().store.put("helm", &route("a", "v1"));
    let failure = apply(&server, &route("a", "v2"), "").await.unwrap_err();
    assert_eq!(failure.exit, Exit::Refused);
    assert!(failure.message.contains("helm") && failure.message.contains(".spec.rules"), "{failure}");
    assert_eq!(backend(&server, "a").as_deref(), Some("v1"));
    // The same value is nobody's loss.
    assert_eq!(apply(&server, &route("a", "v1"), "").await.unwrap(), "HTTPRoute shop/a unchanged\n");
}

#[tokio::test]
async fn what_was_applied_before_a_refusal_is_told() {
    let server = ApiServer::start().await;
    server.state().store.put("kubectl", &route("a", "v1"));
    // The trial passes, and then somebody takes the right away.
    let forbidden = json!({"reason": "Forbidden", "message": "User \"ada\" cannot patch"});
    server.state().refuse("PATCH httproutes shop/c", 403, forbidden);
    let four = ["a", "b", "c", "d"].map(|name| route(name, "v1")).concat();
    let failure = apply(&server, &four, "").await.unwrap_err();
    assert_eq!(failure.exit, Exit::Failed);
    let told = "Only a part was applied: HTTPRoute shop/a (unchanged), HTTPRoute shop/b (created). \
                Not applied: HTTPRoute shop/c, HTTPRoute shop/d.";
    assert!(failure.message.contains("cannot patch") && failure.message.ends_with(told), "{failure}");
    assert_eq!(["b", "c", "d"].map(|name| backend(&server, name).is_some()), [true, false, false]);
    // Now b is there, so that nothing was changed: then that is a refusal like any other.
    server.state().refuse("PATCH httproutes shop/c", 422, json!({"message": "spec is wrong"}));
    let failure = apply(&server, &four, "").await.unwrap_err();
    assert_eq!((failure.exit, failure.message.as_str()), (Exit::Refused, "HTTPRoute shop/c: Spec is wrong."));

    // An API server that goes away says nothing about the last one.
    server.state().refuse("PATCH httproutes shop/c", 504, json!({"message": "too slow"}));
    let failure = apply(&server, &["b", "c", "d"].map(|name| route(name, "v2")).concat(), "").await.unwrap_err();
    let told = "HTTPRoute shop/b (configured). Perhaps applied: HTTPRoute shop/c. Not applied: HTTPRoute shop/d.";
    assert!(failure.message.ends_with(told), "{failure}");

    server.state().refuse("DELETE httproutes shop/b", 403, json!({"message": "User \"ada\" cannot delete"}));
    let failure = meshctl(&server, "delete httproute a b").await.unwrap_err();
    assert!(failure.message.ends_with("HTTPRoute shop/a (deleted). Not deleted: HTTPRoute shop/b."), "{failure}");
    assert_eq!((failure.exit, backend(&server, "a")), (Exit::Failed, None));
}

#[tokio::test]
async fn conflicts_are_forced_only_when_that_is_said() {
    let server = ApiServer::start().await;
    server.state().store.put("helm", &route("a", "v1"));
    for _ in 0..2 {
        let failure = apply(&server, &(route("a", "v2") + &route("b", "v2")), "").await.unwrap_err();
        assert_eq!(
            (failure.exit, failure.message.as_str()),
            (Exit::Refused, "HTTPRoute shop/a: others have set fields to something else: .spec.rules (of helm).")
        );
        assert!(failure.hint.unwrap().contains("--force-conflicts"));
    }
    assert_eq!(backend(&server, "b"), None);
    assert_eq!(
        apply(&server, &route("a", "v2"), "--force-conflicts --dry-run").await.unwrap(),
        "HTTPRoute shop/a configured (dry run)\n"
    );
    assert_eq!(apply(&server, &route("a", "v2"), "--force-conflicts").await.unwrap(), "HTTPRoute shop/a configured\n");
    // From now on it is ours.
    assert_eq!(apply(&server, &route("a", "v3"), "").await.unwrap(), "HTTPRoute shop/a configured\n");
}

#[tokio::test]
async fn what_meshctl_itself_has_changed_is_no_conflict() {
    let server = ApiServer::start().await;
    apply(&server, &route("a", "v1"), "").await.unwrap();
    server.state().store.put("meshctl", &route("a", "v2"));
    assert_eq!(apply(&server, &route("a", "v1"), "").await.unwrap(), "HTTPRoute shop/a configured\n");
    server.state().store.put("meshctl", &route("a", "v2"));
    server.state().store.put("helm", &route("a", "v3"));
    assert_eq!(apply(&server, &route("a", "v1"), "").await.unwrap_err().exit, Exit::Refused);
}

fn fault(name: &str, seconds: u32) -> String {
    format!(
        "---
apiVersion: meshctl.dev/v1alpha1
kind: FaultInjection
metadata: {{name: {name}, namespace: shop}}
spec:
  targetRefs: [{{group: '', kind: Service, name: reviews}}]
  faults: [{{percent: 100, delay: {{duration: {seconds}s}}}}]
"
    )
}

#[tokio::test]
async fn what_was_changed_since_it_was_read_is_not_deleted_unseen() {
    let server = ApiServer::start().await;
    server.state().store.put("kubectl", &(fault("a", 1) + &fault("b", 1)));
    // Between reading and deleting: one is changed, and the other one's time is over.
    server.state().before("DELETE faultinjections shop/a (dry run)", |state| {
        state.store.put("kubectl", &fault("a", 2));
        state.store.remove(Kind::FaultInjection, "shop", "b");
    });
    assert_eq!(meshctl(&server, "fault clear").await.unwrap(), "FaultInjection shop/a deleted\n");
    let lists = asked(&server).iter().filter(|line| *line == "LIST faultinjections shop").count();
    // To decide, to decide again, and for the revision without it.
    assert_eq!(lists, 3);
    // Another object of the same name and of the same version, as after a restored backup, is not meant either.
    server.state().store.put("kubectl", &fault("a", 1));
    server.state().before("DELETE faultinjections shop/a", |state| {
        state.store.remove(Kind::FaultInjection, "shop", "a");
        state.store.put("kubectl", &(fault("a", 3) + &fault("b", 1)));
    });
    let text = meshctl(&server, "fault clear").await.unwrap();
    assert_eq!(text, "FaultInjection shop/a deleted\nFaultInjection shop/b deleted\n");
    assert_eq!(meshctl(&server, "fault clear reviews").await.unwrap_err().exit, Exit::NotFound);
    assert_eq!(meshctl(&server, "fault clear").await.unwrap(), "");

    // Those that --all finds may be gone before it comes to them.
    server.state().store.put("kubectl", &(fault("a", 1) + &fault("b", 1)));
    server.state().before("DELETE faultinjections shop/a (dry run)", |state| {
        state.store.remove(Kind::FaultInjection, "shop", "a")
    });
    assert_eq!(meshctl(&server, "delete faults --all").await.unwrap(), "FaultInjection shop/b deleted\n");
}

fn progress(proxies: u32, synced: u32) -> WaitProgress {
    let pending = (synced..proxies).map(|i| format!("p{i}")).collect();
    WaitProgress { proxies, synced, pending, done: proxies == synced, ..WaitProgress::default() }
}

fn applied(name: &str, version: u64) -> WatchEvent {
    let object =
        route(name, "v1").replace("namespace: shop", &format!("namespace: shop, resourceVersion: '{version}'"));
    let object = mesh_common::resource::parse_yaml("test", &object).unwrap().remove(0);
    let key = Some(crate::objects::to_proto(&object.key()));
    WatchEvent { r#type: Type::Applied.into(), key, object: object.to_json().to_string(), revision: version }
}

fn synced() -> WatchEvent {
    WatchEvent { r#type: Type::Synced.into(), ..WatchEvent::default() }
}

/// A replica whose streams stay open after what they say.
fn replica(server: &ApiServer, name: &str, said: impl FnOnce(&mut fake::State)) -> Fake {
    let control = Fake::default();
    {
        let mut state = control.0.lock().unwrap();
        state.holds = true;
        said(&mut state);
    }
    server.state().add_replica(name, Behind::Control(control.clone()));
    control
}

#[tokio::test]
async fn what_the_replicas_know_is_put_together() {
    let server = ApiServer::start().await;
    for (name, workload) in [("a", "web-1"), ("b", "web-2")] {
        let proxy = Proxy { id: format!("{workload}.shop"), namespace: "shop".into(), ..Proxy::default() };
        replica(&server, name, |state| state.proxies = vec![proxy]);
    }
    assert_eq!(meshctl(&server, "proxy status -o name").await.unwrap(), "web-1.shop\nweb-2.shop\n");
    assert!(meshctl(&server, "log-level debug").await.unwrap().contains("debug"));
}

#[tokio::test]
async fn waiting_goes_on_with_the_replicas_that_are_there() {
    let server = ApiServer::start().await;
    server.state().store.put("kubectl", &route("x", "v1"));
    replica(&server, "a", |state| state.progress = vec![progress(2, 2)]);
    let stuck = replica(&server, "b", |state| state.progress = vec![progress(3, 1)]);
    let waiting = async { meshctl(&server, "wait --timeout 20s -o json").await };
    let restarting = async {
        while stuck.0.lock().unwrap().waited.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        replica(&server, "c", |state| state.progress = vec![progress(4, 3), progress(4, 4)]);
        server.state().remove_replica("b");
    };
    let (text, ()) = tokio::join!(waiting, restarting);
    let json: Value = serde_json::from_str(&text.unwrap()).unwrap();
    assert_eq!((&json["proxies"], &json["synced"], &json["revision"]), (&json!(6), &json!(6), &json!(1)));
    let waited = stuck.0.lock().unwrap().waited.remove(0);
    assert_eq!((waited.objects.len(), waited.objects[0].resource_version.as_str()), (1, "1"));

    // One that came meanwhile is asked as well before all are said to be done.
    let late = Fake::default();
    late.0.lock().unwrap().progress = vec![progress(5, 5)];
    server.state().remove_replica("c");
    server.state().before("FORWARD mesh-system/a", move |state| state.add_replica("d", Behind::Control(late)));
    let json: Value = serde_json::from_str(&meshctl(&server, "wait -o json").await.unwrap()).unwrap();
    assert_eq!(json["proxies"], 7);
}

#[tokio::test]
async fn a_revision_is_waited_for_if_the_cluster_has_had_it() {
    let server = ApiServer::start().await;
    server.state().store.put("kubectl", &route("x", "v1"));
    server.state().store.pass();
    let control = replica(&server, "a", |state| state.progress = vec![progress(1, 1)]);
    for revision in [1, 2] {
        let text = meshctl(&server, &format!("wait --revision {revision}")).await.unwrap();
        assert!(text.starts_with(&format!("Revision {revision} is in force at the one proxy")), "{text}");
    }
    assert!(control.0.lock().unwrap().waited.iter().all(|waited| waited.revision == 0 && waited.objects.len() == 1));
    let failure = meshctl(&server, "wait --revision 3").await.unwrap_err();
    assert_eq!(failure.exit, Exit::Refused);
    assert_eq!(failure.message, "This cluster has no revision 3 yet; the newest is 2.");
}

#[tokio::test]
async fn a_watch_goes_on_with_another_replica_and_tells_nothing_twice() {
    let server = ApiServer::start().await;
    replica(&server, "a", |state| state.events = vec![applied("x", 1), applied("y", 2), synced(), applied("x", 3)]);
    let (context, captured) = server.context(Format::Name);
    let Ok(cli) = Cli::try_parse_from(["meshctl", "get", "httproutes", "--watch", "-o", "name"]) else { panic!() };
    let watching = dispatch(&context, cli.command);
    let restarting = async {
        let shown = async |expected: &str| {
            let expected: String = expected.split(' ').map(|name| format!("httproute/{name}\n")).collect();
            while captured.text() != expected {
                assert!(expected.starts_with(&captured.text()), "{}", captured.text());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        shown("x y x").await;
        // The new one knows of a change and of a deletion that nobody has told.
        let now = vec![applied("x", 3), applied("z", 5), synced(), applied("w", 6)];
        replica(&server, "b", |state| state.events = now);
        server.state().remove_replica("a");
        shown("x y x z y w").await;
    };
    tokio::select! {
        ended = watching => panic!("{ended:?}"),
        ended = tokio::time::timeout(Duration::from_secs(20), restarting) => ended.unwrap(),
    }
}

#[tokio::test]
async fn a_tap_has_what_the_proxies_of_all_replicas_tell_and_goes_on_with_those_that_are_there() {
    let server = ApiServer::start().await;
    let tells = |path: &str| {
        let event = TapEvent { path: path.into(), direction: 1, ..TapEvent::default() };
        let asked = Some(TapAsked { proxies: 2, identities: vec![path.to_owned()] });
        vec![TapResponse { events: vec![event], asked, not_shown: 0 }]
    };
    let first = replica(&server, "a", |state| state.tapped = tells("/a"));
    replica(&server, "b", |state| state.tapped = tells("/b"));
    let (context, captured) = server.context(Format::Json);
    // The number is not told before it is right.
    let control = context.connect().await.unwrap();
    let mut told = control.mesh().tap(TapRequest::default()).await.unwrap().into_inner();
    let asked = TapAsked { proxies: 4, identities: vec!["/a".into(), "/b".into()] };
    assert_eq!(told.message().await.unwrap().unwrap(), TapResponse { asked: Some(asked), ..TapResponse::default() });
    drop(told);
    first.0.lock().unwrap().taps.clear();
    let Ok(cli) = Cli::try_parse_from(["meshctl", "tap", "--to", "reviews", "--count", "4", "-o", "json"]) else {
        panic!()
    };
    let tapping = dispatch(&context, cli.command);
    let restarting = async {
        while captured.text().lines().count() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        replica(&server, "c", |state| state.tapped = tells("/c"));
        server.state().remove_replica("b");
    };
    let both = async { tokio::join!(tapping, restarting) };
    let (ended, ()) = tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
    ended.unwrap();
    let path = |line: &str| serde_json::from_str::<Value>(line).unwrap()["path"].as_str().unwrap().to_owned();
    let mut paths: Vec<_> = captured.text().lines().map(path).collect();
    paths[..2].sort();
    paths[2..].sort();
    assert_eq!(paths, ["/a", "/b", "/a", "/c"]);
    let asked = first.0.lock().unwrap().taps[0].filter.clone().unwrap().to;
    assert_eq!((asked[0].name.as_str(), asked[0].namespace.as_str()), ("reviews", "shop"));
}

#[tokio::test]
async fn why_a_replica_cannot_be_asked_is_told() {
    let server = ApiServer::start().await;
    let failed = async || {
        let failure = meshctl(&server, "proxy status").await.unwrap_err();
        assert_eq!(failure.exit, Exit::Unreachable, "{failure}");
        (failure.message.clone(), failure.hint.unwrap_or_default())
    };
    let (message, hint) = failed().await;
    assert!(message.contains("does not run in this cluster") && hint.contains("meshctl install"), "{message} {hint}");
    replica(&server, "a", |_| ());
    server.state().refuse(
        "FORWARD mesh-system/a",
        403,
        json!({"message": "User \"ada\" cannot create pods/portforward"}),
    );
    let (message, hint) = failed().await;
    assert!(message.contains("You may not forward ports") && hint.contains("auth can-i"), "{message} {hint}");
    server.state().refuse("FORWARD mesh-system/a", 404, json!({"message": "pods \"a\" not found"}));
    let (message, hint) = failed().await;
    assert_eq!(message, "The pod mesh-system/a is gone.");
    assert!(!hint.contains("can-i"), "{hint}");
    server.state().refuse("FORWARD mesh-system/a", 500, json!({"message": "error dialing backend: no route to host"}));
    let (message, hint) = failed().await;
    assert!(message.contains("no route to host") && hint.contains("on which node"), "{message} {hint}");

    // Another one that is ready does not make up for what this one knows, if it is not gone.
    replica(&server, "b", |_| ());
    let (message, _) = failed().await;
    assert!(message.contains("no route to host"), "{message}");
    server.state().refuse("FORWARD mesh-system/a", 404, json!({"message": "pods \"a\" not found"}));
    assert!(meshctl(&server, "proxy status").await.is_ok());
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_not_taken_for_a_lack_of_rights() {
    let server = ApiServer::start().await;
    let reason = "error forwarding port 15021 to pod web-1, uid : failed to connect to localhost:15021 inside namespace: \
                  dial tcp4 127.0.0.1:15021: connect: connection refused";
    let proxy = Proxy { id: "web-1.shop".into(), namespace: "shop".into(), ..Proxy::default() };
    replica(&server, "a", |state| state.proxies = vec![proxy]);
    server.state().add_pod("shop", "web-1", Behind::Nothing(reason));
    let failure = meshctl(&server, "proxy log-level web-1 debug").await.unwrap_err();
    assert_eq!(failure.message, "Nothing listens on port 15021 in the pod shop/web-1.");
    assert!(failure.hint.unwrap().contains("kubectl -n shop logs web-1"));

    // A replica may begin to listen again, so it is tried for a while.
    server.state().add_replica("a", Behind::Nothing(reason));
    let asking = async { meshctl(&server, "proxy status -o name").await };
    let mending = async {
        while asked(&server).iter().filter(|line| *line == "FORWARD mesh-system/a").count() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        replica(&server, "a", |_| ());
    };
    let (text, ()) = tokio::join!(asking, mending);
    assert_eq!(text.unwrap(), "");
}

#[tokio::test]
async fn a_check_without_an_answer_of_any_replica_says_so_by_its_exit_code() {
    let server = ApiServer::start().await;
    let exit = async || meshctl(&server, "check").await.unwrap_err().exit;
    assert_eq!(exit().await, Exit::Unreachable, "none runs");
    server.state().add_replica("a", Behind::Control(Fake::default()));
    // Nothing that belongs to it is there.
    assert_eq!(exit().await, Exit::Failed, "one answers");
    server.state().refuse("FORWARD mesh-system/a", 500, json!({"message": "error dialing backend: no route to host"}));
    assert_eq!(exit().await, Exit::Unreachable, "none answers");
    server.stop();
    assert_eq!(exit().await, Exit::Unreachable, "there is not even an API server");
}

/// Objects that are printed, by kind and name.
fn printed(text: &str) -> BTreeMap<(String, String), Value> {
    let documents = crate::manifests::parse(text).unwrap();
    let text = |object: &Value, pointer: &str| object.pointer(pointer).unwrap().as_str().unwrap().to_owned();
    documents.into_iter().map(|it| ((text(&it, "/kind"), text(&it, "/metadata/name")), it)).collect()
}

#[tokio::test]
async fn what_an_installation_would_apply_has_the_settings_of_the_one_that_is_there() {
    let server = ApiServer::start().await;
    let control = ("Deployment".to_owned(), "mesh-control".to_owned());
    let routes = ("CustomResourceDefinition".to_owned(), "httproutes.gateway.networking.k8s.io".to_owned());
    let first = printed(&meshctl(&server, "install --dry-run --set trustDomain=a.example").await.unwrap());
    assert_eq!(first[&control]["spec"]["replicas"], 2);
    assert!(first.contains_key(&routes));
    let namespace = first[&("Namespace".to_owned(), "mesh-system".to_owned())].clone();

    // What that has applied is there now.
    for (plural, object) in [
        ("namespaces", namespace),
        ("deployments", first[&control].clone()),
        ("customresourcedefinitions", first[&routes].clone()),
    ] {
        server.state().store.put_other(plural, object);
    }
    asked(&server);
    let again = printed(&meshctl(&server, "install --dry-run --set control.replicas=3").await.unwrap());
    assert_eq!(again[&control]["spec"]["replicas"], 3);
    assert!(again[&control].to_string().contains("--trust-domain=a.example"), "{}", again[&control]);
    assert!(!again.contains_key(&routes), "what is there stays as it is");
    assert!(asked(&server).iter().all(|line| line.starts_with("GET ")), "it has changed something");

    let other = meshctl(&server, "install --dry-run --tag 9.9.9").await.unwrap_err();
    assert_eq!(other.exit, Exit::Refused);
    assert!(other.hint.unwrap().contains("meshctl upgrade"));

    // There is nobody to ask.
    server.stop();
    let first = printed(&meshctl(&server, "install --dry-run").await.unwrap());
    assert!(first[&control].to_string().contains("--trust-domain=mesh.local") && first.contains_key(&routes));
}

#[tokio::test]
async fn the_trust_domain_is_checked_and_stays() {
    let server = ApiServer::start().await;
    let wrong = meshctl(&server, "install --dry-run --set trustDomain=Example_X").await.unwrap_err();
    assert_eq!(wrong.exit, Exit::Usage);
    assert!(wrong.message.contains("Example_X"), "{wrong}");

    // Whoever installed it, the roots say what it is, and not what a setting says.
    let roots = json!({"metadata": {"namespace": "mesh-system", "name": "mesh-trust-bundle"},
        "data": {"root.pem": roots::OF_A_EXAMPLE}});
    server.state().store.put_other("configmaps", roots);
    for line in ["install --dry-run", "install --dry-run --set trustDomain=b.example"] {
        let other = meshctl(&server, line).await.unwrap_err();
        assert_eq!(other.exit, Exit::Refused, "{line}");
        assert!(other.hint.unwrap().contains("--set trustDomain=a.example"), "{line}");
    }
    let same = printed(&meshctl(&server, "install --dry-run --set trustDomain=a.example").await.unwrap());
    let control = same[&("Deployment".to_owned(), "mesh-control".to_owned())].clone();
    assert!(control.to_string().contains("--trust-domain=a.example"), "{control}");

    server.state().store.put_other("deployments", control);
    asked(&server);
    let other = meshctl(&server, "upgrade --set trustDomain=b.example").await.unwrap_err();
    assert_eq!(other.exit, Exit::Refused, "{other}");
    assert!(asked(&server).iter().all(|line| !line.starts_with("PATCH")), "it has written something");
}

#[tokio::test]
async fn manifests_are_injected_as_the_mesh_of_the_cluster_has_it_unless_told_otherwise() {
    let server = ApiServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pod.yaml");
    std::fs::write(&file, "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: app}]}}")
        .unwrap();
    let line = |options: &str| format!("inject -f {} {options}", file.display());
    let both = |text: String| (text.contains("registry.example/mesh-proxy:0.1.0"), text.contains("mesh-init"));

    assert_eq!(both(meshctl(&server, &line("")).await.unwrap()), (false, true), "there is no mesh");
    let installed = "install --dry-run --registry registry.example --set cni.enabled=true";
    let control = printed(&meshctl(&server, installed).await.unwrap())
        .remove(&("Deployment".to_owned(), "mesh-control".to_owned()))
        .unwrap();
    server.state().store.put_other("deployments", control);
    assert_eq!(both(meshctl(&server, &line("")).await.unwrap()), (true, false));
    assert_eq!(both(meshctl(&server, &line("--cni=false")).await.unwrap()), (true, true));
    assert_eq!(both(meshctl(&server, &line("--image other:1 --cni")).await.unwrap()), (false, false));
    asked(&server);
    assert_eq!(both(meshctl(&server, &line("--offline")).await.unwrap()), (false, true));
    assert_eq!(asked(&server), [""; 0]);

    // It is named by the command line, and does not answer.
    server.stop();
    let failure = meshctl(&server, &line("")).await.unwrap_err();
    assert_eq!(failure.exit, Exit::Unreachable);
    assert!(failure.hint.unwrap().contains("--offline"));
    assert_eq!(both(meshctl(&server, &line("--offline")).await.unwrap()), (false, true));
}

#[tokio::test]
async fn nodes_are_clean_before_their_daemons_go() {
    let server = ApiServer::start().await;
    let plugin = ("DaemonSet".to_owned(), "mesh-cni".to_owned());
    let wanted = printed(&meshctl(&server, "install --dry-run --set cni.enabled=true").await.unwrap());
    server.state().store.put_other("daemonsets", wanted[&plugin].clone());
    server.state().add_pod("kube-system", "mesh-cni-x", Behind::Nothing("no port is forwarded"));
    // It ends after it was seen once.
    server.state().before("LIST pods kube-system", |state| {
        state.before("LIST pods kube-system", |state| state.remove_pod("kube-system", "mesh-cni-x"));
    });
    asked(&server);
    let text = meshctl(&server, "uninstall --yes").await.unwrap();
    assert!(text.contains("DaemonSet kube-system/mesh-cni deleted"), "{text}");
    let asked = asked(&server);
    let at = |wanted: &str| -> Vec<usize> {
        asked.iter().enumerate().filter(|(_, line)| *line == wanted).map(|(at, _)| at).collect()
    };
    // The new ones take the plugin out, and are deleted when there are only those.
    let (patched, listed) = (at("PATCH daemonsets kube-system/mesh-cni"), at("LIST pods kube-system"));
    let deleted = at("DELETE daemonsets kube-system/mesh-cni");
    assert_eq!((patched.len(), listed.len(), deleted.len()), (1, 2, 1), "{asked:?}");
    assert!(patched[0] < listed[0] && listed[1] < deleted[0], "{asked:?}");

    // One that does not end is told.
    server.state().store.put_other("daemonsets", wanted[&plugin].clone());
    server.state().add_pod("kube-system", "mesh-cni-x", Behind::Nothing("no port is forwarded"));
    let failure = meshctl(&server, "uninstall --yes --wait-timeout 10ms").await.unwrap_err();
    assert_eq!(failure.exit, Exit::TimedOut);
    assert!(failure.message.contains("mesh-cni"), "{failure}");
}

#[tokio::test]
async fn logs_are_asked_for_where_their_pods_are() {
    let server = ApiServer::start().await;
    for (namespace, name, log) in [
        ("shop", "web-1", b"1\n\xff2\n3\n".as_slice()),
        ("other", "api-1", b"api\n"),
        ("mesh-system", "mesh-control-1", b"a\n"),
        ("mesh-system", "mesh-control-2", b"b\n"),
    ] {
        let mut state = server.state();
        state.add_pod(namespace, name, Behind::Nothing("no"));
        state.logs.insert((namespace, name), log);
    }
    assert_eq!(meshctl(&server, "logs web --lines 2").await.unwrap(), "\u{fffd}2\n3\n");
    assert_eq!(asked(&server), ["LIST pods shop", "LOG shop/web-1"]);
    // An id says where it is.
    assert_eq!(meshctl(&server, "logs api-1.other").await.unwrap(), "api\n");
    assert_eq!(asked(&server), ["LIST pods other", "LOG other/api-1"]);
    for name in ["web-1.other", "reviews"] {
        assert_eq!(meshctl(&server, &format!("logs {name}")).await.unwrap_err().exit, Exit::NotFound, "{name}");
    }
    assert_eq!(meshctl(&server, "logs").await.unwrap(), "mesh-control-1 a\nmesh-control-2 b\n");
    // One that cannot be read does not keep the other away.
    server.state().refuse("LOG mesh-system/mesh-control-1", 404, json!({"reason": "NotFound", "message": "gone"}));
    for line in ["logs", "logs --follow"] {
        let cli = Cli::try_parse_from(format!("meshctl {line}").split_whitespace()).unwrap();
        let (context, captured) = server.context(Format::Table);
        let failure = dispatch(&context, cli.command).await.unwrap_err();
        assert_eq!((failure.exit, captured.text().as_str()), (Exit::NotFound, "mesh-control-2 b\n"), "{line}");
    }
}

/// Whoever may see one namespace gets what is there, and is told what is missing.
#[tokio::test]
async fn a_bug_report_needs_no_right_to_see_the_whole_cluster() {
    let server = ApiServer::start().await;
    let control = Fake::default();
    let proxy = |id: &str, namespace: &str| Proxy { id: id.into(), namespace: namespace.into(), ..Proxy::default() };
    control.0.lock().unwrap().proxies = vec![proxy("api-1.other", "other"), proxy("web-1.shop", "shop")];
    server.state().add_replica("mesh-control-1", Behind::Control(control));
    server.state().logs =
        [(("shop", "web-1"), b"GET /?token=s3cret 200\n".as_slice()), (("other", "api-1"), b"api\n")].into();
    server.state().refuse("LIST pods *", 403, json!({"reason": "Forbidden", "message": "no"}));
    let folder = tempfile::tempdir().unwrap();
    let report = |name: &str| folder.path().join(name);
    meshctl(&server, &format!("bug-report --file {}", report("a").display())).await.unwrap();
    let all = crate::commands::tests::files(&report("a"));
    assert_eq!(all["proxies/web-1.shop.log"], "GET /?[redacted] 200\n");
    assert_eq!(all["proxies/api-1.other.log"], "api\n");
    let about = &all["about.txt"];
    assert!(about.contains("missing: cluster/pods-with-proxies.json: "), "{about}");
    assert!(!about.contains("the log of"), "{about}");

    // The control plane need not answer.
    server.state().remove_replica("mesh-control-1");
    server.state().add_pod("shop", "web-1", Behind::Nothing("no"));
    let named = "--proxy web --proxy api-1.other";
    for (name, options, there) in [("b", "", ["web-1.shop"].as_slice()), ("c", named, &["web-1.shop"])] {
        meshctl(&server, &format!("bug-report --file {} {options}", report(name).display())).await.unwrap();
        let all = crate::commands::tests::files(&report(name));
        let logs = all.keys().filter_map(|name| name.strip_prefix("proxies/")?.strip_suffix(".log"));
        assert_eq!(logs.collect::<Vec<_>>(), there, "{:?}", all["about.txt"]);
        assert_eq!(all["about.txt"].contains("missing: the log of api-1.other: "), !options.is_empty());
    }
}
