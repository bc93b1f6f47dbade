//! Replies that the proxy makes itself.

use std::fmt::Write;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, Response, StatusCode};

use super::head::{Head, replace_prefix};
use super::response_body::Content;
use crate::config::{PathMatch, Redirect, RedirectPath};
use crate::error::{Error, Kind, grpc_status_of};
use crate::ext_authz::Denied;

/// What is said to a client of gRPC of somebody else's refusal: it is in a header, which may not be of any length.
const MAX_MESSAGE: usize = 1024;

/// An error in the form that the client understands: an HTTP status, or the status of gRPC. What the operating system
/// or TLS said stays here.
pub(crate) fn error(error: &Error, grpc: bool) -> Response<Content> {
    let text = error.kind.to_string();
    let mut response =
        if grpc { grpc_status(error.kind.grpc_status(), &text) } else { plain(error.kind.status(), text.into()) };
    if let Some(seconds) = error.kind.retry_after() {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// How a client whose token is not good could do better (RFC 6750, 3). The host is what the client said, so only of what a host is made of.
pub(crate) fn challenge(headers: &mut HeaderMap, authority: &str) {
    let host = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    let realm = if authority.bytes().all(host) { authority } else { "" };
    if let Ok(value) = HeaderValue::try_from(format!("Bearer realm=\"{realm}\", error=\"invalid_token\"")) {
        headers.insert(WWW_AUTHENTICATE, value);
    }
}

/// The answer of somebody who was asked and refuses. `head`: only the head of it was asked for.
pub(crate) fn denied(denied: Denied, head: bool, grpc: bool) -> Response<Content> {
    let Denied { status, headers, body } = denied;
    let mut response = if grpc {
        let text = String::from_utf8_lossy(&body);
        grpc_status(grpc_status_of(status), &text[..text.floor_char_boundary(MAX_MESSAGE)])
    } else {
        direct(status, body, head)
    };
    let kept = |name: &HeaderName| grpc && (name == CONTENT_TYPE || name.as_str().starts_with("grpc-"));
    let to = response.headers_mut();
    for name in headers.keys().filter(|name| !kept(name)) {
        to.remove(name);
    }
    for (name, value) in headers.iter().filter(|(name, _)| !kept(name)) {
        to.append(name, value.clone());
    }
    response
}

/// An injected abort.
pub(crate) fn abort(http: StatusCode, grpc_code: u32, grpc: bool) -> Response<Content> {
    const TEXT: &str = "fault injected";
    if grpc { grpc_status(grpc_code, TEXT) } else { plain(http, Bytes::from_static(TEXT.as_bytes())) }
}

pub(crate) fn plain(status: StatusCode, body: Bytes) -> Response<Content> {
    let mut response = Response::new(Content::Empty);
    *response.status_mut() = status;
    if !body.is_empty() {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    response.headers_mut().insert(CONTENT_LENGTH, body.len().into());
    *response.body_mut() = Content::Full(body);
    response
}

/// The answer of a route. `head`: only the head of it was asked for.
pub(crate) fn direct(status: StatusCode, body: Bytes, head: bool) -> Response<Content> {
    let mut response = plain(status, body);
    let bare = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if bare {
        // RFC 9110, 8.6: the one has none, and of the other it would be that of another response.
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    if head || bare { response.map(|_| Content::Empty) } else { response }
}

/// A response without messages ("trailers only").
fn grpc_status(status: u32, message: &str) -> Response<Content> {
    let mut response = Response::new(Content::Empty);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    put_grpc_status(headers, status, message);
    response
}

/// The end of a response that has begun.
pub(crate) fn grpc_trailers(kind: Kind) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    put_grpc_status(&mut trailers, kind.grpc_status(), &kind.to_string());
    trailers
}

fn put_grpc_status(headers: &mut HeaderMap, status: u32, message: &str) {
    headers.insert("grpc-status", status.into());
    if let Ok(message) = HeaderValue::try_from(percent_encoded(message)) {
        headers.insert("grpc-message", message);
    }
}

fn percent_encoded(message: &str) -> String {
    let mut text = String::with_capacity(message.len());
    for byte in message.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            text.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

pub(crate) fn redirect(redirect: &Redirect, matched: &PathMatch, head: &Head) -> Response<Content> {
    let mut response = plain(redirect.status, Bytes::new());
    if let Ok(location) = HeaderValue::try_from(location(redirect, matched, head)) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn location(redirect: &Redirect, matched: &PathMatch, head: &Head) -> String {
    // What the client spoke before any proxy in front of it, as far as that is known.
    let forwarded = head.headers.get("x-forwarded-proto").and_then(|it| it.to_str().ok());
    let current = forwarded.filter(|it| ["http", "https"].contains(it)).unwrap_or("http");
    let scheme = redirect.scheme.as_deref().unwrap_or(current);
    let authority = head.authority();
    let name = crate::route::without_port(authority);
    let host = redirect.host.as_deref().unwrap_or(name);
    let port = match redirect.port {
        Some(port) => Some(port),
        // A scheme brings its own port.
        None if redirect.scheme.is_some() => None,
        None => authority[name.len()..].strip_prefix(':').and_then(|port| port.parse().ok()),
    };
    let default = if scheme == "https" { 443 } else { 80 };
    let port = port.filter(|port| *port != default).map(|port| format!(":{port}")).unwrap_or_default();
    let path = match &redirect.path {
        None => head.path().to_owned(),
        Some(RedirectPath::Full(path)) => path.clone(),
        Some(RedirectPath::Prefix(new)) => replace_prefix(new, matched, head.path()),
    };
    let query = head.uri.query().filter(|_| !redirect.strip_query).map(|it| format!("?{it}")).unwrap_or_default();
    format!("{scheme}://{host}{port}{path}{query}")
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::http::tests::downstream;

    fn located(redirect: &Redirect, target: &str) -> String {
        let request = Request::get(target).header("host", "shop:8080").body(()).unwrap();
        let head = Head::new(request.into_parts().0, &downstream());
        location(redirect, &PathMatch::SegmentPrefix("/a".into()), &head)
    }

    #[test]
    fn locations() {
        let same = Redirect::default();
        assert_eq!(located(&same, "/a?b=c"), "http://shop:8080/a?b=c");
        let https = Redirect { scheme: Some("https".into()), ..Redirect::default() };
        assert_eq!(located(&https, "/a"), "https://shop/a");
        let port = Redirect { port: Some(80), ..Redirect::default() };
        assert_eq!(located(&port, "/a"), "http://shop/a");
        let full = Redirect {
            host: Some("new".into()),
            path: Some(RedirectPath::Full("/x".into())),
            strip_query: true,
            ..Redirect::default()
        };
        assert_eq!(located(&full, "/a?b=c"), "http://new:8080/x");
        let prefix = Redirect { path: Some(RedirectPath::Prefix("/x".into())), ..Redirect::default() };
        assert_eq!(located(&prefix, "/a/b?c"), "http://shop:8080/x/b?c");
    }

    #[test]
    fn refusals_of_others_keep_to_the_form_of_responses() {
        let refusal = |status, body: &'static str| {
            let headers = [("x-why", "a"), ("x-why", "b"), ("content-type", "text/html"), ("grpc-status", "0")];
            let headers = headers.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            let mut all = HeaderMap::new();
            for (name, value) in headers {
                all.append(name, value);
            }
            Denied { status, headers: all, body: Bytes::from_static(body.as_bytes()) }
        };
        let of = |response: &Response<Content>, name: &str| {
            let all = response.headers().get_all(name);
            all.iter().map(|it| it.to_str().unwrap().to_owned()).collect::<Vec<_>>().join("+")
        };
        let whole = denied(refusal(StatusCode::UNAUTHORIZED, "no"), false, false);
        assert!(matches!(whole.body(), Content::Full(body) if body == "no"));
        // Of only the head, it is that of the whole.
        let head = denied(refusal(StatusCode::UNAUTHORIZED, "no"), true, false);
        assert!(matches!(head.body(), Content::Empty));
        for response in [&whole, &head] {
            assert_eq!(
                [of(response, "content-length"), of(response, "content-type"), of(response, "x-why")],
                ["2", "text/html", "a+b"]
            );
        }
        let nothing = denied(refusal(StatusCode::NO_CONTENT, "no"), false, false);
        assert!(matches!(nothing.body(), Content::Empty));
        assert_eq!((nothing.status(), of(&nothing, "content-length")), (StatusCode::NO_CONTENT, String::new()));
        // No more than a header has room for, and no half character; and it stays an answer of gRPC.
        let long = Denied { body: format!("a{}", "é".repeat(1000)).into(), ..refusal(StatusCode::FORBIDDEN, "") };
        let grpc = denied(long, false, true);
        assert_eq!([of(&grpc, "content-type"), of(&grpc, "grpc-status")], ["application/grpc", "7"]);
        assert_eq!(of(&grpc, "grpc-message"), format!("a{}", "%C3%A9".repeat(511)));
    }

    #[test]
    fn grpc_messages_are_percent_encoded() {
        assert_eq!(percent_encoded("50 % né"), "50 %25 n%C3%A9");
    }
}
