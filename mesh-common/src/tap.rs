//! What proxies, control plane and `meshctl` agree on about taps, beside the messages themselves; and the buffer that events wait
//! in, which never has more than it may.

use std::collections::VecDeque;

use prost::Message;

use crate::names::CLUSTER_DOMAIN;
use crate::proto::telemetry::{TapEvent, TapHeader, TapParty, TapTry};

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
/// Events in one report.
pub const MAX_REPORTED: usize = 250;
/// Tries of one request that are told, values of one header, and faults.
pub const MAX_TRIES: usize = 16;
pub const MAX_VALUES: usize = 4;
pub const MAX_FAULTS: usize = 16;

/// What an event takes in memory: more than on the wire, where what is empty is not there.
pub fn memory(event: &TapEvent) -> usize {
    size_of::<TapEvent>()
        + event.encoded_len()
        + event.tries.len() * size_of::<TapTry>()
        + event.headers.len() * size_of::<TapHeader>()
        + event.faults.len() * size_of::<String>()
}

/// Whether it is as large as one may be, and has no more parts.
pub fn is_within_limits(event: &TapEvent) -> bool {
    // Of requests and of responses.
    let headers = MAX_HEADERS * MAX_VALUES * 2;
    event.encoded_len() <= MAX_EVENT
        && event.tries.len() <= MAX_TRIES
        && event.headers.len() <= headers
        && event.faults.len() <= MAX_FAULTS
}

/// Of an event's bytes only which tap it is for: the rest is passed over.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ForTap {
    #[prost(uint64, tag = "1")]
    pub tap: u64,
}

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
    /// In memory.
    pub bytes: usize,
}

impl Buffer {
    pub fn new(limits: Limits) -> Self {
        Self { events: VecDeque::new(), bytes: 0, limits }
    }

    /// Whether there was room for it.
    pub fn push(&mut self, event: TapEvent) -> bool {
        let size = memory(&event);
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

/// Who is meant by a name as people write it: `reviews`, `reviews.shop`, `reviews.shop.svc`, a full name, or a service account
/// as `NAME.NAMESPACE`. Gives its name and namespace; an error is for people.
pub fn named<'w>(word: &'w str, namespace: &'w str) -> Result<(&'w str, &'w str), String> {
    let of_service = |word: &'w str| word.strip_suffix(CLUSTER_DOMAIN)?.strip_suffix('.')?.strip_suffix(".svc");
    let service = of_service(word).or_else(|| word.strip_suffix(".svc"));
    let (name, namespace) = match (service.unwrap_or(word).rsplit_once('.'), service) {
        (Some(parts), _) => parts,
        (None, Some(_)) => ("", ""),
        // It is in no namespace.
        (None, None) if word == crate::names::CLUSTER_PASSTHROUGH => return Ok((word, "")),
        (None, None) => (word, namespace),
    };
    // Only service accounts have dots in their names.
    let is_wrong = name.is_empty() || namespace.is_empty() || (service.is_some() && name.contains('.'));
    if is_wrong {
        return Err(format!("`{word}` is no name: write NAME, NAME.NAMESPACE or NAME.NAMESPACE.svc.{CLUSTER_DOMAIN}"));
    }
    Ok((name, namespace))
}

/// The same, as taps are asked for it.
pub fn party(word: &str, namespace: &str) -> Result<TapParty, String> {
    let (name, namespace) = named(word, namespace)?;
    Ok(TapParty { name: name.to_owned(), namespace: namespace.to_owned(), identities: Vec::new() })
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
        let size = memory(&event("/abc"));
        let mut buffer = Buffer::new(Limits { events: 3, bytes: 5 * size });
        assert_eq!([0; 5].map(|_| buffer.push(event("/abc"))), [true, true, true, false, false]);
        assert_eq!(buffer.bytes(), 3 * size);
        assert_eq!(buffer.take(Limits { events: 2, bytes: 5 * size }).len(), 2);
        assert!(buffer.push(event("/abc")), "there is room again");
        assert_eq!(buffer.take(Limits { events: 9, bytes: size }).len(), 1);
        buffer.clear();
        assert!(buffer.is_empty() && buffer.bytes() == 0);

        let mut buffer = Buffer::new(Limits { events: 1000, bytes: 100 * size + 1 });
        let pushed = (0..1000).filter(|_| buffer.push(event("/abc"))).count();
        assert_eq!(pushed, 100);
        assert!(!buffer.push(event(&"x".repeat(100 * size))), "one that is too large at any time");
        // One that is larger than what is taken at a time would be in the way for ever.
        assert_eq!(buffer.take(Limits { events: 0, bytes: 0 }).len(), 1);
        assert_eq!(buffer.take(Limits { events: 1000, bytes: 100 * size }).len(), pushed - 1);
        assert_eq!((buffer.bytes(), buffer.take(Limits { events: 1, bytes: 1 })), (0, Vec::new()));
    }

    #[test]
    fn what_is_empty_on_the_wire_is_not_in_memory() {
        // An empty message in a list is two bytes.
        let empty = TapEvent { tries: vec![TapTry::default(); MAX_TRIES], ..TapEvent::default() };
        assert!(empty.encoded_len() < 100 && memory(&empty) > 1_000, "{}", memory(&empty));
        let mut buffer = Buffer::new(Limits { events: 1_000_000, bytes: 1 << 20 });
        assert!((0..100_000).filter(|_| buffer.push(TapEvent::default())).count() < 3_000);
        assert!(is_within_limits(&empty));
        let tries = vec![TapTry::default(); MAX_TRIES + 1];
        let headers = vec![TapHeader::default(); MAX_HEADERS * MAX_VALUES * 2 + 1];
        let faults = vec![String::new(); MAX_FAULTS + 1];
        for wrong in [
            TapEvent { tries, ..TapEvent::default() },
            TapEvent { headers, ..TapEvent::default() },
            TapEvent { faults, ..TapEvent::default() },
            event(&"x".repeat(MAX_EVENT)),
        ] {
            assert!(!is_within_limits(&wrong));
        }
    }

    #[test]
    fn which_tap_an_event_is_for_is_known_before_it_is_read() {
        let bytes = TapEvent { tap: 7, ..event("/abc") }.encode_to_vec();
        assert_eq!(ForTap::decode(&*bytes), Ok(ForTap { tap: 7 }));
        assert_eq!(ForTap::decode(&b""[..]), Ok(ForTap { tap: 0 }));
    }

    #[test]
    fn who_is_meant_is_written_in_several_ways() {
        for (word, meant) in [
            ("reviews", ("reviews", "shop")),
            ("reviews.bank", ("reviews", "bank")),
            ("reviews.bank.svc", ("reviews", "bank")),
            ("reviews.bank.svc.cluster.local", ("reviews", "bank")),
            ("an.account.bank", ("an.account", "bank")),
            ("passthrough", ("passthrough", "")),
        ] {
            assert_eq!(named(word, "shop"), Ok(meant), "{word}");
        }
        for wrong in ["", ".", ".bank", "reviews.", "reviews.svc", ".svc", "svc.cluster.local.", "a.reviews.bank.svc"] {
            assert!(named(wrong, "shop").unwrap_err().contains("NAME.NAMESPACE"), "{wrong}");
        }
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
