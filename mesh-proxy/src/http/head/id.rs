//! The name that a request has in everybody's logs.

use http::header::HeaderValue;

/// A random UUID (RFC 9562, version 4).
pub(super) fn request_id() -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let random = (fastrand::u128(..) & !(0xf << 76) & !(0b11 << 62)) | (4 << 76) | (0b10 << 62);
    let mut text = [b'-'; 36];
    let mut nibbles = (0..32).map(|i| HEX[(random >> (124 - 4 * i)) as usize & 15]);
    for (place, byte) in text.iter_mut().enumerate() {
        if ![8, 13, 18, 23].contains(&place) {
            *byte = nibbles.next().unwrap_or(b'0');
        }
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_uuids_of_version_4_and_differ() {
        let (a, b) = (request_id(), request_id());
        assert_ne!(a, b);
        let text = a.to_str().unwrap();
        let pattern =
            regex::Regex::new("^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$").unwrap();
        assert!(pattern.is_match(text), "{text}");
    }
}
