//! Distributed tracing: what a request's caller says of the trace that it belongs to, what is told to whoever comes next, and
//! the spans that the request leaves.
//!
//! In: the headers of a request, and what became of it. Out: the headers of each try, and spans for the exporter. A request
//! that is not sampled costs what it takes to read or make the header; where tracing is off, nothing is looked at.

mod b3;
mod export;
mod ids;
mod said;
mod span;
mod w3c;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::HeaderMap;
use http::header::HeaderName;

pub use export::{Exported, Exporter};
pub(crate) use ids::put_hex;
pub use ids::{SpanId, TraceId};
pub use span::{Span, SpanKind, Value};

use crate::config::{Provider, Tracing};
use crate::error::Error;
use crate::fault::Injected;
use crate::listen::{Direction, Downstream, Security};
use said::{Form, Said};

/// Envoy's name for it: the trace is sampled, if the caller is one of the mesh.
const FORCE: HeaderName = HeaderName::from_static("x-envoy-force-trace");

/// What is known of the trace that a request belongs to.
#[derive(Debug)]
pub(crate) struct Trace {
    tracing: Arc<Tracing>,
    said: Said,
    id: TraceId,
    /// The caller's span; one that nobody records if there is none and none is recorded here.
    before: SpanId,
    recording: Option<Box<Recording>>,
}

/// What is gathered for the spans of a sampled request.
#[derive(Debug)]
pub(crate) struct Recording {
    span: SpanId,
    /// The same moment by both clocks.
    began: (Instant, SystemTime),
    /// Vendors' own words, which belong to the span.
    state: Option<String>,
    /// Of the application's requests, each that was sent to an endpoint.
    tries: Vec<Try>,
    /// Somebody knows the span beside the tries.
    apart: bool,
    faults: Vec<Injected>,
    policy: Option<String>,
}

/// A request that was sent to an endpoint.
#[derive(Debug)]
struct Try {
    span: SpanId,
    address: SocketAddr,
    began: Instant,
    /// When it was known what came of it, and that: a status, or why there is none.
    ended: Option<(Instant, Result<u16, &'static str>)>,
}

/// The trace that a request is said to belong to, by W3C's form; what is not as its specification has it is left out.
pub(crate) fn id_in(headers: &HeaderMap) -> Option<TraceId> {
    said::parent(headers).map(|parent| parent.trace)
}

impl Trace {
    pub(crate) fn begin(tracing: &Arc<Tracing>, headers: &HeaderMap, downstream: &Downstream, start: Instant) -> Self {
        let mut said = Said::of(headers);
        let id = said.ids.map_or_else(TraceId::random, |(trace, _)| trace);
        // The application beside this proxy has the identity of this proxy.
        let trusted = downstream.direction == Direction::Outbound || downstream.security() == Security::MutualTls;
        said.debug &= trusted;
        let forced = said.debug || (trusted && headers.contains_key(FORCE));
        let sampled = forced || said.sampled.filter(|_| trusted).unwrap_or_else(|| tracing.sampling.takes(id));
        let recording = sampled.then(|| {
            Box::new(Recording {
                span: SpanId::random(),
                began: (start, SystemTime::now().checked_sub(start.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH)),
                state: (said.w3c == Form::Good).then(|| w3c::state(headers)).flatten(),
                tries: Vec::new(),
                apart: false,
                faults: Vec::new(),
                policy: None,
            })
        });
        let before = said.ids.map_or_else(SpanId::random, |(_, span)| span);
        Self { tracing: tracing.clone(), said, id, before, recording }
    }

    pub(crate) fn id(&self) -> TraceId {
        self.id
    }

    pub(crate) fn provider(&self) -> &Arc<Provider> {
        &self.tracing.provider
    }

    pub(crate) fn is_sampled(&self) -> bool {
        self.recording.is_some()
    }

    /// Tells whoever gets these headers of the trace: as a part of the last try if there is any.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        match &self.recording {
            Some(it) => self.said.tell(headers, self.id, it.tries.last().map_or(it.span, |last| last.span), true),
            // Nothing is to be added to what the caller has said.
            None if self.said.sampled == Some(false) && self.said.is_clean() => (),
            None => self.said.tell(headers, self.id, self.before, false),
        }
    }

    /// The same beside the tries.
    pub(crate) fn tell_apart(&mut self, headers: &mut HeaderMap) {
        match &mut self.recording {
            Some(it) => {
                it.apart = true;
                self.said.tell(headers, self.id, it.span, true);
            }
            None => self.tell(headers),
        }
    }

    /// The request goes to an endpoint, once more perhaps.
    pub(crate) fn tries(&mut self, address: SocketAddr, now: Instant) {
        if let Some(it) = &mut self.recording {
            it.tries.push(Try { span: SpanId::random(), address, began: now, ended: None });
        }
    }

    /// What came of a try, by its number; the first one is 1.
    pub(crate) fn tried(&mut self, number: u32, status: Result<u16, &Error>) {
        let Some(it) = &mut self.recording else { return };
        let index = (number as usize).checked_sub(1);
        if let Some(tried) = index.and_then(|index| it.tries.get_mut(index)) {
            tried.ended = Some((Instant::now(), status.map_err(|error| error.kind.flag())));
        }
    }

    pub(crate) fn fault(&mut self, what: Injected) {
        if let Some(it) = &mut self.recording {
            it.faults.push(what);
        }
    }

    /// The policy that decided who may come in.
    pub(crate) fn policy(&mut self, name: &str) {
        if let Some(it) = self.recording.as_mut().filter(|_| !name.is_empty()) {
            it.policy = Some(name.to_owned());
        }
    }
}

#[cfg(test)]
mod tests;
