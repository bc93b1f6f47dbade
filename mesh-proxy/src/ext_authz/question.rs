//! What is told of a request.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress, address};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request as PbRequest};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use envoy_types::pb::google::protobuf::Timestamp;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, HeaderValue, TE};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, Request};

use super::is_fixed;
use crate::config::{Authorizer, AuthorizerProtocol, StringMatch};
use crate::error::{Error, Kind};
use crate::http::{Exchange, Head, RequestBody};
use crate::route::text_matches;
use crate::trace::Trace;
use crate::upstream::{Target, Version, grpc_frame, own_request};

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
/// Whether only the beginning of the body is told; never taken from a client.
const PARTIAL: &str = "x-envoy-auth-partial-body";

/// The same for each endpoint that is tried.
pub(super) struct Question {
    grpc: bool,
    method: Method,
    path: PathAndQuery,
    authority: Authority,
    headers: HeaderMap,
    body: Bytes,
}

impl Question {
    pub fn new(authorizer: &Authorizer, exchange: &Exchange, body: Option<(Bytes, bool)>) -> Result<Self, Error> {
        match &authorizer.protocol {
            AuthorizerProtocol::Grpc => Ok(by_grpc(authorizer, exchange, body)),
            AuthorizerProtocol::Http { prefix, .. } => by_http(authorizer, prefix, &exchange.head, body),
        }
    }

    pub fn request(
        &self,
        target: &Target,
        version: Version,
        trace: Option<&Trace>,
    ) -> Result<Request<RequestBody>, Error> {
        let body = if self.body.is_empty() { RequestBody::empty() } else { RequestBody::full(self.body.clone()) };
        let mut request = own_request(target, version, self.grpc, &self.authority, &self.path, body)?;
        *request.method_mut() = self.method.clone();
        let headers = request.headers_mut();
        for name in self.headers.keys() {
            headers.remove(name);
        }
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
        }
        if let Some(trace) = trace {
            trace.tell(headers);
        }
        Ok(request)
    }
}

fn by_grpc(authorizer: &Authorizer, exchange: &Exchange, body: Option<(Bytes, bool)>) -> Question {
    let message = CheckRequest { attributes: Some(attributes(authorizer, exchange, body)) };
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    Question {
        grpc: true,
        method: Method::POST,
        path: PathAndQuery::from_static(CHECK),
        authority: authorizer.authority.clone(),
        headers,
        body: grpc_frame(&message),
    }
}

fn attributes(authorizer: &Authorizer, exchange: &Exchange, body: Option<(Bytes, bool)>) -> AttributeContext {
    let Exchange { conn, head, .. } = exchange;
    let peer = |at: SocketAddr, principal: String| Peer { address: Some(address(at)), principal, ..Peer::default() };
    let own = conn.ctx.tls.identity().map(|it| it.to_string()).unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut http = HttpRequest {
        id: head.request_id.to_str().unwrap_or_default().to_owned(),
        method: head.method.as_str().to_owned(),
        headers: told(authorizer.headers.as_deref(), head),
        path: path_and_query(head),
        host: head.authority().to_owned(),
        scheme: scheme(head).to_owned(),
        size: head.headers.get(CONTENT_LENGTH).and_then(|it| it.to_str().ok()?.parse().ok()).unwrap_or(-1),
        protocol: crate::telemetry::Protocol::from(head.version).as_str().to_owned(),
        ..HttpRequest::default()
    };
    if let Some((data, partial)) = body {
        http.headers.insert(PARTIAL.to_owned(), partial.to_string());
        if authorizer.body.is_some_and(|it| it.as_bytes) {
            http.raw_body = data.to_vec();
        } else {
            http.body = String::from_utf8_lossy(&data).into_owned();
        }
    }
    let time = Timestamp {
        seconds: i64::try_from(now.as_secs()).unwrap_or_default(),
        nanos: i32::try_from(now.subsec_nanos()).unwrap_or_default(),
    };
    AttributeContext {
        source: Some(peer(conn.downstream.peer, conn.identity.clone().unwrap_or_default())),
        destination: Some(peer(conn.downstream.original_destination, own)),
        request: Some(PbRequest { time: Some(time), http: Some(http) }),
        ..AttributeContext::default()
    }
}

fn address(at: SocketAddr) -> Address {
    let socket = SocketAddress {
        address: at.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(u32::from(at.port()))),
        ..SocketAddress::default()
    };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}

/// With the path that policies see.
fn path_and_query(head: &Head) -> String {
    match head.uri.query() {
        Some(query) => format!("{}?{query}", head.path()),
        None => head.path().to_owned(),
    }
}

fn scheme(head: &Head) -> &str {
    head.uri.scheme_str().unwrap_or("http")
}

/// All of one name are one text, as Envoy has it.
fn told(wanted: Option<&[StringMatch]>, head: &Head) -> HashMap<String, String> {
    let is_wanted = |name: &str| wanted.is_none_or(|it| it.iter().any(|it| text_matches(it, name)));
    let mut all = HashMap::new();
    let path = path_and_query(head);
    for (name, value) in [
        (":authority", head.authority()),
        (":method", head.method.as_str()),
        (":path", path.as_str()),
        (":scheme", scheme(head)),
    ] {
        if is_wanted(name) {
            all.insert(name.to_owned(), value.to_owned());
        }
    }
    let names = head.headers.keys().filter(|name| *name != HOST && *name != PARTIAL);
    for name in names.filter(|name| is_wanted(name.as_str())) {
        let values: Vec<_> =
            head.headers.get_all(name).iter().map(|it| String::from_utf8_lossy(it.as_bytes())).collect();
        all.insert(name.as_str().to_owned(), values.join(if name == COOKIE { "; " } else { "," }));
    }
    all
}

fn by_http(authorizer: &Authorizer, prefix: &str, head: &Head, body: Option<(Bytes, bool)>) -> Result<Question, Error> {
    if head.method == Method::CONNECT {
        return Err(Error::because(Kind::DownstreamProtocol, "over HTTP nobody can be asked about a tunnel"));
    }
    let text = format!("{prefix}{}", path_and_query(head));
    let path = text.parse().map_err(|error| Error::because(Kind::DownstreamProtocol, error))?;
    let mut headers = HeaderMap::new();
    let wanted = authorizer.headers.as_deref().unwrap_or_default();
    for (name, value) in head.headers.iter().filter(|(name, _)| !is_fixed(name) && *name != PARTIAL) {
        if *name == AUTHORIZATION || wanted.iter().any(|it| text_matches(it, name.as_str())) {
            headers.append(name, value.clone());
        }
    }
    let (body, partial) = body.unzip();
    if let Some(partial) = partial {
        headers.insert(PARTIAL, HeaderValue::from_static(if partial { "true" } else { "false" }));
    }
    let authority = head.authority().parse().unwrap_or_else(|_| authorizer.authority.clone());
    Ok(Question { grpc: false, method: head.method.clone(), path, authority, headers, body: body.unwrap_or_default() })
}
