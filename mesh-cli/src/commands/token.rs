//! `meshctl token`: join tokens, with which a workload gets its first certificate.

use std::time::Duration;

use jiff::Timestamp;
use mesh_common::proto::control::CreateTokenRequest;
use serde::Serialize;

use crate::commands::Context;
use crate::failure::Failure;
use crate::output::time::{human_duration, parse_positive_duration};

/// Make join tokens for workloads
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl token create --service-account reviews > reviews.token
  meshctl token create --service-account web -n shop --for 1h --uses 3")]
pub struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    Create(Create),
}

/// Make a token for a service account
///
/// The token goes to standard output, so that it can be sent to a file. Whoever holds it can join the mesh as the service
/// account until it is used up or expires. It also names the mesh's root certificate, so the workload knows whom to trust.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  meshctl token create --service-account reviews > reviews.token")]
struct Create {
    /// Service account that the token's user becomes; with the namespace (-n) it makes the identity
    #[arg(long, value_name = "NAME")]
    service_account: String,
    /// How long it may be used
    #[arg(long = "for", value_name = "DURATION", default_value = "10m", value_parser = parse_positive_duration)]
    lifetime: Duration,
    /// How often it may be used
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    uses: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Token {
    token: String,
    spiffe_id: String,
    expires_at: String,
    uses: u32,
}

pub async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    let Action::Create(create) = args.command;
    let control = context.connect().await?;
    let request = CreateTokenRequest {
        namespace: context.namespace().to_owned(),
        service_account: create.service_account,
        ttl_seconds: create.lifetime.as_secs().max(1),
        uses: create.uses,
    };
    let made = control.mesh().create_token(request).await?.into_inner();
    if !context.out.for_people() {
        let expires_at = Timestamp::from_second(made.expires_unix).map(|t| t.to_string()).unwrap_or_default();
        let token = Token { token: made.token, spiffe_id: made.spiffe_id, expires_at, uses: create.uses };
        return context.out.data(&token);
    }
    let times = if create.uses == 1 { "once".to_owned() } else { format!("{} times", create.uses) };
    let lifetime = human_duration(create.lifetime);
    context.out.note(&format!("Token for {}: may be used {times}, for {lifetime}.", made.spiffe_id));
    context.out.line(&made.token)
}
