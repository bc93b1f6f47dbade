//! Whatever a client asks for and answers, in whatever order things happen: in the end it has what the server has, and
//! nothing that it has refers to something that it lacks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::super::session::Order;
use super::super::types::Type;
use super::super::view::Protocol;
use super::*;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Clone, Debug)]
enum Step {
    Want {
        ty: Type,
        add: Vec<String>,
        drop: Vec<String>,
    },
    Commit(World),
    /// The client takes the oldest response under way.
    Client(Answer),
    /// The server takes the oldest request under way.
    Server,
}

/// One run: server and client with messages under way in both directions.
struct Run {
    server: Server,
    client: ModelClient,
    world: World,
    to_client: VecDeque<Push>,
    to_server: VecDeque<AnyRequest>,
    unanswered: BTreeMap<String, Type>,
}

impl Run {
    fn new(protocol: Protocol, order: Order, world: World) -> Self {
        Self {
            server: Server::new(protocol, order, &world),
            client: ModelClient::new(protocol),
            world,
            to_client: VecDeque::new(),
            to_server: VecDeque::new(),
            unanswered: BTreeMap::new(),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Want { ty, add, drop } => self.to_server.push_back(self.client.want(ty, &add, &drop)),
            Step::Commit(mut world) => {
                world.revision = self.world.revision + 1;
                let pushes = self.server.update(&world);
                self.world = world;
                self.send(pushes);
            }
            Step::Client(answer) => {
                if let Some(push) = self.to_client.pop_front() {
                    self.to_server.push_back(self.client.receive(push, answer));
                }
            }
            Step::Server => {
                if let Some(request) = self.to_server.pop_front() {
                    let pushes = self.request(request);
                    self.send(pushes);
                }
            }
        }
    }

    fn request(&mut self, request: AnyRequest) -> Vec<Push> {
        match request {
            AnyRequest::Delta(request) => {
                self.unanswered.remove(&request.response_nonce);
                self.server.delta(request)
            }
            AnyRequest::Sotw(request) => {
                self.unanswered.remove(&request.response_nonce);
                self.server.sotw(request)
            }
        }
    }

    fn send(&mut self, pushes: Vec<Push>) {
        for push in pushes {
            let other = self.unanswered.insert(push.nonce.clone(), push.ty);
            assert!(other.is_none(), "a nonce was used twice");
            let of_type = self.unanswered.values().filter(|ty| **ty == push.ty).count();
            assert_eq!(of_type, 1, "two responses of {:?} are under way", push.ty);
            self.to_client.push_back(push);
        }
    }

    /// Lets everything arrive and be accepted.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            if self.to_client.is_empty() && self.to_server.is_empty() {
                return;
            }
            self.step(Step::Server);
            self.step(Step::Client(Answer::Ack));
        }
        panic!("client and server never come to rest");
    }

    fn expected(&self, ty: Type) -> BTreeMap<&str, &str> {
        let covered = |name: &str| {
            self.client.wants(ty, name) || self.client.wants_all(ty) && self.world.names(ty).contains(name)
        };
        let resources = self.world.resources.iter().filter(|((of, name), _)| *of == ty && covered(name));
        resources.map(|((_, name), content)| (name.as_str(), content.as_str())).collect()
    }

    fn check_same(&self, protocol: Protocol) {
        for ty in Type::ALL {
            let expected = self.expected(ty);
            let mut has = self.client.has(ty);
            if protocol == Protocol::StateOfTheWorld && !ty.full_set() {
                // This form cannot say that they are gone.
                has.retain(|name, _| expected.contains_key(name));
            }
            assert_eq!(has, expected, "{ty:?}");
        }
        assert_eq!(self.server.session.synced_revision(), self.world.revision);
        assert!(self.server.session.tracks().iter().all(|track| track.nack().is_none()));
    }
}

fn names() -> impl Strategy<Value = Vec<String>> {
    let name = prop_oneof![8 => prop::sample::select(&NAMES[..]), 1 => Just("*")];
    prop::collection::vec(name, 0..3).prop_map(|names| texts(&names))
}

fn types() -> impl Strategy<Value = Type> {
    prop::sample::select(&Type::ALL[..])
}

fn any_world() -> impl Strategy<Value = World> {
    let content = prop::sample::select(&["1", "2", "3"][..]);
    let resource = (types(), prop::sample::select(&NAMES[..]), content);
    prop::collection::vec(resource, 0..16).prop_map(|resources| World::new(&resources))
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![6 => Just(Answer::Ack), 1 => Just(Answer::Refuse), 1 => Just(Answer::Complain)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (types(), names(), names()).prop_map(|(ty, add, drop)| Step::Want { ty, add, drop }),
        2 => any_world().prop_map(Step::Commit),
        4 => answer().prop_map(Step::Client),
        4 => Just(Step::Server),
    ]
}

/// Clusters that there are, and of which of them each route makes use. A route's content is its clusters' names.
fn linked_world() -> impl Strategy<Value = World> {
    let clusters = prop::collection::btree_map(prop::sample::select(&NAMES[..]), 0..3u8, 0..4);
    let routes = prop::collection::btree_map(
        prop::sample::select(&["r", "s"][..]),
        prop::collection::btree_set(prop::sample::select(&NAMES[..]), 1..3),
        0..3,
    );
    (clusters, routes).prop_map(|(clusters, routes)| {
        let mut world = World::new(&[]);
        for (name, version) in &clusters {
            world.resources.insert((Type::Cluster, (*name).to_owned()), version.to_string());
            world.resources.insert((Type::Endpoints, (*name).to_owned()), version.to_string());
        }
        for (name, uses) in routes {
            let uses: Vec<_> = uses.into_iter().filter(|cluster| clusters.contains_key(cluster)).collect();
            if !uses.is_empty() {
                world.resources.insert((Type::Route, name.to_owned()), uses.join(","));
            }
        }
        world
    })
}

/// Envoy refuses a route now and then, but not clusters.
fn linked_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => linked_world().prop_map(Step::Commit),
        5 => answer().prop_map(Step::Client),
        5 => Just(Step::Server),
    ]
}

fn protocols() -> impl Strategy<Value = Protocol> {
    prop::sample::select(&[Protocol::Delta, Protocol::StateOfTheWorld][..])
}

fn orders() -> impl Strategy<Value = Order> {
    prop::sample::select(&[Order::WaitForWarm, Order::AnswerAtOnce][..])
}

/// Always the same cases: what is found must be found again.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(3), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(600))]

    #[test]
    fn a_client_ends_with_what_the_server_has(
        protocol in protocols(),
        order in orders(),
        first in any_world(),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut run = Run::new(protocol, order, first);
        for step in steps {
            run.step(step);
        }
        run.finish();
        // What was refused is not sent again before it changes: everything changes, and then back.
        let back = run.world.clone();
        let all = Type::ALL.into_iter().flat_map(|ty| NAMES.map(|name| (ty, name, "last")));
        run.step(Step::Commit(World::new(&all.collect::<Vec<_>>())));
        run.finish();
        run.check_same(protocol);
        run.step(Step::Commit(back));
        run.finish();
        run.check_same(protocol);
    }

    #[test]
    fn no_route_is_without_its_clusters(
        protocol in protocols(),
        first in linked_world(),
        steps in prop::collection::vec(linked_step(), 1..80),
    ) {
        let mut run = Run::new(protocol, Order::WaitForWarm, first);
        run.step(Step::Want { ty: Type::Cluster, add: texts(&["*"]), drop: Vec::new() });
        run.step(Step::Want { ty: Type::Route, add: texts(&["r", "s"]), drop: Vec::new() });
        // Routes that a state-of-the-world client was told of and that went away: it cannot know.
        let mut ghosts = BTreeSet::new();
        for step in steps {
            let step = match (step, run.to_client.front()) {
                (Step::Client(_), Some(push)) if push.ty != Type::Route => Step::Client(Answer::Ack),
                (step, _) => step,
            };
            run.step(step);
            let routes = run.client.has(Type::Route);
            if protocol == Protocol::StateOfTheWorld {
                ghosts.extend(routes.keys().filter(|name| run.world.get(Type::Route, name).is_none()).map(|name| (*name).to_owned()));
                ghosts.retain(|name| routes.contains_key(name.as_str()));
            }
            let clusters = run.client.has(Type::Cluster);
            for (route, uses) in routes.iter().filter(|(route, _)| !ghosts.contains(**route)) {
                for cluster in uses.split(',') {
                    prop_assert!(clusters.contains_key(cluster), "route {route} uses {cluster}, of {clusters:?}");
                }
            }
        }
    }
}
