//! Another service decides about requests, by both protocols, and is asked over mutual TLS like any other.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use mesh_e2e::mesh::{Mesh, User};
use mesh_e2e::process::{Process, eventually};
use serde_json::Value;

/// Asks about all but `/open`.
fn policy(provider: &str) -> String {
    format!(
        "apiVersion: meshctl.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: ask, namespace: default}}\nspec:\n  \
         targetRefs: [{{kind: Service, name: reviews}}]\n  action: CUSTOM\n  provider: {{timeout: 2s, {provider}}}\n  \
         rules: [{{to: [{{ports: [9080], notPaths: [/open]}}]}}]\n"
    )
}

const OVER_GRPC: &str = "backend: {name: auth, port: 9191}";
const OVER_HTTP: &str = "backend: {name: auth, port: 9192}, protocol: Http, \
                         http: {includeHeaders: [x-token], headersToUpstream: [x-user]}";

/// The status, the headers of the response, and what the application saw if it answered.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn saw(&self, header: &str) -> Value {
        self.seen()["headers"][header].clone()
    }

    fn seen(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

fn ask(mesh: &Mesh, path: &str, args: &[&str]) -> Answer {
    let url = format!("http://reviews:9080{path}");
    let output = mesh.curl("web", &[args, &["-i", "-w", "\n%{http_code}", &url]].concat()).unwrap();
    let (rest, status) = output.trim_end().rsplit_once('\n').unwrap();
    let (head, body) = rest.split_once("\r\n\r\n").unwrap_or((rest, ""));
    Answer { status: status.parse().unwrap(), head: head.to_lowercase(), body: body.trim().to_owned() }
}

fn authorizer(mesh: &Mesh) -> Process {
    let args = ["--version", "v1", "--port", "9191:grpc", "--port", "9192:http"];
    let auth = mesh.run("auth", &args, &["testapp", "authorize"]).unwrap();
    mesh.discovered("auth", "v1").unwrap();
    auth
}

const GOOD: [&str; 2] = ["-H", "x-token: good"];
const FORGED: [&str; 4] = ["-H", "x-user: admin", "-H", "x-envoy-auth-failure-mode-allowed: true"];

#[test]
fn another_service_decides() {
    let mesh = Mesh::start(User::Same).unwrap();
    let _reviews = mesh.echo("reviews", "v1").unwrap();
    // Nobody is there yet who could be asked: that is said, and nobody gets in but to what is not asked about.
    mesh.apply(&policy(OVER_GRPC)).unwrap();
    assert_eq!([ask(&mesh, "/", &GOOD).status, ask(&mesh, "/open", &[]).status], [403, 200]);
    let said = mesh.meshctl(&["get", "authorizationpolicy", "ask", "-o", "yaml"]).unwrap();
    assert!(said.contains("there is no Service default/auth with a port 9191"), "{said}");

    let auth = authorizer(&mesh);
    for (protocol, provider) in [("grpc", OVER_GRPC), ("http", OVER_HTTP)] {
        mesh.apply(&policy(provider)).unwrap();
        let good = eventually(Duration::from_secs(20), || {
            let good = ask(&mesh, "/a/../b", &[&GOOD[..], &FORGED].concat());
            anyhow::ensure!(good.status == 200, "{}", good.head);
            Ok(good)
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", auth.tail(), mesh.proxy_logs("reviews").unwrap()));
        assert_eq!(good.saw("x-user"), "ann", "{}", good.body);
        assert_eq!(good.saw("x-envoy-auth-failure-mode-allowed"), Value::Null, "{}", good.body);

        let refused = ask(&mesh, "/b", &FORGED);
        assert_eq!((refused.status, refused.body.as_str()), (401, "who are you?"), "{}", refused.head);
        assert!(refused.head.contains("x-why: no token"), "{}", refused.head);
        assert_eq!(ask(&mesh, "/open", &FORGED).status, 200);
        assert_eq!(ask(&mesh, "/", &["-H", "x-token: slow"]).status, 403);

        let calls = ["-X", "POST", "--http2-prior-knowledge", "-H", "content-type: application/grpc"];
        let grpc = ask(&mesh, "/a.B/C", &calls);
        assert!(grpc.status == 200 && grpc.head.contains("grpc-status: 16"), "{}", grpc.head);

        // Asked was about the path that policies and the application see, and over gRPC with who calls whom.
        let asked = auth.stdout();
        let of_protocol: Vec<_> = asked.lines().filter(|line| line.starts_with(protocol)).collect();
        let told = match protocol {
            "grpc" => "grpc GET /b spiffe://mesh.local/ns/default/sa/web spiffe://mesh.local/ns/default/sa/reviews",
            _ => "http GET /b",
        };
        assert!(of_protocol.contains(&told), "{asked}");
        assert!(!asked.contains("/open") && !asked.contains(".."), "{asked}");

        // The body is told, and goes on whole.
        let post = |body: &str| ask(&mesh, "/posted", &[&GOOD[..], &["-d", body]].concat());
        for (partial, bodies) in [("true", &["12345678", "123456789"][..]), ("false", &["12345678"])] {
            mesh.apply(&policy(&format!("{provider}, includeBody: {{maxBytes: 8, allowPartial: {partial}}}"))).unwrap();
            for body in bodies {
                let posted = post(body);
                assert_eq!((posted.status, posted.seen()["body_bytes"].clone()), (200, body.len().into()), "{body}");
            }
        }
        assert_eq!(post("123456789").status, 413);
        let asked = auth.stdout();
        let told = |line: &&str| line.starts_with(&format!("{protocol} POST /posted")) && line.ends_with(" 12345678");
        assert_eq!(asked.lines().filter(told).count(), 3, "{asked}");
    }

    // What is said before is what happens.
    let said = mesh.meshctl(&["authz", "check", "--from", "web", "--to", "reviews", "--path", "/b"]).unwrap();
    assert!(said.contains("UNDECIDED") && said.contains("default/ask"), "{said}");
    let said = mesh.meshctl(&["authz", "check", "--from", "web", "--to", "reviews", "--path", "/open"]).unwrap();
    assert!(said.contains("ALLOWED"), "{said}");

    // Whom it lets in has to pass the other policies, which see what it has set.
    let only = |user: &str| {
        format!(
            "apiVersion: meshctl.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: ann, namespace: default}}\nspec:\n  \
             targetRefs: [{{kind: Service, name: reviews}}]\n  rules: [{{to: [{{headers: [{{name: x-user, values: [{user}]}}]}}]}}]\n"
        )
    };
    mesh.apply(&only("ann")).unwrap();
    assert_eq!([ask(&mesh, "/", &GOOD).status, ask(&mesh, "/open", &[]).status], [200, 403]);
    mesh.apply(&only("bob")).unwrap();
    assert_eq!(ask(&mesh, "/", &GOOD).status, 403);
    mesh.meshctl(&["delete", "authorizationpolicy", "ann"]).unwrap();
    // Also those that override all others: a refusal is final, and what is let in is not.
    let overriding = |account: &str| {
        format!(
            "apiVersion: meshctl.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: only, namespace: default}}\nspec:\n  \
             targetRefs: [{{kind: Service, name: reviews}}]\n  overrides: true\n  rules: [{{from: [{{serviceAccounts: [{account}]}}]}}]\n"
        )
    };
    for (account, expected) in [("web", [200, 401]), ("nobody", [403, 401])] {
        mesh.apply(&overriding(account)).unwrap();
        assert_eq!([ask(&mesh, "/", &GOOD).status, ask(&mesh, "/", &[]).status], expected, "{account}");
    }
    mesh.meshctl(&["delete", "authorizationpolicy", "only"]).unwrap();
    mesh.wait().unwrap();

    // It goes away: nobody is let in, until the policy says otherwise.
    drop(auth);
    eventually(Duration::from_secs(20), || {
        let answer = ask(&mesh, "/", &GOOD);
        anyhow::ensure!(answer.status == 403 && !answer.head.contains("x-why"), "{}", answer.head);
        Ok(())
    })
    .unwrap();
    mesh.apply(&policy(&format!("failOpen: true, {OVER_HTTP}"))).unwrap();
    let open = ask(&mesh, "/", &FORGED);
    assert_eq!(
        (open.status, open.saw("x-envoy-auth-failure-mode-allowed")),
        (200, Value::from("true")),
        "{}",
        open.body
    );
    let _auth = authorizer(&mesh);
    eventually(Duration::from_secs(20), || {
        anyhow::ensure!(ask(&mesh, "/", &FORGED).status == 401);
        Ok(())
    })
    .unwrap();
}
