//! `meshctl check`: whether the mesh and this host are as they should be, and what to do where they are not.

use mesh_common::proto::control::{GetStatusRequest, ListProxiesRequest, finding};

use crate::client::{Control, Place};
use crate::commands::Context;
use crate::failure::{Exit, Failure};
use crate::kubernetes::{self, Cluster};
use crate::netns;
use crate::output::Format;
use crate::run::{find_program, sidecar};
use crate::views::findings::{self, Finding, Level};
use crate::views::proxies;

/// Proxies named in a finding.
const NAMED: usize = 5;

/// Check the mesh and this host
///
/// Looks at the control plane, the root certificate, proxies that lag or reject their configuration, objects that are not
/// in force, services without a healthy workload, and at whether this host can run applications in the mesh. Ends with exit
/// code 1 when there is an error (warnings are none), and with 5 when the control plane cannot be reached; in a cluster, when
/// none of its replicas answers.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl check
  meshctl check --host
  meshctl check -o json")]
pub struct Args {
    /// Look at this host only; needs no control plane
    #[arg(long)]
    host: bool,
}

pub async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    let mut found = Vec::new();
    let mut unreachable = None;
    if !args.host {
        match context.connect().await {
            Ok(Control { place: Place::Cluster(cluster), .. }) => return in_cluster(context, &cluster).await,
            Ok(control) => found.extend(mesh(&control).await?),
            Err(failure) => {
                let remedy = failure.hint.clone().unwrap_or_default();
                found.push(Finding::error("control plane", failure.message.clone(), remedy));
                unreachable = Some(failure.exit);
            }
        }
    }
    found.extend(host().await);
    judge(context, &found, unreachable)
}

/// What the API server has, and then what the replicas say: these may be what is wrong.
async fn in_cluster(context: &Context, cluster: &Cluster) -> Result<(), Failure> {
    let mut found = kubernetes::check::now(cluster).await?;
    let asked = async { mesh(&context.connect().await?).await };
    let mut unreachable = None;
    match asked.await {
        Ok(more) => found.extend(more),
        Err(failure) => {
            unreachable = Some(failure.exit).filter(|exit| *exit == Exit::Unreachable);
            found.push(Finding::error("control plane", failure.message, failure.hint.unwrap_or_default()));
        }
    }
    judge(context, &found, unreachable)
}

/// What the cluster says of the mesh in it, once what was just installed had time to take effect.
pub async fn cluster_only(context: &Context, cluster: &Cluster) -> Result<(), Failure> {
    let found = kubernetes::check::settled(cluster).await?;
    judge(context, &found, None)
}

/// Reports, and fails if something is wrong; a control plane that cannot be asked has an exit code of its own.
fn judge(context: &Context, found: &[Finding], unreachable: Option<Exit>) -> Result<(), Failure> {
    report(context, found)?;
    let failed = found.iter().any(|f| f.level == Level::Error).then_some(Exit::Failed);
    match unreachable.or(failed) {
        Some(exit) => Err(Failure::silent(exit)),
        None => Ok(()),
    }
}

fn report(context: &Context, found: &[Finding]) -> Result<(), Failure> {
    let out = &context.out;
    match out.format {
        Format::Json | Format::Yaml => return out.data(&found),
        Format::Name => return found.iter().try_for_each(|finding| out.line(&finding.subject)),
        Format::Table | Format::Wide => out.table(&findings::table(found))?,
    }
    match findings::summary(found) {
        Some(summary) => out.line(&format!("\n{summary}.")),
        None => out.line("\nAll is well."),
    }
}

async fn mesh(control: &Control) -> Result<Vec<Finding>, Failure> {
    let status = control.mesh().get_status(GetStatusRequest {}).await?.into_inner();
    let answer = format!(
        "version {} answers at {}, trust domain {}, revision {}",
        status.version, control.place, status.trust_domain, status.revision
    );
    let mut found = vec![Finding::ok("control plane", answer)];
    if status.version != env!("CARGO_PKG_VERSION") {
        let message = format!("meshctl is {}, the control plane {}", env!("CARGO_PKG_VERSION"), status.version);
        found.push(Finding::warning("versions", message, "use the same version of both"));
    }
    found.extend(status.findings.into_iter().map(of_server));
    let listed = control.mesh().list_proxies(ListProxiesRequest {}).await?.into_inner();
    let views: Vec<proxies::View> = listed.proxies.iter().map(proxies::view).collect();
    found.extend(lagging(&views));
    Ok(found)
}

fn of_server(of: mesh_common::proto::control::Finding) -> Finding {
    let level = match of.level() {
        finding::Level::Ok => Level::Ok,
        finding::Level::Warning => Level::Warning,
        finding::Level::Error | finding::Level::Unspecified => Level::Error,
    };
    let remedy = Some(of.remedy).filter(|r| !r.is_empty());
    Finding { level, subject: of.subject, message: of.message, remedy }
}

/// Proxies that have been sent something and have not said a word about it yet.
fn lagging(views: &[proxies::View]) -> Option<Finding> {
    let waits = |view: &&proxies::View| view.types.iter().any(|t| !t.synced && t.rejected.is_none());
    let late: Vec<&str> = views.iter().filter(waits).map(|view| view.id.as_str()).collect();
    if late.is_empty() {
        return None;
    }
    let more = if late.len() > NAMED { ", ..." } else { "" };
    let named = late.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    let message = format!("{} of {} have not acknowledged the newest change: {named}{more}", late.len(), views.len());
    Some(Finding::warning(
        "proxies",
        message,
        "`meshctl wait` tells when they have; if it does not end, see their logs",
    ))
}

/// Tries what `meshctl run` needs, in a namespace that is gone afterwards.
async fn host() -> Vec<Finding> {
    let subject = "this host";
    let tried = tempfile::Builder::new().prefix("meshctl-check-").tempdir();
    let folder = match tried {
        Ok(folder) => folder,
        Err(error) => {
            return vec![Finding::error(subject, format!("there is no temporary folder: {error}"), "set TMPDIR")];
        }
    };
    let data = folder.path().to_owned();
    let lease = match tokio::task::spawn_blocking(move || netns::lease(&data)).await {
        Ok(Ok(lease)) => lease,
        Ok(Err(error)) => {
            let message = format!("applications cannot get a network namespace: {error}");
            return vec![Finding::error(
                subject,
                message,
                "without this, `meshctl run` and `meshctl demo` do not work here",
            )];
        }
        Err(error) => return vec![Finding::error(subject, format!("the check failed: {error}"), "try again")],
    };
    let who = if rustix::process::geteuid().is_root() { "as root" } else { "without root" };
    let mut found = vec![Finding::ok(subject, format!("applications get network namespaces, {who}"))];
    if lease.ipv6.is_none() {
        let message = "the kernel has no IPv6, so applications have IPv4 only";
        found.push(Finding::warning(subject, message, "enable IPv6 if your applications need it"));
    }
    let intercepted = match find_program("mesh-proxy") {
        Ok(program) => sidecar::intercept(&lease, &program).await,
        Err(failure) => Err(failure),
    };
    found.push(match intercepted {
        Ok(()) => Finding::ok(subject, "connections can be intercepted (nf_tables)"),
        Err(failure) => {
            let remedy =
                failure.hint.unwrap_or_else(|| "as root, try `modprobe nf_tables nft_redir nft_ct`".to_owned());
            Finding::error(subject, failure.message, remedy)
        }
    });
    found
}

#[cfg(test)]
mod tests {
    use mesh_common::proto::control::{Proxy, ProxyType};

    use super::*;

    #[test]
    fn a_proxy_that_rejects_does_not_lag() {
        let of = |synced: bool, nack: &str| {
            let types = vec![ProxyType { synced, nack: nack.into(), ..ProxyType::default() }];
            proxies::view(&Proxy { id: "web".into(), types, ..Proxy::default() })
        };
        assert_eq!(lagging(&[of(true, ""), of(false, "no")]), None);
        let finding = lagging(&[of(true, ""), of(false, "")]).unwrap();
        assert_eq!(finding.message, "1 of 2 have not acknowledged the newest change: web");
    }
}
