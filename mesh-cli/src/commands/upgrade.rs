//! `meshctl upgrade`: another version of the control plane.

use std::time::Instant;

use crate::commands::install::{self, Patience, Settings};
use crate::commands::{Context, check};
use crate::failure::Failure;
use crate::install::manifest::Manifest;
use crate::install::{chart, gateway, prune};
use crate::kubernetes::Cluster;
use crate::output::time::human_duration;

/// Fields of one object that are shown.
const SHOWN: usize = 12;

/// Bring an installed mesh to the version of this meshctl
///
/// Shows what changes, changes it, waits until the control plane runs, and checks it. Settings of the installation stay
/// unless they are given anew. Proxies keep running; each pod gets its new proxy when it is next started.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl upgrade --dry-run
  meshctl upgrade
  meshctl upgrade --set control.replicas=3")]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Also to an older version
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    patience: Patience,
}

pub async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    let began = Instant::now();
    let cluster = context.cluster().await?;
    install::greet(context, &cluster).await?;
    let Some(installed) = install::installed(&cluster).await? else {
        return Err(Failure::not_found("The mesh is not installed here.").hint("Install it with `meshctl install`."));
    };
    let values = args.settings.values(&install::kept(&cluster).await?)?;
    let version = values.get("image.tag").unwrap_or_default();
    if older(&version, &installed) && !args.force {
        return Err(Failure::refused(format!("Version {installed} is installed, and {version} is older.")).hint(
            "Take a newer meshctl, or go back with --force; objects that only the newer one knows lose effect.",
        ));
    }
    install::keeps_trust_domain(&cluster, &values).await?;
    context.out.line(&format!("The mesh is of version {installed}, and gets {version}."))?;
    let mut manifests = gateway::crds()?;
    manifests.extend(chart::crds()?);
    manifests.push(chart::namespace(&values)?);
    manifests.extend(chart::render(&values)?);
    for manifest in &manifests {
        show(context, &cluster, manifest).await?;
    }
    for manifest in &prune::superfluous(&cluster, &values).await? {
        context.out.line(&format!("- {manifest}"))?;
    }
    if args.dry_run {
        return Ok(());
    }
    let changed = install::write(context, &cluster, &values, true, args.patience.deadline()).await?;
    context.out.line(&match changed {
        0 => format!("Nothing had to be changed: version {version} of the mesh is installed."),
        _ => format!("The mesh is of version {version}, after {}.", human_duration(began.elapsed())),
    })?;
    context.out.line("")?;
    check::cluster_only(context, &cluster).await
}

async fn show(context: &Context, cluster: &Cluster, manifest: &Manifest) -> Result<(), Failure> {
    if manifest.0["spec"]["group"] == mesh_common::resource::GATEWAY_GROUP
        && matches!(gateway::plan(manifest, cluster).await?, gateway::Plan::Leave { .. })
    {
        return Ok(());
    }
    match manifest.differences(cluster).await? {
        None => context.out.line(&format!("+ {manifest}")),
        Some(found) if found.is_empty() => Ok(()),
        Some(found) => {
            context.out.line(&format!("~ {manifest}"))?;
            found.iter().take(SHOWN).try_for_each(|difference| context.out.line(&format!("    {difference}")))?;
            match found.len().saturating_sub(SHOWN) {
                0 => Ok(()),
                more => context.out.line(&format!("    and {more} more fields")),
            }
        }
    }
}

/// Whether a version is older than another; versions that are no numbers cannot be compared.
fn older(version: &str, than: &str) -> bool {
    let parse = |text: &str| -> Option<Vec<u32>> {
        let (numbers, _) = text.split_once(['-', '+']).unwrap_or((text, ""));
        numbers.trim_start_matches('v').split('.').map(|part| part.parse().ok()).collect()
    };
    matches!((parse(version), parse(than)), (Some(version), Some(than)) if version < than)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(older("0.1.0", "0.2.0") && older("0.9.0", "0.10.0") && older("v1.0.0", "1.0.1-rc1"));
        assert!(!older("0.2.0", "0.2.0") && !older("0.3.0", "0.2.9"));
        assert!(!older("dev", "0.2.0") && !older("0.2.0", "dev"), "nobody knows");
    }
}
