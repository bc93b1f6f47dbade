//! `meshctl inject` and `meshctl uninject`: manifests in, the same with the proxy in their pods or without it out. A cluster is
//! asked how its mesh makes proxies; none is needed.

use std::time::Duration;

use mesh_common::inject::{self, InjectConfig, InjectError, Outcome, Template, check_log_filter, templates};
use serde_json::{Value, json};

use crate::commands::Context;
use crate::commands::apply::Files;
use crate::failure::{Exit, Failure};
use crate::install::proxies;
use crate::manifests::{parse, to_yaml};
use crate::output::Format;

/// How long a cluster may take to say how its mesh makes proxies.
const PATIENCE: Duration = Duration::from_secs(3);

/// Put the proxy into manifests
///
/// Reads Deployments, StatefulSets, DaemonSets, ReplicaSets, Jobs, CronJobs, Pods and lists of them, and writes them as YAML
/// with the proxy in their pods; other objects pass through. What was done, and what was left alone and why, is said on
/// standard error. What no option says is as the mesh of the cluster has it, as its own injector would do it; where no
/// cluster answers within 3 seconds, as in a mesh of this version that was installed without settings. Which of the two it
/// was is said on standard error, too. Labels and annotations of the pods are described in docs/reference/injection.md.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl inject -f app.yaml | kubectl apply -f -
  kubectl get deployment web -o yaml | meshctl inject -f - | kubectl apply -f -
  meshctl inject -f app/ --context kind-shop
  meshctl inject -f app/ --offline --image registry.example/mesh-proxy:0.1.0")]
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
    /// Ask no cluster
    #[arg(long)]
    offline: bool,
    /// Image of the proxy
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// When the image is pulled: IfNotPresent, Always or Never
    #[arg(long, value_name = "POLICY", value_parser = ["IfNotPresent", "Always", "Never"], hide_possible_values = true)]
    pull_policy: Option<String>,
    /// Where the proxies find the control plane
    #[arg(long, value_name = "URL", default_value_t = InjectConfig::default().control, value_parser = url)]
    control_plane: String,
    /// Processor time that is requested for the proxy
    #[arg(long, value_name = "QUANTITY")]
    proxy_cpu: Option<String>,
    /// Memory that is requested for the proxy
    #[arg(long, value_name = "QUANTITY")]
    proxy_memory: Option<String>,
    /// Log levels of the proxy
    #[arg(long, value_name = "FILTER", value_parser = filter)]
    proxy_log: Option<String>,
    /// Access log of the proxy: off, text or json
    #[arg(long, value_name = "FORMAT", default_value_t = InjectConfig::default().access_log,
          value_parser = ["off", "text", "json"], hide_possible_values = true)]
    access_log: String,
    /// Whether the nodes have the mesh's CNI plugin, so that no init container is needed for the interception: true (also
    /// without a value) or false
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          hide_possible_values = true)]
    cni: Option<bool>,
}

pub async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    let base = if args.options.offline { InjectConfig::default() } else { installed(context).await? };
    let config = args.options.over(base);
    change(context, &args.files, |pod| inject::inject(pod, &config).map(Change::from))
}

pub async fn run_uninject(context: &Context, args: UninjectArgs) -> Result<(), Failure> {
    change(context, &args.files, |pod| {
        let without = inject::uninject(pod)?;
        Ok(if without == *pod { Change::Left("it is not injected".to_owned()) } else { Change::Uninjected(without) })
    })
}

/// What became of a pod.
enum Change {
    Injected(Value),
    Uninjected(Value),
    Left(String),
}

impl From<Outcome> for Change {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Injected(pod) => Self::Injected(pod),
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
                let name = name(&template.kind, document.pointer(&template.object));
                let pod = document.pointer(&template.pointer).unwrap_or(&Value::Null);
                match apply(pod) {
                    Ok(Change::Injected(pod)) => {
                        notes.push(format!("{name}: injected"));
                        notes.extend(inject::warnings(&pod).iter().map(|warning| format!("{name}: {warning}")));
                        put(&mut document, &template, pod);
                    }
                    Ok(Change::Uninjected(pod)) => {
                        notes.push(format!("{name}: uninjected"));
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
fn name(kind: &str, object: Option<&Value>) -> String {
    let text = |pointer: &str| object.and_then(|object| object.pointer(pointer)?.as_str());
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
    /// What is given goes before what there is.
    fn over(self, base: InjectConfig) -> InjectConfig {
        InjectConfig {
            image: self.image.unwrap_or(base.image),
            pull_policy: self.pull_policy.unwrap_or(base.pull_policy),
            control: self.control_plane,
            cpu: self.proxy_cpu.unwrap_or(base.cpu),
            memory: self.proxy_memory.unwrap_or(base.memory),
            log: self.proxy_log.unwrap_or(base.log),
            access_log: self.access_log,
            cni: self.cni.unwrap_or(base.cni),
        }
    }
}

/// As the mesh of the cluster makes proxies. A cluster that the command line does not name need not be there.
async fn installed(context: &Context) -> Result<InjectConfig, Failure> {
    let asked = async {
        let cluster = context.cluster().await?;
        let config = proxies::injected(&cluster).await?;
        Ok::<_, Failure>((cluster, config))
    };
    let answer = tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| {
        Err(Failure::with(Exit::Unreachable, format!("The API server did not answer within {} s.", PATIENCE.as_secs())))
    });
    let why = match answer {
        Ok((cluster, Some((version, config)))) => {
            let own = env!("CARGO_PKG_VERSION");
            if version != own {
                context.out.note(&format!("meshctl is {own}, and the mesh {version}: use the same version of both."));
            }
            context.out.note(&format!(
                "Proxies are as the mesh in the cluster of the context {} has them: {}{}.",
                cluster.context,
                config.image,
                if config.cni { ", with the CNI plugin" } else { "" }
            ));
            return Ok(config);
        }
        Ok((cluster, None)) => format!("The mesh is not installed in the cluster of the context {}.", cluster.context),
        Err(failure) if context.access.is_given() => {
            return Err(failure.hint("--offline asks no cluster."));
        }
        Err(failure) => failure.message,
    };
    context.out.note(&format!("Proxies are as in a mesh that is installed without settings. {why}"));
    Ok(InjectConfig::default())
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

#[cfg(test)]
mod tests {
    use clap::Parser;
    use proptest::prelude::*;

    use super::*;
    use crate::args::Cli;
    use crate::client::Location;
    use crate::commands::dispatch;
    use crate::kubernetes::Access;
    use crate::output::Output;

    /// What the command makes of the text of a file.
    fn through(command: &str, text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("app.yaml");
        std::fs::write(&file, text).unwrap();
        let mut words = vec!["meshctl", command, "-f", file.to_str().unwrap()];
        words.extend((command == "inject").then_some("--offline"));
        let Ok(cli) = Cli::try_parse_from(words) else { panic!() };
        let (out, captured) = Output::captured(Format::Table);
        let (location, default_namespace) = (Location::Search(Vec::new()), "default".to_owned());
        let context = Context { location, access: Access::default(), namespace: None, default_namespace, out };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(dispatch(&context, cli.command)).unwrap();
        captured.text()
    }

    /// How often a text of documents has the proxy.
    fn proxies(text: &str) -> usize {
        text.matches("name: mesh-proxy\n").count()
    }

    /// Fields of a pod that meshctl changes, and texts that YAML could take for something else.
    fn a_template() -> impl Strategy<Value = Value> {
        let text = prop_oneof![
            Just("yes"),
            Just("1.0"),
            Just("~"),
            Just("0x1F"),
            Just("a: b # c"),
            Just(" lines\n  of\n\n text \n"),
            Just(""),
            Just("{{ .Values.x }}"),
            Just("\u{e4}\t\"'"),
            Just("- x"),
            Just("2026-11-26"),
            Just("null"),
        ];
        let probe = prop_oneof![
            Just(json!({"httpGet": {"port": 80, "path": "/live"}, "periodSeconds": 3})),
            Just(json!({"tcpSocket": {"port": "web"}})),
            Just(json!({"exec": {"command": ["true"]}})),
        ];
        let number =
            prop_oneof![Just(json!(0)), Just(json!(-1)), Just(json!(9_007_199_254_740_993_u64)), Just(json!(0.5))];
        (text, proptest::option::of(probe), number, any::<[bool; 3]>()).prop_map(
            |(text, probe, number, [init, hook, metadata])| {
                let mut app = json!({"name": "app", "image": "app:1", "ports": [{"name": "web", "containerPort": 80}],
                "env": [{"name": "X", "value": text}], "args": [text]});
                if let Some(probe) = probe {
                    app["livenessProbe"] = probe;
                }
                if hook {
                    app["lifecycle"] = json!({"preStop": {"exec": {"command": ["sh", "-c", text]}}});
                }
                let mut template = json!({"spec": {"containers": [app], "unknown": number}});
                if init {
                    template["spec"]["initContainers"] = json!([{"name": "first", "image": "first:1"}]);
                }
                if metadata {
                    template["metadata"] = json!({"labels": {"app": "x"}, "annotations": {"note": text}});
                }
                template
            },
        )
    }

    const KINDS: [(&str, &str, &str); 7] = [
        ("apps/v1", "Deployment", "/spec/template"),
        ("apps/v1", "StatefulSet", "/spec/template"),
        ("apps/v1", "DaemonSet", "/spec/template"),
        ("apps/v1", "ReplicaSet", "/spec/template"),
        ("batch/v1", "Job", "/spec/template"),
        ("batch/v1", "CronJob", "/spec/jobTemplate/spec/template"),
        ("v1", "Pod", ""),
    ];

    fn an_object() -> impl Strategy<Value = Value> {
        (0..KINDS.len(), a_template()).prop_map(|(kind, template)| {
            let (version, kind, place) = KINDS[kind];
            let mut object = json!({"apiVersion": version, "kind": kind});
            if place.is_empty() {
                object["metadata"] = template.get("metadata").cloned().unwrap_or(json!({"generateName": "x-"}));
                object["spec"] = template["spec"].clone();
                return object;
            }
            object["metadata"] = json!({"name": "x", "namespace": "shop"});
            let steps: Vec<&str> = place.split('/').skip(1).collect();
            *steps.iter().fold(&mut object, |at, step| &mut at[*step]) = template;
            object["spec"]["replicas"] = json!(2);
            object
        })
    }

    fn a_document() -> impl Strategy<Value = Value> {
        let list = |of: &'static str, items: Vec<Value>| json!({"apiVersion": "v1", "kind": of, "metadata": {}, "items": items});
        let service = Just(
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"ports": [{"port": 80}]}}),
        );
        let several = proptest::collection::vec(prop_oneof![3 => an_object().boxed(), 1 => service.boxed()], 0..3);
        let within = (several.clone(), several).prop_map(move |(mut outer, inner)| {
            outer.push(list("List", inner));
            list("List", outer)
        });
        prop_oneof![2 => an_object().boxed(), 1 => within.boxed()]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// `meshctl inject -f app.yaml | meshctl uninject -f -`, with any number of documents of any kind.
        #[test]
        fn what_is_injected_comes_back_as_it_was(documents in proptest::collection::vec(a_document(), 1..4)) {
            let text = to_yaml(&documents);
            let injected = through("inject", &text);
            let pods: usize = documents.iter().map(|document| templates(document).len()).sum();
            prop_assert_eq!(proxies(&injected), pods);
            let back = parse(&through("uninject", &injected)).unwrap();
            prop_assert_eq!(back, documents);
        }
    }

    #[test]
    fn every_kind_is_injected_and_comes_back() {
        let mut all = Vec::new();
        for (version, kind, place) in KINDS {
            let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "x"}});
            let steps: Vec<&str> = place.split('/').skip(1).collect();
            let pod = steps.iter().fold(&mut object, |at, step| &mut at[*step]);
            pod["spec"] = json!({"containers": [{"name": "app", "image": "app:1"}]});
            all.push(object);
        }
        // As the API server lists them: the list says what its items are.
        let typed = |object: &Value| {
            let mut item = object.clone();
            item.as_object_mut().unwrap().retain(|field, _| field != "kind" && field != "apiVersion");
            let kind = format!("{}List", object["kind"].as_str().unwrap());
            json!({"apiVersion": object["apiVersion"], "kind": kind, "items": [item]})
        };
        let lists = all.iter().map(typed).collect();
        for documents in [all.clone(), vec![json!({"apiVersion": "v1", "kind": "List", "items": all})], lists] {
            let injected = through("inject", &to_yaml(&documents));
            assert_eq!(proxies(&injected), KINDS.len());
            assert_eq!(parse(&through("uninject", &injected)).unwrap(), documents);
        }
    }
}
