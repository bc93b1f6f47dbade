//! What proxies are told, as of one revision of the store.

use envoy_types::pb::google::protobuf::Any;
use sha2::{Digest, Sha256};

/// One resource as it goes over the wire, and the version that names exactly these bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// Hexadecimal, 128 bits of SHA-256 over type and encoding.
    pub version: String,
    pub any: Any,
}

impl Encoded {
    pub fn new(any: Any) -> Self {
        let mut hash = Sha256::new();
        hash.update(any.type_url.as_bytes());
        hash.update([0]);
        hash.update(&any.value);
        Self { version: short_hex(&hash.finalize()), any }
    }

    /// A resource of which only the version is known, from a client that got it on an earlier stream.
    pub fn known_as(version: String) -> Self {
        Self { version, any: Any::default() }
    }
}

/// The first 128 bits of a hash, as text.
pub(crate) fn short_hex(hash: &[u8]) -> String {
    use std::fmt::Write;
    hash.iter().take(16).fold(String::with_capacity(32), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
