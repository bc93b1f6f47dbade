//! What one client knows of one resource type, and what it has to be told.
//!
//! Every name that the client wants is in one of these states: told (acknowledged), in flight (sent, no answer yet),
//! rejected (sent and refused; not sent again before it changes) or pending. Nothing here does I/O or reads a clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use sha2::{Digest, Sha256};

use super::subscription::{Changed, Subscription};
use super::types::Type;
use super::view::{Item, Nack, Protocol, Push, Status, Verdict, View};
use crate::snapshot::{Encoded, short_hex};

#[derive(Debug)]
struct Pending {
    item: Item,
    /// The client has asked for this name and waits for an answer.
    asked: bool,
    /// The earliest revision that may have brought the change.
    since: u64,
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    items: BTreeMap<String, Item>,
    revision: u64,
    /// The earliest revision whose change is among the items.
    since: u64,
    committed_at: Option<Instant>,
    sent_at: Instant,
}

#[derive(Debug)]
pub struct Track {
    ty: Type,
    protocol: Protocol,
    subscription: Subscription,
    told: BTreeMap<String, Item>,
    in_flight: Option<InFlight>,
    rejected: BTreeMap<String, Item>,
    nack: Option<Nack>,
    last_nonce: Option<String>,
    /// To be sent even if the client is believed to know it.
    force: BTreeSet<String>,
    adds: BTreeMap<String, Pending>,
    /// With the earliest revision that may have brought each.
    removals: BTreeMap<String, u64>,
    /// The wildcard was asked for: there must be an answer, even an empty one.
    must_answer: bool,
    /// Commit time of the oldest change that is pending.
    dirty_since: Option<Instant>,
    /// The revision up to which changes have been taken up.
    seen: u64,
}

impl Track {
    /// For a client that is shown this revision first.
    pub fn new(ty: Type, protocol: Protocol, revision: u64) -> Self {
        Self {
            ty,
            protocol,
            subscription: Subscription::default(),
            told: BTreeMap::new(),
            in_flight: None,
            rejected: BTreeMap::new(),
            nack: None,
            last_nonce: None,
            force: BTreeSet::new(),
            adds: BTreeMap::new(),
            removals: BTreeMap::new(),
            must_answer: false,
            dirty_since: None,
            seen: revision,
        }
    }

    /// A delta request's names. `initial` are the versions that the client brought from an earlier stream.
    pub fn subscribe_delta<'a>(
        &mut self,
        view: &dyn View,
        add: &[String],
        drop: &[String],
        initial: impl ExactSizeIterator<Item = (&'a String, &'a String)>,
    ) {
        let changed = self.subscription.change(add, drop, self.ty.full_set());
        if changed.first {
            self.must_answer = changed.wildcard_asked && initial.len() == 0;
            for (name, version) in initial {
                if self.subscription.wildcard() || self.subscription.names().contains(name) {
                    let current = view.get(self.ty, name).filter(|current| current.version == *version);
                    let held = current.unwrap_or_else(|| Arc::new(Encoded::known_as(version.clone())));
                    self.told.insert(name.clone(), Item::Present(held));
                }
            }
        } else {
            // A client that asks again has forgotten, whatever it was sent before. One that drops a name which the
            // wildcard covers must be told what the wildcard says about it.
            self.force.extend(changed.asked.iter().cloned());
            if self.subscription.wildcard() {
                self.force.extend(changed.dropped.iter().cloned());
            }
            if changed.wildcard_asked {
                self.must_answer = true;
                self.force.extend(view.names(self.ty).iter().cloned());
            }
        }
        self.apply(view, changed);
    }

    /// A state-of-the-world request's names.
    pub fn subscribe_all(&mut self, view: &dyn View, names: &[String]) {
        let changed = self.subscription.replace(names, self.ty.full_set());
        self.must_answer |= changed.wildcard_asked;
        self.apply(view, changed);
    }

    fn apply(&mut self, view: &dyn View, changed: Changed) {
        if changed.wildcard_asked || changed.wildcard_dropped || changed.first {
            if changed.wildcard_dropped {
                self.must_answer = false;
            }
            let first = changed.first;
            let names = self.all_names(view);
            self.refresh(view, names, true);
            if first {
                // What the client brought along may be of any age.
                self.adds.values_mut().for_each(|pending| pending.since = 0);
                self.removals.values_mut().for_each(|since| *since = 0);
            }
        } else {
            self.refresh(view, changed.dropped, false);
            self.refresh(view, changed.asked, true);
        }
    }

    /// Brings what is pending up to date with a new view.
    pub fn update(&mut self, view: &dyn View) {
        if !self.subscription.started() {
            self.seen = view.revision();
            return;
        }
        let names = self.all_names(view);
        self.refresh(view, names, false);
        self.seen = view.revision();
        if !self.removals.is_empty() || self.adds.values().any(|pending| !pending.asked) {
            self.dirty_since.get_or_insert(view.committed_at());
        }
    }

    /// Sends a name again, if the client has subscribed to it.
    pub fn restate(&mut self, view: &dyn View, name: &str) {
        if self.subscription.names().contains(name) {
            self.force.insert(name.to_owned());
            self.refresh(view, BTreeSet::from([name.to_owned()]), false);
        }
    }

    /// Takes the client's answer to the response with this nonce; `rejection` is its error message.
    pub fn answer(&mut self, view: &dyn View, nonce: &str, rejection: Option<&str>, now: Instant) -> Option<Verdict> {
        let InFlight { items, revision, committed_at, .. } = self.in_flight.take_if(|sent| sent.nonce == nonce)?;
        if let Some(message) = rejection {
            let names = items.keys().cloned().collect();
            self.rejected.extend(items);
            self.nack = Some(Nack { message: message.to_owned(), at: now, revision });
            // Some of it may have changed while it was under way.
            self.refresh(view, names, false);
            self.settle_nack();
            return Some(Verdict { ty: self.ty, rejection: Some(message.to_owned()), committed_at });
        }
        for (name, item) in items {
            let named = self.subscription.names().contains(&name);
            if named || self.subscription.wildcard() && matches!(item, Item::Present(_)) {
                self.told.insert(name, item);
            } else {
                self.told.remove(&name);
            }
        }
        self.settle_nack();
        Some(Verdict { ty: self.ty, rejection: None, committed_at })
    }

    /// Makes a response of what is new or asked for, `limit` bytes at most (or one resource). `only_asked` leaves out
    /// what the client has not asked for itself.
    pub fn push_adds(&mut self, only_asked: bool, nonce: String, revision: u64, now: Instant, limit: usize) -> Push {
        let whole = self.sends_full_set();
        let mut size = 0;
        let mut items = BTreeMap::new();
        let mut caused = false;
        let mut since = u64::MAX;
        for (name, pending) in &self.adds {
            if only_asked && !pending.asked {
                continue;
            }
            size += name.len() + pending.item.encoded().map_or(0, |encoded| encoded.any.value.len());
            if size > limit && !items.is_empty() && !whole {
                break;
            }
            caused |= !pending.asked;
            since = since.min(pending.since);
            items.insert(name.clone(), pending.item.clone());
        }
        self.adds.retain(|name, _| !items.contains_key(name));
        self.must_answer = false;
        self.push(items, (caused, since), nonce, revision, now)
    }

    pub fn push_removals(&mut self, nonce: String, revision: u64, now: Instant) -> Push {
        let removals = std::mem::take(&mut self.removals);
        let since = removals.values().copied().min().unwrap_or(u64::MAX);
        let items = removals.into_keys().map(|name| (name, Item::Absent)).collect();
        self.push(items, (true, since), nonce, revision, now)
    }

    fn push(
        &mut self,
        mut items: BTreeMap<String, Item>,
        (caused, since): (bool, u64),
        nonce: String,
        revision: u64,
        now: Instant,
    ) -> Push {
        for name in items.keys() {
            self.force.remove(name);
        }
        if self.sends_full_set() {
            // The client's answer will be about these too.
            for (name, item) in std::mem::take(&mut self.rejected) {
                items.entry(name).or_insert(item);
            }
        } else {
            self.rejected.retain(|name, _| !items.contains_key(name));
        }
        let (resources, version) = match self.protocol {
            Protocol::Delta => (present(&items), String::new()),
            Protocol::StateOfTheWorld => {
                let mut all = self.told.clone();
                all.extend(self.rejected.clone());
                all.extend(items.clone());
                let version = digest(&all);
                (present(if self.ty.full_set() { &all } else { &items }), version)
            }
        };
        let removed = match self.protocol {
            Protocol::Delta => {
                items.iter().filter(|(_, item)| **item == Item::Absent).map(|(name, _)| name.clone()).collect()
            }
            Protocol::StateOfTheWorld => Vec::new(),
        };
        let committed_at = self.dirty_since.filter(|_| caused);
        if self.adds.is_empty() && self.removals.is_empty() {
            self.dirty_since = None;
        }
        self.last_nonce = Some(nonce.clone());
        self.in_flight = Some(InFlight { nonce: nonce.clone(), items, revision, since, committed_at, sent_at: now });
        Push { ty: self.ty, nonce, revision, version, resources, removed }
    }

    fn sends_full_set(&self) -> bool {
        self.protocol == Protocol::StateOfTheWorld && self.ty.full_set()
    }

    /// Works out again what is pending for these names. `asked`: the client waits for them.
    fn refresh(&mut self, view: &dyn View, mut names: BTreeSet<String>, asked: bool) {
        let wild = self.subscription.wildcard().then(|| view.names(self.ty));
        let wild = wild.as_deref();
        // What was rejected in one response is tried again when any part of it has changed: a client may have taken
        // all of the response but the part that was wrong, or nothing of it.
        let changed =
            |name: &String| self.rejected.get(name).is_some_and(|rejected| *rejected != self.desired(view, wild, name));
        if names.iter().any(changed) {
            for name in std::mem::take(&mut self.rejected).into_keys() {
                self.force.insert(name.clone());
                names.insert(name);
            }
        }
        for name in names {
            self.refresh_one(view, wild, name, asked);
        }
    }

    fn refresh_one(&mut self, view: &dyn View, wild: Option<&BTreeSet<String>>, name: String, asked: bool) {
        let pending = self.adds.remove(&name);
        let asked = pending.as_ref().is_some_and(|pending| pending.asked) || asked;
        let before = [pending.map(|pending| pending.since), self.removals.remove(&name)].into_iter().flatten().min();
        let since = before.unwrap_or(self.seen + 1);
        let explicit = self.subscription.names().contains(&name);
        if !explicit && wild.is_none() {
            self.forget(&name);
            return;
        }
        let desired = self.desired(view, wild, &name);
        let refused = self.rejected.get(&name) == Some(&Item::Absent);
        if refused && !explicit && !matches!(self.told.get(&name), Some(Item::Present(_))) {
            // The client refused to hear that there is nothing, and has stopped asking.
            self.rejected.remove(&name);
            self.settle_nack();
        }
        let in_flight = self.in_flight.as_ref().and_then(|sent| sent.items.get(&name));
        let told = self.told.get(&name);
        let believed = in_flight.or_else(|| self.rejected.get(&name)).or(told);
        let needed = match believed {
            _ if self.force.contains(&name) => true,
            Some(believed) => *believed != desired,
            None => explicit || matches!(desired, Item::Present(_)),
        };
        if !needed {
            return;
        }
        let held = [believed, told].into_iter().flatten().any(|item| matches!(item, Item::Present(_)));
        if desired == Item::Absent && (held || !explicit) {
            self.removals.insert(name, since);
        } else {
            self.adds.insert(name, Pending { item: desired, asked, since });
        }
    }

    fn desired(&self, view: &dyn View, wild: Option<&BTreeSet<String>>, name: &str) -> Item {
        let wanted = self.subscription.names().contains(name) || wild.is_some_and(|names| names.contains(name));
        wanted.then(|| view.get(self.ty, name)).flatten().map_or(Item::Absent, Item::Present)
    }

    fn forget(&mut self, name: &str) {
        self.told.remove(name);
        self.rejected.remove(name);
        self.force.remove(name);
        self.settle_nack();
    }

    /// A rejection is over when nothing of what was rejected is left to mend, unless it is being tried again.
    fn settle_nack(&mut self) {
        if self.rejected.is_empty() && self.force.is_empty() && self.in_flight.is_none() {
            self.nack = None;
        }
    }

    /// Every name that the client wants or has heard of.
    fn all_names(&self, view: &dyn View) -> BTreeSet<String> {
        let mut names = self.subscription.names().clone();
        if self.subscription.wildcard() {
            names.extend(view.names(self.ty).iter().cloned());
        }
        let sent = self.in_flight.iter().flat_map(|sent| sent.items.keys());
        let heard = self.told.keys().chain(self.rejected.keys()).chain(sent);
        names.extend(heard.chain(self.adds.keys()).chain(self.removals.keys()).chain(&self.force).cloned());
        names
    }

    pub fn ty(&self) -> Type {
        self.ty
    }

    pub fn has_adds(&self) -> bool {
        self.must_answer || !self.adds.is_empty()
    }

    pub fn has_asked(&self) -> bool {
        self.must_answer || self.adds.values().any(|pending| pending.asked)
    }

    pub fn has_removals(&self) -> bool {
        !self.removals.is_empty()
    }

    pub fn has_rejected(&self) -> bool {
        !self.rejected.is_empty()
    }

    /// When the response that waits for an answer was sent.
    pub fn in_flight_since(&self) -> Option<Instant> {
        self.in_flight.as_ref().map(|sent| sent.sent_at)
    }

    /// What the response that waits for an answer changes.
    pub fn in_flight_names(&self) -> Vec<String> {
        self.in_flight.iter().flat_map(|sent| sent.items.keys().cloned()).collect()
    }

    /// The newest revision of whose changes none is left to be acknowledged. What the client has refused is not waited
    /// for: it keeps what it had before.
    pub fn acknowledged(&self) -> u64 {
        let pending = self.adds.values().map(|pending| pending.since).chain(self.removals.values().copied());
        let oldest = pending.chain(self.in_flight.as_ref().map(|sent| sent.since)).min();
        oldest.map_or(self.seen, |since| self.seen.min(since.saturating_sub(1)))
    }

    pub fn last_nonce(&self) -> Option<&str> {
        self.last_nonce.as_deref()
    }

    pub fn nack(&self) -> Option<&Nack> {
        self.nack.as_ref()
    }

    pub fn subscription(&self) -> &Subscription {
        &self.subscription
    }

    /// Names that the client wants, those under a wildcard among them.
    pub fn subscribed_count(&self) -> usize {
        let names = self.subscription.names();
        if !self.subscription.wildcard() {
            return names.len();
        }
        let resources = self.resources();
        resources.len() + names.iter().filter(|name| !resources.contains_key(name.as_str())).count()
    }

    /// Resources that were sent, acknowledged or not.
    pub fn sent_count(&self) -> usize {
        let sent = self.in_flight.iter().flat_map(|sent| &sent.items);
        let new = sent.filter(|(name, item)| {
            matches!(item, Item::Present(_)) && !matches!(self.told.get(*name), Some(Item::Present(_)))
        });
        self.acked_count() + new.count()
    }

    pub fn acked_count(&self) -> usize {
        self.told.values().filter(|item| matches!(item, Item::Present(_))).count()
    }

    /// Every resource that the client has or should have, with how far it has come.
    pub fn resources(&self) -> BTreeMap<&str, (&Arc<Encoded>, Status)> {
        let told = self.told.iter().map(|(name, item)| (name, item, Status::Synced));
        let pending = self.adds.iter().map(|(name, pending)| (name, &pending.item, Status::NotSent));
        let sent = self.in_flight.iter().flat_map(|sent| &sent.items);
        let sent = sent.map(|(name, item)| (name, item, Status::Stale));
        let rejected = self.rejected.iter().map(|(name, item)| (name, item, Status::Error));
        let all = told.chain(pending).chain(sent).chain(rejected);
        all.filter_map(|(name, item, status)| Some((name.as_str(), (item.encoded()?, status)))).collect()
    }
}

fn present(items: &BTreeMap<String, Item>) -> Vec<(String, Arc<Encoded>)> {
    items.iter().filter_map(|(name, item)| Some((name.clone(), item.encoded()?.clone()))).collect()
}

/// One version for a set of resources.
fn digest(items: &BTreeMap<String, Item>) -> String {
    let mut hash = Sha256::new();
    for (name, encoded) in items.iter().filter_map(|(name, item)| Some((name, item.encoded()?))) {
        hash.update(name.as_bytes());
        hash.update([0]);
        hash.update(encoded.version.as_bytes());
        hash.update([0]);
    }
    short_hex(&hash.finalize())
}
