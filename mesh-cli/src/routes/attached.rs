//! Finds the route of a service among all objects.

use mesh_common::resource::{BackendRef, GrpcRouteRule, HttpRouteRule, Kind, Object, ParentReference};

use crate::routes::conditions::{describe_grpc, describe_http};

/// Kinds that may be attached to a service.
pub const KINDS: [Kind; 4] = [Kind::HttpRoute, Kind::GrpcRoute, Kind::TcpRoute, Kind::UdpRoute];

/// A name as the user gives it: `reviews` or `httproute/reviews`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteName {
    pub kind: Option<Kind>,
    pub name: String,
}

impl std::str::FromStr for RouteName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((kind, name)) => {
                let kind = Kind::parse(kind).map_err(|e| e.to_string())?;
                if !KINDS.contains(&kind) {
                    return Err(format!("a {kind} is not a route"));
                }
                Ok(Self { kind: Some(kind), name: name.to_owned() })
            }
            None => Ok(Self { kind: None, name: text.to_owned() }),
        }
    }
}

/// One rule, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleView {
    pub name: Option<String>,
    /// Alternatives; empty: all requests.
    pub matches: Vec<String>,
    pub backends: Vec<BackendView>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendView {
    pub name: String,
    pub namespace: Option<String>,
    pub port: Option<u16>,
    pub weight: u32,
}

pub fn parents(object: &Object) -> &[ParentReference] {
    match object {
        Object::HttpRoute(route) => &route.spec.parent_refs,
        Object::GrpcRoute(route) => &route.spec.parent_refs,
        Object::TcpRoute(route) => &route.spec.parent_refs,
        Object::TlsRoute(route) => &route.spec.parent_refs,
        Object::UdpRoute(route) => &route.spec.parent_refs,
        _ => &[],
    }
}

/// Whether the route is attached to the service, or to this port of it.
pub fn is_attached(object: &Object, namespace: &str, service: &str, port: Option<u16>) -> bool {
    let to_service = |parent: &ParentReference| {
        parent.kind.as_deref() == Some("Service")
            && parent.group.as_deref().is_none_or(str::is_empty)
            && parent.name == service
            && parent.namespace.as_deref().is_none_or(|n| n == namespace)
            && port.is_none_or(|wanted| parent.port.is_none_or(|port| port == wanted))
    };
    object.metadata().namespace_or_default() == namespace && parents(object).iter().any(to_service)
}

/// The routes of the service that the user may mean.
pub fn candidates<'a>(
    objects: &'a [Object],
    namespace: &str,
    service: &str,
    port: Option<u16>,
    named: Option<&RouteName>,
) -> Vec<&'a Object> {
    let meant = |object: &&Object| match named {
        None => true,
        Some(RouteName { kind, name }) => {
            object.metadata().name == *name && kind.is_none_or(|kind| kind == object.kind())
        }
    };
    objects.iter().filter(|object| is_attached(object, namespace, service, port)).filter(meant).collect()
}

pub fn rules(object: &Object) -> Vec<RuleView> {
    match object {
        Object::HttpRoute(route) => {
            let matches = |rule: &HttpRouteRule| alternatives(rule.matches.iter().map(describe_http));
            route.spec.rules.iter().map(|rule| view(&rule.name, matches(rule), &rule.backend_refs)).collect()
        }
        Object::GrpcRoute(route) => {
            let matches = |rule: &GrpcRouteRule| alternatives(rule.matches.iter().map(describe_grpc));
            route.spec.rules.iter().map(|rule| view(&rule.name, matches(rule), &rule.backend_refs)).collect()
        }
        Object::TcpRoute(route) => {
            route.spec.rules.iter().map(|rule| view(&rule.name, Vec::new(), &rule.backend_refs)).collect()
        }
        Object::UdpRoute(route) => {
            route.spec.rules.iter().map(|rule| view(&rule.name, Vec::new(), &rule.backend_refs)).collect()
        }
        Object::TlsRoute(route) => {
            let names = || route.spec.hostnames.iter().map(|name| format!("server name {name}")).collect();
            route.spec.rules.iter().map(|rule| view(&rule.name, names(), &rule.backend_refs)).collect()
        }
        _ => Vec::new(),
    }
}

fn view<F>(name: &Option<String>, matches: Vec<String>, backends: &[BackendRef<F>]) -> RuleView {
    RuleView { name: name.clone(), matches, backends: backends.iter().map(backend).collect() }
}

fn backend<F>(backend: &BackendRef<F>) -> BackendView {
    BackendView {
        name: backend.name.clone(),
        namespace: backend.namespace.clone(),
        port: backend.port,
        weight: backend.weight(),
    }
}

/// An alternative without conditions makes the others superfluous.
fn alternatives(described: impl Iterator<Item = String>) -> Vec<String> {
    let described: Vec<String> = described.collect();
    if described.iter().any(String::is_empty) { Vec::new() } else { described }
}
