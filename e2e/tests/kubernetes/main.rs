//! The mesh in a real Kubernetes, brought up once: each file is a check of one thing, in namespaces of its own.
//!
//! `E2E_CLUSTER` says which cluster (see `e2e/kubernetes/cluster`); `E2E_CHECKS=canary,faults` runs only these checks.

#![allow(clippy::unwrap_used)]

mod annotations;
mod canary;
mod cni;
mod commands;
mod faults;
mod identity;
mod install;
mod leader;
mod matching;
mod prometheus;
mod refusals;
mod restarts;
mod rights;
mod startup;
mod webhook;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use mesh_e2e::cluster::Cluster;

type Check = fn(&Cluster) -> anyhow::Result<()>;

/// In this order, between the installation and the removal.
const CHECKS: &[(&str, Check)] = &[
    ("canary", canary::check),
    ("matching", matching::check),
    ("faults", faults::check),
    ("commands", commands::check),
    ("prometheus", prometheus::check),
    ("refusals", refusals::check),
    ("identity", identity::check),
    ("annotations", annotations::check),
    ("startup", startup::check),
    ("cni", cni::check),
    ("leader", leader::check),
    ("restarts", restarts::check),
    ("webhook", webhook::check),
    // Of all of them.
    ("rights", rights::check),
];

#[test]
fn the_mesh_in_a_real_cluster() {
    let chosen = std::env::var("E2E_CHECKS").unwrap_or_default();
    let wanted = |name: &str| chosen.is_empty() || chosen.split(',').any(|chosen| chosen == name);
    let cluster = Cluster::up().unwrap();
    let before = install::leftovers(&cluster).unwrap();
    install::install(&cluster).unwrap();
    let failed: Vec<_> =
        CHECKS.iter().filter(|(name, _)| wanted(name)).filter(|check| !passes(&cluster, check)).collect();
    assert!(failed.is_empty(), "failed: {}", failed.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "));
    install::remove(&cluster).unwrap();
    assert_eq!(install::leftovers(&cluster).unwrap(), before);
}

/// One that fails does not keep the others from being tried.
fn passes(cluster: &Cluster, (name, check): &(&str, Check)) -> bool {
    let start = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| check(cluster)));
    let took = start.elapsed().as_secs_f64();
    match &outcome {
        Ok(Ok(())) => println!("-- {name}: {took:.1} s"),
        Ok(Err(error)) => println!("-- {name} failed after {took:.1} s: {error:#}"),
        // The panic has said what it was.
        Err(_) => println!("-- {name} failed after {took:.1} s"),
    }
    matches!(outcome, Ok(Ok(())))
}
