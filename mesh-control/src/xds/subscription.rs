//! Which resources of one type a client wants.

use std::collections::BTreeSet;

/// The name that asks for everything.
pub const WILDCARD: &str = "*";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscription {
    wildcard: bool,
    names: BTreeSet<String>,
    /// The client has asked for this type on this stream.
    started: bool,
    /// The client has named something (`*` counts). From then on no names means nothing, and before it everything.
    explicit: bool,
}

/// What a request changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Names asked for, those that were subscribed before among them.
    pub asked: BTreeSet<String>,
    /// Names that are no longer named (a wildcard may still cover them).
    pub dropped: BTreeSet<String>,
    /// The wildcard was asked for.
    pub wildcard_asked: bool,
    pub wildcard_dropped: bool,
    /// This was the first request for the type.
    pub first: bool,
}

impl Subscription {
    pub fn wildcard(&self) -> bool {
        self.wildcard
    }

    pub fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    pub fn started(&self) -> bool {
        self.started
    }

    /// A delta request: names to add and to drop. `implicit` says whether a first request without names means all.
    pub fn change(&mut self, add: &[String], drop: &[String], implicit: bool) -> Changed {
        let first = !std::mem::replace(&mut self.started, true);
        let mut changed = Changed { first, ..Changed::default() };
        if first && implicit && add.is_empty() {
            self.wildcard = true;
            changed.wildcard_asked = true;
        }
        // Dropped before added: a name in both lists stays subscribed.
        for name in drop {
            if name == WILDCARD {
                changed.wildcard_dropped |= std::mem::replace(&mut self.wildcard, false);
            } else if self.names.remove(name) {
                changed.dropped.insert(name.clone());
            }
        }
        for name in add {
            if name == WILDCARD {
                self.wildcard = true;
                changed.wildcard_asked = true;
                changed.wildcard_dropped = false;
            } else {
                self.names.insert(name.clone());
                changed.dropped.remove(name);
                changed.asked.insert(name.clone());
            }
        }
        changed
    }

    /// A state-of-the-world request: all names that the client wants. Only what is new counts as asked.
    pub fn replace(&mut self, names: &[String], implicit: bool) -> Changed {
        let first = !std::mem::replace(&mut self.started, true);
        let wildcard = if names.is_empty() {
            implicit && !self.explicit
        } else {
            self.explicit = true;
            names.iter().any(|name| name == WILDCARD)
        };
        let names: BTreeSet<String> = names.iter().filter(|name| *name != WILDCARD).cloned().collect();
        let changed = Changed {
            asked: names.difference(&self.names).cloned().collect(),
            dropped: self.names.difference(&names).cloned().collect(),
            wildcard_asked: wildcard && !self.wildcard,
            wildcard_dropped: self.wildcard && !wildcard,
            first,
        };
        self.wildcard = wildcard;
        self.names = names;
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        texts(names).into_iter().collect()
    }

    #[test]
    fn a_first_delta_request_without_names_asks_for_everything() {
        let mut subscription = Subscription::default();
        assert!(subscription.change(&[], &[], true).wildcard_asked);
        // Naming something later does not end it, dropping "*" does.
        subscription.change(&texts(&["a"]), &[], true);
        assert!(subscription.wildcard());
        assert!(subscription.change(&[], &texts(&["*"]), true).wildcard_dropped);
        assert!(!subscription.wildcard());
        assert_eq!(subscription.names(), &set(&["a"]));
    }

    #[test]
    fn only_the_first_request_can_be_implicit() {
        let mut subscription = Subscription::default();
        subscription.change(&texts(&["a"]), &[], true);
        subscription.change(&[], &texts(&["a"]), true);
        assert!(!subscription.wildcard());
        let mut by_name_only = Subscription::default();
        by_name_only.change(&[], &[], false);
        assert!(!by_name_only.wildcard());
    }

    #[test]
    fn a_name_in_both_lists_stays() {
        let mut subscription = Subscription::default();
        subscription.change(&texts(&["a"]), &[], true);
        let changed = subscription.change(&texts(&["a"]), &texts(&["a"]), true);
        assert_eq!(changed.asked, set(&["a"]));
        assert!(changed.dropped.is_empty());
        assert_eq!(subscription.names(), &set(&["a"]));
    }

    #[test]
    fn state_of_the_world_names_replace_each_other() {
        let mut subscription = Subscription::default();
        subscription.replace(&texts(&["a", "b"]), true);
        let changed = subscription.replace(&texts(&["b", "c", "c"]), true);
        assert_eq!((changed.asked, changed.dropped), (set(&["c"]), set(&["a"])));
    }

    #[test]
    fn no_names_means_everything_until_something_was_named() {
        let mut subscription = Subscription::default();
        assert!(subscription.replace(&[], true).wildcard_asked);
        let again = subscription.replace(&[], true);
        assert!(!again.wildcard_asked && subscription.wildcard());
        assert!(subscription.replace(&texts(&["a"]), true).wildcard_dropped);
        subscription.replace(&[], true);
        assert!(!subscription.wildcard() && subscription.names().is_empty());
        assert!(subscription.replace(&texts(&["*", "a"]), true).wildcard_asked);
        assert_eq!(subscription.names(), &set(&["a"]));
    }
}
