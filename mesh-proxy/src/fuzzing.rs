//! What must hold for any input, one function for each parser: it never panics, and what it takes can be used.
//!
//! The tests feed them valid input that was damaged: as many of each as PROPTEST_CASES says, 256 without it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, COOKIE, TE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};
use mesh_common::jwt::Jwks;

use crate::config::decode::decode;
use crate::config::{JwtAuthn, JwtProvider, Name, NetworkFilter, RouteSource, RouteTable, TokenAt, TokenPlace};
use crate::detect::{self, Detected, Hello, Progress};
use crate::dns::message::{self, Answer, Query};
use crate::http::{Head, concerns_connection};
use crate::listen::{Direction, Downstream};
use crate::snapshot::{Resource, Type};
use crate::{intercept, jwt, retry, route};

/// The first bytes of a connection. However they are cut, the answer is the same.
pub fn detection(bytes: &[u8]) {
    let whole = detect::classify(bytes);
    for end in [bytes.len() / 4, bytes.len() / 2, bytes.len().saturating_sub(1)] {
        if let early @ Progress::Done(_) = detect::classify(&bytes[..end]) {
            assert_eq!(early, whole, "after {end} bytes");
        }
    }
}

/// Queries of the application, and what resolvers say to them.
pub fn dns(bytes: &[u8]) {
    match Query::read(bytes) {
        Query::Refuse(reply) => assert!(reply[2] & 0x80 != 0 && reply[..2] == bytes[..2]),
        Query::Name { message, .. } => {
            let addresses = vec![[10, 0, 0, 1].into(), [0xfd00, 0, 0, 0, 0, 0, 0, 1].into()];
            let name = Name { addresses, ttl_seconds: 1, canonical: String::new(), alias: None };
            let limit = message::udp_limit(&message);
            let reply = Answer::new(&message, &name).encode(limit).expect("a query that was read can be answered");
            assert!(message::answers(&reply, bytes) || reply.len() <= usize::from(limit));
        }
        Query::Ignore | Query::Other => (),
    }
    message::answers(bytes, bytes);
    message::is_truncated(bytes);
    message::for_udp(bytes.to_vec(), bytes);
}

/// The kernel's answers.
pub fn netlink(bytes: &[u8]) {
    // An answer takes 20 bytes at least.
    assert!(intercept::message::answers(bytes).len() <= bytes.len() / 20);
}

/// A resource of each type; those that are taken are used as a connection or request would.
pub fn xds(bytes: &[u8]) {
    for ty in Type::ALL {
        match decode(ty, bytes) {
            Ok(Resource::Routes(table)) => find(&table),
            Ok(Resource::Listener(listener)) => {
                let hello = Hello { alpn: vec![b"mesh-h2".to_vec()], server_name: Some("a.b".to_owned()) };
                for detected in [Detected::Tls(hello), Detected::Http1, Detected::Http2, Detected::Raw] {
                    for port in [0, 80, 9080] {
                        let chain = detect::chain(&listener, port, &detected);
                        if let Some(NetworkFilter::Http(manager)) = chain.map(|chain| &chain.filter)
                            && let RouteSource::Inline(table) = &manager.routes
                        {
                            find(table);
                        }
                    }
                }
            }
            Ok(_) | Err(_) => (),
        }
    }
}

fn find(table: &RouteTable) {
    let headers = HeaderMap::new();
    for (authority, path) in [("a", "/"), ("a.b:80", "/a/b"), ("[::1]:80", "/a"), ("", "")] {
        let method = Method::GET;
        let subject =
            route::Subject { method: &method, authority, path, query: Some("a=b&c"), headers: &headers, grpc: false };
        route::find(table, &subject);
    }
}

/// The head of a request, as HTTP/1.1 has it, and from there the same in HTTP/2: nothing that concerns the connection goes on, and
/// a head that has been through one proxy is left alone by the next.
pub fn head(bytes: &[u8]) {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut headers);
    if !parsed.parse(bytes).is_ok_and(|status| status.is_complete()) {
        return;
    }
    for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
        let mut request = Request::builder().version(version);
        request = request.method(parsed.method.unwrap_or("GET")).uri(parsed.path.unwrap_or("/"));
        for header in parsed.headers.iter() {
            request = request.header(header.name, header.value);
        }
        let Ok(request) = request.body(()) else { return };
        let there = SocketAddr::from(([10, 0, 0, 1], 80));
        let mut passed: Option<HeaderMap> = None;
        let mut parts = request.into_parts().0;
        for direction in [Direction::Outbound, Direction::Inbound] {
            let head = Head::new(parts, &Downstream::new(there, there, direction));
            let _ = head.check();
            let now = Instant::now();
            if let Some(deadline) = head.grpc_deadline(now) {
                assert!(deadline <= now + Duration::from_secs(99_999_999 * 3600));
            }
            let subject = head.subject();
            assert!(!subject.path.is_empty());
            for name in head.headers.keys() {
                assert!(*name == TE || !concerns_connection(name.as_str()), "{name} went on");
            }
            retry::grpc_status(&head.headers);
            if let Some(before) = &passed {
                assert_eq!(*before, head.headers);
            }
            passed = Some(head.headers.clone());
            let mut again = Request::new(());
            (*again.method_mut(), *again.uri_mut(), *again.version_mut()) = (head.method, head.uri, version);
            *again.headers_mut() = head.headers;
            parts = again.into_parts().0;
        }
    }
}

/// Keys, and a token wherever a request may carry one: nothing that nobody signed is taken, and what a client makes up of claims
/// never goes on.
pub fn token(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(keys) = Jwks::parse(&text) {
        assert_eq!(Jwks::parse(&keys.canonical()).map(|again| again.canonical()), Ok(keys.canonical()));
    }
    let made_up = HeaderName::from_static("x-user");
    let at = |at| TokenPlace { at, providers: vec![0] };
    let provider = JwtProvider {
        issuer: "a".to_owned(),
        audiences: Vec::new(),
        jwks: Jwks::parse(KEYS).expect("a JWKS"),
        forward: false,
        outputs: vec![(made_up.clone(), vec!["sub".to_owned()])],
        words: Vec::new(),
        leeway: 60.0,
    };
    let authn = JwtAuthn {
        providers: vec![provider],
        places: vec![
            at(TokenAt::Header { name: AUTHORIZATION, prefix: "Bearer ".to_owned() }),
            at(TokenAt::Param("t".to_owned())),
            at(TokenAt::Cookie("t".to_owned())),
        ],
        claim_headers: vec![made_up.clone()],
        cache: jwt::Cache::default(),
    };
    assert!(jwt::verify(&authn, &text, 0.0).is_err());
    let mut headers = HeaderMap::from_iter([(made_up.clone(), HeaderValue::from_static("admin"))]);
    for (name, prefix) in [(AUTHORIZATION, "Bearer "), (COOKIE, ""), (COOKIE, "t=")] {
        headers.extend(HeaderValue::from_bytes(&[prefix.as_bytes(), bytes].concat()).map(|value| (name, value)));
    }
    let mut uri: Uri = format!("/?{text}").parse().unwrap_or_default();
    match jwt::admit(&authn, &mut headers, &mut uri, 0.0) {
        Ok(verified) => assert!(verified.is_none() && !headers.contains_key(&made_up)),
        Err(refused) => assert!(text.len() < 40 || !refused.to_string().contains(&*text)),
    }
    jwt::without_tokens(&uri, Some(&authn));
}

/// RFC 8037, A.2.
const KEYS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

#[path = "../../mesh-common/src/fuzzing/damaged.rs"]
pub(crate) mod damaged;

mod tests {
    use proptest::prelude::*;

    use super::damaged::damaged;

    const HEADS: [&str; 4] = [
        "GET /a?b=c HTTP/1.1\r\nHost: reviews:9080\r\nConnection: keep-alive, X-Once\r\nX-Once: 1\r\nTE: gzip, trailers\r\nx-request-id: 1\r\n\r\n",
        "POST http://me@reviews/ HTTP/1.1\r\nHost: reviews\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\nTrailer: x\r\n\r\n",
        "POST /a.B/C HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc+proto\r\nTE: trailers\r\ngrpc-timeout: 250m\r\ngrpc-status: 14\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c, websocket\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nCookie: a=b\r\nCookie: c\r\n\r\n",
    ];
    const FIRST: [&[u8]; 3] =
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03"];

    fn bytes(texts: &[&str]) -> Vec<Vec<u8>> {
        texts.iter().map(|text| text.as_bytes().to_vec()).collect()
    }

    fn queries() -> Vec<Vec<u8>> {
        let query = |kind: u8| {
            let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 7];
            bytes.extend_from_slice(b"reviews\x07default\x03svc\x00\x00");
            bytes.push(kind);
            // EDNS with 1232 bytes.
            bytes.extend_from_slice(&[0, 1, 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
            bytes
        };
        [1, 28, 33, 255].map(query).to_vec()
    }

    /// `{"alg":"EdDSA"}` and `{"iss":"a","sub":"u"}`, signed by nobody.
    fn tokens() -> Vec<Vec<u8>> {
        let token = format!("eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJhIiwic3ViIjoidSJ9.{}", "A".repeat(86));
        let rest = format!("a=b&t={token}&%74=x; t=\"{token}\"; u=v");
        bytes(&[&token, &rest, super::KEYS])
    }

    fn answers() -> Vec<Vec<u8>> {
        let one = [36_u32.to_ne_bytes().as_slice(), &2_u16.to_ne_bytes(), &[0; 26], &7_u32.to_ne_bytes()].concat();
        vec![one.clone(), one.repeat(3)]
    }

    proptest! {
        #[test]
        fn detection(input in damaged(FIRST.map(<[u8]>::to_vec).to_vec())) {
            super::detection(&input);
        }

        #[test]
        fn dns(input in damaged(queries())) {
            super::dns(&input);
        }

        #[test]
        fn token(input in damaged(tokens())) {
            super::token(&input);
        }

        #[test]
        fn netlink(input in damaged(answers())) {
            super::netlink(&input);
        }

        #[test]
        fn head(input in damaged(bytes(&HEADS))) {
            super::head(&input);
        }
    }
}
