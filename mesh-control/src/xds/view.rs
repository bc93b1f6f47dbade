//! The words of a session: what a client may see, what it is sent, what it answers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::types::Type;
use crate::snapshot::Encoded;

/// What one client may see, at one revision of the store.
pub trait View: Send + Sync {
    fn revision(&self) -> u64;
    fn committed_at(&self) -> Instant;
    fn get(&self, ty: Type, name: &str) -> Option<Arc<Encoded>>;
    /// What the wildcard covers.
    fn names(&self, ty: Type) -> Arc<BTreeSet<String>>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Delta,
    StateOfTheWorld,
}

/// The state of a name: a resource, or the knowledge that there is none.
#[derive(Clone, Debug)]
pub enum Item {
    Absent,
    Present(Arc<Encoded>),
}

impl Item {
    pub fn encoded(&self) -> Option<&Arc<Encoded>> {
        match self {
            Self::Absent => None,
            Self::Present(encoded) => Some(encoded),
        }
    }
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Absent, Self::Absent) => true,
            (Self::Present(a), Self::Present(b)) => Arc::ptr_eq(a, b) || a.version == b.version,
            _ => false,
        }
    }
}

/// A response to send.
#[derive(Clone, Debug)]
pub struct Push {
    pub ty: Type,
    pub nonce: String,
    pub revision: u64,
    /// The version of a state-of-the-world response.
    pub version: String,
    pub resources: Vec<(String, Arc<Encoded>)>,
    /// Delta only: names that do not exist (any more).
    pub removed: Vec<String>,
}

/// A rejection that still stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nack {
    /// The client's own words.
    pub message: String,
    pub at: Instant,
    /// Revision of the snapshot that the rejected response was made from.
    pub revision: u64,
}

/// A client's answer to a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub ty: Type,
    /// The client's error message, if it refused the response.
    pub rejection: Option<String>,
    /// When the change that this response carried was committed; `None` if it only answered a question.
    pub committed_at: Option<Instant>,
}

/// How far a name has come, for the client status service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Synced,
    NotSent,
    Stale,
    Error,
}
