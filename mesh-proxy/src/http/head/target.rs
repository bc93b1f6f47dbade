//! Path and host of a request in their one form.

use std::borrow::Cow;

use http::header::{HOST, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, Uri};

use crate::path::{PathError, canonical};

/// Gives the path its canonical form, before anybody matches it. A tunnel has no path, and `*` is the server as a whole.
pub(super) fn make_canonical(uri: &mut Uri, method: &Method) -> Result<(), PathError> {
    let path = uri.path();
    if *method == Method::CONNECT || (path == "*" && *method == Method::OPTIONS) {
        return Ok(());
    }
    // Of an absolute form: the root.
    let form = canonical(if path.is_empty() && uri.authority().is_some() { "/" } else { path })?;
    if form == path {
        return Ok(());
    }
    let target = match uri.query() {
        Some(query) => format!("{form}?{query}"),
        None => form.into_owned(),
    };
    let mut parts = std::mem::take(uri).into_parts();
    // It has only characters that were in a path before, or stand for themselves.
    parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(|_| PathError::Control)?);
    *uri = Uri::from_parts(parts).map_err(|_| PathError::Control)?;
    Ok(())
}

/// Why a Host is refused: it is not what names a host (RFC 3986, 3.2.2), so that whom it names depends on who reads it.
pub(super) fn flaw_of_host(host: &HeaderValue) -> Option<&'static str> {
    let named = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]%".contains(byte);
    if host.as_bytes().contains(&b'@') {
        return Some("a user in the host");
    }
    (!host.as_bytes().iter().all(named)).then_some("a host that names none")
}

/// Gives the host its canonical form, before anybody matches it: in lower case, and without the dot of the root.
pub(super) fn make_host_canonical(uri: &mut Uri, headers: &mut HeaderMap) {
    if let Some(Cow::Owned(host)) = headers.get(HOST).and_then(|it| it.to_str().ok()).map(canonical_host)
        && let Ok(host) = HeaderValue::try_from(host)
    {
        headers.insert(HOST, host);
    }
    if let Some(Cow::Owned(host)) = uri.authority().map(|it| canonical_host(it.as_str()))
        && let Ok(host) = Authority::try_from(host)
    {
        let mut parts = std::mem::take(uri).into_parts();
        parts.authority = Some(host);
        // It was one with a host.
        *uri = Uri::from_parts(parts).unwrap_or_default();
    }
}

fn canonical_host(authority: &str) -> Cow<'_, str> {
    let host = crate::route::without_port(authority);
    let name = host.strip_suffix('.').filter(|name| !name.is_empty()).unwrap_or(host);
    if name.len() == host.len() && !authority.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Cow::Borrowed(authority);
    }
    Cow::Owned(format!("{name}{}", &authority[host.len()..]).to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_hosts_have_one_form() {
        for (host, form) in [
            ("app", "app"),
            ("App.Example:80", "app.example:80"),
            ("app.", "app"),
            ("app.:80", "app:80"),
            (".", "."),
            ("[::A]:80", "[::a]:80"),
        ] {
            assert_eq!(canonical_host(host), form);
        }
    }
}
