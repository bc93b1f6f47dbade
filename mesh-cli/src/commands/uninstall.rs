//! `meshctl uninstall`: the mesh out of a cluster, and nothing left of it.

use std::time::Duration;

use crate::commands::Context;
use crate::confirm::confirm;
use crate::failure::Failure;
use crate::install::injected::Injected;
use crate::install::remove::{self, Inventory};
use crate::install::{NAMESPACE, gateway};
use crate::output::time::parse_positive_duration;

/// Remove the mesh from a Kubernetes cluster
///
/// Removes the webhooks, the control plane, its rights, its namespace, the roots that it has given to every namespace, and
/// our kinds with all their objects. It asks first. Gateway API's kinds and routes stay, because others may use them. Pods
/// keep their proxies, which pass on what they last knew for as long as their certificates last, an hour at most; it says how
/// to take them out.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl uninstall
  meshctl uninstall --yes --gateway-api-crds")]
pub struct Args {
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Also remove Gateway API's kinds, with all routes and gateways of the cluster
    #[arg(long)]
    gateway_api_crds: bool,
    /// How long to wait until everything is gone
    #[arg(long, value_name = "DURATION", default_value = "3m", value_parser = parse_positive_duration)]
    wait_timeout: Duration,
}

pub async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    let cluster = context.cluster().await?;
    let found = remove::inventory(&cluster, args.gateway_api_crds).await?;
    if found.is_empty() {
        return context.out.line(&format!("Nothing of the mesh is in this cluster ({}).", cluster.server));
    }
    announce(context, &found, &cluster.context)?;
    if !args.yes {
        confirm("Nothing was removed.")?;
    }
    remove::remove(context, &cluster, &found, args.wait_timeout).await?;
    how_to_leave(context, &found.injected);
    context.out.line("The mesh is gone from this cluster.")
}

/// For whoever has still a proxy, or gets one with the next pod of a template.
fn how_to_leave(context: &Context, injected: &Injected) {
    if injected.is_empty() {
        return;
    }
    context.out.note(&format!(
        "{} pods still have a proxy, which goes on with what it last knew for as long as its certificate lasts, an hour at most; \
         new pods of templates that have it do not start. This takes it out:",
        injected.pods
    ));
    for namespace in &injected.by_webhook {
        context.out.note(&format!("  kubectl label namespace {namespace} mesh-injection-"));
        context.out.note(&format!("  kubectl -n {namespace} rollout restart deployments,statefulsets,daemonsets"));
    }
    for (namespace, by_hand) in &injected.by_hand {
        if by_hand.changeable {
            context.out.note(&format!(
                "  kubectl -n {namespace} get deployments,statefulsets,daemonsets,cronjobs -o yaml | meshctl uninject -f - | kubectl apply -f -"
            ));
        }
        // Whether its work may be done again is not ours to say.
        for name in &by_hand.fixed {
            context
                .out
                .note(&format!("  {name} in {namespace} can only be deleted and created again without the proxy"));
        }
    }
}

fn announce(context: &Context, found: &Inventory, cluster: &str) -> Result<(), Failure> {
    let out = &context.out;
    out.line(&format!("This is removed from the cluster of the context {cluster}:"))?;
    out.line(&format!("  the control plane and the namespace {NAMESPACE}, with everything that is in it"))?;
    if !found.bundles.is_empty() {
        out.line(&format!("  the ConfigMap mesh-trust-bundle in {} namespaces", found.bundles.len()))?;
    }
    for (kind, count) in &found.objects {
        out.line(&format!("  the kind {kind}, with {count} objects"))?;
    }
    if found.gateway_api {
        out.line(&format!("  Gateway API {}, with all its objects, of the mesh or not", gateway::version()?))?;
    }
    Ok(())
}
