//! Secrets in what somebody has written in words, such as a log.

use std::borrow::Cow;

use super::{REDACTED, has_token, is_secret_header, shown_address, without_users};

/// Words after which the next one proves who somebody is.
const SCHEMES: [&str; 5] = ["bearer", "basic", "digest", "negotiate", "ntlm"];
/// A word of Base64 that is as long as this may be a part of a key.
const KEY: usize = 60;

/// A line of text without what looks like a secret. Rather one word too many than one too few.
pub fn shown_text(text: &str) -> Cow<'_, str> {
    if text.contains("PRIVATE KEY-----") {
        return REDACTED.into();
    }
    let (mut shown, mut rest) = (String::with_capacity(text.len()), text);
    let (mut changed, mut proves) = (false, false);
    while !rest.is_empty() {
        let gap = rest.find(|c| !is_between(c)).unwrap_or(rest.len());
        let (between, after) = rest.split_at(gap);
        let (word, further) = after.split_at(after.find(is_between).unwrap_or(after.len()));
        let clean = if proves && !word.is_empty() { REDACTED.into() } else { shown_word(word) };
        proves = SCHEMES.iter().any(|scheme| last_of(word).eq_ignore_ascii_case(scheme));
        changed |= clean != word;
        shown.push_str(between);
        shown.push_str(&clean);
        rest = further;
    }
    if changed { shown.into() } else { text.into() }
}

fn is_between(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ';' | '(' | ')' | '{' | '}' | '<' | '>')
}

/// `Bearer` of `authorization=Bearer`.
fn last_of(word: &str) -> &str {
    word.rsplit(['=', ':']).next().unwrap_or(word)
}

fn shown_word(word: &str) -> Cow<'_, str> {
    if let Some((name, value)) = word.split_once('=')
        && !name.contains(['/', '?'])
    {
        let secret = is_secret_header(name) && !SCHEMES.iter().any(|scheme| value.eq_ignore_ascii_case(scheme));
        let value = if secret && !value.is_empty() { REDACTED.into() } else { shown_word(value) };
        return format!("{name}={value}").into();
    }
    if has_token(word) || is_key(word) {
        return REDACTED.into();
    }
    let before_query = word.find(['?', '#']).map_or("", |at| &word[..at]);
    match (before_query.contains('/'), word.contains("//") && word.contains('@')) {
        (true, _) => shown_address(word),
        (false, true) => without_users(word).into(),
        (false, false) => word.into(),
    }
}

/// Hashes are in hexadecimal.
fn is_key(word: &str) -> bool {
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'-' | b'_');
    word.len() >= KEY
        && word.bytes().all(base64)
        && word.bytes().any(|byte| byte.is_ascii_uppercase())
        && word.bytes().any(|byte| byte.is_ascii_digit())
        && !word.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_are_secrets_are_not_shown() {
        for (line, shown) in [
            ("GET /a?token=s3cret HTTP/1.1", "GET /a?[redacted] HTTP/1.1"),
            ("\"GET /a?token=s3cret HTTP/1.1\" 200", "\"GET /a?[redacted] HTTP/1.1\" 200"),
            ("authorization: Bearer s3cret", "authorization: Bearer [redacted]"),
            ("authorization=Bearer s3cret, x=y", "authorization=Bearer [redacted], x=y"),
            ("said=\"Basic s3cret\"", "said=\"Basic [redacted]\""),
            ("password=s3cret user=ada", "password=[redacted] user=ada"),
            ("fetched https://me:s3cret@login.example/keys", "fetched https://[redacted]@login.example/keys"),
            ("uri=https://login.example/keys?k=s3cret ok", "uri=https://login.example/keys?[redacted] ok"),
            ("it was eyJhbGciOiJub25lIn0.e30.x!", "it was [redacted]"),
            ("-----BEGIN PRIVATE KEY----- s3cret", "[redacted]"),
            (
                "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgVcB/UNPxalR9zDYAjQIf",
                "[redacted]",
            ),
        ] {
            assert_eq!(shown_text(line), shown, "{line}");
        }
    }

    #[test]
    fn other_words_are_shown() {
        for line in [
            "",
            "  2026-11-28T13:42:14Z  INFO mesh_control::ca: issued identity=spiffe://mesh.local/ns/default/sa/web until=2026",
            "image=ghcr.io/x@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "what? a#b, [::1]:80 a=b= =c (x; y) \"\"",
            "a/very/long/path/that/is/no/key/and/has/no/upper/case/letters/in/it/at/all",
        ] {
            assert_eq!(shown_text(line), line);
        }
    }
}
