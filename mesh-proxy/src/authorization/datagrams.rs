//! Policies as rules about addresses and ports alone, for datagrams: of somebody without an identity, who speaks no HTTP.
//!
//! In: the gates before a workload's byte streams. Out: what the kernel can decide by itself, with the same outcome as
//! [`super::decide`] has for such a byte stream.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::config::{Authorization, Condition, GateAction, Policy};

/// More rules than this are not written; then nothing comes in. The kernel takes so many in one transaction, by a socket whose
/// buffers are as it makes them.
const MAX_RULES: usize = 200;

/// What is asked of a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// The source is, or is not, in this range.
    Source(IpNet, bool),
    Destination(IpNet, bool),
    Port(RangeInclusive<u16>),
}

/// All of its tests must hold. None: everything matches.
pub type Rule = Vec<Test>;

/// What a datagram has to pass, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Barrier {
    /// What matches one of the rules is let in; else, what matches one is dropped.
    pub lets_in: bool,
    pub rules: Vec<Rule>,
}

/// Lets nothing in.
pub fn closed() -> Barrier {
    Barrier { lets_in: true, rules: Vec::new() }
}

/// The gates that are in force, each as a barrier. If they would need too many rules, one that lets nothing in.
pub fn barriers(authorization: &Authorization) -> Vec<Barrier> {
    let in_force = authorization.gates.iter().filter(|gate| gate.is_in_force());
    let barrier = |lets_in: bool, policies: &[Policy]| {
        // What is not certain never lets anybody in.
        let unknown = !lets_in;
        let mut rules = Vec::new();
        for policy in policies {
            let principals = any(&policy.principals, true, unknown)?;
            let permissions = any(&policy.permissions, true, unknown)?;
            rules.extend(product(principals, &permissions)?);
        }
        Some(Barrier { lets_in, rules })
    };
    let all: Option<Vec<_>> = in_force.map(|gate| barrier(gate.action == GateAction::Allow, &gate.policies)).collect();
    let count = |all: &Vec<Barrier>| all.iter().map(|it| it.rules.len()).sum::<usize>() <= MAX_RULES;
    all.filter(count).unwrap_or_else(|| vec![closed()])
}

/// Rules of which one matches exactly if the condition is `wanted`, or not certain where that counts too. `None`: too many.
fn rules(condition: &Condition, wanted: bool, unknown: bool) -> Option<Vec<Rule>> {
    let constant = |holds: bool| if holds { vec![Vec::new()] } else { Vec::new() };
    Some(match condition {
        Condition::Any => constant(wanted),
        // Nobody has proven anything.
        Condition::Authenticated | Condition::Identity(_) => constant(!wanted),
        Condition::Header(_) | Condition::Path(_) | Condition::Claim(_) => constant(unknown),
        Condition::Not(condition) => return rules(condition, !wanted, unknown),
        Condition::All(conditions) if wanted => return all(conditions, wanted, unknown),
        Condition::All(conditions) => return any(conditions, wanted, unknown),
        Condition::OneOf(conditions) if wanted => return any(conditions, wanted, unknown),
        Condition::OneOf(conditions) => return all(conditions, wanted, unknown),
        Condition::Source(range) => vec![vec![Test::Source(*range, wanted)]],
        Condition::Destination(range) => vec![vec![Test::Destination(*range, wanted)]],
        Condition::Port(range) if wanted => vec![vec![Test::Port(range.clone())]],
        Condition::Port(range) => {
            let below = range.start().checked_sub(1).map(|end| 0..=end);
            let above = range.end().checked_add(1).map(|start| start..=u16::MAX);
            below.into_iter().chain(above).map(|range| vec![Test::Port(range)]).collect()
        }
    })
}

fn any(conditions: &[Condition], wanted: bool, unknown: bool) -> Option<Vec<Rule>> {
    let mut found = Vec::new();
    for condition in conditions {
        found.extend(rules(condition, wanted, unknown)?);
        if found.len() > MAX_RULES {
            return None;
        }
    }
    Some(found)
}

fn all(conditions: &[Condition], wanted: bool, unknown: bool) -> Option<Vec<Rule>> {
    let mut found = vec![Vec::new()];
    for condition in conditions {
        found = product(found, &rules(condition, wanted, unknown)?)?;
    }
    Some(found)
}

fn product(left: Vec<Rule>, right: &[Rule]) -> Option<Vec<Rule>> {
    if left.len().checked_mul(right.len())? > MAX_RULES {
        return None;
    }
    Some(left.iter().flat_map(|left| right.iter().map(|right| [left.as_slice(), right].concat())).collect())
}

/// Whether a datagram is let in: what the kernel makes of the barriers.
pub fn lets_in(barriers: &[Barrier], source: SocketAddr, destination: SocketAddr) -> bool {
    let holds = |test: &Test| match test {
        Test::Source(range, within) => range.contains(&source.ip()) == *within,
        Test::Destination(range, within) => range.contains(&destination.ip()) == *within,
        Test::Port(range) => range.contains(&destination.port()),
    };
    barriers.iter().all(|barrier| barrier.rules.iter().any(|rule| rule.iter().all(holds)) == barrier.lets_in)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::authorization::{Subject, addresses, decide};
    use crate::config::{Gate, StringMatch};

    fn condition() -> impl Strategy<Value = Condition> {
        let range = prop::sample::select(vec!["10.0.0.0/8", "10.0.0.9/32", "0.0.0.0/0", "fd00::/8", "fd00::9/128"]);
        let leaf = prop_oneof![
            Just(()).prop_map(|()| Condition::Any),
            Just(()).prop_map(|()| Condition::Authenticated),
            Just(()).prop_map(|()| Condition::Identity(StringMatch::Exact("spiffe://a".to_owned()))),
            Just(()).prop_map(|()| Condition::Path(StringMatch::Exact("/".to_owned()))),
            range.clone().prop_map(|it| Condition::Source(it.parse().unwrap())),
            range.prop_map(|it| Condition::Destination(it.parse().unwrap())),
            (0_u16..4, 0_u16..4).prop_map(|(a, b)| Condition::Port(a.min(b)..=a.max(b))),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 1..3).prop_map(Condition::All),
                prop::collection::vec(inner.clone(), 1..3).prop_map(Condition::OneOf),
                inner.prop_map(|it| Condition::Not(Box::new(it))),
            ]
        })
    }

    fn gate() -> impl Strategy<Value = Gate> {
        let policy = (prop::collection::vec(condition(), 1..3), prop::collection::vec(condition(), 1..3))
            .prop_map(|(permissions, principals)| Policy { name: "p".to_owned(), permissions, principals });
        (prop::bool::ANY, prop::collection::vec(policy, 0..3)).prop_map(|(allow, policies)| {
            let action = if allow { GateAction::Allow } else { GateAction::Deny };
            Gate { action, dry_run: false, policies }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// The kernel's rules let in what the policies let in, and what is refused at once is refused anyway.
        #[test]
        fn rules_decide_as_policies_do(
            gates in prop::collection::vec(gate(), 0..3),
            source in prop::sample::select(vec!["10.0.0.9", "10.1.0.1", "192.0.2.1"]),
            port in 0_u16..5,
            v6 in prop::bool::ANY,
            identity in prop::sample::select(vec![None, Some("spiffe://a"), Some("spiffe://b")]),
        ) {
            let authorization = Authorization { gates };
            let (peer, destination): (SocketAddr, SocketAddr) = match v6 {
                true => ("[fd00::9]:4000".parse().unwrap(), SocketAddr::new("fd00::5".parse().unwrap(), port)),
                false => (SocketAddr::new(source.parse().unwrap(), 4000), SocketAddr::new("10.0.0.5".parse().unwrap(), port)),
            };
            let subject = Subject { peer, destination, identity: None, request: None, claims: None };
            let refused = decide(&authorization, &subject).refused.is_some();
            let barriers = barriers(&authorization);
            prop_assert_eq!(lets_in(&barriers, peer, destination), !refused, "{:?}", barriers);
            let known = decide(&authorization, &Subject { identity, ..subject }).refused.is_some();
            prop_assert!(known || addresses::refused_at_once(&authorization, peer, destination).is_none());
        }
    }

    #[test]
    fn what_needs_too_many_rules_lets_nothing_in() {
        let ports = |from: u16| Condition::OneOf((0..100).map(|it| Condition::Port(from + it..=from + it)).collect());
        let policy = Policy { name: "p".to_owned(), permissions: vec![ports(1)], principals: vec![ports(1)] };
        let gates = vec![Gate { action: GateAction::Deny, dry_run: false, policies: vec![policy] }];
        let barriers = barriers(&Authorization { gates });
        assert_eq!(barriers, [closed()]);
        assert!(!lets_in(&barriers, "10.0.0.9:1".parse().unwrap(), "10.0.0.5:9".parse().unwrap()));
    }
}
