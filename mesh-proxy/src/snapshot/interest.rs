//! The table of subscriptions: what is asked for, what was answered, and what may be forgotten. Time is passed in, as
//! seconds since the store was made.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use mesh_common::names::LISTENER_INBOUND;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use super::Used;
use super::link::{Link, Moment};
use super::resource::{Holder, Key, Resource, Type};

/// A name that was not used for so long is unsubscribed from, in seconds.
const IDLE: u32 = 600;
/// Names of all types together, so that an application that asks for all kinds of names cannot fill the memory.
const MAX_NAMES: usize = 10_000;
/// A removed resource that something refers to stays for at least so long, in seconds: a request that has chosen its
/// route may not have looked up its cluster yet.
const LINGER: u32 = 5;

#[derive(Debug)]
pub(super) struct Interest {
    link: Link,
    names: [HashMap<Arc<str>, Subscription>; Type::ALL.len()],
    /// Subscriptions that the control plane has not been told of: `true` to subscribe, `false` to unsubscribe.
    pending: BTreeMap<(usize, Arc<str>), bool>,
    /// What each listener, table and cluster refers to, for as long as anybody holds it.
    references: Vec<(Holder, Vec<Key>)>,
    /// Removed by the control plane, but still in the snapshot, since then.
    retiring: Vec<(Type, Arc<str>, u32)>,
}

#[derive(Debug)]
struct Subscription {
    answer: Answer,
    version: String,
    used: Arc<Used>,
    waiters: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Waiting,
    Present,
    Absent,
    /// It was sent, but could not be decoded.
    Refused,
}

/// What is known about a name now.
#[derive(Debug)]
pub(super) enum Asked {
    Present,
    Absent,
    Unknown,
    /// Until the answer is there; and since when.
    Wait(OwnedNotified, Moment),
}

/// Names to tell the control plane, of one type.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Subscriptions {
    pub(crate) subscribe: Vec<String>,
    pub(crate) unsubscribe: Vec<String>,
    /// Of names that are here.
    pub(crate) versions: Vec<(String, String)>,
}

impl Interest {
    pub(super) fn new(link: Link) -> Self {
        Self { link, names: Default::default(), pending: BTreeMap::new(), references: Vec::new(), retiring: Vec::new() }
    }

    /// Subscribes to a name if it isn't yet. Also returns what had to go to make room.
    pub(super) fn ask(&mut self, ty: Type, name: &str, now: u32) -> (Asked, Vec<Key>) {
        let mut evicted = Vec::new();
        if !self.names[ty as usize].contains_key(name) {
            if self.names.iter().map(HashMap::len).sum::<usize>() >= MAX_NAMES {
                evicted = self.make_room();
                if evicted.is_empty() {
                    return (Asked::Unknown, evicted);
                }
            }
            self.subscribe(ty, name.into(), now);
        }
        let (answers, moment) = (self.link.answers(), self.link.moment());
        let asked = match self.names[ty as usize].get(name) {
            None => Asked::Unknown,
            Some(subscription) => {
                subscription.used.touch(now);
                match subscription.answer {
                    Answer::Present => Asked::Present,
                    Answer::Absent => Asked::Absent,
                    Answer::Refused => Asked::Unknown,
                    Answer::Waiting if !answers => Asked::Unknown,
                    // Made under the lock, so that an answer that comes right after it is released is not missed.
                    Answer::Waiting => Asked::Wait(subscription.waiters.clone().notified_owned(), moment),
                }
            }
        };
        (asked, evicted)
    }

    fn subscribe(&mut self, ty: Type, name: Arc<str>, now: u32) {
        let used = Arc::new(Used::default());
        used.touch(now);
        let subscription =
            Subscription { answer: Answer::Waiting, version: String::new(), used, waiters: Arc::default() };
        self.names[ty as usize].insert(name.clone(), subscription);
        self.pending.insert((ty as usize, name), true);
    }

    /// `None` if nobody is interested in it.
    pub(super) fn present(
        &mut self,
        ty: Type,
        name: &str,
        version: String,
        answered: &mut Vec<Arc<Notify>>,
    ) -> Option<(Arc<str>, Arc<Used>)> {
        let key = self.names[ty as usize].get_key_value(name)?.0.clone();
        let subscription = self.names[ty as usize].get_mut(name)?;
        subscription.answer = Answer::Present;
        subscription.version = version;
        answered.push(subscription.waiters.clone());
        self.retiring.retain(|(retiring_ty, retiring, _)| (*retiring_ty, &**retiring) != (ty, name));
        Some((key, subscription.used.clone()))
    }

    /// Subscribes to what a resource refers to, and remembers that it does.
    pub(super) fn follow(&mut self, resource: &Resource, now: u32) {
        let references = resource.references();
        for (ty, name) in &references {
            if !self.names[*ty as usize].contains_key(name) {
                self.subscribe(*ty, name.clone(), now);
            }
        }
        if let Some(holder) = resource.holder()
            && !references.is_empty()
        {
            self.references.push((holder, references));
        }
    }

    /// Whether the resource may leave the snapshot now.
    pub(super) fn absent(&mut self, ty: Type, name: &str, now: u32, answered: &mut Vec<Arc<Notify>>) -> bool {
        let Some((key, subscription)) = self.names[ty as usize].get_key_value(name) else { return true };
        let was_here = subscription.answer == Answer::Present;
        let key = key.clone();
        let referred = was_here && self.referred().contains(&(ty, key.clone()));
        if let Some(subscription) = self.names[ty as usize].get_mut(name) {
            subscription.answer = Answer::Absent;
            subscription.version = String::new();
            answered.push(subscription.waiters.clone());
        }
        if referred {
            self.retiring.push((ty, key, now));
        }
        !referred
    }

    pub(super) fn refused(&mut self, ty: Type, name: &str, answered: &mut Vec<Arc<Notify>>) {
        if let Some(subscription) = self.names[ty as usize].get_mut(name)
            && subscription.answer != Answer::Present
        {
            subscription.answer = Answer::Refused;
            answered.push(subscription.waiters.clone());
        }
    }

    /// Returns what leaves the snapshot.
    pub(super) fn sweep(&mut self, now: u32) -> Vec<Key> {
        let referred = self.referred();
        let mut gone = Vec::new();
        self.retiring.retain(|(ty, name, since)| {
            let stays = referred.contains(&(*ty, name.clone())) || now.saturating_sub(*since) < LINGER;
            if !stays {
                gone.push((*ty, name.clone()));
            }
            stays
        });
        // What is here is all there is, for as long as nobody can send it again.
        if self.link.answers() {
            let idle = self
                .evictable(&referred)
                .filter(|(last, ..)| now.saturating_sub(*last) >= IDLE)
                .map(|(_, ty, name)| (ty, name))
                .collect::<Vec<_>>();
            gone.extend(self.unsubscribe(idle));
        }
        gone
    }

    /// Drops the least recently used sixteenth: in bulk, so that the search is paid for rarely. While nobody can send a
    /// resource again, only names go that have none.
    fn make_room(&mut self) -> Vec<Key> {
        let referred = self.referred();
        let may_go = |ty: Type, name: &str| self.link.answers() || !self.is_here(ty, name);
        let mut oldest: Vec<_> = self.evictable(&referred).filter(|(_, ty, name)| may_go(*ty, name)).collect();
        oldest.sort_unstable_by_key(|(last, ..)| *last);
        oldest.truncate(MAX_NAMES / 16);
        self.unsubscribe(oldest.into_iter().map(|(_, ty, name)| (ty, name)).collect())
    }

    fn is_here(&self, ty: Type, name: &str) -> bool {
        self.names[ty as usize].get(name).is_some_and(|it| it.answer == Answer::Present)
    }

    fn evictable<'a>(&'a self, referred: &'a HashSet<Key>) -> impl Iterator<Item = (u32, Type, Arc<str>)> + 'a {
        Type::ALL
            .into_iter()
            .flat_map(|ty| self.names[ty as usize].iter().map(move |(name, it)| (ty, name, it)))
            .filter(|(ty, name, _)| {
                (*ty, &***name) != (Type::Listener, LISTENER_INBOUND) && !referred.contains(&(*ty, (*name).clone()))
            })
            .map(|(ty, name, subscription)| (subscription.used.last(), ty, name.clone()))
    }

    fn unsubscribe(&mut self, names: Vec<Key>) -> Vec<Key> {
        for (ty, name) in &names {
            if let Some(subscription) = self.names[*ty as usize].remove(name) {
                subscription.waiters.notify_waiters();
            }
            self.pending.insert((*ty as usize, name.clone()), false);
        }
        names
    }

    /// All that a resource which somebody still holds refers to.
    fn referred(&mut self) -> HashSet<Key> {
        self.references.retain(|(holder, _)| holder.alive());
        self.references.iter().flat_map(|(_, references)| references.iter().cloned()).collect()
    }

    pub(super) fn link(&mut self) -> &mut Link {
        &mut self.link
    }

    /// Those to wake when no answer will come.
    pub(super) fn waiting(&self) -> Vec<Arc<Notify>> {
        let waiting = |it: &&Subscription| it.answer == Answer::Waiting;
        self.names.iter().flat_map(HashMap::values).filter(waiting).map(|it| it.waiters.clone()).collect()
    }

    pub(super) fn subscribed(&self, ty: Type) -> usize {
        self.names[ty as usize].len()
    }

    pub(super) fn has_changes(&self) -> bool {
        !self.pending.is_empty()
    }

    pub(super) fn changes(&mut self) -> Vec<(Type, Subscriptions)> {
        let mut changes: [Subscriptions; Type::ALL.len()] = Default::default();
        for ((ty, name), subscribe) in std::mem::take(&mut self.pending) {
            let list = if subscribe { &mut changes[ty].subscribe } else { &mut changes[ty].unsubscribe };
            list.push(name.as_ref().to_owned());
        }
        Type::ALL.into_iter().zip(changes).filter(|(_, it)| *it != Subscriptions::default()).collect()
    }

    pub(super) fn resubscribe(&mut self) -> Vec<(Type, Subscriptions)> {
        self.pending.clear();
        let of = |ty: Type| {
            let mut all = Subscriptions::default();
            for (name, subscription) in &self.names[ty as usize] {
                all.subscribe.push(name.as_ref().to_owned());
                if subscription.answer == Answer::Present {
                    all.versions.push((name.as_ref().to_owned(), subscription.version.clone()));
                }
            }
            (ty, all)
        };
        Type::ALL.into_iter().map(of).filter(|(_, all)| !all.subscribe.is_empty()).collect()
    }
}
