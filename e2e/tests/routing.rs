//! Where requests go and what becomes of them on the way, as a client behind a sidecar sees it.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use mesh_e2e::as_root_and_without;
use mesh_e2e::mesh::{Mesh, User};
use mesh_e2e::process::{Process, eventually};
use serde_json::Value;

as_root_and_without!(filters_do_what_they_say);

const FILTERS: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews}
spec:
  parentRefs: [{group: "", kind: Service, name: reviews}]
  rules:
  - matches: [{path: {value: /mirrored}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 9080}}}]
    backendRefs: [{name: reviews, port: 9080}]
  - matches: [{path: {value: /old}}]
    filters:
    - type: RequestRedirect
      requestRedirect: {scheme: https, hostname: shop.example, statusCode: 301, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}
  - matches: [{path: {value: /later}}]
    filters:
    - {type: ExtensionRef, extensionRef: {group: meshctl.dev, kind: DirectResponse, name: later}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: retry-after, value: "60"}]}}
  - matches: [{path: {value: /shared}, method: PUT}]
    filters: [{type: CORS, cors: {allowOrigins: ["https://*.shop.example"], allowCredentials: true, allowMethods: ["*"], exposeHeaders: [x-total]}}]
    backendRefs: [{name: reviews, port: 9080}]
  - matches: [{path: {value: /rewritten}}]
    filters:
    - type: URLRewrite
      urlRewrite: {hostname: inner.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /inner}}
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: x-set, value: mesh}], add: [{name: x-added, value: mesh}], remove: [x-removed]}
    - type: ResponseHeaderModifier
      responseHeaderModifier: {set: [{name: x-answered, value: mesh}], remove: [x-version]}
    backendRefs: [{name: reviews, port: 9080}]
  - backendRefs: [{name: reviews, port: 9080}]
---
apiVersion: meshctl.dev/v1alpha1
kind: DirectResponse
metadata: {name: later}
spec: {status: 503, contentType: application/json, body: '{"later": "100%"}'}
"#;

fn filters_do_what_they_say(user: User) {
    let mesh = Mesh::start(user).unwrap();
    let _reviews = mesh.echo("reviews", "v1").unwrap();
    let script = mesh.script("wire.py").unwrap();
    let server = ["/usr/bin/python3", script.as_str(), "serve", "9080"];
    let shadow = mesh.run("shadow", &["--version", "v1", "--port", "9080:http"], &server).unwrap();
    mesh.discovered("shadow", "v1").unwrap();
    mesh.apply(FILTERS).unwrap();

    // The caller sees only the answer of the service that it called; the other one gets each request, with its body.
    let url = "http://reviews:9080/mirrored/[1-20]";
    let said = mesh.curl("web", &["-d", "12345", "-w", "\n", url]).unwrap();
    assert_eq!(said.lines().filter(|l| json(l)["version"] == "v1" && json(l)["body_bytes"] == 5).count(), 20, "{said}");
    let copies = |shadow: &Process| shadow.stdout().lines().filter(|l| l.starts_with("POST /mirrored/")).count();
    eventually(Duration::from_secs(5), || {
        anyhow::ensure!(copies(&shadow) >= 20, "{} copies", copies(&shadow));
        Ok(())
    })
    .unwrap();
    assert_eq!(copies(&shadow), 20);
    assert!(shadow.stdout().contains("reviews-shadow:9080"), "{}", shadow.stdout());

    let said = mesh.curl("web", &["-i", "http://reviews:9080/old/page?x=1"]).unwrap();
    assert!(said.starts_with("HTTP/1.1 301"), "{said}");
    assert!(
        header(&said, "location")
            .is_some_and(|l| l.starts_with("https://shop.example") && l.ends_with("/new/page?x=1")),
        "{said}"
    );

    let args = [
        "-i",
        "-H",
        "x-set: app",
        "-H",
        "x-added: app",
        "-H",
        "x-removed: app",
        "http://reviews:9080/rewritten/page?x=1",
    ];
    let said = mesh.curl("web", &args).unwrap();
    assert_eq!((header(&said, "x-answered"), header(&said, "x-version")), (Some("mesh"), None), "{said}");
    let reply = json(said.lines().last().unwrap());
    assert_eq!(reply["path"], "/inner/page?x=1");
    let headers = &reply["headers"];
    assert_eq!((&headers["host"], &headers["x-set"]), (&"inner.example".into(), &"mesh".into()), "{said}");
    assert!(headers["x-removed"].is_null(), "{said}");
    // testapp shows the last of several values.
    assert_eq!(headers["x-added"], "mesh", "{said}");

    let said = mesh.curl("web", &["-i", "http://reviews:9080/later"]).unwrap();
    assert!(said.starts_with("HTTP/1.1 503") && said.ends_with(r#"{"later": "100%"}"#), "{said}");
    assert_eq!((header(&said, "content-type"), header(&said, "retry-after")), (Some("application/json"), Some("60")));

    let shared = |method: &str, origin: &str| {
        let (origin, url) = (format!("origin: {origin}"), "http://reviews:9080/shared");
        let asked = "access-control-request-method: PUT";
        mesh.curl("web", &["-i", "-X", method, "-H", &origin, "-H", asked, url]).unwrap()
    };
    let preflight = shared("OPTIONS", "https://m.shop.example");
    assert_eq!(header(&preflight, "access-control-allow-origin"), Some("https://m.shop.example"), "{preflight}");
    assert_eq!(header(&preflight, "access-control-allow-methods"), Some("PUT"), "{preflight}");
    assert_eq!(header(&preflight, "x-version"), None, "the application was asked: {preflight}");
    let request = shared("PUT", "https://m.shop.example");
    assert_eq!(header(&request, "access-control-expose-headers"), Some("x-total"), "{request}");
    assert_eq!(json(request.lines().last().unwrap())["path"], "/shared");
    let of_others = shared("OPTIONS", "https://evil.example");
    assert!(of_others.starts_with("HTTP/1.1 200"), "{of_others}");
    assert_eq!(header(&of_others, "access-control-allow-origin"), None, "{of_others}");

    let plain = json(&mesh.curl("web", &["http://reviews:9080/else"]).unwrap());
    assert_eq!((&plain["path"], &plain["headers"]["x-set"]), (&"/else".into(), &Value::Null));
    assert_eq!(copies(&shadow), 20, "only what was asked for is mirrored");
}

#[test]
fn set_match_sends_certain_requests_to_a_version() {
    let mesh = Mesh::start(User::Same).unwrap();
    let _v1 = mesh.echo("reviews", "v1").unwrap();
    let _v2 = mesh.echo("reviews", "v2").unwrap();
    mesh.meshctl(&["route", "set-weight", "reviews", "v1"]).unwrap();
    for condition in [["--header", "end-user=jason"], ["--cookie", "user=jason"]] {
        let args: Vec<&str> =
            ["route", "set-match", "reviews"].into_iter().chain(condition).chain(["v2", "--wait"]).collect();
        mesh.meshctl(&args).unwrap();
    }
    let list = mesh.meshctl(&["route", "list", "reviews"]).unwrap();
    assert!(list.contains("end-user") && list.contains("cookie"), "{list}");
    for (header, version) in [
        ("end-user: jason", "v2"),
        ("end-user: jasonx", "v1"),
        ("cookie: a=b; user=jason; c=d", "v2"),
        ("cookie: user=jason2", "v1"),
        ("cookie: other_user=jason", "v1"),
        ("accept: */*", "v1"),
    ] {
        let reply = json(&mesh.curl("web", &["-H", header, "http://reviews:9080/"]).unwrap());
        assert_eq!(reply["version"], version, "{header}");
    }
    mesh.meshctl(&["route", "reset", "reviews", "--cookie", "user=jason", "--wait"]).unwrap();
    let reply = json(&mesh.curl("web", &["-H", "cookie: user=jason", "http://reviews:9080/"]).unwrap());
    assert_eq!(reply["version"], "v1");
}

/// The older one holds, and the other one's status and `check` say so, until the older one is gone.
#[test]
fn of_two_routes_for_a_service_the_older_one_wins() {
    let mesh = Mesh::start(User::Same).unwrap();
    let _v1 = mesh.echo("reviews", "v1").unwrap();
    let _v2 = mesh.echo("reviews", "v2").unwrap();
    let route = |name: &str, backend: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}}}\nspec:\n  parentRefs: [{{group: \"\", kind: Service, name: reviews}}]\n  \
             rules: [{{backendRefs: [{{name: {backend}, port: 9080}}]}}]\n"
        )
    };
    let answered = || json(&mesh.curl("web", &["http://reviews:9080/"]).unwrap())["version"].clone();
    // By name the newer one would come first; a time of creation has whole seconds.
    mesh.apply(&route("older", "reviews-v1")).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    mesh.apply(&route("newer", "reviews-v2")).unwrap();
    assert_eq!(answered(), "v1");
    let yaml = mesh.meshctl(&["get", "httproute", "newer", "-o", "yaml"]).unwrap();
    assert!(yaml.contains("reason: Conflicted") && yaml.contains("older"), "{yaml}");
    let yaml = mesh.meshctl(&["get", "httproute", "older", "-o", "yaml"]).unwrap();
    assert!(!yaml.contains("Conflicted"), "{yaml}");
    let check = String::from_utf8(mesh.meshctl_output(&["check"]).unwrap().stdout).unwrap();
    assert!(check.contains("newer"), "{check}");
    mesh.meshctl(&["delete", "httproute", "older", "--wait"]).unwrap();
    assert_eq!(answered(), "v2");
    let yaml = mesh.meshctl(&["get", "httproute", "newer", "-o", "yaml"]).unwrap();
    assert!(!yaml.contains("Conflicted"), "{yaml}");
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn header<'a>(response: &'a str, name: &str) -> Option<&'a str> {
    let lines = response.lines().take_while(|line| !line.is_empty());
    lines.filter_map(|line| line.split_once(": ")).find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}
