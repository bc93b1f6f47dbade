//! String, header and query matchers, and header changes.

use envoy_types::pb::envoy::config::core::v3::HeaderValueOption;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::{CookieMatcher, HeaderMatcher, QueryParameterMatcher};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};
use http::header::{HeaderName, HeaderValue};
use regex::{Regex, RegexBuilder};

use super::{At, Decoded, Rejected, each, unless};
use crate::config::{HeaderMatch, HeaderMutation, QueryMatch, StringMatch};

/// Bounds the memory of one expression, compiled.
const REGEX_BYTES: usize = 1 << 20;

/// An expression that has to match the whole text, as Envoy's do.
pub(super) fn whole(pattern: &str) -> Decoded<Regex> {
    regex(&format!("^(?:{pattern})$"))
}

pub(super) fn regex(pattern: &str) -> Decoded<Regex> {
    RegexBuilder::new(pattern)
        .size_limit(REGEX_BYTES)
        .build()
        .map_err(|e| Rejected::new(format_args!("{pattern:?} is not a regular expression that can be used: {e}")))
}

pub(super) fn regex_matcher(pb: &RegexMatcher) -> Decoded<Regex> {
    // First without the anchors: an unbalanced pattern must not escape from the group.
    regex(&pb.regex).at("regex")?;
    whole(&pb.regex).at("regex")
}

pub(super) fn string(pb: &StringMatcher) -> Decoded<StringMatch> {
    let Some(pattern) = &pb.match_pattern else {
        return Err(Rejected::new("a pattern is needed"));
    };
    let insensitive = |before: &str, text: &str, after: &str| {
        Ok(StringMatch::Regex(regex(&format!("(?is)^{before}{}{after}$", regex::escape(text)))?))
    };
    match (pattern, pb.ignore_case) {
        (MatchPattern::Exact(text), false) => Ok(StringMatch::Exact(text.clone())),
        (MatchPattern::Prefix(text), false) => Ok(StringMatch::Prefix(text.clone())),
        (MatchPattern::Suffix(text), false) => Ok(StringMatch::Suffix(text.clone())),
        (MatchPattern::Contains(text), false) => Ok(StringMatch::Contains(text.clone())),
        (MatchPattern::Exact(text), true) => insensitive("", text, ""),
        (MatchPattern::Prefix(text), true) => insensitive("", text, ".*"),
        (MatchPattern::Suffix(text), true) => insensitive(".*", text, ""),
        (MatchPattern::Contains(text), true) => insensitive(".*", text, ".*"),
        (MatchPattern::SafeRegex(pb), _) => Ok(StringMatch::Regex(regex_matcher(pb).at("safe_regex")?)),
        (MatchPattern::Custom(_), _) => Err(Rejected::field("custom", "is not supported")),
    }
}

pub(super) fn header(pb: HeaderMatcher) -> Decoded<HeaderMatch> {
    let name = pb.name.to_ascii_lowercase();
    let pseudo = matches!(name.as_str(), ":method" | ":path" | ":authority" | ":scheme");
    if !pseudo && HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(Rejected::field("name", format_args!("{:?} is not a header name", pb.name)));
    }
    unless(pb.treat_missing_header_as_empty, "treat_missing_header_as_empty", "is not supported")?;
    #[allow(deprecated)]
    let matcher = match pb.header_match_specifier {
        None => StringMatch::Present(true),
        Some(HeaderMatchSpecifier::PresentMatch(present)) => StringMatch::Present(present),
        Some(HeaderMatchSpecifier::StringMatch(pb)) => string(&pb).at("string_match")?,
        Some(HeaderMatchSpecifier::ExactMatch(text)) => StringMatch::Exact(text),
        Some(HeaderMatchSpecifier::PrefixMatch(text)) => StringMatch::Prefix(text),
        Some(HeaderMatchSpecifier::SuffixMatch(text)) => StringMatch::Suffix(text),
        Some(HeaderMatchSpecifier::ContainsMatch(text)) => StringMatch::Contains(text),
        Some(HeaderMatchSpecifier::SafeRegexMatch(pb)) => {
            StringMatch::Regex(regex_matcher(&pb).at("safe_regex_match")?)
        }
        Some(HeaderMatchSpecifier::RangeMatch(_)) => return Err(Rejected::field("range_match", "is not supported")),
    };
    Ok(HeaderMatch { name, matcher, invert: pb.invert_match })
}

/// One cookie, as a match of the `cookie` header.
pub(super) fn cookie(pb: CookieMatcher) -> Decoded<HeaderMatch> {
    unless(pb.invert_match, "invert_match", "is not supported")?;
    if pb.name.is_empty() {
        return Err(Rejected::field("name", "must not be empty"));
    }
    let matcher = pb.string_match.ok_or_else(|| Rejected::field("string_match", "is needed"))?;
    let (text, case) = (|text: &str| regex::escape(text), if matcher.ignore_case { "(?i)" } else { "" });
    let value = match matcher.match_pattern {
        Some(MatchPattern::Exact(it)) => text(&it),
        Some(MatchPattern::Prefix(it)) => format!("{}[^;]*", text(&it)),
        Some(MatchPattern::Suffix(it)) => format!("[^;]*{}", text(&it)),
        Some(MatchPattern::Contains(it)) => format!("[^;]*{}[^;]*", text(&it)),
        _ => return Err(Rejected::field("string_match", "only exact, prefix, suffix and contains are supported")),
    };
    let expression = format!(r"^(?:.*;)?\s*{}={case}{value}\s*(?:;.*)?$", regex::escape(&pb.name));
    Ok(HeaderMatch { name: "cookie".to_owned(), matcher: StringMatch::Regex(regex(&expression)?), invert: false })
}

pub(super) fn query(pb: QueryParameterMatcher) -> Decoded<QueryMatch> {
    if pb.name.is_empty() {
        return Err(Rejected::field("name", "must not be empty"));
    }
    let matcher = match pb.query_parameter_match_specifier {
        None => StringMatch::Present(true),
        Some(QueryParameterMatchSpecifier::PresentMatch(present)) => StringMatch::Present(present),
        Some(QueryParameterMatchSpecifier::StringMatch(pb)) => string(&pb).at("string_match")?,
    };
    Ok(QueryMatch { name: pb.name, matcher })
}

/// Header changes of one level: `direction` is `request` or `response`.
pub(super) fn mutation(direction: &str, add: Vec<HeaderValueOption>, remove: Vec<String>) -> Decoded<HeaderMutation> {
    let mut mutation = HeaderMutation::default();
    for (name, value, replaces) in each(&format!("{direction}_headers_to_add"), add, header_value)? {
        if replaces { &mut mutation.set } else { &mut mutation.add }.push((name, value));
    }
    mutation.remove = each(&format!("{direction}_headers_to_remove"), remove, |name| header_name(&name))?;
    Ok(mutation)
}

/// Name, value, and whether the value replaces those that are there.
fn header_value(pb: HeaderValueOption) -> Decoded<(HeaderName, HeaderValue, bool)> {
    let header = pb.header.ok_or_else(|| Rejected::field("header", "is needed"))?;
    let name = header_name(&header.key).at("header.key")?;
    let text = literal(&header.value).at("header.value")?;
    let bytes = if text.is_empty() { header.raw_value.as_slice() } else { text.as_bytes() };
    let value = HeaderValue::from_bytes(bytes)
        .map_err(|_| Rejected::field("header.value", format_args!("{:?} is not a header value", header.value)))?;
    #[allow(deprecated)]
    let replaces = match (HeaderAppendAction::try_from(pb.append_action), pb.append) {
        (Ok(HeaderAppendAction::AppendIfExistsOrAdd), None) => false,
        (Ok(HeaderAppendAction::AppendIfExistsOrAdd), Some(append)) => !append.value,
        (Ok(HeaderAppendAction::OverwriteIfExistsOrAdd), _) => true,
        _ => {
            let reason = "only APPEND_IF_EXISTS_OR_ADD and OVERWRITE_IF_EXISTS_OR_ADD are supported";
            return Err(Rejected::field("append_action", reason));
        }
    };
    Ok((name, value, replaces))
}

fn header_name(text: &str) -> Decoded<HeaderName> {
    match HeaderName::from_bytes(text.as_bytes()) {
        Ok(name) if name == http::header::HOST => {
            Err(Rejected::new("the host is changed with the route's host_rewrite_literal, not as a header"))
        }
        Ok(name) => Ok(name),
        Err(_) => Err(Rejected::new(format_args!("{text:?} is not a header name"))),
    }
}

/// Envoy expands `%COMMAND%`, and reads `%%` as one percent sign.
pub(super) fn literal(text: &str) -> Decoded<String> {
    let plain = text.replace("%%", "");
    if plain.contains('%') {
        return Err(Rejected::new(format_args!("{text:?} has a command operator, which is not supported")));
    }
    Ok(text.replace("%%", "%"))
}
