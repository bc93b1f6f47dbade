//! Whether a request is tried once more, and when.
//!
//! In: a route's retry policy and what came of a try. Out: the decision. Sends nothing itself.

use std::time::{Duration, SystemTime};

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};

use crate::config::{RetryOn, RetryPolicy};
use crate::error::{Kind, Retry};

/// The kernel asks again for a connection after that time.
const SILENCE: Duration = Duration::from_secs(1);

/// Whether this failure is one that the policy wants tried again, and one that may be.
pub fn on_error(on: &RetryOn, kind: Kind, idempotent: bool) -> bool {
    let safe = match kind.retry() {
        Retry::Safe => true,
        Retry::IfIdempotent => idempotent,
        Retry::Never => false,
    };
    let gateway = on.gateway_error || on.server_error;
    let wanted = match kind {
        Kind::UpstreamConnect | Kind::UpstreamTls => on.connect_failure || gateway,
        Kind::UpstreamRefused => on.refused_stream || gateway,
        Kind::UpstreamResetBeforeRequest => on.reset_before_request || on.reset || gateway,
        Kind::UpstreamReset | Kind::PerTryTimeout => on.reset || gateway,
        _ => false,
    };
    safe && wanted
}

/// Whether a connection came to nothing because nobody said anything, not even no: to ask the same endpoint once more is no
/// use, since the kernel has done so all the time.
pub fn is_silence(kind: Kind, took: Duration) -> bool {
    matches!(kind, Kind::UpstreamConnect | Kind::UpstreamTls) && took >= SILENCE
}

/// Whether the policy wants a request with this response tried again. A gRPC status counts when it came with the head,
/// before any message.
pub fn on_response(on: &RetryOn, status: StatusCode, headers: &HeaderMap) -> bool {
    (on.server_error && status.is_server_error())
        || (on.gateway_error && matches!(status.as_u16(), 502..=504))
        || (on.retriable_4xx && status == StatusCode::CONFLICT)
        || on.statuses.contains(&status)
        || (!on.grpc.is_empty() && grpc_status(headers).is_some_and(|status| on.grpc.contains(&status)))
}

/// The policy may want another try because of a response, or of a connection that broke after the request was sent.
pub fn needs_replay(on: &RetryOn) -> bool {
    on.reset
        || on.refused_stream
        || on.server_error
        || on.gateway_error
        || on.retriable_4xx
        || !on.statuses.is_empty()
        || !on.grpc.is_empty()
}

pub fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// How long the upstream wants to be left alone (RFC 9110, 10.2.3: seconds, or a date), if the policy cares.
pub fn retry_after(policy: &RetryPolicy, headers: &HeaderMap, now: impl FnOnce() -> SystemTime) -> Option<Duration> {
    if policy.retry_after_max.is_zero() {
        return None;
    }
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(date.timestamp().as_second().try_into().ok()?);
    Some(at.duration_since(now()).unwrap_or_default())
}

/// How long to wait before the retry of this number, counted from one: exponential, with full jitter. `random` is in
/// `0.0..1.0`.
pub fn backoff(policy: &RetryPolicy, number: u32, random: f64) -> Duration {
    let exponent = number.saturating_sub(1).min(16);
    let most = policy.backoff_base.saturating_mul(1 << exponent).min(policy.backoff_max.max(policy.backoff_base));
    most.mul_f64(random)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn what_the_upstream_may_have_seen_is_only_sent_again_when_idempotent() {
        let all = RetryOn { connect_failure: true, reset: true, refused_stream: true, ..RetryOn::default() };
        assert!(on_error(&all, Kind::UpstreamConnect, false));
        assert!(on_error(&all, Kind::UpstreamRefused, false));
        assert!(on_error(&all, Kind::UpstreamResetBeforeRequest, false));
        assert!(!on_error(&all, Kind::UpstreamReset, false));
        assert!(on_error(&all, Kind::UpstreamReset, true));
        assert!(!on_error(&all, Kind::Timeout, true));
        assert!(!on_error(&all, Kind::Downstream, true));
        assert!(!on_error(&RetryOn::default(), Kind::UpstreamConnect, true));
    }

    #[test]
    fn who_refuses_may_be_asked_again_and_who_is_silent_not() {
        let (soon, late) = (Duration::from_millis(300), Duration::from_secs(3));
        assert!(!is_silence(Kind::UpstreamConnect, soon) && is_silence(Kind::UpstreamConnect, late));
        assert!(is_silence(Kind::UpstreamTls, late) && !is_silence(Kind::UpstreamReset, late));
    }

    #[test]
    fn responses() {
        let none = HeaderMap::new();
        let gateway = RetryOn { gateway_error: true, ..RetryOn::default() };
        assert!(on_response(&gateway, StatusCode::SERVICE_UNAVAILABLE, &none));
        assert!(!on_response(&gateway, StatusCode::INTERNAL_SERVER_ERROR, &none));
        let statuses = RetryOn { statuses: vec![StatusCode::IM_A_TEAPOT], ..RetryOn::default() };
        assert!(on_response(&statuses, StatusCode::IM_A_TEAPOT, &none));
        let grpc = RetryOn { grpc: vec![14], ..RetryOn::default() };
        let mut unavailable = HeaderMap::new();
        unavailable.insert("grpc-status", HeaderValue::from_static("14"));
        assert!(on_response(&grpc, StatusCode::OK, &unavailable));
        assert!(!on_response(&grpc, StatusCode::OK, &none));
    }

    #[test]
    fn how_long_the_upstream_wants_to_be_left_alone() {
        let policy = |max| RetryPolicy {
            retries: 1,
            on: RetryOn::default(),
            per_try_timeout: Duration::ZERO,
            hedges: false,
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
            retry_after_max: Duration::from_secs(max),
        };
        let asked = |max, text: &'static str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
            // Sun, 06 Nov 1994 08:49:37 GMT
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
            retry_after(&policy(max), &headers, || now).map(|it| it.as_secs())
        };
        assert_eq!(asked(10, "7"), Some(7));
        assert_eq!(asked(10, "3600"), Some(3600));
        assert_eq!(asked(0, "7"), None);
        assert_eq!(asked(10, "Sun, 06 Nov 1994 08:50:07 GMT"), Some(30));
        assert_eq!(asked(10, "Sun, 06 Nov 1994 08:49:07 GMT"), Some(0));
        for wrong in ["-1", "soon", "1.5", "", "99999999999999999999999"] {
            assert_eq!(asked(10, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn waits_grow_up_to_the_most() {
        let policy = RetryPolicy {
            retries: 9,
            on: RetryOn::default(),
            per_try_timeout: Duration::ZERO,
            hedges: false,
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
            retry_after_max: Duration::ZERO,
        };
        let most: Vec<_> = (1..=6).map(|n| backoff(&policy, n, 1.0).as_millis()).collect();
        assert_eq!(most, [25, 50, 100, 200, 250, 250]);
        assert_eq!(backoff(&policy, 3, 0.5).as_millis(), 50);
        assert_eq!(backoff(&policy, u32::MAX, 0.0), Duration::ZERO);
    }
}
