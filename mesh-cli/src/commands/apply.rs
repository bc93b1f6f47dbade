//! `meshctl apply`: objects from files into the mesh, all of them or none.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use mesh_common::proto::control::{ApplyRequest, ApplyResponse};
use mesh_common::resource::{Kind, Located, MESH_NAMESPACE, Object, parse_located};
use serde::Serialize;

use crate::commands::Context;
use crate::commands::wait::Waiting;
use crate::failure::{Failure, sentence};
use crate::objects;

/// Create or change objects from files
///
/// Everything is read and checked before anything is sent, and the control plane takes all of it or nothing; in Kubernetes,
/// where there are no transactions, the API server first tries all of it, and what was applied is told if it refuses something
/// nevertheless. There it is a server-side apply: fields that others have set are theirs. Errors name file, line, column and
/// field.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl apply -f shop/
  meshctl apply -f routes.yaml --wait
  meshctl apply -f routes.yaml --dry-run
  cat routes.yaml | meshctl apply -f -")]
pub struct Args {
    #[command(flatten)]
    files: Files,
    /// Only check; nothing is changed
    #[arg(long)]
    dry_run: bool,
    /// In Kubernetes, also take over fields that others have set
    #[arg(long)]
    force_conflicts: bool,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(Debug, clap::Args)]
pub struct Files {
    /// File, folder (its *.yaml, *.yml and *.json) or - for standard input; may be given more than once
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR|-", required = true)]
    filename: Vec<PathBuf>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    revision: u64,
    dry_run: bool,
    results: Vec<ReportedObject>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReportedObject {
    kind: String,
    namespace: String,
    name: String,
    outcome: &'static str,
    warnings: Vec<String>,
}

pub async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    let objects = args.files.read(context)?;
    let control = context.connect().await?;
    let texts = objects.iter().map(|object| object.to_json().to_string()).collect();
    let request = ApplyRequest { objects: texts, dry_run: args.dry_run, force: args.force_conflicts };
    let response = control.mesh().apply(request).await?.into_inner();
    let revision = response.revision;
    report(context, response, args.dry_run)?;
    if args.dry_run {
        return Ok(());
    }
    args.waiting.after(context, &control, revision).await
}

impl Files {
    pub fn new(filename: Vec<PathBuf>) -> Self {
        Self { filename }
    }

    /// All objects of all files, in a namespace each.
    pub fn read(&self, context: &Context) -> Result<Vec<Object>, Failure> {
        self.read_into(context.namespace.as_deref(), &context.default_namespace)
    }

    fn read_into(&self, namespace: Option<&str>, default: &str) -> Result<Vec<Object>, Failure> {
        let mut found = Vec::new();
        let mut problems = Vec::new();
        for (name, text) in self.texts()? {
            match parse_located(&name, &text) {
                Ok(read) => found.extend(read.into_iter().map(|it| (name.clone(), it))),
                Err(errors) => problems.extend(errors.iter().map(ToString::to_string)),
            }
        }
        let mut seen = BTreeMap::new();
        for (file, Located { object, line, column }) in &mut found {
            let place = format!("{file}:{line}:{column}");
            if let Err(reason) = settle(object, namespace, default) {
                problems.push(format!("{place}: {reason}"));
            } else if let Some(first) = seen.insert(object.key(), place.clone()) {
                problems.push(format!("{place}: {} is at {first} already; name each object once", object.key()));
            }
        }
        if !problems.is_empty() {
            let heading = match problems.len() {
                1 => "Nothing was sent, because of an error:".to_owned(),
                many => format!("Nothing was sent, because of {many} errors:"),
            };
            return Err(Failure::refused(format!("{heading}\n  {}", problems.join("\n  ")))
                .hint("docs/reference/resources.md lists the fields of every kind."));
        }
        if found.is_empty() {
            return Err(Failure::refused("There is no object in what was given."));
        }
        Ok(found.into_iter().map(|(_, it)| it.object).collect())
    }

    /// Each file by its name.
    pub fn texts(&self) -> Result<Vec<(String, String)>, Failure> {
        let mut texts = Vec::new();
        for path in &self.filename {
            if path == Path::new("-") {
                let mut text = String::new();
                let read = std::io::stdin().lock().read_to_string(&mut text);
                read.map_err(|error| unreadable("standard input", &error))?;
                texts.push(("stdin".to_owned(), text));
                continue;
            }
            for file in expand(path)? {
                let name = file.display().to_string();
                let text = std::fs::read_to_string(&file).map_err(|error| unreadable(&name, &error))?;
                texts.push((name, text));
            }
        }
        Ok(texts)
    }
}

/// A folder's object files in the order of their names; anything else is itself.
fn expand(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let name = path.display().to_string();
    let entries = std::fs::read_dir(path).map_err(|error| unreadable(&name, &error))?;
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(|error| unreadable(&name, &error))?.path();
        let is_object = file.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if is_object && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Failure::not_found(format!("The folder {name} has no *.yaml, *.yml or *.json file.")));
    }
    Ok(files)
}

fn unreadable(name: &str, error: &std::io::Error) -> Failure {
    let message = format!("Cannot read {name}: {}", sentence(&error.to_string()));
    match error.kind() {
        std::io::ErrorKind::NotFound => Failure::not_found(message),
        // It is there, and what is in it is no object: not UTF-8.
        std::io::ErrorKind::InvalidData => Failure::refused(message).hint("Objects are text in UTF-8."),
        _ => Failure::new(message),
    }
}

/// Puts the object in the namespace of the command line, and refuses one that says it is elsewhere.
fn settle(object: &mut Object, namespace: Option<&str>, default: &str) -> Result<(), String> {
    let own = object.metadata().namespace.clone();
    let mesh_wide = object.kind() == Kind::MeshConfig;
    match namespace {
        Some(asked) if !own.is_empty() && own != asked && !(mesh_wide && own == MESH_NAMESPACE) => {
            let key = object.key();
            Err(format!(
                "{key} says that it is in the namespace {own}, but -n says {asked}; leave out -n, or metadata.namespace"
            ))
        }
        _ => {
            object.set_default_namespace(namespace.unwrap_or(default));
            Ok(())
        }
    }
}

fn report(context: &Context, response: ApplyResponse, dry_run: bool) -> Result<(), Failure> {
    let out = &context.out;
    let results = response.results.into_iter().map(|result| {
        let outcome = objects::outcome(&result);
        let key = result.key.unwrap_or_default();
        ReportedObject { kind: key.kind, namespace: key.namespace, name: key.name, outcome, warnings: result.warnings }
    });
    let report = Report { revision: response.revision, dry_run, results: results.collect() };
    match out.format {
        crate::output::Format::Json | crate::output::Format::Yaml => return out.data(&report),
        crate::output::Format::Name => {
            return report.results.iter().try_for_each(|r| out.line(&format!("{}/{}", r.kind.to_lowercase(), r.name)));
        }
        _ => {}
    }
    let note = if dry_run { " (dry run)" } else { "" };
    for result in &report.results {
        out.line(&format!("{} {}/{} {}{note}", result.kind, result.namespace, result.name, result.outcome))?;
    }
    for result in &report.results {
        for warning in &result.warnings {
            out.note(&format!("warning: {} {}/{}: {warning}", result.kind, result.namespace, result.name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;

    const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: reviews}\n\
                         spec:\n  parentRefs: [{group: '', kind: Service, name: reviews}]\n";

    fn read(files: &[(&str, &str)], namespace: Option<&str>) -> Result<Vec<Object>, Failure> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Files { filename: vec![folder.path().to_owned()] }.read_into(namespace, "default")
    }

    #[test]
    fn a_folder_is_read_in_order_and_other_files_are_left_alone() {
        let other = ROUTE.replace("name: reviews}\n", "name: ratings}\n");
        let objects = read(&[("b.yaml", ROUTE), ("a.yml", &other), ("notes.txt", "kind: [")], None).unwrap();
        let keys: Vec<String> = objects.iter().map(|o| o.key().to_string()).collect();
        assert_eq!(keys, ["HTTPRoute default/ratings", "HTTPRoute default/reviews"]);
    }

    #[test]
    fn all_errors_of_all_files_are_told_with_their_place() {
        let wrong = format!("{ROUTE}  rulez: []\n");
        let failure = read(&[("a.yaml", &wrong), ("b.yaml", "kind: [")], None).unwrap_err();
        assert_eq!(failure.exit, Exit::Refused);
        assert!(failure.message.contains("a.yaml:6:") && failure.message.contains("rulez"), "{failure}");
        assert!(failure.message.contains("b.yaml:"), "{failure}");
    }

    #[test]
    fn an_object_that_is_there_twice_is_told_with_both_places() {
        let placed = ROUTE.replace("name: reviews}\n", "name: reviews, namespace: default}\n");
        let failure = read(&[("a.yaml", ROUTE), ("b.yaml", &format!("# again\n{placed}"))], None).unwrap_err();
        assert_eq!(failure.exit, Exit::Refused);
        let told = failure.message.split_once("b.yaml:2:1: HTTPRoute default/reviews is at ").map(|(_, rest)| rest);
        assert!(told.is_some_and(|rest| rest.contains("a.yaml:1:1 already")), "{failure}");
        assert!(read(&[("a.yaml", ROUTE), ("b.yaml", &placed)], Some("shop")).is_err(), "in another namespace");
        let elsewhere = ROUTE.replace("name: reviews}\n", "name: reviews, namespace: shop}\n");
        assert_eq!(read(&[("a.yaml", ROUTE), ("b.yaml", &elsewhere)], None).unwrap().len(), 2);
    }

    #[test]
    fn what_is_not_text_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        std::fs::write(&file, [0xff, 0xfe]).unwrap();
        let failure = Files { filename: vec![file] }.read_into(None, "default").unwrap_err();
        assert_eq!(failure.exit, Exit::Refused, "{failure}");
    }

    #[test]
    fn a_namespace_is_a_default_and_never_overrules_the_file() {
        assert_eq!(read(&[("a.yaml", ROUTE)], Some("shop")).unwrap()[0].key().namespace, "shop");
        let placed = ROUTE.replace("name: reviews}\n", "name: reviews, namespace: shop}\n");
        assert_eq!(read(&[("a.yaml", &placed)], None).unwrap()[0].key().namespace, "shop");
        assert_eq!(read(&[("a.yaml", &placed)], Some("other")).unwrap_err().exit, Exit::Refused);
    }

    #[test]
    fn what_is_not_there_is_said_to_be_missing() {
        let files = Files { filename: vec!["/nonexistent/x.yaml".into()] };
        assert_eq!(files.read_into(None, "default").unwrap_err().exit, Exit::NotFound);
        assert_eq!(read(&[], None).unwrap_err().exit, Exit::NotFound);
    }
}
