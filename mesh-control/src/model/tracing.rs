//! Which requests leave spans, and where these go.

use std::collections::BTreeMap;

use mesh_common::resource::{Key, Kind, Telemetry, TracingBackend, TracingProtocol, TracingSettings};

use super::span::Span;
use super::{Age, Condition, Name, Protocol, Status};

/// What holds for a workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Tracing {
    /// A port that there is, and that can take spans.
    pub service: Name,
    pub port: u16,
    pub protocol: TracingProtocol,
    /// Of the traces that nobody has decided about.
    pub percent: f64,
}

const DEFAULT_PERCENT: f64 = 1.0;

/// What is said of traces, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Telemetries {
    all: Vec<Scoped>,
}

#[derive(Debug)]
struct Scoped {
    span: Span,
    settings: TracingSettings,
    /// Of the backend, if it is there.
    place: Option<(Name, u16)>,
}

impl Telemetries {
    /// `port` tells what a service's port speaks.
    pub fn new(
        objects: &[&Telemetry],
        exists: impl Fn(&Name) -> bool,
        port: impl Fn(&Name, u16) -> Option<Protocol>,
        statuses: &mut BTreeMap<Key, Status>,
    ) -> Self {
        let mut all: Vec<Scoped> = Vec::new();
        let mut ordered = objects.to_vec();
        ordered.sort_by_cached_key(|object| Age::of(&object.metadata));
        for object in ordered {
            let Some(settings) = &object.spec.tracing else { continue };
            let namespace = object.metadata.namespace_or_default();
            let key = Key::new(Kind::Telemetry, namespace, &object.metadata.name);
            let conditions = &mut statuses.entry(key).or_default().conditions;
            let (span, condition) = Span::new(namespace, &object.spec.target_refs, &exists);
            let same = |other: &Span| {
                let met = other.services.is_empty() || !other.services.is_disjoint(&span.services);
                other.namespace == span.namespace && other.reach == span.reach && met
            };
            if all.iter().any(|other| same(&other.span)) {
                conditions.push(Condition::not_accepted("Conflicted", "an older Telemetry has the same target"));
                continue;
            }
            conditions.push(condition);
            let place = settings.backend.as_ref().and_then(|backend| match place(namespace, backend, &port) {
                Ok(place) => {
                    conditions.push(Condition::resolved());
                    Some(place)
                }
                Err(condition) => {
                    conditions.push(condition);
                    None
                }
            });
            all.push(Scoped { span, settings: settings.clone(), place });
        }
        Self { all }
    }

    /// What holds for a workload of that namespace which serves these services; `None`: nobody looks at traces.
    pub fn of(&self, namespace: &str, services: &[impl AsRef<str>]) -> Option<Tracing> {
        let mut holding: Vec<_> = self.all.iter().filter(|it| it.span.holds(namespace, services)).collect();
        // The narrowest first, and of those that reach as far the oldest.
        holding.sort_by_key(|it| std::cmp::Reverse(it.span.reach));
        let first = |set: &dyn Fn(&Scoped) -> bool| holding.iter().copied().find(|it| set(it));
        if first(&|it| it.settings.enabled.is_some()).is_some_and(|it| it.settings.enabled == Some(false)) {
            return None;
        }
        let there = first(&|it| it.settings.backend.is_some())?;
        let (service, port) = there.place.clone()?;
        let percent = first(&|it| it.settings.sampling_percent.is_some()).and_then(|it| it.settings.sampling_percent);
        Some(Tracing {
            service,
            port,
            protocol: there.settings.backend.as_ref()?.protocol,
            percent: percent.unwrap_or(DEFAULT_PERCENT),
        })
    }
}

fn place(
    namespace: &str,
    backend: &TracingBackend,
    port: impl Fn(&Name, u16) -> Option<Protocol>,
) -> Result<(Name, u16), Condition> {
    let name = Name::new(backend.namespace.as_deref().unwrap_or(namespace), &backend.name);
    match port(&name, backend.port) {
        Some(protocol) if protocol.may_be_http() => Ok((name, backend.port)),
        Some(_) => {
            let text = format!(
                "port {} of the Service {name} is not one for HTTP or gRPC, so no spans are sent",
                backend.port
            );
            Err(Condition::unresolved("UnsupportedProtocol", text))
        }
        None => {
            let text = format!("there is no Service {name} with a port {}, so no spans are sent", backend.port);
            Err(Condition::unresolved("BackendNotFound", text))
        }
    }
}
