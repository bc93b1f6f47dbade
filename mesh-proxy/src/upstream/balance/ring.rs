//! Ring hash: each endpoint has many points on a ring, and a key belongs to the endpoint of the next point.
//!
//! How many points an endpoint has depends on its weight and not on how many others there are: when one goes, its keys are
//! spread over the rest and no other key moves.

use twox_hash::XxHash64;

use super::Member;

/// The most points that the heaviest endpoint has, in units of those of the lightest.
const HEAVIEST: u32 = 16;

#[derive(Debug)]
pub(super) struct Ring {
    /// Sorted by hash.
    points: Vec<(u64, u32)>,
}

impl Ring {
    /// Four endpoints of the least weight have `min_size` points, unless all together would have more than `max_size`.
    pub(super) fn new(members: &[Member], min_size: u32, max_size: u32) -> Self {
        let divisor = members.iter().fold(0, |divisor, member| gcd(divisor, member.weight));
        let heaviest = members.iter().map(|member| member.weight).max().unwrap_or(1);
        let unit = f64::from(divisor.max(heaviest.div_ceil(HEAVIEST)).max(1));
        let total: f64 = members.iter().map(|member| f64::from(member.weight) / unit).sum();
        let each = (f64::from(min_size) / 4.0).min(f64::from(max_size) / total);
        let count = |member: &Member| ((f64::from(member.weight) / unit * each).round() as u32).max(1);
        let mut points = Vec::with_capacity(members.iter().map(|member| count(member) as usize).sum());
        let mut name = String::new();
        for (place, member) in members.iter().enumerate() {
            for n in 0..count(member) {
                use std::fmt::Write;
                name.clear();
                // Writing to a string cannot fail.
                let _ = write!(name, "{}_{n}", member.key);
                points.push((XxHash64::oneshot(0, name.as_bytes()), place));
            }
        }
        // Two endpoints at the same point are in the same order, whatever order they came in.
        points.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| members[a.1].key.cmp(&members[b.1].key)));
        // There are at most as many endpoints as addresses of a u32.
        let index = |place: usize| u32::try_from(members[place].index).unwrap_or_default();
        Self { points: points.into_iter().map(|(hash, place)| (hash, index(place))).collect() }
    }

    /// The endpoint of the key, and those that come after it for as long as it can't be had.
    pub(super) fn walk(&self, key: u64) -> impl Iterator<Item = usize> {
        let start = self.points.partition_point(|(hash, _)| *hash < key);
        let (before, after) = self.points.split_at(start);
        after.iter().chain(before).map(|(_, index)| *index as usize)
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
