//! B3, as Zipkin and Envoy know it: in one header, or in several (<https://github.com/openzipkin/b3-propagation>).

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use super::ids::{SpanId, TraceId, hex, put_hex, span_id};

pub(super) const SINGLE: HeaderName = HeaderName::from_static("b3");
pub(super) const TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
pub(super) const SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
pub(super) const PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
pub(super) const SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
pub(super) const FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// What its headers say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct B3 {
    /// None where only the decision is told.
    pub ids: Option<(TraceId, SpanId)>,
    /// The trace's id has 64 bits.
    pub short: bool,
    /// `None`: whoever comes next is to decide.
    pub sampled: Option<bool>,
    /// Sampled whatever anybody would decide.
    pub debug: bool,
}

/// `trace-span`, `trace-span-decision`, `trace-span-decision-parent` or the decision alone.
pub(super) fn parse_single(text: &[u8]) -> Option<B3> {
    let mut parts = text.split(|byte| *byte == b'-');
    let (first, second) = (parts.next()?, parts.next());
    let Some(second) = second else { return decision(first) };
    let decided = match parts.next() {
        None => B3::default(),
        Some(decided) => decision(decided)?,
    };
    if let Some(parent) = parts.next() {
        span_id(parent)?;
    }
    parts.next().is_none().then_some(())?;
    let (trace, short) = trace_id(first)?;
    Some(B3 { ids: Some((trace, span_id(second)?)), short, ..decided })
}

fn decision(text: &[u8]) -> Option<B3> {
    let (sampled, debug) = match text {
        b"0" => (false, false),
        b"1" => (true, false),
        b"d" => (true, true),
        _ => return None,
    };
    Some(B3 { sampled: Some(sampled), debug, ..B3::default() })
}

fn trace_id(text: &[u8]) -> Option<(TraceId, bool)> {
    let short = text.len() == 16;
    Some((TraceId::new(hex(text, if short { 16 } else { 32 })?)?, short))
}

/// Whether there is any of the several headers.
pub(super) fn is_multi(headers: &HeaderMap) -> bool {
    [TRACE, SAMPLED, FLAGS, SPAN].iter().any(|name| headers.contains_key(name))
}

pub(super) fn parse_multi(headers: &HeaderMap) -> Option<B3> {
    let one = |name: HeaderName| {
        let mut values = headers.get_all(name).iter();
        let value = values.next().map(HeaderValue::as_bytes);
        values.next().is_none().then_some(value)
    };
    let (trace, span, parent) = (one(TRACE)?, one(SPAN)?, one(PARENT)?);
    let (sampled, flags) = (one(SAMPLED)?, one(FLAGS)?);
    let sampled = match sampled {
        None => None,
        Some(b"0") => Some(false),
        Some(b"1") => Some(true),
        Some(_) => return None,
    };
    let mut b3 = B3 { sampled, ..B3::default() };
    match flags {
        None | Some(b"0") => (),
        Some(b"1") => (b3.sampled, b3.debug) = (Some(true), true),
        Some(_) => return None,
    }
    if let Some(parent) = parent {
        span_id(parent)?;
    }
    match (trace, span) {
        (None, None) => (),
        (Some(trace), Some(span)) => {
            let (trace, short) = trace_id(trace)?;
            (b3.ids, b3.short) = (Some((trace, span_id(span)?)), short);
        }
        _ => return None,
    }
    Some(b3)
}

/// What is told to whoever comes next.
#[derive(Clone, Copy)]
pub(super) struct Told {
    pub trace: TraceId,
    pub span: SpanId,
    pub short: bool,
    pub sampled: bool,
    pub debug: bool,
}

impl Told {
    pub(super) fn single(self) -> HeaderValue {
        let mut text = [b'-'; 32 + 1 + 16 + 2];
        let text = if self.short { &mut text[16..] } else { &mut text[..] };
        let digits = text.len() - 19;
        put_hex(self.trace.get(), &mut text[..digits]);
        put_hex(self.span.get().into(), &mut text[digits + 1..digits + 17]);
        text[digits + 18] = match (self.debug, self.sampled) {
            (true, _) => b'd',
            (false, true) => b'1',
            (false, false) => b'0',
        };
        value(text)
    }

    pub(super) fn multi(self, headers: &mut HeaderMap) {
        let mut trace = [0; 32];
        let trace = if self.short { &mut trace[16..] } else { &mut trace[..] };
        put_hex(self.trace.get(), trace);
        let mut span = [0; 16];
        put_hex(self.span.get().into(), &mut span);
        headers.insert(TRACE, value(trace));
        headers.insert(SPAN, value(&span));
        headers.remove(PARENT);
        if self.debug {
            // It says as much as that it is sampled, and stands alone.
            headers.remove(SAMPLED);
            headers.insert(FLAGS, HeaderValue::from_static("1"));
        } else {
            headers.remove(FLAGS);
            headers.insert(SAMPLED, HeaderValue::from_static(if self.sampled { "1" } else { "0" }));
        }
    }
}

pub(super) fn remove_multi(headers: &mut HeaderMap) {
    for name in [TRACE, SPAN, PARENT, SAMPLED, FLAGS] {
        headers.remove(name);
    }
}

fn value(text: &[u8]) -> HeaderValue {
    // Digits and dashes make a good value.
    HeaderValue::from_bytes(text).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: &str = "80f198ee56343ba864fe8b2a57d3eff7";
    const SHORT: &str = "64fe8b2a57d3eff7";
    const ONE: &str = "e457b5a2e4d86bd1";

    fn single(text: &str) -> Option<B3> {
        parse_single(text.as_bytes())
    }

    #[test]
    fn one_header() {
        let b3 = single(&format!("{LONG}-{ONE}-1-05e3ac9a4f6e3b90")).unwrap();
        let (trace, span) = b3.ids.unwrap();
        assert_eq!((trace.to_string().as_str(), span.to_string().as_str()), (LONG, ONE));
        assert_eq!((b3.short, b3.sampled, b3.debug), (false, Some(true), false));
        let b3 = single(&format!("{SHORT}-{ONE}-d")).unwrap();
        assert_eq!((b3.short, b3.sampled, b3.debug), (true, Some(true), true));
        assert_eq!(b3.ids.unwrap().0.get(), u128::from_str_radix(SHORT, 16).unwrap());
        assert_eq!(single(&format!("{LONG}-{ONE}")).unwrap().sampled, None);
        assert_eq!(single("0"), Some(B3 { sampled: Some(false), ..B3::default() }));
        assert!(single("d").unwrap().debug);
        for wrong in [
            "",
            "2",
            "-",
            "true",
            &format!("{LONG}-{ONE}-2"),
            &format!("{LONG}-{ONE}-1-x"),
            &format!("{LONG}-{ONE}-"),
            &format!("{LONG}-{ONE}-1-{ONE}-1"),
            &format!("{LONG}-{LONG}"),
            &format!("{}-{ONE}", &LONG[1..]),
            &format!("{}-{ONE}", LONG.to_uppercase()),
            &format!("{LONG}-0000000000000000-1"),
            &format!("0000000000000000-{ONE}-1"),
        ] {
            assert_eq!(single(wrong), None, "{wrong}");
        }
    }

    fn multi(headers: &[(HeaderName, &str)]) -> Option<B3> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        assert!(is_multi(&map));
        parse_multi(&map)
    }

    #[test]
    fn several_headers() {
        let ids = [(TRACE, SHORT), (SPAN, ONE)];
        let with = |more: &[(HeaderName, &'static str)]| multi(&[&ids[..], more].concat());
        let b3 = with(&[(SAMPLED, "1"), (PARENT, ONE)]).unwrap();
        assert_eq!((b3.short, b3.sampled, b3.debug), (true, Some(true), false));
        assert_eq!(with(&[]).unwrap().sampled, None);
        assert!(with(&[(FLAGS, "1")]).unwrap().debug);
        assert_eq!(with(&[(FLAGS, "0"), (SAMPLED, "0")]).unwrap().sampled, Some(false));
        assert_eq!(multi(&[(SAMPLED, "0")]).unwrap(), B3 { sampled: Some(false), ..B3::default() });
        assert_eq!(with(&[(SAMPLED, "true")]), None);
        assert_eq!(with(&[(SAMPLED, "1"), (SAMPLED, "0")]), None);
        assert_eq!(with(&[(FLAGS, "2")]), None);
        assert_eq!(with(&[(PARENT, "1")]), None);
        assert_eq!(multi(&[(TRACE, SHORT)]), None);
        assert_eq!(multi(&[(SPAN, ONE), (SAMPLED, "1")]), None);
    }

    #[test]
    fn what_is_told_can_be_read() {
        let (trace, span) = (TraceId::random(), SpanId::random());
        for (short, sampled, debug) in
            [(false, true, false), (true, true, false), (false, false, false), (true, true, true)]
        {
            let low = TraceId::new(trace.get() & u128::from(u64::MAX)).unwrap();
            let told = Told { trace: if short { low } else { trace }, span, short, sampled, debug };
            let expected = B3 { ids: Some((told.trace, span)), short, sampled: Some(sampled), debug };
            assert_eq!(parse_single(told.single().as_bytes()), Some(expected));
            let mut headers = HeaderMap::new();
            headers.insert(PARENT, HeaderValue::from_static(ONE));
            told.multi(&mut headers);
            assert_eq!(parse_multi(&headers), Some(expected));
            assert!(!headers.contains_key(PARENT));
            remove_multi(&mut headers);
            assert!(headers.is_empty());
        }
    }
}
