//! Maglev ("Maglev: A Fast and Reliable Software Network Load Balancer", 3.4): a table in which each endpoint has as many
//! slots as its weight says, filled by each one's own order of preference, so that few slots change hands when one goes.

use twox_hash::XxHash64;

use super::Member;

#[derive(Debug)]
pub(super) struct Maglev {
    /// Indexes of endpoints.
    slots: Box<[u32]>,
}

impl Maglev {
    /// `size` is a prime number, so that each endpoint's steps reach every slot.
    pub(super) fn new(members: &[Member], size: u32) -> Self {
        let mut ordered: Vec<&Member> = members.iter().collect();
        ordered.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let heaviest = ordered.iter().map(|member| member.weight).max().unwrap_or(1);
        let mut turns: Vec<Turn> = ordered.iter().map(|member| Turn::new(member, size)).collect();
        let mut slots: Box<[Option<u32>]> = vec![None; size as usize].into_boxed_slice();
        let mut free = slots.len();
        while free > 0 && !turns.is_empty() {
            for turn in &mut turns {
                // The heaviest takes a slot each round, the rest as often as their weights say.
                turn.credit += turn.weight;
                if turn.credit < u64::from(heaviest) || free == 0 {
                    continue;
                }
                turn.credit -= u64::from(heaviest);
                while slots[turn.at as usize].is_some() {
                    turn.step(size);
                }
                slots[turn.at as usize] = Some(turn.index);
                free -= 1;
            }
        }
        Self { slots: slots.iter().copied().flatten().collect() }
    }

    /// The endpoint of the key, and those that come after it for as long as it can't be had.
    pub(super) fn walk(&self, key: u64) -> impl Iterator<Item = usize> {
        let start = usize::try_from(key % self.slots.len().max(1) as u64).unwrap_or_default();
        let (before, after) = self.slots.split_at(start.min(self.slots.len()));
        after.iter().chain(before).map(|index| *index as usize)
    }
}

/// Where an endpoint looks for its next free slot.
struct Turn {
    index: u32,
    weight: u64,
    credit: u64,
    at: u32,
    skip: u32,
}

impl Turn {
    fn new(member: &Member, size: u32) -> Self {
        let below = |hash: u64, size: u32| u32::try_from(hash % u64::from(size.max(1))).unwrap_or_default();
        Self {
            index: u32::try_from(member.index).unwrap_or_default(),
            weight: u64::from(member.weight),
            credit: 0,
            at: below(XxHash64::oneshot(0, member.key.as_bytes()), size),
            skip: below(XxHash64::oneshot(1, member.key.as_bytes()), size - 1) + 1,
        }
    }

    fn step(&mut self, size: u32) {
        let next = (u64::from(self.at) + u64::from(self.skip)) % u64::from(size);
        self.at = u32::try_from(next).unwrap_or_default();
    }
}
