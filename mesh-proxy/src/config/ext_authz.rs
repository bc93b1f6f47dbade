use std::time::Duration;

use http::StatusCode;
use http::uri::Authority;

use super::{Policy, StringMatch};

/// Envoy's external authorization filter: somebody who is asked about requests, and decides.
#[derive(Debug)]
pub struct Authorizer {
    /// It is asked about what one of these matches, or may match.
    pub policies: Vec<Policy>,
    pub cluster: String,
    pub authority: Authority,
    /// For the whole answer. More than zero.
    pub timeout: Duration,
    pub protocol: AuthorizerProtocol,
    /// Names of headers that are told. `None`: over gRPC all, and over HTTP only `authorization`, which is told in any case.
    pub headers: Option<Vec<StringMatch>>,
    pub body: Option<AskedBody>,
    /// Where there is no answer, the request is let in.
    pub fail_open: bool,
    /// And its application is told so.
    pub marks_failure: bool,
    /// Of the response where there is no answer.
    pub status_on_error: StatusCode,
}

#[derive(Debug)]
pub enum AuthorizerProtocol {
    Grpc,
    Http {
        /// Before the request's path.
        prefix: String,
        /// Headers of the answer that the application gets.
        to_upstream: Vec<StringMatch>,
        /// Headers of a refusal that the client gets. `None`: all.
        to_client: Option<Vec<StringMatch>>,
    },
}

/// What is told of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskedBody {
    pub max: usize,
    /// Of one that is longer, only the beginning is told.
    pub partial: bool,
    /// Over gRPC, in the field for bytes.
    pub as_bytes: bool,
}
