//! What a request leaves in its trace, by OpenTelemetry's conventions for HTTP
//! (<https://opentelemetry.io/docs/specs/semconv/http/http-spans/>).

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::{Recording, SpanId, Trace, TraceId, Try};
use crate::listen::Direction;
use crate::route::without_port;
use crate::telemetry::{Protocol, RequestRecord, cut};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    Server,
    Client,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Number(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub trace: TraceId,
    pub id: SpanId,
    pub parent: Option<SpanId>,
    /// The parent is not of this proxy.
    pub remote: bool,
    pub kind: SpanKind,
    pub name: String,
    /// Nanoseconds since 1970.
    pub begin: u64,
    pub end: u64,
    /// `tracestate`.
    pub state: String,
    pub attributes: Vec<(&'static str, Value)>,
    /// It did not go well. With what is known of why.
    pub error: Option<String>,
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl Trace {
    /// The spans of a request that has ended; none if it is not sampled.
    pub(crate) fn spans(&self, record: &RequestRecord<'_>, now: Instant) -> Vec<Span> {
        let Some(recording) = &self.recording else { return Vec::new() };
        let outbound = record.downstream.direction == Direction::Outbound;
        let mut own = self.own(recording, record, now);
        if !outbound {
            return vec![own];
        }
        if let [only] = recording.tries.as_slice()
            && !recording.apart
        {
            // One span says it all. Its name is the one that was told.
            own.id = only.span;
            own.attributes.extend(peer(only));
            return vec![own];
        }
        let tries = recording.tries.iter().enumerate();
        let mut spans: Vec<_> = tries.map(|(index, it)| of_try(&own, recording, it, index, record, now)).collect();
        spans.push(own);
        spans
    }

    /// The span of the hop as this side sees it.
    fn own(&self, recording: &Recording, record: &RequestRecord<'_>, now: Instant) -> Span {
        let downstream = record.downstream;
        let inbound = downstream.direction == Direction::Inbound;
        let mut span = Span {
            trace: self.id,
            id: recording.span,
            parent: self.said.ids.map(|(_, span)| span),
            remote: true,
            kind: if inbound { SpanKind::Server } else { SpanKind::Client },
            name: name(record),
            begin: recording.at(recording.began.0),
            end: recording.at(now),
            state: recording.state.clone().unwrap_or_default(),
            attributes: request(record),
            error: None,
        };
        let peer = downstream.identity.as_deref().map(ToString::to_string);
        let faults = recording.faults.iter().map(|fault| fault.as_str()).collect::<Vec<_>>().join(",");
        if inbound {
            span.add("client.address", downstream.peer.ip().to_string().as_str());
        }
        span.add("user_agent.original", cut(record.user_agent));
        span.add("mesh.peer.identity", peer.as_deref().unwrap_or_default());
        span.add("mesh.route", record.route);
        span.add("mesh.cluster", record.cluster);
        span.add("mesh.policy", recording.policy.as_deref().unwrap_or_default());
        span.add("mesh.response_flags", record.flags);
        span.add("mesh.fault", &faults);
        span.add("mesh.request_id", cut(record.request_id));
        if record.attempts > 1 {
            span.attributes.push(("mesh.attempts", record.attempts.into()));
        }
        if let Some(workload) = record.endpoint.and_then(|it| it.workload.as_ref()).filter(|_| !inbound) {
            span.add("mesh.destination.workload", &workload.workload);
            span.add("mesh.destination.version", &workload.version);
        }
        if record.status != 0 {
            span.attributes.push(("http.response.status_code", record.status.into()));
        }
        if let Some(code) = record.grpc_status {
            span.attributes.push(("rpc.system", "grpc".into()));
            span.attributes.push(("rpc.grpc.status_code", code.into()));
        }
        if let Some(kind) = failure(record, inbound) {
            span.add("error.type", &kind);
            span.error = Some(record.detail.unwrap_or_default().to_owned());
        }
        span
    }
}

impl Recording {
    /// Nanoseconds since 1970.
    fn at(&self, moment: Instant) -> u64 {
        let (began, clock) = self.began;
        let since: SystemTime = clock + moment.saturating_duration_since(began);
        u64::try_from(since.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Span {
    /// What is not known is left out.
    fn add(&mut self, key: &'static str, text: &str) {
        if !text.is_empty() {
            self.attributes.push((key, text.into()));
        }
    }
}

/// What the request asks for.
fn request(record: &RequestRecord<'_>) -> Vec<(&'static str, Value)> {
    let method = known(record.method.as_str());
    let path = record.path.split('?').next().unwrap_or_default();
    let host = without_port(record.authority);
    let mut attributes = vec![
        ("http.request.method", method.unwrap_or("_OTHER").into()),
        ("url.scheme", "http".into()),
        ("url.path", cut(path).into()),
        ("network.protocol.version", version(record.protocol).into()),
    ];
    if method.is_none() {
        attributes.push(("http.request.method_original", cut(record.method.as_str()).into()));
    }
    if !host.is_empty() {
        attributes.push(("server.address", cut(host).into()));
    }
    let port = record.authority.get(host.len()..).and_then(|rest| rest.strip_prefix(':')?.parse::<u16>().ok());
    attributes.extend(port.map(|port| ("server.port", port.into())));
    attributes
}

fn of_try(own: &Span, recording: &Recording, it: &Try, index: usize, record: &RequestRecord<'_>, now: Instant) -> Span {
    let last = index + 1 == recording.answered();
    let (end, outcome) = match it.ended {
        // Its response is the one that the client got, until its end.
        Some((_, Ok(status))) if last => (now, Ok(status)),
        Some(ended) => ended,
        // Nobody waits for it any more.
        None => (now, Err("cancelled")),
    };
    let mut span = Span {
        id: it.span,
        parent: Some(own.id),
        remote: false,
        kind: SpanKind::Client,
        begin: recording.at(it.began),
        end: recording.at(end),
        attributes: request(record),
        error: None,
        ..own.clone()
    };
    if index > 0 {
        span.attributes.push(("http.request.resend_count", Value::Number(i64::try_from(index).unwrap_or(i64::MAX))));
    }
    span.attributes.extend(peer(it));
    let kind = match outcome {
        Ok(status) => {
            span.attributes.push(("http.response.status_code", status.into()));
            (status >= 400).then(|| status.to_string())
        }
        Err(why) => Some(why.to_owned()),
    };
    if let Some(kind) = kind {
        span.add("error.type", &kind);
        span.error = Some(String::new());
    }
    span
}

impl Recording {
    /// The number of the try that was the last to have an answer.
    fn answered(&self) -> usize {
        let tries = self.tries.iter().enumerate();
        let ended = tries.filter_map(|(index, it)| Some((it.ended?.0, index + 1)));
        ended.max().map_or(0, |(_, number)| number)
    }
}

fn peer(it: &Try) -> [(&'static str, Value); 2] {
    let address = it.address.ip().to_string();
    [("network.peer.address", Value::Text(address)), ("network.peer.port", it.address.port().into())]
}

/// Why a span counts as failed, if it does: a status that is an error to this side, or else the response flag.
fn failure(record: &RequestRecord<'_>, inbound: bool) -> Option<String> {
    let status = record.status >= if inbound { 500 } else { 400 };
    // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE and DATA_LOSS are the server's.
    let grpc =
        record.grpc_status.filter(|code| if inbound { [2, 4, 12, 13, 14, 15].contains(code) } else { *code != 0 });
    match (grpc, status, record.status, record.flags) {
        (Some(code), ..) => Some(code.to_string()),
        (None, true, status, _) => Some(status.to_string()),
        (None, false, 0, flags) => Some(if flags.is_empty() { "cancelled" } else { flags }.to_owned()),
        // Broken after its head was sent.
        (None, false, _, flags) => (record.detail.is_some() && !inbound || flags == "UC").then(|| flags.to_owned()),
    }
}

/// Of few values: the method, and the port that was called as the configuration has it.
fn name(record: &RequestRecord<'_>) -> String {
    let method = known(record.method.as_str()).unwrap_or("HTTP");
    match record.called {
        "" => method.to_owned(),
        called => format!("{method} {called}"),
    }
}

fn known(method: &str) -> Option<&str> {
    const METHODS: [&str; 10] =
        ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"];
    METHODS.contains(&method).then_some(method)
}

fn version(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http10 => "1.0",
        Protocol::Http11 => "1.1",
        Protocol::Http2 => "2",
    }
}
