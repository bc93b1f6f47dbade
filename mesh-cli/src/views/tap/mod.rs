//! Single requests and byte streams, as a tap shows them: a line for people, or an object. Pure.

pub mod pairs;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use jiff::Timestamp;
use mesh_common::proto::telemetry::{Direction, Protocol, TapEvent, TapVerdict};
use serde::Serialize;

use super::traffic::{UNKNOWN, account, short};
use crate::output::Cell;
use crate::output::time::human_duration;
use pairs::Seen;

/// What programs are given.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View<'a> {
    time: String,
    /// Which side saw it: `outbound` is the caller's proxy.
    direction: &'static str,
    /// The workload whose proxy that was.
    seen_by: &'a str,
    caller: String,
    service: String,
    #[serde(flatten)]
    what: Option<Http<'a>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    flags: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<Route<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<Backend<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tries: Vec<Try<'a>>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    faults: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<Policy<'a>>,
    mutual_tls: bool,
    request_bytes: u64,
    response_bytes: u64,
    /// What the server's proxy saw of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<Server<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Http<'a> {
    method: &'a str,
    authority: &'a str,
    path: &'a str,
    protocol: &'a str,
    status: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_byte_ms: Option<f64>,
    attempts: u32,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    trace_id: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    request_headers: BTreeMap<&'a str, Vec<&'a str>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    response_headers: BTreeMap<&'a str, Vec<&'a str>>,
}

#[derive(Debug, Serialize)]
struct Route<'a> {
    name: &'a str,
    matched: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Backend<'a> {
    cluster: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    of_weights: Option<u32>,
    #[serde(skip_serializing_if = "str::is_empty")]
    workload: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    endpoint: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Try<'a> {
    endpoint: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u32>,
    #[serde(skip_serializing_if = "str::is_empty")]
    flags: &'a str,
    duration_ms: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Policy<'a> {
    verdict: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    on_trial: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Server<'a> {
    workload: &'a str,
    duration_ms: f64,
    #[serde(skip_serializing_if = "str::is_empty")]
    flags: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
}

impl<'a> View<'a> {
    pub fn of(seen: &'a Seen) -> Self {
        let event = &seen.event;
        Self {
            time: time(event).map(|it| format!("{it:.6}")).unwrap_or_default(),
            direction: if is_outbound(event) { "outbound" } else { "inbound" },
            seen_by: seen_by(event),
            caller: caller(event),
            service: service(event),
            what: (event.protocol() != Protocol::Tcp).then(|| Http::of(event)),
            flags: &event.flags,
            reason: &event.detail,
            duration_ms: milliseconds(event.duration_us),
            route: (!event.route.is_empty()).then_some(Route { name: &event.route, matched: &event.matched }),
            backend: Backend::of(event),
            tries: event.tries.iter().map(Try::of).collect(),
            faults: &event.faults,
            policy: policy(seen),
            mutual_tls: event.mutual_tls,
            request_bytes: event.request_bytes,
            response_bytes: event.response_bytes,
            server: seen.server.as_ref().map(Server::of),
        }
    }
}

impl<'a> Http<'a> {
    fn of(event: &'a TapEvent) -> Self {
        let headers = |response: bool| {
            let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for header in event.headers.iter().filter(|it| it.response == response) {
                found.entry(&header.name).or_default().push(&header.value);
            }
            found
        };
        Self {
            method: &event.method,
            authority: &event.authority,
            path: &event.path,
            protocol: &event.version,
            status: event.status,
            grpc_status: event.grpc_status,
            first_byte_ms: (event.first_byte_us > 0).then(|| milliseconds(event.first_byte_us)),
            attempts: event.attempts,
            request_id: &event.request_id,
            trace_id: &event.trace_id,
            request_headers: headers(false),
            response_headers: headers(true),
        }
    }
}

impl<'a> Backend<'a> {
    fn of(event: &'a TapEvent) -> Option<Self> {
        let weighted = event.weights > 0;
        (!event.cluster.is_empty()).then_some(Self {
            cluster: &event.cluster,
            weight: weighted.then_some(event.weight),
            of_weights: weighted.then_some(event.weights),
            workload: &event.workload,
            version: &event.workload_version,
            endpoint: &event.endpoint,
        })
    }
}

impl<'a> Try<'a> {
    fn of(it: &'a mesh_common::proto::telemetry::TapTry) -> Self {
        Self {
            endpoint: &it.endpoint,
            status: (it.status > 0).then_some(it.status),
            flags: &it.flags,
            duration_ms: milliseconds(it.duration_us),
        }
    }
}

impl<'a> Server<'a> {
    fn of(event: &'a TapEvent) -> Self {
        Self {
            workload: seen_by(event),
            duration_ms: milliseconds(event.duration_us),
            flags: &event.flags,
            reason: &event.detail,
        }
    }
}

/// What the policies have said: those of the server, where its proxy has told.
fn policy(seen: &Seen) -> Option<Policy<'_>> {
    let said = |event: &TapEvent| event.verdict() != TapVerdict::Unspecified;
    let event = seen.server.as_ref().filter(|event| said(event)).or(Some(&seen.event).filter(|event| said(event)))?;
    let verdict = if event.verdict() == TapVerdict::Denied { "denied" } else { "allowed" };
    Some(Policy { verdict, name: &event.policy, on_trial: &event.policy_on_trial })
}

/// The same as one line, in parts. `namespace` is the reader's.
pub fn line(seen: &Seen, namespace: &str, wide: bool) -> Vec<Cell> {
    let event = &seen.event;
    let time = time(event).map(|it| format!("{it:.3}")).unwrap_or_default();
    let clock = time.split_once('T').map_or("", |(_, clock)| clock.trim_end_matches('Z'));
    let what = match event.protocol() {
        Protocol::Tcp => "TCP".to_owned(),
        _ => format!("{} {}", clean(&event.method), clean(&event.path)),
    };
    let between =
        format!("{} -> {}", clean(&short(&caller(event), namespace)), clean(&short(&service(event), namespace)));
    let mut cells = vec![
        Cell::dim(clock),
        Cell::dim(if is_outbound(event) { "out" } else { "in " }),
        between.into(),
        what.into(),
        status(event),
        human_duration(Duration::from_micros(event.duration_us)).into(),
    ];
    cells.extend((!event.flags.is_empty()).then(|| Cell::bad(clean(&event.flags))));
    cells.extend(why(seen).into_iter().map(Cell::from));
    if wide {
        cells.extend(more(event).into_iter().map(Cell::dim));
    }
    cells
}

/// `503`, `-` for none, and of gRPC both statuses.
fn status(event: &TapEvent) -> Cell {
    let text = match (event.protocol(), event.status, event.grpc_status) {
        (Protocol::Tcp, ..) | (_, 0, _) => "-".to_owned(),
        (_, status, None) => status.to_string(),
        (_, status, Some(grpc)) => format!("{status} grpc {grpc}"),
    };
    match (event.protocol(), event.status, event.grpc_status.unwrap_or_default()) {
        (Protocol::Tcp, ..) => Cell::dim(text),
        (_, 0 | 500.., _) => Cell::bad(text),
        (_, 400..=499, _) | (_, _, 1..) => Cell::warn(text),
        _ => Cell::good(text),
    }
}

/// Where it went, and why.
fn why(seen: &Seen) -> Vec<String> {
    let event = &seen.event;
    let mut words = Vec::new();
    if !event.route.is_empty() {
        let matched = Some(event.matched.as_str()).filter(|text| !text.is_empty() && *text != "all");
        let share = (event.weights > 0).then(|| format!("{} of {}", event.weight, event.weights));
        let rule = matched.map(clean).into_iter().chain(share).collect::<Vec<_>>().join("; ");
        let rule = if rule.is_empty() { rule } else { format!(" ({rule})") };
        words.push(format!("by {}{rule}", clean(&event.route)));
    }
    if is_outbound(event) && !event.endpoint.is_empty() {
        let workload = if event.workload.is_empty() { &event.cluster } else { &event.workload };
        let version = Some(&event.workload_version).filter(|it| !it.is_empty());
        let version = version.map(|it| format!(" {}", clean(it))).unwrap_or_default();
        words.push(format!("to {}{version} {}", clean(workload), clean(&event.endpoint)));
    }
    if event.attempts > 1 {
        words.push(format!("{} tries: {}", event.attempts, tries(event)));
    }
    if !event.faults.is_empty() {
        words.push(format!("fault: {}", clean(&event.faults.join(", "))));
    }
    if let Some(Policy { verdict, name, on_trial }) = policy(seen) {
        let by = if name.is_empty() { String::new() } else { format!(" by {}", clean(name)) };
        words.push(format!("{verdict}{by}"));
        if !on_trial.is_empty() {
            words.push(format!("would be refused by {}", clean(on_trial)));
        }
    }
    words.extend(Some(&event.detail).filter(|it| !it.is_empty()).map(|it| format!("[{}]", clean(it))));
    if let Some(server) = seen.server.as_ref().filter(|it| !it.flags.is_empty()) {
        words.push(format!("[at the server: {} {}]", clean(&server.flags), clean(&server.detail)));
    }
    for header in &event.headers {
        let way = if header.response { "< " } else { "" };
        words.push(format!("{way}{}: {}", clean(&header.name), clean(&header.value)));
    }
    words
}

fn tries(event: &TapEvent) -> String {
    let mut text = String::new();
    for (index, it) in event.tries.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        let outcome = if it.status > 0 { it.status.to_string() } else { clean(&it.flags) };
        // Writing to memory cannot fail.
        let _ = write!(text, "{comma}{} {outcome}", clean(&it.endpoint));
    }
    text
}

/// For who wants to see more.
fn more(event: &TapEvent) -> Vec<String> {
    let mut words = vec![
        format!("{} B up, {} B down", event.request_bytes, event.response_bytes),
        if event.mutual_tls { "mutual TLS" } else { "plaintext" }.to_owned(),
    ];
    if event.first_byte_us > 0 {
        words.push(format!("first byte after {}", human_duration(Duration::from_micros(event.first_byte_us))));
    }
    let named = [("request", &event.request_id), ("trace", &event.trace_id), ("host", &event.authority)];
    words.extend(named.iter().filter(|(_, it)| !it.is_empty()).map(|(name, it)| format!("{name} {}", clean(it))));
    words.push(format!("seen by {}", clean(seen_by(event))));
    words
}

/// The service that was called, as other commands take it.
pub fn name(seen: &Seen, namespace: &str) -> String {
    format!("service/{}", clean(&short(&service(&seen.event), namespace)))
}

fn service(event: &TapEvent) -> String {
    let reporter = event.reporter.as_ref();
    match (is_outbound(event), event.service.as_str(), reporter) {
        (true, "", _) => UNKNOWN.to_owned(),
        (true, service, _) => service.to_owned(),
        (false, _, Some(reporter)) if reporter.service.is_empty() => account(&reporter.identity),
        (false, _, Some(reporter)) => reporter.service.clone(),
        (false, _, None) => UNKNOWN.to_owned(),
    }
}

fn caller(event: &TapEvent) -> String {
    match (is_outbound(event), &event.reporter) {
        (true, Some(reporter)) if !reporter.service.is_empty() => reporter.service.clone(),
        (true, Some(reporter)) => account(&reporter.identity),
        (true, None) => UNKNOWN.to_owned(),
        (false, _) => account(&event.caller),
    }
}

fn seen_by(event: &TapEvent) -> &str {
    event.reporter.as_ref().map_or("", |reporter| &reporter.workload)
}

pub(super) fn is_outbound(event: &TapEvent) -> bool {
    event.direction() == Direction::Outbound
}

fn time(event: &TapEvent) -> Option<Timestamp> {
    Timestamp::from_microsecond(event.began_unix_us).ok()
}

#[allow(clippy::cast_precision_loss)]
fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e3
}

/// Clients choose paths and headers: nothing of them may do anything to a terminal.
fn clean(text: &str) -> String {
    let escaped = |c: char| match c.is_control() || is_invisible(c) {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// What turns the direction of writing, or cannot be seen.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}
