//! What the watches have brought so far, and the objects that follow from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use mesh_common::resource::{Key, Kind, Object, WorkloadEntry};
use serde_json::Value;

use super::convert::{self, Fact, Written};
use crate::model::{Accounts, Name};
use crate::objects::Objects;

/// A kind that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Watched {
    Pod,
    Node,
    EndpointSlice,
    ServiceAccount,
    Kind(Kind),
}

/// One object of a kind, as far as it matters.
#[derive(Debug)]
pub(super) struct Seen {
    pub namespace: String,
    pub name: String,
    pub resource_version: u64,
    pub fact: Option<Fact>,
}

#[derive(Debug)]
pub(super) enum Change {
    Put(Seen),
    Gone(Seen),
    /// All objects of the kind there are.
    All(Vec<Seen>),
    /// The API server does not know the kind.
    Absent,
}

/// What the status of written objects follows from, beside the model.
#[derive(Debug, Default)]
pub struct View {
    /// The objects' revision.
    pub revision: u64,
    pub written: BTreeMap<Key, Standing>,
}

/// How an object stands in the API server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    pub uid: Option<String>,
    pub generation: Option<i64>,
    pub resource_version: u64,
    /// In which it was read, and its status is written.
    pub api_version: &'static str,
    pub status: Value,
    /// Why it is not taken as it is now.
    pub refused: Vec<String>,
    /// Of a route that is refused.
    pub parents: Value,
    pub left_out: Vec<String>,
}

type Place = (Watched, String, String);

#[derive(Default)]
pub(super) struct Tables {
    facts: BTreeMap<Place, (u64, Fact)>,
    /// Refused objects, beside what they were when they were last taken; and such as are to lose the status that they have.
    refused: BTreeMap<Place, Standing>,
    seen: BTreeMap<Kind, u64>,
    listed: BTreeSet<Watched>,
    current: BTreeMap<Key, Arc<Object>>,
    /// Service accounts, once they are all known, and those of the current revision.
    accounts: Option<Arc<Accounts>>,
    current_accounts: Option<Arc<Accounts>>,
    revision: u64,
}

impl Tables {
    pub fn apply(&mut self, watched: Watched, change: Change) {
        if watched == Watched::ServiceAccount {
            return self.account(change);
        }
        match change {
            Change::Put(seen) => self.put(watched, seen),
            Change::Gone(seen) => {
                self.saw(watched, seen.resource_version);
                let place = (watched, seen.namespace, seen.name);
                self.facts.remove(&place);
                self.refused.remove(&place);
            }
            Change::All(all) => {
                let names: BTreeSet<(String, String)> =
                    all.iter().map(|seen| (seen.namespace.clone(), seen.name.clone())).collect();
                let stays = |(of, namespace, name): &Place| {
                    *of != watched || names.contains(&(namespace.clone(), name.clone()))
                };
                self.facts.retain(|place, _| stays(place));
                self.refused.retain(|place, _| stays(place));
                all.into_iter().for_each(|seen| self.put(watched, seen));
                self.listed.insert(watched);
            }
            Change::Absent => {
                self.facts.retain(|(of, ..), _| *of != watched);
                self.refused.retain(|(of, ..), _| *of != watched);
                self.listed.insert(watched);
            }
        }
    }

    fn account(&mut self, change: Change) {
        let name = |seen: &Seen| Name::new(&seen.namespace, &seen.name);
        match (change, &mut self.accounts) {
            (Change::All(all), accounts) => *accounts = Some(Arc::new(Accounts(all.iter().map(name).collect()))),
            // What it says beside its name is nothing to us.
            (Change::Put(seen), Some(accounts)) if !accounts.0.contains(&name(&seen)) => {
                Arc::make_mut(accounts).0.insert(name(&seen));
            }
            (Change::Gone(seen), Some(accounts)) => drop(Arc::make_mut(accounts).0.remove(&name(&seen))),
            (Change::Absent, accounts) => *accounts = None,
            (Change::Put(_) | Change::Gone(_), _) => {}
        }
    }

    /// Whether every one of these kinds has been listed once.
    pub fn complete(&self, kinds: &[Watched]) -> bool {
        kinds.iter().all(|kind| self.listed.contains(kind))
    }

    fn saw(&mut self, watched: Watched, resource_version: u64) {
        if let Watched::Kind(kind) = watched {
            let newest = self.seen.entry(kind).or_default();
            *newest = resource_version.max(*newest);
        }
    }

    fn put(&mut self, watched: Watched, seen: Seen) {
        self.saw(watched, seen.resource_version);
        let (place, resource_version) = ((watched, seen.namespace, seen.name), seen.resource_version);
        match seen.fact {
            // What it was before stays in force: better the old than nothing.
            Some(Fact::Refused { api_version, reasons, uid, generation, status, parents }) => {
                let standing =
                    Standing { uid, generation, resource_version, api_version, status, ..Standing::default() };
                self.refused.insert(place, Standing { refused: reasons, parents, ..standing });
            }
            Some(Fact::Left { api_version, uid, generation, status }) => {
                self.facts.remove(&place);
                let standing =
                    Standing { uid, generation, resource_version, api_version, status, ..Standing::default() };
                self.refused.insert(place, standing);
            }
            Some(fact) => {
                self.refused.remove(&place);
                self.facts.insert(place, (resource_version, fact));
            }
            None => {
                self.refused.remove(&place);
                self.facts.remove(&place);
            }
        }
    }

    /// The pods that have an address of their own, by address. Two do where one is new and the other's end is not known yet.
    fn pods(&self) -> BTreeMap<IpAddr, Vec<(&str, &str)>> {
        let mut pods: BTreeMap<IpAddr, Vec<(&str, &str)>> = BTreeMap::new();
        for ((_, namespace, name), (_, fact)) in &self.facts {
            if let Fact::Pod(pod) = fact
                && !pod.on_node
            {
                let addresses = &pod.entry.spec.addresses;
                addresses.iter().for_each(|address| pods.entry(*address).or_default().push((namespace, name)));
            }
        }
        pods
    }

    /// The pod of this place, if it has an address of its own.
    fn pod(&self, (namespace, name): &convert::Place) -> Option<(&str, &str)> {
        let place = (Watched::Pod, namespace.clone(), name.clone());
        match self.facts.get_key_value(&place) {
            Some(((_, namespace, name), (_, Fact::Pod(pod)))) if !pod.on_node => Some((namespace, name)),
            _ => None,
        }
    }

    /// The pod as a workload, which is where its node is.
    fn workload(&self, pod: &convert::Pod) -> WorkloadEntry {
        let mut entry = pod.entry.clone();
        let node = (Watched::Node, String::new(), pod.node.clone());
        if let Some((_, Fact::Node(locality))) = self.facts.get(&node) {
            entry.spec.locality = Some(locality.clone()).filter(|locality| !locality.is_empty());
        }
        entry
    }

    /// The objects, at the next revision if they mean something else than before.
    pub fn objects(&mut self) -> Objects {
        let mut objects: BTreeMap<Key, Object> = BTreeMap::new();
        let pods = self.pods();
        // Who has the address answers there, whoever the endpoint says it is; but of several it knows which.
        let called = |address: IpAddr, said: Option<&convert::Place>| {
            let said = said.and_then(|place| self.pod(place));
            match pods.get(&address).map(Vec::as_slice) {
                Some([only]) => Some(*only),
                Some(several) => said.filter(|said| several.contains(said)),
                None => said,
            }
        };
        for (_, fact) in self.facts.values() {
            match fact {
                Fact::Object(Written { object, .. }) | Fact::Service(object) => {
                    objects.insert(object.key(), object.clone());
                }
                Fact::Slice(slice) => {
                    let service = (Watched::Kind(Kind::Service), slice.namespace.clone(), slice.service.clone());
                    let Some((_, Fact::Service(Object::Service(service)))) = self.facts.get(&service) else { continue };
                    if service.spec.selector.is_empty() {
                        let entries = slice.entries(&service.spec.ports, called);
                        let entries = entries.into_iter().map(Object::WorkloadEntry);
                        objects.extend(entries.map(|entry| (entry.key(), entry)));
                    }
                }
                // Below, or none.
                Fact::Pod(_) | Fact::Node(_) | Fact::Left { .. } | Fact::Refused { .. } => {}
            }
        }
        // A pod goes before an entry that somebody wrote under its name: its proxy speaks for it.
        for ((_, namespace, name), (_, fact)) in &self.facts {
            if let Fact::Pod(pod) = fact {
                let key = Key::new(Kind::WorkloadEntry, namespace, name);
                if objects.insert(key.clone(), Object::WorkloadEntry(self.workload(pod))).is_some() {
                    tracing::warn!(workload = %key, "a WorkloadEntry has the name of a pod and is left out");
                }
            }
        }
        self.take(objects)
    }

    fn take(&mut self, objects: BTreeMap<Key, Object>) -> Objects {
        let mut changed = objects.len() != self.current.len() || self.accounts != self.current_accounts;
        let mut next = BTreeMap::new();
        for (key, object) in objects {
            let object = match self.current.get(&key) {
                Some(old) if **old == object => old.clone(),
                Some(old) => {
                    changed |= !same_meaning(old, &object);
                    Arc::new(object)
                }
                None => {
                    changed = true;
                    Arc::new(object)
                }
            };
            next.insert(key, object);
        }
        if changed || self.revision == 0 {
            self.revision += 1;
        }
        self.current = next;
        self.current_accounts.clone_from(&self.accounts);
        Objects {
            revision: self.revision,
            objects: self.current.clone(),
            committed_at: Instant::now(),
            seen: self.seen.clone(),
            accounts: self.current_accounts.clone(),
        }
    }

    pub fn view(&self) -> View {
        let mut written = BTreeMap::new();
        for ((_, namespace, name), (resource_version, fact)) in &self.facts {
            let Fact::Object(Written { object, api_version, status, left_out }) = fact else { continue };
            let standing = Standing {
                uid: object.metadata().uid.clone(),
                generation: object.metadata().generation,
                resource_version: *resource_version,
                api_version,
                status: status.clone(),
                left_out: left_out.clone(),
                ..Standing::default()
            };
            written.insert(Key::new(object.kind(), namespace, name), standing);
        }
        for ((watched, namespace, name), standing) in &self.refused {
            if let Watched::Kind(kind) = watched {
                written.insert(Key::new(*kind, namespace, name), standing.clone());
            }
        }
        View { revision: self.revision, written }
    }
}

/// An object whose status was written is a new version of it that means the same.
fn same_meaning(a: &Object, b: &Object) -> bool {
    let mut b = b.clone();
    b.metadata_mut().resource_version.clone_from(&a.metadata().resource_version);
    *a == b
}

#[cfg(test)]
mod tests;
