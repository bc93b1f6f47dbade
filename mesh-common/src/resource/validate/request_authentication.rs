use std::collections::BTreeSet;

use super::super::{JwtRule, RequestAuthenticationSpec};
use super::Errors;
use super::fields::{at_most, is_token, targets};
use crate::jwt::{Jwks, check_uri};

const MAX_RULES: usize = 16;
const MAX_PLACES: usize = 16;
const MAX_TEXT: usize = 2048;
const MAX_SKEW_SECONDS: u64 = 600;
/// Headers that say how the request is to be read or where it goes: these are nobody's to set.
const RESERVED: [&str; 12] = [
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-request-id",
];

pub(super) fn policy(spec: &RequestAuthenticationSpec, errors: &mut Errors) {
    targets(errors, &spec.target_refs, &["Service"]);
    for (i, target) in spec.target_refs.iter().enumerate() {
        let path = format!("spec.targetRefs[{i}].sectionName");
        errors.add_if(target.section_name.is_some(), path, "it holds for all ports of a workload");
    }
    errors.add_if(spec.jwt_rules.is_empty(), "spec.jwtRules", "a rule is needed");
    at_most(errors, "spec.jwtRules", spec.jwt_rules.len(), MAX_RULES);
    for (i, it) in spec.jwt_rules.iter().enumerate() {
        let path = format!("spec.jwtRules[{i}]");
        let again = spec.jwt_rules[..i].iter().any(|other| other.issuer == it.issuer);
        errors.add_if(again, format!("{path}.issuer"), "this issuer has a rule already");
        rule(errors, &path, it);
    }
}

fn rule(errors: &mut Errors, path: &str, rule: &JwtRule) {
    text(errors, &format!("{path}.issuer"), &rule.issuer);
    each(errors, &format!("{path}.audiences"), &rule.audiences, 64, text);
    match (&rule.jwks, &rule.jwks_uri) {
        (Some(jwks), None) => match Jwks::parse(jwks) {
            Ok(keys) if keys.is_empty() => {
                errors.add(format!("{path}.jwks"), "no key in it is one for signatures that is supported (RSA of 2048 to 8192 bits, P-256, P-384, Ed25519)");
            }
            Ok(_) => (),
            Err(error) => errors.add(format!("{path}.jwks"), format!("this is not a JWKS that can be used: {error}")),
        },
        (None, Some(uri)) => {
            if let Err(message) = check_uri(uri) {
                errors.add(format!("{path}.jwksUri"), message);
            }
        }
        _ => errors.add(path, "one of `jwks` and `jwksUri` is needed"),
    }
    at_most(errors, &format!("{path}.fromHeaders"), rule.from_headers.len(), MAX_PLACES);
    for (i, header) in rule.from_headers.iter().enumerate() {
        let path = format!("{path}.fromHeaders[{i}]");
        let name = !is_token(&header.name) || ["host", "cookie"].iter().any(|it| header.name.eq_ignore_ascii_case(it));
        errors.add_if(
            name,
            format!("{path}.name"),
            format!("{:?} is not the name of a header for tokens", header.name),
        );
        let wrong = header.prefix.len() > 64 || header.prefix.bytes().any(|b| !(0x20..0x7f).contains(&b));
        errors.add_if(wrong, format!("{path}.prefix"), "at most 64 visible characters and spaces");
    }
    each(errors, &format!("{path}.fromParams"), &rule.from_params, MAX_PLACES, |errors, path, name| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
        let fits = (1..=256).contains(&name.len()) && name.bytes().all(inner);
        errors.add_if(
            !fits,
            path,
            format!("{name:?} is not a name of a query's parameter, of letters, digits and -_.~"),
        );
    });
    each(errors, &format!("{path}.fromCookies"), &rule.from_cookies, MAX_PLACES, |errors, path, name| {
        errors.add_if(!is_token(name), path, format!("{name:?} is not the name of a cookie"));
    });
    at_most(errors, &format!("{path}.outputClaimToHeaders"), rule.output_claim_to_headers.len(), MAX_PLACES);
    let mut seen = BTreeSet::new();
    for (i, output) in rule.output_claim_to_headers.iter().enumerate() {
        let path = format!("{path}.outputClaimToHeaders[{i}]");
        let name = output.header.to_ascii_lowercase();
        let reserved = !is_token(&name) || RESERVED.contains(&&*name);
        let header = format!("{path}.header");
        errors.add_if(reserved, &header, format!("{:?} is not a header that can tell a claim", output.header));
        errors.add_if(!seen.insert(name), header, "this header tells a claim already");
        let wrong = output.claim.len() > 256 || output.claim.split('.').any(str::is_empty);
        errors.add_if(wrong, format!("{path}.claim"), "the name of a claim is needed, with dots between levels");
    }
    if let Some(skew) = rule.clock_skew {
        let skew = skew.get();
        let fits = skew.subsec_nanos() == 0 && (1..=MAX_SKEW_SECONDS).contains(&skew.as_secs());
        errors.add_if(!fits, format!("{path}.clockSkew"), "whole seconds, from 1s to 10m");
    }
}

fn each(errors: &mut Errors, path: &str, values: &[String], most: usize, check: fn(&mut Errors, &str, &str)) {
    at_most(errors, path, values.len(), most);
    values.iter().enumerate().for_each(|(i, value)| check(errors, &format!("{path}[{i}]"), value));
}

fn text(errors: &mut Errors, path: &str, text: &str) {
    let fits = (1..=MAX_TEXT).contains(&text.len()) && !text.chars().any(char::is_control);
    errors.add_if(!fits, path, format!("a text of 1 to {MAX_TEXT} bytes without control characters is needed"));
}
