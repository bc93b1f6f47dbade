//! What is answered, and what that makes of the request.

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::HeaderValueOption;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse, OkHttpResponse};
use http::header::{HeaderName, HeaderValue};
use http::response::Parts;
use http::{HeaderMap, StatusCode};
use prost::Message;

use super::{Denied, is_fixed};
use crate::config::{Authorizer, AuthorizerProtocol, StringMatch};
use crate::error::{Error, Kind};
use crate::http::{Exchange, remove_hop_by_hop};
use crate::route::text_matches;
use crate::upstream::grpc_answer;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Allowed(Changes),
    Denied(Denied),
}

/// What an answer makes of the request that it lets in, and of its response.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    remove: Vec<HeaderName>,
    request: Vec<Change>,
    response: Vec<Change>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Change {
    name: HeaderName,
    value: HeaderValue,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Instead of those that are there.
    Set,
    Append,
    IfAbsent,
    IfPresent,
}

impl Change {
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        let Self { name, value, how } = self;
        match how {
            How::Append => drop(headers.append(name, value.clone())),
            How::IfAbsent if headers.contains_key(name) => (),
            How::IfPresent if !headers.contains_key(name) => (),
            How::Set | How::IfAbsent | How::IfPresent => drop(headers.insert(name, value.clone())),
        }
    }
}

impl Changes {
    pub fn apply(self, exchange: &mut Exchange) {
        let headers = &mut exchange.head.headers;
        for name in &self.remove {
            headers.remove(name);
        }
        self.request.iter().for_each(|change| change.apply(headers));
        if !self.response.is_empty() {
            let before = exchange.response_changes.take().map(Vec::from).unwrap_or_default();
            exchange.response_changes = Some(before.into_iter().chain(self.response).collect());
        }
    }
}

fn useless(why: impl std::fmt::Display) -> Error {
    Error::because(Kind::UpstreamProtocol, why)
}

pub(super) fn of_grpc(
    status: StatusCode,
    headers: &HeaderMap,
    body: Bytes,
    trailers: Option<&HeaderMap>,
) -> Result<Answer, Error> {
    let message = grpc_answer(status, headers, body, trailers).map_err(useless)?;
    of_check(CheckResponse::decode(message).map_err(useless)?)
}

fn of_check(pb: CheckResponse) -> Result<Answer, Error> {
    // Without a status it is OK, as a number that is not there is zero.
    let allowed = pb.status.is_none_or(|it| it.code == 0);
    match (allowed, pb.http_response) {
        (_, Some(HttpResponse::ErrorResponse(_))) => Err(useless("an answer that says that it is none")),
        (true, Some(HttpResponse::OkResponse(ok))) => Ok(Answer::Allowed(changes(ok)?)),
        (true, None) => Ok(Answer::Allowed(Changes::default())),
        (true, Some(HttpResponse::DeniedResponse(_))) => Err(useless("an answer that both allows and denies")),
        (false, Some(HttpResponse::DeniedResponse(pb))) => Ok(Answer::Denied(denied(pb)?)),
        (false, _) => Ok(Answer::Denied(denied(DeniedHttpResponse::default())?)),
    }
}

fn changes(pb: OkHttpResponse) -> Result<Changes, Error> {
    if !(pb.query_parameters_to_set.is_empty() && pb.query_parameters_to_remove.is_empty()) {
        return Err(useless("queries cannot be changed"));
    }
    let named = |name: &String| HeaderName::from_bytes(name.as_bytes()).ok().filter(|name| !is_fixed(name));
    Ok(Changes {
        // There are none of other names.
        remove: pb.headers_to_remove.iter().filter_map(named).collect(),
        request: all(pb.headers)?,
        response: all(pb.response_headers_to_add)?,
    })
}

fn all(options: Vec<HeaderValueOption>) -> Result<Vec<Change>, Error> {
    let mut changes = Vec::with_capacity(options.len());
    for option in options {
        let change = change(option)?;
        if !is_fixed(&change.name) {
            changes.push(change);
        }
    }
    Ok(changes)
}

fn change(pb: HeaderValueOption) -> Result<Change, Error> {
    let header = pb.header.unwrap_or_default();
    let name = HeaderName::from_bytes(header.key.as_bytes());
    let name = name.map_err(|_| useless(format_args!("{:?} is not the name of a header", header.key)))?;
    let bytes = if header.value.is_empty() { header.raw_value.as_slice() } else { header.value.as_bytes() };
    let value = HeaderValue::from_bytes(bytes);
    let value = value.map_err(|_| useless(format_args!("the value of {name} cannot be one of a header")))?;
    // Without either field it overwrites here, so that what a client has made up never stays beside it.
    #[allow(deprecated)]
    let how = match (pb.append, HeaderAppendAction::try_from(pb.append_action)) {
        (Some(append), _) if append.value => How::Append,
        (_, Ok(HeaderAppendAction::AddIfAbsent)) => How::IfAbsent,
        (_, Ok(HeaderAppendAction::OverwriteIfExists)) => How::IfPresent,
        (_, Ok(HeaderAppendAction::AppendIfExistsOrAdd | HeaderAppendAction::OverwriteIfExistsOrAdd)) => How::Set,
        (_, Err(_)) => return Err(useless(format_args!("what is to be done with {name} is not known"))),
    };
    Ok(Change { name, value, how })
}

/// Not an informational one, and one that means something.
fn is_last(status: StatusCode) -> bool {
    (200..600).contains(&status.as_u16())
}

fn denied(pb: DeniedHttpResponse) -> Result<Denied, Error> {
    let status = match pb.status.map_or(0, |it| it.code) {
        0 => StatusCode::FORBIDDEN,
        code => {
            let status = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
            let status = status.filter(|it| is_last(*it));
            status.ok_or_else(|| useless(format_args!("{code} is not the status of a response")))?
        }
    };
    let mut headers = HeaderMap::new();
    all(pb.headers)?.iter().for_each(|change| change.apply(&mut headers));
    Ok(Denied { status, headers, body: pb.body.into() })
}

/// 200 lets it in.
pub(super) fn of_http(authorizer: &Authorizer, mut head: Parts, body: Bytes) -> Result<Answer, Error> {
    let AuthorizerProtocol::Http { to_upstream, to_client, .. } = &authorizer.protocol else {
        return Err(useless("an answer to another question"));
    };
    if head.status.is_server_error() || !is_last(head.status) {
        return Err(useless(format_args!("status {}", head.status.as_u16())));
    }
    remove_hop_by_hop(&mut head.headers);
    let is_one = |names: &[StringMatch], name: &HeaderName| names.iter().any(|it| text_matches(it, name.as_str()));
    if head.status == StatusCode::OK {
        let mut request: Vec<Change> = Vec::new();
        for (name, value) in head.headers.iter().filter(|(name, _)| !is_fixed(name) && is_one(to_upstream, name)) {
            let how = if request.iter().any(|it| it.name == name) { How::Append } else { How::Set };
            request.push(Change { name: name.clone(), value: value.clone(), how });
        }
        return Ok(Answer::Allowed(Changes { request, ..Changes::default() }));
    }
    let always = ["www-authenticate", "location", "content-type"];
    let goes_on = |name: &HeaderName| {
        to_client.as_ref().is_none_or(|names| always.contains(&name.as_str()) || is_one(names, name))
    };
    let mut headers = HeaderMap::new();
    for (name, value) in head.headers.iter().filter(|(name, _)| !is_fixed(name) && goes_on(name)) {
        headers.append(name, value.clone());
    }
    Ok(Answer::Denied(Denied { status: head.status, headers, body }))
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::HeaderValue as PbHeader;
    use envoy_types::pb::envoy::r#type::v3::HttpStatus;
    use envoy_types::pb::google::rpc::Status;

    use super::*;
    use crate::http::tests::ext_authz::{authorizer, over_http};
    use crate::upstream::grpc_frame;

    fn option(key: &str, value: &str, append_action: i32) -> HeaderValueOption {
        let header = Some(PbHeader { key: key.to_owned(), value: value.to_owned(), ..PbHeader::default() });
        HeaderValueOption { header, append_action, ..HeaderValueOption::default() }
    }

    fn ok(headers: Vec<HeaderValueOption>) -> CheckResponse {
        let ok = OkHttpResponse { headers, headers_to_remove: vec!["b".into(), "Host".into()], ..Default::default() };
        CheckResponse { http_response: Some(HttpResponse::OkResponse(ok)), ..CheckResponse::default() }
    }

    fn status(code: i32) -> Option<Status> {
        Some(Status { code, ..Status::default() })
    }

    #[test]
    fn what_it_sets_is_there_instead_of_what_the_client_sent() {
        let fixed = ["host", "content-length", "expect", "x-forwarded-client-cert", "x-mesh-downstream-protocol", "te"];
        let options = [("a", 0), ("c", 1), ("d", 3), ("e", 2)].into_iter().chain(fixed.map(|name| (name, 0)));
        let pb = ok(options.map(|(key, action)| option(key, "new", action)).collect());
        let Answer::Allowed(changes) = of_check(pb).unwrap() else { panic!() };
        assert_eq!(changes.remove, ["b"]);
        let mut headers = HeaderMap::new();
        for name in ["a", "c"] {
            headers.append(name, HeaderValue::from_static("forged"));
            headers.append(name, HeaderValue::from_static("twice"));
        }
        changes.request.iter().for_each(|change| change.apply(&mut headers));
        let of = |name: &str| headers.get_all(name).iter().map(|it| it.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!([of("a"), of("c"), of("d"), of("e")], [vec!["new"], vec!["forged", "twice"], vec![], vec!["new"]]);
        assert!(fixed.iter().all(|name| !headers.contains_key(*name)), "{headers:?}");
    }

    #[test]
    fn only_a_good_answer_lets_in() {
        let none = HeaderMap::new();
        let ended = |code: &'static str| {
            HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static(code))])
        };
        let answer = |code, pb: &CheckResponse| of_grpc(StatusCode::OK, &none, grpc_frame(pb), Some(&ended(code)));
        assert!(matches!(answer("0", &CheckResponse::default()), Ok(Answer::Allowed(_))));
        assert!(answer("14", &CheckResponse::default()).is_err());
        assert!(of_grpc(StatusCode::OK, &none, grpc_frame(&ok(vec![])), None).is_err());
        assert!(of_grpc(StatusCode::OK, &none, Bytes::new(), Some(&ended("0"))).is_err());
        assert!(of_grpc(StatusCode::BAD_GATEWAY, &none, grpc_frame(&ok(vec![])), Some(&ended("0"))).is_err());
        for key in [":path", "a b", ""] {
            assert!(answer("0", &ok(vec![option(key, "x", 0)])).is_err(), "{key}");
        }
        assert!(answer("0", &ok(vec![option("a", "x\n", 0)])).is_err());
        // Whatever else it says, the status counts.
        let refused = CheckResponse { status: status(7), ..ok(vec![]) };
        assert!(matches!(answer("0", &refused), Ok(Answer::Denied(it)) if it.status == 403));
    }

    #[test]
    fn a_refusal_has_a_status_headers_and_a_body() {
        let denied = |code| {
            let pb = DeniedHttpResponse {
                status: Some(HttpStatus { code }),
                headers: vec![option("location", "/login", 0), option("content-length", "9", 0)],
                body: "no".to_owned(),
            };
            of_check(CheckResponse {
                status: status(16),
                http_response: Some(HttpResponse::DeniedResponse(pb)),
                ..CheckResponse::default()
            })
        };
        let Ok(Answer::Denied(it)) = denied(302) else { panic!() };
        assert_eq!((it.status.as_u16(), it.headers.len(), &it.body[..]), (302, 1, &b"no"[..]));
        assert!(denied(101).is_err() && denied(600).is_err() && denied(-1).is_err());
    }

    #[test]
    fn over_http_only_the_last_status_of_a_response_is_an_answer() {
        let authorizer = authorizer(over_http(), "/");
        let answer = |status: u16| {
            let (head, ()) = http::Response::builder().status(status).body(()).unwrap().into_parts();
            of_http(&authorizer, head, Bytes::new())
        };
        assert!(matches!(answer(200), Ok(Answer::Allowed(_))));
        for status in [204, 302, 404, 499] {
            assert!(matches!(answer(status), Ok(Answer::Denied(it)) if it.status == status), "{status}");
        }
        for status in [100, 101, 103, 500, 503, 600, 999] {
            assert!(answer(status).is_err(), "{status}");
        }
    }
}
