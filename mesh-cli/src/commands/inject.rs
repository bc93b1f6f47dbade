//! `meshctl inject` and `meshctl uninject`: manifests in, the same with the proxy in their pods or without it out. No
//! cluster is needed.

use mesh_common::inject::{self, InjectConfig, InjectError, Outcome, Template, check_log_filter, templates};
use serde_json::{Value, json};

use crate::commands::Context;
use crate::commands::apply::Files;
use crate::failure::Failure;
use crate::manifests::{parse, to_yaml};
use crate::output::Format;

/// Put the proxy into manifests
///
/// Reads Deployments, StatefulSets, DaemonSets, ReplicaSets, Jobs, CronJobs, Pods and lists of them, and writes them as YAML
/// with the proxy in their pods; other objects pass through. What was done, and what was left alone and why, is said on
/// standard error. Needs no cluster. Labels and annotations of the pods are described in docs/reference/injection.md.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl inject -f app.yaml | kubectl apply -f -
  kubectl get deployment web -o yaml | meshctl inject -f - | kubectl apply -f -
  meshctl inject -f app/ --image registry.example/mesh-proxy:0.1.0")]
pub struct Args {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    options: Options,
}

/// Take the proxy out of manifests again
///
/// Gives back what `meshctl inject` was given, but for comments and the order of fields.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  kubectl get deployment web -o yaml | meshctl uninject -f - | kubectl apply -f -")]
pub struct UninjectArgs {
    #[command(flatten)]
    files: Files,
}

#[derive(Clone, Debug, clap::Args)]
struct Options {
    /// Image of the proxy
    #[arg(long, value_name = "IMAGE", default_value_t = InjectConfig::default().image)]
    image: String,
    /// When the image is pulled: IfNotPresent, Always or Never
    #[arg(long, value_name = "POLICY", default_value_t = InjectConfig::default().pull_policy,
          value_parser = ["IfNotPresent", "Always", "Never"], hide_possible_values = true)]
    pull_policy: String,
    /// Where the proxies find the control plane
    #[arg(long, value_name = "URL", default_value_t = InjectConfig::default().control, value_parser = url)]
    control_plane: String,
    /// Processor time that is requested for the proxy
    #[arg(long, value_name = "QUANTITY", default_value_t = InjectConfig::default().cpu)]
    proxy_cpu: String,
    /// Memory that is requested for the proxy
    #[arg(long, value_name = "QUANTITY", default_value_t = InjectConfig::default().memory)]
    proxy_memory: String,
    /// Log levels of the proxy
    #[arg(long, value_name = "FILTER", default_value_t = InjectConfig::default().log, value_parser = filter)]
    proxy_log: String,
    /// Access log of the proxy: off, text or json
    #[arg(long, value_name = "FORMAT", default_value_t = InjectConfig::default().access_log,
          value_parser = ["off", "text", "json"], hide_possible_values = true)]
    access_log: String,
    /// The nodes have the mesh's CNI plugin: no init container for the interception
    #[arg(long)]
    cni: bool,
}

pub async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    let config = args.options.config();
    change(context, &args.files, |pod| inject::inject(pod, &config).map(Change::from))
}

pub async fn run_uninject(context: &Context, args: UninjectArgs) -> Result<(), Failure> {
    change(context, &args.files, |pod| {
        let without = inject::uninject(pod)?;
        Ok(if without == *pod {
            Change::Left("it is not injected".to_owned())
        } else {
            Change::Made("uninjected", without)
        })
    })
}

/// What became of a pod.
enum Change {
    Made(&'static str, Value),
    Left(String),
}

impl From<Outcome> for Change {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Injected(pod) => Self::Made("injected", pod),
            Outcome::Skipped(reason) => Self::Left(reason.to_string()),
        }
    }
}

/// Writes all documents, changed or not; or nothing but the errors.
fn change(
    context: &Context,
    files: &Files,
    apply: impl Fn(&Value) -> Result<Change, InjectError>,
) -> Result<(), Failure> {
    let mut changed = Vec::new();
    let mut notes = Vec::new();
    let mut problems = Vec::new();
    for (file, text) in files.texts()? {
        let documents = match parse(&text) {
            Ok(documents) => documents,
            Err(error) => {
                problems.push(format!("{file}: {error}"));
                continue;
            }
        };
        for (number, mut document) in (1..).zip(documents) {
            for template in templates(&document) {
                let name = name(document.pointer(&template.object));
                let pod = document.pointer(&template.pointer).unwrap_or(&Value::Null);
                match apply(pod) {
                    Ok(Change::Made(done, pod)) => {
                        notes.push(format!("{name}: {done}"));
                        put(&mut document, &template, pod);
                    }
                    Ok(Change::Left(reason)) => notes.push(format!("{name}: left as it is: {reason}")),
                    Err(error) => {
                        problems.push(format!("{file}: document {number}: {name}: {}", error.within(&template.path)));
                    }
                }
            }
            changed.push(document);
        }
    }
    if !problems.is_empty() {
        return Err(Failure::refused(format!("Nothing was written, because of errors:\n  {}", problems.join("\n  ")))
            .hint("docs/reference/injection.md lists the labels and annotations."));
    }
    notes.iter().for_each(|note| context.out.note(note));
    if notes.is_empty() {
        context.out.note("There is nothing here that makes pods.");
    }
    write(context, changed)
}

fn put(document: &mut Value, template: &Template, pod: Value) {
    if let Some(place) = document.pointer_mut(&template.pointer) {
        *place = pod;
    }
}

/// `Deployment shop/web`
fn name(object: Option<&Value>) -> String {
    let text = |pointer: &str| object.and_then(|object| object.pointer(pointer)?.as_str());
    let kind = text("/kind").unwrap_or_default();
    match (text("/metadata/namespace"), text("/metadata/name").or(text("/metadata/generateName"))) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        _ => kind.to_owned(),
    }
}

fn write(context: &Context, mut documents: Vec<Value>) -> Result<(), Failure> {
    match (context.out.format, documents.len()) {
        (Format::Json, 1) => context.out.data(&documents.remove(0)),
        (Format::Json, _) => context.out.data(&json!({ "apiVersion": "v1", "kind": "List", "items": documents })),
        _ => context.out.line(to_yaml(&documents).trim_end_matches('\n')),
    }
}

impl Options {
    fn config(self) -> InjectConfig {
        InjectConfig {
            image: self.image,
            pull_policy: self.pull_policy,
            control: self.control_plane,
            cpu: self.proxy_cpu,
            memory: self.proxy_memory,
            log: self.proxy_log,
            access_log: self.access_log,
            cni: self.cni,
        }
    }
}

fn url(text: &str) -> Result<String, String> {
    match text.strip_prefix("https://") {
        Some(host) if !host.is_empty() => Ok(text.to_owned()),
        _ => Err("write https://HOST:15012".to_owned()),
    }
}

fn filter(text: &str) -> Result<String, String> {
    check_log_filter(text).map(|()| text.to_owned())
}
