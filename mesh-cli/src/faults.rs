//! Faults as the command line states them, made into a FaultInjection, and read back into a line. Pure; the clock is passed in.

use std::time::Duration;

use jiff::Timestamp;
use mesh_common::resource::{
    ByteRate, Fault, FaultAbort, FaultDelay, FaultInjection, FaultInjectionSpec, FaultMatch, FaultReset, FaultSource,
    FaultThrottle, Metadata, NamedMatch, Resource, TargetRef,
};
use serde::Serialize;

use crate::output::time::{human_duration, until};
use crate::routes::conditions::describe_header;
use crate::routes::edit::MANAGED_BY;

/// What happens to the requests that are hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Delay(Duration),
    Abort { http_status: u16, grpc_status: Option<u32> },
    Reset,
    Throttle(ByteRate),
}

/// A fault as asked for.
#[derive(Clone, Debug)]
pub struct Order {
    pub namespace: String,
    pub service: String,
    /// Name of the object; made from the rest if not given.
    pub name: Option<String>,
    pub percent: f64,
    pub effect: Effect,
    /// Service or service account of the callers that are hit; empty: all.
    pub from: Vec<String>,
    pub headers: Vec<NamedMatch>,
    /// `None`: until it is cleared.
    pub lifetime: Option<Duration>,
}

/// The same order has the same name, so that giving it again replaces the fault.
pub fn object(order: &Order, now: Timestamp) -> Result<FaultInjection, jiff::Error> {
    let mut metadata = Metadata::new(&order.namespace, &order.name.clone().unwrap_or_else(|| default_name(order)));
    metadata.labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    let mut fault =
        Fault { percent: order.percent, delay: None, abort: None, reset: None, throttle: None, matches: None };
    match order.effect {
        Effect::Delay(duration) => {
            let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
            fault.delay = Some(FaultDelay { duration: mesh_common::resource::Duration::from_millis(milliseconds) });
        }
        Effect::Abort { http_status, grpc_status } => fault.abort = Some(FaultAbort { http_status, grpc_status }),
        Effect::Reset => fault.reset = Some(FaultReset {}),
        Effect::Throttle(rate) => fault.throttle = Some(FaultThrottle { rate }),
    }
    if !order.headers.is_empty() {
        fault.matches = Some(FaultMatch { headers: order.headers.clone() });
    }
    let target = TargetRef { kind: "Service".to_owned(), name: order.service.clone(), ..TargetRef::default() };
    // People say `web` and mean the application, which is a service, a service account or both.
    let from = order.from.iter().flat_map(|name| {
        let service = FaultSource { service: Some(name.clone()), ..FaultSource::default() };
        let account = FaultSource { service_account: Some(name.clone()), ..FaultSource::default() };
        [service, account]
    });
    let expires_at = match order.lifetime {
        Some(lifetime) => {
            let end = now.checked_add(jiff::SignedDuration::try_from(lifetime)?)?;
            // Nobody reads nanoseconds.
            Some(Timestamp::from_millisecond(end.as_millisecond())?.to_string())
        }
        None => None,
    };
    let spec = FaultInjectionSpec { target_refs: vec![target], from: from.collect(), faults: vec![fault], expires_at };
    Ok(Resource { metadata, spec })
}

fn default_name(order: &Order) -> String {
    let effect = match order.effect {
        Effect::Delay(_) => "delay",
        Effect::Abort { .. } => "abort",
        Effect::Reset => "reset",
        Effect::Throttle(_) => "throttle",
    };
    let from: String = order.from.iter().map(|name| format!("-from-{name}")).collect();
    let name = format!("{}-{effect}{from}", order.service);
    // A name is a DNS label's length at most; the end of a long list of callers is the least of a loss.
    name.chars().take(63).collect::<String>().trim_end_matches('-').to_owned()
}

/// One fault, as lists show it.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    pub namespace: String,
    pub name: String,
    /// `reviews`, or `HTTPRoute/reviews`.
    pub target: String,
    /// Empty: all callers.
    pub from: Vec<String>,
    pub percent: f64,
    pub effect: String,
    /// Which requests, in words; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// Nothing is hit any more.
    pub over: bool,
}

pub fn views(object: &FaultInjection, now: Timestamp) -> Vec<View> {
    let target = |t: &TargetRef| match t.kind.as_str() {
        "Service" => t.name.clone(),
        kind => format!("{kind}/{}", t.name),
    };
    let spec = &object.spec;
    let target = spec.target_refs.iter().map(target).collect::<Vec<_>>().join(", ");
    let mut from: Vec<String> = Vec::new();
    for source in &spec.from {
        let name = source.service.clone().or_else(|| source.service_account.clone()).unwrap_or_default();
        let name = source.namespace.as_ref().map(|namespace| format!("{name}.{namespace}")).unwrap_or(name);
        if !from.contains(&name) {
            from.push(name);
        }
    }
    let view = |fault: &Fault| View {
        namespace: object.metadata.namespace_or_default().to_owned(),
        name: object.metadata.name.clone(),
        target: target.clone(),
        from: from.clone(),
        percent: fault.percent,
        effect: effect(fault),
        matches: fault.matches.iter().flat_map(|m| &m.headers).map(describe_header).collect(),
        expires_at: spec.expires_at.clone(),
        over: expiry(object).is_some_and(|then| until(then, now).is_none()),
    };
    spec.faults.iter().map(view).collect()
}

pub fn expiry(object: &FaultInjection) -> Option<Timestamp> {
    object.spec.expires_at.as_deref()?.parse().ok()
}

/// `4m59s`, `never` or `over`.
pub fn time_left(view: &View, now: Timestamp) -> String {
    match view.expires_at.as_deref().and_then(|t| t.parse::<Timestamp>().ok()) {
        None => "never".to_owned(),
        Some(then) => until(then, now).map(human_duration).unwrap_or_else(|| "over".to_owned()),
    }
}

/// `delay 2s in 50 % of the calls of reviews by web`
pub fn in_words(view: &View) -> String {
    let by = if view.from.is_empty() { String::new() } else { format!(" by {}", view.from.join(" or ")) };
    let with = if view.matches.is_empty() { String::new() } else { format!(" with {}", view.matches.join(", ")) };
    format!("{} in {} % of the calls of {}{by}{with}", view.effect, view.percent, view.target)
}

fn effect(fault: &Fault) -> String {
    match (&fault.delay, &fault.abort, &fault.reset, &fault.throttle) {
        (Some(delay), ..) => format!("delay {}", delay.duration),
        (_, Some(FaultAbort { http_status, grpc_status: Some(grpc) }), ..) => {
            format!("abort {http_status} (gRPC {grpc})")
        }
        (_, Some(abort), ..) => format!("abort {}", abort.http_status),
        (_, _, Some(_), _) => "reset".to_owned(),
        (.., Some(throttle)) => format!("throttle {}/s", throttle.rate),
        _ => "nothing".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use mesh_common::resource::Object;

    use super::*;

    fn order() -> Order {
        Order {
            namespace: "default".into(),
            service: "reviews".into(),
            name: None,
            percent: 50.0,
            effect: Effect::Delay(Duration::from_secs(2)),
            from: vec!["web".into()],
            headers: Vec::new(),
            lifetime: Some(Duration::from_secs(300)),
        }
    }

    fn now() -> Timestamp {
        "2026-01-01T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn an_order_becomes_a_valid_object() {
        let fault = object(&order(), now()).unwrap();
        assert_eq!(fault.metadata.name, "reviews-delay-from-web");
        assert_eq!(fault.spec.expires_at.as_deref(), Some("2026-01-01T12:05:00Z"));
        let object = Object::FaultInjection(fault);
        assert_eq!(mesh_common::resource::parse_yaml("test", &object.to_yaml()).unwrap(), [object]);
    }

    #[test]
    fn a_fault_is_shown_as_it_was_ordered() {
        let fault = object(&order(), now()).unwrap();
        let view = views(&fault, now()).remove(0);
        assert_eq!(
            (view.target.as_str(), view.effect.as_str(), view.from.as_slice()),
            ("reviews", "delay 2s", &["web".to_owned()][..])
        );
        assert_eq!(in_words(&view), "delay 2s in 50 % of the calls of reviews by web");
        assert_eq!(time_left(&view, now()), "5m");
        assert!(!view.over);
        let later = "2026-01-01T12:05:00Z".parse().unwrap();
        assert!(views(&fault, later)[0].over);
    }

    #[test]
    fn a_throttle_says_its_rate() {
        let order = Order { effect: Effect::Throttle("64Ki".parse().unwrap()), ..order() };
        let fault = object(&order, now()).unwrap();
        assert_eq!(fault.metadata.name, "reviews-throttle-from-web");
        let view = views(&fault, now()).remove(0);
        assert_eq!(in_words(&view), "throttle 64Ki/s in 50 % of the calls of reviews by web");
        let object = Object::FaultInjection(fault);
        assert_eq!(mesh_common::resource::parse_yaml("test", &object.to_yaml()).unwrap(), [object]);
    }

    #[test]
    fn without_a_lifetime_it_stays() {
        let order =
            Order { lifetime: None, effect: Effect::Abort { http_status: 503, grpc_status: Some(14) }, ..order() };
        let fault = object(&order, now()).unwrap();
        let view = views(&fault, now()).remove(0);
        assert_eq!((view.effect.as_str(), time_left(&view, now()).as_str()), ("abort 503 (gRPC 14)", "never"));
    }
}
