//! Envoy's JWT filter -> [`JwtAuthn`], and what RBAC filters ask of its metadata -> [`ClaimMatch`].

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_provider::JwksSourceSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_requirement::RequiresType;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::requirement_rule::RequirementType;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::{
    JwtAuthentication, JwtProvider as PbProvider, JwtRequirement, RequirementRule,
};
use envoy_types::pb::envoy::r#type::matcher::v3::double_matcher::MatchPattern as NumberPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::list_matcher::MatchPattern as ListPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::metadata_matcher::path_segment::Segment;
use envoy_types::pb::envoy::r#type::matcher::v3::value_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{MetadataMatcher, ValueMatcher};
use envoy_types::pb::google::protobuf::Any;
use http::HeaderName;
use http::header::AUTHORIZATION;
use mesh_common::jwt::Jwks;
use mesh_common::names::{FILTER_JWT, JWT_PAYLOAD};

use super::{At, Decoded, Rejected, each, matching, unless, unpack};
use crate::config::{ClaimMatch, JwtAuthn, JwtProvider, TokenAt, TokenPlace, ValueMatch};
use crate::jwt::Cache;

const MAX_PROVIDERS: usize = 256;
/// How deep matchers of values may lie in each other.
const MAX_DEPTH: usize = 8;
/// Envoy's default, in seconds.
const LEEWAY: u32 = 60;

/// `None` if it is another filter.
pub(super) fn http(any: &Any) -> Option<Decoded<JwtAuthn>> {
    Some(unpack::<JwtAuthentication>(any)?.and_then(authn))
}

fn authn(pb: JwtAuthentication) -> Decoded<JwtAuthn> {
    unless(pb.filter_state_rules.is_some(), "filter_state_rules", "is not supported")?;
    unless(!pb.requirement_map.is_empty(), "requirement_map", "is not supported")?;
    unless(pb.strip_failure_response, "strip_failure_response", "is not supported")?;
    let mut named: Vec<_> = pb.providers.into_iter().collect();
    unless(named.is_empty() || named.len() > MAX_PROVIDERS, "providers", "1 to 256 are supported")?;
    named.sort_by(|(a, _), (b, _)| a.cmp(b));
    let names: BTreeSet<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
    rules(&pb.rules, &names)?;
    let mut authn =
        JwtAuthn { providers: Vec::new(), places: Vec::new(), claim_headers: Vec::new(), cache: Cache::default() };
    for (name, pb) in named {
        provider(pb, &mut authn).at(format_args!("providers[{name:?}]"))?;
    }
    // The longest first.
    authn.places.sort_by_key(|place| match &place.at {
        TokenAt::Header { prefix, .. } => usize::MAX - prefix.len(),
        TokenAt::Param(_) | TokenAt::Cookie(_) => usize::MAX,
    });
    Ok(authn)
}

/// One rule for all requests, by which none needs a token and each that it has must be good: anything else is not supported.
fn rules(rules: &[RequirementRule], names: &BTreeSet<&str>) -> Decoded<()> {
    const SUPPORTED: &str = "one rule, for all paths, by which a token may be missing, is supported";
    let [RequirementRule { r#match: Some(matches), requirement_type: Some(RequirementType::Requires(requirement)) }] =
        rules
    else {
        return Err(Rejected::field("rules", SUPPORTED));
    };
    let all = matches.path_specifier == Some(PathSpecifier::Prefix("/".to_owned()))
        && matches.headers.is_empty()
        && matches.query_parameters.is_empty()
        && matches.runtime_fraction.is_none()
        && matches.cookies.is_empty();
    let mut named = BTreeSet::new();
    let missing = may_be_missing(requirement, &mut named, 4);
    if all && missing && named == *names { Ok(()) } else { Err(Rejected::field("rules[0]", SUPPORTED)) }
}

/// Whether a request without a token meets it; `named` gets whose tokens do.
fn may_be_missing<'p>(requirement: &'p JwtRequirement, named: &mut BTreeSet<&'p str>, depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else { return false };
    match &requirement.requires_type {
        Some(RequiresType::ProviderName(name)) => {
            named.insert(name);
            false
        }
        Some(RequiresType::AllowMissing(_)) => true,
        // All of them are looked at, for the names.
        Some(RequiresType::RequiresAny(any)) => {
            let may: Vec<bool> = any.requirements.iter().map(|it| may_be_missing(it, named, depth)).collect();
            may.contains(&true)
        }
        Some(RequiresType::RequiresAll(all)) => {
            let may: Vec<bool> = all.requirements.iter().map(|it| may_be_missing(it, named, depth)).collect();
            !may.contains(&false)
        }
        _ => false,
    }
}

fn provider(pb: PbProvider, authn: &mut JwtAuthn) -> Decoded<()> {
    unless(pb.subjects.is_some(), "subjects", "is not supported")?;
    unless(pb.require_expiration, "require_expiration", "is not supported")?;
    unless(pb.max_lifetime.is_some(), "max_lifetime", "is not supported")?;
    unless(!pb.forward_payload_header.is_empty(), "forward_payload_header", "is not supported")?;
    unless(!pb.header_in_metadata.is_empty(), "header_in_metadata", "is not supported")?;
    unless(!pb.failed_status_in_metadata.is_empty(), "failed_status_in_metadata", "is not supported")?;
    let other = pb.payload_in_metadata != JWT_PAYLOAD;
    unless(other, "payload_in_metadata", &format!("other than {JWT_PAYLOAD:?} is not supported"))?;
    unless(pb.issuer.is_empty(), "issuer", "is needed")?;
    let again = authn.providers.iter().any(|it| it.issuer == pb.issuer);
    unless(again, "issuer", "that of another provider is not supported")?;
    let jwks = match pb.jwks_source_specifier {
        Some(JwksSourceSpecifier::LocalJwks(source)) => match source.specifier {
            Some(Specifier::InlineString(text)) => text,
            _ => return Err(Rejected::field("local_jwks", "other than inline_string is not supported")),
        },
        _ => return Err(Rejected::new("local_jwks is needed")),
    };
    let jwks = Jwks::parse(&jwks).map_err(|error| Rejected::field("local_jwks", error))?;
    let index = authn.providers.len();
    let outputs = each("claim_to_headers", pb.claim_to_headers, |pb| {
        let way = match pb.claim_path.as_slice() {
            [] => pb.claim_name.split('.').map(str::to_owned).collect(),
            segments => segments.iter().map(|it| it.key.clone()).collect(),
        };
        Ok((name(&pb.header_name).at("header_name")?, way))
    })?;
    let mut places = Vec::new();
    for (i, header) in pb.from_headers.into_iter().enumerate() {
        let name = name(&header.name).at(format_args!("from_headers[{i}].name"))?;
        places.push(TokenAt::Header { name, prefix: header.value_prefix });
    }
    places.extend(pb.from_params.into_iter().map(TokenAt::Param));
    places.extend(pb.from_cookies.into_iter().map(TokenAt::Cookie));
    if places.is_empty() {
        // Envoy's defaults.
        places.push(TokenAt::Header { name: AUTHORIZATION, prefix: "Bearer ".to_owned() });
        places.push(TokenAt::Param("access_token".to_owned()));
    }
    for at in places {
        match authn.places.iter_mut().find(|place| place.at == at) {
            Some(place) => place.providers.push(index),
            None => authn.places.push(TokenPlace { at, providers: vec![index] }),
        }
    }
    for (name, _) in &outputs {
        if !authn.claim_headers.contains(name) {
            authn.claim_headers.push(name.clone());
        }
    }
    let skew = if pb.clock_skew_seconds == 0 { LEEWAY } else { pb.clock_skew_seconds };
    authn.providers.push(JwtProvider {
        issuer: pb.issuer,
        audiences: pb.audiences,
        jwks,
        forward: pb.forward,
        outputs,
        words: pb.normalize_payload_in_metadata.map(|it| it.space_delimited_claims).unwrap_or_default(),
        leeway: f64::from(skew),
    });
    Ok(())
}

fn name(text: &str) -> Decoded<HeaderName> {
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| Rejected::new("is not the name of a header"))
}

/// What an RBAC filter asks of metadata: only of what this filter finds out.
pub(super) fn claim(pb: MetadataMatcher) -> Decoded<ClaimMatch> {
    let other = pb.filter != FILTER_JWT;
    unless(other, "filter", &format!("other than {FILTER_JWT} is not supported"))?;
    unless(pb.invert, "invert", "is not supported")?;
    let segments = pb.path.into_iter().map(|it| match it.segment {
        Some(Segment::Key(key)) => Ok(key),
        None => Err(Rejected::field("path", "a key is needed")),
    });
    let mut path = segments.collect::<Decoded<Vec<_>>>()?;
    let outside = path.len() < 2 || path[0] != JWT_PAYLOAD;
    unless(outside, "path", &format!("must lead into {JWT_PAYLOAD:?}"))?;
    path.remove(0);
    let value = pb.value.ok_or_else(|| Rejected::field("value", "is needed"))?;
    Ok(ClaimMatch { path, value: value_match(value, MAX_DEPTH).at("value")? })
}

fn value_match(pb: ValueMatcher, depth: usize) -> Decoded<ValueMatch> {
    let depth = depth.checked_sub(1).ok_or_else(|| Rejected::new("matchers are too deep in each other"))?;
    Ok(match pb.match_pattern {
        Some(MatchPattern::StringMatch(pb)) => ValueMatch::Text(matching::string(&pb).at("string_match")?),
        Some(MatchPattern::BoolMatch(wanted)) => ValueMatch::Bool(wanted),
        Some(MatchPattern::DoubleMatch(pb)) => match pb.match_pattern {
            Some(NumberPattern::Exact(number)) => ValueMatch::Number(number),
            _ => return Err(Rejected::field("double_match", "other than exact is not supported")),
        },
        Some(MatchPattern::PresentMatch(true)) => ValueMatch::Present,
        Some(MatchPattern::ListMatch(pb)) => match pb.match_pattern {
            Some(ListPattern::OneOf(inner)) => {
                ValueMatch::Entry(Box::new(value_match(*inner, depth).at("list_match.one_of")?))
            }
            None => return Err(Rejected::field("list_match", "one_of is needed")),
        },
        Some(MatchPattern::OrMatch(pb)) => {
            unless(pb.value_matchers.is_empty(), "or_match", "must not be empty")?;
            ValueMatch::OneOf(each("or_match.value_matchers", pb.value_matchers, |pb| value_match(pb, depth))?)
        }
        _ => return Err(Rejected::new("only string, bool, exact double, present, list and or matches are supported")),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use envoy_types::pb::envoy::config::core::v3::DataSource;
    use envoy_types::pb::envoy::config::route::v3::RouteMatch;
    use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::{
        JwtHeader, JwtRequirementOrList, RemoteJwks,
    };
    use envoy_types::util::pack_any;

    use super::*;

    fn is(requires: RequiresType) -> JwtRequirement {
        JwtRequirement { requires_type: Some(requires) }
    }

    fn named(name: &str) -> JwtRequirement {
        is(RequiresType::ProviderName(name.to_owned()))
    }

    fn missing() -> JwtRequirement {
        is(RequiresType::AllowMissing(Default::default()))
    }

    fn any(requirements: Vec<JwtRequirement>) -> JwtRequirement {
        is(RequiresType::RequiresAny(JwtRequirementOrList { requirements }))
    }

    fn rule(prefix: &str, requirement: JwtRequirement) -> RequirementRule {
        let path = Some(PathSpecifier::Prefix(prefix.to_owned()));
        RequirementRule {
            r#match: Some(RouteMatch { path_specifier: path, ..RouteMatch::default() }),
            requirement_type: Some(RequirementType::Requires(requirement)),
        }
    }

    fn local(jwks: &str) -> Option<JwksSourceSpecifier> {
        let specifier = Some(Specifier::InlineString(jwks.to_owned()));
        Some(JwksSourceSpecifier::LocalJwks(DataSource { specifier, ..DataSource::default() }))
    }

    fn filter() -> JwtAuthentication {
        let provider = PbProvider {
            issuer: "a".to_owned(),
            payload_in_metadata: JWT_PAYLOAD.to_owned(),
            jwks_source_specifier: local(r#"{"keys":[]}"#),
            ..PbProvider::default()
        };
        JwtAuthentication {
            providers: HashMap::from([("p".to_owned(), provider)]),
            rules: vec![rule("/", any(vec![named("p"), missing()]))],
            ..JwtAuthentication::default()
        }
    }

    fn refused(change: impl Fn(&mut JwtAuthentication)) -> String {
        let mut pb = filter();
        change(&mut pb);
        http(&pack_any(pb)).unwrap().unwrap_err().to_string()
    }

    #[test]
    fn a_filter_without_more_has_envoys_defaults() {
        let authn = http(&pack_any(filter())).unwrap().unwrap();
        let [provider] = authn.providers.as_slice() else { panic!("{authn:?}") };
        assert!(provider.jwks.is_empty() && !provider.forward && (provider.leeway - 60.0).abs() < f64::EPSILON);
        let at: Vec<&TokenAt> = authn.places.iter().map(|place| &place.at).collect();
        let header = TokenAt::Header { name: AUTHORIZATION, prefix: "Bearer ".to_owned() };
        assert_eq!(at, [&header, &TokenAt::Param("access_token".to_owned())]);
        assert!(http(&Any::default()).is_none());
    }

    #[test]
    fn of_one_header_the_longest_prefix_is_asked_first() {
        let mut pb = filter();
        let headers = ["", "jwt: ", "j"].map(|prefix| JwtHeader { name: "X".into(), value_prefix: prefix.into() });
        pb.providers.get_mut("p").unwrap().from_headers = headers.to_vec();
        let authn = http(&pack_any(pb)).unwrap().unwrap();
        let prefixes = authn.places.iter().map(|place| match &place.at {
            TokenAt::Header { prefix, .. } => prefix.as_str(),
            other => panic!("{other:?}"),
        });
        assert_eq!(prefixes.collect::<Vec<_>>(), ["jwt: ", "j", ""]);
    }

    /// What would let in more, or fewer, than was meant.
    #[test]
    fn what_is_not_done_is_refused() {
        let provider = |change: fn(&mut PbProvider)| refused(|pb| change(pb.providers.get_mut("p").unwrap()));
        for (why, expected) in [
            (provider(|it| it.require_expiration = true), "require_expiration: is not supported"),
            (provider(|it| it.subjects = Some(Default::default())), "subjects: is not supported"),
            (provider(|it| it.issuer.clear()), "issuer: is needed"),
            (provider(|it| it.payload_in_metadata.clear()), "payload_in_metadata: other than"),
            (provider(|it| it.jwks_source_specifier = None), "local_jwks is needed"),
            (provider(|it| it.jwks_source_specifier = local("{}")), "local_jwks: it is not a JSON object"),
            (
                provider(|it| it.jwks_source_specifier = local(r#"{"keys":[{"kty":"oct","k":"eA"}]}"#)),
                "local_jwks: keys[0] is symmetric",
            ),
            (
                provider(|it| it.jwks_source_specifier = Some(JwksSourceSpecifier::RemoteJwks(RemoteJwks::default()))),
                "local_jwks is needed",
            ),
            (refused(|pb| pb.strip_failure_response = true), "strip_failure_response: is not supported"),
            (refused(|pb| pb.providers.clear()), "providers: 1 to 256"),
            (
                refused(|pb| {
                    let same = pb.providers["p"].clone();
                    pb.providers.insert("q".to_owned(), same);
                    pb.rules = vec![rule("/", any(vec![named("p"), named("q"), missing()]))];
                }),
                "issuer: that of another provider",
            ),
            (refused(|pb| pb.rules.clear()), "rules: one rule"),
            (refused(|pb| pb.rules = vec![rule("/a", any(vec![named("p"), missing()]))]), "rules[0]: one rule"),
            (refused(|pb| pb.rules = vec![rule("/", named("p"))]), "rules[0]: one rule"),
            (refused(|pb| pb.rules = vec![rule("/", missing())]), "rules[0]: one rule"),
            (refused(|pb| pb.rules = vec![rule("/", any(vec![named("x"), missing()]))]), "rules[0]: one rule"),
            (
                refused(|pb| {
                    let or_failed = is(RequiresType::AllowMissingOrFailed(Default::default()));
                    pb.rules = vec![rule("/", any(vec![named("p"), or_failed]))];
                }),
                "rules[0]: one rule",
            ),
        ] {
            assert!(why.contains(expected), "{why} is not {expected}");
        }
    }
}
