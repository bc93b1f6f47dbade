//! Attaches route objects to service ports, and resolves their backends.

mod datagrams;
mod streams;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use mesh_common::resource::{
    BackendObjectReference, BackendRef, CorsFilter, GrpcRoute, GrpcRouteFilter, GrpcRouteRule, HeaderFilter, HttpRoute,
    HttpRouteFilter, HttpRouteRule, Key, Kind, LocalObjectReference, Metadata, ParentReference, PathModifierType,
    ReferenceGrant, RequestMirrorFilter,
};

use super::fault::Faults;
use super::objects::Sorted;
use super::policy::Policies;
use super::route::{Age, Precedence};
use super::{
    Action, Backend, Condition, Forward, Mirror, Name, PathRewrite, Port, Protocol, Route, RouteMatch, Service, Status,
    TlsStreams,
};

/// A service port, for callers of one namespace only if their routes are their own.
type Place = (Name, u16, Option<String>);

pub(super) struct Attacher<'a> {
    pub services: &'a BTreeMap<Name, Service>,
    pub policies: &'a Policies<'a>,
    pub faults: &'a Faults,
    objects: &'a Sorted<'a>,
    pub statuses: &'a mut BTreeMap<Key, Status>,
    http: BTreeMap<Place, Vec<(Precedence, Key, Route)>>,
    tls: BTreeMap<Place, Vec<(Key, TlsStreams)>>,
    tcp: BTreeMap<Place, Vec<Backend>>,
    udp: BTreeMap<Place, Vec<Backend>>,
}

/// What was attached, by place.
pub(super) struct Attached {
    pub http: BTreeMap<Place, Vec<Route>>,
    pub tls: BTreeMap<Place, Vec<TlsStreams>>,
    pub tcp: BTreeMap<Place, Vec<Backend>>,
    /// Of UDP ports, which are places of their own.
    pub udp: BTreeMap<Place, Vec<Backend>>,
}

/// A rule of either kind of route, with the matches that it has in common with no other.
struct Rule<'a> {
    name: Option<&'a str>,
    matches: Vec<(Precedence, RouteMatch)>,
    action: Action,
    request_headers: HeaderFilter,
    response_headers: HeaderFilter,
    cors: Option<Arc<CorsFilter>>,
    http: Option<&'a HttpRouteRule>,
}

impl<'a> Attacher<'a> {
    pub fn new(
        services: &'a BTreeMap<Name, Service>,
        policies: &'a Policies<'a>,
        faults: &'a Faults,
        objects: &'a Sorted<'a>,
        statuses: &'a mut BTreeMap<Key, Status>,
    ) -> Self {
        let (http, tls) = (BTreeMap::new(), BTreeMap::new());
        let (tcp, udp) = (BTreeMap::new(), BTreeMap::new());
        Self { services, policies, faults, objects, statuses, http, tls, tcp, udp }
    }

    pub fn http_route(&mut self, route: &HttpRoute) {
        let key = key(Kind::HttpRoute, &route.metadata);
        let age = Age::of(&route.metadata);
        let whole = [HttpRouteRule::default()];
        let rules = if route.spec.rules.is_empty() { &whole[..] } else { &route.spec.rules };
        for parent in &route.spec.parent_refs {
            let mut refs = Refs::new(self.services, self.objects, &key, parent);
            let rules: Vec<_> = rules.iter().enumerate().map(|(i, rule)| http_rule(rule, i, &age, &mut refs)).collect();
            self.attach_http(&key, parent, &rules, refs);
        }
        self.common(&key, &route.spec.parent_refs, &route.spec.hostnames);
    }

    pub fn grpc_route(&mut self, route: &GrpcRoute) {
        let key = key(Kind::GrpcRoute, &route.metadata);
        let age = Age::of(&route.metadata);
        let whole = [GrpcRouteRule::default()];
        let rules = if route.spec.rules.is_empty() { &whole[..] } else { &route.spec.rules };
        for parent in &route.spec.parent_refs {
            let mut refs = Refs::new(self.services, self.objects, &key, parent);
            let rules: Vec<_> = rules.iter().enumerate().map(|(i, rule)| grpc_rule(rule, i, &age, &mut refs)).collect();
            self.attach_http(&key, parent, &rules, refs);
        }
        self.common(&key, &route.spec.parent_refs, &route.spec.hostnames);
    }

    fn attach_http(&mut self, key: &Key, parent: &ParentReference, rules: &[Rule], refs: Refs) {
        let accepted = match ports(self.services, self.objects, key, parent, |service| &service.ports) {
            Ok((service, ports)) => {
                let fitting: Vec<&Port> = ports.iter().copied().filter(|p| p.protocol.may_be_http()).collect();
                for port in &fitting {
                    let routes = rules.iter().enumerate().flat_map(|(i, rule)| self.routes(key, port, i, rule));
                    let routes: Vec<_> = routes.collect();
                    self.http.entry(place(key, service, port)).or_default().extend(routes);
                }
                if fitting.is_empty() {
                    let message = format!("no port of {} that this names speaks HTTP", service.fqdn);
                    Condition::not_accepted("UnsupportedProtocol", message)
                } else {
                    Condition::accepted()
                }
            }
            Err(condition) => condition,
        };
        self.parent_status(key, parent, vec![accepted, refs.condition()]);
    }

    fn routes(&self, key: &Key, port: &Port, index: usize, rule: &Rule) -> Vec<(Precedence, Key, Route)> {
        let mut policy = self.policies.for_rule(&port.policy, key, rule.name);
        if let Some(http) = rule.http {
            let timeouts = http.timeouts.unwrap_or_default();
            policy = policy
                .with_timeouts(timeouts.request.map(|d| d.get()), timeouts.backend_request.map(|d| d.get()))
                .with_retry(http.retry.as_ref());
        }
        let route = |(precedence, matches): &(Precedence, RouteMatch)| {
            let route = Route {
                name: format!("{}/{}/{}/{index}", key.kind, key.namespace, key.name),
                matches: matches.clone(),
                action: rule.action.clone(),
                request_headers: rule.request_headers.clone(),
                response_headers: rule.response_headers.clone(),
                cors: rule.cors.clone(),
                policy: policy.clone(),
                faults: self.faults.of(key, rule.name),
            };
            (precedence.clone(), key.clone(), route)
        };
        rule.matches.iter().map(route).collect()
    }

    fn parent_status(&mut self, key: &Key, parent: &ParentReference, conditions: Vec<Condition>) {
        self.statuses.entry(key.clone()).or_default().parents.push((parent.clone(), conditions));
    }

    fn common(&mut self, key: &Key, parents: &[ParentReference], hostnames: &[String]) {
        let conditions = &mut self.statuses.entry(key.clone()).or_default().conditions;
        if parents.is_empty() {
            conditions.push(Condition::not_accepted("NoParent", "without parentRefs the route has no effect"));
        }
        if !hostnames.is_empty() {
            let message = "hostnames have no effect where the parent is a Service: its own name decides";
            conditions.push(Condition::ignored("HostnamesIgnored", message));
        }
    }

    /// In order of precedence.
    pub fn finish(self) -> Attached {
        let mut http = BTreeMap::new();
        for (place, mut routes) in self.http {
            routes.sort_by(|a, b| a.0.cmp(&b.0));
            let mut first: HashMap<RouteMatch, Key> = HashMap::new();
            for (_, key, route) in &routes {
                let winner = first.entry(route.matches.clone()).or_insert_with(|| key.clone());
                if winner != key {
                    let message =
                        format!("rule {} has the same match as {winner}, which is older and wins", route.name);
                    let condition = Condition::ignored("Conflicted", message);
                    let conditions = &mut self.statuses.entry(key.clone()).or_default().conditions;
                    if !conditions.contains(&condition) {
                        conditions.push(condition);
                    }
                }
            }
            http.insert(place, routes.into_iter().map(|(_, _, route)| route).collect());
        }
        let only_streams = |(place, streams): (Place, Vec<(Key, TlsStreams)>)| {
            (place, streams.into_iter().map(|(_, streams)| streams).collect())
        };
        Attached { http, tls: self.tls.into_iter().map(only_streams).collect(), tcp: self.tcp, udp: self.udp }
    }
}

fn key(kind: Kind, metadata: &Metadata) -> Key {
    Key::new(kind, metadata.namespace_or_default(), &metadata.name)
}

fn place(key: &Key, service: &Service, port: &Port) -> Place {
    let consumer = (key.namespace != service.name.namespace).then(|| key.namespace.clone());
    (service.name.clone(), port.number, consumer)
}

/// The ports that a parent reference names, of those that are asked for.
fn ports<'s>(
    services: &'s BTreeMap<Name, Service>,
    objects: &Sorted,
    key: &Key,
    parent: &ParentReference,
    of: impl Fn(&'s Service) -> &'s BTreeMap<u16, Port>,
) -> Result<(&'s Service, Vec<&'s Port>), Condition> {
    if parent.kind.as_deref() != Some("Service") {
        let message = format!("{} is not a Service, and only Services can be parents for now", parent.name);
        return Err(Condition::not_accepted("InvalidKind", message));
    }
    let namespace = parent.namespace.as_deref().unwrap_or(&key.namespace);
    let name = Name::new(namespace, &parent.name);
    let Some(service) = services.get(&name) else {
        return Err(Condition::not_accepted("NoMatchingParent", objects.no_service(&name)));
    };
    let named = |port: &&Port| {
        parent.port.is_none_or(|number| number == port.number)
            && parent.section_name.as_ref().is_none_or(|name| *name == port.name)
    };
    let ports: Vec<_> = of(service).values().filter(named).collect();
    if ports.is_empty() {
        let message = format!("the Service {namespace}/{} has no port that this names", parent.name);
        return Err(Condition::not_accepted("NoMatchingParent", message));
    }
    Ok((service, ports))
}

fn http_rule<'a>(rule: &'a HttpRouteRule, index: usize, age: &Age, refs: &mut Refs) -> Rule<'a> {
    let matches: Vec<RouteMatch> = rule.matches.iter().map(RouteMatch::from).collect();
    let matches = if matches.is_empty() { vec![RouteMatch::default()] } else { matches };
    let with_precedence = |(i, m): (usize, RouteMatch)| (Precedence::http(&m, age, (index, i)), m);
    let headers = |of: fn(&HttpRouteFilter) -> Option<&HeaderFilter>| rule.filters.iter().find_map(of).cloned();
    let redirect = rule.filters.iter().find_map(|f| f.request_redirect.clone());
    let rewrite = rule.filters.iter().find_map(|f| f.url_rewrite.clone()).unwrap_or_default();
    let mirrors = rule.filters.iter().filter_map(|f| refs.mirror(f.request_mirror.as_ref()?)).collect();
    let backends = refs.backends(&rule.backend_refs, |filters| {
        let request = filters.iter().find_map(|f: &HttpRouteFilter| f.request_header_modifier.clone());
        let response = filters.iter().find_map(|f| f.response_header_modifier.clone());
        Some((request.unwrap_or_default(), response.unwrap_or_default()))
    });
    let rewrite_path = rewrite.path.and_then(|path| match path.modifier_type {
        PathModifierType::ReplaceFullPath => path.replace_full_path.map(PathRewrite::Full),
        PathModifierType::ReplacePrefixMatch => path.replace_prefix_match.map(PathRewrite::Prefix),
    });
    let forward = Forward { backends, rewrite_path, rewrite_host: rewrite.hostname, mirrors };
    Rule {
        name: rule.name.as_deref(),
        matches: matches.into_iter().enumerate().map(with_precedence).collect(),
        action: match (redirect, rule.filters.iter().find_map(|f| f.extension_ref.as_ref())) {
            (Some(redirect), _) => Action::Redirect(redirect),
            (None, Some(reference)) => refs.direct_response(reference),
            (None, None) => forward_or_fail(forward),
        },
        request_headers: headers(|f| f.request_header_modifier.as_ref()).unwrap_or_default(),
        response_headers: headers(|f| f.response_header_modifier.as_ref()).unwrap_or_default(),
        cors: rule.filters.iter().find_map(|f| f.cors.clone()).map(Arc::new),
        http: Some(rule),
    }
}

fn grpc_rule<'a>(rule: &'a GrpcRouteRule, index: usize, age: &Age, refs: &mut Refs) -> Rule<'a> {
    let mut matches: Vec<(Precedence, RouteMatch)> = Vec::new();
    for (i, matched) in rule.matches.iter().enumerate() {
        let converted = RouteMatch::from(matched);
        matches.push((Precedence::grpc(matched.method.as_ref(), &converted, age, (index, i)), converted));
    }
    if matches.is_empty() {
        let all = RouteMatch { grpc: true, ..RouteMatch::default() };
        matches.push((Precedence::http(&all, age, (index, 0)), all));
    }
    let headers = |of: fn(&GrpcRouteFilter) -> Option<&HeaderFilter>| rule.filters.iter().find_map(of).cloned();
    let mirrors = rule.filters.iter().filter_map(|f| refs.mirror(f.request_mirror.as_ref()?)).collect();
    let backends = refs.backends(&rule.backend_refs, |filters| {
        let request = filters.iter().find_map(|f: &GrpcRouteFilter| f.request_header_modifier.clone());
        let response = filters.iter().find_map(|f| f.response_header_modifier.clone());
        Some((request.unwrap_or_default(), response.unwrap_or_default()))
    });
    Rule {
        name: rule.name.as_deref(),
        matches,
        action: forward_or_fail(Forward { backends, mirrors, ..Forward::default() }),
        request_headers: headers(|f| f.request_header_modifier.as_ref()).unwrap_or_default(),
        response_headers: headers(|f| f.response_header_modifier.as_ref()).unwrap_or_default(),
        cors: None,
        http: None,
    }
}

fn forward_or_fail(forward: Forward) -> Action {
    let usable = forward.backends.iter().any(|backend| backend.found && backend.weight > 0);
    if usable { Action::Forward(Box::new(forward)) } else { Action::Fail }
}

/// What goes to a backend.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Carries {
    Requests,
    Streams,
    Datagrams,
}

/// Resolves references to backends, and remembers what was wrong with them.
struct Refs<'a> {
    services: &'a BTreeMap<Name, Service>,
    objects: &'a Sorted<'a>,
    route: &'a Key,
    parent_namespace: &'a str,
    carries: Carries,
    problem: Option<(&'static str, String)>,
}

impl<'a> Refs<'a> {
    fn new(
        services: &'a BTreeMap<Name, Service>,
        objects: &'a Sorted<'a>,
        route: &'a Key,
        parent: &'a ParentReference,
    ) -> Self {
        let parent_namespace = parent.namespace.as_deref().unwrap_or(&route.namespace);
        Self { services, objects, route, parent_namespace, carries: Carries::Requests, problem: None }
    }

    fn condition(self) -> Condition {
        match self.problem {
            Some((reason, message)) => Condition::unresolved(reason, message),
            None => Condition::resolved(),
        }
    }

    fn backends<F>(
        &mut self,
        refs: &[BackendRef<F>],
        headers: impl Fn(&[F]) -> Option<(HeaderFilter, HeaderFilter)>,
    ) -> Vec<Backend> {
        let mut backends = Vec::new();
        for backend in refs {
            let (service, port, found) = self.find(&backend.object());
            let (request_headers, response_headers) = headers(&backend.filters).unwrap_or_default();
            let weight = backend.weight();
            backends.push(Backend { service, port, weight, found, request_headers, response_headers });
        }
        backends
    }

    /// A filter that can't be found is not left out: what it was for would happen to no request.
    fn direct_response(&mut self, reference: &LocalObjectReference) -> Action {
        let Some(found) = self.objects.direct_responses.get(&Name::new(&self.route.namespace, &reference.name)) else {
            let (namespace, name) = (&self.route.namespace, &reference.name);
            let message = format!("there is no {} {namespace}/{name}, so requests get 500", reference.kind);
            self.problem.get_or_insert(("FilterNotFound", message));
            return Action::Fail;
        };
        Action::Direct(Arc::new(found.spec.clone()))
    }

    /// A mirror to nowhere is left out: it changes nothing for the request itself.
    fn mirror(&mut self, filter: &RequestMirrorFilter) -> Option<Mirror> {
        let (service, port, found) = self.find(&filter.backend_ref);
        let million = 1_000_000_u64;
        let parts = match (filter.percent, filter.fraction) {
            (Some(percent), _) => u64::from(percent) * million / 100,
            (None, Some(fraction)) => {
                u64::from(fraction.numerator) * million / u64::from(fraction.denominator.unwrap_or(100).max(1))
            }
            (None, None) => million,
        };
        let parts_per_million = u32::try_from(parts.min(million)).unwrap_or(1_000_000);
        found.then_some(Mirror { service, port, parts_per_million })
    }

    fn find(&mut self, reference: &BackendObjectReference) -> (Name, u16, bool) {
        let namespace = reference.namespace.as_deref().unwrap_or(&self.route.namespace);
        let name = Name::new(namespace, &reference.name);
        let port = reference.port.unwrap_or_default();
        let problem = self.check(&name, reference);
        let found = problem.is_none();
        self.problem = self.problem.take().or(problem);
        (name, port, found)
    }

    fn granted(&self, name: &Name, reference: &BackendObjectReference) -> bool {
        let of_backend = |grant: &&&ReferenceGrant| grant.metadata.namespace_or_default() == name.namespace;
        self.objects.reference_grants.iter().filter(of_backend).any(|grant| grant.allows(self.route, reference))
    }

    fn check(&self, name: &Name, reference: &BackendObjectReference) -> Option<(&'static str, String)> {
        let kind = reference.kind.as_deref().unwrap_or("Service");
        if kind != "Service" {
            return Some(("InvalidKind", format!("the backend {} is a {kind}, not a Service", reference.name)));
        }
        let own = name.namespace == self.route.namespace || name.namespace == self.parent_namespace;
        if !own && !self.granted(name, reference) {
            let message =
                format!("the backend {name} is in another namespace, and no ReferenceGrant there allows that");
            return Some(("RefNotPermitted", message));
        }
        let fate = match self.carries {
            Carries::Requests => "requests for it are answered 500",
            Carries::Streams => "streams to it are refused",
            Carries::Datagrams => "datagrams to it are dropped",
        };
        let Some(service) = self.services.get(name) else {
            return Some(("BackendNotFound", format!("{}; {fate}", self.objects.no_service(name))));
        };
        let number = reference.port.unwrap_or_default();
        let (ports, what) = match self.carries {
            Carries::Datagrams => (&service.udp_ports, "UDP port"),
            _ => (&service.ports, "port"),
        };
        let Some(port) = ports.get(&number) else {
            let message = format!("the Service {name} has no {what} {number}; {fate}");
            return Some(("BackendNotFound", message));
        };
        (self.carries == Carries::Requests && port.protocol == Protocol::Tcp)
            .then(|| ("UnsupportedProtocol", format!("port {number} of the Service {name} does not speak HTTP")))
    }
}
