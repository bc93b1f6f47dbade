//! What a route changes in a head.

use http::header::{HOST, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Uri};

use super::Head;
use crate::config::{HeaderMutation, PathMatch, PathRewrite};
use crate::error::{Error, Kind};

impl Head {
    pub(crate) fn mutate(&mut self, mutation: &HeaderMutation) {
        if mutation.is_empty() {
            return;
        }
        apply(mutation, &mut self.headers);
        if let Some((_, host)) = mutation.set.iter().rev().find(|(name, _)| *name == HOST) {
            self.authority = Some(host.clone());
        }
    }

    pub(crate) fn rewrite_host(&mut self, host: &HeaderValue) {
        self.authority = Some(host.clone());
    }

    /// The authority of a mirrored request, as Envoy names it.
    pub(crate) fn shadow(&mut self) {
        let current = self.authority.as_ref().and_then(|it| it.to_str().ok()).unwrap_or_else(|| self.authority());
        let host = crate::route::without_port(current);
        let shadow = format!("{host}-shadow{}", &current[host.len()..]);
        self.authority = HeaderValue::try_from(shadow).ok();
    }

    pub(crate) fn rewrite_path(&mut self, rewrite: &PathRewrite, matched: &PathMatch) -> Result<(), Error> {
        let path = rewritten(rewrite, matched, self.path());
        let target = match self.uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        let invalid =
            |e: &dyn std::fmt::Display| Error::because(Kind::Configuration, format_args!("path rewrite: {e}"));
        let target = PathAndQuery::try_from(target).map_err(|e| invalid(&e))?;
        let mut parts = std::mem::take(&mut self.uri).into_parts();
        parts.path_and_query = Some(target);
        self.uri = Uri::from_parts(parts).map_err(|e| invalid(&e))?;
        Ok(())
    }
}

/// Removes, then sets, then adds.
pub(crate) fn apply(mutation: &HeaderMutation, headers: &mut HeaderMap) {
    for name in &mutation.remove {
        headers.remove(name);
    }
    for (name, value) in &mutation.set {
        headers.insert(name, value.clone());
    }
    for (name, value) in &mutation.add {
        headers.append(name, value.clone());
    }
}

/// The path after a rewrite. A prefix is replaced so that neither no slash nor two are left where one was.
fn rewritten(rewrite: &PathRewrite, matched: &PathMatch, path: &str) -> String {
    match rewrite {
        PathRewrite::Full(full) => full.clone(),
        PathRewrite::Regex { pattern, substitution } => pattern.replace_all(path, substitution.as_str()).into_owned(),
        PathRewrite::Prefix(new) => replace_prefix(new, matched, path),
    }
}

pub(crate) fn replace_prefix(new: &str, matched: &PathMatch, path: &str) -> String {
    let old = match matched {
        PathMatch::Prefix(prefix) => prefix.as_str(),
        PathMatch::SegmentPrefix(prefix) => prefix.strip_suffix('/').unwrap_or(prefix),
        PathMatch::Exact(_) | PathMatch::Regex(_) => path,
    };
    let rest = path.strip_prefix(old).unwrap_or_default();
    let new = if rest.starts_with('/') { new.strip_suffix('/').unwrap_or(new) } else { new };
    let path = format!("{new}{rest}");
    if path.is_empty() { "/".to_owned() } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_replaced_with_one_slash() {
        let segment = PathMatch::SegmentPrefix("/foo".into());
        for (new, path, expected) in [
            ("/xyz", "/foo/bar", "/xyz/bar"),
            ("/xyz/", "/foo/bar", "/xyz/bar"),
            ("/xyz", "/foo", "/xyz"),
            ("/", "/foo/bar", "/bar"),
            ("/", "/foo", "/"),
            ("", "/foo", "/"),
            ("/xyz", "/foo/", "/xyz/"),
        ] {
            assert_eq!(replace_prefix(new, &segment, path), expected, "{new} for {path}");
        }
        assert_eq!(replace_prefix("/x", &PathMatch::Prefix("/fo".into()), "/foo"), "/xo");
        assert_eq!(replace_prefix("/x", &PathMatch::SegmentPrefix("/".into()), "/a"), "/x/a");
    }
}
