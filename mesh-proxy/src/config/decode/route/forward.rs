//! RouteAction -> [`Forward`]: clusters, timeouts, retries, rewrites.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::retry_policy::{RateLimitedRetryBackOff, ResetHeaderFormat};
use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::{Cookie as PbCookie, PolicySpecifier};
use envoy_types::pb::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HashPolicy as PbHash, HostRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::config::route::v3::{HedgePolicy, RetryPolicy as PbRetry, RouteAction};
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};

use super::super::{At, Decoded, Rejected, duration, duration_or, each, matching, unless};
use super::{Scope, mirror};
use crate::config::{
    Forward, HashBy, HashCookie, HashPolicy, PathMatch, PathRewrite, RetryOn, RetryPolicy, WeightedCluster,
    WeightedClusters,
};

/// Envoy's defaults.
const TIMEOUT: Duration = Duration::from_secs(15);
const BACKOFF: Duration = Duration::from_millis(25);
const RETRY_AFTER: Duration = Duration::from_secs(300);

pub(super) fn forward(pb: RouteAction, path: &PathMatch, scope: &Scope) -> Decoded<Forward> {
    unless(pb.metadata_match.is_some(), "metadata_match", "is not supported")?;
    unless(pb.path_rewrite_policy.is_some(), "path_rewrite_policy", "is not supported")?;
    unless(!pb.rate_limits.is_empty(), "rate_limits", "is not supported")?;
    #[allow(deprecated)]
    unless(pb.cors.is_some(), "cors", "is not supported")?;
    unless(pb.internal_redirect_policy.is_some(), "internal_redirect_policy", "is not supported")?;
    let hedges = pb.hedge_policy.as_ref().or(scope.hedge.as_ref()).map(hedge_policy).transpose().at("hedge_policy")?;
    unless(pb.retry_policy_typed_config.is_some(), "retry_policy_typed_config", "is not supported")?;
    let stream = pb.max_stream_duration.as_ref().and_then(|it| it.max_stream_duration.as_ref());
    let timeout = match (&pb.timeout, stream) {
        (Some(timeout), _) => duration(timeout).at("timeout")?,
        (None, Some(longest)) => duration(longest).at("max_stream_duration.max_stream_duration")?,
        (None, None) => TIMEOUT,
    };
    let rewrite_host = match &pb.host_rewrite_specifier {
        None => None,
        Some(HostRewriteSpecifier::AutoHostRewrite(auto)) if !auto.value => None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            let value = HeaderValue::try_from(host);
            Some(value.map_err(|_| Rejected::field("host_rewrite_literal", "is not a host"))?)
        }
        Some(_) => return Err(Rejected::new("of host rewrites only host_rewrite_literal is supported")),
    };
    let mirrors = each("request_mirror_policies", pb.request_mirror_policies.clone(), mirror)?;
    Ok(Forward {
        rewrite_path: rewrite(&pb, path)?,
        clusters: clusters(pb.cluster_specifier)?,
        timeout,
        idle_timeout: pb.idle_timeout.as_ref().map(duration).transpose().at("idle_timeout")?,
        retry: match pb.retry_policy.as_ref().or(scope.retry.as_ref()) {
            Some(pb) => RetryPolicy { hedges: hedges.unwrap_or(false), ..retry(pb).at("retry_policy")? },
            None => never(),
        },
        rewrite_host,
        hash: each("hash_policy", &pb.hash_policy, hash_policy)?,
        mirrors: if mirrors.is_empty() { scope.mirrors.clone() } else { mirrors },
    })
}

fn clusters(pb: Option<ClusterSpecifier>) -> Decoded<WeightedClusters> {
    match pb {
        Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => Ok(WeightedClusters::single(&name)),
        Some(ClusterSpecifier::WeightedClusters(pb)) => {
            let choices = each("weighted_clusters.clusters", pb.clusters, weighted)?;
            let total: u64 = choices.iter().map(|it| u64::from(it.weight)).sum();
            let too_many = total > u64::from(u32::MAX);
            unless(too_many, "weighted_clusters", "the sum of the weights must not be more than 4294967295")?;
            Ok(WeightedClusters::new(choices))
        }
        _ => Err(Rejected::new("one of cluster and weighted_clusters is needed")),
    }
}

fn weighted(pb: ClusterWeight) -> Decoded<WeightedCluster> {
    unless(!pb.cluster_header.is_empty(), "cluster_header", "is not supported")?;
    unless(pb.name.is_empty(), "name", "must not be empty")?;
    unless(pb.metadata_match.is_some(), "metadata_match", "is not supported")?;
    unless(!pb.typed_per_filter_config.is_empty(), "typed_per_filter_config", "is not supported here")?;
    unless(pb.host_rewrite_specifier.is_some(), "host_rewrite_literal", "is not supported here")?;
    Ok(WeightedCluster {
        weight: pb.weight.as_ref().map_or(0, |it| it.value),
        request_headers: matching::mutation("request", pb.request_headers_to_add, pb.request_headers_to_remove)?,
        response_headers: matching::mutation("response", pb.response_headers_to_add, pb.response_headers_to_remove)?,
        cluster: pb.name.into(),
    })
}

fn hash_policy(pb: &PbHash) -> Decoded<HashPolicy> {
    let by = match pb.policy_specifier.as_ref() {
        Some(PolicySpecifier::Header(header)) => {
            unless(header.regex_rewrite.is_some(), "header.regex_rewrite", "is not supported")?;
            let name = header.header_name.to_ascii_lowercase().parse();
            let reason = || format!("{:?} is not the name of a header", header.header_name);
            HashBy::Header(name.map_err(|_| Rejected::field("header.header_name", reason()))?)
        }
        Some(PolicySpecifier::Cookie(cookie)) => HashBy::Cookie(hash_cookie(cookie).at("cookie")?),
        Some(PolicySpecifier::ConnectionProperties(connection)) if connection.source_ip => HashBy::Source,
        _ => return Err(Rejected::new("only a header, a cookie and connection_properties.source_ip are supported")),
    };
    Ok(HashPolicy { by, terminal: pb.terminal })
}

fn hash_cookie(pb: &PbCookie) -> Decoded<HashCookie> {
    unless(!pb.attributes.is_empty(), "attributes", "are not supported")?;
    let header: Option<HeaderName> = pb.name.parse().ok();
    unless(header.is_none(), "name", "is not the name of a cookie")?;
    // What is between these would be an attribute of its own, or a header.
    let wrong = |c: char| c == ';' || c.is_control() || !c.is_ascii();
    unless(pb.path.contains(wrong), "path", "is not a path of a cookie")?;
    let ttl = pb.ttl.as_ref().map(duration).transpose().at("ttl")?;
    Ok(HashCookie { name: pb.name.clone(), ttl, path: pb.path.clone() })
}

fn rewrite(pb: &RouteAction, path: &PathMatch) -> Decoded<Option<PathRewrite>> {
    let all = [!pb.prefix_rewrite.is_empty(), !pb.path_rewrite.is_empty(), pb.regex_rewrite.is_some()];
    unless(all.into_iter().filter(|it| *it).count() > 1, "prefix_rewrite", "is not the only rewrite of the path")?;
    if !pb.path_rewrite.is_empty() {
        return Ok(Some(PathRewrite::Full(matching::literal(&pb.path_rewrite).at("path_rewrite")?)));
    }
    if let Some(pb) = &pb.regex_rewrite {
        let pattern = pb.pattern.as_ref().ok_or_else(|| Rejected::field("regex_rewrite.pattern", "is needed"))?;
        let pattern = matching::regex(&pattern.regex).at("regex_rewrite.pattern.regex")?;
        let substitution = substitution(&pb.substitution).at("regex_rewrite.substitution")?;
        return Ok(Some(PathRewrite::Regex { pattern, substitution }));
    }
    if pb.prefix_rewrite.is_empty() {
        return Ok(None);
    }
    let replacement = pb.prefix_rewrite.clone();
    match path {
        PathMatch::Prefix(_) | PathMatch::SegmentPrefix(_) => Ok(Some(PathRewrite::Prefix(replacement))),
        PathMatch::Exact(_) => Ok(Some(PathRewrite::Full(replacement))),
        PathMatch::Regex(_) => {
            Err(Rejected::field("prefix_rewrite", "needs a route that matches a path or a prefix, case sensitive"))
        }
    }
}

/// RE2 writes groups as `\1`, the `regex` crate as `${1}`.
fn substitution(re2: &str) -> Decoded<String> {
    let mut out = String::with_capacity(re2.len() + 8);
    let mut chars = re2.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some(digit) if digit.is_ascii_digit() => {
                    out.push_str("${");
                    out.push(digit);
                    out.push('}');
                }
                Some('\\') => out.push('\\'),
                _ => return Err(Rejected::new(r"a backslash must be followed by a digit or a backslash")),
            },
            other => out.push(other),
        }
    }
    Ok(out)
}

fn never() -> RetryPolicy {
    RetryPolicy {
        retries: 0,
        on: RetryOn::default(),
        per_try_timeout: Duration::ZERO,
        hedges: false,
        backoff_base: BACKOFF,
        backoff_max: BACKOFF * 10,
        retry_after_max: Duration::ZERO,
    }
}

/// Whether a try goes on that has taken its time.
pub(super) fn hedge_policy(pb: &HedgePolicy) -> Decoded<bool> {
    let initial = pb.initial_requests.as_ref().is_some_and(|it| it.value != 1);
    unless(initial, "initial_requests", "other than 1 is not supported")?;
    let chance = pb.additional_request_chance.as_ref().is_some_and(|it| it.numerator != 0);
    unless(chance, "additional_request_chance", "is not supported")?;
    Ok(pb.hedge_on_per_try_timeout)
}

fn retry(pb: &PbRetry) -> Decoded<RetryPolicy> {
    unless(!pb.retriable_request_headers.is_empty(), "retriable_request_headers", "is not supported")?;
    let mut on = RetryOn::default();
    for condition in pb.retry_on.split(',').map(str::trim) {
        match condition {
            "5xx" => on.server_error = true,
            "gateway-error" => on.gateway_error = true,
            "reset" => on.reset = true,
            "reset-before-request" => on.reset_before_request = true,
            "connect-failure" => on.connect_failure = true,
            "refused-stream" => on.refused_stream = true,
            "retriable-4xx" => on.retriable_4xx = true,
            "retriable-status-codes" => {
                on.statuses = each("retriable_status_codes", &pb.retriable_status_codes, |code| {
                    let status = u16::try_from(*code).ok().and_then(|it| StatusCode::from_u16(it).ok());
                    status.ok_or_else(|| Rejected::new(format_args!("{code} is not a status")))
                })?;
            }
            "cancelled" => on.grpc.push(1),
            "deadline-exceeded" => on.grpc.push(4),
            "resource-exhausted" => on.grpc.push(8),
            "internal" => on.grpc.push(13),
            "unavailable" => on.grpc.push(14),
            // As Envoy has it: what is not known is one condition less to retry on.
            _ => {}
        }
    }
    let retry_after_max = match &pb.rate_limited_retry_back_off {
        Some(pb) => retry_after(pb).at("rate_limited_retry_back_off")?,
        None => Duration::ZERO,
    };
    let backoff = pb.retry_back_off.unwrap_or_default();
    let backoff_base = duration_or("retry_back_off.base_interval", &backoff.base_interval, BACKOFF)?;
    unless(backoff_base.is_zero(), "retry_back_off.base_interval", "must be more than zero")?;
    let longest = backoff_base.saturating_mul(10);
    let backoff_max = duration_or("retry_back_off.max_interval", &backoff.max_interval, longest)?;
    unless(backoff_max < backoff_base, "retry_back_off.max_interval", "must not be less than base_interval")?;
    Ok(RetryPolicy {
        retries: pb.num_retries.as_ref().map_or(1, |it| it.value),
        on,
        per_try_timeout: duration_or("per_try_timeout", &pb.per_try_timeout, Duration::ZERO)?,
        hedges: false,
        backoff_base,
        backoff_max,
        retry_after_max,
    })
}

/// The longest wait.
fn retry_after(pb: &RateLimitedRetryBackOff) -> Decoded<Duration> {
    each("reset_headers", &pb.reset_headers, |header| {
        let known =
            header.name.eq_ignore_ascii_case("retry-after") && header.format == ResetHeaderFormat::Seconds as i32;
        unless(!known, "name", "only Retry-After in SECONDS is supported")
    })?;
    unless(pb.reset_headers.is_empty(), "reset_headers", "must not be empty")?;
    let longest = duration_or("max_interval", &pb.max_interval, RETRY_AFTER)?;
    unless(longest.is_zero(), "max_interval", "must be more than zero")?;
    Ok(longest)
}
