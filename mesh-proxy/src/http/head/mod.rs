//! The head of a request on its way through the proxy: what is read from it once, and the form in which it goes on.

mod connection;
mod grpc;
mod id;
mod outgoing;
mod rewrite;
mod target;

use std::time::{Duration, Instant};

use http::header::{EXPECT, HOST, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, Method, Uri};
use hyper::upgrade::OnUpgrade;
use mesh_common::names::HEADER_DOWNSTREAM_PROTOCOL;

use crate::error::{Error, Kind};
use crate::listen::{Direction, Downstream, Security};
use crate::path::PathError;
use crate::route::Subject;
use crate::upstream::Version;

pub(crate) use connection::{concerns_connection, remove_hop_by_hop};
pub(crate) use rewrite::{apply, replace_prefix};

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const DOWNSTREAM_PROTOCOL: HeaderName = HeaderName::from_static(HEADER_DOWNSTREAM_PROTOCOL);
const FORWARDED_CLIENT_CERTIFICATE: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Fields that a request may have, each part of a cookie for itself. A peer may send some more than its client had, which was
/// held to the limit for HTTP/1.
const MAX_FIELDS: usize = 256;
/// What a field takes in memory beside its text.
const FIELD_OVERHEAD: usize = 96;

/// A request's head without what concerns one connection only (RFC 9110, 7.6.1).
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) method: Method,
    /// As it came: with an authority over HTTP/2 and from clients that take the proxy for an explicit one.
    pub(crate) uri: Uri,
    pub(crate) version: http::Version,
    pub(crate) headers: HeaderMap,
    pub(crate) grpc: bool,
    pub(crate) request_id: HeaderValue,
    pub(crate) user_agent: Option<HeaderValue>,
    /// The client asks for another protocol on the connection, or for a tunnel. Taken by who makes it.
    pub(crate) upgrade: Option<OnUpgrade>,
    /// It does, and so needs an HTTP/1.1 connection upstream.
    upgrades: bool,
    /// The name of that protocol. `None` with CONNECT.
    upgrade_to: Option<HeaderValue>,
    /// The client waits for 100 (Continue).
    pub(crate) expects: bool,
    /// What the client of the other proxy spoke.
    declared: Option<Version>,
    /// Instead of the client's authority.
    authority: Option<HeaderValue>,
    /// What is wrong with it, if anything.
    pub(crate) flaw: Option<&'static str>,
    /// Its connection has too much to hold already.
    pub(crate) one_too_many: bool,
    /// Roughly what it takes in memory.
    pub(crate) size: usize,
    /// Names and values of its headers.
    pub(crate) field_bytes: usize,
    fields: usize,
    /// Why its path has no canonical form, if it has none.
    pathless: Option<PathError>,
}

/// What one look at the headers finds.
#[derive(Default)]
struct Seen {
    connection: bool,
    of_connection: bool,
    upgrade: bool,
    expect: bool,
    grpc: bool,
    hosts: usize,
    flaw: Option<&'static str>,
    /// Of all names and values.
    bytes: usize,
    length: bool,
    request_id: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    declared: Option<HeaderValue>,
    client_certificate: bool,
}

impl Seen {
    fn of(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for (name, value) in headers {
            seen.bytes += name.as_str().len() + value.len();
            match name.as_str() {
                "connection" => (seen.connection, seen.of_connection) = (true, true),
                "upgrade" => (seen.upgrade, seen.of_connection) = (true, true),
                "expect" => seen.expect = true,
                "host" => {
                    seen.hosts += 1;
                    seen.flaw = seen.flaw.or(target::flaw_of_host(value));
                }
                "content-length" => seen.length |= value != "0",
                // hyper has made sure that it is that of a body.
                "transfer-encoding" => (seen.length, seen.of_connection) = (true, true),
                name if concerns_connection(name) => seen.of_connection = true,
                "content-type" => seen.grpc = grpc::is_grpc(value),
                "user-agent" => seen.user_agent = Some(value.clone()),
                "x-request-id" => seen.request_id = Some(value.clone()),
                "x-forwarded-client-cert" => seen.client_certificate = true,
                HEADER_DOWNSTREAM_PROTOCOL => seen.declared = Some(value.clone()),
                _ => (),
            }
        }
        seen
    }
}

impl Head {
    pub(crate) fn new(parts: Parts, downstream: &Downstream) -> Self {
        let Parts { method, mut uri, version, mut headers, mut extensions, .. } = parts;
        let seen = Seen::of(&headers);
        let fields = headers.len();
        let uri_size = uri.path().len() + uri.query().unwrap_or_default().len();
        // Nothing else has upgrades and expectations: of HTTP/1.0 they are ignored (RFC 9110, 7.8 and 10.1.1).
        let http11 = version == http::Version::HTTP_11;
        let mut flaw = flaw(version, &seen);
        drop_user(&mut uri);
        target::make_host_canonical(&mut uri, &mut headers);
        let pathless = target::make_canonical(&mut uri, &method).err();
        let mut upgrade = None;
        let mut upgrade_to = None;
        if seen.upgrade && seen.connection && http11 {
            upgrade_to = connection::upgrades_to(&headers);
        }
        if upgrade_to.is_some() || method == Method::CONNECT {
            upgrade = extensions.remove::<OnUpgrade>();
            upgrade_to = upgrade_to.filter(|_| upgrade.is_some());
            if upgrade.is_some() && seen.length {
                // Where it ends and the tunnel begins, not everybody agrees.
                flaw = flaw.or(Some("a body before a tunnel"));
            }
        }
        let mut expects = false;
        if seen.expect {
            expects =
                http11 && headers.get(EXPECT).is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(b"100-continue"));
            headers.remove(EXPECT);
        }
        if seen.of_connection {
            remove_hop_by_hop(&mut headers);
        }
        let mut declared = None;
        if let Some(value) = seen.declared {
            headers.remove(DOWNSTREAM_PROTOCOL);
            // Only a proxy of the mesh is believed.
            let trusted = downstream.direction == Direction::Inbound && downstream.security() == Security::MutualTls;
            declared = trusted.then(|| if value == "h2" { Version::Http2 } else { Version::Http1 });
        }
        if seen.client_certificate && downstream.direction == Direction::Inbound {
            // An application may take it for who its peer is, which only this proxy knows.
            headers.remove(FORWARDED_CLIENT_CERTIFICATE);
        }
        let request_id = seen.request_id.unwrap_or_else(|| {
            let id = id::request_id();
            headers.insert(REQUEST_ID, id.clone());
            id
        });
        Self {
            method,
            uri,
            version,
            headers,
            grpc: seen.grpc,
            request_id,
            user_agent: seen.user_agent,
            upgrades: upgrade.is_some(),
            upgrade,
            upgrade_to,
            expects,
            declared,
            authority: None,
            flaw,
            one_too_many: false,
            size: seen.bytes + fields * FIELD_OVERHEAD + uri_size,
            field_bytes: seen.bytes,
            fields,
            pathless,
        }
    }

    /// The head of another request like this one, without an upgrade.
    pub(crate) fn copy(&self) -> Self {
        Self {
            method: self.method.clone(),
            uri: self.uri.clone(),
            headers: self.headers.clone(),
            request_id: self.request_id.clone(),
            user_agent: self.user_agent.clone(),
            upgrade: None,
            upgrades: false,
            upgrade_to: None,
            expects: false,
            authority: self.authority.clone(),
            ..*self
        }
    }

    /// A request that names its host in no way or in several could mean one to the proxy and another to who comes after
    /// it (RFC 9112, 3.2).
    pub(crate) fn check(&self) -> Result<(), Error> {
        let invalid = |what: &dyn std::fmt::Display| Err(Error::because(Kind::DownstreamProtocol, what));
        if self.fields > MAX_FIELDS {
            return Err(Error::because(Kind::HeadTooLarge, format_args!("{} headers", self.fields)));
        }
        if self.one_too_many {
            return Err(Error::because(Kind::Overloaded, "the requests of this connection take too much memory"));
        }
        match (self.flaw, self.pathless) {
            (Some(what), _) => invalid(&what),
            (None, Some(what)) => invalid(&what),
            (None, None) => Ok(()),
        }
    }

    /// Host and port that the client asked for; empty if it named none.
    pub(crate) fn authority(&self) -> &str {
        if let Some(authority) = self.uri.authority() {
            return authority.as_str();
        }
        self.headers.get(HOST).and_then(|it| it.to_str().ok()).unwrap_or_default()
    }

    pub(crate) fn path(&self) -> &str {
        // CONNECT has no path, and `*` is the server as a whole.
        match self.uri.path() {
            "" | "*" => "/",
            path => path,
        }
    }

    pub(crate) fn subject(&self) -> Subject<'_> {
        Subject {
            method: &self.method,
            authority: self.authority(),
            path: self.path(),
            query: self.uri.query(),
            headers: &self.headers,
            grpc: self.grpc,
        }
    }

    /// RFC 9110, 9.2.2.
    pub(crate) fn is_idempotent(&self) -> bool {
        self.method.is_idempotent()
    }

    /// When a gRPC client gives up, counted from `start`.
    pub(crate) fn grpc_deadline(&self, start: Instant) -> Option<Instant> {
        if !self.grpc {
            return None;
        }
        start.checked_add(grpc::grpc_timeout(self.headers.get(GRPC_TIMEOUT)?.to_str().ok()?)?)
    }
}

/// Tells the server how long a gRPC client still waits.
pub(crate) fn tell_time_left(headers: &mut HeaderMap, left: Duration) {
    headers.insert(GRPC_TIMEOUT, grpc::time_left(left));
}

fn flaw(version: http::Version, seen: &Seen) -> Option<&'static str> {
    match seen.hosts {
        0 if version == http::Version::HTTP_11 => Some("no host"),
        0 | 1 => seen.flaw,
        _ => Some("more than one host"),
    }
}

/// Who the client is at the server does not belong into the Host of the request that goes on (RFC 9110, 4.2.4).
fn drop_user(uri: &mut Uri) {
    let Some((_, host)) = uri.authority().and_then(|it| it.as_str().rsplit_once('@')) else { return };
    let Ok(host) = Authority::try_from(host) else { return };
    let mut parts = std::mem::take(uri).into_parts();
    parts.authority = Some(host);
    // What was a URI with a user is one without.
    *uri = Uri::from_parts(parts).unwrap_or_default();
}

/// A header's value for a record.
pub(crate) fn text(value: Option<&HeaderValue>) -> &str {
    value.and_then(|it| it.to_str().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(request: http::request::Builder) -> Head {
        Head::new(request.body(()).unwrap().into_parts().0, &crate::http::tests::downstream())
    }

    #[test]
    fn grpc_is_not_grpc_web() {
        for (value, expected) in [
            ("application/grpc", true),
            ("Application/gRPC", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/json", false),
            ("text", false),
        ] {
            assert_eq!(head(Request::post("/").header("content-type", value)).grpc, expected, "{value}");
        }
    }

    #[test]
    fn a_host_is_named_once() {
        let get = || Request::get("/");
        assert!(head(get().header(HOST, "a")).check().is_ok());
        assert!(head(get()).check().is_err());
        assert!(head(get().header(HOST, "a").header(HOST, "a")).check().is_err());
        assert!(head(get().header(HOST, "me@a")).check().is_err());
        assert!(head(get().version(http::Version::HTTP_10)).check().is_ok());
        assert!(head(Request::get("http://a/").version(http::Version::HTTP_2)).check().is_ok());
    }

    #[test]
    fn the_user_in_a_target_goes_no_further() {
        let head = head(Request::get("http://me:secret@a:81/b?c").header(HOST, "a:81"));
        assert_eq!(head.uri, "http://a:81/b?c");
        assert_eq!(head.authority(), "a:81");
    }
}
