//! With no control plane, no pod comes into a meshed namespace without a proxy, no object of the mesh is taken unchecked, and
//! traffic and the routes of others go on. With no webhook pods slip through, and are found.

use std::time::Duration;

use anyhow::{Context, ensure};
use mesh_e2e::cluster::{Cluster, Namespace, apps};
use mesh_e2e::process::eventually;
use serde_json::{Value, json};

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.meshed("webhook")?;
    namespace.shop(&["web"])?;
    // What a proxy has not asked for yet, it cannot know later.
    let calls = ["--url", "http://reviews:9080/", "--requests", "500"];
    namespace.load("web", &calls)?;
    let control = |args: &[&str]| cluster.kubectl(&[&["-n", "mesh-system"], args].concat());
    control(&["scale", "deployment/mesh-control", "--replicas=0"])?;
    control(&["delete", "pods", "--all", "--grace-period=1", "--wait=false"])?;
    eventually(Duration::from_secs(60), || {
        let pods = control(&["get", "pods", "-o", "name"])?;
        ensure!(pods.is_empty(), "{pods}");
        Ok(())
    })?;
    let report = namespace.load("web", &calls)?;
    ensure!(report.good() == 500, "{report:?}");
    // It must still be there when it is looked for.
    let slipping = apps::idle("slipped");
    let refused = refusal(&namespace, &slipping)?;
    ensure!(refused.contains("failed calling webhook \"namespace.injector.meshctl.dev\""), "{refused}");
    unchecked(&namespace)?;

    cluster.kubectl(&["delete", "mutatingwebhookconfiguration", "mesh-injector"])?;
    namespace.apply(&[slipping])?;
    // Nobody of the control plane answers, and still it is told.
    let told = cluster.meshctl(&["check"]).err().context("nothing is wrong")?.to_string();
    ensure!(told.contains("1 pods of the mesh have no proxy: webhook/slipped"), "{told}");
    ensure!(told.contains("exit status: 5"), "the exit code of a control plane that cannot be reached: {told}");
    // Installing again mends the rest, and finds the pod.
    let found = cluster.meshctl(&["install"]).unwrap_or_else(|error| error.to_string());
    ensure!(found.contains("1 pods of the mesh have no proxy: webhook/slipped"), "{found}");
    namespace.delete(&["pod/slipped"])?;
    cluster.meshctl(&["check"]).map(drop)
}

/// What nobody can check: our own kinds are not taken then, and routes, which others use too, are.
fn unchecked(namespace: &Namespace) -> anyhow::Result<()> {
    let policy = json!({
        "apiVersion": "meshctl.dev/v1alpha1", "kind": "PeerAuthentication", "metadata": {"name": "unchecked"},
        "spec": {"mode": "STRICT"},
    });
    let refused = refusal(namespace, &policy)?;
    for part in ["failed calling webhook \"policies.validator.meshctl.dev\"", "mesh-control.mesh-system.svc"] {
        ensure!(refused.contains(part), "who does not answer, {part}: {refused}");
    }
    let by_meshctl = namespace.cluster.meshctl_on(&["-n", &namespace.name, "apply", "-f", "-"], &policy.to_string());
    let refused = by_meshctl.err().context("it was taken")?.to_string();
    ensure!(refused.contains("exit status: 5") && refused.contains("`meshctl check` tells why"), "{refused}");
    let left = namespace.get(&["peerauthentications"])?;
    ensure!(left["items"] == json!([]), "{left}");

    let rules = json!([{"backendRefs": apps::backends(&[("reviews", 1)])}]);
    namespace.apply(&[apps::http_route("reviews", rules)])?;
    namespace.get(&["httproute/reviews"]).map(drop)
}

/// What the API server says to an object that it does not take.
fn refusal(namespace: &Namespace, object: &Value) -> anyhow::Result<String> {
    let refused = namespace.apply(std::slice::from_ref(object)).err();
    Ok(refused.with_context(|| format!("taken: {object}"))?.to_string())
}
