//! Where a request carries its token.

use std::borrow::Cow;

use http::header::COOKIE;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Uri};
use mesh_common::jwt::Refused;

use crate::config::{JwtAuthn, TokenAt, TokenPlace};

/// RFC 6750, 2.3: the name that everybody gives to a token in a query.
const ACCESS_TOKEN: &str = "access_token";

/// The one token of a request.
#[derive(Debug)]
pub(super) struct Found<'r> {
    pub token: Cow<'r, str>,
    /// Indices of where it is: the same in several places is one.
    pub places: Vec<usize>,
}

/// Of several that are not the same, it would not be certain who asks.
pub(super) fn find<'r>(
    places: &[TokenPlace],
    headers: &'r HeaderMap,
    query: Option<&'r str>,
) -> Result<Option<Found<'r>>, Refused> {
    let mut found: Option<Found<'r>> = None;
    for (index, place) in places.iter().enumerate() {
        let mut add = |token: &'r [u8]| {
            if token.is_empty() {
                return Ok(());
            }
            let token = std::str::from_utf8(token).map_err(|_| Refused::Malformed("it is not text"))?;
            match &mut found {
                None => found = Some(Found { token: Cow::Borrowed(token), places: vec![index] }),
                Some(found) if found.token == token => found.places.push(index),
                Some(_) => return Err(Refused::Several),
            }
            Ok(())
        };
        match &place.at {
            TokenAt::Header { name, prefix } => {
                for value in headers.get_all(name) {
                    // That with the longest prefix says what the value is.
                    let earlier = &places[..index];
                    let taken = |it: &TokenPlace| match &it.at {
                        TokenAt::Header { name: other, prefix } => other == name && after(prefix, value).is_some(),
                        TokenAt::Param(_) | TokenAt::Cookie(_) => false,
                    };
                    if !earlier.iter().any(taken)
                        && let Some(token) = after(prefix, value)
                    {
                        add(token)?;
                    }
                }
            }
            TokenAt::Param(name) => {
                for (_, value) in query.into_iter().flat_map(pairs).filter(|(pair, _)| is_named(pair, name)) {
                    add(value.as_bytes())?;
                }
            }
            TokenAt::Cookie(name) => {
                for header in headers.get_all(COOKIE) {
                    for (_, value) in cookies(header).filter(|(other, _)| *other == name.as_bytes()) {
                        add(unquoted(value))?;
                    }
                }
            }
        }
    }
    Ok(found)
}

impl Found<'_> {
    pub fn into_owned(self) -> Found<'static> {
        Found { token: Cow::Owned(self.token.into_owned()), places: self.places }
    }

    /// Takes the token out of the request.
    pub fn remove(&self, authn: &JwtAuthn, headers: &mut HeaderMap, uri: &mut Uri) {
        for place in &self.places {
            match &authn.places[*place].at {
                TokenAt::Header { name, prefix } => {
                    let is_token = |value: &HeaderValue| after(prefix, value) == Some(self.token.as_bytes());
                    let kept: Vec<_> = headers.get_all(name).iter().filter(|it| !is_token(it)).cloned().collect();
                    headers.remove(name);
                    kept.into_iter().for_each(|value| _ = headers.append(name, value));
                }
                TokenAt::Param(name) => *uri = without_param(uri, name),
                TokenAt::Cookie(name) => remove_cookie(headers, name.as_bytes()),
            }
        }
    }
}

/// A request's target as logs may have it: without tokens.
pub(crate) fn without_tokens(uri: &Uri, authn: Option<&JwtAuthn>) -> Uri {
    let mut uri = without_param(uri, ACCESS_TOKEN);
    for place in authn.into_iter().flat_map(|authn| &authn.places) {
        if let TokenAt::Param(name) = &place.at {
            uri = without_param(&uri, name);
        }
    }
    uri
}

/// What comes after the prefix, whose letters may be of either case: schemes of authentication are (RFC 9110, 11.1).
fn after<'v>(prefix: &str, value: &'v HeaderValue) -> Option<&'v [u8]> {
    let (start, rest) = value.as_bytes().split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix.as_bytes()).then(|| rest.trim_ascii())
}

fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// A server decodes names before it looks at them.
fn is_named(written: &str, name: &str) -> bool {
    if !written.contains('%') {
        return written == name;
    }
    let mut decoded = Vec::with_capacity(written.len());
    let mut rest = written.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let hex = |at: usize| after.get(at).and_then(|it| char::from(*it).to_digit(16));
        match (byte, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            _ => {
                decoded.push(*byte);
                rest = after;
            }
        }
    }
    decoded == name.as_bytes()
}

fn without_param(uri: &Uri, name: &str) -> Uri {
    let Some(query) = uri.query() else { return uri.clone() };
    if !pairs(query).any(|(written, _)| is_named(written, name)) {
        return uri.clone();
    }
    let named = |pair: &&str| is_named(pair.split_once('=').map_or(*pair, |(name, _)| name), name);
    let kept: Vec<&str> = query.split('&').filter(|pair| !named(pair)).collect();
    let path = match kept.as_slice() {
        [] => uri.path().to_owned(),
        kept => format!("{}?{}", uri.path(), kept.join("&")),
    };
    let mut parts = uri.clone().into_parts();
    // Parts of what was one are one.
    parts.path_and_query = PathAndQuery::try_from(path).ok();
    Uri::from_parts(parts).unwrap_or_default()
}

fn cookies(header: &HeaderValue) -> impl Iterator<Item = (&[u8], &[u8])> {
    header.as_bytes().split(|b| *b == b';').filter_map(|cookie| {
        let cookie = cookie.trim_ascii();
        let at = cookie.iter().position(|b| *b == b'=')?;
        Some((cookie[..at].trim_ascii_end(), cookie[at + 1..].trim_ascii_start()))
    })
}

fn unquoted(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value)
}

fn remove_cookie(headers: &mut HeaderMap, name: &[u8]) {
    let others = |header: &HeaderValue| {
        let cookies = header.as_bytes().split(|b| *b == b';').map(<[u8]>::trim_ascii);
        let kept: Vec<&[u8]> = cookies.filter(|it| !it.is_empty() && !has_name(it, name)).collect();
        HeaderValue::from_bytes(&kept.join(&b"; "[..])).ok().filter(|value| !value.is_empty())
    };
    let kept: Vec<_> = headers.get_all(COOKIE).iter().filter_map(others).collect();
    headers.remove(COOKIE);
    kept.into_iter().for_each(|value| _ = headers.append(COOKIE, value));
}

fn has_name(cookie: &[u8], name: &[u8]) -> bool {
    cookie.strip_prefix(name).is_some_and(|rest| rest.trim_ascii_start().starts_with(b"="))
}
