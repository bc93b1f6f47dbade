//! `meshctl delete`: objects by name or by file, all of them or none.

use mesh_common::proto::control::DeleteRequest;
use mesh_common::resource::{Key, Object};

use super::apply::Files;
use crate::commands::Context;
use crate::commands::wait::Waiting;
use crate::failure::Failure;
use crate::kinds;
use crate::objects::{self, Selection};

/// Delete objects
///
/// All that are named are deleted or, when one of them does not exist, none.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl delete httproute reviews
  meshctl delete httproute/reviews trafficpolicy/reviews
  meshctl delete -f routes.yaml
  meshctl delete httproutes --all --wait")]
pub struct Args {
    /// Kind and names, or KIND/NAME
    #[arg(value_name = "KIND NAME|KIND/NAME", required_unless_present = "filename")]
    words: Vec<String>,
    /// Delete the objects in this file or folder, or - for standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR|-", conflicts_with_all = ["words", "all"])]
    filename: Vec<std::path::PathBuf>,
    /// All objects of the kind in the namespace
    #[arg(long)]
    all: bool,
    /// It is no error when an object does not exist
    #[arg(long)]
    ignore_not_found: bool,
    #[command(flatten)]
    waiting: Waiting,
}

pub async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    if !args.filename.is_empty() {
        let files = Files::new(args.filename.clone());
        let keys = files.read(context)?.iter().map(Object::key).collect();
        return delete(context, &context.connect().await?, keys, &args).await;
    }
    let keys = kinds::keys(&args.words, context.namespace())?;
    match (keys.is_empty(), args.all) {
        (false, false) => delete(context, &context.connect().await?, keys, &args).await,
        (false, true) => Err(Failure::usage("--all and a name exclude each other.")),
        (true, false) => Err(Failure::usage("The name is missing.").hint("For all objects of the kind, use --all.")),
        (true, true) => {
            let kind = kinds::kind_of(args.words.first().map(String::as_str).unwrap_or_default())?;
            let namespace = context.namespace().to_owned();
            let control = context.connect().await?;
            let selection = Selection { kind: Some(kind), namespace, name: String::new() };
            let keys = objects::list(&control, &selection).await?.iter().map(|s| s.object.key()).collect();
            delete(context, &control, keys, &args).await
        }
    }
}

async fn delete(
    context: &Context,
    control: &crate::client::Control,
    keys: Vec<Key>,
    args: &Args,
) -> Result<(), Failure> {
    if keys.is_empty() {
        context.out.note("There is nothing to delete.");
        return Ok(());
    }
    // With --all they were named by being there.
    let ignore_missing = args.ignore_not_found || args.all;
    let keys = keys.iter().map(objects::to_proto).collect();
    let request = DeleteRequest { keys, ignore_missing, preconditions: Vec::new() };
    let deleted = control.mesh().delete(request).await?.into_inner();
    objects::report_deleted(context, &deleted.deleted)?;
    match deleted.deleted.is_empty() {
        true => Ok(()),
        false => args.waiting.after(context, control, deleted.revision).await,
    }
}
