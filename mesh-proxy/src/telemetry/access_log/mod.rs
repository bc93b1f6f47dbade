//! The access log: one line for each request and each byte stream. When the reader of the log is slower than the traffic,
//! lines are dropped and counted; the data path never waits.

mod line;

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;

use self::line::Line;
use super::writer::Writer;
use super::{RequestRecord, TcpRecord};

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

const NAME: &str = "access log";

#[derive(Debug)]
pub(super) struct Log {
    json: bool,
    writer: Writer,
}

impl Log {
    /// `None` when the log is off.
    pub(super) fn start(format: AccessLog, file: Option<&Path>) -> io::Result<Option<Self>> {
        if format == AccessLog::Off {
            return Ok(None);
        }
        let writer = match file {
            Some(path) => Writer::start(NAME, OpenOptions::new().create(true).append(true).open(path)?),
            None => Writer::start(NAME, io::stdout()),
        };
        Ok(Some(Self { json: format == AccessLog::Json, writer: writer? }))
    }

    pub(super) fn request(&self, record: &RequestRecord<'_>) {
        self.send(&Line::of_request(record, Timestamp::now()));
    }

    pub(super) fn stream(&self, record: &TcpRecord<'_>) {
        self.send(&Line::of_stream(record, Timestamp::now()));
    }

    pub(super) fn dropped(&self) -> u64 {
        self.writer.dropped()
    }

    pub(super) fn flush(&self, timeout: Duration) {
        self.writer.flush(timeout);
    }

    fn send(&self, line: &Line<'_>) {
        self.writer.line(|out| if self.json { line.json(out) } else { line.text(out) });
    }
}
