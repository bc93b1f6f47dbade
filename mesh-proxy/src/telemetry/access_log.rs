//! The access log: one line for each request and each byte stream, written by a thread of its own. When the reader of
//! the log is slower than the traffic, lines are dropped and counted; the data path never waits.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::{RequestRecord, TcpRecord};

/// Lines that may wait to be written.
const QUEUE: usize = 16_384;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessLog {
    #[default]
    Off,
    /// Envoy's default format, followed by what a mesh adds.
    Text,
    /// One JSON object on each line.
    Json,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an access log format; write `off`, `text` or `json`")]
pub struct AccessLogError(String);

impl FromStr for AccessLog {
    type Err = AccessLogError;

    fn from_str(text: &str) -> Result<Self, AccessLogError> {
        match text {
            "off" => Ok(Self::Off),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(AccessLogError(text.to_owned())),
        }
    }
}

impl std::fmt::Display for AccessLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

enum Job {
    Line(String),
    /// Write out what came before and confirm.
    Flush(SyncSender<()>),
}

#[derive(Debug)]
pub(super) struct Writer {
    json: bool,
    jobs: SyncSender<Job>,
    dropped: Arc<AtomicU64>,
}

impl Writer {
    /// `None` when the log is off. Ends with its last handle.
    pub(super) fn start(format: AccessLog, file: Option<&Path>) -> io::Result<Option<Self>> {
        if format == AccessLog::Off {
            return Ok(None);
        }
        let out: Box<dyn Write + Send> = match file {
            Some(path) => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
            None => Box::new(io::stdout()),
        };
        let (jobs, queue) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let lost = dropped.clone();
        std::thread::Builder::new().name("access-log".into()).spawn(move || write_lines(queue, out, &lost))?;
        Ok(Some(Self { json: format == AccessLog::Json, jobs, dropped }))
    }

    pub(super) fn request(&self, record: &RequestRecord<'_>) {
        let line = Line::of_request(record, Timestamp::now());
        self.send(if self.json { line.json() } else { line.text() });
    }

    pub(super) fn stream(&self, record: &TcpRecord<'_>) {
        let line = Line::of_stream(record, Timestamp::now());
        self.send(if self.json { line.json() } else { line.text() });
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn flush(&self, timeout: Duration) {
        let (done, written) = sync_channel(1);
        // A full queue means that the reader hangs: lines are being lost, and waiting for them is no use.
        if self.jobs.try_send(Job::Flush(done)).is_ok() && written.recv_timeout(timeout).is_err() {
            tracing::warn!("the access log could not be written out in time");
        }
    }

    fn send(&self, line: String) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.jobs.try_send(Job::Line(line)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes in blocks while lines keep coming, and at once when they don't.
fn write_lines(queue: Receiver<Job>, out: impl Write, dropped: &AtomicU64) {
    let mut out = BufWriter::with_capacity(64 * 1024, out);
    let mut failing = false;
    while let Ok(job) = queue.recv() {
        let mut next = Ok(job);
        loop {
            let written = match next {
                Ok(Job::Line(line)) => out.write_all(line.as_bytes()),
                Ok(Job::Flush(done)) => {
                    let flushed = out.flush();
                    // Whoever asked may have stopped waiting.
                    done.try_send(()).ok();
                    flushed
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            };
            note(written, &mut failing, dropped);
            next = queue.try_recv();
        }
        note(out.flush(), &mut failing, dropped);
    }
}

fn note(result: io::Result<()>, failing: &mut bool, dropped: &AtomicU64) {
    match result {
        Ok(()) => *failing = false,
        Err(error) => {
            dropped.fetch_add(1, Ordering::Relaxed);
            if !*failing {
                tracing::warn!(%error, "the access log cannot be written; lines are lost until it can");
            }
            *failing = true;
        }
    }
}

/// What a line says, whatever its format.
#[derive(Debug, Serialize)]
struct Line<'a> {
    start_time: String,
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
    duration: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_service_time: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authority: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_workload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_cluster: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_request_attempt_count: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route_name: Option<&'a str>,
    downstream_remote_address: String,
    downstream_local_address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    downstream_peer: Option<String>,
    security: &'static str,
}

impl<'a> Line<'a> {
    fn of_request(record: &'a RequestRecord<'_>, now: Timestamp) -> Self {
        Self {
            start_time: start(now, record.duration),
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
            authority: some(record.authority),
            upstream_host: record.endpoint.map(|it| it.address.to_string()),
            upstream_workload: record.endpoint.and_then(|it| it.workload.as_ref()).and_then(|it| some(&it.workload)),
            upstream_cluster: some(record.cluster),
            upstream_request_attempt_count: Some(record.attempts),
            route_name: some(record.route),
            downstream_remote_address: record.downstream.peer.to_string(),
            downstream_local_address: record.downstream.original_destination.to_string(),
            downstream_peer: record.downstream.identity.as_ref().map(|it| it.to_string()),
            security: record.security.as_str(),
        }
    }

    fn of_stream(record: &'a TcpRecord<'_>, now: Timestamp) -> Self {
        Self {
            start_time: start(now, record.duration),
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
            authority: None,
            upstream_host: record.endpoint.map(|it| it.address.to_string()),
            upstream_workload: record.endpoint.and_then(|it| it.workload.as_ref()).and_then(|it| some(&it.workload)),
            upstream_cluster: some(record.cluster),
            upstream_request_attempt_count: None,
            route_name: None,
            downstream_remote_address: record.downstream.peer.to_string(),
            downstream_local_address: record.downstream.original_destination.to_string(),
            downstream_peer: record.downstream.identity.as_ref().map(|it| it.to_string()),
            security: record.security.as_str(),
        }
    }

    fn json(&self) -> String {
        // Strings and numbers only: nothing in a line can fail to be written as JSON.
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }

    /// `[START_TIME] "METHOD PATH PROTOCOL" RESPONSE_CODE RESPONSE_FLAGS BYTES_RECEIVED BYTES_SENT DURATION
    /// UPSTREAM_SERVICE_TIME "X-FORWARDED-FOR" "USER-AGENT" "X-REQUEST-ID" "AUTHORITY" "UPSTREAM_HOST"`, and after it
    /// `UPSTREAM_CLUSTER DOWNSTREAM_LOCAL_ADDRESS DOWNSTREAM_REMOTE_ADDRESS DOWNSTREAM_PEER ROUTE_NAME
    /// "RESPONSE_CODE_DETAILS"`.
    fn text(&self) -> String {
        let mut out = String::with_capacity(384);
        // Writing to a string cannot fail.
        let _ = write!(out, "[{}] \"", self.start_time);
        for part in [self.method, self.path] {
            escape(&mut out, part);
            out.push(' ');
        }
        let _ = write!(
            out,
            "{}\" {} {} {} {} {:.0} ",
            self.protocol, self.response_code, self.response_flags, self.bytes_received, self.bytes_sent, self.duration
        );
        match self.upstream_service_time {
            Some(time) => {
                let _ = write!(out, "{time:.0}");
            }
            None => out.push('-'),
        }
        // The proxy neither reads nor adds `x-forwarded-for` between workloads.
        out.push_str(" \"-\"");
        for part in [self.user_agent, self.request_id, self.authority, self.upstream_host.as_deref()] {
            out.push_str(" \"");
            escape(&mut out, part);
            out.push('"');
        }
        for part in [
            self.upstream_cluster,
            Some(&*self.downstream_local_address),
            Some(&*self.downstream_remote_address),
            self.downstream_peer.as_deref(),
            self.route_name,
        ] {
            out.push(' ');
            escape(&mut out, part);
        }
        out.push_str(" \"");
        escape(&mut out, self.response_code_details);
        out.push_str("\"\n");
        out
    }
}

/// Clients choose paths and headers: nothing of them may end a line or a quoted part.
fn escape(out: &mut String, text: Option<&str>) {
    let Some(text) = text else {
        out.push('-');
        return;
    };
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
}

fn start(now: Timestamp, duration: Duration) -> String {
    let began = now.checked_sub(duration).unwrap_or(now);
    began.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn some(text: &str) -> Option<&str> {
    Some(text).filter(|it| !it.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_choose_cannot_break_a_line() {
        let mut out = String::new();
        escape(&mut out, Some("/a\"b\\c\r\nd\u{1b}[0m"));
        assert_eq!(out, r#"/a\"b\\c\r\nd\u{1b}[0m"#);
    }

    #[test]
    fn times_are_of_the_beginning() {
        let now: Timestamp = "2030-01-02T03:04:05.250Z".parse().unwrap();
        assert_eq!(start(now, Duration::from_millis(1250)), "2030-01-02T03:04:04.000Z");
    }

    #[test]
    fn lines_are_in_order_and_flushed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let writer = Writer::start(AccessLog::Text, Some(file.path())).unwrap().unwrap();
        for i in 0..1000 {
            writer.send(format!("{i}\n"));
        }
        writer.flush(Duration::from_secs(10));
        let text = std::fs::read_to_string(file.path()).unwrap();
        let expected: String = (0..1000).map(|i| format!("{i}\n")).collect();
        assert_eq!(text, expected);
        assert_eq!(writer.dropped(), 0);
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (jobs, queue) = sync_channel(1);
        let writer = Writer { json: false, jobs, dropped: Arc::default() };
        writer.send("first\n".into());
        writer.send("second\n".into());
        assert_eq!(writer.dropped(), 1);
        drop(queue);
        writer.send("third\n".into());
        assert_eq!(writer.dropped(), 2);
    }
}
