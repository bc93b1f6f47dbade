//! `meshctl version`: versions of this program, the control plane and the connected proxies.

use std::collections::BTreeMap;

use mesh_common::proto::control::{GetStatusRequest, ListProxiesRequest};
use serde::Serialize;

use crate::commands::Context;
use crate::failure::Failure;

/// Show the versions of meshctl, the control plane and the proxies
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl version
  meshctl version --client
  meshctl version -o json")]
pub struct Args {
    /// Only meshctl's own version; needs no control plane
    #[arg(long)]
    client: bool,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    client: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    control_plane: Option<String>,
    /// User agent of the connected proxies, and how many there are of each.
    #[serde(skip_serializing_if = "Option::is_none")]
    proxies: Option<BTreeMap<String, usize>>,
}

pub async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    let mut versions = Versions { client: env!("CARGO_PKG_VERSION").to_owned(), ..Versions::default() };
    if !args.client {
        // The own version is known in any case, and must not be lost to a missing control plane.
        match remote(context).await {
            Ok((control_plane, proxies)) => {
                versions.control_plane = Some(control_plane);
                versions.proxies = Some(proxies);
            }
            Err(failure) => {
                print(context, &versions)?;
                return Err(failure);
            }
        }
    }
    print(context, &versions)
}

async fn remote(context: &Context) -> Result<(String, BTreeMap<String, usize>), Failure> {
    let control = context.connect().await?;
    let status = control.mesh().get_status(GetStatusRequest {}).await?.into_inner();
    let mut proxies = BTreeMap::new();
    for proxy in control.mesh().list_proxies(ListProxiesRequest {}).await?.into_inner().proxies {
        *proxies.entry(proxy.user_agent).or_default() += 1;
    }
    Ok((status.version, proxies))
}

fn print(context: &Context, versions: &Versions) -> Result<(), Failure> {
    if !context.out.for_people() {
        return context.out.data(versions);
    }
    context.out.line(&format!("meshctl        {}", versions.client))?;
    if let Some(control_plane) = &versions.control_plane {
        context.out.line(&format!("control plane  {control_plane}"))?;
    }
    match &versions.proxies {
        Some(proxies) if proxies.is_empty() => context.out.line("proxies        none connected"),
        Some(proxies) => {
            let counted: Vec<String> = proxies.iter().map(|(agent, count)| format!("{agent} ({count})")).collect();
            context.out.line(&format!("proxies        {}", counted.join(", ")))
        }
        None => Ok(()),
    }
}
