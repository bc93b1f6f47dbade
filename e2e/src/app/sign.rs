//! Asks the control plane for a certificate as a proxy does, with any token.

use std::time::Duration;

use anyhow::Context;
use mesh_proxy::identity::Authority;
use mesh_proxy::tls::Tls;

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[arg(long, default_value = "https://mesh-control.mesh-system.svc:15012")]
    control: String,
    #[arg(long)]
    token: String,
    /// Root certificates, as PEM text.
    #[arg(long)]
    roots: String,
}

/// One sentence about what came of it.
pub async fn run(args: Args) -> anyhow::Result<String> {
    let folder = tempfile::tempdir()?;
    let (token, roots) = (folder.path().join("token"), folder.path().join("roots.pem"));
    std::fs::write(&token, args.token)?;
    std::fs::write(&roots, args.roots)?;
    let authority = Authority {
        address: args.control.parse()?,
        token_file: Some(token),
        trust_bundle: Some(roots),
        state_dir: None,
        ttl: Duration::ZERO,
    };
    let tls = Tls::default();
    let asking = tokio::time::timeout(Duration::from_secs(10), authority.first(&tls));
    match asking.await.context("the control plane cannot be reached")? {
        Ok(()) => Ok(format!("a certificate for {}", tls.identity().context("no identity")?)),
        Err(error) => Ok(error.to_string()),
    }
}
