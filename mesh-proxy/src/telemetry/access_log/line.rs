//! A line of the access log.

use std::cell::Cell;
use std::fmt;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use mesh_common::identity::Identity;
use serde::{Serialize, Serializer};

use super::{RequestRecord, TcpRecord};
use crate::trace::TraceId;

/// What a line says, whatever its format.
#[derive(Debug, Serialize)]
pub(super) struct Line<'a> {
    start_time: Start,
    direction: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    protocol: &'static str,
    response_code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u32>,
    response_flags: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_code_details: Option<&'a str>,
    bytes_received: u64,
    bytes_sent: u64,
    /// Milliseconds.
    duration: Milliseconds,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_service_time: Option<Milliseconds>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "shown")]
    trace_id: Option<&'a TraceId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authority: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_host: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_workload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_cluster: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_request_attempt_count: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route_name: Option<&'a str>,
    downstream_remote_address: SocketAddr,
    downstream_local_address: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "shown")]
    downstream_peer: Option<&'a Identity>,
    security: &'static str,
}

impl<'a> Line<'a> {
    pub(super) fn of_request(record: &'a RequestRecord<'_>, now: Timestamp) -> Self {
        Self {
            start_time: Start::of(now, record.duration),
            direction: record.downstream.direction.as_str(),
            method: Some(record.method.as_str()),
            path: Some(record.path),
            protocol: record.protocol.as_str(),
            response_code: record.status,
            grpc_status: record.grpc_status,
            response_flags: some(record.flags).unwrap_or("-"),
            response_code_details: record.detail,
            bytes_received: record.request_bytes,
            bytes_sent: record.response_bytes,
            duration: milliseconds(record.duration),
            upstream_service_time: record.upstream_duration.map(milliseconds),
            user_agent: some(record.user_agent),
            request_id: some(record.request_id),
            trace_id: record.trace.as_ref(),
            authority: some(record.authority),
            upstream_host: record.endpoint.map(|it| it.address),
            upstream_workload: record.endpoint.and_then(|it| it.workload.as_ref()).and_then(|it| some(&it.workload)),
            upstream_cluster: some(record.cluster),
            upstream_request_attempt_count: Some(record.attempts),
            route_name: some(record.route),
            downstream_remote_address: record.downstream.peer,
            downstream_local_address: record.downstream.original_destination,
            downstream_peer: record.downstream.identity.as_deref(),
            security: record.security.as_str(),
        }
    }

    pub(super) fn of_stream(record: &'a TcpRecord<'_>, now: Timestamp) -> Self {
        Self {
            start_time: Start::of(now, record.duration),
            direction: record.downstream.direction.as_str(),
            method: None,
            path: None,
            protocol: "TCP",
            response_code: 0,
            grpc_status: None,
            response_flags: some(record.flags).unwrap_or("-"),
            response_code_details: record.detail,
            bytes_received: record.received_bytes,
            bytes_sent: record.sent_bytes,
            duration: milliseconds(record.duration),
            upstream_service_time: None,
            user_agent: None,
            request_id: None,
            trace_id: None,
            authority: None,
            upstream_host: record.endpoint.map(|it| it.address),
            upstream_workload: record.endpoint.and_then(|it| it.workload.as_ref()).and_then(|it| some(&it.workload)),
            upstream_cluster: some(record.cluster),
            upstream_request_attempt_count: None,
            route_name: None,
            downstream_remote_address: record.downstream.peer,
            downstream_local_address: record.downstream.original_destination,
            downstream_peer: record.downstream.identity.as_deref(),
            security: record.security.as_str(),
        }
    }

    pub(super) fn json(&self, out: &mut Vec<u8>) {
        // Strings and numbers only, to memory: nothing in a line can fail to be written as JSON.
        let _ = serde_json::to_writer(&mut *out, self);
        out.push(b'\n');
    }

    /// `[START_TIME] "METHOD PATH PROTOCOL" RESPONSE_CODE RESPONSE_FLAGS BYTES_RECEIVED BYTES_SENT DURATION
    /// UPSTREAM_SERVICE_TIME "X-FORWARDED-FOR" "USER-AGENT" "X-REQUEST-ID" "AUTHORITY" "UPSTREAM_HOST"`, and after it
    /// `UPSTREAM_CLUSTER DOWNSTREAM_LOCAL_ADDRESS DOWNSTREAM_REMOTE_ADDRESS DOWNSTREAM_PEER ROUTE_NAME
    /// "RESPONSE_CODE_DETAILS"`.
    pub(super) fn text(&self, out: &mut Vec<u8>) {
        out.push(b'[');
        self.start_time.put(out);
        out.extend_from_slice(b"] \"");
        for part in [self.method, self.path] {
            escape(out, part);
            out.push(b' ');
        }
        out.extend_from_slice(self.protocol.as_bytes());
        out.extend_from_slice(b"\" ");
        number(out, u64::from(self.response_code));
        out.push(b' ');
        out.extend_from_slice(self.response_flags.as_bytes());
        for value in [self.bytes_received, self.bytes_sent, self.duration.round()] {
            out.push(b' ');
            number(out, value);
        }
        out.push(b' ');
        match self.upstream_service_time {
            Some(time) => number(out, time.round()),
            None => out.push(b'-'),
        }
        // The proxy neither reads nor adds `x-forwarded-for` between workloads.
        out.extend_from_slice(b" \"-\"");
        for part in [self.user_agent, self.request_id, self.authority] {
            out.extend_from_slice(b" \"");
            escape(out, part);
            out.push(b'"');
        }
        match &self.upstream_host {
            Some(at) => {
                out.extend_from_slice(b" \"");
                address(out, at);
                out.extend_from_slice(b"\" ");
            }
            None => out.extend_from_slice(b" \"-\" "),
        }
        escape(out, self.upstream_cluster);
        for at in [&self.downstream_local_address, &self.downstream_remote_address] {
            out.push(b' ');
            address(out, at);
        }
        out.push(b' ');
        match self.downstream_peer {
            Some(identity) => put(out, format_args!("{identity} ")),
            None => out.extend_from_slice(b"- "),
        }
        escape(out, self.route_name);
        out.extend_from_slice(b" \"");
        escape(out, self.response_code_details);
        out.extend_from_slice(b"\"\n");
    }
}

/// Milliseconds, to the microsecond.
#[derive(Clone, Copy, Debug, Serialize)]
struct Milliseconds(f64);

/// Without the machinery of `fmt`, which took a third of a line's time.
fn number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn address(out: &mut Vec<u8>, at: &SocketAddr) {
    let SocketAddr::V4(at) = at else { return put(out, format_args!("{at}")) };
    for (place, byte) in at.ip().octets().into_iter().enumerate() {
        if place > 0 {
            out.push(b'.');
        }
        number(out, u64::from(byte));
    }
    out.push(b':');
    number(out, u64::from(at.port()));
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to memory cannot fail.
    let _ = out.write_fmt(text);
}

/// Clients choose paths and headers: nothing of them may end a line or a quoted part.
fn escape(out: &mut Vec<u8>, text: Option<&str>) {
    let Some(text) = text else { return out.push(b'-') };
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')) {
        return out.extend_from_slice(text.as_bytes());
    }
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend([b'\\', c as u8]),
            c if c.is_control() => put(out, format_args!("{}", c.escape_default())),
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// When it began.
#[derive(Clone, Copy, Debug)]
struct Start(Timestamp);

impl Start {
    fn of(now: Timestamp, duration: Duration) -> Self {
        Self(now.checked_sub(duration).unwrap_or(now))
    }
}

thread_local! {
    /// The second that a thread wrote last, and how it is written.
    static SECOND: Cell<(i64, [u8; 19])> = const { Cell::new((i64::MIN, [0; 19])) };
}

impl Start {
    /// As it is displayed; the calendar is asked once a second.
    fn put(self, out: &mut Vec<u8>) {
        let (second, milliseconds) = (self.0.as_second(), self.0.subsec_millisecond());
        let written = SECOND.get();
        if written.0 == second && milliseconds >= 0 {
            let hundreds = [100, 10, 1].map(|place| b'0' + (milliseconds / place % 10) as u8);
            out.extend_from_slice(&written.1);
            out.push(b'.');
            out.extend_from_slice(&hundreds);
            return out.push(b'Z');
        }
        let begins = out.len();
        put(out, format_args!("{self}"));
        if let Some(text) = out[begins..].first_chunk() {
            SECOND.set((second, *text));
        }
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.0)
    }
}

impl Serialize for Start {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn shown<T: fmt::Display, S: Serializer>(shown: &Option<&T>, serializer: S) -> Result<S::Ok, S::Error> {
    match shown {
        Some(shown) => serializer.collect_str(shown),
        None => serializer.serialize_none(),
    }
}

fn milliseconds(duration: Duration) -> Milliseconds {
    Milliseconds((duration.as_secs_f64() * 1e6).round() / 1e3)
}

impl Milliseconds {
    fn round(self) -> u64 {
        // Saturates.
        self.0.round() as u64
    }
}

fn some(text: &str) -> Option<&str> {
    Some(text).filter(|it| !it.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_choose_cannot_break_a_line() {
        let mut out = Vec::new();
        escape(&mut out, Some("/a\"b\\c\r\nd\u{1b}[0mü\u{85}"));
        assert_eq!(String::from_utf8(out).unwrap(), r#"/a\"b\\c\r\nd\u{1b}[0mü\u{85}"#);
    }

    #[test]
    fn times_are_of_the_beginning() {
        let now: Timestamp = "2030-01-02T03:04:05.250Z".parse().unwrap();
        assert_eq!(Start::of(now, Duration::from_millis(1250)).to_string(), "2030-01-02T03:04:04.000Z");
    }

    #[test]
    fn what_is_written_by_hand_is_what_would_be_displayed() {
        let mut now: Timestamp = "2030-01-02T03:59:59.250Z".parse().unwrap();
        for step in [0, 1, 7, 99, 642, 1, 999, 1, 0, 86_400_000, 5] {
            now += Duration::from_millis(step) + Duration::from_micros(300);
            let start = Start(now);
            let mut out = Vec::new();
            start.put(&mut out);
            assert_eq!(String::from_utf8(out).unwrap(), start.to_string());
        }
        for text in ["0.0.0.0:0", "127.0.0.1:15001", "255.255.255.255:65535", "10.100.20.3:80", "[fd00::1]:9080"] {
            let mut out = Vec::new();
            address(&mut out, &text.parse().unwrap());
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}
