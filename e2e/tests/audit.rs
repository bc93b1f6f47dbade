//! Who may look back at what happened: what proxies have decided about access, and who has changed what in the mesh.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use mesh_e2e::as_root_and_without;
use mesh_e2e::mesh::{Mesh, User};
use mesh_e2e::process::{Process, eventually};
use nix::sys::signal::Signal;
use serde_json::Value;

as_root_and_without!(decisions_are_in_the_audit_log_and_secrets_are_not, changes_are_written_down_with_who_made_them);

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

const SERVICE: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: shown}\nspec: {ports: [{port: 9080, appProtocol: http}]}\n";

const WITH_SECRETS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: keyed}
spec:
  parentRefs: [{group: '', kind: Service, name: shown}]
  rules:
  - filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: Authorization, value: Basic s3cret}, {name: x-team, value: visible}]}
    backendRefs: [{name: reviews, port: 9080}]
";

fn changes_are_written_down_with_who_made_them(user: User) {
    let mut mesh = Mesh::start(user).unwrap();
    let query = |mesh: &Mesh, args: &[&str]| -> Vec<Value> {
        let text = mesh.meshctl(&[&["audit", "query", "-o", "json"], args].concat()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let uid = user.id().unwrap_or_else(|| nix::unistd::getuid().as_raw());
    let _reviews = mesh.echo("reviews", "v1").unwrap();
    mesh.apply(SERVICE).unwrap();
    mesh.apply(&SERVICE.replace("9080", "9090")).unwrap();
    // Nothing changes, and nothing that would be refused or is only tried.
    mesh.apply(&SERVICE.replace("9080", "9090")).unwrap();
    let file = mesh.logs().join("try.yaml");
    std::fs::write(&file, SERVICE).unwrap();
    mesh.meshctl(&["apply", "--dry-run", "-f", &file.to_string_lossy()]).unwrap();
    mesh.apply(WITH_SECRETS).unwrap();
    mesh.meshctl(&["delete", "service/shown"]).unwrap();

    let of_service = query(&mesh, &["--object", "service/shown", "--since", "1h"]);
    let shown: Vec<_> = of_service.iter().map(|it| it["verb"].as_str().unwrap()).collect();
    assert_eq!(shown, ["create", "update", "delete"], "{of_service:#?}");
    for record in &of_service {
        assert_eq!((&record["who"]["kind"], &record["who"]["uid"]), (&"user".into(), &uid.into()), "{record:#}");
    }
    let update = &of_service[1];
    let port = |when: &str| update[when]["spec"]["ports"][0]["port"].as_u64();
    assert_eq!((port("before"), port("after")), (Some(9080), Some(9090)), "{update:#}");
    let revisions: Vec<u64> = of_service.iter().map(|it| it["revision"].as_u64().unwrap()).collect();
    assert!(revisions.is_sorted_by(|a, b| a < b), "{revisions:?}");
    let table = mesh.meshctl(&["audit", "query", "--object", "svc/shown"]).unwrap();
    assert!(table.contains("spec.ports[0].port: 9080 -> 9090"), "{table}");

    // Who registers is known by its certificate, and the token that it began with by its name.
    let registered = query(&mesh, &["--object", "workloadentry", "--who", "sa/reviews"]);
    assert_eq!(registered[0]["who"]["name"], "spiffe://mesh.local/ns/default/sa/reviews", "{registered:#?}");
    let tokens = query(&mesh, &["--object", "jointoken", "--who", &uid.to_string()]);
    assert_eq!((tokens.len(), &tokens[0]["after"]["uses"]), (1, &1.into()), "{tokens:#?}");
    let token_file = mesh.token("other").unwrap();
    let token = std::fs::read_to_string(token_file).unwrap();
    let secret = token.trim().split('.').nth(2).unwrap();

    let log = mesh.data().join("audit.log");
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(!text.contains("s3cret") && !text.contains(secret), "{text}");
    assert!(text.contains("visible") && text.contains("[redacted]"), "{text}");
    assert_eq!(std::fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);

    // It outlives the control plane, and who follows hears of what comes.
    let before = query(&mesh, &[]);
    let mut control = mesh.control.take().unwrap();
    control.signal(Signal::SIGKILL).unwrap();
    control.wait(Duration::from_secs(5)).unwrap();
    mesh.start_control().unwrap();
    assert_eq!(query(&mesh, &[])[..before.len()], before);
    let mut tail = mesh.command("meshctl");
    tail.arg("--control").arg(format!("unix:{}", mesh.data().join("control.sock").display()));
    tail.args(["audit", "tail", "--lines", "1", "--follow", "--object", "service", "-o", "json"]);
    let tail = Process::start("tail", tail, &mesh.logs()).unwrap();
    let told = |count: usize| {
        eventually(Duration::from_secs(10), || {
            let text = tail.stdout();
            ensure!(text.lines().count() == count, "{text}{}", tail.tail());
            Ok(serde_json::from_str::<Value>(text.lines().last().unwrap())?)
        })
        .unwrap()
    };
    assert_eq!(told(1), of_service[2]);
    mesh.apply(&SERVICE.replace("shown", "later")).unwrap();
    assert_eq!(told(2)["object"]["name"], "later");
}
