//! Who asks for something, as a token proves it (Envoy's JWT filter).
//!
//! In: a request's head and the rules. Out: the token's claims, and a head without what a client may not say; or why the
//! request is refused. A request without a token is nobody's, and it is for the policies to say what that may do.

mod cache;
mod claims;
mod places;

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Uri};
use mesh_common::jwt::{Refused, Token};
use serde_json::{Map, Value};

pub use cache::Cache;
pub use claims::holds;
pub(crate) use places::without_tokens;

use crate::config::{JwtAuthn, JwtProvider};
use places::Found;

pub type Claims = Map<String, Value>;

/// A token that was good when it was checked.
#[derive(Debug, PartialEq)]
pub struct Verified {
    /// Index of whose it is.
    provider: usize,
    /// As policies see them: lists of words are lists.
    pub claims: Claims,
}

/// What the request's token proves, if it has one. Nothing is changed.
pub fn check(
    authn: &JwtAuthn,
    headers: &HeaderMap,
    query: Option<&str>,
    now: f64,
) -> Result<Option<Arc<Verified>>, Refused> {
    Ok(found(authn, headers, query, now)?.map(|(_, verified)| verified))
}

/// The same; and the request goes on with the claims that the application is to see, without those that the client has made up,
/// and without the token unless the rule leaves it.
pub(crate) fn admit(
    authn: &JwtAuthn,
    headers: &mut HeaderMap,
    uri: &mut Uri,
    now: f64,
) -> Result<Option<Arc<Verified>>, Refused> {
    let found = found(authn, headers, uri.query(), now)?.map(|(found, verified)| (found.into_owned(), verified));
    for name in &authn.claim_headers {
        headers.remove(name);
    }
    let Some((found, verified)) = found else { return Ok(None) };
    let provider = &authn.providers[verified.provider];
    if !provider.forward {
        found.remove(authn, headers, uri);
    }
    for (name, way) in &provider.outputs {
        if let Some(value) = claims::at(&verified.claims, way).and_then(header_value) {
            headers.insert(name, value);
        }
    }
    Ok(Some(verified))
}

type Proven<'r> = (Found<'r>, Arc<Verified>);

fn found<'r>(
    authn: &JwtAuthn,
    headers: &'r HeaderMap,
    query: Option<&'r str>,
    now: f64,
) -> Result<Option<Proven<'r>>, Refused> {
    let Some(found) = places::find(&authn.places, headers, query)? else { return Ok(None) };
    let verified = verify(authn, &found.token, now)?;
    let takes = |place: &usize| authn.places[*place].providers.contains(&verified.provider);
    if found.places.iter().all(takes) { Ok(Some((found, verified))) } else { Err(Refused::Place) }
}

/// Whether this is a good token, wherever it is from. `now` is in seconds since 1970.
pub fn verify(authn: &JwtAuthn, token: &str, now: f64) -> Result<Arc<Verified>, Refused> {
    let key = Cache::key(token);
    if let Some(verified) = authn.cache.find(&key) {
        in_time(&authn.providers[verified.provider], &verified.claims, now)?;
        return Ok(verified);
    }
    let parsed = Token::parse(token)?;
    let (index, provider) = authn
        .providers
        .iter()
        .enumerate()
        .find(|(_, provider)| provider.issuer == parsed.issuer())
        .ok_or(Refused::Issuer)?;
    let mut claims = parsed.verify(&provider.jwks)?;
    in_time(provider, &claims, now)?;
    for_us(provider, &claims)?;
    claims::split_words(&mut claims, &provider.words);
    let verified = Arc::new(Verified { provider: index, claims });
    authn.cache.keep(key, token.len(), &verified);
    Ok(verified)
}

/// RFC 7519, 4.1.4 and 4.1.5.
fn in_time(provider: &JwtProvider, claims: &Claims, now: f64) -> Result<(), Refused> {
    let at = |name: &str| match claims.get(name) {
        None => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or(Refused::Malformed("a time in it is no number")),
    };
    if at("exp")?.is_some_and(|end| now >= end + provider.leeway) {
        return Err(Refused::Expired);
    }
    if at("nbf")?.is_some_and(|start| now < start - provider.leeway) {
        return Err(Refused::NotYetValid);
    }
    Ok(())
}

/// RFC 7519, 4.1.3.
fn for_us(provider: &JwtProvider, claims: &Claims) -> Result<(), Refused> {
    if provider.audiences.is_empty() {
        return Ok(());
    }
    let wanted = |value: &Value| value.as_str().is_some_and(|it| provider.audiences.iter().any(|own| own == it));
    let found = match claims.get("aud") {
        Some(Value::Array(several)) => several.iter().any(wanted),
        Some(one) => wanted(one),
        None => false,
    };
    if found { Ok(()) } else { Err(Refused::Audience) }
}

/// Text, a number, true or false. Text that no header can hold is left out, and never cut.
fn header_value(value: &Value) -> Option<HeaderValue> {
    match value {
        Value::String(text) => HeaderValue::from_bytes(text.as_bytes()).ok(),
        Value::Number(number) => HeaderValue::try_from(number.to_string()).ok(),
        Value::Bool(value) => Some(HeaderValue::from_static(if *value { "true" } else { "false" })),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests;
