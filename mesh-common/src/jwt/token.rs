use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::{Algorithm, Jwks};

/// Longer ones are not looked at.
pub const MAX_TOKEN_BYTES: usize = 16 << 10;

/// Why a token is not taken: for logs and people, and without anything of the token itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the token is longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    #[error("the token is not a JWT: {0}")]
    Malformed(&'static str),
    #[error("the token's algorithm is none of public keys that are known")]
    Algorithm,
    #[error("the token demands an extension")]
    Critical,
    #[error("no rule is for the token's issuer")]
    Issuer,
    #[error("the rule of the token's issuer does not look for it there")]
    Place,
    #[error("there are no keys of the token's issuer yet")]
    NoKeys,
    #[error("no key of the token's issuer fits")]
    UnknownKey,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYetValid,
    #[error("the request has several tokens")]
    Several,
}

/// A token of which nothing is proven yet.
pub struct Token<'a> {
    /// What is signed: both parts as they came.
    signed: &'a str,
    payload: Vec<u8>,
    signature: Vec<u8>,
    algorithm: Algorithm,
    kid: Option<String>,
    issuer: String,
}

/// Members that may come once. What else there is (`jku`, `jwk`, `x5c`: where a forger says that his keys are) is never used.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    #[serde(default)]
    crit: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Issued {
    iss: String,
}

impl<'a> Token<'a> {
    /// Reads what is needed to know whose keys to check it with.
    pub fn parse(text: &'a str) -> Result<Self, Refused> {
        if text.len() > MAX_TOKEN_BYTES {
            return Err(Refused::TooLong);
        }
        let mut parts = text.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Refused::Malformed("it does not have three parts"));
        };
        let signed = &text[..header.len() + 1 + payload.len()];
        let decode =
            |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| Refused::Malformed("a part is not base64url"));
        let (header, payload, signature) = (decode(header)?, decode(payload)?, decode(signature)?);
        let header: Header =
            serde_json::from_slice(&header).map_err(|_| Refused::Malformed("its header is not what it should be"))?;
        let algorithm = Algorithm::parse(&header.alg).ok_or(Refused::Algorithm)?;
        if header.crit.is_some() {
            return Err(Refused::Critical);
        }
        let Issued { iss } = serde_json::from_slice(&payload)
            .map_err(|_| Refused::Malformed("its payload is no JSON object with one issuer"))?;
        Ok(Self { signed, payload, signature, algorithm, kid: header.kid, issuer: iss })
    }

    /// Who it says has issued it.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Its claims, if one of these keys signed it, by an algorithm that is the key's own.
    pub fn verify(&self, keys: &Jwks) -> Result<Map<String, Value>, Refused> {
        if keys.is_empty() {
            return Err(Refused::NoKeys);
        }
        let mut refused = Refused::UnknownKey;
        for key in keys.keys() {
            // A key without a name may be any.
            if key.kid.is_some() && self.kid.is_some() && key.kid != self.kid {
                continue;
            }
            let Some((_, check)) = key.checks.iter().find(|(algorithm, _)| *algorithm == self.algorithm) else {
                continue;
            };
            if check.verify_sig(self.signed.as_bytes(), &self.signature).is_ok() {
                // Deeper than serde_json goes is not a claim that anybody needs.
                return serde_json::from_slice(&self.payload)
                    .map_err(|_| Refused::Malformed("its payload is too deep or no JSON object"));
            }
            refused = Refused::Signature;
        }
        Err(refused)
    }
}
