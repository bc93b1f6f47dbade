//! `meshctl edit`: an object in an editor, and back.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use mesh_common::proto::control::ApplyRequest;
use mesh_common::resource::{Key, Object, parse_yaml};
use serde::Serialize;

use crate::client::Control;
use crate::commands::Context;
use crate::commands::wait::Waiting;
use crate::failure::{Exit, Failure};
use crate::kinds;
use crate::objects::{self, Selection};
use crate::output::{Format, Output};

const HEADER: &str = "\
# Lines that begin with '#' are left out. Save and close the editor to apply the object; without a change, or with an
# empty file, nothing happens.
";

/// Edit an object in your editor
///
/// Opens the object in $VISUAL, $EDITOR or vi and applies what was saved. When that is refused, the editor opens again with
/// the reason at the top.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl edit httproute reviews
  EDITOR='code --wait' meshctl edit trafficpolicy/reviews")]
pub struct Args {
    /// Kind and name, or KIND/NAME
    #[arg(required = true, num_args = 1..=2, value_name = "KIND NAME|KIND/NAME")]
    words: Vec<String>,
    #[command(flatten)]
    waiting: Waiting,
}

pub async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    let keys = kinds::keys(&args.words, context.namespace())?;
    let [key] = keys.as_slice() else {
        return Err(Failure::usage("One object can be edited at a time.")
            .hint("Write KIND NAME, for instance httproute reviews."));
    };
    let control = context.connect().await?;
    let original = load(&control, key).await?;
    let folder = tempfile::Builder::new().prefix("meshctl-edit-").tempdir()?;
    let file = folder.path().join(format!("{}-{}.yaml", key.kind.singular(), key.name));
    let mut text = original.to_yaml();
    let mut problem = None;
    loop {
        std::fs::write(&file, with_comments(&text, problem.as_deref()))?;
        open_editor(&file)?;
        let edited = without_comments(&std::fs::read_to_string(&file)?);
        if edited.trim().is_empty() || edited == original.to_yaml() {
            context.out.note("Nothing was changed.");
            return Ok(());
        }
        if problem.is_some() && edited == text {
            return Err(keep(&file, folder, problem.unwrap_or_default()));
        }
        match submit(&control, key, &original, &edited).await {
            Ok(revision) => {
                report(&context.out, key, revision)?;
                return args.waiting.after(context, &control, revision).await;
            }
            Err(Untaken::Text(message)) => {
                problem = Some(message);
                text = edited;
            }
            Err(Untaken::Whatever(failure)) => {
                context.out.note(&keep(&file, folder, String::new()).message);
                return Err(failure);
            }
        }
    }
}

#[derive(Serialize)]
struct Edited<'a> {
    kind: &'a str,
    namespace: &'a str,
    name: &'a str,
    revision: u64,
}

fn report(out: &Output, key: &Key, revision: u64) -> Result<(), Failure> {
    match out.format {
        Format::Table | Format::Wide => out.line(&format!("{key} configured (revision {revision})")),
        Format::Name => out.line(&format!("{}/{}", key.kind.singular(), key.name)),
        Format::Json | Format::Yaml => {
            let (kind, namespace, name) = (key.kind.as_str(), key.namespace.as_str(), key.name.as_str());
            out.data(&Edited { kind, namespace, name, revision })
        }
    }
}

async fn load(control: &Control, key: &Key) -> Result<Object, Failure> {
    let selection = Selection { kind: Some(key.kind), namespace: key.namespace.clone(), name: key.name.clone() };
    let found = objects::list(control, &selection).await?.into_iter().next();
    found.map(|stored| stored.object).ok_or_else(|| {
        Failure::not_found(format!("There is no {key}."))
            .hint(format!("`meshctl get {} -A` shows what there is.", key.kind.plural()))
    })
}

enum Untaken {
    /// For what it says, which its author can mend.
    Text(String),
    /// It would be refused whatever it said.
    Whatever(Failure),
}

/// Takes the edited text as the same object, if nobody else has changed it since it was loaded.
async fn submit(control: &Control, key: &Key, original: &Object, edited: &str) -> Result<u64, Untaken> {
    let objects = parse_yaml("edited", edited)
        .map_err(|errors| Untaken::Text(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))?;
    let [object] = objects.as_slice() else {
        return Err(Untaken::Text(format!("There must be one object, not {}.", objects.len())));
    };
    let mut object = object.clone();
    if object.key() != *key {
        let message = format!("Kind, namespace and name must stay {key}, but it is {} now.", object.key());
        return Err(Untaken::Text(message));
    }
    object.metadata_mut().resource_version = original.metadata().resource_version.clone();
    let request = ApplyRequest { objects: vec![object.to_json().to_string()], ..ApplyRequest::default() };
    let response = control.mesh().apply(request).await;
    let response = response.map_err(|status| match status.code() {
        tonic::Code::Aborted => Untaken::Whatever(
            Failure::refused(format!("Somebody else has changed {key} meanwhile."))
                .hint("Edit it again; what you saved is in the file named above."),
        ),
        _ => match Failure::from(status) {
            failure if failure.exit == Exit::Refused => Untaken::Text(failure.message),
            failure => Untaken::Whatever(failure),
        },
    })?;
    Ok(response.into_inner().revision)
}

fn open_editor(file: &Path) -> Result<(), Failure> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let editor = set("VISUAL").or_else(|| set("EDITOR")).unwrap_or_else(|| OsString::from("vi"));
    // Through the shell, because the variable may hold arguments too.
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{} \"$1\"", editor.to_string_lossy())).arg("sh").arg(file);
    let status = command.status();
    let name = editor.to_string_lossy();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::new(format!("The editor `{name}` ended with {status}; nothing was applied."))
            .hint("Set EDITOR to an editor that is installed.")),
        Err(error) => Err(Failure::new(format!("Cannot start the editor `{name}`: {error}.")).hint("Set EDITOR.")),
    }
}

/// What was written is not lost with the failure.
fn keep(file: &Path, folder: tempfile::TempDir, problem: String) -> Failure {
    let kept = folder.keep();
    let file = file.file_name().map(|name| kept.join(name)).unwrap_or(kept);
    let message = match problem.is_empty() {
        true => format!("What you wrote is kept in {}.", file.display()),
        false => crate::failure::sentence(&format!("The edit was given up: {problem}")),
    };
    Failure::refused(message).hint(format!("What you wrote is kept in {}.", file.display()))
}

fn with_comments(text: &str, problem: Option<&str>) -> String {
    let problem = problem.map(|problem| {
        let lines: String = problem.lines().map(|line| format!("#   {line}\n")).collect();
        format!("#\n# This was refused:\n{lines}#\n")
    });
    format!("{HEADER}{}{text}", problem.unwrap_or_default())
}

/// Only whole lines: a '#' inside a value stays.
fn without_comments(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_is_printed_in_every_format() {
        let key = Key::new(mesh_common::resource::Kind::HttpRoute, "default", "reviews");
        let printed = |format| {
            let (out, captured) = Output::captured(format);
            report(&out, &key, 7).unwrap();
            captured.text()
        };
        assert_eq!(printed(Format::Table), "HTTPRoute default/reviews configured (revision 7)\n");
        assert_eq!(printed(Format::Name), "httproute/reviews\n");
        let json: serde_json::Value = serde_json::from_str(&printed(Format::Json)).unwrap();
        assert_eq!((&json["kind"], &json["revision"]), (&"HTTPRoute".into(), &7.into()));
        assert!(printed(Format::Yaml).contains("revision: 7\n"));
    }

    #[test]
    fn comments_go_and_come_without_a_trace() {
        let text = "kind: HTTPRoute\nspec: {x: 'a#b'}\n";
        let shown = with_comments(text, Some("line 1\nline 2"));
        assert!(shown.contains("#   line 2\n"));
        assert_eq!(without_comments(&shown), text);
    }
}
