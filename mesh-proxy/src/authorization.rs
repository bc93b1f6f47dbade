//! Who may come in: pure functions of the gates, the connection and, over HTTP, the request.
//!
//! A condition may be neither met nor missed: one about HTTP on a byte stream, about a header whose values do not agree, or
//! about a path that servers read in different ways. What is not certain never lets anybody in: it refuses at a `DENY`,
//! and does not allow at an `ALLOW`. An `AUDIT` records it.

use std::fmt;
use std::net::SocketAddr;

use http::Method;

use crate::config::{Authorization, Condition, Gate, GateAction, Policy, StringMatch};
use crate::error::{Error, Kind};
use crate::jwt::{self, Claims};
use crate::listen::Downstream;
use crate::path::OtherReading;
use crate::route;
use crate::telemetry::Telemetry;

pub mod addresses;
pub(crate) mod audit;
pub mod datagrams;
pub mod explain;

/// What the gates look at.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub peer: SocketAddr,
    pub destination: SocketAddr,
    /// The SPIFFE ID that the peer proved to have.
    pub identity: Option<&'a str>,
    pub request: Option<route::Subject<'a>>,
    /// What the request's token says, if it has one.
    pub claims: Option<&'a Claims>,
}

impl<'a> Subject<'a> {
    pub fn new(downstream: &Downstream, identity: Option<&'a str>, request: Option<route::Subject<'a>>) -> Self {
        Self { peer: downstream.peer, destination: downstream.original_destination, identity, request, claims: None }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict<'a> {
    /// Why it is refused; `None` if it is not.
    pub refused: Option<Refusal<'a>>,
    /// The first gate on trial that would have refused it.
    pub would_refuse: Option<Refusal<'a>>,
    /// The policy of the last `ALLOW` gate that let it in, if there is such a gate.
    pub allowed_by: Option<&'a str>,
    /// The first policy that wants it recorded.
    pub audited_by: Option<&'a str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal<'a> {
    /// This policy denies it.
    Denied(&'a str),
    /// Who is asked by this policy denies it.
    DeniedElsewhere(&'a str),
    /// Who is asked by this policy gives no answer.
    Unanswered(&'a str),
    /// This policy asks, and nobody can be asked about it.
    Unaskable(&'a str),
    /// No policy allows it.
    NotAllowed,
    /// Something else than a policy refuses it, for this reason.
    Otherwise(&'a str),
}

impl<'a> Verdict<'a> {
    /// The policy that made the difference: the one that denies, or the one that allows. Empty if there is none.
    pub fn deciding(&self) -> &'a str {
        self.refused.map_or(self.allowed_by.unwrap_or_default(), |refusal| refusal.policy())
    }

    /// Counts what policies on trial would refuse, and refuses what the others do.
    pub fn enforce(&self, telemetry: &Telemetry) -> Result<(), Error> {
        if let Some(refusal) = &self.would_refuse {
            telemetry.would_refuse(refusal.policy());
        }
        match &self.refused {
            Some(refusal) => Err(Error::because(Kind::Denied, refusal)),
            None => Ok(()),
        }
    }
}

impl<'a> Refusal<'a> {
    /// The name of the policy that denies; empty if none does.
    pub fn policy(&self) -> &'a str {
        match self {
            Self::Denied(policy)
            | Self::DeniedElsewhere(policy)
            | Self::Unanswered(policy)
            | Self::Unaskable(policy) => policy,
            Self::NotAllowed | Self::Otherwise(_) => "",
        }
    }
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(policy) => write!(f, "denied by the policy {policy}"),
            Self::DeniedElsewhere(policy) => write!(f, "denied by whom the policy {policy} asks"),
            Self::Unanswered(policy) => write!(f, "no answer of whom the policy {policy} asks"),
            Self::Unaskable(policy) => write!(f, "the policy {policy} asks, and nobody can be asked about this"),
            Self::NotAllowed => f.write_str("allowed by no policy"),
            Self::Otherwise(reason) => f.write_str(reason),
        }
    }
}

pub fn decide<'a>(authorization: &'a Authorization, subject: &Subject<'_>) -> Verdict<'a> {
    let mut verdict = Verdict::default();
    for gate in &authorization.gates {
        match (ask(gate, subject), gate.dry_run) {
            (Answer::Nothing, _) => (),
            (Answer::Records(policy), _) => verdict.audited_by = verdict.audited_by.or(Some(policy)),
            (Answer::Allows(policy), false) => verdict.allowed_by = Some(policy),
            (Answer::Allows(_), true) => (),
            (Answer::Refuses(refusal), true) => verdict.would_refuse = verdict.would_refuse.or(Some(refusal)),
            (Answer::Refuses(refusal), false) => {
                // Whoever comes after it has no say, and an `ALLOW` before it did not decide.
                return Verdict { refused: Some(refusal), allowed_by: None, ..verdict };
            }
        }
    }
    verdict
}

/// What a gate says.
enum Answer<'a> {
    /// A `DENY` or an `AUDIT` that does not match.
    Nothing,
    Allows(&'a str),
    Refuses(Refusal<'a>),
    Records(&'a str),
}

fn ask<'a>(gate: &'a Gate, subject: &Subject<'_>) -> Answer<'a> {
    // What is not certain counts as a match, but at an `ALLOW`.
    let possible = || possible(&gate.policies, subject);
    match gate.action {
        GateAction::Deny => possible().map_or(Answer::Nothing, |it| Answer::Refuses(Refusal::Denied(&it.name))),
        GateAction::Audit => possible().map_or(Answer::Nothing, |it| Answer::Records(&it.name)),
        GateAction::Allow => {
            let certain = gate.policies.iter().find(|policy| matches(policy, subject) == Some(true));
            certain.map_or(Answer::Refuses(Refusal::NotAllowed), |it| Answer::Allows(&it.name))
        }
    }
}

/// The first policy that matches, or may.
pub fn possible<'p>(policies: &'p [Policy], subject: &Subject<'_>) -> Option<&'p Policy> {
    policies.iter().find(|policy| matches(policy, subject) != Some(false))
}

/// Whether a policy matches; `None` if that is not certain.
pub fn matches(policy: &Policy, subject: &Subject<'_>) -> Option<bool> {
    // Who comes is found out faster than what they want.
    match one_of(&policy.principals, subject) {
        Some(false) => Some(false),
        principals => both(principals, one_of(&policy.permissions, subject)),
    }
}

/// Whether a condition is met; `None` if that is not certain.
pub fn holds(condition: &Condition, subject: &Subject<'_>) -> Option<bool> {
    let request = subject.request.as_ref();
    match condition {
        Condition::Any => Some(true),
        Condition::All(all) => {
            let mut result = Some(true);
            for condition in all {
                result = both(result, holds(condition, subject));
                if result == Some(false) {
                    break;
                }
            }
            result
        }
        Condition::OneOf(any) => one_of(any, subject),
        Condition::Not(condition) => holds(condition, subject).map(|holds| !holds),
        Condition::Header(matcher) => route::header_certainly(matcher, request?),
        Condition::Path(matcher) => path(matcher, request?),
        Condition::Port(range) => Some(range.contains(&subject.destination.port())),
        Condition::Destination(range) => Some(range.contains(&subject.destination.ip())),
        Condition::Source(range) => Some(range.contains(&subject.peer.ip())),
        Condition::Authenticated => Some(subject.identity.is_some()),
        Condition::Claim(matcher) => {
            // Only requests have any.
            request?;
            jwt::holds(matcher, subject.claims)
        }
        Condition::Identity(matcher) => Some(subject.identity.is_some_and(|it| route::text_matches(matcher, it))),
    }
}

fn one_of(conditions: &[Condition], subject: &Subject<'_>) -> Option<bool> {
    let mut result = Some(false);
    for condition in conditions {
        match holds(condition, subject) {
            Some(true) => return Some(true),
            Some(false) => (),
            None => result = None,
        }
    }
    result
}

fn both(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    match (a, b) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}

fn path(matcher: &StringMatch, request: &route::Subject<'_>) -> Option<bool> {
    // A tunnel has none.
    if *request.method == Method::CONNECT {
        return None;
    }
    let matched = route::text_matches(matcher, request.path);
    let agrees = match OtherReading::of(request.path) {
        None => true,
        Some(other) => route::text_matches(matcher, other.as_str()) == matched,
    };
    agrees.then_some(matched)
}

#[cfg(test)]
mod tests;
