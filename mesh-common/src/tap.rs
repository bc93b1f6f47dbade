//! What proxies, control plane and `meshctl` agree on about taps, beside the messages themselves; and the buffer that events wait
//! in, which never has more than it may.

use std::collections::VecDeque;

use prost::Message;

use crate::names::CLUSTER_DOMAIN;
use crate::proto::telemetry::{TapEvent, TapParty};

/// Open at a time.
pub const MAX_TAPS: usize = 8;
/// Headers that one tap shows.
pub const MAX_HEADERS: usize = 16;
/// Events of one proxy in a second, if nobody says how many, and at most.
pub const RATE: u32 = 100;
pub const MAX_RATE: u32 = 1_000;
/// Names, methods or ranges in one condition.
pub const MAX_ALTERNATIVES: usize = 32;
/// Bytes of one event: more is not told.
pub const MAX_EVENT: usize = 16 << 10;

/// Events in the order in which they came. What there is no room for is not taken.
#[derive(Debug)]
pub struct Buffer {
    events: VecDeque<(TapEvent, usize)>,
    bytes: usize,
    limits: Limits,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub events: usize,
    pub bytes: usize,
}

impl Buffer {
    pub fn new(limits: Limits) -> Self {
        Self { events: VecDeque::new(), bytes: 0, limits }
    }

    /// Whether there was room for it.
    pub fn push(&mut self, event: TapEvent) -> bool {
        let size = event.encoded_len();
        let room = self.events.len() < self.limits.events && size <= self.limits.bytes.saturating_sub(self.bytes);
        if room {
            self.bytes += size;
            self.events.push_back((event, size));
        }
        room
    }

    /// The first ones, as far as they are within the limits; one at least, if there is any.
    pub fn take(&mut self, most: Limits) -> Vec<TapEvent> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some((_, size)) = self.events.front() {
            if !taken.is_empty() && (taken.len() >= most.events || bytes + size > most.bytes) {
                break;
            }
            let Some((event, size)) = self.events.pop_front() else { break };
            bytes += size;
            self.bytes -= size;
            taken.push(event);
        }
        if self.events.is_empty() {
            // What a rush has taken is given back.
            self.events = VecDeque::new();
        }
        taken
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn clear(&mut self) {
        (self.events, self.bytes) = (VecDeque::new(), 0);
    }
}

/// Who is meant by a name as people write it: `reviews`, `reviews.shop`, a full name, or a service account as `NAME.NAMESPACE`.
pub fn party(word: &str, namespace: &str) -> TapParty {
    let word = word.strip_suffix(CLUSTER_DOMAIN).and_then(|it| it.strip_suffix(".svc.")).unwrap_or(word);
    let (name, namespace) = match word.rsplit_once('.') {
        Some(parts) => parts,
        // It is in no namespace.
        None if word == crate::names::CLUSTER_PASSTHROUGH => (word, ""),
        None => (word, namespace),
    };
    TapParty { name: name.to_owned(), namespace: namespace.to_owned(), identities: Vec::new() }
}

/// The service of a name such as `reviews.shop.svc.cluster.local:9080`, and its namespace.
pub fn service_in(name: &str) -> Option<(&str, &str)> {
    let name = name.strip_prefix("tcp:").unwrap_or(name);
    if name == crate::names::CLUSTER_PASSTHROUGH {
        return Some((name, ""));
    }
    let name = name.rsplit_once(':').map_or(name, |(name, _)| name);
    name.strip_suffix(CLUSTER_DOMAIN)?.strip_suffix(".svc.")?.rsplit_once('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(path: &str) -> TapEvent {
        TapEvent { path: path.to_owned(), ..TapEvent::default() }
    }

    #[test]
    fn a_buffer_holds_no_more_than_it_may() {
        let size = event("/abc").encoded_len();
        let mut buffer = Buffer::new(Limits { events: 3, bytes: 1000 });
        assert_eq!([0; 5].map(|_| buffer.push(event("/abc"))), [true, true, true, false, false]);
        assert_eq!(buffer.bytes(), 3 * size);
        assert_eq!(buffer.take(Limits { events: 2, bytes: 1000 }).len(), 2);
        assert!(buffer.push(event("/abc")), "there is room again");
        assert_eq!(buffer.take(Limits { events: 9, bytes: size }).len(), 1);
        buffer.clear();
        assert!(buffer.is_empty() && buffer.bytes() == 0);

        let mut buffer = Buffer::new(Limits { events: 1000, bytes: 100 });
        let pushed = (0..1000).filter(|_| buffer.push(event("/abc"))).count();
        assert_eq!(pushed, 100 / size);
        assert!(!buffer.push(event(&"x".repeat(101))), "one that is too large at any time");
        // One that is larger than what is taken at a time would be in the way for ever.
        assert_eq!(buffer.take(Limits { events: 0, bytes: 0 }).len(), 1);
        assert_eq!(buffer.take(Limits { events: 1000, bytes: 1000 }).len(), pushed - 1);
        assert_eq!((buffer.bytes(), buffer.take(Limits { events: 1, bytes: 1 })), (0, Vec::new()));
    }

    #[test]
    fn who_is_meant_is_written_in_several_ways() {
        let named = |word: &str| {
            let TapParty { name, namespace, .. } = party(word, "shop");
            (name, namespace)
        };
        let reviews = |namespace: &str| ("reviews".to_owned(), namespace.to_owned());
        assert_eq!(named("reviews"), reviews("shop"));
        assert_eq!(named("reviews.bank"), reviews("bank"));
        assert_eq!(named("reviews.bank.svc.cluster.local"), reviews("bank"));
        assert_eq!(named("passthrough"), ("passthrough".to_owned(), String::new()));
    }

    #[test]
    fn the_service_is_in_the_names_of_its_ports() {
        for name in [
            "reviews.shop.svc.cluster.local:9080",
            "tcp:reviews.shop.svc.cluster.local:9080",
            "reviews.shop.svc.cluster.local",
        ] {
            assert_eq!(service_in(name), Some(("reviews", "shop")), "{name}");
        }
        assert_eq!(service_in("passthrough"), Some(("passthrough", "")));
        for name in ["", "inbound:9080", "direct:10.0.0.1:80", "unresolved"] {
            assert_eq!(service_in(name), None, "{name}");
        }
    }
}
