//! The head of a request on its way through the proxy: what is read from it once, and the form in which it goes on.

use std::time::{Duration, Instant};

use http::header::{
    CONNECTION, CONTENT_TYPE, COOKIE, EXPECT, Entry, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Uri};
use hyper::upgrade::OnUpgrade;
use mesh_common::names::HEADER_DOWNSTREAM_PROTOCOL;

use super::RequestBody;
use crate::config::{HeaderMutation, PathMatch, PathRewrite, UpstreamHttp};
use crate::error::{Error, Kind};
use crate::listen::{Direction, Downstream, Security};
use crate::path::{PathError, canonical};
use crate::route::Subject;
use crate::upstream::{Target, Version};

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const DOWNSTREAM_PROTOCOL: HeaderName = HeaderName::from_static(HEADER_DOWNSTREAM_PROTOCOL);
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

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
    /// What is wrong with how it names the host, if anything.
    misnamed: Option<&'static str>,
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
    user_in_host: bool,
    request_id: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    declared: Option<HeaderValue>,
}

impl Seen {
    fn of(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for (name, value) in headers {
            match name.as_str() {
                "connection" => (seen.connection, seen.of_connection) = (true, true),
                "upgrade" => (seen.upgrade, seen.of_connection) = (true, true),
                "expect" => seen.expect = true,
                "host" => {
                    seen.hosts += 1;
                    seen.user_in_host |= value.as_bytes().contains(&b'@');
                }
                name if concerns_connection(name) => seen.of_connection = true,
                "content-type" => seen.grpc = is_grpc(value),
                "user-agent" => seen.user_agent = Some(value.clone()),
                "x-request-id" => seen.request_id = Some(value.clone()),
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
        let http2 = version == http::Version::HTTP_2;
        let misnamed = misnamed(version, &seen);
        drop_user(&mut uri);
        let pathless = make_canonical(&mut uri, &method).err();
        let mut upgrade = None;
        let mut upgrade_to = None;
        if seen.upgrade && seen.connection && !http2 {
            upgrade_to = upgrades_to(&headers);
        }
        if upgrade_to.is_some() || method == Method::CONNECT {
            upgrade = extensions.remove::<OnUpgrade>();
            upgrade_to = upgrade_to.filter(|_| upgrade.is_some());
        }
        let mut expects = false;
        if seen.expect {
            expects =
                !http2 && headers.get(EXPECT).is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(b"100-continue"));
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
        let request_id = seen.request_id.unwrap_or_else(|| {
            let id = request_id();
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
            misnamed,
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
        match (self.misnamed, self.pathless) {
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
        start.checked_add(grpc_timeout(self.headers.get(GRPC_TIMEOUT)?.to_str().ok()?)?)
    }

    pub(crate) fn mutate(&mut self, mutation: &HeaderMutation) {
        if mutation.is_empty() {
            return;
        }
        apply(mutation, &mut self.headers);
        if let Some((_, host)) = mutation.set.iter().rev().find(|(name, _)| *name == HOST) {
            self.authority = Some(host.clone());
        }
    }

    pub(crate) fn rewrite_host(&mut self, host: &HeaderValue) {
        self.authority = Some(host.clone());
    }

    /// The authority of a mirrored request, as Envoy names it.
    pub(crate) fn shadow(&mut self) {
        let current = self.authority.as_ref().and_then(|it| it.to_str().ok()).unwrap_or_else(|| self.authority());
        let host = crate::route::without_port(current);
        let shadow = format!("{host}-shadow{}", &current[host.len()..]);
        self.authority = HeaderValue::try_from(shadow).ok();
    }

    pub(crate) fn rewrite_path(&mut self, rewrite: &PathRewrite, matched: &PathMatch) -> Result<(), Error> {
        let path = rewritten(rewrite, matched, self.path());
        let target = match self.uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        let invalid =
            |e: &dyn std::fmt::Display| Error::because(Kind::Configuration, format_args!("path rewrite: {e}"));
        let target = PathAndQuery::try_from(target).map_err(|e| invalid(&e))?;
        let mut parts = std::mem::take(&mut self.uri).into_parts();
        parts.path_and_query = Some(target);
        self.uri = Uri::from_parts(parts).map_err(|e| invalid(&e))?;
        Ok(())
    }

    /// What to speak to an endpoint.
    pub(crate) fn version_for(&self, target: &Target) -> Version {
        let cluster = target.cluster();
        let in_clear = !target.is_secure();
        if self.upgrades || (self.expects && !(in_clear && cluster.http == UpstreamHttp::Http2)) {
            return Version::Http1;
        }
        let as_downstream = || {
            let http2 = || self.version == http::Version::HTTP_2 || self.grpc;
            self.declared.unwrap_or_else(|| if http2() { Version::Http2 } else { Version::Http1 })
        };
        match cluster.http {
            _ if target.is_proxy() => Version::Http2,
            UpstreamHttp::Http1 => Version::Http1,
            // A cluster of the mesh speaks HTTP/2 between proxies. Endpoints without a proxy are spoken to as the
            // client speaks.
            UpstreamHttp::Http2 if cluster.tls.is_none() || !in_clear => Version::Http2,
            UpstreamHttp::Http2 | UpstreamHttp::Downstream => as_downstream(),
        }
    }

    /// The request for one try. `keep`: another one may follow.
    pub(crate) fn request(
        &mut self,
        body: RequestBody,
        target: &Target,
        version: Version,
        keep: bool,
    ) -> Result<Request<RequestBody>, Error> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        let mut headers = if keep { self.headers.clone() } else { std::mem::take(&mut self.headers) };
        if target.is_proxy() {
            let spoken = self.declared.unwrap_or(match self.version {
                http::Version::HTTP_2 => Version::Http2,
                _ => Version::Http1,
            });
            let spoken = if spoken == Version::Http2 { "h2" } else { "http/1.1" };
            headers.insert(DOWNSTREAM_PROTOCOL, HeaderValue::from_static(spoken));
        }
        match version {
            Version::Http1 => {
                *request.uri_mut() = self.for_http1(&mut headers, target);
                *request.version_mut() = http::Version::HTTP_11;
            }
            Version::Http2 => {
                *request.uri_mut() = self.for_http2(&mut headers, target)?;
                *request.version_mut() = http::Version::HTTP_2;
            }
        }
        *request.headers_mut() = headers;
        Ok(request)
    }

    fn for_http1(&self, headers: &mut HeaderMap, target: &Target) -> Uri {
        if let Some(authority) = &self.authority {
            headers.insert(HOST, authority.clone());
        } else if let Some(authority) = self.uri.authority() {
            if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
                headers.insert(HOST, host);
            }
        } else if let Entry::Vacant(entry) = headers.entry(HOST)
            && let Ok(host) = HeaderValue::try_from(target.address().to_string())
        {
            // A client of HTTP/1.0 need not name one, but a server of HTTP/1.1 may insist.
            entry.insert(host);
        }
        if let Some(protocol) = &self.upgrade_to {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, protocol.clone());
        }
        if self.expects {
            headers.insert(EXPECT, HeaderValue::from_static("100-continue"));
        }
        if self.version == http::Version::HTTP_2 {
            join_cookies(headers);
        }
        if self.uri.authority().is_none() || self.method == Method::CONNECT {
            return self.uri.clone();
        }
        self.uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from)
    }

    fn for_http2(&self, headers: &mut HeaderMap, target: &Target) -> Result<Uri, Error> {
        let host = headers.remove(HOST);
        let mut parts = self.uri.clone().into_parts();
        if let Some(authority) = self.authority.as_ref().or(host.as_ref().filter(|_| parts.authority.is_none())) {
            let authority = Authority::try_from(authority.as_bytes())
                .map_err(|e| Error::because(Kind::DownstreamProtocol, format_args!("the host: {e}")))?;
            parts.authority = Some(authority);
        } else if parts.authority.is_none() {
            parts.authority = Authority::try_from(target.address().to_string()).ok();
        }
        parts.scheme.get_or_insert(Scheme::HTTP);
        parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
        Uri::from_parts(parts).map_err(|e| Error::because(Kind::DownstreamProtocol, e))
    }
}

/// gRPC itself, with any coding of its messages; gRPC-Web is another protocol.
fn is_grpc(content_type: &HeaderValue) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let Some((name, rest)) = content_type.as_bytes().split_at_checked(GRPC.len()) else { return false };
    name.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';'))
}

fn misnamed(version: http::Version, seen: &Seen) -> Option<&'static str> {
    match seen.hosts {
        0 if version == http::Version::HTTP_11 => Some("no host"),
        0 | 1 => seen.user_in_host.then_some("a user in the host"),
        _ => Some("more than one host"),
    }
}

/// Gives the path its canonical form, before anybody matches it. A tunnel has no path, and `*` is the server as a whole.
fn make_canonical(uri: &mut Uri, method: &Method) -> Result<(), PathError> {
    let path = uri.path();
    if *method == Method::CONNECT || (path == "*" && *method == Method::OPTIONS) {
        return Ok(());
    }
    // Of an absolute form: the root.
    let form = canonical(if path.is_empty() && uri.authority().is_some() { "/" } else { path })?;
    if form == path {
        return Ok(());
    }
    let target = match uri.query() {
        Some(query) => format!("{form}?{query}"),
        None => form.into_owned(),
    };
    let mut parts = std::mem::take(uri).into_parts();
    // It has only characters that were in a path before, or stand for themselves.
    parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(|_| PathError::Control)?);
    *uri = Uri::from_parts(parts).map_err(|_| PathError::Control)?;
    Ok(())
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

/// The protocols that the client would go over to. Prior knowledge aside, HTTP/2 in clear is not for a proxy to agree to
/// on the server's behalf.
fn upgrades_to(headers: &HeaderMap) -> Option<HeaderValue> {
    let values = headers.get_all(UPGRADE).iter().filter_map(|it| it.to_str().ok());
    let names = values.flat_map(|it| it.split(',')).map(str::trim);
    let kept: Vec<_> = names.filter(|it| !it.is_empty() && !it.eq_ignore_ascii_case("h2c")).collect();
    if kept.is_empty() { None } else { HeaderValue::try_from(kept.join(", ")).ok() }
}

/// Removes, then sets, then adds.
pub(crate) fn apply(mutation: &HeaderMutation, headers: &mut HeaderMap) {
    for name in &mutation.remove {
        headers.remove(name);
    }
    for (name, value) in &mutation.set {
        headers.insert(name, value.clone());
    }
    for (name, value) in &mutation.add {
        headers.append(name, value.clone());
    }
}

/// Most messages have none of these: looking at each name once is cheaper than looking each of these up.
pub(crate) fn concerns_connection(name: &str) -> bool {
    matches!(
        name,
        "connection" | "keep-alive" | "proxy-connection" | "te" | "transfer-encoding" | "upgrade" | "http2-settings"
    )
}

/// Removes what concerns the connection that the message came on. `te: trailers` stays, which gRPC servers ask for.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        // A client may not make the proxy drop what the message's meaning rests on.
        .filter(|name| ![HOST, TE, http::header::CONTENT_LENGTH, CONTENT_TYPE, REQUEST_ID].contains(name))
        .collect();
    for name in
        named.iter().chain(&[CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE, HTTP2_SETTINGS])
    {
        headers.remove(name);
    }
    let trailers = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"trailers");
    if headers.get(TE).is_some_and(|it| !trailers(it)) {
        let wanted = headers.get_all(TE).iter().filter_map(|it| it.to_str().ok());
        let any = wanted.flat_map(|it| it.split(',')).any(|it| it.trim().eq_ignore_ascii_case("trailers"));
        headers.remove(TE);
        if any {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// HTTP/2 may split cookies into several fields; HTTP/1.1 may not (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let all: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(b"; ".as_slice())) {
        headers.insert(COOKIE, joined);
    }
}

/// A random UUID (RFC 9562, version 4).
fn request_id() -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let random = (fastrand::u128(..) & !(0xf << 76) & !(0b11 << 62)) | (4 << 76) | (0b10 << 62);
    let mut text = [b'-'; 36];
    let mut nibbles = (0..32).map(|i| HEX[(random >> (124 - 4 * i)) as usize & 15]);
    for (place, byte) in text.iter_mut().enumerate() {
        if ![8, 13, 18, 23].contains(&place) {
            *byte = nibbles.next().unwrap_or(b'0');
        }
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

/// The `grpc-timeout` header: up to eight digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (unit_at, unit) = text.char_indices().next_back()?;
    let digits = &text[..unit_at];
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(amount * 3600),
        'M' => Duration::from_secs(amount * 60),
        'S' => Duration::from_secs(amount),
        'm' => Duration::from_millis(amount),
        'u' => Duration::from_micros(amount),
        'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// The path after a rewrite. A prefix is replaced so that neither no slash nor two are left where one was.
pub(crate) fn rewritten(rewrite: &PathRewrite, matched: &PathMatch, path: &str) -> String {
    match rewrite {
        PathRewrite::Full(full) => full.clone(),
        PathRewrite::Regex { pattern, substitution } => pattern.replace_all(path, substitution.as_str()).into_owned(),
        PathRewrite::Prefix(new) => replace_prefix(new, matched, path),
    }
}

pub(crate) fn replace_prefix(new: &str, matched: &PathMatch, path: &str) -> String {
    let old = match matched {
        PathMatch::Prefix(prefix) => prefix.as_str(),
        PathMatch::SegmentPrefix(prefix) => prefix.strip_suffix('/').unwrap_or(prefix),
        PathMatch::Exact(_) | PathMatch::Regex(_) => path,
    };
    let rest = path.strip_prefix(old).unwrap_or_default();
    let new = if rest.starts_with('/') { new.strip_suffix('/').unwrap_or(new) } else { new };
    let path = format!("{new}{rest}");
    if path.is_empty() { "/".to_owned() } else { path }
}

/// A header's value for a record.
pub(crate) fn text(value: Option<&HeaderValue>) -> &str {
    value.and_then(|it| it.to_str().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_uuids_of_version_4_and_differ() {
        let (a, b) = (request_id(), request_id());
        assert_ne!(a, b);
        let text = a.to_str().unwrap();
        let pattern =
            regex::Regex::new("^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$").unwrap();
        assert!(pattern.is_match(text), "{text}");
    }

    fn head(request: http::request::Builder) -> Head {
        Head::new(request.body(()).unwrap().into_parts().0, &crate::http::tests::downstream())
    }

    #[test]
    fn http2_in_clear_is_taken_out_of_the_protocols_to_upgrade_to() {
        for (values, expected) in [
            (&["h2c"][..], None),
            (&["H2C"], None),
            (&["h2c, websocket"], Some("websocket")),
            (&["websocket , H2c", "TLS/1.0"], Some("websocket, TLS/1.0")),
            (&["h2c-like"], Some("h2c-like")),
            (&[","], None),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(UPGRADE, HeaderValue::from_static(value));
            }
            assert_eq!(upgrades_to(&headers).as_ref().map(|it| it.to_str().unwrap()), expected, "{values:?}");
        }
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

    #[test]
    fn grpc_timeouts() {
        assert_eq!(grpc_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(grpc_timeout("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(grpc_timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in ["", "S", "1", "123456789S", "-1S", "1x", "1é"] {
            assert_eq!(grpc_timeout(bad), None, "{bad}");
        }
    }

    #[test]
    fn prefixes_are_replaced_with_one_slash() {
        let segment = PathMatch::SegmentPrefix("/foo".into());
        for (new, path, expected) in [
            ("/xyz", "/foo/bar", "/xyz/bar"),
            ("/xyz/", "/foo/bar", "/xyz/bar"),
            ("/xyz", "/foo", "/xyz"),
            ("/", "/foo/bar", "/bar"),
            ("/", "/foo", "/"),
            ("", "/foo", "/"),
            ("/xyz", "/foo/", "/xyz/"),
        ] {
            assert_eq!(replace_prefix(new, &segment, path), expected, "{new} for {path}");
        }
        assert_eq!(replace_prefix("/x", &PathMatch::Prefix("/fo".into()), "/foo"), "/xo");
        assert_eq!(replace_prefix("/x", &PathMatch::SegmentPrefix("/".into()), "/a"), "/x/a");
    }

    #[test]
    fn only_the_connection_s_headers_are_removed() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, X-Once, host, te"),
            ("keep-alive", "timeout=5"),
            ("x-once", "1"),
            ("host", "a"),
            ("te", "gzip, Trailers"),
            ("transfer-encoding", "chunked"),
            ("trailer", "x-sum"),
            ("accept", "*/*"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        remove_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        left.sort();
        assert_eq!(left, ["accept: */*", "host: a", "te: trailers", "trailer: x-sum"]);
    }

    #[test]
    fn cookies_are_joined() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=1"));
        headers.append(COOKIE, HeaderValue::from_static("b=2"));
        join_cookies(&mut headers);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }
}
