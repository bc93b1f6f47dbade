use std::borrow::Cow;

use http::{HeaderMap, HeaderValue};

use super::Subject;
use crate::config::{HeaderMatch, PathMatch, QueryMatch, RouteMatch, StringMatch};

pub(super) fn matches(route: &RouteMatch, subject: &Subject<'_>) -> bool {
    path(&route.path, subject.path)
        && route.method.as_ref().is_none_or(|method| method == subject.method)
        && (!route.grpc || subject.grpc)
        && route.headers.iter().all(|matcher| header(matcher, subject))
        && route.query.iter().all(|matcher| query(matcher, subject.query))
}

fn path(matcher: &PathMatch, path: &str) -> bool {
    match matcher {
        PathMatch::Prefix(prefix) => path.starts_with(prefix.as_str()),
        PathMatch::SegmentPrefix(prefix) => {
            let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        PathMatch::Exact(exact) => path == exact,
        PathMatch::Regex(regex) => regex.is_match(path),
    }
}

pub(super) fn header(matcher: &HeaderMatch, subject: &Subject<'_>) -> bool {
    let found = match matcher.name.as_str() {
        ":method" => text(&matcher.matcher, Some(subject.method.as_str())),
        ":authority" | "host" => text(&matcher.matcher, Some(subject.authority)),
        ":path" => match subject.query {
            Some(query) => text(&matcher.matcher, Some(&format!("{}?{query}", subject.path))),
            None => text(&matcher.matcher, Some(subject.path)),
        },
        name => match values(subject.headers, name) {
            Values::None => text(&matcher.matcher, None),
            Values::Text(value) => text(&matcher.matcher, Some(&value)),
            // Bytes that are no text can only be there or not.
            Values::Binary => matches!(matcher.matcher, StringMatch::Present(true)),
        },
    };
    found != matcher.invert
}

/// Some servers take the first of several values, some the last, some all of them.
pub(super) fn header_certainly(matcher: &HeaderMatch, subject: &Subject<'_>) -> Option<bool> {
    let holds = header(matcher, subject);
    let mut values = subject.headers.get_all(&matcher.name).iter();
    if matches!(matcher.matcher, StringMatch::Present(_)) {
        return Some(holds);
    }
    let binary = |value: &HeaderValue| std::str::from_utf8(value.as_bytes()).is_err();
    let single =
        |value: &HeaderValue| text(&matcher.matcher, std::str::from_utf8(value.as_bytes()).ok()) != matcher.invert;
    match values.size_hint() {
        (_, Some(0)) => Some(holds),
        _ => values.all(|value| !binary(value) && single(value) == holds).then_some(holds),
    }
}

enum Values<'a> {
    None,
    Text(Cow<'a, str>),
    Binary,
}

/// The values of a header, joined by commas if there are several (RFC 9110, 5.3).
fn values<'a>(headers: &'a HeaderMap, name: &str) -> Values<'a> {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return Values::None };
    let Ok(first) = std::str::from_utf8(first.as_bytes()) else { return Values::Binary };
    let mut all = Cow::Borrowed(first);
    for value in values {
        let Ok(value) = std::str::from_utf8(value.as_bytes()) else { return Values::Binary };
        let all = all.to_mut();
        // Cookies of HTTP/2 may come in several fields, which mean the same as one (RFC 9113, 8.2.3).
        all.push_str(if name == "cookie" { "; " } else { "," });
        all.push_str(value);
    }
    Values::Text(all)
}

/// The first parameter of that name decides.
fn query(matcher: &QueryMatch, query: Option<&str>) -> bool {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let value = pairs.find(|(name, _)| *name == matcher.name).map(|(_, value)| value);
    text(&matcher.matcher, value)
}

pub(super) fn text(matcher: &StringMatch, value: Option<&str>) -> bool {
    let Some(value) = value else { return matches!(matcher, StringMatch::Present(false)) };
    match matcher {
        StringMatch::Exact(exact) => value == exact,
        StringMatch::Prefix(prefix) => value.starts_with(prefix.as_str()),
        StringMatch::Suffix(suffix) => value.ends_with(suffix.as_str()),
        StringMatch::Contains(part) => value.contains(part.as_str()),
        StringMatch::Regex(regex) => regex.is_match(value),
        StringMatch::Present(present) => *present,
    }
}
