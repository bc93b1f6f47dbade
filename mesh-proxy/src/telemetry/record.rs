use std::time::Duration;

use http::Method;

use crate::authorization::Verdict;
use crate::config::{Endpoint, Route};
use crate::listen::{Downstream, Security};
use crate::tap::Noted;
use crate::trace::TraceId;

/// The most of a text that a client chooses, in bytes.
const MAX_TEXT: usize = 256;

/// The beginning of a text that may be long.
pub(crate) fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or_default()
}

/// What a request spoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Http10,
    Http11,
    Http2,
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

impl From<http::Version> for Protocol {
    fn from(version: http::Version) -> Self {
        match version {
            http::Version::HTTP_2 => Self::Http2,
            http::Version::HTTP_10 | http::Version::HTTP_09 => Self::Http10,
            _ => Self::Http11,
        }
    }
}

/// One HTTP request that ended.
#[derive(Debug)]
pub struct RequestRecord<'a> {
    pub downstream: &'a Downstream,
    pub method: &'a Method,
    /// With the query.
    pub path: &'a str,
    pub authority: &'a str,
    pub protocol: Protocol,
    /// Zero: no response was sent.
    pub status: u16,
    /// Set for gRPC requests.
    pub grpc_status: Option<u32>,
    /// Envoy's response flags, empty when all went well.
    pub flags: &'static str,
    /// From the first byte of the request to the last one of the response.
    pub duration: Duration,
    /// From the first byte of the request to the first one of the upstream's response.
    pub upstream_duration: Option<Duration>,
    /// Bodies only.
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// Name of the route, empty when none matched.
    pub route: &'a str,
    /// The route itself.
    pub rule: Option<&'a Route>,
    /// Name of the route configuration, which is that of the service's port that was called; empty when it is not known.
    pub called: &'a str,
    /// Name of the cluster, empty when none was chosen.
    pub cluster: &'a str,
    pub endpoint: Option<&'a Endpoint>,
    /// Between this proxy and the other one.
    pub security: Security,
    /// Requests sent upstream for this one.
    pub attempts: u32,
    pub request_id: &'a str,
    pub user_agent: &'a str,
    /// Why it failed.
    pub detail: Option<&'a str>,
    /// The trace that it belongs to, where tracing is on.
    pub trace: Option<TraceId>,
    /// What a tap wants to know, if one was open when the request began.
    pub(crate) noted: Option<&'a Noted>,
}

/// One byte stream, as it began or ended.
#[derive(Debug)]
pub struct TcpRecord<'a> {
    pub downstream: &'a Downstream,
    /// Name of the service's port that was called; empty when it is not known.
    pub called: &'a str,
    /// Empty when none was chosen.
    pub cluster: &'a str,
    pub endpoint: Option<&'a Endpoint>,
    pub security: Security,
    /// Envoy's response flags, empty when all went well.
    pub flags: &'static str,
    pub duration: Duration,
    /// From downstream to upstream.
    pub received_bytes: u64,
    /// From upstream to downstream.
    pub sent_bytes: u64,
    pub detail: Option<&'a str>,
    /// What the policies say of it, and by the end what the last ones have said; `None` if none is about it.
    pub verdict: Option<Verdict<'a>>,
}
