//! `meshctl certs`: which certificates are served in the mesh, and until when.

mod rotate_root;

use jiff::Timestamp;
use mesh_common::proto::control::{ListCertificatesRequest, ListProxiesRequest};

use crate::commands::Context;
use crate::failure::{Exit, Failure};
use crate::output::Format;
use crate::views::certs::{self, View, Workload};
use crate::views::traffic;

/// Show which certificates are served, and whether they are renewed in time
///
/// For each connected proxy: the identity, since when it serves its certificate (which is when it was last renewed), when that ends, and by -o wide its
/// serial number and issuer. Proxies say so themselves; for Envoys it is what they were sent and have acknowledged. Below that, what these certificates
/// hang on. STATUS is `ok`; `not renewed` when the last attempt failed, `late` when less than a quarter of its life is left, `EXPIRED`, or `unknown` for a
/// client that does not say. For all that is neither ok nor unknown there is a warning on standard error, and the exit code is 1.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl certs
  meshctl certs reviews -o wide
  meshctl certs -o json")]
pub struct Args {
    #[command(subcommand)]
    command: Option<Action>,
    /// Only workloads of this service, or this one
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    RotateRoot(rotate_root::Args),
}

pub async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    match (&args.command, &args.name) {
        (Some(Action::RotateRoot(args)), None) => return rotate_root::run(context, args).await,
        (Some(_), Some(name)) => {
            return Err(Failure::usage(format!("This is not about one workload, but {name} is given.")));
        }
        (None, _) => (),
    }
    let control = context.connect().await?;
    let answer = control.mesh().list_certificates(ListCertificatesRequest {}).await?.into_inner();
    // Asked last: whoever reports is there.
    let listed = control.mesh().list_proxies(ListProxiesRequest {}).await?.into_inner();
    let now = Timestamp::now();
    let mut view = certs::view(&listed.proxies, &answer, now);
    view.workloads.retain(|workload| is_wanted(workload, args, context));
    if let (Some(name), true) = (&args.name, view.workloads.is_empty()) {
        return Err(Failure::not_found(format!("No proxy of {name} is connected."))
            .hint("`meshctl proxy status` shows those that are."));
    }
    show(context, &view, now)?;
    let warnings = certs::warnings(&view, now);
    warnings.iter().for_each(|warning| context.out.note(&format!("warning: {warning}")));
    if warnings.is_empty() { Ok(()) } else { Err(Failure::silent(Exit::Failed)) }
}

fn is_wanted(workload: &Workload, args: &Args, context: &Context) -> bool {
    let Workload { workload, namespace, service, .. } = workload;
    let in_namespace = context.namespace.as_ref().is_none_or(|wanted| wanted == namespace);
    let named = args.name.as_ref().is_none_or(|name| {
        name == workload
            || *name == format!("{workload}.{namespace}")
            || traffic::is_named(service, name, context.namespace())
    });
    in_namespace && named
}

fn show(context: &Context, view: &View, now: Timestamp) -> Result<(), Failure> {
    let out = &context.out;
    match out.format {
        Format::Json | Format::Yaml => out.data(view),
        Format::Name => view.workloads.iter().try_for_each(|it| out.line(&format!("{}.{}", it.workload, it.namespace))),
        Format::Table | Format::Wide => {
            if view.workloads.is_empty() {
                out.note("No proxy is connected.");
            } else {
                out.table(&certs::workloads(view, context.namespace(), now))?;
                out.line("")?;
            }
            out.table(&certs::authorities(view, now))
        }
    }
}
