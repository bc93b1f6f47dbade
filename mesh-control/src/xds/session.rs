//! One client's stream, without its I/O: requests and views go in, responses come out.
//!
//! For each type at most one response waits for its answer. Across types, what is new goes out in the order of
//! [`Type::ALL`], and what is gone in that of [`Type::REMOVAL`], once everything that could refer to it is settled.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use super::track::Track;
use super::types::Type;
use super::view::{Protocol, Push, Verdict, View};

/// How long listeners and routes wait for a client that has not acknowledged its clusters. Envoy does not acknowledge
/// before they are warm, and gives up on a cluster after 15 seconds by itself.
const WARMING: Duration = Duration::from_secs(20);
/// Remembered moments at which the client was in step with a revision.
const HISTORY: usize = 64;
/// A client's error message is kept up to this length.
const MESSAGE_LIMIT: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// For clients with the whole set, such as Envoy: nothing overtakes, listeners and routes wait for clusters to be warm,
    /// and the endpoints of a changed cluster are sent again.
    WaitForWarm,
    /// For clients that ask for names as they need them: what is asked for is answered at once.
    AnswerAtOnce,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Names that one client may subscribe to, all types together.
    pub names: usize,
    /// Bytes of one name.
    pub name_length: usize,
    /// Bytes of resources in one response, where the protocol lets them be spread over several.
    pub response_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { names: 50_000, name_length: 1024, response_bytes: 1 << 20 }
    }
}

/// Why a stream is ended.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    #[error("a stream may subscribe to {0} names; subscribe to fewer, or use a wildcard")]
    TooManyNames(usize),
    #[error("a resource name may have {0} bytes, and this one is longer: {1:?}...")]
    LongName(usize, String),
}

pub struct Session {
    protocol: Protocol,
    order: Order,
    limits: Limits,
    view: Arc<dyn View>,
    tracks: [Track; Type::ALL.len()],
    nonces: u64,
    /// Revisions at which the client had everything that it wants, and since when.
    settled: VecDeque<(u64, Instant)>,
}

impl Session {
    pub fn new(protocol: Protocol, order: Order, limits: Limits, view: Arc<dyn View>) -> Self {
        let tracks = Type::ALL.map(|ty| Track::new(ty, protocol, view.revision()));
        Self { protocol, order, limits, view, tracks, nonces: 0, settled: VecDeque::new() }
    }

    /// A delta request. A type that is not served is ignored, as the protocol asks for.
    pub fn delta(&mut self, request: &DeltaDiscoveryRequest, now: Instant) -> Result<Option<Verdict>, Refused> {
        let Some(ty) = Type::from_url(&request.type_url) else {
            tracing::debug!(type_url = request.type_url, "a client asks for a type that is not served");
            return Ok(None);
        };
        self.check_names(&request.resource_names_subscribe)?;
        let view = self.view.clone();
        let track = &mut self.tracks[ty as usize];
        let rejection = request.error_detail.as_ref().map(|status| clip(&status.message));
        // A nonce of an older response is no answer, but names in a request always count.
        let verdict = track.answer(&*view, &request.response_nonce, rejection, now);
        track.subscribe_delta(
            &*view,
            &request.resource_names_subscribe,
            &request.resource_names_unsubscribe,
            request.initial_resource_versions.iter(),
        );
        self.check_total()?;
        Ok(verdict)
    }

    /// A state-of-the-world request.
    pub fn state_of_the_world(&mut self, request: &DiscoveryRequest, now: Instant) -> Result<Option<Verdict>, Refused> {
        let Some(ty) = Type::from_url(&request.type_url) else {
            tracing::debug!(type_url = request.type_url, "a client asks for a type that is not served");
            return Ok(None);
        };
        self.check_names(&request.resource_names)?;
        let view = self.view.clone();
        let track = &mut self.tracks[ty as usize];
        // A request that was sent before the client saw our last response. It will answer that one too, naming all that
        // it wants.
        if track.last_nonce().is_some_and(|nonce| nonce != request.response_nonce) {
            return Ok(None);
        }
        let rejection = request.error_detail.as_ref().map(|status| clip(&status.message));
        let verdict = track.answer(&*view, &request.response_nonce, rejection, now);
        track.subscribe_all(&*view, &request.resource_names);
        self.check_total()?;
        Ok(verdict)
    }

    /// A new view, of a newer revision or with newer secrets.
    pub fn update(&mut self, view: Arc<dyn View>) {
        self.view = view;
        for track in &mut self.tracks {
            track.update(&*self.view);
        }
    }

    /// The next response to send, if there is one now. To be called until there is none, after each input and at
    /// [`Session::wake_at`].
    pub fn next(&mut self, now: Instant) -> Option<Push> {
        let push = self.next_addition(now).or_else(|| self.next_removal(now));
        if push.is_none() && self.in_step() && self.revision() != Some(self.view.revision()) {
            if self.settled.len() == HISTORY {
                self.settled.pop_front();
            }
            self.settled.push_back((self.view.revision(), now));
        }
        push
    }

    fn next_addition(&mut self, now: Instant) -> Option<Push> {
        let mut blocked = false;
        for ty in Type::ALL {
            if ty == Type::Listener && self.order == Order::WaitForWarm {
                blocked |= self.warming_until().is_some_and(|until| now < until);
            }
            let track = &self.tracks[ty as usize];
            if !track.has_adds() {
                continue;
            }
            let may_pass = self.order == Order::AnswerAtOnce && track.has_asked();
            if track.in_flight_since().is_some() || (blocked && !may_pass) {
                blocked = true;
                continue;
            }
            return Some(self.push_additions(ty, blocked, now));
        }
        None
    }

    fn push_additions(&mut self, ty: Type, only_asked: bool, now: Instant) -> Push {
        let nonce = self.nonce();
        let (revision, limit) = (self.view.revision(), self.limits.response_bytes);
        let push = self.tracks[ty as usize].push_adds(only_asked, nonce, revision, now, limit);
        if ty == Type::Cluster && self.order == Order::WaitForWarm {
            // Envoy builds a changed cluster anew and waits for its endpoints, which it may not ask for again.
            for name in self.tracks[ty as usize].in_flight_names() {
                self.tracks[Type::Endpoints as usize].restate(&*self.view, &name);
            }
        }
        push
    }

    fn next_removal(&mut self, now: Instant) -> Option<Push> {
        for ty in Type::REMOVAL {
            let track = &self.tracks[ty as usize];
            // What is to go may still be referred to by a type that is not settled, or whose last response was refused:
            // then the client works on with what it had before.
            if track.in_flight_since().is_some() || track.has_adds() {
                return None;
            }
            if track.has_removals() {
                let (nonce, revision) = (self.nonce(), self.view.revision());
                return Some(self.tracks[ty as usize].push_removals(nonce, revision, now));
            }
            if track.has_rejected() {
                return None;
            }
        }
        None
    }

    /// Nothing to send and nothing to wait for, apart from removals that a standing rejection holds back.
    fn in_step(&self) -> bool {
        let mut held = false;
        Type::REMOVAL.into_iter().all(|ty| {
            let track = &self.tracks[ty as usize];
            let idle = track.in_flight_since().is_none() && !track.has_adds() && (held || !track.has_removals());
            held |= track.has_rejected();
            idle
        })
    }

    fn warming_until(&self) -> Option<Instant> {
        self.tracks[Type::Cluster as usize].in_flight_since().map(|since| since + WARMING)
    }

    /// When [`Session::next`] may have something to send without any input.
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        let waits = |ty: Type| self.tracks[ty as usize].has_adds();
        let held = self.order == Order::WaitForWarm && [Type::Listener, Type::Route, Type::Name].into_iter().any(waits);
        self.warming_until().filter(|until| held && *until > now)
    }

    fn nonce(&mut self) -> String {
        self.nonces += 1;
        self.nonces.to_string()
    }

    fn check_names(&self, names: &[String]) -> Result<(), Refused> {
        let limit = self.limits.name_length;
        match names.iter().find(|name| name.len() > limit) {
            Some(name) => Err(Refused::LongName(limit, name.chars().take(64).collect())),
            None if names.len() > self.limits.names => Err(Refused::TooManyNames(self.limits.names)),
            None => Ok(()),
        }
    }

    fn check_total(&self) -> Result<(), Refused> {
        let names: usize = self.tracks.iter().map(|track| track.subscription().names().len()).sum();
        if names > self.limits.names { Err(Refused::TooManyNames(self.limits.names)) } else { Ok(()) }
    }

    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The newest revision of whose changes to endpoints the client has acknowledged every one.
    pub fn endpoints_acknowledged(&self) -> u64 {
        self.track(Type::Endpoints).acknowledged()
    }

    pub fn tracks(&self) -> &[Track] {
        &self.tracks
    }

    pub fn track(&self, ty: Type) -> &Track {
        &self.tracks[ty as usize]
    }

    /// The newest revision with which the client was in step.
    pub fn revision(&self) -> Option<u64> {
        self.settled.back().map(|(revision, _)| *revision)
    }

    /// Since when the client has been in step with this revision or a later one.
    pub fn settled_at(&self, revision: u64) -> Option<Instant> {
        self.settled.iter().find(|(settled, _)| *settled >= revision).map(|(_, at)| *at)
    }

    /// The newest revision of which the client has everything and has refused nothing.
    pub fn synced_revision(&self) -> u64 {
        let settled = self.revision().unwrap_or_default();
        let refused = self.tracks.iter().filter_map(Track::nack).map(|nack| nack.revision.saturating_sub(1));
        refused.fold(settled, u64::min)
    }
}

fn clip(message: &str) -> &str {
    if message.len() <= MESSAGE_LIMIT {
        return message;
    }
    let end = (0..=MESSAGE_LIMIT).rev().find(|end| message.is_char_boundary(*end));
    &message[..end.unwrap_or_default()]
}
