//! Edits the rules of a route: which versions of a service get which share. Everything that is not asked for stays as it
//! is: other rules, filters of a backend that stays, timeouts, retries, names.

use mesh_common::names;
use mesh_common::resource::{
    BackendRef, GrpcRouteFilter, GrpcRouteMatch, GrpcRouteRule, GrpcRouteSpec, HttpRouteFilter, HttpRouteMatch,
    HttpRouteRule, HttpRouteSpec, Metadata, NoFilter, Object, ParentReference, Resource, TcpRouteRule, TcpRouteSpec,
    UdpRouteRule, UdpRouteSpec,
};

use crate::routes::conditions::{normal_grpc, normal_http};
use crate::routes::shares::Share;

/// Label of objects that meshctl made.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "meshctl");

/// The kinds of routes that are edited here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    Grpc,
    Tcp,
    Udp,
}

/// Where the traffic of a service shall go.
#[derive(Clone, Debug)]
pub struct Split {
    pub service: String,
    /// Of the backends; one that is there already keeps its own.
    pub port: Option<u16>,
    pub shares: Vec<Share>,
}

/// Conditions in the form that the route's kind has for them.
#[derive(Clone, Debug)]
pub enum Matches {
    Http(HttpRouteMatch),
    Grpc(GrpcRouteMatch),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    #[error("a {0} is not a route")]
    NotARoute(&'static str),
    #[error("a TCPRoute or UDPRoute sees no headers, so it cannot choose by request")]
    NoRequests,
    #[error("the conditions are for another kind of route")]
    OtherKind,
}

/// What is left after a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing that makes a difference: the object may go.
    Nothing,
    /// It is as it was.
    Same,
    Changed,
}

/// A route for a service without one: all requests to the service itself.
pub fn new_route(protocol: Protocol, namespace: &str, name: &str, service: &str, port: u16, only_port: bool) -> Object {
    let mut metadata = Metadata::new(namespace, name);
    metadata.labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    let parent = ParentReference {
        group: Some(String::new()),
        kind: Some("Service".to_owned()),
        name: service.to_owned(),
        port: only_port.then_some(port),
        ..ParentReference::default()
    };
    let parent_refs = vec![parent];
    match protocol {
        Protocol::Http => {
            let rules = vec![whole::<HttpRouteRule>(service, port)];
            Object::HttpRoute(Resource { metadata, spec: HttpRouteSpec { parent_refs, hostnames: Vec::new(), rules } })
        }
        Protocol::Grpc => {
            let rules = vec![whole::<GrpcRouteRule>(service, port)];
            Object::GrpcRoute(Resource { metadata, spec: GrpcRouteSpec { parent_refs, hostnames: Vec::new(), rules } })
        }
        Protocol::Tcp => {
            let rules = vec![whole::<TcpRouteRule>(service, port)];
            Object::TcpRoute(Resource { metadata, spec: TcpRouteSpec { parent_refs, rules } })
        }
        Protocol::Udp => {
            let rules = vec![whole::<UdpRouteRule>(service, port)];
            Object::UdpRoute(Resource { metadata, spec: UdpRouteSpec { parent_refs, rules } })
        }
    }
}

/// Splits what no condition applies to: the first rule for all requests, or a new one at the end.
/// Gives the backends that the rule no longer has.
pub fn set_weights(object: &mut Object, split: &Split) -> Result<Vec<String>, EditError> {
    fn edit<R: Rule>(rules: &mut Vec<R>, split: &Split) -> Vec<String> {
        match rules.iter_mut().find(|rule| rule.takes_all()) {
            Some(rule) => respread(rule, split),
            None => {
                let mut rule = R::default();
                let dropped = respread(&mut rule, split);
                rules.push(rule);
                dropped
            }
        }
    }
    match object {
        Object::HttpRoute(route) => Ok(edit(&mut route.spec.rules, split)),
        Object::GrpcRoute(route) => Ok(edit(&mut route.spec.rules, split)),
        Object::TcpRoute(route) => Ok(edit(&mut route.spec.rules, split)),
        Object::UdpRoute(route) => Ok(edit(&mut route.spec.rules, split)),
        other => Err(EditError::NotARoute(other.kind().as_str())),
    }
}

/// Splits the requests that satisfy the conditions: in the rule with just these, or in a new one before the rule for all.
pub fn set_match(object: &mut Object, matches: &Matches, split: &Split) -> Result<Vec<String>, EditError> {
    fn edit<R: Rule>(rules: &mut Vec<R>, is_it: impl Fn(&R) -> bool, new: R, split: &Split) -> Vec<String> {
        if let Some(rule) = rules.iter_mut().find(|rule| is_it(rule)) {
            return respread(rule, split);
        }
        let mut rule = new;
        let dropped = respread(&mut rule, split);
        let before = rules.iter().position(R::takes_all).unwrap_or(rules.len());
        rules.insert(before, rule);
        dropped
    }
    match (object, matches) {
        (Object::HttpRoute(route), Matches::Http(matched)) => {
            let new = HttpRouteRule { matches: vec![matched.clone()], ..HttpRouteRule::default() };
            Ok(edit(&mut route.spec.rules, |rule| http_rule_is_for(rule, matched), new, split))
        }
        (Object::GrpcRoute(route), Matches::Grpc(matched)) => {
            let new = GrpcRouteRule { matches: vec![matched.clone()], ..GrpcRouteRule::default() };
            Ok(edit(&mut route.spec.rules, |rule| grpc_rule_is_for(rule, matched), new, split))
        }
        (Object::TcpRoute(_) | Object::UdpRoute(_), _) => Err(EditError::NoRequests),
        (Object::HttpRoute(_) | Object::GrpcRoute(_), _) => Err(EditError::OtherKind),
        (other, _) => Err(EditError::NotARoute(other.kind().as_str())),
    }
}

/// Undoes splits: of the rule with these conditions, or of all rules. A rule that does nothing but split goes; one that
/// also has filters or timeouts stays, and sends everything to the service itself.
pub fn reset(object: &mut Object, service: &str, matches: Option<&Matches>) -> Result<Left, EditError> {
    fn edit<R: Rule>(rules: &mut Vec<R>, meant: impl Fn(&R) -> bool, service: &str) -> Left {
        let before = rules.clone();
        rules.retain_mut(|rule| {
            let splits =
                !rule.backends().is_empty() && rule.backends().iter().all(|b| version_of(service, &b.name).is_some());
            if !meant(rule) || !splits {
                return true;
            }
            if rule.only_splits() {
                return false;
            }
            let port = rule.backends().iter().find_map(|b| b.port);
            *rule.backends_mut() = vec![BackendRef { port, weight: None, ..BackendRef::new(service, 0, 1) }];
            true
        });
        let to_service = |rule: &R| matches!(rule.backends(), [one] if one.name == service);
        match rules.iter().all(|rule| rule.only_splits() && rule.takes_all() && to_service(rule)) {
            true => Left::Nothing,
            false if *rules == before => Left::Same,
            false => Left::Changed,
        }
    }
    match (object, matches) {
        (Object::HttpRoute(route), None) => Ok(edit(&mut route.spec.rules, |_| true, service)),
        (Object::GrpcRoute(route), None) => Ok(edit(&mut route.spec.rules, |_| true, service)),
        (Object::TcpRoute(route), None) => Ok(edit(&mut route.spec.rules, |_| true, service)),
        (Object::UdpRoute(route), None) => Ok(edit(&mut route.spec.rules, |_| true, service)),
        (Object::HttpRoute(route), Some(Matches::Http(matched))) => {
            Ok(edit(&mut route.spec.rules, |rule| http_rule_is_for(rule, matched), service))
        }
        (Object::GrpcRoute(route), Some(Matches::Grpc(matched))) => {
            Ok(edit(&mut route.spec.rules, |rule| grpc_rule_is_for(rule, matched), service))
        }
        (Object::TcpRoute(_) | Object::UdpRoute(_), Some(_)) => Err(EditError::NoRequests),
        (Object::HttpRoute(_) | Object::GrpcRoute(_), Some(_)) => Err(EditError::OtherKind),
        (other, _) => Err(EditError::NotARoute(other.kind().as_str())),
    }
}

/// The version that a backend name means, as it is in names: `reviews-v1` is `v1` of `reviews`, and `reviews` is all of them (`""`).
pub fn version_of<'a>(service: &str, backend: &'a str) -> Option<&'a str> {
    match backend.strip_prefix(service)? {
        "" => Some(""),
        rest => rest.strip_prefix('-'),
    }
}

/// A rule of any kind of route, as far as splitting goes.
trait Rule: Clone + Default + PartialEq {
    type Filter: Clone;

    fn backends(&self) -> &[BackendRef<Self::Filter>];
    fn backends_mut(&mut self) -> &mut Vec<BackendRef<Self::Filter>>;
    /// No request fails to match.
    fn takes_all(&self) -> bool;
    /// It has conditions and backends and nothing else.
    fn only_splits(&self) -> bool;
}

impl Rule for HttpRouteRule {
    type Filter = HttpRouteFilter;

    fn backends(&self) -> &[BackendRef<HttpRouteFilter>] {
        &self.backend_refs
    }

    fn backends_mut(&mut self) -> &mut Vec<BackendRef<HttpRouteFilter>> {
        &mut self.backend_refs
    }

    fn takes_all(&self) -> bool {
        let all = normal_http(&HttpRouteMatch::default());
        self.matches.is_empty() || self.matches.iter().any(|m| normal_http(m) == all)
    }

    fn only_splits(&self) -> bool {
        let bare = Self { matches: self.matches.clone(), backend_refs: self.backend_refs.clone(), ..Self::default() };
        *self == bare
    }
}

impl Rule for GrpcRouteRule {
    type Filter = GrpcRouteFilter;

    fn backends(&self) -> &[BackendRef<GrpcRouteFilter>] {
        &self.backend_refs
    }

    fn backends_mut(&mut self) -> &mut Vec<BackendRef<GrpcRouteFilter>> {
        &mut self.backend_refs
    }

    fn takes_all(&self) -> bool {
        let all = normal_grpc(&GrpcRouteMatch::default());
        self.matches.is_empty() || self.matches.iter().any(|m| normal_grpc(m) == all)
    }

    fn only_splits(&self) -> bool {
        let bare = Self { matches: self.matches.clone(), backend_refs: self.backend_refs.clone(), ..Self::default() };
        *self == bare
    }
}

impl Rule for TcpRouteRule {
    type Filter = NoFilter;

    fn backends(&self) -> &[BackendRef<NoFilter>] {
        &self.backend_refs
    }

    fn backends_mut(&mut self) -> &mut Vec<BackendRef<NoFilter>> {
        &mut self.backend_refs
    }

    fn takes_all(&self) -> bool {
        true
    }

    fn only_splits(&self) -> bool {
        self.name.is_none()
    }
}

impl Rule for UdpRouteRule {
    type Filter = NoFilter;

    fn backends(&self) -> &[BackendRef<NoFilter>] {
        &self.backend_refs
    }

    fn backends_mut(&mut self) -> &mut Vec<BackendRef<NoFilter>> {
        &mut self.backend_refs
    }

    fn takes_all(&self) -> bool {
        true
    }

    fn only_splits(&self) -> bool {
        self.name.is_none()
    }
}

fn http_rule_is_for(rule: &HttpRouteRule, matched: &HttpRouteMatch) -> bool {
    matches!(rule.matches.as_slice(), [one] if normal_http(one) == normal_http(matched))
}

fn grpc_rule_is_for(rule: &GrpcRouteRule, matched: &GrpcRouteMatch) -> bool {
    matches!(rule.matches.as_slice(), [one] if normal_grpc(one) == normal_grpc(matched))
}

fn whole<R: Rule>(service: &str, port: u16) -> R {
    let mut rule = R::default();
    *rule.backends_mut() = vec![BackendRef { weight: None, ..BackendRef::new(service, port, 1) }];
    rule
}

/// Gives the rule the split's backends. One that it had before keeps its port and filters.
fn respread<R: Rule>(rule: &mut R, split: &Split) -> Vec<String> {
    let old = std::mem::take(rule.backends_mut());
    let port = old.iter().find_map(|b| b.port).or(split.port);
    let name_of = |share: &Share| names::version_service(&split.service, &share.version);
    let backend = |share: &Share| {
        let name = name_of(share);
        let kept = old.iter().find(|b| b.name == name).cloned();
        let mut backend = kept.unwrap_or_else(|| BackendRef { port, ..BackendRef::new(&name, 0, 0) });
        backend.weight = Some(share.weight);
        backend
    };
    *rule.backends_mut() = split.shares.iter().map(backend).collect();
    let stays = |name: &String| split.shares.iter().any(|share| name_of(share) == *name) || *name == split.service;
    old.into_iter().map(|b| b.name).filter(|name| !stays(name)).collect()
}

#[cfg(test)]
mod tests;
