//! Puts together what both proxies of a request have seen. The caller's proxy knows where it went and why, and the server's who
//! has let it in. A state machine: no I/O, and the time is an argument.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use mesh_common::proto::telemetry::{Protocol, TapEvent};

use super::is_outbound;

/// How long what the caller's proxy has seen waits for the server's.
const PATIENCE: Duration = Duration::from_millis(750);
/// How long the server's waits for the caller's, which tells a request when the last try has ended.
const KEPT: Duration = Duration::from_secs(30);
/// How many of the latter, and how many other tries are expected.
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
    /// Of callers, for the server's side.
    callers: Waiting<TapEvent>,
    /// Of servers, for the caller's side.
    servers: Waiting<TapEvent>,
    /// Tries of requests that are shown already: what servers tell of these is no news.
    tries: Waiting<()>,
    /// What servers have told for which no caller's side has come.
    unpaired: u64,
}

impl Pairs {
    pub fn new(apart: bool) -> Self {
        Self {
            apart,
            asked: HashSet::new(),
            callers: Waiting::default(),
            servers: Waiting::default(),
            tries: Waiting::default(),
            unpaired: 0,
        }
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
        // Whoever tells is asked, also before that has been said.
        if let Some(reporter) = event.reporter.as_ref().filter(|it| !self.asked.contains(&it.identity)) {
            self.asked.insert(reporter.identity.clone());
        }
        let key = key_of_caller(&event);
        // The last one of a try that fits; those before it were other tries.
        let server = key.as_ref().and_then(|key| self.servers.take_last(key, |server| fits(&event, server)));
        self.expect(&event, server.is_some(), now);
        match (server, key) {
            (None, Some(key)) => {
                self.callers.push(key, event, now + PATIENCE);
                None
            }
            (server, _) => Some(Seen { event, server }),
        }
    }

    /// Servers tell of each try: of those that do not count, nothing is shown.
    fn expect(&mut self, event: &TapEvent, paired: bool, now: Instant) {
        let counted = paired.then(|| counted(event)).flatten();
        for (_, it) in event.tries.iter().enumerate().filter(|(at, _)| Some(*at) != counted) {
            let Some(key) = key_of(event, &it.endpoint) else { return };
            if self.servers.take_first(&key, |_| true).is_none() {
                self.tries.push(key, (), now + KEPT);
            }
        }
        while self.tries.len() > MAX_KEPT {
            self.tries.take_oldest();
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
        let Some(key) = key_of_server(&event) else {
            self.unpaired += 1;
            return None;
        };
        // One of the tries that were expected, whichever comes of it.
        let is_expected = self.tries.take_first(&key, |()| true).is_some();
        if let Some(of_caller) = self.callers.take_first(&key, |of_caller| fits(of_caller, &event)) {
            return Some(Seen { event: of_caller, server: Some(event) });
        }
        if !is_expected {
            self.servers.push(key, event, now + KEPT);
        }
        while self.servers.len() > MAX_KEPT {
            self.servers.take_oldest();
            self.unpaired += 1;
        }
        None
    }

    /// When something has waited for long enough.
    pub fn due(&self) -> Option<Instant> {
        [self.callers.due(), self.servers.due()].into_iter().flatten().min()
    }

    /// What has waited for long enough.
    pub fn take_due(&mut self, now: Instant) -> Vec<Seen> {
        while self.tries.take_due(now).is_some() {}
        while self.servers.take_due(now).is_some() {
            self.unpaired += 1;
        }
        std::iter::from_fn(|| self.callers.take_due(now).map(Seen::alone)).collect()
    }

    /// What still waits, at the end. A server's side is not counted if the caller's may be on its way.
    pub fn rest(&mut self, now: Instant) -> Vec<Seen> {
        while self.servers.take_due(now + KEPT - PATIENCE).is_some() {
            self.unpaired += 1;
        }
        std::iter::from_fn(|| self.callers.take_oldest().map(Seen::alone)).collect()
    }

    /// How many requests only servers have told of since this was last asked. They are not shown.
    pub fn take_unpaired(&mut self) -> u64 {
        std::mem::take(&mut self.unpaired)
    }
}

/// What waits for its other side, in the order in which it came.
struct Waiting<T> {
    all: BTreeMap<u64, (Instant, Key, T)>,
    /// Their numbers, ascending.
    by_key: HashMap<Key, VecDeque<u64>>,
    next: u64,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self { all: BTreeMap::new(), by_key: HashMap::new(), next: 0 }
    }
}

impl<T> Waiting<T> {
    fn len(&self) -> usize {
        self.all.len()
    }

    fn push(&mut self, key: Key, what: T, until: Instant) {
        self.by_key.entry(key.clone()).or_default().push_back(self.next);
        self.all.insert(self.next, (until, key, what));
        self.next += 1;
    }

    fn take_first(&mut self, key: &Key, fits: impl Fn(&T) -> bool) -> Option<T> {
        let mut numbers = self.by_key.get(key)?.iter();
        let number = *numbers.find(|number| self.fits(**number, &fits))?;
        self.remove(number)
    }

    fn take_last(&mut self, key: &Key, fits: impl Fn(&T) -> bool) -> Option<T> {
        let mut numbers = self.by_key.get(key)?.iter().rev();
        let number = *numbers.find(|number| self.fits(**number, &fits))?;
        self.remove(number)
    }

    fn fits(&self, number: u64, fits: impl Fn(&T) -> bool) -> bool {
        self.all.get(&number).is_some_and(|(.., what)| fits(what))
    }

    fn take_oldest(&mut self) -> Option<T> {
        let number = *self.all.keys().next()?;
        self.remove(number)
    }

    fn due(&self) -> Option<Instant> {
        self.all.values().next().map(|(until, ..)| *until)
    }

    fn take_due(&mut self, now: Instant) -> Option<T> {
        self.due().filter(|until| *until <= now)?;
        self.take_oldest()
    }

    fn remove(&mut self, number: u64) -> Option<T> {
        let (_, key, what) = self.all.remove(&number)?;
        if let Some(numbers) = self.by_key.get_mut(&key) {
            // Ascending: it is found at once, and is at one of the ends as a rule.
            if let Ok(at) = numbers.binary_search(&number) {
                numbers.remove(at);
            }
            if numbers.is_empty() {
                self.by_key.remove(&key);
            }
        }
        Some(what)
    }
}

/// `None` if no other proxy has seen it.
fn key_of_caller(event: &TapEvent) -> Option<Key> {
    let has_server = event.mutual_tls && !event.endpoint.is_empty();
    if has_server { key_of(event, &event.endpoint) } else { None }
}

/// Of a try there.
fn key_of(event: &TapEvent, endpoint: &str) -> Option<Key> {
    let can_be_told = event.protocol() == Protocol::Http && !event.request_id.is_empty();
    can_be_told.then(|| Key {
        request: event.request_id.clone(),
        caller: event.reporter.as_ref().map(|it| it.identity.clone()).unwrap_or_default(),
        server: endpoint.to_owned(),
    })
}

fn key_of_server(event: &TapEvent) -> Option<Key> {
    (!event.request_id.is_empty()).then(|| Key {
        request: event.request_id.clone(),
        caller: event.caller.clone(),
        server: event.destination.clone(),
    })
}

/// Which try counted. With hedging another one may have begun after it.
fn counted(caller: &TapEvent) -> Option<usize> {
    caller.tries.iter().rposition(|it| it.endpoint == caller.endpoint)
}

/// Whether it can be the try that counted, as far as what came of it and who tells of it say. A server's proxy says itself whose
/// request it was and at which address; who the proxy is, it has proven.
fn fits(caller: &TapEvent, server: &TapEvent) -> bool {
    let told = |text: &str, of: &str| text.is_empty() || text == of;
    let is_chosen = server.reporter.as_ref().is_some_and(|reporter| {
        told(&caller.workload_identity, &reporter.identity) && told(&caller.workload, &reporter.workload)
    });
    let counted = counted(caller).and_then(|at| caller.tries.get(at));
    is_chosen && counted.is_none_or(|it| it.status == 0 || it.status == server.status)
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
            reporter: Some(Reporter {
                identity: "reviews".into(),
                workload: "reviews-1".into(),
                ..Reporter::default()
            }),
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

        /// How many wait, and how many were not shown.
        fn left(&mut self) -> (usize, u64) {
            (self.0.callers.len() + self.0.servers.len(), self.0.take_unpaired())
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
        assert_eq!(bench.left(), (0, 0));
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
        // And none of the others is news, whenever its server tells of it.
        assert_eq!(bench.add(server("3", "a", 200, "second"), 0), None);
        assert_eq!(bench.add(caller("3", &[("b", 503), ("a", 200)]), 20).as_deref(), Some("second"));
        assert_eq!(bench.add(server("3", "b", 503, "first"), 900), None);
        bench.add(caller("4", &[("a", 200)]), 1_000);
        assert_eq!(bench.0.take_due(bench.at(1_750)).len(), 1);
        assert_eq!(bench.add(server("4", "a", 200, "late"), 1_800), None);
        assert_eq!(bench.left(), (0, 0));
    }

    #[test]
    fn who_tells_is_asked_whether_that_was_said_or_not() {
        let mut pairs = Pairs::new(false);
        let now = Instant::now();
        assert_eq!(pairs.add(caller("1", &[("a", 200)]), now), None);
        let seen = pairs.add(server("1", "a", 200, "p"), now).unwrap();
        assert_eq!(seen.server.map(|it| it.policy).as_deref(), Some("p"));
        assert_eq!(pairs.add(server("2", "a", 200, ""), now), None, "the caller's side is to come");
    }

    #[test]
    fn with_hedging_it_is_the_one_that_was_chosen() {
        let mut bench = Bench::new();
        let hedged = |request| TapEvent { endpoint: "a".into(), ..caller(request, &[("a", 200), ("b", 0)]) };
        assert_eq!(bench.add(server("1", "a", 500, "of another request"), 0), None);
        assert_eq!(bench.add(server("1", "a", 200, "p"), 0), None);
        assert_eq!(bench.add(server("1", "b", 0, "cancelled"), 5), None);
        assert_eq!(bench.add(hedged("1"), 10).as_deref(), Some("p"));
        // Of both only one that has nothing to do with it waits.
        assert_eq!(bench.left(), (1, 0));
    }

    #[test]
    fn nobody_can_add_to_somebody_elses_request() {
        let mut bench = Bench::new();
        bench.0.ask(vec!["web".into(), "other".into()]);
        assert_eq!(bench.add(server("1", "b", 200, "elsewhere"), 0), None);
        assert_eq!(bench.add(TapEvent { caller: "other".into(), ..server("1", "a", 200, "other's") }, 0), None);
        assert_eq!(bench.add(caller("1", &[("a", 200)]), 10), None);
        assert_eq!(bench.0.take_due(bench.at(760))[0].server, None);
        // Whoever says of itself that it was called there, and by whom, is not the one that the caller has chosen.
        let of = |identity: &str, workload: &str| TapEvent {
            workload_identity: identity.into(),
            workload: workload.into(),
            ..caller("2", &[("a", 200)])
        };
        for (identity, workload, shown) in
            [("stock", "", None), ("", "reviews-2", None), ("reviews", "reviews-1", Some("p"))]
        {
            let mut bench = Bench::new();
            assert_eq!(bench.add(server("2", "a", 200, "p"), 0), None);
            assert_eq!(bench.add(of(identity, workload), 10).as_deref(), shown);
        }
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
        let now = bench.at(800);
        assert_eq!((bench.0.rest(now).len(), bench.left()), (1, (0, 0)));
    }

    #[test]
    fn what_servers_tell_is_kept_for_a_while_and_then_counted() {
        let mut bench = Bench::new();
        bench.add(server("1", "a", 200, "p"), 0);
        assert_eq!(bench.0.due(), Some(bench.at(30_000)));
        bench.0.take_due(bench.at(29_999));
        assert_eq!(bench.left(), (1, 0));
        bench.0.take_due(bench.at(30_000));
        assert_eq!(bench.left(), (0, 1));
        for number in 0..MAX_KEPT + 500 {
            bench.add(server(&number.to_string(), "a", 200, "p"), 40_000);
        }
        assert_eq!(bench.left(), (MAX_KEPT, 500));
        // Those of one request that is never told.
        for _ in 0..MAX_KEPT + 500 {
            bench.add(server("same", "a", 200, "p"), 50_000);
        }
        assert_eq!((bench.left(), bench.0.servers.by_key.len()), ((MAX_KEPT, MAX_KEPT as u64 + 500), 1));
        // At the end, those count that the caller's side would have come for by now.
        bench.add(server("new", "a", 200, "p"), 50_500);
        let now = bench.at(51_000);
        assert_eq!((bench.0.rest(now), bench.left()), (Vec::new(), (1, MAX_KEPT as u64)));
        // And neither are tries kept that no server ever tells of.
        let mut bench = Bench::new();
        for number in 0..MAX_KEPT + 500 {
            bench.add(caller(&number.to_string(), &[("a", 0), ("b", 200)]), 0);
        }
        assert_eq!(bench.0.tries.len(), MAX_KEPT);
        assert_eq!(bench.0.take_due(bench.at(30_000)).len(), MAX_KEPT + 500);
        assert!(bench.0.tries.by_key.is_empty() && bench.0.tries.len() == 0);
    }

    /// A stale place in the order must not be taken for a newer one.
    #[test]
    fn what_was_paired_leaves_nothing_behind() {
        let mut bench = Bench::new();
        for round in 0..3 {
            assert_eq!(bench.add(server("1", "a", 200, "p"), round * 20_000), None);
            let at = round * 20_000 + 10;
            assert_eq!(bench.add(caller("1", &[("a", 200)]), at).as_deref(), Some("p"));
            bench.0.take_due(bench.at(at));
            assert_eq!(bench.left(), (0, 0));
        }
        assert!(bench.0.servers.by_key.is_empty() && bench.0.tries.by_key.is_empty());
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
