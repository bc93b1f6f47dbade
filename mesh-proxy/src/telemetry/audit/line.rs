//! A line of the audit log.

use std::fmt::Display;
use std::net::SocketAddr;

use jiff::Timestamp;
use mesh_common::identity::Identity;
use serde::{Serialize, Serializer};

use super::{Decision, Event, is_kept};
use crate::authorization::Refusal;
use crate::telemetry::LocalWorkload;
use crate::trace::{self, TraceId};

/// Bytes of a path, a host or a request's name.
const MAX_TEXT: usize = 2048;

#[derive(Debug, Serialize)]
pub(super) struct Line<'a> {
    #[serde(serialize_with = "shown")]
    time: Timestamp,
    event: &'static str,
    direction: &'static str,
    verdict: &'static str,
    /// That denies or allows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "shown_option")]
    reason: Option<Refusal<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dry_run_verdict: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dry_run_policy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audit_policy: Option<&'a str>,
    /// It is here by chance.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    sampled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authority: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "shown_option")]
    trace_id: Option<TraceId>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "shown_option")]
    downstream_peer: Option<&'a Identity>,
    downstream_remote_address: SocketAddr,
    downstream_local_address: SocketAddr,
    security: &'static str,
    workload: &'a str,
    namespace: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    service: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    version: &'a str,
    port: u16,
    #[serde(skip_serializing_if = "str::is_empty")]
    config_version: &'a str,
}

impl<'a> Line<'a> {
    pub(super) fn of(decision: &Decision<'a>, local: &'a LocalWorkload, now: Timestamp) -> Self {
        let Decision { event, downstream, request, verdict, config_version } = decision;
        let policy = match verdict.refused {
            Some(refusal) => named(refusal.policy()),
            None => verdict.allowed_by,
        };
        let asked = |text: fn(&super::Asked<'a>) -> &'a str| request.as_ref().and_then(|it| named(text(it))).map(cut);
        Self {
            time: now,
            event: match event {
                Event::Request => "request",
                Event::Stream => "stream",
                Event::OpenStream => "open_stream",
            },
            direction: downstream.direction.as_str(),
            verdict: if verdict.refused.is_some() { "denied" } else { "allowed" },
            policy,
            reason: verdict.refused,
            dry_run_verdict: verdict.would_refuse.map(|_| "denied"),
            dry_run_policy: verdict.would_refuse.and_then(|it| named(it.policy())),
            audit_policy: verdict.audited_by,
            sampled: !is_kept(verdict),
            method: asked(|it| it.method.as_str()),
            authority: asked(|it| it.authority),
            path: asked(|it| it.path),
            protocol: request.as_ref().map(|it| it.protocol.as_str()),
            request_id: asked(|it| it.request_id),
            trace_id: request.as_ref().and_then(|it| trace::id_in(it.headers)),
            downstream_peer: downstream.identity.as_deref(),
            downstream_remote_address: downstream.peer,
            downstream_local_address: downstream.original_destination,
            security: downstream.security().as_str(),
            workload: &local.workload,
            namespace: &local.namespace,
            service: &local.service,
            version: &local.version,
            port: downstream.original_destination.port(),
            config_version,
        }
    }

    pub(super) fn json(&self, out: &mut Vec<u8>) {
        // Strings and numbers only, to memory: nothing in a line can fail to be written as JSON.
        let _ = serde_json::to_writer(&mut *out, self);
        out.push(b'\n');
    }
}

fn named(text: &str) -> Option<&str> {
    Some(text).filter(|it| !it.is_empty())
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

fn shown<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn shown_option<S: Serializer>(value: &Option<impl Display>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}
