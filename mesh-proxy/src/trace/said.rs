//! What a caller says of the trace of its request, in which forms, and the same forms for whoever comes next.

use http::HeaderMap;
use http::header::HeaderValue;

use super::b3::{self, B3, Told};
use super::ids::{SpanId, TraceId};
use super::w3c::{self, TRACEPARENT, TRACESTATE, TraceParent};

/// Whether the caller has used a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Absent,
    Good,
    /// Not as its specification has it: it goes no further.
    Bad,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// By W3C's form if that is good, or else by B3's.
    pub ids: Option<(TraceId, SpanId)>,
    pub sampled: Option<bool>,
    pub debug: bool,
    /// B3's id of the trace has 64 bits.
    short: bool,
    pub w3c: Form,
    /// There is a `tracestate`, and it is not good.
    bad_state: bool,
    single: Form,
    multi: Form,
}

impl Said {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let (w3c, parent) = form(headers.contains_key(TRACEPARENT), || parent(headers));
        let (single, in_one) =
            form(headers.contains_key(b3::SINGLE), || b3::parse_single(alone(headers, &b3::SINGLE)?.as_bytes()));
        let (multi, in_several) = form(b3::is_multi(headers), || b3::parse_multi(headers));
        // Who sends both means the one header.
        let b3 = in_one.or(in_several).unwrap_or_default();
        // What B3 says beside W3C's form counts as far as it is of the same trace: only it knows `debug`.
        let b3 = match (&parent, b3.ids) {
            (Some(parent), Some((trace, _))) if trace != parent.trace => B3::default(),
            _ => b3,
        };
        let bad_state = headers.contains_key(TRACESTATE) && (w3c != Form::Good || w3c::state(headers).is_none());
        Self {
            ids: parent.map(|it| (it.trace, it.span)).or(b3.ids),
            sampled: parent.map(|it| it.sampled).or(b3.sampled),
            debug: b3.debug,
            short: b3.short,
            w3c,
            bad_state,
            single,
            multi,
        }
    }

    /// All of it can go on as it came, and it says enough.
    pub(super) fn is_clean(&self) -> bool {
        let forms = [self.w3c, self.single, self.multi];
        !self.bad_state && !forms.contains(&Form::Bad) && forms.contains(&Form::Good)
    }

    /// Writes the forms that the caller has used; W3C's, if it has used none that can be read.
    pub(super) fn tell(&self, headers: &mut HeaderMap, trace: TraceId, span: SpanId, sampled: bool) {
        let b3 = [self.single, self.multi].contains(&Form::Good);
        if self.w3c == Form::Good || !b3 {
            headers.insert(TRACEPARENT, w3c::value(trace, span, sampled));
        } else {
            headers.remove(TRACEPARENT);
        }
        if self.w3c != Form::Good || self.bad_state {
            headers.remove(TRACESTATE);
        }
        let short = self.short && trace.get() <= u128::from(u64::MAX);
        let told = Told { trace, span, short, sampled, debug: self.debug && sampled };
        match self.single {
            Form::Absent => (),
            Form::Good => _ = headers.insert(b3::SINGLE, told.single()),
            Form::Bad => _ = headers.remove(b3::SINGLE),
        }
        match self.multi {
            Form::Absent => (),
            Form::Good => told.multi(headers),
            Form::Bad => b3::remove_multi(headers),
        }
    }
}

pub(super) fn parent(headers: &HeaderMap) -> Option<TraceParent> {
    w3c::parse(alone(headers, &TRACEPARENT)?.as_bytes())
}

fn form<T>(present: bool, parse: impl FnOnce() -> Option<T>) -> (Form, Option<T>) {
    if !present {
        return (Form::Absent, None);
    }
    match parse() {
        Some(parsed) => (Form::Good, Some(parsed)),
        None => (Form::Bad, None),
    }
}

/// The only value of a header.
fn alone<'a>(headers: &'a HeaderMap, name: &http::header::HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then_some(value)
}
