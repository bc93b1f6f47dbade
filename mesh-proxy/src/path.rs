//! The one form of a path: what routes and policies match, and what the upstream gets.
//!
//! In: the path of a request. Out: the equal one (RFC 3986, 6.2.2) without what servers read in different ways: encoded
//! characters that need no encoding, and segments that only say where to go. What is left in doubt goes on as it came,
//! and policies are told how else it may be read.

use std::borrow::Cow;

/// Why a path has no such form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path does not begin with a slash")]
    NoSlash,
    #[error("the path has a percent sign that encodes nothing")]
    Percent,
    #[error("the path has an encoded control character")]
    Control,
    #[error("the path leads above the root")]
    AboveRoot,
}

/// The canonical form of a path that begins with a slash.
pub fn canonical(path: &str) -> Result<Cow<'_, str>, PathError> {
    let bytes = path.as_bytes();
    if bytes.first() != Some(&b'/') {
        return Err(PathError::NoSlash);
    }
    let plain = |byte: &u8| byte.is_ascii() && !matches!(byte, b'%' | b'\\');
    if bytes.iter().all(plain) && !has_dots(path) {
        return Ok(Cow::Borrowed(path));
    }
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find(|c: char| !c.is_ascii() || matches!(c, '%' | '\\')) {
        decoded.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(c) = rest.chars().next().filter(|c| !c.is_ascii()) {
            // What may not stand bare is the same as its encoding.
            c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| decoded.push_str(&format!("%{byte:02X}")));
            rest = &rest[c.len_utf8()..];
            continue;
        }
        if rest.starts_with('\\') {
            // Some servers and all browsers take it for a slash; nothing that is one in earnest is written bare.
            decoded.push('/');
            rest = &rest[1..];
            continue;
        }
        let byte = byte_at(rest.as_bytes()).ok_or(PathError::Percent)?;
        if byte < 0x20 || byte == 0x7f {
            return Err(PathError::Control);
        }
        if is_unreserved(byte) {
            decoded.push(char::from(byte));
        } else {
            decoded.push('%');
            decoded.push_str(&rest[1..3].to_ascii_uppercase());
        }
        rest = &rest[3..];
    }
    decoded.push_str(rest);
    if has_dots(&decoded) {
        return without_dots(&decoded).map(Cow::Owned);
    }
    if decoded == path { Ok(Cow::Borrowed(path)) } else { Ok(Cow::Owned(decoded)) }
}

/// How a server may read a canonical path that decodes everything, knows parameters of segments and merges slashes.
#[derive(Debug)]
pub struct OtherReading(String);

impl OtherReading {
    /// `None` if every server reads the path alike.
    pub fn of(path: &str) -> Option<Self> {
        if !path.contains(['%', ';']) && !path.contains("//") {
            return None;
        }
        // Some decode what others have decoded before them. Each time there is less of it.
        let mut bytes = decoded(path.as_bytes());
        while let again = decoded(&bytes)
            && again.len() < bytes.len()
        {
            bytes = again;
        }
        let text = String::from_utf8_lossy(&bytes).replace('\\', "/");
        let mut segments: Vec<&str> = Vec::new();
        let mut directory = false;
        for segment in text.split('/') {
            let name = segment.split(';').next().unwrap_or_default();
            directory = matches!(name, "" | "." | "..");
            match name {
                "" | "." => (),
                ".." => _ = segments.pop(),
                name => segments.push(name),
            }
        }
        let mut read = format!("/{}", segments.join("/"));
        if directory && !segments.is_empty() {
            read.push('/');
        }
        Some(Self(read))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// With everything decoded once.
fn decoded(mut rest: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(rest.len());
    while let Some((&byte, after)) = rest.split_first() {
        let encoded = byte_at(rest);
        bytes.push(encoded.unwrap_or(byte));
        rest = if encoded.is_some() { &rest[3..] } else { after };
    }
    bytes
}

/// What `%XX` at the beginning stands for.
fn byte_at(bytes: &[u8]) -> Option<u8> {
    let &[b'%', high, low, ..] = bytes else { return None };
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

/// RFC 3986, 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn has_dots(path: &str) -> bool {
    path.contains("/.") && path.split('/').any(|segment| matches!(segment, "." | ".."))
}

/// RFC 3986, 5.2.4, but for a path that leads above the root.
fn without_dots(path: &str) -> Result<String, PathError> {
    let mut segments: Vec<&str> = Vec::new();
    let mut last_is_dots = false;
    for segment in path.split('/').skip(1) {
        last_is_dots = matches!(segment, "." | "..");
        match segment {
            "." => (),
            ".." => _ = segments.pop().ok_or(PathError::AboveRoot)?,
            segment => segments.push(segment),
        }
    }
    let mut result = String::with_capacity(path.len());
    for segment in &segments {
        result.push('/');
        result.push_str(segment);
    }
    if last_is_dots || segments.is_empty() {
        result.push('/');
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_paths_have_one_form() {
        for (path, form) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/%61dmin", "/admin"),
            ("/%7euser/%2e%2e/x", "/x"),
            ("/a/./b/../c", "/a/c"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/..a/.b", "/..a/.b"),
            ("/a\\..\\b", "/b"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%5cb", "/a%5Cb"),
            ("/a//b", "/a//b"),
            ("/a;x=1/b", "/a;x=1/b"),
            ("/%C3%a9", "/%C3%A9"),
            ("/é/%61", "/%C3%A9/a"),
            ("/%25%36%31", "/%2561"),
        ] {
            assert_eq!(canonical(path).as_deref(), Ok(form), "{path}");
        }
    }

    #[test]
    fn what_has_no_form_is_refused() {
        for (path, error) in [
            ("", PathError::NoSlash),
            ("a", PathError::NoSlash),
            ("*", PathError::NoSlash),
            ("/%", PathError::Percent),
            ("/%2", PathError::Percent),
            ("/%zz", PathError::Percent),
            ("/%é", PathError::Percent),
            ("/a%00", PathError::Control),
            ("/a%0d%0a", PathError::Control),
            ("/..", PathError::AboveRoot),
            ("/a/../..", PathError::AboveRoot),
            ("/%2e%2e/etc", PathError::AboveRoot),
        ] {
            assert_eq!(canonical(path), Err(error), "{path}");
        }
    }

    #[test]
    fn another_reading_is_known_where_there_is_one() {
        let read = |path: &str| OtherReading::of(path).map(|it| it.as_str().to_owned());
        assert_eq!(read("/a/b"), None);
        for (path, other) in [
            ("/a%2Fb", "/a/b"),
            ("/a%5Cb", "/a/b"),
            ("//a///b/", "/a/b/"),
            ("/admin;x=1", "/admin"),
            ("/x/..;/admin", "/admin"),
            ("/%2561dmin", "/admin"),
            ("/%252561", "/a"),
            ("/admin/x%2F..", "/admin/"),
            ("/admin/.;x", "/admin/"),
            ("/admin/;x", "/admin/"),
            ("/%2F..%2F..", "/"),
        ] {
            assert_eq!(read(path).as_deref(), Some(other), "{path}");
        }
    }

    proptest! {
        #[test]
        fn the_form_of_a_form_is_itself(path in "/([a-bé./;\\\\]|%[0-9a-fA-F]{2}|%){0,12}") {
            if let Ok(form) = canonical(&path) {
                let again = canonical(&form).map(Cow::into_owned);
                prop_assert_eq!(again.as_deref(), Ok(&*form));
                prop_assert!(form.starts_with('/'));
                prop_assert!(!has_dots(&form) && !form.contains('\\'));
                let _ = OtherReading::of(&form);
            }
        }
    }
}
