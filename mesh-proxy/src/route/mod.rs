//! Which route of a table takes a request: pure functions of the table and the request's head.
//!
//! Virtual hosts are chosen as in Envoy: an exact domain before the longest `*.suffix`, before the longest `prefix.*`,
//! before `*`. Within the virtual host the first route that matches decides. Paths are compared in
//! their canonical form.

mod matching;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, Method};

use crate::config::{HeaderMatch, Route, RouteTable, StringMatch, VirtualHost};

/// What routing looks at.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub method: &'a Method,
    pub authority: &'a str,
    /// Without the query.
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
    /// The content type is that of gRPC.
    pub grpc: bool,
}

pub fn find<'t>(table: &'t RouteTable, subject: &Subject<'_>) -> Option<&'t Arc<Route>> {
    let host = virtual_host(table, subject.authority)?;
    host.routes.iter().find(|route| matching::matches(&route.matches, subject))
}

/// Whether all of the matchers hold, for rules that are not routes.
pub fn headers_match(matchers: &[HeaderMatch], subject: &Subject<'_>) -> bool {
    matchers.iter().all(|matcher| matching::header(matcher, subject))
}

/// Whether a matcher holds; `None` where servers may differ, as several values of one header do not all say the same.
pub fn header_certainly(matcher: &HeaderMatch, subject: &Subject<'_>) -> Option<bool> {
    matching::header_certainly(matcher, subject)
}

pub fn text_matches(matcher: &StringMatch, text: &str) -> bool {
    matching::text(matcher, Some(text))
}

/// How well a domain fits; the greater the better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Any,
    Prefix(usize),
    Suffix(usize),
    Exact,
}

fn virtual_host<'t>(table: &'t RouteTable, authority: &str) -> Option<&'t VirtualHost> {
    // The common case: a table of one service port.
    if let [host] = table.virtual_hosts.as_slice()
        && host.domains.iter().any(|d| d == "*")
    {
        return Some(host);
    }
    let authority = lower(authority);
    let authority = if table.ignore_port { without_port(&authority) } else { &authority };
    let fits = |host: &'t VirtualHost| {
        let best = host.domains.iter().filter_map(|domain| fit(domain, authority)).max()?;
        Some((best, host))
    };
    // The first of equals wins.
    let better = |a: (Fit, &'t VirtualHost), b: (Fit, &'t VirtualHost)| if b.0 > a.0 { b } else { a };
    table.virtual_hosts.iter().filter_map(fits).reduce(better).map(|(_, host)| host)
}

fn fit(domain: &str, authority: &str) -> Option<Fit> {
    if domain == "*" {
        return Some(Fit::Any);
    }
    if let Some(suffix) = domain.strip_prefix('*') {
        return (authority.len() > suffix.len() && authority.ends_with(suffix)).then_some(Fit::Suffix(suffix.len()));
    }
    if let Some(prefix) = domain.strip_suffix('*') {
        return (authority.len() > prefix.len() && authority.starts_with(prefix)).then_some(Fit::Prefix(prefix.len()));
    }
    (domain == authority).then_some(Fit::Exact)
}

fn lower(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(text.to_ascii_lowercase())
    } else {
        Cow::Borrowed(text)
    }
}

/// The host of an authority; the colons of an IPv6 address in brackets begin no port.
pub fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            // `::1` without brackets is not a valid authority, and has no port either.
            if host.contains(':') && !host.ends_with(']') { authority } else { host }
        }
        _ => authority,
    }
}
