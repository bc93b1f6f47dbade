//! Headers that concern one connection only (RFC 9110, 7.6.1).

use http::HeaderMap;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};

use super::REQUEST_ID;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// The protocols that the client would go over to. Prior knowledge aside, HTTP/2 in clear is not for a proxy to agree to
/// on the server's behalf.
pub(super) fn upgrades_to(headers: &HeaderMap) -> Option<HeaderValue> {
    let values = headers.get_all(UPGRADE).iter().filter_map(|it| it.to_str().ok());
    let names = values.flat_map(|it| it.split(',')).map(str::trim);
    let kept: Vec<_> = names.filter(|it| !it.is_empty() && !it.eq_ignore_ascii_case("h2c")).collect();
    if kept.is_empty() { None } else { HeaderValue::try_from(kept.join(", ")).ok() }
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
        .filter(|name| ![HOST, TE, CONTENT_LENGTH, CONTENT_TYPE, REQUEST_ID].contains(name))
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
