//! The name that a request has in everybody's logs.

use http::header::HeaderValue;

use crate::trace::put_hex;

/// A random UUID (RFC 9562, version 4).
pub(super) fn request_id() -> HeaderValue {
    let random = (fastrand::u128(..) & !(0xf << 76) & !(0b11 << 62)) | (4 << 76) | (0b10 << 62);
    let mut text = [b'-'; 36];
    // How many bits are behind each group.
    for (group, behind) in [(0..8, 96), (9..13, 80), (14..18, 64), (19..23, 48), (24..36, 0)] {
        put_hex(random >> behind, &mut text[group]);
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
