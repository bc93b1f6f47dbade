//! What must not be in anybody's log or on anybody's screen, told by its name and, where that says nothing, by its look.

use std::borrow::Cow;

/// In place of it.
pub const REDACTED: &str = "[redacted]";

/// Headers whose values let whoever knows them be somebody.
const HEADERS: [&str; 5] = ["authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key"];
/// Parts of names of fields, headers and annotations whose content is a secret.
const WORDS: [&str; 4] = ["secret", "password", "token", "private"];
/// Parts of names of headers alone, for what an application may have made up.
const HEADER_WORDS: [&str; 14] = [
    "auth",
    "cookie",
    "credential",
    "session",
    "passwd",
    "passphrase",
    "apikey",
    "api-key",
    "api_key",
    "access-key",
    "jwt",
    "signature",
    "csrf",
    "xsrf",
];
/// How values begin that prove who somebody is.
const SCHEMES: [&str; 6] = ["bearer ", "basic ", "digest ", "negotiate ", "ntlm ", "aws4-hmac-sha256"];
/// `{"` in Base64: how every JWT begins.
const JWT: &str = "eyJ";

/// Whether what a field, a header or an annotation of this name has is a secret.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    HEADERS.contains(&name.as_str()) || WORDS.iter().any(|word| name.contains(word))
}

/// Whether a header of this name may hold something that proves who somebody is. Rather one too many.
pub fn is_secret_header(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    is_secret(&lower) || HEADER_WORDS.iter().any(|word| lower.contains(word))
}

/// A header's value as it may be shown: without what looks like a secret, and without the query of what looks like an address.
pub fn shown_header<'v>(name: &str, value: &'v str) -> Cow<'v, str> {
    let scheme = |scheme: &&str| value.get(..scheme.len()).is_some_and(|it| it.eq_ignore_ascii_case(scheme));
    let secret = is_secret_header(name)
        || SCHEMES.iter().any(scheme)
        || value.contains("PRIVATE KEY-----")
        || value.contains(JWT);
    if secret {
        return REDACTED.into();
    }
    match value.split_once('?') {
        Some((address, _)) if address.starts_with('/') || address.contains("://") => {
            format!("{address}?{REDACTED}").into()
        }
        _ => value.into(),
    }
}

/// A path without its query, and without segments that are tokens.
pub fn shown_path(path: &str) -> Cow<'_, str> {
    let path = path.split('?').next().unwrap_or_default();
    if !path.contains(JWT) {
        return path.into();
    }
    let segment = |segment| if str::contains(segment, JWT) { REDACTED } else { segment };
    path.split('/').map(segment).collect::<Vec<_>>().join("/").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proves_who_somebody_is_is_not_shown() {
        for name in [
            "authorization",
            "Proxy-Authorization",
            "cookie",
            "Set-Cookie",
            "x-api-key",
            "X-Auth-Request-Email",
            "x-amz-security-token",
            "x-csrf-token",
            "X-Session-Id",
            "x-goog-iap-jwt-assertion",
            "x-hub-signature-256",
            "x-vault-token",
            "apikey",
            "x-client-secret",
            "ocp-apim-subscription-api_key",
        ] {
            assert_eq!(shown_header(name, "s3cret"), REDACTED, "{name}");
        }
        for value in [
            "Bearer abc",
            "basic YTpi",
            "AWS4-HMAC-SHA256 Credential=x",
            "a eyJhbGciOiJub25lIn0.e30.",
            "-----BEGIN PRIVATE KEY-----",
        ] {
            assert_eq!(shown_header("x-note", value), REDACTED, "{value}");
        }
        for (name, value) in
            [("end-user", "jason"), ("accept", "*/*"), ("x-request-id", "7"), ("x-team", "what? me"), ("x", "é")]
        {
            assert_eq!(shown_header(name, value), value, "{name}");
        }
    }

    #[test]
    fn queries_are_left_out_of_addresses() {
        for (value, shown) in [
            ("https://shop.example/a?k=s3cret", "https://shop.example/a?[redacted]"),
            ("/a?k=s3cret", "/a?[redacted]"),
            ("https://shop.example/a", "https://shop.example/a"),
        ] {
            assert_eq!(shown_header("referer", value), shown);
        }
        assert_eq!(shown_path("/a/b?token=s3cret"), "/a/b");
        assert_eq!(shown_path("/invite/eyJhbGciOiJub25lIn0.e30.x/accept?x"), "/invite/[redacted]/accept");
        assert_eq!(shown_path("*"), "*");
    }
}
