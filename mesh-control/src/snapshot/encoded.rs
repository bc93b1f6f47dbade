//! Resources as bytes with versions, kept once however many askers and snapshots share them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

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

/// Finds the one copy of equal resources, for as long as somebody holds it.
#[derive(Debug, Default)]
pub(super) struct Interner {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    by_version: HashMap<String, Weak<Encoded>>,
    /// Size after the last sweep.
    swept: usize,
}

impl Interner {
    pub(super) fn intern(&self, any: Any) -> Arc<Encoded> {
        let fresh = Encoded::new(any);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = known.by_version.get(&fresh.version).and_then(Weak::upgrade) {
            return held;
        }
        let fresh = Arc::new(fresh);
        known.by_version.insert(fresh.version.clone(), Arc::downgrade(&fresh));
        fresh
    }

    /// Forgets what nobody holds, once that may be half of all.
    pub(super) fn sweep(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.by_version.len() > 2 * known.swept {
            known.by_version.retain(|_, held| held.strong_count() > 0);
            known.swept = known.by_version.len();
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).by_version.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: &[u8]) -> Any {
        Any { type_url: type_url.to_owned(), value: value.to_vec() }
    }

    #[test]
    fn a_version_names_type_and_bytes() {
        let version = |any| Encoded::new(any).version;
        assert_eq!(version(any("a", b"x")), version(any("a", b"x")));
        assert_ne!(version(any("a", b"x")), version(any("a", b"y")));
        assert_ne!(version(any("a", b"x")), version(any("b", b"x")));
        assert_eq!(version(any("a", b"x")).len(), 32);
    }

    #[test]
    fn equal_bytes_are_kept_once_and_only_while_held() {
        let interner = Interner::default();
        let first = interner.intern(any("a", b"x"));
        assert!(Arc::ptr_eq(&first, &interner.intern(any("a", b"x"))));
        drop(interner.intern(any("a", b"y")));
        interner.sweep();
        assert_eq!(interner.len(), 1);
        drop(first);
        drop((0..4u8).map(|n| interner.intern(any("a", &[n]))).collect::<Vec<_>>());
        interner.sweep();
        assert_eq!(interner.len(), 0);
    }
}
