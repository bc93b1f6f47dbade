//! The audit log: one line for each decision about access that is to be kept. These are all that refuse something, all that
//! would if it were not on trial, all that an `AUDIT` policy matches, and a share of the others. Like the access log, it makes
//! nobody wait: what cannot be written is dropped and counted.

mod line;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, Method};
use jiff::Timestamp;
use mesh_common::rotating::RotatingFile;

use self::line::Line;
use super::LocalWorkload;
use super::writer::Writer;
use crate::authorization::Verdict;
use crate::listen::Downstream;

const NAME: &str = "audit log";

#[derive(Clone, Debug, PartialEq)]
pub struct AuditOptions {
    pub to: AuditTo,
    /// Share of what is let in by policies, or for want of any, that is written too; 0 to 1.
    pub allowed: f64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditTo {
    Stdout,
    File {
        path: PathBuf,
        /// Bytes of the file that is written and of each that is kept.
        max_bytes: u64,
        /// Full files beside it.
        keep: usize,
    },
}

/// What was decided about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Request,
    /// A byte stream, or a connection of which nobody knows yet what it will be.
    Stream,
    /// A byte stream that was let in before, by other policies.
    OpenStream,
}

/// What is written of a request: nothing that could let somebody else make one like it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub method: &'a Method,
    pub authority: &'a str,
    /// Without the query.
    pub path: &'a str,
    pub protocol: super::Protocol,
    pub request_id: &'a str,
    /// For the trace that it is part of.
    pub headers: &'a HeaderMap,
}

#[derive(Debug)]
pub struct Decision<'a> {
    pub event: Event,
    pub downstream: &'a Downstream,
    pub request: Option<Asked<'a>>,
    pub verdict: &'a Verdict<'a>,
    /// Of the configuration that it was decided by.
    pub config_version: &'a str,
}

#[derive(Debug)]
pub struct AuditLog {
    local: LocalWorkload,
    allowed: f64,
    writer: Writer,
}

impl AuditLog {
    pub(super) fn start(options: AuditOptions, local: LocalWorkload) -> io::Result<Self> {
        let writer = match options.to {
            AuditTo::Stdout => Writer::start(NAME, io::stdout()),
            AuditTo::File { path, max_bytes, keep } => Writer::start(NAME, RotatingFile::open(&path, max_bytes, keep)?),
        };
        Ok(Self { local, allowed: options.allowed, writer: writer? })
    }

    /// Whether this is to be written.
    pub fn wants(&self, verdict: &Verdict<'_>) -> bool {
        // A share of nothing costs no random number.
        is_kept(verdict) || (self.allowed > 0.0 && fastrand::f64() < self.allowed)
    }

    pub fn write(&self, decision: &Decision<'_>) {
        self.writer.line(|out| Line::of(decision, &self.local, Timestamp::now()).json(out));
    }

    pub(super) fn dropped(&self) -> u64 {
        self.writer.dropped()
    }

    pub(super) fn flush(&self, timeout: Duration) {
        self.writer.flush(timeout);
    }
}

/// Whether it is written in any case.
fn is_kept(verdict: &Verdict<'_>) -> bool {
    verdict.refused.is_some() || verdict.would_refuse.is_some() || verdict.audited_by.is_some()
}

#[cfg(test)]
mod tests;
