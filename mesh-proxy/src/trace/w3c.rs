//! W3C Trace Context: `traceparent` and `tracestate` (<https://www.w3.org/TR/trace-context/>).

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use super::ids::{SpanId, TraceId, hex, put_hex, span_id};

pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

const SAMPLED: u8 = 1;
/// `00-` trace `-` span `-` flags.
const LENGTH: usize = 55;

/// Members that a `tracestate` may have. Everybody has to pass on 512 bytes of them; what is longer than this is no use.
const MAX_MEMBERS: usize = 32;
const MAX_STATE: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TraceParent {
    pub trace: TraceId,
    pub span: SpanId,
    pub sampled: bool,
}

/// Of a version that is not known yet, what the first one has is read.
pub(super) fn parse(text: &[u8]) -> Option<TraceParent> {
    let (known, rest) = text.split_at_checked(LENGTH)?;
    let version = hex(&known[..2], 2)?;
    let dashes = [2, 35, 52].into_iter().all(|at| known[at] == b'-');
    let ends = rest.is_empty() || (version > 0 && rest[0] == b'-');
    if version == 0xff || !dashes || !ends {
        return None;
    }
    let flags = u8::try_from(hex(&known[53..], 2)?).ok()?;
    Some(TraceParent {
        trace: TraceId::new(hex(&known[3..35], 32)?)?,
        span: span_id(&known[36..52])?,
        sampled: flags & SAMPLED != 0,
    })
}

pub(super) fn value(trace: TraceId, span: SpanId, sampled: bool) -> HeaderValue {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    put_hex(trace.get(), &mut text[3..35]);
    put_hex(span.get().into(), &mut text[36..52]);
    text[54] = if sampled { b'1' } else { b'0' };
    // Digits and dashes make a good value.
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// What vendors say of the trace, as one list; `None` if there is none, or if it is not as the specification has it.
pub(super) fn state(headers: &HeaderMap) -> Option<String> {
    let mut members = Vec::new();
    for value in headers.get_all(TRACESTATE) {
        let list = value.to_str().ok()?;
        // Empty members are allowed and mean nothing.
        members.extend(list.split(',').map(|it| it.trim_matches([' ', '\t'])).filter(|it| !it.is_empty()));
    }
    let keys: Vec<&str> = members.iter().map(|member| key_of(member)).collect::<Option<_>>()?;
    let twice = (1..keys.len()).any(|i| keys[..i].contains(&keys[i]));
    let length = members.iter().map(|it| it.len() + 1).sum::<usize>();
    (!members.is_empty() && members.len() <= MAX_MEMBERS && length <= MAX_STATE + 1 && !twice)
        .then(|| members.join(","))
}

/// The key of a good member.
fn key_of(member: &str) -> Option<&str> {
    let (key, value) = member.split_once('=')?;
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let good_key = (1..=256).contains(&key.len())
        && key.bytes().next().is_some_and(plain)
        && key.bytes().all(|b| plain(b) || b"_-*/@".contains(&b));
    let visible = |b: u8| (b' '..=b'~').contains(&b) && b != b',' && b != b'=';
    let good_value = (1..=256).contains(&value.len()) && value.bytes().all(visible);
    (good_key && good_value).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn trace_parents() {
        let parent = parse(GOOD.as_bytes()).unwrap();
        assert_eq!(parent.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(parent.span.to_string(), "00f067aa0ba902b7");
        assert!(parent.sampled);
        assert_eq!(value(parent.trace, parent.span, true), GOOD);
        assert!(!parse(GOOD.replace("-01", "-00").as_bytes()).unwrap().sampled);
        assert!(!parse(GOOD.replace("-01", "-fe").as_bytes()).unwrap().sampled);
        // Versions to come may add something.
        for later in ["cc-", "01-"].map(|version| GOOD.replace("00-4", &format!("{version}4"))) {
            assert_eq!(parse(later.as_bytes()), Some(parent));
            assert_eq!(parse(format!("{later}-more").as_bytes()), Some(parent));
            assert_eq!(parse(format!("{later}.more").as_bytes()), None);
        }
    }

    #[test]
    fn what_is_no_trace_parent() {
        for wrong in [
            String::new(),
            GOOD.replace("00-4", "ff-4"),
            GOOD.replace("00-4", "0-4"),
            GOOD.replace("4bf9", "4BF9"),
            GOOD.replace("-00f067aa0ba902b7-", "-0000000000000000-"),
            GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", "00000000000000000000000000000000"),
            GOOD.replace("4bf92f35", "4bf92f3g"),
            GOOD.replace("-01", "-0x"),
            GOOD.replace("-01", "_01"),
            format!("{GOOD}-more"),
            format!(" {GOOD}"),
            GOOD[..54].to_owned(),
        ] {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    fn of(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACESTATE, HeaderValue::from_str(value).unwrap());
        }
        state(&headers)
    }

    #[test]
    fn trace_states() {
        assert_eq!(of(&["rojo=00f0,congo=t61r"]).as_deref(), Some("rojo=00f0,congo=t61r"));
        assert_eq!(of(&["a=1 ,, \t b=2", "0t@v=x y"]).as_deref(), Some("a=1,b=2,0t@v=x y"));
        let many: Vec<String> = (0..33).map(|i| format!("a{i}=1")).collect();
        assert!(of(&[&many[..32].join(",")]).is_some());
        for wrong in [
            "",
            "a",
            "a=",
            "=1",
            "A=1",
            "@a=1",
            "a=1,a=2",
            "a=b=c",
            "a b=1",
            "a=\t",
            "a=é",
            &many.join(","),
            &format!("a={}", "x".repeat(257)),
        ] {
            assert_eq!(of(&[wrong]), None, "{wrong}");
        }
    }
}
