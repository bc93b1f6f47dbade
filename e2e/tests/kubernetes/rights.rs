//! The control plane asks for nothing that it may not do, and may do nothing that it does not ask for: its roles against what
//! the API server has written down of all checks before this one.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use mesh_e2e::cluster::{Cluster, Namespace, apps};
use mesh_e2e::process::eventually;
use serde_json::{Value, json};

/// The control plane's own namespace.
const HOME: &str = "mesh-system";
const USER: &str = "system:serviceaccount:mesh-system:mesh-control";

/// `verb resource.group`.
type Right = String;

/// Granted for what the API server asks in passing: a trust bundle is applied, which creates it where there is none.
const IN_PASSING: [&str; 1] = ["create configmaps"];

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.unmeshed("rights")?;
    of_every_kind(&namespace)?;
    let everywhere = granted(&cluster.get(&["clusterrole/mesh-control"])?);
    let at_home = granted(&cluster.get(&["role/mesh-control", "-n", HOME])?);
    let granted: BTreeSet<&Right> = everywhere.union(&at_home).collect();
    let (used, refused) = eventually(Duration::from_secs(20), || {
        let (used, refused) = asked(&cluster.audit()?);
        let unused: Vec<_> =
            granted.iter().filter(|right| !used.contains(**right) && !IN_PASSING.contains(&right.as_str())).collect();
        ensure!(unused.is_empty(), "granted, and used by none of the checks that were run: {unused:#?}");
        Ok((used, refused))
    })?;
    println!("   {} rights are granted, {} of them were used", granted.len(), used.len());
    // An API server that has just started may refuse what is granted, since it does not know of the roles yet.
    let wrong: Vec<_> = refused
        .iter()
        .filter(|it| !(everywhere.contains(&it.right) || it.namespace == HOME && at_home.contains(&it.right)))
        .collect();
    ensure!(wrong.is_empty(), "asked for, but not granted: {wrong:#?}");
    // An excuse for what is not granted any more.
    ensure!(IN_PASSING.iter().all(|right| granted.contains(&(*right).to_owned())), "{granted:#?}");
    Ok(())
}

/// Objects of the kinds that no other check has, each of which gets a status, and a fault that is over.
fn of_every_kind(namespace: &Namespace) -> anyhow::Result<()> {
    let parents = json!([{"group": "", "kind": "Service", "name": "nobody"}]);
    let rules = json!([{"backendRefs": apps::backends(&[("nobody", 1)])}]);
    let object = |version: &str, kind: &str, spec: Value| json!({"apiVersion": version, "kind": kind, "metadata": {"name": "rights"}, "spec": spec});
    let route = |kind: &str, spec: Value| {
        let mut route = object("gateway.networking.k8s.io/v1", kind, spec);
        route["spec"]["parentRefs"] = parents.clone();
        route
    };
    let own = |kind: &str, spec: Value| object("meshctl.dev/v1alpha1", kind, spec);
    namespace.apply(&[
        route("GRPCRoute", json!({"rules": rules})),
        route("TCPRoute", json!({"rules": rules})),
        route("UDPRoute", json!({"rules": rules})),
        route("TLSRoute", json!({"hostnames": ["a.example.com"], "rules": rules})),
        own("TrafficPolicy", json!({"timeouts": {"request": "1s"}})),
        own("WorkloadEntry", json!({"addresses": ["192.0.2.7"], "ports": [{"port": 9080}], "service": "nobody"})),
        own("PeerAuthentication", json!({"mode": "STRICT"})),
        own(
            "RequestAuthentication",
            json!({"targetRefs": [{"kind": "Service", "name": "nobody"}], "jwtRules": [{"issuer": "x", "jwksUri": "https://issuer.invalid/jwks"}]}),
        ),
        own("Telemetry", json!({"targetRefs": [{"kind": "Service", "name": "nobody"}], "tracing": {"samplingPercent": 5}})),
        own("AuthorizationPolicy", json!({"targetRefs": [{"kind": "Service", "name": "nobody"}]})),
        own(
            "FaultInjection",
            json!({
                "targetRefs": parents, "faults": [{"percent": 1, "reset": {}}], "expiresAt": "2026-01-01T00:00:00Z",
            }),
        ),
    ])?;
    let mut settings = own("MeshConfig", json!({"retries": {"attempts": 1}}));
    settings["metadata"] = json!({"name": "default", "namespace": HOME});
    namespace.cluster.apply(&settings.to_string())?;
    namespace.cluster.kubectl(&[
        "-n",
        HOME,
        "wait",
        "--for=condition=Accepted",
        "--timeout=20s",
        "meshconfig/default",
    ])?;
    namespace.cluster.kubectl(&["-n", HOME, "delete", "meshconfig/default"]).map(drop)
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Refused {
    right: Right,
    namespace: String,
    name: String,
}

/// What the account was allowed, and what it was refused.
fn asked(events: &[Value]) -> (BTreeSet<Right>, BTreeSet<Refused>) {
    let (mut used, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for event in events.iter().filter(|event| event["user"]["username"] == USER) {
        let object = &event["objectRef"];
        let text = |field: &str| object[field].as_str().unwrap_or_default();
        let Some(resource) = object["resource"].as_str() else { continue };
        let resource = match text("subresource") {
            "" => resource.to_owned(),
            below => format!("{resource}/{below}"),
        };
        let right = right(event["verb"].as_str().unwrap_or_default(), &resource, text("apiGroup"));
        match event["annotations"]["authorization.k8s.io/decision"].as_str() {
            Some("allow") => used.insert(right),
            _ => refused.insert(Refused {
                right,
                namespace: text("namespace").to_owned(),
                name: text("name").to_owned(),
            }),
        };
    }
    (used, refused)
}

fn granted(role: &Value) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        let list = |field: &str| rule[field].as_array().into_iter().flatten().filter_map(Value::as_str);
        for group in list("apiGroups") {
            for resource in list("resources") {
                rights.extend(list("verbs").map(|verb| right(verb, resource, group)));
            }
        }
    }
    rights
}

fn right(verb: &str, resource: &str, group: &str) -> Right {
    match group {
        "" => format!("{verb} {resource}"),
        group => format!("{verb} {resource}.{group}"),
    }
}
