//! Secrets in what somebody has written in words, such as a log.

use std::borrow::Cow;

use super::{REDACTED, ends_host, has_token, is_secret_header, without_users};

/// Words after which the next one proves who somebody is.
const SCHEMES: [&str; 5] = ["bearer", "basic", "digest", "negotiate", "ntlm"];
/// A word of Base64 that is as long as this may be a part of a key.
const KEY: usize = 60;
/// How the first and the last line of a private key end, how the last one begins, and how far that is from the first at most.
const PRIVATE: &str = "PRIVATE KEY-----";
const END: &str = "-----END ";
const MOST: usize = 16 << 10;
/// How a quotation begins and ends: in a text that is quoted itself, by the first.
const QUOTES: [&str; 3] = ["\\\"", "\"", "'"];

/// Text without what looks like a secret. Rather one word too many than one too few.
pub fn shown_text(text: &str) -> Cow<'_, str> {
    let plain = without_private_keys(text);
    let mut shown = String::with_capacity(plain.len());
    plain.split_inclusive('\n').for_each(|line| show(line, &mut shown));
    if shown == text { text.into() } else { shown.into() }
}

/// Without private keys, which have several lines, as far as their last one; if that is not there, as far as they look like one.
pub fn without_private_keys(text: &str) -> Cow<'_, str> {
    let (mut shown, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(PRIVATE) {
        // `-----BEGIN EC `
        let dashes = rest[..at].rfind("-----").filter(|begin| at - begin < 40).unwrap_or(at);
        let last = rest[dashes..].starts_with(END);
        shown.push_str(&rest[..dashes]);
        shown.push_str(REDACTED);
        let after = &rest[at + PRIVATE.len()..];
        rest = if last { after } else { &after[rest_of_key(after)..] };
    }
    if shown.is_empty() { text.into() } else { (shown + rest).into() }
}

fn rest_of_key(text: &str) -> usize {
    let end = text.find(END).filter(|end| *end < MOST);
    let end = end.and_then(|end| Some(end + text[end..].find(PRIVATE).filter(|at| *at < 40)? + PRIVATE.len()));
    end.unwrap_or_else(|| {
        let mut lines = text.split_inclusive('\n');
        let first = lines.next().map_or(0, str::len);
        let more = lines.take_while(|line| line.trim().bytes().all(is_base64));
        let all = first + more.map(str::len).sum::<usize>();
        text[..all].trim_end_matches('\n').len()
    })
}

/// Writes a line as it may be shown.
fn show(line: &str, shown: &mut String) {
    let mut rest = line;
    loop {
        let (between, after) = rest.split_at(rest.find(|c| !is_between(c)).unwrap_or(rest.len()));
        shown.push_str(between);
        if after.is_empty() {
            return;
        }
        let (word, further) = after.split_at(end_of_word(after));
        rest = match (secret_in(word), quoted_name(word, further)) {
            (Some((name, value)), _) => {
                show_word(&word[..value], shown);
                hide_all(name, &after[value..], shown)
            }
            (None, Some(between)) => {
                show_word(word, shown);
                shown.push_str(&further[..between]);
                hide_all(word, &further[between..], shown)
            }
            (None, None) if is_scheme(word.rsplit(['=', ':']).next().unwrap_or(word)) => {
                shown.push_str(word);
                hide_word(further, shown)
            }
            (None, None) => {
                let clean = if word.contains('@') { without_users(word).into() } else { Cow::Borrowed(word) };
                match query(&clean) {
                    Some(at) => {
                        show_word(&clean[..at], shown);
                        shown.extend([&clean[at..=at], REDACTED]);
                        let begin = query(word).unwrap_or_default();
                        &after[word.len().max(begin + end_of_query(&after[begin..]))..]
                    }
                    None => {
                        show_word(&clean, shown);
                        further
                    }
                }
            }
        };
    }
}

fn is_between(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ';' | '(' | ')' | '{' | '}' | '<' | '>')
}

/// Names and passwords before a host may have in them what is between words elsewhere.
fn end_of_word(text: &str) -> usize {
    let end = text.find(is_between).unwrap_or(text.len());
    let Some(host) = text[..end].find("//").map(|at| at + 2) else { return end };
    let host_end = host + text[host..].find(ends_host).unwrap_or(text.len() - host);
    if text[host..host_end].contains('@') { end.max(host_end) } else { end }
}

/// Where the query of an address begins, or what looks like one.
fn query(word: &str) -> Option<usize> {
    let at = word.find(['?', '#'])?;
    (word[..at].contains('/') || word[at..].contains('=')).then_some(at)
}

/// It goes on after commas, brackets and the like.
fn end_of_query(text: &str) -> usize {
    let space = text.find(char::is_whitespace).unwrap_or(text.len());
    space.min(closing(text, "\""))
}

/// The name of a secret in a word, and where in the word its value begins.
fn secret_in(word: &str) -> Option<(&str, usize)> {
    let mut begin = 0;
    for (at, sign) in word.match_indices(['=', ':']) {
        // What is in a query is not told anyway, and `a::b` is the name of a part of a program.
        if word[..at].contains(['?', '#']) {
            return None;
        }
        if word[at..].starts_with("::") || word[..at].ends_with(':') {
            continue;
        }
        let (name, value) = (&word[begin..at], &word[at + 1..]);
        let is_port = sign == ":" && value.split('/').next().is_some_and(|port| port.parse::<u16>().is_ok());
        if is_name_of_secret(name) && !is_port {
            return Some((name, at + 1));
        }
        begin = at + 1;
    }
    None
}

/// How much is between a quoted name of a secret and its value.
fn quoted_name(word: &str, further: &str) -> Option<usize> {
    let quote = QUOTES.into_iter().find(|quote| further.starts_with(quote))?;
    let value = further[quote.len()..].trim_start().strip_prefix([':', '='])?;
    // The backslash before a quote is a part of the word.
    is_name_of_secret(word.trim_end_matches('\\')).then(|| further.len() - value.len())
}

fn is_name_of_secret(name: &str) -> bool {
    let other = name.contains("::") || name.contains('/') || name.eq_ignore_ascii_case("authority");
    !other && is_secret_header(name)
}

fn is_scheme(word: &str) -> bool {
    SCHEMES.iter().any(|scheme| word.eq_ignore_ascii_case(scheme))
}

/// Hides the value that a text begins with: what is quoted, or a word, of cookies all of them. Gives what is after it.
fn hide_all<'t>(name: &str, text: &'t str, shown: &mut String) -> &'t str {
    let value = text.trim_start();
    let quote = QUOTES.into_iter().find(|quote| value.starts_with(quote));
    if let Some(quote) = quote {
        let inside = &value[quote.len()..];
        let end = closing(inside, quote);
        shown.push_str(&text[..text.len() - inside.len()]);
        shown.push_str(if end > 0 { REDACTED } else { "" });
        return &inside[end..];
    }
    let mut rest = hide_word(text, shown);
    while rest.starts_with(';') && name.to_ascii_lowercase().contains("cookie") {
        rest = hide_word(rest, shown);
    }
    rest
}

/// Hides the next word, or the one after it if that only says how it proves something.
fn hide_word<'t>(text: &'t str, shown: &mut String) -> &'t str {
    let (between, value) = text.split_at(text.find(|c| !is_between(c)).unwrap_or(text.len()));
    shown.push_str(between);
    let mut end = value.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(value.len());
    // `Some("it")`
    if value[end..].starts_with('"') && value[..end].ends_with(['(', '[', '{']) {
        end += 1 + closing(&value[end + 1..], "\"");
    }
    let word = value[..end].trim_end_matches(is_between);
    if is_scheme(word) {
        shown.push_str(word);
        return hide_word(&value[word.len()..], shown);
    }
    shown.push_str(if word.is_empty() { "" } else { REDACTED });
    &value[word.len()..]
}

/// Where a quotation ends.
fn closing(text: &str, quote: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if !escaped && text[at..].starts_with(quote) {
            return at;
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}

fn show_word(word: &str, shown: &mut String) {
    match word.split_once('=') {
        _ if has_key(word) => shown.push_str(REDACTED),
        Some((name, value)) if !name.contains('/') => {
            shown.extend([name, "="]);
            show_word(value, shown);
        }
        _ if has_token(word) => shown.push_str(REDACTED),
        _ => shown.push_str(word),
    }
}

/// Hashes are in hexadecimal.
fn has_key(word: &str) -> bool {
    let is_key = |part: &str| {
        part.len() >= KEY
            && part.bytes().any(|byte| byte.is_ascii_uppercase())
            && part.bytes().any(|byte| byte.is_ascii_digit())
            && !part.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    word.split(|c: char| !u8::try_from(c).is_ok_and(is_base64)).any(is_key)
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'-' | b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_are_secrets_are_not_shown() {
        for (line, shown) in [
            ("GET /a?token=s3cret HTTP/1.1", "GET /a?[redacted] HTTP/1.1"),
            ("\"GET /a?token=s3cret HTTP/1.1\" 200", "\"GET /a?[redacted] HTTP/1.1\" 200"),
            ("\"/a?b=1,s3(cret);s3'cret<s3>{s3}\" 200", "\"/a?[redacted]\" 200"),
            ("\"/a?b=\\\"s3cret\" 200", "\"/a?[redacted]\" 200"),
            ("to ?code=s3cret and cb?code=s3cret", "to ?[redacted] and cb?[redacted]"),
            ("authorization: Bearer s3cret", "authorization: Bearer [redacted]"),
            ("authorization=Bearer s3cret, x=y", "authorization=Bearer [redacted], x=y"),
            ("said=\"Basic s3cret\"", "said=\"Basic [redacted]\""),
            ("password=s3cret user=ada", "password=[redacted] user=ada"),
            ("password=s3(cr;et, user=ada", "password=[redacted], user=ada"),
            ("password=\"s3 \\\" cret\" user=\"ada\"", "password=\"[redacted]\" user=\"ada\""),
            ("token=Some(\"s3 cret\") x", "token=[redacted]\") x"),
            ("cookie: sid=s3; b=s3cret x", "cookie: [redacted]; [redacted] x"),
            ("x-api-key: s3cret", "x-api-key: [redacted]"),
            ("x-api-key:s3cret", "x-api-key:[redacted]"),
            ("{\"x-api-key\": \"s3cret\", \"a\": \"b\"}", "{\"x-api-key\": \"[redacted]\", \"a\": \"b\"}"),
            ("'x-api-key':'s3cret', 'a':'b'", "'x-api-key':'[redacted]', 'a':'b'"),
            ("\"{\\\"x-api-key\\\":\\\"s3cret\\\"}\"", "\"{\\\"x-api-key\\\":\\\"[redacted]\\\"}\""),
            ("a=b:token=s3cret", "a=b:token=[redacted]"),
            ("fetched https://me:s3cret@login.example/keys", "fetched https://[redacted]@login.example/keys"),
            ("fetched https://me:s3(c;r,et@login.example/a?b", "fetched https://[redacted]@login.example/a?[redacted]"),
            ("fetched https://me:s3?cret@login.example/a", "fetched https://[redacted]/a"),
            ("uri=https://login.example/keys?k=s3cret ok", "uri=https://login.example/keys?[redacted] ok"),
            ("it was eyJhbGciOiJub25lIn0.e30.x!", "it was [redacted]"),
            ("-----BEGIN PRIVATE KEY----- s3cret", "[redacted]"),
            ("MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgVcB/UNPxalR9zDYAjQIf", "[redacted]"),
            ("der:MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgVcB/UNPxalR9zDYAjA==.", "[redacted]"),
        ] {
            assert_eq!(shown_text(line), shown, "{line}");
        }
    }

    #[test]
    fn private_keys_are_hidden_with_all_their_lines() {
        for (text, shown) in [
            (
                "a\n-----BEGIN EC PRIVATE KEY-----\nMIGs3cret\nMs3==\n-----END EC PRIVATE KEY-----\nb",
                "a\n[redacted]\nb",
            ),
            ("a\n-----BEGIN PRIVATE KEY-----\nMIGs3cret\nMs3==\nb c\n", "a\n[redacted]\nb c\n"),
            ("key is -----BEGIN PRIVATE KEY-----", "key is [redacted]"),
            ("Ms3\n-----END PRIVATE KEY-----\nb\n", "Ms3\n[redacted]\nb\n"),
        ] {
            assert_eq!(without_private_keys(text), shown, "{text}");
            assert_eq!(shown_text(text), shown, "{text}");
        }
    }

    #[test]
    fn other_words_are_shown() {
        for line in [
            "",
            "  2026-11-28T13:42:14Z  INFO mesh_control::ca: issued identity=spiffe://mesh.local/ns/default/sa/web until=2026",
            "INFO mesh_proxy::jwt: fetched 3 of 3 authority=auth.shop:8080 auth:8080 auth.shop:8080/a",
            "image=ghcr.io/x@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "what? a#b, [::1]:80 a=b= =c (x; y) \"\" password=\"\" é=ü",
            "a/very/long/path/that/is/no/key/and/has/no/upper/case/letters/in/it/at/all",
            "-----BEGIN CERTIFICATE-----\nMIIB",
            "one\ntwo\n",
        ] {
            assert_eq!(shown_text(line), line);
        }
    }
}
