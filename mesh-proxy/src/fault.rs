//! Injected faults: which of a route's rules hit a request.
//!
//! In: the rules, the request's head and the time. Out: what to do to the request, if anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::config::{Fault, FaultKind};
use crate::pace::{Pacer, Rate};
use crate::route::{Subject, headers_match};

/// Chooses a share of requests: exactly, in any 1,000 that follow each other, for a share of whole tenths of a percent,
/// and spread out so that no simple pattern in the requests falls in step with it.
#[derive(Clone, Debug)]
pub struct Share(Arc<AtomicU64>);

/// Multiples of this, which has no common divisor with 1,000 and is near 1,000 times the golden ratio, visit every
/// residue of 1,000 once, each far from those before it.
const STEP: u64 = 619;

impl Default for Share {
    /// Begins anywhere, so that a rule that is replaced often keeps its share as well.
    fn default() -> Self {
        Self::starting_at(fastrand::u64(..1_000_000))
    }
}

impl Share {
    fn starting_at(count: u64) -> Self {
        Self(Arc::new(AtomicU64::new(count)))
    }

    /// Whether the next request belongs to the share.
    pub fn hit(&self, parts_per_million: u32) -> bool {
        let count = self.0.fetch_add(1, Ordering::Relaxed);
        let place = count.wrapping_mul(STEP) % 1000;
        // What is finer than a tenth of a percent is spread over the blocks of 1,000.
        let (whole, rest) = (u64::from(parts_per_million) / 1000, u64::from(parts_per_million) % 1000);
        let extra = (count / 1000).wrapping_mul(STEP) % 1000 < rest;
        place < whole + u64::from(extra)
    }
}

/// What the rules that hit do together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub delay: Duration,
    pub end: Option<End>,
    /// What comes back keeps to all of them.
    pub throttles: Vec<Throttle>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttle {
    rate: Rate,
    /// For how long from now; `None`: for ever.
    lasts: Option<Duration>,
}

impl Throttle {
    pub fn new(rate: Rate, expires_unix_ms: i64, now_unix_ms: i64) -> Self {
        let left = u64::try_from(expires_unix_ms.saturating_sub(now_unix_ms)).unwrap_or(0);
        Self { rate, lasts: (expires_unix_ms != 0).then(|| Duration::from_millis(left)) }
    }
}

/// Keeps a stream to the throttles, beside what it may keep to already.
pub fn slow_down(pacer: &mut Option<Box<Pacer>>, throttles: &[Throttle], now: Instant) {
    for throttle in throttles {
        let pacer = pacer.get_or_insert_default();
        // What lasts longer than there are moments lasts for ever.
        pacer.slow_down(throttle.rate, throttle.lasts.and_then(|lasts| now.checked_add(lasts)), now);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Abort { http: StatusCode, grpc: u32 },
    Reset,
}

/// What was done to a request or a byte stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injected {
    Delay,
    Abort,
    Reset,
    Throttle,
}

impl Injected {
    /// As metrics say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Abort => "abort",
            Self::Reset => "reset",
            Self::Throttle => "throttle",
        }
    }
}

/// Every rule that has not expired and matches counts the request, and hits its share. Delays add up; the first abort
/// or reset decides.
pub fn decide(fault: &Fault, subject: &Subject<'_>, now_unix_ms: i64) -> Verdict {
    let mut verdict = Verdict::default();
    for rule in &fault.rules {
        let expired = rule.expires_unix_ms != 0 && rule.expires_unix_ms <= now_unix_ms;
        if expired || !headers_match(&rule.headers, subject) || !rule.share.hit(rule.parts_per_million) {
            continue;
        }
        match rule.kind {
            FaultKind::Delay(delay) => verdict.delay += delay,
            FaultKind::Abort { http, grpc } => _ = verdict.end.get_or_insert(End::Abort { http, grpc }),
            FaultKind::Reset => _ = verdict.end.get_or_insert(End::Reset),
            FaultKind::Throttle(rate) => {
                verdict.throttles.push(Throttle::new(rate, rule.expires_unix_ms, now_unix_ms));
            }
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Method};
    use proptest::prelude::*;

    use super::*;
    use crate::config::{FaultRule, HeaderMatch, StringMatch};

    fn rule(kind: FaultKind, percent: u32) -> FaultRule {
        FaultRule {
            name: "test".to_owned(),
            parts_per_million: percent * 10_000,
            kind,
            expires_unix_ms: 0,
            headers: Arc::default(),
            share: Share::default(),
        }
    }

    fn subject(headers: &HeaderMap) -> Subject<'_> {
        Subject { method: &Method::GET, authority: "a", path: "/", query: None, headers, grpc: false }
    }

    proptest! {
        #[test]
        fn any_thousand_requests_hold_the_exact_share(start in any::<u32>(), thousandths in 0u32..=1000) {
            let share = Share::starting_at(start.into());
            let hits = (0..1000).filter(|_| share.hit(thousandths * 1000)).count();
            prop_assert_eq!(hits, thousandths as usize);
        }
    }

    #[test]
    fn a_share_of_a_millionth_is_exact_over_a_million() {
        let share = Share::starting_at(0);
        assert_eq!((0..1_000_000).filter(|_| share.hit(12_345)).count(), 12_345);
    }

    #[test]
    fn a_share_is_not_in_step_with_every_other_request() {
        let share = Share::starting_at(0);
        let even = (0..1000).filter(|i| share.hit(500_000) && i % 2 == 0).count();
        assert!((200..300).contains(&even), "{even} of 500 even requests");
    }

    #[test]
    fn a_delay_and_an_abort_apply_together_and_the_first_end_decides() {
        let abort = FaultKind::Abort { http: StatusCode::IM_A_TEAPOT, grpc: 14 };
        let delay = FaultKind::Delay(Duration::from_secs(2));
        let fault = Fault { rules: vec![rule(delay, 100), rule(abort, 100), rule(FaultKind::Reset, 100)] };
        let verdict = decide(&fault, &subject(&HeaderMap::new()), 0);
        let end = Some(End::Abort { http: StatusCode::IM_A_TEAPOT, grpc: 14 });
        assert_eq!(verdict, Verdict { delay: Duration::from_secs(2), end, throttles: vec![] });
    }

    #[test]
    fn an_expired_rule_does_nothing() {
        let mut fault = Fault { rules: vec![rule(FaultKind::Reset, 100)] };
        fault.rules[0].expires_unix_ms = 1000;
        let headers = HeaderMap::new();
        assert_eq!(decide(&fault, &subject(&headers), 999).end, Some(End::Reset));
        assert_eq!(decide(&fault, &subject(&headers), 1000).end, None);
    }

    #[test]
    fn a_throttle_lasts_as_long_as_its_rule() {
        let rate = Rate::new(1024).unwrap();
        let mut fault = Fault { rules: vec![rule(FaultKind::Throttle(rate), 100); 2] };
        fault.rules[0].expires_unix_ms = 1000;
        let headers = HeaderMap::new();
        let at = |now| decide(&fault, &subject(&headers), now).throttles;
        let for_ever = Throttle { rate, lasts: None };
        assert_eq!(at(400), [Throttle { rate, lasts: Some(Duration::from_millis(600)) }, for_ever]);
        assert_eq!(at(1000), [for_ever]);
    }

    #[test]
    fn only_requests_that_match_are_counted() {
        let mut fault = Fault { rules: vec![rule(FaultKind::Reset, 50)] };
        let matcher = StringMatch::Exact("jason".to_owned());
        fault.rules[0].headers = Arc::new(vec![HeaderMatch { name: "end-user".to_owned(), matcher, invert: false }]);
        let mut jason = HeaderMap::new();
        jason.insert("end-user", HeaderValue::from_static("jason"));
        let other = HeaderMap::new();
        let mut hits = 0;
        for _ in 0..1000 {
            assert_eq!(decide(&fault, &subject(&other), 0).end, None);
            hits += u32::from(decide(&fault, &subject(&jason), 0).end.is_some());
        }
        assert_eq!(hits, 500);
    }
}
