//! Tables of stored objects: for each kind the columns that say what an object does.

use jiff::Timestamp;
use mesh_common::resource::{
    AuthorizationAction, AuthorizationPolicy, DirectResponse, FaultInjection, Kind, Object, PeerAuthentication,
    ReferenceGrant, RequestAuthentication, Service, TargetRef, Telemetry, TrafficPolicy,
};
use serde_json::Value;

use crate::faults;
use crate::objects::Stored;
use crate::output::time::age;
use crate::output::{Cell, Table};
use crate::routes::attached::{self, RuleView};
use crate::routes::shares::percent;

/// The cells of an object, without those that all kinds have.
type Describe = fn(&Object) -> Vec<Cell>;

/// Objects of one kind.
pub fn table(kind: Kind, objects: &[Stored], namespaces: bool, now: Timestamp) -> Table {
    let (titles, describe): (&[&'static str], Describe) = match kind {
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute | Kind::UdpRoute => {
            (&["SERVICE", "RULES", "BACKENDS"], route)
        }
        Kind::ReferenceGrant => (&["FROM", "TO"], |o| of(o, reference_grant)),
        Kind::Service => (&["PORTS", "SELECTOR"], |o| of(o, service)),
        Kind::TrafficPolicy => (&["TARGET", "SETTINGS"], |o| of(o, traffic_policy)),
        Kind::FaultInjection => (&["CALLS OF", "BY", "EFFECT", "PERCENT", "EXPIRES"], |o| of(o, fault)),
        Kind::DirectResponse => (&["STATUS CODE", "CONTENT TYPE", "BODY"], |o| of(o, direct_response)),
        Kind::PeerAuthentication => (&["TARGET", "MODE", "PORTS"], |o| of(o, peer_authentication)),
        Kind::RequestAuthentication => (&["TARGET", "ISSUERS"], |o| of(o, request_authentication)),
        Kind::AuthorizationPolicy => (&["TARGET", "ACTION", "RULES"], |o| of(o, authorization_policy)),
        Kind::Telemetry => (&["TARGET", "TRACES TO", "SAMPLING"], |o| of(o, telemetry)),
        Kind::WorkloadEntry => (&["SERVICE", "VERSION", "ADDRESSES", "PORTS", "HEALTHY"], |o| of(o, workload)),
        Kind::MeshConfig => (&["TRUST DOMAIN"], |o| of(o, mesh_config)),
    };
    let mut all = if namespaces { vec!["NAMESPACE"] } else { Vec::new() };
    all.push("NAME");
    all.extend(titles);
    all.extend(["STATUS", "AGE", "+VERSION OF OBJECT"]);
    let mut table = Table::new(&all);
    for stored in objects {
        let metadata = stored.object.metadata();
        let mut cells: Vec<Cell> = Vec::new();
        if namespaces {
            cells.push(metadata.namespace_or_default().into());
        }
        cells.push(metadata.name.clone().into());
        cells.extend(describe(&stored.object));
        cells.push(status(&stored.json));
        cells.push(age_of(&stored.object, now).into());
        cells.push(metadata.resource_version.clone().unwrap_or_default().into());
        table.row(cells);
    }
    table
}

/// Objects of all kinds, with what each does in one column.
pub fn table_of_all(objects: &[Stored], namespaces: bool, now: Timestamp) -> Table {
    let mut table = Table::new(match namespaces {
        true => &["NAMESPACE", "OBJECT", "WHAT", "STATUS", "AGE"],
        false => &["OBJECT", "WHAT", "STATUS", "AGE"],
    });
    for stored in objects {
        let key = stored.object.key();
        let mut cells = vec![
            format!("{}/{}", key.kind.singular(), key.name).into(),
            summary(&stored.object).into(),
            status(&stored.json),
            age_of(&stored.object, now).into(),
        ];
        if namespaces {
            cells.insert(0, key.namespace.into());
        }
        table.row(cells);
    }
    table
}

/// What an object does, in one line.
pub fn summary(object: &Object) -> String {
    let texts = |cells: Vec<Cell>| {
        let filled = cells.into_iter().map(|c| c.text).filter(|t| !t.is_empty());
        filled.collect::<Vec<_>>().join(", ")
    };
    match object {
        Object::HttpRoute(_)
        | Object::GrpcRoute(_)
        | Object::TcpRoute(_)
        | Object::TlsRoute(_)
        | Object::UdpRoute(_) => {
            let rules = attached::rules(object);
            format!("{}: {}", parents(object), rules.iter().map(rule).collect::<Vec<_>>().join("; "))
        }
        Object::ReferenceGrant(g) => texts(reference_grant(g)),
        Object::Service(s) => texts(service(s)),
        Object::TrafficPolicy(p) => texts(traffic_policy(p)),
        Object::FaultInjection(f) => {
            faults::views(f, Timestamp::MIN).iter().map(faults::in_words).collect::<Vec<_>>().join("; ")
        }
        Object::DirectResponse(r) => texts(direct_response(r)),
        Object::PeerAuthentication(p) => texts(peer_authentication(p)),
        Object::RequestAuthentication(p) => texts(request_authentication(p)),
        Object::AuthorizationPolicy(p) => texts(authorization_policy(p)),
        Object::Telemetry(t) => texts(telemetry(t)),
        Object::WorkloadEntry(w) => texts(workload(w).into_iter().take(3).collect()),
        Object::MeshConfig(m) => texts(mesh_config(m)),
    }
}

/// The conditions of an object's status that don't hold, or that all do.
pub fn status(json: &Value) -> Cell {
    let all = conditions(json);
    if all.is_empty() {
        return Cell::default();
    }
    let problems: Vec<String> = all.iter().filter(|c| c.status == "False").map(|c| c.reason.clone()).collect();
    if problems.is_empty() { Cell::good("ok") } else { Cell::bad(problems.join(", ")) }
}

struct Condition {
    status: String,
    reason: String,
}

/// Of the object itself, of its parents (routes) and of its ancestors (policies).
fn conditions(json: &Value) -> Vec<Condition> {
    let status = &json["status"];
    let lists = |name: &str| status[name].as_array().map(Vec::as_slice).unwrap_or_default().iter();
    let nested = lists("parents").chain(lists("ancestors")).map(|p| &p["conditions"]);
    let conditions = [&status["conditions"]].into_iter().chain(nested);
    let conditions = conditions.flat_map(|list| list.as_array().map(Vec::as_slice).unwrap_or_default());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    conditions.map(|c| Condition { status: text(&c["status"]), reason: text(&c["reason"]) }).collect()
}

fn age_of(object: &Object, now: Timestamp) -> String {
    let created = object.metadata().creation_timestamp.as_deref().and_then(|t| t.parse().ok());
    created.map(|created| age(created, now)).unwrap_or_default()
}

trait OfObject {
    fn of(object: &Object) -> Option<&Self>;
}

/// The cells of an object of the kind that the table is of.
fn of<T: OfObject>(object: &Object, describe: fn(&T) -> Vec<Cell>) -> Vec<Cell> {
    T::of(object).map(describe).unwrap_or_default()
}

macro_rules! of_object {
    ($($variant:ident),*) => {
        $(impl OfObject for mesh_common::resource::$variant {
            fn of(object: &Object) -> Option<&Self> {
                match object {
                    Object::$variant(resource) => Some(resource),
                    _ => None,
                }
            }
        })*
    };
}

of_object!(
    ReferenceGrant,
    Service,
    TrafficPolicy,
    FaultInjection,
    DirectResponse,
    PeerAuthentication,
    RequestAuthentication,
    AuthorizationPolicy,
    Telemetry,
    WorkloadEntry,
    MeshConfig
);

fn route(object: &Object) -> Vec<Cell> {
    let rules = attached::rules(object);
    let backends = rules.iter().map(destinations).collect::<Vec<_>>().join("; ");
    vec![parents(object).into(), rules.len().to_string().into(), backends.into()]
}

fn parents(object: &Object) -> String {
    let name = |p: &mesh_common::resource::ParentReference| {
        let port = p.port.map(|port| format!(":{port}")).unwrap_or_default();
        let kind = p.kind.as_deref().filter(|k| *k != "Service").map(|k| format!("{k}/")).unwrap_or_default();
        let namespace = p.namespace.as_ref().map(|n| format!(".{n}")).unwrap_or_default();
        format!("{kind}{}{namespace}{port}", p.name)
    };
    attached::parents(object).iter().map(name).collect::<Vec<_>>().join(", ")
}

fn rule(rule: &RuleView) -> String {
    match rule.matches.is_empty() {
        true => destinations(rule),
        false => format!("{} -> {}", rule.matches.join(" or "), destinations(rule)),
    }
}

fn destinations(rule: &RuleView) -> String {
    let total: u64 = rule.backends.iter().map(|b| u64::from(b.weight)).sum();
    match rule.backends.as_slice() {
        [] => "no backend".to_owned(),
        [only] => only.name.clone(),
        many => many.iter().map(|b| format!("{} {}", b.name, percent(b.weight, total))).collect::<Vec<_>>().join(", "),
    }
}

fn service(service: &Service) -> Vec<Cell> {
    let port = |p: &mesh_common::resource::ServicePort| {
        let spoken = p.app_protocol.clone().or_else(|| (!p.name.is_empty()).then(|| p.name.clone()));
        let protocol = match p.protocol.as_deref() {
            None | Some("TCP") => spoken,
            // The same number may be a TCP port as well.
            Some(other) => Some(other.to_ascii_lowercase()),
        };
        protocol.map(|protocol| format!("{}/{protocol}", p.port)).unwrap_or_else(|| p.port.to_string())
    };
    let ports = service.spec.ports.iter().map(port).collect::<Vec<_>>().join(", ");
    let selector = service.spec.selector.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(", ");
    vec![ports.into(), selector.into()]
}

fn targets(targets: &[TargetRef], none: &str) -> String {
    let name = |t: &TargetRef| match t.kind.as_str() {
        "Service" => t.name.clone(),
        kind => format!("{kind}/{}", t.name),
    };
    if targets.is_empty() { none.to_owned() } else { targets.iter().map(name).collect::<Vec<_>>().join(", ") }
}

fn traffic_policy(policy: &TrafficPolicy) -> Vec<Cell> {
    let spec = &policy.spec;
    let mut settings = Vec::new();
    settings.extend(spec.load_balancer.as_ref().and_then(|b| b.policy).map(|policy| format!("{policy:?}")));
    if let Some(timeouts) = &spec.timeouts {
        let named = [
            ("request", timeouts.request),
            ("try", timeouts.per_try),
            ("idle", timeouts.idle),
            ("connect", timeouts.connect),
        ];
        settings.extend(named.into_iter().filter_map(|(name, d)| Some(format!("{name} timeout {}", d?))));
    }
    settings.extend(spec.retries.as_ref().and_then(|r| r.attempts).map(|n| format!("{n} retries")));
    settings.extend(spec.connection_pool.and_then(|p| p.max_connections).map(|n| format!("{n} connections")));
    settings.extend(spec.connection_pool.and_then(|p| p.max_requests).map(|n| format!("{n} requests")));
    settings.extend(
        spec.outlier_detection.as_ref().map(|it| format!("outlier detection{}", if it.is_on() { "" } else { " off" })),
    );
    settings
        .extend(spec.health_check.as_ref().map(|it| format!("health checks{}", if it.is_on() { "" } else { " off" })));
    vec![targets(&spec.target_refs, "the namespace").into(), settings.join(", ").into()]
}

fn fault(fault: &FaultInjection) -> Vec<Cell> {
    let views = faults::views(fault, Timestamp::MIN);
    let by =
        views.first().map(|v| v.from.join(", ")).filter(|from| !from.is_empty()).unwrap_or_else(|| "all".to_owned());
    let join = |texts: Vec<String>| texts.join("; ");
    vec![
        targets(&fault.spec.target_refs, "").into(),
        by.into(),
        join(views.iter().map(|v| v.effect.clone()).collect()).into(),
        join(views.iter().map(|v| format!("{} %", v.percent)).collect()).into(),
        fault.spec.expires_at.clone().unwrap_or_else(|| "never".to_owned()).into(),
    ]
}

fn direct_response(response: &DirectResponse) -> Vec<Cell> {
    let spec = &response.spec;
    let body = spec.body.as_deref().unwrap_or_default();
    let content_type = spec.content_type.as_deref().unwrap_or(if body.is_empty() { "" } else { "text/plain" });
    let bytes = if body.is_empty() { String::new() } else { format!("{} bytes", body.len()) };
    vec![spec.status.to_string().into(), content_type.into(), bytes.into()]
}

fn peer_authentication(policy: &PeerAuthentication) -> Vec<Cell> {
    let mode = |mode: &mesh_common::resource::PeerMode| format!("{mode:?}").to_uppercase();
    let ports = policy.spec.ports.iter().map(|(port, m)| format!("{port}: {}", mode(m))).collect::<Vec<_>>().join(", ");
    let all = policy.spec.mode.as_ref().map(mode).unwrap_or_default();
    vec![targets(&policy.spec.target_refs, "the namespace").into(), all.into(), ports.into()]
}

fn request_authentication(policy: &RequestAuthentication) -> Vec<Cell> {
    let issuers = policy.spec.jwt_rules.iter().map(|rule| rule.issuer.as_str()).collect::<Vec<_>>().join(", ");
    vec![targets(&policy.spec.target_refs, "the namespace").into(), issuers.into()]
}

fn authorization_policy(policy: &AuthorizationPolicy) -> Vec<Cell> {
    let spec = &policy.spec;
    let action = match (spec.action, spec.dry_run, spec.overrides) {
        (AuthorizationAction::Deny, false, _) => "DENY",
        (AuthorizationAction::Deny, true, _) => "DENY (dry run)",
        (AuthorizationAction::Allow, true, _) => "ALLOW (dry run)",
        (AuthorizationAction::Allow, false, true) => "ALLOW (overrides)",
        (AuthorizationAction::Allow, false, false) => "ALLOW",
        (AuthorizationAction::Audit, ..) => "AUDIT",
        (AuthorizationAction::Custom, ..) => "CUSTOM",
    };
    let target = targets(&spec.target_refs, "the namespace");
    vec![target.into(), action.into(), spec.rules.len().to_string().into()]
}

fn telemetry(telemetry: &Telemetry) -> Vec<Cell> {
    let tracing = telemetry.spec.tracing.as_ref();
    let to = match tracing.map(|it| (it.enabled, &it.backend)) {
        Some((Some(false), _)) => "off".to_owned(),
        Some((_, Some(to))) => {
            let namespace = to.namespace.as_deref().unwrap_or(telemetry.metadata.namespace_or_default());
            format!("{}.{namespace}:{} ({:?})", to.name, to.port, to.protocol)
        }
        _ => String::new(),
    };
    let share = tracing.and_then(|it| it.sampling_percent).map(|share| format!("{share} %")).unwrap_or_default();
    vec![targets(&telemetry.spec.target_refs, "the namespace").into(), to.into(), share.into()]
}

fn reference_grant(grant: &ReferenceGrant) -> Vec<Cell> {
    let from = grant.spec.from.iter().map(|from| format!("{} of {}", from.kind, from.namespace));
    let to = grant.spec.to.iter().map(|to| match &to.name {
        Some(name) => format!("{} {name}", to.kind),
        None => format!("every {}", to.kind),
    });
    vec![from.collect::<Vec<_>>().join(", ").into(), to.collect::<Vec<_>>().join(", ").into()]
}

fn workload(workload: &mesh_common::resource::WorkloadEntry) -> Vec<Cell> {
    let spec = &workload.spec;
    let addresses = spec.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let port = |p: &mesh_common::resource::WorkloadPort| match &p.protocol {
        Some(protocol) => format!("{}/{protocol}", p.port),
        None => p.port.to_string(),
    };
    let ports = spec.ports.iter().map(port).collect::<Vec<_>>().join(", ");
    let healthy = if spec.healthy.unwrap_or(true) { Cell::good("yes") } else { Cell::bad("no") };
    vec![spec.service.clone().into(), spec.version.clone().into(), addresses.into(), ports.into(), healthy]
}

fn mesh_config(config: &mesh_common::resource::MeshConfig) -> Vec<Cell> {
    vec![config.spec.trust_domain.clone().unwrap_or_default().into()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(yaml: &str, status: Value) -> Stored {
        let object = mesh_common::resource::parse_yaml("test", yaml).unwrap().remove(0);
        let mut json = object.to_json();
        json["status"] = status;
        Stored { object, json }
    }

    const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews, namespace: default, creationTimestamp: '2026-01-01T11:00:00Z'}
spec:
  parentRefs: [{group: '', kind: Service, name: reviews, port: 9080}]
  rules:
  - matches: [{headers: [{name: end-user, value: jason}]}]
    backendRefs: [{name: reviews-v2, port: 9080}]
  - backendRefs: [{name: reviews-v1, port: 9080, weight: 9}, {name: reviews-v2, port: 9080}]
";

    fn now() -> Timestamp {
        "2026-01-01T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn routes_show_where_requests_go_and_what_is_wrong() {
        let problem = serde_json::json!({"parents": [{"conditions": [
            {"type": "Accepted", "status": "True", "reason": "Accepted", "message": ""},
            {"type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound", "message": "no reviews-v2"},
        ]}]});
        let text = table(Kind::HttpRoute, &[stored(ROUTE, problem)], false, now()).render(false, false, None);
        let row = text.lines().nth(1).unwrap();
        let expected =
            "reviews  reviews:9080  2      reviews-v2; reviews-v1 90 %, reviews-v2 10 %  BackendNotFound  60m";
        assert_eq!(row, expected);
    }

    #[test]
    fn all_kinds_fit_into_one_table() {
        let objects = [
            stored(ROUTE, Value::Null),
            stored(
                "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: default}\nspec: {ports: [{port: 80, appProtocol: http}]}",
                serde_json::json!({"conditions": [{"type": "Accepted", "status": "True"}]}),
            ),
        ];
        let text = table_of_all(&objects, true, now()).render(false, false, None);
        let rows: Vec<&str> = text.lines().skip(1).collect();
        assert!(rows[0].contains("header end-user=jason -> reviews-v2; reviews-v1 90 %, reviews-v2 10 %"), "{text}");
        assert!(rows[1].starts_with("default") && rows[1].contains("80/http") && rows[1].contains("ok"), "{text}");
    }

    #[test]
    fn a_services_udp_ports_are_told_from_tcp_ports_of_the_same_number() {
        let service = stored(
            "{apiVersion: v1, kind: Service, metadata: {name: dns}, spec: {ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]}}",
            Value::Null,
        );
        let text = table(Kind::Service, &[service], false, now()).render(false, false, None);
        assert!(text.contains("53/udp, 53/dns-tcp"), "{text}");
    }

    #[test]
    fn every_kind_has_a_cell_for_each_column() {
        for yaml in [
            "{apiVersion: meshctl.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: x}, spec: {timeouts: {request: 2s}, retries: {attempts: 3}}}",
            "{apiVersion: meshctl.dev/v1alpha1, kind: PeerAuthentication, metadata: {name: x}, spec: {mode: PERMISSIVE}}",
            "{apiVersion: meshctl.dev/v1alpha1, kind: RequestAuthentication, metadata: {name: x}, spec: {jwtRules: [{issuer: a, jwksUri: 'https://a/k'}]}}",
            "{apiVersion: meshctl.dev/v1alpha1, kind: Telemetry, metadata: {name: x}, spec: {tracing: {samplingPercent: 5, backend: {name: jaeger, port: 4317}}}}",
            "{apiVersion: meshctl.dev/v1alpha1, kind: DirectResponse, metadata: {name: x}, spec: {status: 503, body: later}}",
            "{apiVersion: meshctl.dev/v1alpha1, kind: WorkloadEntry, metadata: {name: x}, spec: {service: db, addresses: [10.0.0.1], ports: [{port: 5432}]}}",
        ] {
            let stored = stored(yaml, Value::Null);
            let kind = stored.object.kind();
            let text = table(kind, &[stored], true, now()).render(true, false, None);
            assert_eq!(text.lines().count(), 2, "{text}");
        }
    }
}
