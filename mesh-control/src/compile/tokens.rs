//! What policies ask of a request's token, as what RBAC filters ask of the metadata that the JWT filter leaves.

use envoy_types::pb::envoy::config::rbac::v3::{Principal, principal, principal::Identifier};
use envoy_types::pb::envoy::r#type::matcher::v3::metadata_matcher::{PathSegment, path_segment::Segment};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern as TextPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::value_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    DoubleMatcher, ListMatcher, MetadataMatcher, OrMatcher, StringMatcher, ValueMatcher, double_matcher, list_matcher,
};
use mesh_common::names::{FILTER_JWT, JWT_PAYLOAD};
use mesh_common::resource::AuthorizationSource;

use super::authorization::{anyone, being, matcher, nobody, pattern, prefix};
use super::build::exact;

pub(super) fn are_asked_for(source: &AuthorizationSource) -> bool {
    let AuthorizationSource { request_principals, not_request_principals, claims, .. } = source;
    !(request_principals.is_empty() && not_request_principals.is_empty() && claims.is_empty())
}

/// Whether it is about what the request's token is not, though it may have one.
pub(super) fn excludes(source: &AuthorizationSource) -> bool {
    let of_none = source.not_request_principals.iter().any(|it| it == "*");
    // Whoever means those without a claim of that name may mean those without a token.
    let says_not = |nots: &Vec<String>| !nots.is_empty() && !nots.iter().any(|it| it == "*");
    !of_none && (says_not(&source.not_request_principals) || source.claims.iter().any(|it| says_not(&it.not_values)))
}

/// The same without that.
pub(super) fn left_out(source: &AuthorizationSource) -> AuthorizationSource {
    AuthorizationSource {
        request_principals: Vec::new(),
        not_request_principals: Vec::new(),
        claims: Vec::new(),
        ..source.clone()
    }
}

/// A request with a good token, whoever's.
pub(super) fn any() -> Principal {
    asked(&["iss".to_owned()], MatchPattern::PresentMatch(true))
}

/// `issuer/subject`, with `*` at one end. Both may have slashes, so it is taken apart by the issuers whose tokens are taken:
/// a token of one of them never stands for another's.
pub(super) fn principal(text: &str, issuers: &[&str]) -> Principal {
    let of_issuer = |issuer: &&str| {
        let both = |subject| {
            let iss = asked(&["iss".to_owned()], MatchPattern::StringMatch(exact(issuer)));
            let sub = asked(&["sub".to_owned()], subject);
            being(Identifier::AndIds(principal::Set { ids: vec![iss, sub] }))
        };
        subjects(text, issuer).into_iter().map(both).collect::<Vec<_>>()
    };
    let all: Vec<_> = issuers.iter().flat_map(of_issuer).collect();
    if all.is_empty() { nobody() } else { anyone(all) }
}

/// The subjects of one issuer that a pattern stands for.
fn subjects(text: &str, issuer: &str) -> Vec<MatchPattern> {
    let own = format!("{issuer}/");
    let is = |matcher: StringMatcher| MatchPattern::StringMatch(matcher);
    match (text.strip_suffix('*'), text.strip_prefix('*')) {
        (Some(before), _) if own.starts_with(before) => vec![MatchPattern::PresentMatch(true)],
        (Some(before), _) => before.strip_prefix(&own).map(|rest| is(prefix(rest.to_owned()))).into_iter().collect(),
        (None, Some(after)) => {
            // It may reach into the issuer.
            let within = after.match_indices('/').filter(|(at, _)| issuer.ends_with(&after[..*at]));
            let whole = within.map(|(at, _)| is(exact(&after[at + 1..])));
            [is(matcher(TextPattern::Suffix(after.to_owned())))].into_iter().chain(whole).collect()
        }
        (None, None) => text.strip_prefix(&own).map(|rest| is(exact(rest))).into_iter().collect(),
    }
}

/// A claim, or an entry of a claim that is a list. Numbers, true and false are what they are written as.
pub(super) fn claim(path: &[String], text: &str) -> Principal {
    if text == "*" {
        return asked(path, MatchPattern::PresentMatch(true));
    }
    let mut values = vec![MatchPattern::StringMatch(pattern(text))];
    values.extend(text.parse().ok().map(MatchPattern::BoolMatch));
    let number = text.parse::<f64>().ok().filter(|it| it.is_finite() && text.bytes().all(|b| !b.is_ascii_alphabetic()));
    let exactly = |number| DoubleMatcher { match_pattern: Some(double_matcher::MatchPattern::Exact(number)) };
    values.extend(number.map(|number| MatchPattern::DoubleMatch(exactly(number))));
    let of_list = |pattern: &MatchPattern| {
        let one_of = list_matcher::MatchPattern::OneOf(Box::new(value(pattern.clone())));
        MatchPattern::ListMatch(Box::new(ListMatcher { match_pattern: Some(one_of) }))
    };
    let lists: Vec<_> = values.iter().map(of_list).collect();
    let value_matchers = values.into_iter().chain(lists).map(value).collect();
    asked(path, MatchPattern::OrMatch(OrMatcher { value_matchers }))
}

fn value(pattern: MatchPattern) -> ValueMatcher {
    ValueMatcher { match_pattern: Some(pattern) }
}

/// The newer form of this, `sourced_metadata`, is not known to Envoys that are in use.
#[allow(deprecated)]
fn asked(path: &[String], pattern: MatchPattern) -> Principal {
    let key = |key: &str| PathSegment { segment: Some(Segment::Key(key.to_owned())) };
    being(Identifier::Metadata(MetadataMatcher {
        filter: FILTER_JWT.to_owned(),
        path: [JWT_PAYLOAD].into_iter().chain(path.iter().map(String::as_str)).map(key).collect(),
        value: Some(value(pattern)),
        invert: false,
    }))
}
