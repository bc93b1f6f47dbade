use std::fmt;

use aws_lc_rs::signature::ParsedPublicKey;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Algorithm, rsa_key};

/// A JWKS is smaller than this.
pub const MAX_JWKS_BYTES: usize = 64 << 10;
/// A token without `kid` may cost one check for each.
const MAX_KEYS: usize = 32;
/// Of an RSA modulus.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// The public keys of one issuer: those that sign, by algorithms that are known here.
#[derive(Default)]
pub struct Jwks {
    keys: Vec<Key>,
}

pub(super) struct Key {
    pub kid: Option<String>,
    /// What may be signed with it, each ready to check.
    pub checks: Vec<(Algorithm, ParsedPublicKey)>,
    /// Without what is not needed.
    jwk: Value,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    #[error("it is longer than {MAX_JWKS_BYTES} bytes")]
    TooLong,
    #[error("it is not a JSON object with an array `keys`")]
    NotASet,
    #[error("it has more than {MAX_KEYS} keys")]
    TooMany,
    #[error("keys[{0}] {1}")]
    Key(usize, &'static str),
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Map<String, Value>>,
}

impl Jwks {
    /// Keys that are not for signatures, or of kinds and sizes that are not supported, are left out (RFC 7517, 5); a set in which
    /// something is wrong, or secret, is refused as a whole. It may be empty: then no token is good.
    pub fn parse(text: &str) -> Result<Self, JwksError> {
        if text.len() > MAX_JWKS_BYTES {
            return Err(JwksError::TooLong);
        }
        let Set { keys } = serde_json::from_str(text).map_err(|_| JwksError::NotASet)?;
        if keys.len() > MAX_KEYS {
            return Err(JwksError::TooMany);
        }
        let key = |(i, jwk): (usize, &Map<String, Value>)| key(jwk).map_err(|what| JwksError::Key(i, what));
        let keys = keys.iter().enumerate().map(key).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { keys: keys.into_iter().flatten().collect() })
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter()
    }

    /// The keys that are used, with what is needed of them, always in the same form.
    pub fn canonical(&self) -> String {
        let keys: Vec<&Value> = self.keys.iter().map(|key| &key.jwk).collect();
        json!({ "keys": keys }).to_string()
    }
}

impl fmt::Debug for Jwks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| &key.kid)).finish()
    }
}

/// `None`: it is not for this.
fn key(jwk: &Map<String, Value>) -> Result<Option<Key>, &'static str> {
    let text = |name: &str| match jwk.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err("has a member that should be a string"),
    };
    let kind = text("kty")?.ok_or("has no `kty`")?;
    if kind == "oct" || jwk.contains_key("k") {
        return Err("is symmetric: whoever knows it can make tokens, so it may not be published");
    }
    if jwk.contains_key("d") {
        return Err("is a private key, which may not be published");
    }
    if text("use")?.is_some_and(|it| it != "sig") || !may_verify(jwk)? {
        return Ok(None);
    }
    let bytes = |name: &str| {
        let decoded = text(name)?.and_then(|text| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok());
        decoded.filter(|bytes| !bytes.is_empty()).ok_or("lacks a number, or has one that is not base64url")
    };
    let wanted = text("alg")?;
    // One for an algorithm that is not known here is not for us.
    let only = wanted.map(Algorithm::parse);
    if only == Some(None) {
        return Ok(None);
    }
    let fits = |algorithm: &Algorithm| only.flatten().is_none_or(|only| only == *algorithm);
    let mut kept = Map::new();
    let checks = match kind {
        "RSA" => {
            let (n, e) = (stripped(bytes("n")?), stripped(bytes("e")?));
            if !RSA_BYTES.contains(&n.len()) {
                return Ok(None);
            }
            let all = Algorithm::RSA.into_iter().filter(fits);
            let parsed = all.map(|algorithm| Some((algorithm, rsa_key(&n, &e, algorithm)?)));
            parsed.collect::<Option<Vec<_>>>().ok_or("is not a key of RSA")?
        }
        "EC" | "OKP" => {
            let curve = text("crv")?.ok_or("has no `crv`")?;
            let known = Algorithm::of_curve(curve).filter(|(it, ..)| (*it == Algorithm::EdDsa) == (kind == "OKP"));
            let Some((algorithm, verification, size)) = known else { return Ok(None) };
            let mut point = bytes("x")?;
            if kind == "EC" {
                point.insert(0, 4);
                point.extend(bytes("y")?);
            }
            let length = if kind == "EC" { 1 + 2 * size } else { size };
            let parsed = (point.len() == length).then(|| ParsedPublicKey::new(verification, &point).ok()).flatten();
            let parsed = parsed.ok_or("is not a point of its curve")?;
            if fits(&algorithm) { vec![(algorithm, parsed)] } else { Vec::new() }
        }
        _ => return Ok(None),
    };
    if checks.is_empty() {
        return Ok(None);
    }
    for name in ["kty", "kid", "alg", "crv", "x", "y", "n", "e"] {
        kept.extend(jwk.get(name).filter(|it| !it.is_null()).map(|value| (name.to_owned(), value.clone())));
    }
    kept.insert("use".to_owned(), "sig".into());
    let kid = text("kid")?.map(str::to_owned);
    Ok(Some(Key { kid, checks, jwk: Value::Object(kept) }))
}

fn may_verify(jwk: &Map<String, Value>) -> Result<bool, &'static str> {
    match jwk.get("key_ops") {
        None | Some(Value::Null) => Ok(true),
        Some(Value::Array(operations)) => Ok(operations.iter().any(|it| it == "verify")),
        Some(_) => Err("has `key_ops` that are no array"),
    }
}

/// Some write a number's leading zeros, which the library does not take.
fn stripped(bytes: Vec<u8>) -> Vec<u8> {
    bytes.into_iter().skip_while(|byte| *byte == 0).collect()
}
