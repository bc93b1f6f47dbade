//! A mesh made of words and a client that knows the protocol, for the tests of the session.

mod order;
mod property;
mod protocol;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc::Status;

use super::session::{Limits, Order, Refused, Session};
use super::types::Type;
use super::view::{Protocol, Push, Verdict, View};
use super::wire;
use crate::snapshot::Encoded;

/// What there is: contents by type and name. A resource's bytes are `name|content`. The wildcard covers everything but
/// names that begin with `hidden`.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub revision: u64,
    pub committed_at: Instant,
    pub resources: BTreeMap<(Type, String), String>,
}

impl World {
    pub fn new(resources: &[(Type, &str, &str)]) -> Self {
        let resources = resources.iter().map(|(ty, name, text)| ((*ty, (*name).to_owned()), (*text).to_owned()));
        Self { revision: 1, committed_at: Instant::now(), resources: resources.collect() }
    }

    /// The next revision, with this resource changed (or gone).
    pub fn with(&self, ty: Type, name: &str, content: Option<&str>) -> Self {
        let mut next = self.clone();
        next.revision += 1;
        match content {
            Some(content) => next.resources.insert((ty, name.to_owned()), content.to_owned()),
            None => next.resources.remove(&(ty, name.to_owned())),
        };
        next
    }
}

impl View for World {
    fn revision(&self) -> u64 {
        self.revision
    }

    fn committed_at(&self) -> Instant {
        self.committed_at
    }

    fn get(&self, ty: Type, name: &str) -> Option<Arc<Encoded>> {
        let content = self.resources.get(&(ty, name.to_owned()))?;
        Some(Arc::new(Encoded::new(Any {
            type_url: ty.url().to_owned(),
            value: format!("{name}|{content}").into_bytes(),
        })))
    }

    fn names(&self, ty: Type) -> Arc<BTreeSet<String>> {
        let names = self.resources.keys().filter(|(of, name)| *of == ty && !name.starts_with("hidden"));
        Arc::new(names.map(|(_, name)| name.clone()).collect())
    }
}

/// A session and the moment at which it is.
pub(super) struct Server {
    pub session: Session,
    pub now: Instant,
}

impl Server {
    pub fn new(protocol: Protocol, order: Order, world: &World) -> Self {
        Self::limited(protocol, order, world, Limits::default())
    }

    pub fn limited(protocol: Protocol, order: Order, world: &World, limits: Limits) -> Self {
        Self { session: Session::new(protocol, order, limits, Arc::new(world.clone())), now: Instant::now() }
    }

    pub fn update(&mut self, world: &World) -> Vec<Push> {
        self.session.update(Arc::new(world.clone()));
        self.pushes()
    }

    pub fn pushes(&mut self) -> Vec<Push> {
        std::iter::from_fn(|| self.session.next(self.now)).collect()
    }

    pub fn later(&mut self, by: Duration) -> Vec<Push> {
        self.now += by;
        self.pushes()
    }

    pub fn delta(&mut self, request: DeltaDiscoveryRequest) -> Vec<Push> {
        self.try_delta(&request).unwrap();
        self.pushes()
    }

    pub fn try_delta(&mut self, request: &DeltaDiscoveryRequest) -> Result<Option<Verdict>, Refused> {
        self.session.delta(request, self.now)
    }

    pub fn sotw(&mut self, request: DiscoveryRequest) -> Vec<Push> {
        self.session.state_of_the_world(&request, self.now).unwrap();
        self.pushes()
    }

    /// Acknowledges in delta form.
    pub fn ack(&mut self, push: &Push) -> Vec<Push> {
        self.delta(DeltaDiscoveryRequest { response_nonce: push.nonce.clone(), ..delta(push.ty, &[], &[]) })
    }

    pub fn nack(&mut self, push: &Push, message: &str) -> Vec<Push> {
        self.delta(DeltaDiscoveryRequest {
            response_nonce: push.nonce.clone(),
            error_detail: Some(error(message)),
            ..delta(push.ty, &[], &[])
        })
    }

    /// Acknowledges everything until there is nothing more to send; returns all that was sent meanwhile.
    pub fn settle(&mut self, pushes: Vec<Push>) -> Vec<Push> {
        let mut waiting = pushes;
        let mut sent = Vec::new();
        while !waiting.is_empty() {
            let push = waiting.remove(0);
            waiting.extend(self.ack(&push));
            sent.push(push);
        }
        sent
    }
}

pub(super) fn texts(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

pub(super) fn delta(ty: Type, add: &[&str], drop: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: ty.url().to_owned(),
        resource_names_subscribe: texts(add),
        resource_names_unsubscribe: texts(drop),
        ..DeltaDiscoveryRequest::default()
    }
}

pub(super) fn sotw(ty: Type, names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: ty.url().to_owned(),
        resource_names: texts(names),
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    }
}

pub(super) fn error(message: &str) -> Status {
    Status { code: 3, message: message.to_owned(), details: Vec::new() }
}

/// `CDS +a=1 +b=2 -c`, one for each response.
pub(super) fn shown(pushes: &[Push]) -> Vec<String> {
    pushes.iter().map(show).collect()
}

fn show(push: &Push) -> String {
    let mut words = vec![push.ty.short().to_owned()];
    for (name, encoded) in &push.resources {
        let text = String::from_utf8(encoded.any.value.clone()).unwrap();
        let (_, content) = text.split_once('|').unwrap();
        words.push(format!("+{name}={content}"));
    }
    words.extend(push.removed.iter().map(|name| format!("-{name}")));
    words.join(" ")
}

/// What a client holds and wants of one type.
#[derive(Clone, Debug, Default)]
struct Wanted {
    wildcard: bool,
    names: BTreeSet<String>,
    started: bool,
    /// Something was named on this stream.
    explicit: bool,
    nonce: String,
    version: String,
    has: BTreeMap<String, (String, String)>,
}

/// A client by the book: it keeps what it accepted, forgets what it no longer wants, answers each response.
#[derive(Clone, Debug)]
pub(super) struct ModelClient {
    protocol: Protocol,
    types: BTreeMap<Type, Wanted>,
}

/// A request in either form.
#[derive(Clone, Debug)]
pub(super) enum AnyRequest {
    Delta(DeltaDiscoveryRequest),
    Sotw(DiscoveryRequest),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Ack,
    /// Refuses the response and takes nothing of it.
    Refuse,
    /// Takes all of the response but says that something was wrong with it.
    Complain,
}

impl ModelClient {
    pub fn new(protocol: Protocol) -> Self {
        Self { protocol, types: Type::ALL.into_iter().map(|ty| (ty, Wanted::default())).collect() }
    }

    fn wanted(&mut self, ty: Type) -> &mut Wanted {
        self.types.get_mut(&ty).unwrap()
    }

    /// Changes what is wanted. `*` stands for the wildcard.
    pub fn want(&mut self, ty: Type, add: &[String], drop: &[String]) -> AnyRequest {
        let protocol = self.protocol;
        let wanted = self.wanted(ty);
        if protocol == Protocol::Delta && !wanted.started && add.is_empty() && ty.full_set() {
            wanted.wildcard = true;
        }
        wanted.started = true;
        for name in drop {
            if name == "*" {
                wanted.wildcard = false;
            } else {
                wanted.names.remove(name);
            }
        }
        for name in add {
            wanted.explicit = true;
            if name == "*" {
                wanted.wildcard = true;
            } else {
                wanted.names.insert(name.clone());
            }
        }
        if !wanted.wildcard {
            let names = wanted.names.clone();
            wanted.has.retain(|name, _| names.contains(name));
        }
        match protocol {
            Protocol::Delta => AnyRequest::Delta(DeltaDiscoveryRequest {
                type_url: ty.url().to_owned(),
                resource_names_subscribe: add.to_vec(),
                resource_names_unsubscribe: drop.to_vec(),
                ..DeltaDiscoveryRequest::default()
            }),
            Protocol::StateOfTheWorld => AnyRequest::Sotw(self.names_request(ty)),
        }
    }

    fn names_request(&mut self, ty: Type) -> DiscoveryRequest {
        let wanted = self.wanted(ty);
        let mut resource_names: Vec<_> = wanted.names.iter().cloned().collect();
        if wanted.wildcard {
            resource_names.push("*".to_owned());
        }
        DiscoveryRequest {
            type_url: ty.url().to_owned(),
            resource_names,
            response_nonce: wanted.nonce.clone(),
            version_info: wanted.version.clone(),
            ..DiscoveryRequest::default()
        }
    }

    /// Takes a response as it came over the wire and answers it.
    pub fn receive(&mut self, push: Push, answer: Answer) -> AnyRequest {
        let ty = push.ty;
        let error_detail = (answer != Answer::Ack).then(|| error("no"));
        match self.protocol {
            Protocol::Delta => {
                let response = wire::delta(push);
                let wanted = self.wanted(ty);
                if answer != Answer::Refuse {
                    for resource in response.resources {
                        assert_eq!(name_and_content(resource.resource.as_ref().unwrap()).0, resource.name);
                        if wanted.wildcard || wanted.names.contains(&resource.name) {
                            let content = name_and_content(resource.resource.as_ref().unwrap()).1;
                            wanted.has.insert(resource.name, (resource.version, content));
                        }
                    }
                    for name in response.removed_resources {
                        wanted.has.remove(&name);
                    }
                }
                AnyRequest::Delta(DeltaDiscoveryRequest {
                    type_url: ty.url().to_owned(),
                    response_nonce: response.nonce,
                    error_detail,
                    ..DeltaDiscoveryRequest::default()
                })
            }
            Protocol::StateOfTheWorld => {
                let response = wire::state_of_the_world(push);
                let wanted = self.wanted(ty);
                wanted.nonce = response.nonce;
                if answer != Answer::Refuse {
                    let resources: BTreeMap<_, _> = response.resources.iter().map(name_and_content).collect();
                    if ty.full_set() {
                        wanted.has.retain(|name, _| resources.contains_key(name));
                    }
                    for (name, content) in resources {
                        if wanted.wildcard || wanted.names.contains(&name) {
                            wanted.has.insert(name, (String::new(), content));
                        }
                    }
                }
                if answer == Answer::Ack {
                    wanted.version = response.version_info;
                }
                AnyRequest::Sotw(DiscoveryRequest { error_detail, ..self.names_request(ty) })
            }
        }
    }

    pub fn has(&self, ty: Type) -> BTreeMap<&str, &str> {
        self.types[&ty].has.iter().map(|(name, (_, content))| (name.as_str(), content.as_str())).collect()
    }

    pub fn wants(&self, ty: Type, name: &str) -> bool {
        self.types[&ty].names.contains(name)
    }

    pub fn wants_all(&self, ty: Type) -> bool {
        self.types[&ty].wildcard
    }
}

fn name_and_content(any: &Any) -> (String, String) {
    let text = String::from_utf8(any.value.clone()).unwrap();
    let (name, content) = text.split_once('|').unwrap();
    (name.to_owned(), content.to_owned())
}
