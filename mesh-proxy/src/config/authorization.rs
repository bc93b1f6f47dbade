use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::{ClaimMatch, HeaderMatch, StringMatch};

/// Who may come in: the gates that a request or a connection passes, in order.
#[derive(Debug, Default)]
pub struct Authorization {
    pub gates: Vec<Gate>,
}

/// One of Envoy's RBAC filters.
#[derive(Debug)]
pub struct Gate {
    pub action: GateAction,
    /// It only counts what it would refuse.
    pub dry_run: bool,
    /// In the order of their names.
    pub policies: Vec<Policy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateAction {
    /// What no policy matches is refused.
    Allow,
    /// What a policy matches is refused.
    Deny,
    /// What a policy matches is recorded, whatever becomes of it.
    Audit,
}

impl Gate {
    /// Whether it can refuse anything.
    pub fn is_in_force(&self) -> bool {
        !self.dry_run && self.action != GateAction::Audit
    }
}

/// Matches what one of the permissions and one of the principals match.
#[derive(Debug)]
pub struct Policy {
    pub name: String,
    pub permissions: Vec<Condition>,
    pub principals: Vec<Condition>,
}

#[derive(Debug)]
pub enum Condition {
    Any,
    All(Vec<Condition>),
    OneOf(Vec<Condition>),
    Not(Box<Condition>),
    Header(HeaderMatch),
    /// Without the query.
    Path(StringMatch),
    /// That the connection was going to.
    Port(RangeInclusive<u16>),
    Destination(IpNet),
    /// Who connected.
    Source(IpNet),
    /// The peer proved an identity.
    Authenticated,
    /// The SPIFFE ID that the peer proved to have.
    Identity(StringMatch),
    /// Of the request's token, which was good.
    Claim(ClaimMatch),
}
