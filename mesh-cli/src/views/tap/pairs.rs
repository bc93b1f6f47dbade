//! Puts together what both proxies of a request have seen. The caller's proxy knows where it went and why, and the server's who
//! has let it in. A state machine: no I/O, and the time is an argument.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use mesh_common::proto::telemetry::{Protocol, TapEvent};

use super::is_outbound;

/// How long what the caller's proxy has seen waits for the server's.
const PATIENCE: Duration = Duration::from_millis(750);
/// How long the server's waits for the caller's, which tells a request when the last try has ended.
const KEPT: Duration = Duration::from_secs(30);
/// How many of the latter.
const MAX_KEPT: usize = 10_000;

/// What is shown of a request or byte stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub event: TapEvent,
    /// By the server's proxy, if that is another one and has told.
    pub server: Option<TapEvent>,
}

impl Seen {
    fn alone(event: TapEvent) -> Self {
        Self { event, server: None }
    }
}

/// What both sides of a try have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    request: String,
    caller: String,
    server: String,
}

pub struct Pairs {
    /// Each side is shown for itself: of most requests only one is asked for.
    apart: bool,
    /// SPIFFE IDs of all whose proxies tell what they call.
    asked: HashSet<String>,
    /// Of callers, until then.
    waiting: VecDeque<(Instant, Key, TapEvent)>,
    /// Of servers, and when they came.
    kept: HashMap<Key, VecDeque<TapEvent>>,
    order: VecDeque<(Instant, Key)>,
}

impl Pairs {
    pub fn new(apart: bool) -> Self {
        Self { apart, asked: HashSet::new(), waiting: VecDeque::new(), kept: HashMap::new(), order: VecDeque::new() }
    }

    /// These are asked from now on.
    pub fn ask(&mut self, identities: Vec<String>) {
        self.asked = identities.into_iter().collect();
    }

    /// What can be shown because of this.
    pub fn add(&mut self, event: TapEvent, now: Instant) -> Option<Seen> {
        if self.apart {
            return Some(Seen::alone(event));
        }
        match is_outbound(&event) {
            true => self.of_caller(event, now),
            false => self.of_server(event, now),
        }
    }

    fn of_caller(&mut self, event: TapEvent, now: Instant) -> Option<Seen> {
        let Some(key) = key_of_caller(&event) else { return Some(Seen::alone(event)) };
        match self.take_kept(&key, &event) {
            Some(server) => Some(Seen { event, server: Some(server) }),
            None => {
                self.waiting.push_back((now + PATIENCE, key, event));
                None
            }
        }
    }

    fn of_server(&mut self, event: TapEvent, now: Instant) -> Option<Seen> {
        let told_by_caller = !event.caller.is_empty() && self.asked.contains(&event.caller);
        if !told_by_caller {
            return Some(Seen::alone(event));
        }
        if event.protocol() == Protocol::Tcp {
            // Nothing tells which one of the caller's it is. What this side has ended has its reason here.
            return (!event.flags.is_empty()).then(|| Seen::alone(event));
        }
        let key = key_of_server(&event)?;
        let waits = |(_, waiting, of_caller): &(_, Key, TapEvent)| *waiting == key && fits(of_caller, &event);
        if let Some((_, _, of_caller)) = self.waiting.iter().position(waits).and_then(|at| self.waiting.remove(at)) {
            return Some(Seen { event: of_caller, server: Some(event) });
        }
        self.order.push_back((now, key.clone()));
        self.kept.entry(key).or_default().push_back(event);
        while self.order.len() > MAX_KEPT {
            self.forget_oldest();
        }
        None
    }

    /// The last one of a try that fits; those before it were other tries.
    fn take_kept(&mut self, key: &Key, event: &TapEvent) -> Option<TapEvent> {
        let kept = self.kept.get_mut(key)?;
        let at = kept.iter().rposition(|server| fits(event, server))?;
        let taken = kept.remove(at);
        if kept.is_empty() {
            self.kept.remove(key);
        }
        taken
    }

    fn forget_oldest(&mut self) {
        let Some((_, key)) = self.order.pop_front() else { return };
        if let Some(kept) = self.kept.get_mut(&key) {
            kept.pop_front();
            if kept.is_empty() {
                self.kept.remove(&key);
            }
        }
    }

    /// When something has waited for long enough.
    pub fn due(&self) -> Option<Instant> {
        self.waiting.front().map(|(until, ..)| *until)
    }

    /// What has waited for long enough.
    pub fn take_due(&mut self, now: Instant) -> Vec<Seen> {
        while self.order.front().is_some_and(|(since, _)| now.saturating_duration_since(*since) > KEPT) {
            self.forget_oldest();
        }
        let mut due = Vec::new();
        while self.waiting.front().is_some_and(|(until, ..)| *until <= now) {
            due.extend(self.waiting.pop_front().map(|(_, _, event)| Seen::alone(event)));
        }
        due
    }

    /// What still waits, at the end.
    pub fn rest(&mut self) -> Vec<Seen> {
        self.waiting.drain(..).map(|(_, _, event)| Seen::alone(event)).collect()
    }
}

/// `None` if no other proxy has seen it.
fn key_of_caller(event: &TapEvent) -> Option<Key> {
    let has_server = event.protocol() == Protocol::Http && event.mutual_tls && !event.endpoint.is_empty();
    (has_server && !event.request_id.is_empty()).then(|| Key {
        request: event.request_id.clone(),
        caller: event.reporter.as_ref().map(|it| it.identity.clone()).unwrap_or_default(),
        server: event.endpoint.clone(),
    })
}

fn key_of_server(event: &TapEvent) -> Option<Key> {
    (!event.request_id.is_empty()).then(|| Key {
        request: event.request_id.clone(),
        caller: event.caller.clone(),
        server: event.destination.clone(),
    })
}

/// Whether it can be the last try of the same request, as far as what came of it says.
fn fits(caller: &TapEvent, server: &TapEvent) -> bool {
    caller.tries.last().is_none_or(|last| last.status == 0 || last.status == server.status)
}

#[cfg(test)]
mod tests {
    use mesh_common::proto::telemetry::{Direction, Reporter, TapTry};

    use super::*;

    fn caller(request: &str, tries: &[(&str, u32)]) -> TapEvent {
        let of = |(endpoint, status): &(&str, u32)| TapTry {
            endpoint: (*endpoint).into(),
            status: *status,
            ..TapTry::default()
        };
        TapEvent {
            direction: Direction::Outbound.into(),
            protocol: Protocol::Http.into(),
            reporter: Some(Reporter { identity: "web".into(), ..Reporter::default() }),
            request_id: request.into(),
            endpoint: tries.last().map(|(endpoint, _)| (*endpoint).to_owned()).unwrap_or_default(),
            tries: tries.iter().map(of).collect(),
            mutual_tls: true,
            ..TapEvent::default()
        }
    }

    fn server(request: &str, address: &str, status: u32, policy: &str) -> TapEvent {
        TapEvent {
            direction: Direction::Inbound.into(),
            protocol: Protocol::Http.into(),
            caller: "web".into(),
            request_id: request.into(),
            destination: address.into(),
            status,
            policy: policy.into(),
            ..TapEvent::default()
        }
    }

    struct Bench(Pairs, Instant);

    impl Bench {
        fn new() -> Self {
            let mut pairs = Pairs::new(false);
            pairs.ask(vec!["web".into()]);
            Self(pairs, Instant::now())
        }

        fn at(&self, ms: u64) -> Instant {
            self.1 + Duration::from_millis(ms)
        }

        /// The policies of what is shown.
        fn add(&mut self, event: TapEvent, ms: u64) -> Option<String> {
            let now = self.at(ms);
            self.0.add(event, now).map(|seen| seen.server.map(|it| it.policy).unwrap_or_default())
        }
    }

    #[test]
    fn both_sides_are_one_whichever_comes_first() {
        let mut bench = Bench::new();
        assert_eq!(bench.add(caller("1", &[("a", 200)]), 0), None);
        assert_eq!(bench.add(server("1", "a", 200, "p"), 100).as_deref(), Some("p"));
        assert_eq!(bench.add(server("2", "a", 200, "q"), 100), None);
        assert_eq!(bench.add(caller("2", &[("a", 200)]), 200).as_deref(), Some("q"));
        assert_eq!((bench.0.due(), bench.0.rest()), (None, Vec::new()));
    }

    #[test]
    fn the_last_try_is_the_one_that_counts() {
        let mut bench = Bench::new();
        assert_eq!(bench.add(server("1", "a", 503, "first"), 0), None);
        assert_eq!(bench.add(server("1", "a", 200, "second"), 10), None);
        assert_eq!(bench.add(caller("1", &[("a", 503), ("a", 200)]), 20).as_deref(), Some("second"));
        // The last one comes later than the caller's word.
        assert_eq!(bench.add(server("2", "a", 503, "first"), 0), None);
        assert_eq!(bench.add(caller("2", &[("a", 503), ("a", 200)]), 20), None);
        assert_eq!(bench.add(server("2", "a", 200, "second"), 30).as_deref(), Some("second"));
    }

    #[test]
    fn nobody_can_add_to_somebody_elses_request() {
        let mut bench = Bench::new();
        bench.0.ask(vec!["web".into(), "other".into()]);
        assert_eq!(bench.add(server("1", "b", 200, "elsewhere"), 0), None);
        assert_eq!(bench.add(TapEvent { caller: "other".into(), ..server("1", "a", 200, "other's") }, 0), None);
        assert_eq!(bench.add(caller("1", &[("a", 200)]), 10), None);
        assert_eq!(bench.0.take_due(bench.at(760))[0].server, None);
    }

    #[test]
    fn who_has_no_other_side_does_not_wait() {
        let mut bench = Bench::new();
        let aborted = TapEvent { endpoint: String::new(), mutual_tls: false, ..caller("1", &[]) };
        assert_eq!(bench.add(aborted, 0).as_deref(), Some(""));
        assert_eq!(bench.add(TapEvent { mutual_tls: false, ..caller("2", &[("a", 200)]) }, 0).as_deref(), Some(""));
        assert_eq!(
            bench.add(TapEvent { protocol: Protocol::Tcp.into(), ..caller("3", &[("a", 0)]) }, 0).as_deref(),
            Some("")
        );
        // Callers that tell nothing themselves.
        assert_eq!(bench.add(TapEvent { caller: String::new(), ..server("4", "a", 200, "p") }, 0).as_deref(), Some(""));
        assert_eq!(
            bench.add(TapEvent { caller: "envoy".into(), ..server("5", "a", 200, "p") }, 0).as_deref(),
            Some("")
        );
    }

    #[test]
    fn a_stream_is_shown_by_its_caller_and_by_who_has_refused_it() {
        let mut bench = Bench::new();
        let stream = TapEvent { protocol: Protocol::Tcp.into(), ..server("", "a", 0, "") };
        assert_eq!(bench.add(stream.clone(), 0), None);
        assert_eq!(bench.add(TapEvent { flags: "UAEX".into(), ..stream }, 0).as_deref(), Some(""));
    }

    #[test]
    fn what_has_waited_for_long_enough_is_shown_alone() {
        let mut bench = Bench::new();
        bench.add(caller("1", &[("a", 200)]), 0);
        bench.add(caller("2", &[("a", 200)]), 100);
        assert_eq!(bench.0.due(), Some(bench.at(750)));
        assert_eq!(bench.0.take_due(bench.at(749)), []);
        assert_eq!(bench.0.take_due(bench.at(750)).len(), 1);
        assert_eq!(bench.0.rest().len(), 1);
    }

    #[test]
    fn what_servers_tell_is_kept_for_a_while_and_not_for_ever() {
        let mut bench = Bench::new();
        bench.add(server("1", "a", 200, "p"), 0);
        bench.0.take_due(bench.at(30_000));
        assert_eq!(bench.0.kept.len(), 1);
        bench.0.take_due(bench.at(30_001));
        assert!(bench.0.kept.is_empty() && bench.0.order.is_empty());
        for number in 0..MAX_KEPT + 500 {
            bench.add(server(&number.to_string(), "a", 200, "p"), 40_000);
        }
        assert_eq!((bench.0.kept.len(), bench.0.order.len()), (MAX_KEPT, MAX_KEPT));
        // Those of one request that is never told.
        for _ in 0..MAX_KEPT + 500 {
            bench.add(server("same", "a", 200, "p"), 50_000);
        }
        assert_eq!((bench.0.kept.len(), bench.0.order.len()), (1, MAX_KEPT));
        assert_eq!(bench.0.kept.values().map(VecDeque::len).sum::<usize>(), MAX_KEPT);
    }

    #[test]
    fn of_single_proxies_each_side_is_shown() {
        let mut pairs = Pairs::new(true);
        pairs.ask(vec!["web".into()]);
        for event in [caller("1", &[("a", 200)]), server("1", "a", 200, "p")] {
            assert_eq!(pairs.add(event.clone(), Instant::now()), Some(Seen::alone(event)));
        }
    }
}
