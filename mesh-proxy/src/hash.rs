//! What requests have in common that go to the same endpoint: the key of ring hash and Maglev.
//!
//! In: the hash policies of a route, and a request's headers and peer. Out: a key, and the cookies that the client is to
//! bring next time because it had none.

use std::net::IpAddr;

use http::header::{COOKIE, HeaderMap, HeaderValue};
use twox_hash::XxHash64;

use crate::config::{HashBy, HashCookie, HashPolicy};

#[derive(Debug, Default)]
pub(crate) struct Keyed {
    /// `None` if the request has nothing that the policies look at.
    pub(crate) key: Option<u64>,
    /// Values of `Set-Cookie`.
    pub(crate) cookies: Vec<HeaderValue>,
}

/// Allocates only to make a cookie.
pub(crate) fn of_request(policies: &[HashPolicy], headers: &HeaderMap, peer: IpAddr) -> Keyed {
    let mut keyed = Keyed::default();
    for policy in policies {
        let found = match &policy.by {
            HashBy::Header(name) => {
                let mut values = headers.get_all(name).iter().map(HeaderValue::as_bytes).peekable();
                values.peek().is_some().then(|| values.fold(0, XxHash64::oneshot))
            }
            HashBy::Source => Some(of_source(peer)),
            HashBy::Cookie(cookie) => match value_of(&cookie.name, headers) {
                Some(value) => Some(XxHash64::oneshot(0, value)),
                None => made(cookie).map(|(value, header)| {
                    keyed.cookies.push(header);
                    XxHash64::oneshot(0, value.as_bytes())
                }),
            },
        };
        if let Some(hash) = found {
            keyed.key = Some(keyed.key.map_or(hash, |key| key.rotate_left(1) ^ hash));
            if policy.terminal {
                break;
            }
        }
    }
    keyed
}

pub(crate) fn of_source(peer: IpAddr) -> u64 {
    match peer {
        IpAddr::V4(ip) => XxHash64::oneshot(0, &ip.octets()),
        IpAddr::V6(ip) => XxHash64::oneshot(0, &ip.octets()),
    }
}

/// RFC 6265, 4.2: pairs with semicolons between them, over HTTP/2 also in several headers.
fn value_of<'a>(name: &str, headers: &'a HeaderMap) -> Option<&'a [u8]> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|header| header.as_bytes().split(|b| *b == b';'));
    let value = |pair: &'a [u8]| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=");
    pairs.map(value).find_map(|value| value.filter(|it| !it.is_empty()))
}

/// A cookie that nobody has yet, if the policy makes any.
fn made(cookie: &HashCookie) -> Option<(String, HeaderValue)> {
    let ttl = cookie.ttl?;
    let value = format!("{:016x}", fastrand::u64(..));
    let mut header = format!("{}={value}", cookie.name);
    if !ttl.is_zero() {
        header += &format!("; Max-Age={}", ttl.as_secs().max(1));
    }
    if !cookie.path.is_empty() {
        header += &format!("; Path={}", cookie.path);
    }
    header += "; HttpOnly";
    HeaderValue::try_from(header).ok().map(|header| (value, header))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::header::HeaderName;

    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn policy(by: HashBy) -> HashPolicy {
        HashPolicy { by, terminal: true }
    }

    fn by_cookie(ttl: Option<u64>) -> HashPolicy {
        let ttl = ttl.map(Duration::from_secs);
        policy(HashBy::Cookie(HashCookie { name: "s".into(), ttl, path: "/a".into() }))
    }

    fn key(policies: &[HashPolicy], all: &[(&'static str, &'static str)]) -> Option<u64> {
        of_request(policies, &headers(all), PEER).key
    }

    #[test]
    fn the_first_that_the_request_has_decides_and_without_end_all_do() {
        let header = || HashBy::Header(HeaderName::from_static("x-user"));
        let chain = [policy(header()), policy(HashBy::Source)];
        assert_eq!(key(&chain, &[("x-user", "a")]), key(&chain[..1], &[("x-user", "a")]));
        assert_ne!(key(&chain, &[("x-user", "a")]), key(&chain, &[("x-user", "b")]));
        assert_eq!(key(&chain, &[]), Some(of_source(PEER)));
        assert_eq!(key(&chain[..1], &[]), None);
        assert_ne!(key(&chain, &[("x-user", "a"), ("x-user", "b")]), key(&chain, &[("x-user", "b"), ("x-user", "a")]));
        let both = [HashPolicy { by: header(), terminal: false }, policy(HashBy::Source)];
        let all = [key(&both, &[("x-user", "a")]), key(&both, &[("x-user", "b")]), key(&both, &[])];
        assert!(all[0] != all[1] && all[1] != all[2] && all[0] != key(&chain, &[("x-user", "a")]), "{all:?}");
    }

    #[test]
    fn a_cookie_is_found_wherever_it_is() {
        let policies = [by_cookie(None)];
        let expected = key(&policies, &[("cookie", "s=1")]);
        assert!(expected.is_some());
        for all in [&[("cookie", "a=2; s=1;b=3")][..], &[("cookie", "a=2"), ("cookie", "s=1")]] {
            assert_eq!(key(&policies, all), expected, "{all:?}");
        }
        assert_eq!(key(&policies, &[("cookie", "ss=1; s=; xs=1")]), None);
    }

    #[test]
    fn a_missing_cookie_is_made_and_leads_to_the_same_key() {
        let policies = [by_cookie(Some(3600))];
        let first = of_request(&policies, &headers(&[]), PEER);
        let set = first.cookies[0].to_str().unwrap();
        let (pair, attributes) = set.split_once("; ").unwrap();
        assert_eq!(attributes, "Max-Age=3600; Path=/a; HttpOnly");
        let mut again = HeaderMap::new();
        again.insert(COOKIE, HeaderValue::from_str(pair).unwrap());
        let second = of_request(&policies, &again, PEER);
        assert_eq!((second.key, second.cookies.len()), (first.key, 0));
        let other = of_request(&policies, &headers(&[]), PEER);
        assert_ne!(other.key, first.key);
        let session = of_request(&[by_cookie(Some(0))], &headers(&[]), PEER);
        assert!(session.cookies[0].to_str().unwrap().ends_with("; Path=/a; HttpOnly"), "{session:?}");
    }
}
