//! `get --watch`: what there is, and then every change as it happens.

use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use mesh_common::proto::control::watch_event::Type;
use mesh_common::proto::control::{WatchEvent, WatchRequest};
use serde::Serialize;
use serde_json::Value;
use tonic::Streaming;

use super::{Query, services, workloads};
use crate::client::Control;
use crate::commands::Context;
use crate::failure::Failure;
use crate::kinds::What;
use crate::objects;
use crate::output::{Format, Table};
use crate::views;

/// Changes that come together are shown together.
const QUIET: Duration = Duration::from_millis(100);

/// One line of `-o json`.
#[derive(Serialize)]
struct Change {
    /// `APPLIED` or `DELETED`.
    r#type: &'static str,
    revision: u64,
    object: Value,
}

pub async fn run(context: &Context, control: &Control, query: &Query) -> Result<(), Failure> {
    let kind = match query.what {
        What::Objects(kind) => kind.as_str().to_owned(),
        _ => String::new(),
    };
    // A view of services may change with any object; an object is of one namespace.
    let request = WatchRequest { kind, namespace: query.namespace.clone() };
    let events = control.mesh().watch(request).await?.into_inner();
    match query.what {
        What::Services | What::Workloads => follow_view(context, control, query, events).await,
        _ => follow_objects(context, query, events).await,
    }
}

async fn follow_objects(context: &Context, query: &Query, mut events: Streaming<WatchEvent>) -> Result<(), Failure> {
    let out = &context.out;
    while let Some(event) = events.message().await? {
        let Some(key) = &event.key else { continue };
        let label = match event.r#type() {
            Type::Applied => "APPLIED",
            Type::Deleted => "DELETED",
            Type::Synced | Type::Unspecified => continue,
        };
        if !query.includes(&key.namespace, &key.name) {
            continue;
        }
        match out.format {
            Format::Json | Format::Yaml => {
                let object = match event.object.is_empty() {
                    true => {
                        serde_json::json!({"kind": key.kind, "metadata": {"namespace": key.namespace, "name": key.name}})
                    }
                    false => objects::read(&event.object)?.json,
                };
                out.streamed(&Change { r#type: label, revision: event.revision, object })?;
            }
            Format::Name => out.line(&format!("{}/{}", key.kind.to_lowercase(), key.name))?,
            Format::Table | Format::Wide => {
                let what = match event.object.is_empty() {
                    true => String::new(),
                    false => views::objects::summary(&objects::read(&event.object)?.object),
                };
                let time = Timestamp::now().strftime("%H:%M:%SZ");
                out.line(format!("{time}  {label}  {}  {what}", objects::name_of(Some(key))).trim_end())?;
            }
        }
    }
    Err(Failure::new("The control plane ended the watch.").hint("Start it again; `meshctl check` tells how it is."))
}

/// Shows the whole view whenever it has changed.
async fn follow_view(
    context: &Context,
    control: &Control,
    query: &Query,
    mut events: Streaming<WatchEvent>,
) -> Result<(), Failure> {
    let mut shown = None;
    loop {
        // Not shown before it is complete, nor in the middle of a burst.
        loop {
            match tokio::time::timeout(QUIET, events.next()).await {
                Err(_) => break,
                Ok(Some(event)) => drop(event?),
                Ok(None) => return Err(Failure::new("The control plane ended the watch.").hint("Start it again.")),
            }
        }
        let view = View::fetch(control, query).await?;
        if shown.as_ref() != Some(&view) {
            view.print(context, query, shown.is_none())?;
            shown = Some(view);
        }
        match events.next().await {
            Some(event) => drop(event?),
            None => return Err(Failure::new("The control plane ended the watch.").hint("Start it again.")),
        }
    }
}

#[derive(PartialEq)]
enum View {
    Services(Vec<views::mesh::Service>),
    Workloads(Vec<views::mesh::Workload>),
}

impl View {
    async fn fetch(control: &Control, query: &Query) -> Result<Self, Failure> {
        match query.what {
            What::Workloads => workloads(control, query).await.map(Self::Workloads),
            _ => services(control, query).await.map(Self::Services),
        }
    }

    fn print(&self, context: &Context, query: &Query, first: bool) -> Result<(), Failure> {
        let out = &context.out;
        match (out.format, self) {
            (Format::Json | Format::Yaml, Self::Services(services)) => out.streamed(services),
            (Format::Json | Format::Yaml, Self::Workloads(workloads)) => out.streamed(workloads),
            (Format::Name, _) => self.names().iter().try_for_each(|name| out.line(name)),
            _ => {
                if !first {
                    out.line("")?;
                }
                out.table(&self.table(query.namespaces()))
            }
        }
    }

    fn table(&self, namespaces: bool) -> Table {
        match self {
            Self::Services(services) => views::mesh::service_table(services, namespaces),
            Self::Workloads(workloads) => views::mesh::workload_table(workloads, namespaces),
        }
    }

    fn names(&self) -> Vec<String> {
        match self {
            Self::Services(services) => services.iter().map(|s| format!("service/{}", s.name)).collect(),
            Self::Workloads(workloads) => workloads.iter().map(|w| format!("workload/{}", w.name)).collect(),
        }
    }
}
