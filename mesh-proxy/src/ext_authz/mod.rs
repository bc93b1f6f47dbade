//! Somebody else who decides about requests, by Envoy's protocols for external authorization.
//!
//! In: the head of a request, and the beginning of its body where that is to be told. Out: the request with what the answer
//! changes, or the refusal. No answer, or none that can be used, refuses unless the policy says otherwise; what cannot be put
//! as a question is refused whatever it says. The question goes the way of all requests, through the pool of the provider's
//! cluster and within its limits.

mod answer;
mod question;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, StatusCode};
use mesh_common::names::HEADER_DOWNSTREAM_PROTOCOL;

pub(crate) use answer::Change;

use crate::authorization::{Refusal, Subject, possible};
use crate::config::{AskedBody, Authorizer, AuthorizerProtocol};
use crate::error::{Error, Kind, Retry, Side};
use crate::http::{Exchange, RequestBody, concerns_connection};
use crate::jwt::Claims;
use crate::listen::{Direction, Downstream};
use crate::retry::grpc_status;
use crate::upstream::{Failed, Flow, MAX_ANSWER, Outcome as Health, Target, Version, own_version, read_answer};
use answer::Answer;
use question::Question;

/// Tells the application that nobody has answered; not taken from a client where somebody is asked.
const FAILED_OPEN: HeaderName = HeaderName::from_static("x-envoy-auth-failure-mode-allowed");
/// How many endpoints may be tried, where those before have not seen the question.
const TRIES: usize = 3;

/// What came of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Allowed,
    Denied,
    Failed,
    /// No answer, and the request was let in.
    FailedOpen,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Failed => "failed",
            Self::FailedOpen => "failed_open",
        }
    }
}

/// What the client gets of a refusal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

pub(crate) enum Refused<'m> {
    /// Nobody can be asked about it: what is to be told of it is too much, has no form, or does not come. That is for its
    /// client to choose, so that no policy lets it in for that.
    Unaskable(Refusal<'m>, Error),
    /// And, where there was no answer, why.
    By(Refusal<'m>, Box<Denied>, Option<String>),
}

/// Asks everybody whose policies may match; the name of the last of these policies by which somebody let it in, if there was any.
pub(crate) async fn ask<'m>(
    authorizers: &'m [Authorizer],
    exchange: &mut Exchange,
    claims: Option<&Claims>,
) -> Result<Option<&'m str>, Refused<'m>> {
    let mut asked = None;
    // Whether a policy lets in without an answer or not: the application believes it.
    exchange.head.headers.remove(FAILED_OPEN);
    let conn = exchange.conn.clone();
    let tell = |outcome| conn.ctx.telemetry.asked_elsewhere(outcome);
    for authorizer in authorizers {
        let subject = Subject::new(&conn.downstream, conn.identity.as_deref(), Some(exchange.head.subject()));
        let Some(policy) = possible(&authorizer.policies, &Subject { claims, ..subject }) else { continue };
        let unaskable = |error: Error| Refused::Unaskable(Refusal::Unaskable(&policy.name), error);
        let body = match authorizer.body {
            Some(wanted) => Some(beginning(exchange, wanted).await.map_err(unaskable)?),
            None => None,
        };
        let question = Question::new(authorizer, exchange, body).map_err(unaskable)?;
        let answer = put(authorizer, exchange, &question).await;
        match answer {
            Ok(Answer::Allowed(changes)) => {
                tell(Outcome::Allowed);
                changes.apply(exchange);
                asked = Some(policy.name.as_str());
            }
            Ok(Answer::Denied(mut denied)) => {
                tell(Outcome::Denied);
                if exchange.head.method == Method::CONNECT && denied.status.is_success() {
                    // Its client would take it for a tunnel.
                    denied.status = StatusCode::FORBIDDEN;
                }
                return Err(Refused::By(Refusal::DeniedElsewhere(&policy.name), Box::new(denied), None));
            }
            // It is the request that no message can carry.
            Err(error) if error.kind.side() == Side::Downstream => return Err(unaskable(error)),
            Err(error) if authorizer.fail_open => {
                tell(Outcome::FailedOpen);
                tracing::debug!(policy = policy.name, %error, "a request is let in without an answer");
                if authorizer.marks_failure {
                    exchange.head.headers.insert(FAILED_OPEN, HeaderValue::from_static("true"));
                }
            }
            Err(error) => {
                tell(Outcome::Failed);
                let body = Bytes::from(Kind::Denied.to_string());
                let denied = Denied { status: authorizer.status_on_error, headers: HeaderMap::new(), body };
                let refusal = Refusal::Unanswered(&policy.name);
                return Err(Refused::By(refusal, Box::new(denied), Some(error.to_string())));
            }
        }
    }
    Ok(asked)
}

/// Of each message for itself, or said by proxies only: not taken from others, and not told over HTTP.
fn is_fixed(name: &HeaderName) -> bool {
    let name = name.as_str();
    concerns_connection(name)
        || ["host", "content-length", "expect", "x-forwarded-client-cert", HEADER_DOWNSTREAM_PROTOCOL].contains(&name)
}

/// What is told of the body, and whether that is only a part of it.
async fn beginning(exchange: &mut Exchange, wanted: AskedBody) -> Result<(Bytes, bool), Error> {
    let (data, more) = Box::pin(exchange.peek(wanted.max, wanted.partial)).await?;
    if more && !wanted.partial {
        return Err(Error::because(Kind::BodyTooLarge, format_args!("{} bytes of it are told", wanted.max)));
    }
    Ok((data, more))
}

/// Asks, and waits for the answer.
async fn put(authorizer: &Authorizer, exchange: &Exchange, question: &Question) -> Result<Answer, Error> {
    let began = Instant::now();
    let left = || authorizer.timeout.saturating_sub(began.elapsed());
    let view = exchange.conn.ctx.upstreams.view(&authorizer.cluster);
    let view = tokio::time::timeout(left(), view).await.unwrap_or_else(|_| Err(late()))?;
    let _in_use = view.usage.request(&view.cluster.limits)?;
    // The proxy itself asks.
    let nowhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
    let downstream = Downstream::new(nowhere, nowhere, Direction::Outbound);
    let grpc = matches!(authorizer.protocol, AuthorizerProtocol::Grpc);
    let mut tried = Vec::new();
    loop {
        let target = view.choose(&downstream, &tried, None)?;
        let version = own_version(&target, grpc);
        let request = question.request(&target, version, exchange.trace.as_ref())?;
        // One that takes no connection leaves time for those after it.
        let others = TRIES.min(view.choices()).saturating_sub(tried.len()).max(1);
        let patience = left() / u32::try_from(others).unwrap_or(1);
        match try_once(&target, request, version, grpc, (patience, &left)).await {
            Ok((head, body, trailers)) if grpc => {
                return answer::of_grpc(head.status, &head.headers, body, trailers.as_ref());
            }
            Ok((head, body, _)) => return answer::of_http(authorizer, head, body),
            Err(Failed { error, stale, .. }) => {
                tried.push(target.address());
                let unseen = stale || error.kind.retry() == Retry::Safe;
                if !unseen || tried.len() == TRIES || left().is_zero() {
                    return Err(error);
                }
            }
        }
    }
}

fn late() -> Error {
    Error::because(Kind::Timeout, "no answer in time")
}

type Whole = (http::response::Parts, Bytes, Option<HeaderMap>);

/// `patience`: how long a connection may take; `left`: and then the answer.
async fn try_once(
    target: &Target,
    request: Request<RequestBody>,
    version: Version,
    grpc: bool,
    (patience, left): (Duration, &impl Fn() -> Duration),
) -> Result<Whole, Failed> {
    let began = Instant::now();
    let outcome = match target.connected(version, Flow::Free, patience).await {
        // What an endpoint does not answer in time tells of it as an error does.
        Ok(()) => {
            tokio::time::timeout(left(), whole(target, request, version)).await.unwrap_or_else(|_| Err(late().into()))
        }
        Err(error) => Err(error.into()),
    };
    let now = Instant::now();
    target.took(now - began, outcome.is_ok(), now);
    match &outcome {
        Ok((head, _, trailers)) => {
            let code = trailers.as_ref().and_then(grpc_status).or_else(|| grpc_status(&head.headers));
            let health = match code.filter(|_| grpc) {
                Some(code) => Health::of_grpc(code),
                None => Health::of_status(head.status),
            };
            target.observe(health, || now);
        }
        Err(failed) => {
            if let Some(health) = Health::of_error(failed.error.kind).filter(|_| !failed.stale) {
                target.observe(health, || now);
            }
        }
    }
    outcome
}

async fn whole(target: &Target, request: Request<RequestBody>, version: Version) -> Result<Whole, Failed> {
    let (head, body) = target.send(request, version, Flow::Free).await?.into_parts();
    let (data, trailers) = read_answer(body).await?;
    if data.len() > MAX_ANSWER {
        return Err(Error::because(Kind::UpstreamProtocol, "an answer that is too long").into());
    }
    Ok((head, data, trailers))
}
