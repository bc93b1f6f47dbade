//! Join tokens: how a workload that has no certificate yet proves what it may become.
//!
//! `mesh1.<id>.<secret>.<root>`, all three in lower-case hex: 8 bytes by which the control plane finds the token, 32
//! bytes that it keeps only a hash of, and the SHA-256 of the root certificate's DER, by which the workload knows the
//! control plane before it has any other trust.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

const PREFIX: &str = "mesh1";
const ID_BYTES: usize = 8;

/// A parsed token. `Debug` leaves the secret out and there is no `Display`: printing one is a deliberate
/// [`JoinToken::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: String,
    secret: [u8; 32],
    root: [u8; 32],
}

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    #[error(
        "this is not a join token: it must have the form mesh1.<id>.<secret>.<root>; make one with `meshctl token create`"
    )]
    Form,
    #[error("the {0} of the join token is damaged: it must be {1} hex digits; copy the token again, whole")]
    Part(&'static str, usize),
}

impl JoinToken {
    pub fn new(id: [u8; ID_BYTES], secret: [u8; 32], root: [u8; 32]) -> Self {
        Self { id: to_hex(&id), secret, root }
    }

    /// What the control plane finds the token by; no secret.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// SHA-256 of the secret, which is all that the control plane keeps of it.
    pub fn secret_hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret).into()
    }

    /// SHA-256 of the DER of the root certificate that the mesh is verified against.
    pub fn root(&self) -> &[u8; 32] {
        &self.root
    }

    /// Whether this certificate (DER) is the root that the token names.
    pub fn pins(&self, certificate: &[u8]) -> bool {
        fingerprint(certificate) == self.root
    }

    /// The whole token, secret included.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}.{}.{}.{}", self.id, to_hex(&self.secret), to_hex(&self.root))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).field("root", &to_hex(&self.root)).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    /// White space around the token is allowed, since it usually comes from a file.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('.');
        let (Some(PREFIX), Some(id), Some(secret), Some(root), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Form);
        };
        let id: [u8; ID_BYTES] = from_hex(id).ok_or(TokenError::Part("id", ID_BYTES * 2))?;
        let secret = from_hex(secret).ok_or(TokenError::Part("secret", 64))?;
        let root = from_hex(root).ok_or(TokenError::Part("root fingerprint", 64))?;
        Ok(Self::new(id, secret, root))
    }
}

/// SHA-256 of a certificate's DER.
pub fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

/// Exactly `N` bytes of lower-case hex, or nothing.
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken::new([1; 8], [0xab; 32], [2; 32])
    }

    #[test]
    fn reads_what_it_writes() {
        let text = token().reveal();
        assert_eq!(text.parse::<JoinToken>().unwrap(), token());
        assert_eq!(format!(" {text}\n").parse::<JoinToken>().unwrap(), token());
    }

    #[test]
    fn debug_hides_the_secret() {
        let shown = format!("{:?}", token());
        assert!(shown.contains("0101010101010101"), "{shown}");
        assert!(!shown.contains("abab"), "{shown}");
    }

    #[test]
    fn refuses_what_is_damaged() {
        let text = token().reveal();
        for bad in [
            "",
            "mesh1",
            "mesh1...",
            "mesh2.1.2.3",
            &text[..text.len() - 1],
            &text.to_uppercase(),
            &format!("{text}.x"),
        ] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
        assert_eq!("mesh1.01.02.03".parse::<JoinToken>(), Err(TokenError::Part("id", 16)));
    }

    #[test]
    fn pins_one_root() {
        let token = JoinToken::new([0; 8], [0; 32], fingerprint(b"root"));
        assert!(token.pins(b"root"));
        assert!(!token.pins(b"other"));
    }
}
