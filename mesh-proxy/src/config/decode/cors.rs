//! Envoy's CORS policy.

use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::google::protobuf::Any;
use http::header::HeaderValue;

use super::{At, Decoded, Rejected, each, matching, parts_per_million, unless, unpack};
use crate::config::{Cors, CorsList, StringMatch};

/// `None` if it is of another type.
pub(super) fn policy(any: &Any) -> Option<Decoded<Cors>> {
    Some(unpack::<CorsPolicy>(any)?.and_then(decode))
}

fn decode(pb: CorsPolicy) -> Decoded<Cors> {
    let enabled = pb.filter_enabled.as_ref().and_then(|it| it.default_value.as_ref());
    let share = enabled.map_or(Ok(1_000_000), parts_per_million).at("filter_enabled")?;
    unless(share < 1_000_000, "filter_enabled", "other than 100 % is not supported")?;
    unless(pb.shadow_enabled.is_some(), "shadow_enabled", "is not supported")?;
    let private = pb.allow_private_network_access.is_some_and(|it| it.value);
    unless(private, "allow_private_network_access", "is not supported")?;
    let origins = each("allow_origin_string_match", pb.allow_origin_string_match, |pb| matching::string(&pb))?;
    Ok(Cors {
        any_origin: origins.iter().any(|it| matches!(it, StringMatch::Exact(text) if text == "*")),
        origins,
        methods: list(&pb.allow_methods).at("allow_methods")?,
        headers: list(&pb.allow_headers).at("allow_headers")?,
        exposed: value(&pb.expose_headers).at("expose_headers")?,
        max_age: value(&pb.max_age).at("max_age")?,
        credentials: pb.allow_credentials.is_some_and(|it| it.value),
        forwards_others: pb.forward_not_matching_preflights.is_none_or(|it| it.value),
    })
}

fn list(text: &str) -> Decoded<CorsList> {
    Ok(match value(text)? {
        None => CorsList::None,
        Some(value) if value == "*" => CorsList::All,
        Some(value) => CorsList::These(value),
    })
}

/// Empty: the header is left out.
fn value(text: &str) -> Decoded<Option<HeaderValue>> {
    let value = HeaderValue::from_str(text).map_err(|_| Rejected::new("is not a header value"))?;
    Ok(Some(value).filter(|it| !it.is_empty()))
}
