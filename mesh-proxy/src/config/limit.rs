use http::HeaderName;

use crate::limit::Rate;
use crate::pace;

/// How many requests the application is given, by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestLimit {
    pub rate: Rate,
    pub by: LimitBy,
}

/// Who has a bucket of its own. Whoever can't be told by that shares one with the likes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitBy {
    Nobody,
    Identity,
    Header(HeaderName),
}

/// What a port of the application takes at a time, how fast, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortLimits {
    /// Whose chains share one count.
    pub name: String,
    pub connections: Option<AtATime>,
    pub requests: Option<AtATime>,
    /// Bytes to the application, and from it.
    pub up: Option<PortRate>,
    pub down: Option<PortRate>,
    /// Of a request, in bytes: the names and values of its headers, and its body.
    pub max_head: Option<u64>,
    pub max_body: Option<u64>,
}

impl PortLimits {
    /// Nothing is limited.
    pub fn none(name: &str) -> Self {
        let name = name.to_owned();
        Self { name, connections: None, requests: None, up: None, down: None, max_head: None, max_body: None }
    }
}

/// One of them at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRate {
    /// Of all callers together.
    pub max: Option<pace::Rate>,
    /// Of each identity; callers that have none share one.
    pub per_caller: Option<pace::Rate>,
}

/// One of them at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtATime {
    /// Of all callers together.
    pub max: Option<u32>,
    /// Of each identity; callers that have none share one count.
    pub per_caller: Option<u32>,
}
