//! What `kubectl get` shows of the mesh's own kinds: what an object is about, and whether it is in force.

use std::time::Duration;

use anyhow::{Context, ensure};
use mesh_e2e::cluster::{Cluster, apps};
use mesh_e2e::process::eventually;
use serde_json::{Value, json};

/// Kind, object, the columns, and what of the object is in them: its name first.
type Case = (&'static str, Value, &'static str, &'static [&'static str]);

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.meshed("columns")?;
    namespace.apply(&[apps::service("reviews")])?;
    for (kind, spec, columns, parts) in cases() {
        let name = parts.first().context("no name")?;
        // The settings of the mesh are nowhere else.
        let place = if kind == "MeshConfig" { "mesh-system" } else { &namespace.name };
        let metadata = json!({"name": name, "namespace": place});
        let object = json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec});
        cluster.apply(&object.to_string())?;
        let shown = || cluster.kubectl(&["-n", place, "get", kind, name]);
        eventually(Duration::from_secs(20), || {
            let text = shown()?;
            let lines: Vec<String> =
                text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
            ensure!(lines.first().is_some_and(|header| header == columns), "{kind}: {text}");
            let words: Vec<&str> = lines.get(1).map(|line| line.split(' ').collect()).unwrap_or_default();
            ensure!(parts.iter().all(|part| words.contains(part)), "{kind}, {parts:?}: {text}");
            Ok(())
        })?;
    }
    cluster.kubectl(&["-n", "mesh-system", "delete", "meshconfig/default"])?;
    // Why, where there is room.
    let wide = namespace.kubectl(&["get", "FaultInjection", "shown", "-o", "wide"])?;
    ensure!(wide.contains("REASON") && wide.contains("Accepted"), "{wide}");
    Ok(())
}

fn cases() -> [Case; 9] {
    let targets = json!([{"group": "", "kind": "Service", "name": "reviews"}]);
    [
        (
            "AuthorizationPolicy",
            json!({"targetRefs": targets, "action": "ALLOW", "rules": [{}]}),
            "NAME TARGETS ACTION ACCEPTED AGE",
            &["shown", "reviews", "ALLOW", "True"],
        ),
        (
            "DirectResponse",
            json!({"status": 503, "body": "closed", "contentType": "text/plain"}),
            "NAME STATUS CONTENT TYPE ACCEPTED AGE",
            &["shown", "503", "text/plain", "True"],
        ),
        (
            "FaultInjection",
            json!({"targetRefs": targets, "faults": [{"percent": 7, "reset": {}}]}),
            "NAME TARGETS PERCENT ENDS ACCEPTED AGE",
            &["shown", "reviews", "7", "True"],
        ),
        ("MeshConfig", json!({"trustDomain": "mesh.local"}), "NAME TRUST DOMAIN AGE", &["default", "mesh.local"]),
        (
            "PeerAuthentication",
            json!({"targetRefs": targets, "mode": "STRICT"}),
            "NAME TARGETS MODE ACCEPTED AGE",
            &["shown", "reviews", "STRICT", "True"],
        ),
        (
            "RequestAuthentication",
            json!({"targetRefs": targets, "jwtRules": [{"issuer": "https://issuer.example", "jwksUri": "https://issuer.invalid/jwks"}]}),
            "NAME TARGETS ISSUERS ACCEPTED AGE",
            &["shown", "reviews", "https://issuer.example"],
        ),
        (
            "Telemetry",
            json!({"targetRefs": targets, "tracing": {"samplingPercent": 12.5, "backend": {"name": "reviews", "port": 9080}}}),
            "NAME TARGETS TRACES SAMPLING ACCEPTED AGE",
            &["shown", "reviews", "12.5", "True"],
        ),
        (
            "TrafficPolicy",
            json!({"targetRefs": targets, "timeouts": {"request": "1s"}}),
            "NAME TARGETS ACCEPTED AGE",
            &["shown", "reviews", "True"],
        ),
        (
            "WorkloadEntry",
            json!({"service": "reviews", "version": "v9", "addresses": ["192.0.2.7"], "ports": [{"port": 9080}]}),
            "NAME SERVICE VERSION ADDRESSES AGE",
            &["shown", "reviews", "v9", "[\"192.0.2.7\"]"],
        ),
    ]
}
