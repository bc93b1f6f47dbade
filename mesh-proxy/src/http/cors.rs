//! Requests across origins (<https://fetch.spec.whatwg.org/#http-cors-protocol>): what a browser is told about who may read
//! a route's responses. It is the browser that keeps others from reading them; no request is refused here.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};
use http::{Method, Response, StatusCode};

use super::head::Head;
use super::reply;
use super::response_body::Content;
use crate::config::{Cors, CorsList};
use crate::route;

/// What a request is to the policy of its route. Taken apart as soon as it is made.
#[allow(clippy::large_enum_variant)]
pub(super) enum Met {
    /// A request of this origin, whose response its scripts may read.
    Allowed(HeaderValue),
    /// The question whether a request may be sent, with its answer. It is no request to the application.
    Preflight(Response<Content>, Option<HeaderValue>),
    /// Not across origins, or of an origin that is not allowed.
    Other,
}

pub(super) fn meet(cors: &Cors, head: &Head) -> Met {
    let Some(origin) = single(&head.headers, &ORIGIN) else { return Met::Other };
    let asked = single(&head.headers, &ACCESS_CONTROL_REQUEST_METHOD).filter(|_| head.method == Method::OPTIONS);
    let is_allowed = cors.any_origin || is_among(cors, origin);
    match (asked, is_allowed) {
        (None, true) => Met::Allowed(origin.clone()),
        (Some(method), true) => {
            let mut response = reply::plain(StatusCode::OK, bytes::Bytes::new());
            permit(cors, method, &head.headers, response.headers_mut());
            Met::Preflight(response, Some(origin.clone()))
        }
        (Some(_), false) if !cors.forwards_others => {
            Met::Preflight(reply::plain(StatusCode::OK, bytes::Bytes::new()), None)
        }
        (_, false) => Met::Other,
    }
}

fn is_among(cors: &Cors, origin: &HeaderValue) -> bool {
    origin.to_str().is_ok_and(|origin| cors.origins.iter().any(|it| route::text_matches(it, origin)))
}

/// Several values are those of no browser.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|value| !value.is_empty() && values.next().is_none())
}

/// What may be asked for.
fn permit(cors: &Cors, method: &HeaderValue, asked: &HeaderMap, answer: &mut HeaderMap) {
    let value = |list: &CorsList, wanted: Option<&HeaderValue>| match list {
        CorsList::None => None,
        CorsList::These(these) => Some(these.clone()),
        // With credentials, a browser takes `*` for a name.
        CorsList::All if cors.credentials => wanted.cloned(),
        CorsList::All => Some(HeaderValue::from_static("*")),
    };
    let headers = single(asked, &ACCESS_CONTROL_REQUEST_HEADERS);
    let all = [
        (ACCESS_CONTROL_ALLOW_METHODS, value(&cors.methods, Some(method))),
        (ACCESS_CONTROL_ALLOW_HEADERS, value(&cors.headers, headers)),
        (ACCESS_CONTROL_MAX_AGE, cors.max_age.clone()),
    ];
    for (name, value) in all {
        if let Some(value) = value {
            answer.insert(name, value);
        }
    }
}

/// Marks a response of the route, whoever made it. `origin`: whose scripts may read it.
pub(super) fn mark(cors: &Cors, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    let same_for_all = cors.any_origin && !cors.credentials;
    if !same_for_all {
        // A cache may give it to another origin.
        headers.append(VARY, HeaderValue::from_static("origin"));
    }
    let Some(origin) = origin else { return };
    let origin = if same_for_all { HeaderValue::from_static("*") } else { origin.clone() };
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    if cors.credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    } else {
        // What the application says was meant for the origins that it allows.
        headers.remove(ACCESS_CONTROL_ALLOW_CREDENTIALS);
    }
    if let Some(exposed) = &cors.exposed {
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed.clone());
    }
}
