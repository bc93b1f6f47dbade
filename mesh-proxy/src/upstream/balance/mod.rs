//! Which of a cluster's endpoints comes next. Knows nothing of connections: what it must know of an endpoint at the moment
//! of the choice it asks its [`Peers`], which are its clock too.

pub(super) mod ewma;
mod locality;
mod maglev;
mod ring;
mod slow_start;
mod weighted;

use std::time::{Duration, Instant};

use self::locality::Chosen;
use self::maglev::Maglev;
use self::ring::Ring;
use self::weighted::Weighted;
use crate::config::{Balancer, Cluster, Endpoint, Endpoints, Spread};

/// The endpoints as they are now, by their place among those that the balance was made of.
pub(super) trait Peers {
    /// How many requests it has.
    fn load(&self, index: usize) -> usize;
    /// It may be chosen.
    fn is_available(&self, index: usize) -> bool;
    /// Another one is better, such as one that this request has not tried yet.
    fn is_avoided(&self, index: usize) -> bool;
    /// What one more request costs, by how long the endpoint takes to answer and by what it has for its weight, 1 being an
    /// average one.
    fn cost(&self, index: usize, weight: f64, now: Instant, decay: Duration) -> f64;
    /// When it was first there.
    fn since(&self, index: usize) -> Instant;
    fn now(&self) -> Instant;
}

/// The choice among the endpoints of a cluster.
#[derive(Debug)]
pub(super) struct Balance {
    /// The best priority first.
    levels: Vec<Level>,
    spread: Spread,
    /// Until when there are endpoints that start slowly.
    warming_until: Option<Instant>,
}

/// The endpoints of one priority.
#[derive(Debug)]
struct Level {
    /// Of those that are healthy as far as the control plane knows.
    healthy: Picker,
    /// Of all, for when too few are left, and if that makes a difference.
    everyone: Option<Picker>,
    all: usize,
}

/// An endpoint to make a table of.
struct Member {
    index: usize,
    weight: u32,
    /// What its place in the table comes from.
    key: String,
}

#[derive(Debug)]
struct Picker {
    members: Vec<usize>,
    rule: Rule,
}

#[derive(Debug)]
enum Rule {
    RoundRobin(Weighted),
    Random(Weighted),
    LeastRequest(Weighted),
    PeakEwma(Weighted, Duration),
    RingHash(Ring),
    Maglev(Maglev),
}

impl Balance {
    /// `since` is when each endpoint was first there.
    pub(super) fn new(cluster: &Cluster, endpoints: &Endpoints, since: impl Fn(usize) -> Instant) -> Self {
        let spread = cluster.spread;
        let all: Vec<(usize, &Endpoint)> = endpoints.endpoints.iter().map(|it| &**it).enumerate().collect();
        let mut priorities: Vec<u32> = all.iter().map(|(_, it)| it.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let of = |priority| all.iter().filter(|(_, it)| it.priority == priority).copied().collect::<Vec<_>>();
        let levels: Vec<Level> = priorities.into_iter().filter_map(|it| Level::new(cluster, &of(it))).collect();
        let warming_until = spread.slow_start.and_then(|slow| {
            let members = levels.iter().flat_map(|level| &level.healthy.members);
            members.map(|index| since(*index) + slow.window).max()
        });
        Self { levels, spread, warming_until }
    }

    /// The place of the next endpoint. `key` is what requests have in common that belong together, if the balancer goes by
    /// that. With one priority and no panic threshold nobody is asked but the endpoint that is chosen.
    pub(super) fn pick(&self, key: Option<u64>, peers: &impl Peers) -> Option<usize> {
        let Chosen { level, panic } = match self.levels.as_slice() {
            [] => return None,
            [_] if self.spread.panic_percent == 0 => Chosen { level: 0, panic: false },
            levels => {
                let available = |index: &&usize| peers.is_available(**index);
                let counts =
                    |level: usize| (levels[level].healthy.members.iter().filter(available).count(), levels[level].all);
                locality::choose(levels.len(), counts, self.spread.panic_percent, fastrand::f64())?
            }
        };
        let picker = match &self.levels[level] {
            Level { everyone: Some(everyone), .. } if panic => everyone,
            Level { healthy, .. } => healthy,
        };
        let usable = |index: usize| panic || peers.is_available(index);
        let fresh = |index: usize| usable(index) && !peers.is_avoided(index);
        let others = || self.levels.iter().map(|it| &it.healthy).filter(|it| !std::ptr::eq(*it, picker));
        self.pick_from(picker, key, peers, fresh)
            .or_else(|| others().find_map(|other| self.pick_from(other, key, peers, fresh)))
            .or_else(|| picker.pick(key, peers, usable))
    }

    /// Endpoints that start slowly are passed over more often the younger they are beside the oldest.
    fn pick_from(
        &self,
        picker: &Picker,
        key: Option<u64>,
        peers: &impl Peers,
        fits: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let (Some(slow), Some(until)) = (&self.spread.slow_start, self.warming_until) else {
            return picker.pick(key, peers, fits);
        };
        let now = peers.now();
        if now >= until {
            return picker.pick(key, peers, fits);
        }
        let factor = |index: usize| slow_start::factor(slow, now.saturating_duration_since(peers.since(index)));
        let most = picker.members.iter().filter(|it| fits(**it)).map(|it| factor(*it)).fold(0.0, f64::max);
        picker.pick(key, peers, |index| fits(index) && fastrand::f64() * most < factor(index))
    }

    /// How many endpoints there are to choose from.
    pub(super) fn len(&self) -> usize {
        self.levels.iter().map(|level| level.healthy.members.len()).sum()
    }

    /// It wants to know how long requests take.
    pub(super) fn decay(&self) -> Option<Duration> {
        match self.levels.first()?.healthy.rule {
            Rule::PeakEwma(_, decay) => Some(decay),
            _ => None,
        }
    }
}

impl Level {
    fn new(cluster: &Cluster, all: &[(usize, &Endpoint)]) -> Option<Self> {
        let picker = |usable: &dyn Fn(&Endpoint) -> bool| {
            let weights = if cluster.spread.locality_weights {
                let endpoints: Vec<_> = all.iter().map(|(_, it)| *it).collect();
                locality::weights(&endpoints, usable)
            } else {
                all.iter().map(|(_, it)| if usable(it) { it.weight } else { 0 }).collect()
            };
            let weighted = all.iter().zip(weights).filter(|(_, weight)| *weight > 0);
            let member = |(&(index, endpoint), weight): (&(usize, &Endpoint), u32)| Member {
                index,
                weight,
                key: endpoint.address.to_string(),
            };
            Picker::new(cluster.balancer, weighted.map(member).collect())
        };
        let healthy = picker(&|it| it.healthy);
        let count = all.iter().filter(|(_, it)| it.weight > 0).count();
        let panics = cluster.spread.panic_percent > 0 && healthy.members.len() < count;
        let everyone = panics.then(|| picker(&|_| true));
        (count > 0).then_some(Self { healthy, everyone, all: count })
    }
}

impl Picker {
    fn new(balancer: Balancer, members: Vec<Member>) -> Self {
        let weighted = || Weighted::new(&members.iter().map(|it| (it.index, it.weight)).collect::<Vec<_>>());
        let rule = match balancer {
            Balancer::RoundRobin => Rule::RoundRobin(weighted()),
            Balancer::Random => Rule::Random(weighted()),
            Balancer::LeastRequest => Rule::LeastRequest(weighted()),
            Balancer::PeakEwma { decay } => Rule::PeakEwma(weighted(), decay),
            Balancer::RingHash { min_size, max_size } => Rule::RingHash(Ring::new(&members, min_size, max_size)),
            Balancer::Maglev { size } => Rule::Maglev(Maglev::new(&members, size)),
        };
        Self { members: members.into_iter().map(|it| it.index).collect(), rule }
    }

    /// One that fits, if there is any.
    fn pick(&self, key: Option<u64>, peers: &impl Peers, fits: impl Fn(usize) -> bool) -> Option<usize> {
        match self.members.as_slice() {
            [] => return None,
            [only] => return Some(*only).filter(|it| fits(*it)),
            _ => (),
        }
        let tries = 2 * self.members.len();
        let found = match &self.rule {
            Rule::RoundRobin(them) => (0..tries).map(|_| them.round_robin().index).find(|it| fits(*it)),
            Rule::Random(them) => (0..tries).map(|_| them.random().index).find(|it| fits(*it)),
            Rule::LeastRequest(them) => {
                let next = |_| them.cheaper_of_two(|it, weight| peers.load(it) as f64 / weight).index;
                (0..tries).map(next).find(|it| fits(*it))
            }
            Rule::PeakEwma(them, decay) => {
                let now = peers.now();
                let next = |_| them.cheaper_of_two(|it, weight| peers.cost(it, weight, now, *decay)).index;
                (0..tries).map(next).find(|it| fits(*it))
            }
            Rule::RingHash(ring) => ring.walk(key.unwrap_or_else(|| fastrand::u64(..))).find(|it| fits(*it)),
            Rule::Maglev(table) => table.walk(key.unwrap_or_else(|| fastrand::u64(..))).find(|it| fits(*it)),
        };
        // What chance has not found.
        let start = fastrand::usize(..self.members.len());
        let (before, after) = self.members.split_at(start);
        found.or_else(|| after.iter().chain(before).copied().find(|it| fits(*it)))
    }
}

#[cfg(test)]
mod tests;
