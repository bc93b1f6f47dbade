//! CORS filters of routes.

use std::collections::BTreeSet;

use super::super::CorsFilter;
use super::Errors;
use super::fields::{at_most, header_name, is_token};

const MAX_ENTRIES: usize = 64;
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

pub(super) fn filter(errors: &mut Errors, path: &str, filter: &CorsFilter) {
    list(errors, &format!("{path}.allowOrigins"), &filter.allow_origins, |errors, path, origin| {
        errors.add_if(!is_origin(origin), path, format!("{origin:?} is not an origin, such as {ORIGIN}"));
    });
    list(errors, &format!("{path}.allowMethods"), &filter.allow_methods, |errors, path, method| {
        let known = METHODS.contains(&method);
        errors.add_if(!known, path, format!("{method:?} is not a method; methods are written in capitals"));
    });
    for (field, names) in [("allowHeaders", &filter.allow_headers), ("exposeHeaders", &filter.expose_headers)] {
        list(errors, &format!("{path}.{field}"), names, |errors, path, name| {
            header_name(errors, path, name);
        });
    }
    let short = filter.max_age.is_some_and(|seconds| seconds < 1);
    errors.add_if(short, format!("{path}.maxAge"), "an answer can be kept for one second or longer");
}

const ORIGIN: &str = "`https://shop.example.com`, `https://*.example.com:8443` or `*`";

/// Entries that differ, or `*` alone.
fn list(errors: &mut Errors, path: &str, entries: &[String], check: impl Fn(&mut Errors, &str, &str)) {
    at_most(errors, path, entries.len(), MAX_ENTRIES);
    let mut seen = BTreeSet::new();
    for (i, entry) in entries.iter().enumerate() {
        let path = format!("{path}[{i}]");
        if entry == "*" {
            errors.add_if(entries.len() > 1, path, "`*` stands for all, so it stands alone");
            continue;
        }
        check(errors, &path, entry);
        errors.add_if(!seen.insert(entry.to_ascii_lowercase()), path, "this is there already");
    }
}

/// `<scheme>://<host>[:<port>]`, where the host may have a `*` at its beginning.
fn is_origin(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let scheme_fits = scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && is_token(scheme);
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (rest, None),
    };
    let port_fits = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0) && !port.starts_with('+'));
    let name = host.strip_prefix('*').unwrap_or(host);
    let address = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let host_fits = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let character = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !host.is_empty() && host.len() <= 253 && name.chars().all(character)
        }
    };
    scheme_fits && port_fits && host_fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        for right in ["http://a", "https://*.example.com", "https://*", "https://*:8443", "http://[::1]:80", "app://x"]
        {
            assert!(is_origin(right), "{right}");
        }
        for wrong in [
            "",
            "a",
            "http://",
            "://a",
            "http://a/",
            "http://a:0",
            "http://a:65536",
            "http://a:",
            "http://a.*",
            "http://[x]",
            "http://a b",
            "null",
            "http://a:+1",
        ] {
            assert!(!is_origin(wrong), "{wrong}");
        }
    }
}
