//! The one error of the data path: what failed, on which side, whether a retry is safe, and how it is shown.

use std::fmt;

use http::StatusCode;

#[derive(Debug, thiserror::Error)]
#[error("{kind}{}", .detail.as_deref().map(|d| format!(": {d}")).unwrap_or_default())]
pub struct Error {
    pub kind: Kind,
    /// What the operating system, TLS or HTTP said, for logs; never sent to a client.
    pub detail: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// No route matches.
    NoRoute,
    /// The route names a cluster that does not exist (or all its backends are missing).
    NoCluster,
    /// The cluster has no healthy endpoint.
    NoHealthyUpstream,
    /// The upstream did not accept a connection.
    UpstreamConnect,
    /// TLS with the upstream failed: wrong identity, expired certificate, no common protocol.
    UpstreamTls,
    /// The upstream connection broke before any byte of the request was written.
    UpstreamResetBeforeRequest,
    /// The upstream connection broke after that.
    UpstreamReset,
    /// The upstream refused the stream (HTTP/2 REFUSED_STREAM, GOAWAY): it did not process it.
    UpstreamRefused,
    /// The upstream's reply is not HTTP.
    UpstreamProtocol,
    /// The request's timeout ran out.
    Timeout,
    PerTryTimeout,
    /// A stream was idle for too long.
    StreamIdle,
    /// A circuit breaker is open.
    Overflow,
    /// The downstream went away.
    Downstream,
    /// The downstream's bytes are not what the protocol allows.
    DownstreamProtocol,
    /// The request's head has more headers than the proxy takes.
    HeadTooLarge,
    /// The request's body is longer than the application takes.
    BodyTooLarge,
    /// An injected fault.
    Fault,
    /// More requests than the application takes.
    RateLimited,
    /// More connections at a time than the application takes.
    TooManyConnections,
    /// More requests at a time than the application takes.
    TooManyAtOnce,
    /// The proxy itself is short of memory or processor time.
    Overloaded,
    /// The request's token proves nothing.
    Unauthenticated,
    /// A policy forbids it.
    Denied,
    /// A configuration that is not here yet, from a control plane that does not answer.
    Configuration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Downstream,
    Upstream,
    Proxy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The upstream has not seen the request.
    Safe,
    /// It may have: only an idempotent request may be sent again.
    IfIdempotent,
    Never,
}

/// The gRPC specification's mapping from HTTP.
pub fn grpc_status_of(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

impl Error {
    pub fn new(kind: Kind) -> Self {
        Self { kind, detail: None }
    }

    pub fn because(kind: Kind, detail: impl fmt::Display) -> Self {
        Self { kind, detail: Some(detail.to_string()) }
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Self::new(kind)
    }
}

impl Kind {
    pub fn side(self) -> Side {
        match self {
            Self::Downstream | Self::DownstreamProtocol | Self::HeadTooLarge | Self::BodyTooLarge => Side::Downstream,
            Self::NoRoute
            | Self::NoCluster
            | Self::Overflow
            | Self::Fault
            | Self::RateLimited
            | Self::TooManyConnections
            | Self::TooManyAtOnce
            | Self::Overloaded
            | Self::Unauthenticated
            | Self::Denied
            | Self::Configuration => Side::Proxy,
            _ => Side::Upstream,
        }
    }

    pub fn retry(self) -> Retry {
        match self {
            Self::UpstreamConnect | Self::UpstreamTls | Self::UpstreamResetBeforeRequest | Self::UpstreamRefused => {
                Retry::Safe
            }
            Self::Overloaded => Retry::Safe,
            Self::UpstreamReset | Self::PerTryTimeout => Retry::IfIdempotent,
            _ => Retry::Never,
        }
    }

    /// Envoy's response flag.
    pub fn flag(self) -> &'static str {
        match self {
            Self::NoRoute => "NR",
            Self::NoCluster => "NC",
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamConnect | Self::UpstreamTls => "UF",
            Self::UpstreamResetBeforeRequest | Self::UpstreamReset => "UC",
            Self::UpstreamRefused => "UR",
            Self::UpstreamProtocol => "UPE",
            Self::Timeout | Self::PerTryTimeout => "UT",
            Self::StreamIdle => "SI",
            Self::Overflow | Self::TooManyConnections | Self::TooManyAtOnce => "UO",
            Self::Downstream => "DC",
            Self::DownstreamProtocol | Self::HeadTooLarge | Self::BodyTooLarge => "DPE",
            Self::Fault => "FI",
            Self::RateLimited => "RL",
            Self::Overloaded => "OM",
            Self::Unauthenticated | Self::Denied => "UAEX",
            Self::Configuration => "NFCF",
        }
    }

    /// Status of the reply that the proxy makes itself.
    pub fn status(self) -> StatusCode {
        match self {
            Self::NoRoute => StatusCode::NOT_FOUND,
            // Gateway API: a rule whose backends do not exist answers 500.
            Self::NoCluster => StatusCode::INTERNAL_SERVER_ERROR,
            Self::UpstreamProtocol => StatusCode::BAD_GATEWAY,
            Self::Timeout | Self::PerTryTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::StreamIdle => StatusCode::REQUEST_TIMEOUT,
            Self::Downstream | Self::DownstreamProtocol => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::Denied => StatusCode::FORBIDDEN,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// When to come again, in seconds, where that helps and nothing better is known.
    pub fn retry_after(self) -> Option<u32> {
        matches!(self, Self::TooManyAtOnce).then_some(1)
    }

    /// The gRPC status of that reply, by the mapping of the gRPC specification with Envoy's choice for timeouts.
    pub fn grpc_status(self) -> u32 {
        match self {
            Self::NoRoute => 12,
            Self::Timeout | Self::PerTryTimeout | Self::StreamIdle => 4,
            // Not UNAVAILABLE, Envoy's default, which clients and proxies try again: that would make more of what is too much.
            Self::RateLimited | Self::TooManyAtOnce => 8,
            Self::Unauthenticated => 16,
            Self::Denied => 7,
            Self::HeadTooLarge | Self::BodyTooLarge => 8,
            Self::Downstream | Self::DownstreamProtocol => 13,
            _ => 14,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRoute => "no route matches this request",
            Self::NoCluster => "the route's backend does not exist",
            Self::NoHealthyUpstream => "no healthy upstream",
            Self::UpstreamConnect => "could not connect to the upstream",
            Self::UpstreamTls => "mutual TLS with the upstream failed",
            Self::UpstreamResetBeforeRequest => "the upstream closed the connection before the request was sent",
            Self::UpstreamReset => "the upstream closed the connection",
            Self::UpstreamRefused => "the upstream refused the stream",
            Self::UpstreamProtocol => "the upstream's reply is not valid",
            Self::Timeout => "the upstream did not answer in time",
            Self::PerTryTimeout => "the upstream did not answer this try in time",
            Self::StreamIdle => "the stream was idle for too long",
            Self::Overflow => "too many requests for this upstream",
            Self::Downstream => "the client went away",
            Self::DownstreamProtocol => "the request is not valid",
            Self::HeadTooLarge => "the request has too many headers",
            Self::BodyTooLarge => "the request's body is too long",
            Self::Fault => "fault injected",
            Self::RateLimited => "too many requests",
            Self::TooManyConnections => "too many connections",
            Self::TooManyAtOnce => "too many requests at a time",
            Self::Overloaded => "the proxy has too much to do",
            Self::Unauthenticated => "the token is not valid",
            Self::Denied => "not allowed",
            Self::Configuration => "no configuration for this destination yet",
        })
    }
}
