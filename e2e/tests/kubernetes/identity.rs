//! Who asks for a certificate needs a token of a service account, for the mesh, that is valid now. Nobody without a
//! certificate gets anything of a strict service.

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_e2e::cluster::{Cluster, Namespace, apps};
use serde_json::{Value, json};

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.meshed("identity")?;
    namespace.shop(&["web"])?;
    let outside = cluster.unmeshed("identity-outside")?;
    let mut short = apps::load("short", &["--url", "http://reviews.identity:9080/", "--seconds", "1"]);
    short["spec"]["serviceAccountName"] = "web".into();
    outside.apply(&[apps::service_account("web"), apps::client("web"), short])?;
    outside.rolled_out("web")?;
    tokens(&outside)?;
    strict(&namespace, &outside)?;
    probes(&namespace)?;
    excluded_port(&namespace, &outside)
}

fn tokens(outside: &Namespace) -> anyhow::Result<()> {
    let token = |more: &[&str]| -> anyhow::Result<String> {
        Ok(outside.kubectl(&[&["create", "token", "web"], more].concat())?.trim().to_owned())
    };
    let good = token(&["--audience", "mesh-control"])?;
    let said = sign(outside, &good)?;
    ensure!(said.contains("spiffe://mesh.local/ns/identity-outside/sa/web"), "{said}");

    let (rest, signature) = good.rsplit_once('.').context("a token without a signature")?;
    let other = if signature.starts_with('A') { "B" } else { "A" };
    let forged = format!("{rest}.{other}{}", &signature[1..]);
    refused(outside, &forged, "does not take the token")?;
    refused(outside, &token(&["--audience", "elsewhere"])?, "not \"mesh-control\"")?;
    refused(outside, &token(&[])?, "not \"mesh-control\"")?;
    refused(outside, "nonsense", "not one of a Kubernetes service account")?;
    expired(outside, &good)?;
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", "short", "--audience", "mesh-control"];
    let bound = token(&bound)?;
    outside.delete(&["pod/short", "--grace-period=0", "--force"])?;
    refused(outside, &bound, "does not take the token")
}

/// The API server makes none that ends in less than ten minutes. So this one is over by its own word; in a cluster that is ours
/// it is signed as well, and nothing else is wrong with it.
fn expired(outside: &Namespace, good: &str) -> anyhow::Result<()> {
    let (parts, signature) = good.rsplit_once('.').context("a token without a signature")?;
    let over = over(parts)?;
    if !outside.cluster.is_ours() {
        println!("   the expired token has another's signature: this cluster does not give us its key");
        return refused(outside, &format!("{over}.{signature}"), "expired");
    }
    let again = outside.cluster.sign_token(parts)?;
    ensure!(again == good, "the same token signed again is another one: {again} {good}");
    refused(outside, &outside.cluster.sign_token(&over)?, "expired")
}

/// The first two parts of a token that ended long ago, and was like this one.
fn over(parts: &str) -> anyhow::Result<String> {
    let (header, payload) = parts.split_once('.').context("not a JWT")?;
    let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload)?)?;
    for (claim, at) in [("iat", 1_699_996_400), ("nbf", 1_699_996_400), ("exp", 1_700_000_000)] {
        claims[claim] = json!(at);
    }
    Ok(format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string())))
}

fn refused(outside: &Namespace, token: &str, reason: &str) -> anyhow::Result<()> {
    let said = sign(outside, token)?;
    ensure!(said.contains("refuses to issue a certificate") && said.contains(reason), "{reason:?} expected: {said}");
    Ok(())
}

/// Asks as a proxy does, and gives what came of it.
fn sign(outside: &Namespace, token: &str) -> anyhow::Result<String> {
    let bundle = outside.get(&["configmap/mesh-trust-bundle"])?;
    let roots = bundle["data"].as_object().and_then(|data| data.values().next()?.as_str());
    let roots = roots.context("the namespace has no trust bundle")?;
    outside.exec("web", &["sign", "--token", token, &format!("--roots={roots}")])
}

/// A pod without a proxy reaches a strict service neither by its name nor by a pod's address; in PERMISSIVE mode it does.
fn strict(namespace: &Namespace, outside: &Namespace) -> anyhow::Result<()> {
    let by_name = ["--url", "http://reviews.identity:9080/", "--requests", "20"];
    let inside = namespace.load("web", &by_name)?;
    ensure!(inside.good() == 20, "{inside:?}");
    let report = outside.load("web", &by_name)?;
    ensure!((report.good(), report.failed) == (0, 20), "{report:?}");
    let url = pod_url(namespace, "app=reviews", 9080)?;
    let report = outside.load("web", &["--url", &url, "--requests", "20"])?;
    ensure!((report.good(), report.failed) == (0, 20), "{report:?}");

    let mut permissive = json!({
        "apiVersion": "meshctl.dev/v1alpha1", "kind": "PeerAuthentication", "metadata": {"name": "all"},
        "spec": {"mode": "PERMISSIVE"},
    });
    namespace.apply(&[permissive.clone()])?;
    eventually_good(outside, &by_name, 20)?;
    permissive["spec"]["mode"] = "STRICT".into();
    namespace.apply(&[permissive])?;
    eventually_good(outside, &by_name, 0)
}

fn eventually_good(outside: &Namespace, args: &[&str], good: u64) -> anyhow::Result<()> {
    mesh_e2e::process::eventually(std::time::Duration::from_secs(10), || {
        let report = outside.load("web", args)?;
        ensure!(report.good() == good, "{report:?}");
        Ok(())
    })
}

/// The kubelet has no certificate: its probes worked, or the pods would not be ready; and they go on to tell the truth.
fn probes(namespace: &Namespace) -> anyhow::Result<()> {
    let mut ill = apps::server("ill", "v1");
    let container = &mut ill["spec"]["template"]["spec"]["containers"][0];
    container["readinessProbe"] = json!({"httpGet": {"path": "/status/503", "port": apps::PORT}, "periodSeconds": 1});
    container["livenessProbe"] = json!({"tcpSocket": {"port": apps::PORT}, "periodSeconds": 1});
    namespace.apply(&[ill])?;
    mesh_e2e::process::eventually(std::time::Duration::from_secs(20), || {
        let pods = namespace.get(&["pods", "-l", "app=ill"])?;
        let status = &pods["items"][0]["status"]["containerStatuses"][0];
        ensure!((&status["started"], &status["ready"]) == (&json!(true), &json!(false)), "{status}");
        let events = namespace.kubectl(&["events", "--types=Warning"])?;
        ensure!(events.contains("Readiness probe failed: HTTP probe failed with statuscode: 503"), "{events}");
        ensure!(status["restartCount"] == 0, "{status}");
        Ok(())
    })?;
    namespace.delete(&["deployment/ill-v1", "--wait=false"])
}

/// A port that an annotation leaves out is reached without the mesh.
fn excluded_port(namespace: &Namespace, outside: &Namespace) -> anyhow::Result<()> {
    let mut open = apps::server("open", "v1");
    open["spec"]["template"]["metadata"]["annotations"] = json!({"meshctl.dev/exclude-inbound-ports": "9080"});
    namespace.apply(&[open])?;
    namespace.rolled_out("open-v1")?;
    let url = pod_url(namespace, "app=open", 9080)?;
    let report = outside.load("web", &["--url", &url, "--requests", "20"])?;
    ensure!(report.good() == 20, "{report:?}");
    Ok(())
}

fn pod_url(namespace: &Namespace, label: &str, port: u16) -> anyhow::Result<String> {
    let pods = namespace.get(&["pods", "-l", label])?;
    let address = pods["items"][0]["status"]["podIP"].as_str().context("a pod without an address")?;
    Ok(format!("http://{address}:{port}/"))
}
