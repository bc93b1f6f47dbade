//! Tokens that others issued (RFC 7519), as far as the public keys of their issuers prove them: keys (RFC 7517) and signatures
//! (RFC 7515, 7518).
//!
//! In: a JWKS, and a token in its compact form. Out: keys that can be used, and whether one of them signed the token. Nothing
//! here looks at a clock or at what a rule asks for.

mod jwks;
mod token;
mod uri;

pub use jwks::{Jwks, JwksError, MAX_JWKS_BYTES};
pub use token::{MAX_TOKEN_BYTES, Refused, Token};
pub use uri::check_uri;

use aws_lc_rs::signature::{self, RsaParameters, RsaPublicKeyComponents, VerificationAlgorithm};

/// Those of public keys: there is no name here for `none` or for a shared secret, so nothing can ask for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

impl Algorithm {
    const RSA: [Self; 6] = [Self::Rs256, Self::Rs384, Self::Rs512, Self::Ps256, Self::Ps384, Self::Ps512];

    /// RFC 7518, 3.1 and RFC 8037, 3.1.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }

    /// `None` for those that are not RSA's.
    fn rsa(self) -> Option<&'static RsaParameters> {
        Some(match self {
            Self::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
            Self::Es256 | Self::Es384 | Self::EdDsa => return None,
        })
    }

    fn of_curve(curve: &str) -> Option<(Self, &'static dyn VerificationAlgorithm, usize)> {
        Some(match curve {
            "P-256" => (Self::Es256, &signature::ECDSA_P256_SHA256_FIXED, 32),
            "P-384" => (Self::Es384, &signature::ECDSA_P384_SHA384_FIXED, 48),
            "Ed25519" => (Self::EdDsa, &signature::ED25519, 32),
            _ => return None,
        })
    }
}

fn rsa_key(n: &[u8], e: &[u8], algorithm: Algorithm) -> Option<signature::ParsedPublicKey> {
    RsaPublicKeyComponents { n, e }.to_parsed_public_key(algorithm.rsa()?).ok()
}

#[cfg(test)]
mod tests;
