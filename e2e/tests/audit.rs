//! Who may look back at what happened: what proxies have decided about access, and who has changed what in the mesh.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use mesh_e2e::as_root_and_without;
use mesh_e2e::mesh::{Mesh, User};
use mesh_e2e::process::{Process, eventually};
use serde_json::Value;

as_root_and_without!(decisions_are_in_the_audit_log_and_secrets_are_not);

const POLICIES: &str = "
apiVersion: meshctl.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: readers}
spec:
  targetRefs: [{kind: Service, name: reviews}]
  rules: [{from: [{serviceAccounts: [web]}], to: [{methods: [GET]}]}]
---
apiVersion: meshctl.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-admin}
spec:
  action: DENY
  rules: [{to: [{ports: [9080], paths: ['/admin*']}]}]
---
apiVersion: meshctl.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: orders}
spec:
  action: AUDIT
  rules: [{to: [{ports: [9080], paths: ['/orders*']}]}]
---
apiVersion: meshctl.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: trial}
spec:
  action: DENY
  dryRun: true
  rules: [{to: [{ports: [9080], paths: ['/trial*']}]}]
---
apiVersion: meshctl.dev/v1alpha1
kind: RequestAuthentication
metadata: {name: login}
spec:
  targetRefs: [{kind: Service, name: reviews}]
  jwtRules:
  - issuer: https://login
    jwks: '{\"keys\": [{\"kty\": \"OKP\", \"crv\": \"Ed25519\", \"x\": \"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}]}'
---
apiVersion: meshctl.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-other}
spec:
  action: DENY
  rules: [{from: [{serviceAccounts: [other]}], to: [{ports: [7000]}]}]
";

fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// An application whose proxy writes its decisions to a file.
fn audited(mesh: &Mesh, service: &str, port: &str, app: &[&str], allowed: &str, file: &Path) -> Process {
    let file = file.display().to_string();
    let args = ["--version", "v1", "--port", port, "--audit-log", &file, "--audit-log-allowed", allowed];
    let process = mesh.run(service, &args, app).unwrap();
    mesh.discovered(service, "v1").unwrap();
    process
}

fn decisions_are_in_the_audit_log_and_secrets_are_not(user: User) {
    let mesh = Mesh::start(user).unwrap();
    let (of_reviews, of_db) = (mesh.data().join("reviews.audit"), mesh.data().join("db.audit"));
    let _reviews = audited(&mesh, "reviews", "9080:http", &["testapp", "http", "--version", "v1"], "0", &of_reviews);
    let db = ["testapp", "tcp", "--listen", "0.0.0.0:7000", "--version", "v1"];
    let _db = audited(&mesh, "db", "7000:tcp", &db, "100", &of_db);
    mesh.apply(POLICIES).unwrap();

    let status = |account: &str, args: &[&str]| {
        let all = [&["-o", "/dev/null", "-w", "%{http_code}"], args].concat();
        mesh.curl(account, &all).unwrap().trim().to_owned()
    };
    let url = |path: &str| format!("http://reviews:9080{path}");
    assert_eq!(status("web", &[&url("/?password=s3cret")]), "200");
    let traced = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert_eq!(status("web", &["-H", traced, "-H", "x-request-id: r-7", &url("/orders?token=s3cret")]), "200");
    let secrets = ["-H", "authorization: Basic s3cret", "-H", "cookie: sid=s3cret", "-H", "x-api-key: s3cret"];
    assert_eq!(status("web", &[&secrets[..], &[&url("/admin/x?k=s3cret")]].concat()), "403");
    assert_eq!(status("web", &["-X", "POST", &url("/")]), "403");
    assert_eq!(status("other", &[&url("/orders")]), "403");
    assert_eq!(status("web", &[&url("/trial")]), "200");
    assert_eq!(status("web", &["-H", "authorization: Bearer s3cret.s3cret.s3cret", &url("/")]), "401");
    let shown = |line: &Value| {
        let fields = ["verdict", "method", "path", "policy", "audit_policy", "dry_run_policy"];
        fields.map(|field| line[field].as_str().unwrap_or("-").to_owned())
    };
    let found = eventually(Duration::from_secs(10), || {
        let lines = lines(&of_reviews);
        ensure!(lines.len() >= 6, "{lines:#?}");
        Ok(lines)
    })
    .unwrap();
    let expected = [
        ["allowed", "GET", "/orders", "default/readers[0]", "default/orders[0]", "-"],
        ["denied", "GET", "/admin/x", "default/no-admin[0]", "-", "-"],
        ["denied", "POST", "/", "-", "-", "-"],
        ["denied", "GET", "/orders", "-", "default/orders[0]", "-"],
        ["allowed", "GET", "/trial", "default/readers[0]", "-", "default/trial[0]"],
        ["denied", "GET", "/", "-", "-", "-"],
    ];
    assert_eq!(found.iter().map(shown).collect::<Vec<_>>(), expected, "{found:#?}");
    let (orders, other, token) = (&found[0], &found[3], &found[5]);
    assert_eq!(
        (&orders["request_id"], &orders["trace_id"]),
        (&"r-7".into(), &"0af7651916cd43dd8448eb211c80319c".into())
    );
    assert_eq!(
        (&orders["service"], &orders["port"], &orders["security"]),
        (&"reviews".into(), &9080.into(), &"mutual_tls".into())
    );
    assert_eq!(other["downstream_peer"], "spiffe://mesh.local/ns/default/sa/other");
    assert!(token["reason"].as_str().unwrap().contains("the token is not a JWT"), "{token:#}");
    let in_force = |line: &Value| line["config_version"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(in_force(orders) > 0, "{orders:#}");
    assert!(!std::fs::read_to_string(&of_reviews).unwrap().contains("s3cret"));

    // Byte streams, of which this proxy writes those too that it lets in.
    let load = |account: &str| {
        let load = mesh.load(account, &["--url", "tcp://db:7000", "--requests", "1"]).unwrap();
        load.report().unwrap()
    };
    assert_eq!(load("web").failed, 0);
    assert_eq!(load("other").failed, 1);
    let streams = eventually(Duration::from_secs(10), || {
        let lines = lines(&of_db);
        let of = |account: &str| {
            let peer = format!("spiffe://mesh.local/ns/default/sa/{account}");
            lines.iter().find(|line| line["downstream_peer"] == peer.as_str()).cloned()
        };
        let (Some(web), Some(other)) = (of("web"), of("other")) else { anyhow::bail!("{lines:#?}") };
        Ok([web, other])
    })
    .unwrap();
    let [web, other] = &streams;
    assert_eq!((&web["verdict"], &web["sampled"], &web["event"]), (&"allowed".into(), &true.into(), &"stream".into()));
    assert_eq!((&other["verdict"], &other["policy"]), (&"denied".into(), &"default/no-other[0]".into()));
    // A change that takes somebody's open stream away is written down as that.
    let stay = "import socket; s = socket.create_connection(('db', 7000)); s.sendall(b'hello\\n'); print(s.recv(64), flush=True); s.recv(64)";
    let stays = mesh.run("web", &[], &["/usr/bin/python3", "-c", stay]).unwrap();
    eventually(Duration::from_secs(20), || {
        ensure!(!stays.stdout().is_empty(), "{}", stays.tail());
        Ok(())
    })
    .unwrap();
    mesh.apply(
        "apiVersion: meshctl.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: nobody}\nspec: {action: DENY, rules: [{to: [{ports: [7000]}]}]}\n",
    )
    .unwrap();
    eventually(Duration::from_secs(10), || {
        let lines = lines(&of_db);
        let revoked = lines.iter().find(|line| line["event"] == "open_stream");
        ensure!(
            revoked.is_some_and(|it| it["policy"] == "default/nobody[0]" && in_force(it) > in_force(web)),
            "{lines:#?}"
        );
        Ok(())
    })
    .unwrap();

    let listed = mesh.meshctl(&["authz", "list", "reviews"]).unwrap();
    assert!(listed.lines().any(|line| line.starts_with("AUDIT") && line.contains("default/orders[0]")), "{listed}");
    let said = mesh.meshctl(&["authz", "check", "--from", "web", "--to", "reviews", "--path", "/orders/1"]).unwrap();
    assert!(said.contains("ALLOWED") && said.contains("audit log by default/orders[0]"), "{said}");
}
