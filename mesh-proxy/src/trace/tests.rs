use http::HeaderMap;
use http::header::HeaderValue;

use super::*;
use crate::config::{Provider, Sampling, TraceProtocol};
use crate::error::Kind;
use crate::http::tests::downstream;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn tracing(share: f64) -> Arc<Tracing> {
    Arc::new(Tracing {
        sampling: Sampling::new(share),
        provider: Arc::new(Provider {
            cluster: "collector".to_owned(),
            authority: http::uri::Authority::from_static("collector"),
            protocol: TraceProtocol::OtlpGrpc,
            service_name: String::new(),
        }),
    })
}

fn headers(all: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in all {
        let name = http::header::HeaderName::from_bytes(name.as_bytes()).unwrap();
        headers.append(name, HeaderValue::from_str(value).unwrap());
    }
    headers
}

fn stranger() -> Downstream {
    Downstream { direction: Direction::Inbound, ..downstream() }
}

/// What a request with these headers makes of the trace, and what it tells.
fn through(share: f64, from: &Downstream, all: &[(&str, &str)]) -> (Trace, HeaderMap) {
    let mut headers = headers(all);
    let trace = Trace::begin(&tracing(share), &headers, from, Instant::now());
    trace.tell(&mut headers);
    (trace, headers)
}

fn parent(headers: &HeaderMap) -> w3c::TraceParent {
    w3c::parse(headers["traceparent"].as_bytes()).unwrap()
}

#[test]
fn who_says_nothing_gets_a_trace_of_its_own() {
    for (share, sampled) in [(1.0, true), (0.0, false)] {
        let (trace, told) = through(share, &downstream(), &[("accept", "*/*")]);
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!((parent(&told).trace, parent(&told).sampled), (trace.id(), sampled));
        assert_eq!(trace.is_sampled(), sampled);
    }
    let (a, b) = (through(1.0, &downstream(), &[]).0, through(1.0, &downstream(), &[]).0);
    assert_ne!(a.id(), b.id());
}

#[test]
fn what_a_caller_of_the_mesh_has_decided_holds() {
    for (flags, sampled) in [("01", true), ("00", false)] {
        let said = format!("00-{TRACE}-{PARENT}-{flags}");
        // Whatever this proxy would do.
        for share in [0.0, 1.0] {
            let (trace, told) = through(share, &downstream(), &[("traceparent", &said), ("tracestate", "a=1")]);
            assert_eq!((trace.id().to_string().as_str(), trace.is_sampled()), (TRACE, sampled));
            assert_eq!(told["tracestate"], "a=1");
            // Only who records has a span to tell of.
            assert_eq!(parent(&told).span.to_string() == PARENT, !sampled);
            assert_eq!(parent(&told).sampled, sampled);
        }
    }
}

#[test]
fn a_stranger_decides_nothing() {
    let said = format!("00-{TRACE}-{PARENT}-01");
    let (trace, told) = through(0.0, &stranger(), &[("traceparent", &said), ("x-envoy-force-trace", "1")]);
    assert!(!trace.is_sampled() && !parent(&told).sampled);
    // The trace is the same all the same.
    assert_eq!((trace.id().to_string().as_str(), parent(&told).span.to_string().as_str()), (TRACE, PARENT));
    let (trace, told) = through(1.0, &stranger(), &[("traceparent", &said.replace("-01", "-00"))]);
    assert!(trace.is_sampled() && parent(&told).sampled);
    let debug = format!("{TRACE}-{PARENT}-d");
    let (trace, told) = through(0.0, &stranger(), &[("b3", &debug)]);
    assert!(!trace.is_sampled());
    assert_eq!(told["b3"], format!("{TRACE}-{PARENT}-0"));
    let (_, told) = through(1.0, &stranger(), &[("b3", &debug)]);
    assert!(told["b3"].to_str().unwrap().ends_with("-1"), "{told:?}");
}

#[test]
fn a_caller_of_the_mesh_can_have_a_trace() {
    let (trace, told) = through(0.0, &downstream(), &[("x-envoy-force-trace", "true")]);
    assert!(trace.is_sampled() && parent(&told).sampled);
    let said = format!("00-{TRACE}-{PARENT}-00");
    assert!(through(0.0, &downstream(), &[("traceparent", &said), ("x-envoy-force-trace", "1")]).0.is_sampled());
    let (trace, told) = through(0.0, &downstream(), &[("b3", &format!("{TRACE}-{PARENT}-d"))]);
    assert!(trace.is_sampled());
    assert!(told["b3"].to_str().unwrap().ends_with("-d"), "{told:?}");
}

#[test]
fn the_form_is_that_of_the_caller() {
    let (trace, told) = through(1.0, &downstream(), &[("b3", &format!("{TRACE}-{PARENT}-1"))]);
    let b3 = b3::parse_single(told["b3"].as_bytes()).unwrap();
    assert_eq!(b3.ids.unwrap().0, trace.id());
    assert_ne!(b3.ids.unwrap().1.to_string(), PARENT);
    assert!(!told.contains_key("traceparent"));
    let several =
        [("x-b3-traceid", &TRACE[16..]), ("x-b3-spanid", PARENT), ("x-b3-sampled", "1"), ("x-b3-parentspanid", PARENT)];
    let (_, told) = through(0.0, &downstream(), &several);
    let b3 = b3::parse_multi(&told).unwrap();
    assert!(b3.short && b3.sampled == Some(true) && b3.ids.unwrap().1.to_string() != PARENT);
    assert_eq!(told.len(), 3, "{told:?}");
    // Both forms, of the same trace.
    let said = format!("00-{TRACE}-{PARENT}-01");
    let (_, told) = through(0.0, &downstream(), &[("traceparent", &said), ("b3", &format!("{TRACE}-{PARENT}-1"))]);
    let b3 = b3::parse_single(told["b3"].as_bytes()).unwrap();
    assert_eq!(b3.ids.unwrap(), (parent(&told).trace, parent(&told).span));
    // A decision without a trace.
    let (trace, told) = through(1.0, &downstream(), &[("b3", "0")]);
    assert!(!trace.is_sampled());
    assert_eq!((told["b3"].to_str().unwrap(), told.len()), ("0", 1));
}

#[test]
fn who_comes_next_is_to_decide_is_decided_here() {
    let (trace, told) = through(0.0, &downstream(), &[("b3", &format!("{TRACE}-{PARENT}"))]);
    assert!(!trace.is_sampled());
    assert_eq!(told["b3"], format!("{TRACE}-{PARENT}-0"));
}

#[test]
fn what_is_not_good_goes_no_further() {
    let bad = format!("00-{TRACE}-{PARENT}-1");
    for share in [0.0, 1.0] {
        let (trace, told) = through(share, &downstream(), &[("traceparent", &bad), ("tracestate", "a=1")]);
        assert_ne!(trace.id().to_string(), TRACE);
        assert_eq!(parent(&told).trace, trace.id());
        assert!(!told.contains_key("tracestate"));
    }
    let good = format!("00-{TRACE}-{PARENT}-00");
    for (name, value) in [("tracestate", "A=="), ("b3", "what"), ("x-b3-traceid", "1"), ("x-b3-sampled", "yes")] {
        let (trace, told) = through(0.0, &downstream(), &[("traceparent", &good), (name, value)]);
        assert_eq!(trace.id().to_string(), TRACE);
        assert!(!told.contains_key(name) && told["traceparent"] == good, "{told:?}");
    }
    let twice = [("traceparent", good.as_str()), ("traceparent", good.as_str())];
    assert_ne!(through(0.0, &downstream(), &twice).0.id().to_string(), TRACE);
    // The other form is taken.
    let (trace, told) = through(0.0, &downstream(), &[("traceparent", &bad), ("b3", &format!("{TRACE}-{PARENT}-0"))]);
    assert_eq!((trace.id().to_string().as_str(), told.len()), (TRACE, 1), "{told:?}");
}

#[test]
fn each_try_is_told_apart_from_the_others() {
    let mut trace = through(1.0, &downstream(), &[]).0;
    let told = |trace: &Trace| {
        let mut headers = HeaderMap::new();
        trace.tell(&mut headers);
        parent(&headers)
    };
    let own = told(&trace);
    let address = "10.0.0.1:80".parse().unwrap();
    trace.tries(address, Instant::now());
    let first = told(&trace);
    trace.tried(1, Err(&Kind::UpstreamConnect.into()));
    trace.tries(address, Instant::now());
    let second = told(&trace);
    trace.tried(2, Ok(200));
    assert!(own.span != first.span && first.span != second.span);
    assert!(own.trace == first.trace && first.trace == second.trace);
    // Numbers that there are not.
    trace.tried(0, Ok(200));
    trace.tried(7, Ok(200));
    let mut mirrored = HeaderMap::new();
    trace.tell_apart(&mut mirrored);
    assert_eq!(parent(&mirrored).span, own.span);
}
