//! How much goes on at a time: places that are taken, in all and by each caller, and given back.
//!
//! Counts are kept by the name of what is limited, across configurations. Only what comes while there is a limit is counted, so
//! that all else costs nothing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_common::identity::Identity;

use crate::config::AtATime;
use crate::pace::Buckets;

/// What the application has at the moment.
#[derive(Debug, Default)]
pub struct Occupancy {
    pub connections: Places,
    pub requests: Places,
    pub bandwidth: Buckets,
}

/// The places of all that is limited.
#[derive(Debug, Default)]
pub struct Places {
    /// A caller is remembered by its hash, as in [`RateLimits`](super::RateLimits).
    hasher: RandomState,
    by_name: Mutex<HashMap<String, Arc<Room>>>,
}

/// Why there is no place, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    All(u32),
    Caller(u32),
}

impl Places {
    /// A place among those of all callers; it is not any caller's yet.
    pub fn take(&self, name: &str, limit: &AtATime) -> Result<Place, Full> {
        let room = self.room(name);
        let mut taken = room.taken();
        if let Some(max) = limit.max.filter(|max| taken.all >= *max) {
            return Err(Full::All(max));
        }
        taken.all = taken.all.saturating_add(1);
        drop(taken);
        Ok(Place { room, caller: None })
    }

    /// Makes the place that of a caller. Those without an identity are one.
    pub fn give(&self, place: &mut Place, limit: &AtATime, caller: Option<&Identity>) -> Result<(), Full> {
        let key = self.hasher.hash_one(caller);
        let mut taken = place.room.taken();
        let has = taken.by_caller.get(&key).copied().unwrap_or_default();
        if let Some(max) = limit.per_caller.filter(|max| has >= *max) {
            return Err(Full::Caller(max));
        }
        taken.by_caller.insert(key, has.saturating_add(1));
        drop(taken);
        place.caller = Some(key);
        Ok(())
    }

    fn room(&self, name: &str) -> Arc<Room> {
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        match by_name.get(name) {
            Some(room) => room.clone(),
            None => by_name.entry(name.to_owned()).or_default().clone(),
        }
    }
}

#[derive(Debug, Default)]
struct Room(Mutex<Taken>);

impl Room {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Taken {
    all: u32,
    /// More than zero: callers that have nothing take no memory.
    by_caller: HashMap<u64, u32>,
}

/// Is free again when this is dropped.
#[derive(Debug)]
pub struct Place {
    room: Arc<Room>,
    caller: Option<u64>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.room.taken();
        taken.all = taken.all.saturating_sub(1);
        if let Some(Entry::Occupied(mut has)) = self.caller.map(|key| taken.by_caller.entry(key)) {
            match has.get().checked_sub(1).filter(|left| *left > 0) {
                Some(left) => *has.get_mut() = left,
                None => drop(has.remove()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn caller(account: usize) -> Identity {
        Identity::new("mesh.local", "default", &format!("account-{account}")).unwrap()
    }

    fn enter(places: &Places, limit: &AtATime, who: Option<&Identity>) -> Result<Place, Full> {
        let mut place = places.take("inbound:80", limit)?;
        places.give(&mut place, limit, who)?;
        Ok(place)
    }

    /// Places that are taken, and callers that are known.
    fn left(places: &Places) -> (u32, usize) {
        let room = places.room("inbound:80");
        let taken = room.taken();
        (taken.all, taken.by_caller.len())
    }

    #[test]
    fn a_refused_caller_leaves_no_trace() {
        let places = Places::default();
        let limit = AtATime { max: Some(3), per_caller: Some(1) };
        let first = enter(&places, &limit, Some(&caller(1))).unwrap();
        for _ in 0..5 {
            assert_eq!(enter(&places, &limit, Some(&caller(1))).unwrap_err(), Full::Caller(1));
        }
        let others = [None, Some(caller(2))].map(|who| enter(&places, &limit, who.as_ref()).unwrap());
        assert_eq!(enter(&places, &limit, Some(&caller(3))).unwrap_err(), Full::All(3));
        drop((first, others));
        assert_eq!(left(&places), (0, 0));
    }

    /// Who is in when a limit becomes narrower stays, and counts.
    #[test]
    fn a_limit_that_changes_goes_by_what_is_there() {
        let places = Places::default();
        let wide = AtATime { max: Some(10), per_caller: None };
        let inside: Vec<_> = (0..4).map(|_| enter(&places, &wide, None).unwrap()).collect();
        let narrow = AtATime { max: None, per_caller: Some(2) };
        assert_eq!(enter(&places, &narrow, None).unwrap_err(), Full::Caller(2));
        drop(inside);
        assert!(enter(&places, &narrow, None).is_ok());
    }

    proptest! {
        /// Whoever comes and goes: never more than the limits, never refused with room left, and nothing stays behind.
        #[test]
        fn counts_are_exact(steps in proptest::collection::vec((0..3_usize, any::<bool>()), 0..200)) {
            let places = Places::default();
            let limit = AtATime { max: Some(5), per_caller: Some(3) };
            let mut inside: Vec<(usize, Place)> = Vec::new();
            for (who, comes) in steps {
                let has = inside.iter().filter(|(it, _)| *it == who).count();
                if comes {
                    let entered = enter(&places, &limit, Some(&caller(who)));
                    prop_assert_eq!(entered.is_ok(), inside.len() < 5 && has < 3);
                    inside.extend(entered.ok().map(|place| (who, place)));
                } else if let Some(at) = inside.iter().position(|(it, _)| *it == who) {
                    inside.swap_remove(at);
                }
            }
            inside.clear();
            prop_assert_eq!(left(&places), (0, 0));
        }
    }
}
