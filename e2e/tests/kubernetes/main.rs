//! The mesh in a real Kubernetes, brought up once: each file is a check of one thing, in namespaces of its own.
//!
//! `E2E_CLUSTER` says which cluster (see `e2e/kubernetes/cluster`); `E2E_CHECKS=canary,faults` runs only these checks;
//! `E2E_SLOWNESS=3` allows a pod to start three times as slowly.

#![allow(clippy::unwrap_used)]

mod annotations;
mod canary;
mod cni;
mod columns;
mod commands;
mod faults;
mod identity;
mod inject;
mod install;
mod leader;
mod matching;
mod page;
mod places;
mod prometheus;
mod refusals;
mod restarts;
mod rights;
mod startup;
mod tcp;
mod upgrade;
mod webhook;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use mesh_e2e::cluster::Cluster;

type Check = fn(&Cluster) -> anyhow::Result<()>;

/// In this order, between the installation and the removal.
const CHECKS: &[(&str, Check)] = &[
    ("canary", canary::check),
    ("page", page::check),
    ("matching", matching::check),
    ("places", places::check),
    ("tcp", tcp::check),
    ("faults", faults::check),
    ("inject", inject::check),
    ("commands", commands::check),
    ("prometheus", prometheus::check),
    ("refusals", refusals::check),
    ("columns", columns::check),
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

/// What can only be looked at, or done, in a cluster that was made for the test. Parts of others say what they leave out.
const OURS_ONLY: [(&str, &str); 1] = [("rights", "it reads what the API server writes down of all requests")];

/// The name of what failed, and how.
type Failure = (&'static str, anyhow::Error);

#[test]
fn the_mesh_in_a_real_cluster() {
    let cluster = Cluster::up().unwrap();
    let before = install::leftovers(&cluster).unwrap();
    install::may_come_and_go(&cluster, &before).unwrap();
    let failed = from_installation_to_removal(&cluster, &before);
    // A cluster that was made for the test goes as a whole.
    if !failed.is_empty()
        && !cluster.is_ours()
        && let Err(error) = install::clean(&cluster, &before)
    {
        println!("-- something of the mesh is still in the cluster: {error:#}");
    }
    if let Some((name, error)) = failed.first() {
        let names: Vec<&str> = failed.iter().map(|(name, _)| *name).collect();
        panic!("failed: {}; first of all {name}: {error:#}", names.join(", "));
    }
}

fn from_installation_to_removal(cluster: &Cluster, before: &str) -> Vec<Failure> {
    if let Err(error) = install::install(cluster) {
        return vec![("installation", error)];
    }
    let chosen = std::env::var("E2E_CHECKS").unwrap_or_default();
    let wanted = |name: &str| chosen.is_empty() || chosen.split(',').any(|chosen| chosen == name);
    let tried = CHECKS.iter().filter(|(name, _)| wanted(name) && possible(cluster, name));
    let mut failed: Vec<Failure> = tried.filter_map(|check| failure(cluster, check)).collect();
    // Also after a check that failed.
    failed.extend(install::remove(cluster, before).err().map(|error| ("removal", error)));
    failed
}

fn possible(cluster: &Cluster, name: &str) -> bool {
    let Some((_, why)) = OURS_ONLY.iter().find(|(ours, _)| !cluster.is_ours() && *ours == name) else { return true };
    println!("-- {name} skipped in a cluster that is not ours: {why}");
    false
}

/// One that fails does not keep the others from being tried.
fn failure(cluster: &Cluster, (name, check): &(&'static str, Check)) -> Option<Failure> {
    let start = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| check(cluster)));
    let took = start.elapsed().as_secs_f64();
    // A panic has said what it was.
    let error = match outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked"))) {
        Ok(()) => {
            println!("-- {name}: {took:.1} s");
            return None;
        }
        Err(error) => error,
    };
    println!("-- {name} failed after {took:.1} s: {error:#}");
    Some((*name, error))
}
