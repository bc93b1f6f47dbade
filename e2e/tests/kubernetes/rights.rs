//! The control plane asks for nothing that it may not do, and may do nothing that it does not ask for: its roles against what
//! the API server has written down of all checks before this one.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;
use mesh_e2e::cluster::Cluster;
use serde_json::Value;

const USER: &str = "system:serviceaccount:mesh-system:mesh-control";

/// `verb resource.group`.
type Right = String;

/// What these checks do not need, and why it is granted all the same.
const UNUSED: &[(&str, &str)] = &[];

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let events = cluster.audit()?;
    if events.is_empty() {
        println!("   this cluster does not tell what its API server is asked for");
        return Ok(());
    }
    let (used, refused) = asked(&events);
    ensure!(refused.is_empty(), "asked for, but not granted: {refused:#?}");
    let granted = granted(cluster)?;
    let idle: BTreeSet<&Right> = granted.difference(&used).collect();
    println!(
        "   {} rights are granted, {} of them were used in {} requests",
        granted.len(),
        granted.len() - idle.len(),
        events.len()
    );
    let excused: BTreeMap<&str, &str> = UNUSED.iter().copied().collect();
    let needless: Vec<_> = idle.iter().filter(|right| !excused.contains_key(right.as_str())).collect();
    ensure!(needless.is_empty() || crate::chosen().is_some(), "granted, and never used: {needless:#?}");
    let stale: Vec<_> = excused.keys().filter(|right| !granted.contains(**right)).collect();
    ensure!(stale.is_empty(), "excused, but not granted: {stale:?}");
    Ok(())
}

/// What the account was allowed, and what it was refused.
fn asked(events: &[Value]) -> (BTreeSet<Right>, BTreeSet<Right>) {
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
            _ => refused.insert(format!("{right} {}/{}", text("namespace"), text("name"))),
        };
    }
    (used, refused)
}

fn granted(cluster: &Cluster) -> anyhow::Result<BTreeSet<Right>> {
    let roles =
        [cluster.get(&["clusterrole/mesh-control"])?, cluster.get(&["role/mesh-control", "-n", "mesh-system"])?];
    let mut rights = BTreeSet::new();
    for rule in roles.iter().flat_map(|role| role["rules"].as_array().into_iter().flatten()) {
        let list = |field: &str| rule[field].as_array().into_iter().flatten().filter_map(Value::as_str);
        for group in list("apiGroups") {
            for resource in list("resources") {
                rights.extend(list("verbs").map(|verb| right(verb, resource, group)));
            }
        }
    }
    Ok(rights)
}

fn right(verb: &str, resource: &str, group: &str) -> Right {
    match group {
        "" => format!("{verb} {resource}"),
        group => format!("{verb} {resource}.{group}"),
    }
}
