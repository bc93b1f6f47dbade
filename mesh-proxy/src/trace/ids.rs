//! The names of traces and spans, and how they are written: lower-case hexadecimal digits of a fixed length.

use std::fmt;
use std::num::{NonZeroU64, NonZeroU128};

/// Never zero, which both formats take for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId(NonZeroU128);

/// Never zero either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId(NonZeroU64);

impl TraceId {
    pub(super) fn random() -> Self {
        Self(NonZeroU128::new(fastrand::u128(1..)).unwrap_or(NonZeroU128::MIN))
    }

    pub(crate) fn new(number: u128) -> Option<Self> {
        NonZeroU128::new(number).map(Self)
    }

    pub fn get(self) -> u128 {
        self.0.get()
    }
}

impl SpanId {
    pub(super) fn random() -> Self {
        Self(NonZeroU64::new(fastrand::u64(1..)).unwrap_or(NonZeroU64::MIN))
    }

    pub(super) fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Exactly `digits` lower-case hexadecimal digits.
pub(super) fn hex(text: &[u8], digits: usize) -> Option<u128> {
    if text.len() != digits || digits > 32 {
        return None;
    }
    text.iter().try_fold(0, |number: u128, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

pub(super) fn span_id(text: &[u8]) -> Option<SpanId> {
    SpanId::new(u64::try_from(hex(text, 16)?).ok()?)
}

/// Writes the last hexadecimal digits of a number, as many as there is room for.
pub(crate) fn put_hex(mut number: u128, room: &mut [u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for place in room.iter_mut().rev() {
        *place = HEX[(number & 15) as usize];
        number >>= 4;
    }
}
