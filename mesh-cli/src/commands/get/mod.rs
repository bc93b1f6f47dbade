//! `meshctl get`: objects, services and workloads.

mod watch;

use jiff::Timestamp;
use mesh_common::proto::control::ListProxiesRequest;
use mesh_common::resource::{Kind, MESH_NAMESPACE, Object};
use serde::Serialize;
use serde_json::{Value, json};

use crate::client::Control;
use crate::commands::Context;
use crate::failure::Failure;
use crate::kinds::{self, What};
use crate::objects::{self, Selection, Stored};
use crate::output::{Format, Table};
use crate::views;

/// Show objects, services and workloads
///
/// `services` and `workloads` are what the mesh sees, whether declared or registered by a proxy. `service`, `httproute`,
/// `grpcroute`, `tcproute`, `udproute`, `tlsroute`, `referencegrant`, `trafficpolicy`, `faultinjection`, `directresponse`, `peerauthentication`,
/// `requestauthentication`, `authorizationpolicy`, `telemetry`, `workloadentry` and `meshconfig` are the stored objects, and `all` is all of these.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl get services
  meshctl get workloads -o wide
  meshctl get httproutes -A
  meshctl get httproute reviews -o yaml
  meshctl get all --watch")]
pub struct Args {
    /// What to show
    #[arg(value_name = "KIND[/NAME]")]
    kind: String,
    /// Only the one with this name
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Go on and show changes as they happen
    #[arg(short, long)]
    watch: bool,
}

/// What is to be shown.
struct Query {
    what: What,
    /// "" for all.
    namespace: String,
    /// "" for all.
    name: String,
}

pub async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    let (what, name) = kinds::what(&args.kind)?;
    if name.is_some() && args.name.is_some() {
        return Err(Failure::usage("The name is there twice: write KIND NAME or KIND/NAME."));
    }
    let namespace = match what {
        _ if args.all_namespaces => String::new(),
        What::Objects(Kind::MeshConfig) => MESH_NAMESPACE.to_owned(),
        _ => context.namespace().to_owned(),
    };
    let query = Query { what, namespace, name: name.or(args.name).unwrap_or_default() };
    let control = context.connect().await?;
    match args.watch {
        true => watch::run(context, &control, &query).await,
        false => once(context, &control, &query).await,
    }
}

async fn once(context: &Context, control: &Control, query: &Query) -> Result<(), Failure> {
    match query.what {
        What::Services => {
            let services = find(query, services(control, query).await?, "service")?;
            print(context, query, &services, |s| format!("service/{}", s.name), views::mesh::service_table)
        }
        What::Workloads => {
            let workloads = find(query, workloads(control, query).await?, "workload")?;
            print(context, query, &workloads, |w| format!("workload/{}", w.name), views::mesh::workload_table)
        }
        What::All | What::Objects(_) => print_objects(context, query, &stored(control, query).await?),
    }
}

/// A name that was asked for and is not there is a failure; an empty list is not.
fn find<T>(query: &Query, found: Vec<T>, what: &str) -> Result<Vec<T>, Failure> {
    if !query.name.is_empty() && found.is_empty() {
        let place = match query.namespace.as_str() {
            "" => "any namespace".to_owned(),
            namespace => format!("the namespace {namespace}"),
        };
        let message = format!("There is no {what} {} in {place}.", query.name);
        let hint =
            if query.namespace.is_empty() { "Without a name, all are shown." } else { "-A looks in all namespaces." };
        return Err(Failure::not_found(message).hint(hint));
    }
    Ok(found)
}

async fn services(control: &Control, query: &Query) -> Result<Vec<views::mesh::Service>, Failure> {
    let mut services = views::mesh::services(&objects::services(control).await?);
    services.retain(|s| query.includes(&s.namespace, &s.name));
    Ok(services)
}

async fn workloads(control: &Control, query: &Query) -> Result<Vec<views::mesh::Workload>, Failure> {
    let services = objects::services(control).await?;
    let proxies = control.mesh().list_proxies(ListProxiesRequest {}).await?.into_inner().proxies;
    let entries = objects::list_kinds(control, &[Kind::WorkloadEntry], &query.namespace).await?.into_iter();
    let entries = entries.filter_map(|stored| match stored.object {
        Object::WorkloadEntry(entry) => Some(entry),
        _ => None,
    });
    let mut workloads = views::mesh::workloads(&services, &entries.collect::<Vec<_>>(), &proxies);
    workloads.retain(|w| query.includes(&w.namespace, &w.name));
    Ok(workloads)
}

async fn stored(control: &Control, query: &Query) -> Result<Vec<Stored>, Failure> {
    let kind = match query.what {
        What::Objects(kind) => Some(kind),
        _ => None,
    };
    let selection = Selection { kind, namespace: query.namespace.clone(), name: query.name.clone() };
    let mut found = objects::list(control, &selection).await?;
    found.sort_by_key(|s| s.object.key());
    let failure = match find(query, found, kind.map(Kind::as_str).unwrap_or("object")) {
        Ok(found) => return Ok(found),
        Err(failure) => failure,
    };
    let registered =
        kind == Some(Kind::Service) && objects::services(control).await?.iter().any(|s| s.name == query.name);
    Err(match registered {
        true => failure.hint(format!(
            "The service exists through its workloads, without a Service object: `meshctl get services {}`.",
            query.name
        )),
        false => failure,
    })
}

impl Query {
    fn includes(&self, namespace: &str, name: &str) -> bool {
        (self.namespace.is_empty() || self.namespace == namespace) && (self.name.is_empty() || self.name == name)
    }

    fn namespaces(&self) -> bool {
        self.namespace.is_empty()
    }
}

fn print<T: Serialize>(
    context: &Context,
    query: &Query,
    views: &[T],
    name: impl Fn(&T) -> String,
    table: impl Fn(&[T], bool) -> Table,
) -> Result<(), Failure> {
    let out = &context.out;
    match (out.format, views) {
        (Format::Json | Format::Yaml, [one]) if !query.name.is_empty() => out.data(one),
        (Format::Json | Format::Yaml, _) => out.data(&views),
        (Format::Name, _) => views.iter().try_for_each(|view| out.line(&name(view))),
        (_, []) => {
            out.note(&nothing(query));
            Ok(())
        }
        _ => out.table(&table(views, query.namespaces())),
    }
}

fn print_objects(context: &Context, query: &Query, objects: &[Stored]) -> Result<(), Failure> {
    let out = &context.out;
    match (out.format, objects) {
        (Format::Json, [one]) if !query.name.is_empty() => out.data(&one.json),
        (Format::Json, _) => out.data(&list_of(objects)),
        (Format::Yaml, _) => {
            let texts: Vec<String> = objects.iter().map(|o| mesh_common::resource::json_to_yaml(&o.json)).collect();
            out.line(texts.join("---\n").trim_end())
        }
        (Format::Name, _) => objects.iter().try_for_each(|o| out.line(&kinds::short(&o.object.key()))),
        (_, []) => {
            out.note(&nothing(query));
            Ok(())
        }
        _ => out.table(&object_table(query, objects)),
    }
}

fn object_table(query: &Query, objects: &[Stored]) -> Table {
    let now = Timestamp::now();
    match query.what {
        What::Objects(kind) => views::objects::table(kind, objects, query.namespaces(), now),
        _ => views::objects::table_of_all(objects, query.namespaces(), now),
    }
}

/// What `kubectl` gives, and `apply` takes.
fn list_of(objects: &[Stored]) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": objects.iter().map(|o| &o.json).collect::<Vec<_>>()})
}

fn nothing(query: &Query) -> String {
    match query.namespace.as_str() {
        "" => "Nothing is there.".to_owned(),
        namespace => format!("Nothing is there in the namespace {namespace}; -A shows all namespaces."),
    }
}
