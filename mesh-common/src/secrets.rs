//! What must not be in anybody's log or on anybody's screen, told by its name and, where that says nothing, by its look.

mod document;
mod text;

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

pub use document::redacted;
pub use text::{shown_text, without_private_keys};

/// In place of it.
pub const REDACTED: &str = "[redacted]";
/// Where `kubectl apply` keeps what it has last sent, as text.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Headers whose values let whoever knows them be somebody.
const HEADERS: [&str; 5] = ["authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key"];
/// Parts of names of fields, headers and annotations whose content is a secret.
const WORDS: [&str; 4] = ["secret", "password", "token", "private"];
/// Parts of names of headers alone, for what an application may have made up.
const HEADER_WORDS: [&str; 15] = [
    "auth",
    "cookie",
    "credential",
    "session",
    "passwd",
    "passphrase",
    "pwd",
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
/// `{"` in Base64: how JWTs begin as everybody writes them.
const JWT: &str = "eyJ";
/// Of a JWT's first part so much is looked at.
const JWT_BEGINNING: usize = 64;
/// Headers that have addresses, relative ones as well.
const ADDRESSES: [&str; 5] = ["location", "content-location", "referer", "refresh", "link"];

/// Whether what a field, a header or an annotation of this name has is a secret.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    HEADERS.contains(&name.as_str()) || WORDS.iter().any(|word| name.contains(word))
}

/// Whether a header of this name may hold something that proves who somebody is. Rather one too many.
pub fn is_secret_header(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    is_secret(&lower) || lower.ends_with("key") || HEADER_WORDS.iter().any(|word| lower.contains(word))
}

/// A header's value as it may be shown: without what looks like a secret, and of what looks like an address without what may be
/// one in there.
pub fn shown_header<'v>(name: &str, value: &'v str) -> Cow<'v, str> {
    let scheme = |scheme: &&str| value.get(..scheme.len()).is_some_and(|it| it.eq_ignore_ascii_case(scheme));
    let secret =
        is_secret_header(name) || SCHEMES.iter().any(scheme) || value.contains("PRIVATE KEY-----") || has_token(value);
    if secret {
        return REDACTED.into();
    }
    let before_query = value.find(['?', '#']).map_or(value, |at| &value[..at]);
    if before_query.contains('/') || is_address(name) { shown_address(value) } else { value.into() }
}

fn is_address(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ADDRESSES.contains(&name.as_str()) || name.ends_with("url") || name.ends_with("uri")
}

/// An address, or a text with one, as it may be shown: without somebody's name and password before a host, and without query and
/// fragment.
pub fn shown_address(text: &str) -> Cow<'_, str> {
    let text = if text.contains('@') { without_users(text).into() } else { Cow::Borrowed(text) };
    match text.find(['?', '#']) {
        Some(at) => format!("{}{REDACTED}", &text[..=at]).into(),
        None => text,
    }
}

/// What ends a host in an address, with the name and the password before it.
fn ends_host(c: char) -> bool {
    c == '/' || c.is_whitespace() || matches!(c, '"' | '<' | '>')
}

/// Without what is between `//` and the `@` before a host.
fn without_users(text: &str) -> String {
    let (mut shown, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find("//") {
        let (before, after) = rest.split_at(at + 2);
        shown.push_str(before);
        let (authority, further) = after.split_at(after.find(ends_host).unwrap_or(after.len()));
        rest = further;
        match authority.rsplit_once('@') {
            // It is in a query, or a password has what must not be in one.
            Some((user, _)) if user.contains(['?', '#']) => shown.push_str(REDACTED),
            Some((_, host)) => shown.extend([REDACTED, "@", host]),
            None => shown.push_str(authority),
        }
    }
    shown.push_str(rest);
    shown
}

/// Whether there is a JWT in it, or something that begins like one.
fn has_token(text: &str) -> bool {
    let is_other = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    text.contains(JWT) || text.split(is_other).any(has_jwt)
}

/// Whether three parts of a word are one: the first is the beginning of a JSON object in Base64.
fn has_jwt(word: &str) -> bool {
    let mut parts = word.split('.').peekable();
    let mut left = word.matches('.').count();
    while let Some(first) = parts.next() {
        // The signature may be empty, what is signed may not.
        if left >= 2 && parts.peek().is_some_and(|second| !second.is_empty()) && begins_object(first) {
            return true;
        }
        left = left.saturating_sub(1);
    }
    false
}

fn begins_object(base64: &str) -> bool {
    // Four characters are three bytes.
    let whole = base64.len().min(JWT_BEGINNING) / 4 * 4;
    let Ok(bytes) = URL_SAFE_NO_PAD.decode(&base64[..whole]) else { return false };
    let object = bytes.trim_ascii_start().strip_prefix(b"{");
    object.map(|inside| inside.trim_ascii_start()).is_some_and(|inside| inside.first().is_none_or(|it| *it == b'"'))
}

/// A path without its query, and without segments that are tokens.
pub fn shown_path(path: &str) -> Cow<'_, str> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    if !has_token(path) {
        return path.into();
    }
    let segment = |segment| if has_token(segment) { REDACTED } else { segment };
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
            "Ocp-Apim-Subscription-Key",
            "X-RapidAPI-Key",
            "x-functions-key",
            "X-Auth-Key",
            "api-key",
            "DD-API-KEY",
            "db-pwd",
            "x-pwd-hash",
        ] {
            assert_eq!(shown_header(name, "s3cret"), REDACTED, "{name}");
        }
        for value in [
            "Bearer abc",
            "basic YTpi",
            "AWS4-HMAC-SHA256 Credential=x",
            "a eyJhbGciOiJub25lIn0.e30.",
            // Whitespace before or within the object, and a word before the token.
            "eyAiYWxnIjogIm5vbmUifQ.e30.x",
            "IHsiYWxnIjoibm9uZSJ9.e30.x",
            "ewogICJhbGciOiAibm9uZSIKfQ.e30.x",
            "v1.ewogICJhbGciOiAibm9uZSIKfQ.e30.x",
            "id=ewogICJhbGciOiAibm9uZSIKfQ.e30.x, other",
            "-----BEGIN PRIVATE KEY-----",
        ] {
            assert_eq!(shown_header("x-note", value), REDACTED, "{value}");
        }
        for (name, value) in [
            ("end-user", "jason"),
            ("accept", "text/html, */*"),
            ("x-request-id", "7"),
            ("x-team", "what? me #1"),
            ("x", "é"),
            ("from", "me@example.com"),
            ("x-forwarded-host", "example.shop.cluster.local"),
            ("server", "nginx/1.27.0 (e.g.)"),
            ("x-keyboard", "us"),
        ] {
            assert_eq!(shown_header(name, value), value, "{name}");
        }
    }

    #[test]
    fn addresses_are_shown_without_what_may_be_a_secret() {
        for (name, value, shown) in [
            ("referer", "https://shop.example/a?k=s3cret", "https://shop.example/a?[redacted]"),
            ("x-next", "https://shop.example/a?k=s3cret", "https://shop.example/a?[redacted]"),
            ("x-next", "see shop.example/a?k=s3cret", "see shop.example/a?[redacted]"),
            ("referer", "/a?k=s3cret", "/a?[redacted]"),
            ("referer", "https://shop.example/a", "https://shop.example/a"),
            ("Location", "https://shop.example#access_token=s3cret", "https://shop.example#[redacted]"),
            ("location", "cb?code=s3cret", "cb?[redacted]"),
            ("location", "?code=s3cret", "?[redacted]"),
            ("x-original-url", "cb?code=s3cret", "cb?[redacted]"),
            ("refresh", "0; url=/cb?code=s3cret", "0; url=/cb?[redacted]"),
            (
                "link",
                "<https://me:s3cret@a/b>; rel=x, <//me:s3cret@c>",
                "<https://[redacted]@a/b>; rel=x, <//[redacted]@c>",
            ),
            ("x-next", "https://me:s3cret@shop.example/a@b", "https://[redacted]@shop.example/a@b"),
            ("x-next", "https://s3:cr@et@shop.example?x", "https://[redacted]@shop.example?[redacted]"),
            ("x-next", "https://me:s3?cret@shop.example/", "https://[redacted]/"),
        ] {
            assert_eq!(shown_header(name, value), shown, "{value}");
        }
        for path in ["/a//b", "//", "////@", "@//@"] {
            assert_eq!(without_users(path).replace(REDACTED, ""), path, "{path}");
        }
        let spaced = "/invite/ewogICJhbGciOiAibm9uZSIKfQ.e30.x/accept#x";
        assert_eq!(shown_path(spaced), "/invite/[redacted]/accept");
        assert_eq!(shown_path("/a/index.min.js/v1.2.3"), "/a/index.min.js/v1.2.3");
        assert_eq!(shown_path("/a/b?token=s3cret"), "/a/b");
        assert_eq!(shown_path("/invite/eyJhbGciOiJub25lIn0.e30.x/accept?x"), "/invite/[redacted]/accept");
        assert_eq!(shown_path("*"), "*");
    }
}
