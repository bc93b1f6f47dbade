//! `route list`: where the requests of each service go.

use std::collections::BTreeSet;

use mesh_common::names::version_service;
use mesh_common::proto::control::ServiceView;
use mesh_common::resource::Object;
use serde::Serialize;

use super::List;
use crate::commands::Context;
use crate::failure::Failure;
use crate::objects;
use crate::output::{Cell, Format, Table};
use crate::routes::attached::{self, RuleView};
use crate::routes::edit::version_of;
use crate::routes::shares::percent;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceRoutes {
    namespace: String,
    service: String,
    routes: Vec<Route>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Route {
    kind: &'static str,
    name: String,
    rules: Vec<Rule>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Alternatives, in words; empty: all requests.
    matches: Vec<String>,
    backends: Vec<Backend>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Backend {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    weight: u32,
}

impl Rule {
    pub fn new(service: &str, view: RuleView) -> Self {
        let backends = view.backends.into_iter().map(|b| Backend {
            version: version_of(service, &b.name).filter(|v| !v.is_empty()).map(str::to_owned),
            name: b.name,
            namespace: b.namespace,
            port: b.port,
            weight: b.weight,
        });
        Self { name: view.name, matches: view.matches, backends: backends.collect() }
    }
}

pub async fn run(context: &Context, args: &List) -> Result<(), Failure> {
    let control = context.connect().await?;
    let namespace = if args.all_namespaces { "" } else { context.namespace() };
    let services = objects::services(&control).await?;
    let routes = objects::list_kinds(&control, &attached::KINDS, namespace).await?;
    let routes: Vec<Object> = routes.into_iter().map(|s| s.object).collect();
    let mut listed = gather(&services, &routes, namespace);
    if let Some(service) = &args.service {
        listed.retain(|s| s.service == *service);
        if listed.is_empty() {
            let message = format!("There is no service {service} in the namespace {}.", context.namespace());
            return Err(Failure::not_found(message).hint("`meshctl get services -A` shows all services."));
        }
    }
    if context.out.format == Format::Name {
        // A route is listed for each of its services.
        let names = listed.iter().flat_map(|s| &s.routes).map(|r| format!("{}/{}", r.kind.to_lowercase(), r.name));
        return names.collect::<BTreeSet<_>>().iter().try_for_each(|name| context.out.line(name));
    }
    if !context.out.for_people() {
        return context.out.data(&listed);
    }
    if listed.is_empty() {
        context.out.note("No services are known here. `meshctl get services -A` shows those of all namespaces.");
        return Ok(());
    }
    context.out.table(&table(&listed, args.all_namespaces))
}

/// All services, also those that only a route names.
fn gather(services: &[ServiceView], routes: &[Object], namespace: &str) -> Vec<ServiceRoutes> {
    let here = |name: &str| namespace.is_empty() || name == namespace;
    let known = services.iter().map(|s| (s.namespace.clone(), s.name.clone()));
    let named = routes.iter().flat_map(|route| {
        let own = route.metadata().namespace_or_default().to_owned();
        let parents = attached::parents(route).iter().filter(|p| p.kind.as_deref() == Some("Service"));
        parents.map(move |p| (p.namespace.clone().unwrap_or_else(|| own.clone()), p.name.clone()))
    });
    let all: BTreeSet<(String, String)> = known.chain(named).filter(|(namespace, _)| here(namespace)).collect();
    let attached_to = |namespace: &str, service: &str| {
        let routes = attached::candidates(routes, namespace, service, None, None).into_iter();
        let view = |route: &Object| Route {
            kind: route.kind().as_str(),
            name: route.metadata().name.clone(),
            rules: attached::rules(route).into_iter().map(|rule| Rule::new(service, rule)).collect(),
        };
        routes.map(view).collect()
    };
    // A version's own sub-service is where routes lead, not where they begin.
    let all = all.iter().filter(|(ns, name)| {
        !all.iter().any(|(other_ns, other)| other_ns == ns && is_version_of(services, ns, other, name))
    });
    all.map(|(namespace, service)| ServiceRoutes {
        namespace: namespace.clone(),
        service: service.clone(),
        routes: attached_to(namespace, service),
    })
    .collect()
}

fn is_version_of(services: &[ServiceView], namespace: &str, service: &str, name: &str) -> bool {
    let whole = services.iter().find(|s| s.namespace == namespace && s.name == service);
    whole.is_some_and(|s| {
        s.workloads.iter().any(|w| !w.version.is_empty() && version_service(service, &w.version) == name)
    })
}

fn table(listed: &[ServiceRoutes], namespaces: bool) -> Table {
    let mut table = Table::new(match namespaces {
        true => &["NAMESPACE", "SERVICE", "REQUESTS", "TO", "ROUTE"],
        false => &["SERVICE", "REQUESTS", "TO", "ROUTE"],
    });
    let mut row = |of: &ServiceRoutes, requests: String, to: String, route: Cell| {
        let mut cells: Vec<Cell> = vec![of.service.clone().into(), requests.into(), to.into(), route];
        if namespaces {
            cells.insert(0, of.namespace.clone().into());
        }
        table.row(cells);
    };
    for service in listed {
        if service.routes.is_empty() {
            row(service, "all".into(), "all versions".into(), Cell::dim("none"));
        }
        for route in &service.routes {
            for rule in &route.rules {
                let all = if route.rules.len() == 1 { "all" } else { "all others" };
                let requests = if rule.matches.is_empty() { all.to_owned() } else { rule.matches.join(" or ") };
                row(service, requests, destinations(rule), format!("{}/{}", route.kind, route.name).into());
            }
        }
    }
    table
}

fn destinations(rule: &Rule) -> String {
    let total: u64 = rule.backends.iter().map(|b| u64::from(b.weight)).sum();
    let name = |b: &Backend| b.version.clone().unwrap_or_else(|| b.name.clone());
    match rule.backends.as_slice() {
        [] => "no backend".to_owned(),
        [only] => name(only),
        many => many.iter().map(|b| format!("{} {}", name(b), percent(b.weight, total))).collect::<Vec<_>>().join(", "),
    }
}
