//! Whose tokens are good, as Envoy's JWT filter. The keys go with it: no proxy has to reach an issuer.

use envoy_types::pb::envoy::config::core::v3::DataSource;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::route::v3::RouteMatch;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_provider::{
    JwksSourceSpecifier, NormalizePayload,
};
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_requirement::RequiresType;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::requirement_rule::RequirementType;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::{
    JwtClaimToHeader, JwtHeader, JwtProvider, JwtRequirement, JwtRequirementAndList, JwtRequirementOrList,
    RequirementRule,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::google::protobuf::{Any, Empty};
use mesh_common::names::{FILTER_JWT, JWT_PAYLOAD, JWT_WORDS};
use mesh_common::resource::JwtRule;
use prost::Message;

use super::http;
use crate::model::Model;

/// No token has a key in it.
const NO_KEYS: &str = r#"{"keys":[]}"#;

/// `envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication` with the entries of its map as the list that they are on the
/// wire: the map itself has no stable encoding.
#[derive(Clone, PartialEq, Message)]
struct Config {
    #[prost(message, repeated, tag = "1")]
    providers: Vec<Entry>,
    #[prost(message, repeated, tag = "2")]
    rules: Vec<RequirementRule>,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<JwtProvider>,
}

/// Of the tokens that these rules take. `None`: nobody's mean anything here.
pub(super) fn filter(model: &Model, rules: &[&JwtRule]) -> Option<HttpFilter> {
    if rules.is_empty() {
        return None;
    }
    let entry = |(i, rule): (usize, &&JwtRule)| Entry { key: name(i), value: Some(provider(model, rule)) };
    let providers: Vec<_> = rules.iter().enumerate().map(entry).collect();
    let match_all = RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..RouteMatch::default() };
    let requires = RequirementType::Requires(requirement(rules.len()));
    let rules = vec![RequirementRule { r#match: Some(match_all), requirement_type: Some(requires) }];
    let config = Any {
        type_url: "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication".to_owned(),
        value: Config { providers, rules }.encode_to_vec(),
    };
    Some(http::filter(FILTER_JWT, config))
}

fn name(index: usize) -> String {
    format!("issuer-{index}")
}

fn provider(model: &Model, rule: &JwtRule) -> JwtProvider {
    let fetched = || model.keys_from(rule.jwks_uri.as_deref()?);
    let jwks = rule.jwks.as_deref().or_else(fetched).unwrap_or(NO_KEYS);
    let header = |it: &mesh_common::resource::JwtHeader| JwtHeader {
        name: it.name.to_ascii_lowercase(),
        value_prefix: it.prefix.clone(),
    };
    let output = |it: &mesh_common::resource::ClaimToHeader| JwtClaimToHeader {
        header_name: it.header.to_ascii_lowercase(),
        claim_name: it.claim.clone(),
        ..JwtClaimToHeader::default()
    };
    JwtProvider {
        issuer: rule.issuer.clone(),
        audiences: rule.audiences.clone(),
        forward: rule.forward_original_token,
        from_headers: rule.from_headers.iter().map(header).collect(),
        from_params: rule.from_params.clone(),
        from_cookies: rule.from_cookies.clone(),
        payload_in_metadata: JWT_PAYLOAD.to_owned(),
        normalize_payload_in_metadata: Some(NormalizePayload {
            space_delimited_claims: JWT_WORDS.map(str::to_owned).to_vec(),
        }),
        // Zero is Envoy's default.
        clock_skew_seconds: rule.clock_skew.map_or(0, |it| u32::try_from(it.get().as_secs()).unwrap_or(u32::MAX)),
        claim_to_headers: rule.output_claim_to_headers.iter().map(output).collect(),
        jwks_source_specifier: Some(JwksSourceSpecifier::LocalJwks(DataSource {
            specifier: Some(Specifier::InlineString(jwks.to_owned())),
            ..DataSource::default()
        })),
        ..JwtProvider::default()
    }
}

/// A token of one of them, or of each of them either a good one or none: where several look at the same place, each finds the
/// tokens of the others and takes them for wrong.
fn requirement(providers: usize) -> JwtRequirement {
    let is = |requires| JwtRequirement { requires_type: Some(requires) };
    let any = |requirements| is(RequiresType::RequiresAny(JwtRequirementOrList { requirements }));
    let of = |i| is(RequiresType::ProviderName(name(i)));
    let none = || is(RequiresType::AllowMissing(Empty::default()));
    if providers == 1 {
        return any(vec![of(0), none()]);
    }
    let each = (0..providers).map(|i| any(vec![of(i), none()])).collect();
    let all = is(RequiresType::RequiresAll(JwtRequirementAndList { requirements: each }));
    any((0..providers).map(of).chain([all]).collect())
}
