//! What a tap is told of a request or a byte stream.

use std::time::Duration;

use http::header::HeaderName;
use jiff::Timestamp;
use mesh_common::names::served_fqdn;
use mesh_common::proto::telemetry::{Direction as Side, Protocol, TapEvent, TapHeader, TapTry, TapVerdict};
use mesh_common::secrets::shown_path;
use mesh_common::tap::service_in;

use super::Noted;
use crate::config::{Action, Endpoint, HeaderMatch, PathMatch, Route, RouteMatch, StringMatch};
use crate::listen::{Direction, Downstream, Security};
use crate::telemetry::{LocalWorkload, RequestRecord, TcpRecord, cut};

pub(super) fn of_request(
    record: &RequestRecord<'_>,
    noted: &Noted,
    headers: &[HeaderName],
    local: &LocalWorkload,
) -> TapEvent {
    let (weight, weights) = record.rule.map_or((0, 0), |rule| share(rule, record.cluster));
    let decided = noted.decided.as_ref();
    let verdict = match decided {
        None => TapVerdict::Unspecified,
        Some(it) if it.allowed => TapVerdict::Allowed,
        Some(_) => TapVerdict::Denied,
    };
    let shown = noted.headers.iter().filter(|it| headers.contains(&it.name));
    TapEvent {
        protocol: Protocol::Http.into(),
        duration_us: microseconds(record.duration),
        first_byte_us: record.upstream_duration.map_or(0, microseconds),
        method: cut(record.method.as_str()).to_owned(),
        authority: cut(record.authority).to_owned(),
        path: cut(&shown_path(record.path)).to_owned(),
        version: record.protocol.as_str().to_owned(),
        status: record.status.into(),
        grpc_status: record.grpc_status,
        route: cut(record.route).to_owned(),
        matched: record.rule.map(|rule| cut(&matched(&rule.matches)).to_owned()).unwrap_or_default(),
        weight,
        weights,
        attempts: record.attempts,
        tries: noted.tries.iter().map(tried).collect(),
        faults: noted.faults.iter().map(|fault| fault.as_str().to_owned()).collect(),
        verdict: verdict.into(),
        policy: decided.map(|it| cut(&it.policy).to_owned()).unwrap_or_default(),
        policy_on_trial: decided.map(|it| cut(&it.on_trial).to_owned()).unwrap_or_default(),
        flags: record.flags.to_owned(),
        detail: cut(record.detail.unwrap_or_default()).to_owned(),
        request_bytes: record.request_bytes,
        response_bytes: record.response_bytes,
        request_id: cut(record.request_id).to_owned(),
        trace_id: record.trace.map(|id| id.to_string()).unwrap_or_default(),
        headers: shown
            .map(|it| TapHeader { name: it.name.to_string(), value: it.value.clone(), response: it.response })
            .collect(),
        ..of_call(record.downstream, record.called, record.cluster, record.endpoint, record.security, local)
    }
}

pub(super) fn of_stream(record: &TcpRecord<'_>, local: &LocalWorkload) -> TapEvent {
    let verdict = match &record.verdict {
        None => TapVerdict::Unspecified,
        Some(it) if it.refused.is_none() => TapVerdict::Allowed,
        Some(_) => TapVerdict::Denied,
    };
    let on_trial = record.verdict.and_then(|it| it.would_refuse);
    TapEvent {
        protocol: Protocol::Tcp.into(),
        duration_us: microseconds(record.duration),
        verdict: verdict.into(),
        policy: record.verdict.map(|it| cut(it.deciding()).to_owned()).unwrap_or_default(),
        policy_on_trial: on_trial.map(|it| cut(it.policy()).to_owned()).unwrap_or_default(),
        flags: record.flags.to_owned(),
        detail: cut(record.detail.unwrap_or_default()).to_owned(),
        request_bytes: record.received_bytes,
        response_bytes: record.sent_bytes,
        ..of_call(record.downstream, record.called, record.cluster, record.endpoint, record.security, local)
    }
}

/// The event of that tap; it has just ended.
pub(super) fn begun(event: TapEvent, tap: u64, now: Timestamp) -> TapEvent {
    let duration = i64::try_from(event.duration_us).unwrap_or(i64::MAX);
    TapEvent { tap, began_unix_us: now.as_microsecond().saturating_sub(duration), ..event }
}

fn of_call(
    downstream: &Downstream,
    called: &str,
    cluster: &str,
    endpoint: Option<&Endpoint>,
    security: Security,
    local: &LocalWorkload,
) -> TapEvent {
    let mutual_tls = security == Security::MutualTls;
    match downstream.direction {
        Direction::Inbound => TapEvent {
            direction: Side::Inbound.into(),
            caller: downstream.identity.as_deref().map(ToString::to_string).unwrap_or_default(),
            service: served_fqdn(&local.service, &local.namespace),
            destination: downstream.original_destination.to_string(),
            mutual_tls,
            ..TapEvent::default()
        },
        Direction::Outbound => {
            let workload = endpoint.and_then(|it| it.workload.as_ref());
            let served = workload.map(|it| served_fqdn(&it.service, &it.namespace)).unwrap_or_default();
            let named = service_in(called).or_else(|| service_in(cluster)).map(|(name, namespace)| match namespace {
                "" => name.to_owned(),
                namespace => served_fqdn(name, namespace),
            });
            TapEvent {
                direction: Side::Outbound.into(),
                service: named.unwrap_or(served),
                cluster: cut(cluster).to_owned(),
                workload: workload.map(|it| it.workload.clone()).unwrap_or_default(),
                workload_version: workload.map(|it| it.version.clone()).unwrap_or_default(),
                workload_identity: workload.map(|it| it.identity.clone()).unwrap_or_default(),
                endpoint: endpoint.map(|it| it.address.to_string()).unwrap_or_default(),
                mutual_tls,
                ..TapEvent::default()
            }
        }
    }
}

fn tried(it: &super::noted::Try) -> TapTry {
    // Nobody waits any more for one that has not ended.
    let (took, outcome) = it.ended.unwrap_or((Duration::ZERO, Err("cancelled")));
    TapTry {
        endpoint: it.address.to_string(),
        status: outcome.map_or(0, u32::from),
        flags: outcome.err().unwrap_or_default().to_owned(),
        duration_us: microseconds(took),
    }
}

/// The weight of a cluster among those of its route; nothing if there is no other.
fn share(route: &Route, cluster: &str) -> (u32, u32) {
    let Action::Forward(forward) = &route.action else { return (0, 0) };
    let choices = forward.clusters.choices();
    let weight = choices.iter().find(|choice| &*choice.cluster == cluster).map(|choice| choice.weight);
    match weight {
        Some(weight) if choices.len() > 1 => {
            (weight, choices.iter().fold(0, |sum: u32, choice| sum.saturating_add(choice.weight)))
        }
        _ => (0, 0),
    }
}

/// What a route asks for, in words: `path prefix /api, method GET, header end-user=jason`.
fn matched(matches: &RouteMatch) -> String {
    let mut words = Vec::new();
    match &matches.path {
        PathMatch::Prefix(path) | PathMatch::SegmentPrefix(path) if path == "/" || path.is_empty() => (),
        PathMatch::Prefix(path) | PathMatch::SegmentPrefix(path) => words.push(format!("path prefix {path}")),
        PathMatch::Exact(path) => words.push(format!("path {path}")),
        PathMatch::Regex(path) => words.push(format!("path ~{}", path.as_str())),
    }
    words.extend(matches.method.iter().map(|method| format!("method {method}")));
    words.extend(matches.headers.iter().map(|it| format!("header {}", header(it))));
    words.extend(matches.query.iter().map(|it| format!("query {}{}", it.name, compared(&it.name, &it.matcher))));
    if matches.grpc {
        words.push("gRPC".to_owned());
    }
    if words.is_empty() { "all".to_owned() } else { words.join(", ") }
}

fn header(header: &HeaderMatch) -> String {
    let not = if header.invert { "not " } else { "" };
    format!("{not}{}{}", header.name, compared(&header.name, &header.matcher))
}

/// A route may tell requests apart by what is secret.
fn compared(name: &str, matcher: &StringMatch) -> String {
    let shown = |text: &str| mesh_common::secrets::shown_header(name, text).into_owned();
    match matcher {
        StringMatch::Exact(text) => format!("={}", shown(text)),
        StringMatch::Prefix(text) => format!("={}*", shown(text)),
        StringMatch::Suffix(text) => format!("=*{}", shown(text)),
        StringMatch::Contains(text) => format!("=*{}*", shown(text)),
        StringMatch::Regex(text) => format!("~{}", shown(text.as_str())),
        StringMatch::Present(true) => String::new(),
        StringMatch::Present(false) => " absent".to_owned(),
    }
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
