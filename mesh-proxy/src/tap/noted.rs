//! What is noted of a request while a tap is open, beside its record.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::HeaderName;
use mesh_common::secrets::{REDACTED, shown_header};
use mesh_common::tap::{MAX_FAULTS, MAX_TRIES, MAX_VALUES};

use crate::authorization::Verdict;
use crate::config::{JwtAuthn, TokenAt};
use crate::error::Error;
use crate::fault::Injected;
use crate::telemetry::cut;

#[derive(Debug, Default)]
pub(crate) struct Noted {
    /// Headers that some tap shows.
    wanted: Arc<[HeaderName]>,
    /// Of these, where the configuration says that tokens are.
    tokens: Vec<HeaderName>,
    pub(super) headers: Vec<Header>,
    pub(super) tries: Vec<Try>,
    pub(super) faults: Vec<Injected>,
    pub(super) decided: Option<Decided>,
}

#[derive(Debug)]
pub(super) struct Header {
    pub(super) name: HeaderName,
    /// As it may be shown.
    pub(super) value: String,
    pub(super) response: bool,
}

/// A request that was sent to an endpoint.
#[derive(Debug)]
pub(super) struct Try {
    pub(super) address: SocketAddr,
    began: Instant,
    /// How long it took until it was known what came of it, and that: a status, or why there is none.
    pub(super) ended: Option<(Duration, Result<u16, &'static str>)>,
}

/// What the policies have said.
#[derive(Debug)]
pub(super) struct Decided {
    pub(super) allowed: bool,
    pub(super) policy: String,
    pub(super) on_trial: String,
}

impl Noted {
    pub(super) fn begin(wanted: Arc<[HeaderName]>, headers: &HeaderMap, authn: Option<&JwtAuthn>) -> Self {
        let is_place = |name: &HeaderName| {
            let is_it = |at: &TokenAt| matches!(at, TokenAt::Header { name: place, .. } if place == name);
            authn.is_some_and(|authn| authn.places.iter().any(|place| is_it(&place.at)))
        };
        let tokens = wanted.iter().filter(|name| is_place(name)).cloned().collect();
        let mut noted = Self { wanted, tokens, ..Self::default() };
        noted.take(headers, false);
        noted
    }

    /// The head of the response is on its way.
    pub(crate) fn answered(&mut self, headers: &HeaderMap) {
        self.take(headers, true);
    }

    fn take(&mut self, headers: &HeaderMap, response: bool) {
        for name in &*self.wanted {
            for value in headers.get_all(name).iter().take(MAX_VALUES) {
                let value = String::from_utf8_lossy(value.as_bytes());
                let value =
                    if self.tokens.contains(name) { REDACTED.into() } else { shown_header(name.as_str(), &value) };
                self.headers.push(Header { name: name.clone(), value: cut(&value).to_owned(), response });
            }
        }
    }

    pub(crate) fn tries(&mut self, address: SocketAddr, now: Instant) {
        if self.tries.len() < MAX_TRIES {
            self.tries.push(Try { address, began: now, ended: None });
        }
    }

    /// What came of a try, by its number; the first one is 1.
    pub(crate) fn tried(&mut self, number: u32, status: Result<u16, &Error>) {
        let index = (number as usize).checked_sub(1);
        if let Some(tried) = index.and_then(|index| self.tries.get_mut(index)) {
            tried.ended = Some((tried.began.elapsed(), status.map_err(|error| error.kind.flag())));
        }
    }

    pub(crate) fn fault(&mut self, what: Injected) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(what);
        }
    }

    pub(crate) fn decided(&mut self, verdict: &Verdict<'_>) {
        self.decided = Some(Decided {
            allowed: verdict.refused.is_none(),
            policy: verdict.deciding().to_owned(),
            on_trial: verdict.would_refuse.map_or("", |refusal| refusal.policy()).to_owned(),
        });
    }

    /// Something before the policies refuses it.
    pub(crate) fn refused(&mut self) {
        self.decided = Some(Decided { allowed: false, policy: String::new(), on_trial: String::new() });
    }
}
