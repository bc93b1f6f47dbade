//! What policies say of a connection by its addresses alone: before a byte of it is read, and before the handshake that
//! would tell who the peer is.

use std::net::SocketAddr;

use super::{Refusal, both};
use crate::config::{Authorization, Condition, Gate, GateAction, Policy};

/// Why the connection is refused for its addresses or its port, whoever the peer is and whatever it says. `None` if it may
/// not be, and also if it is refused but for no address: then the peer is told so in its own protocol.
pub fn refused_at_once(
    authorization: &Authorization,
    peer: SocketAddr,
    destination: SocketAddr,
) -> Option<Refusal<'_>> {
    let enforced = || authorization.gates.iter().filter(|gate| gate.is_in_force());
    if enforced().any(|gate| refusal(gate, None).is_some()) {
        return None;
    }
    enforced().find_map(|gate| refusal(gate, Some((peer, destination))))
}

/// The addresses, if they are to count.
type Addresses = Option<(SocketAddr, SocketAddr)>;

fn refusal(gate: &Gate, addresses: Addresses) -> Option<Refusal<'_>> {
    let matches = |policy: &Policy| both(one_of(&policy.principals, addresses), one_of(&policy.permissions, addresses));
    match gate.action {
        GateAction::Deny => {
            let denies = gate.policies.iter().find(|policy| matches(policy) == Some(true));
            denies.map(|policy| Refusal::Denied(&policy.name))
        }
        GateAction::Allow => {
            gate.policies.iter().all(|policy| matches(policy) == Some(false)).then_some(Refusal::NotAllowed)
        }
        GateAction::Audit => None,
    }
}

/// Whether a condition is met; `None` if that depends on more than is known.
fn holds(condition: &Condition, addresses: Addresses) -> Option<bool> {
    match condition {
        Condition::Any => Some(true),
        Condition::All(all) => all.iter().map(|it| holds(it, addresses)).fold(Some(true), both),
        Condition::OneOf(any) => one_of(any, addresses),
        Condition::Not(condition) => holds(condition, addresses).map(|holds| !holds),
        Condition::Port(range) => addresses.map(|(_, destination)| range.contains(&destination.port())),
        Condition::Destination(range) => addresses.map(|(_, destination)| range.contains(&destination.ip())),
        Condition::Source(range) => addresses.map(|(peer, _)| range.contains(&peer.ip())),
        Condition::Header(_)
        | Condition::Path(_)
        | Condition::Authenticated
        | Condition::Identity(_)
        | Condition::Claim(_) => None,
    }
}

fn one_of(conditions: &[Condition], addresses: Addresses) -> Option<bool> {
    let not = |holds: Option<bool>| holds.map(|holds| !holds);
    not(conditions.iter().map(|it| not(holds(it, addresses))).fold(Some(true), both))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(gates: Vec<(GateAction, Condition, Condition)>) -> Option<String> {
        let gate = |(action, permission, principal)| {
            let policy = Policy { name: "p".to_owned(), permissions: vec![permission], principals: vec![principal] };
            Gate { action, dry_run: false, policies: vec![policy] }
        };
        let authorization = Authorization { gates: gates.into_iter().map(gate).collect() };
        let (peer, destination) = ("10.0.0.9:40000".parse().unwrap(), "10.0.0.5:9080".parse().unwrap());
        refused_at_once(&authorization, peer, destination).map(|it| it.to_string())
    }

    fn source(range: &str) -> Condition {
        Condition::Source(range.parse().unwrap())
    }

    #[test]
    fn addresses_and_ports_refuse() {
        use GateAction::{Allow, Deny};
        let denied = Some("denied by the policy p".to_owned());
        assert_eq!(refused(vec![(Deny, Condition::Any, source("10.0.0.0/8"))]), denied);
        assert_eq!(refused(vec![(Deny, Condition::Port(9080..=9080), Condition::Any)]), denied);
        assert_eq!(refused(vec![(Deny, Condition::Any, source("192.0.2.0/24"))]), None);
        let allowed = Some("allowed by no policy".to_owned());
        assert_eq!(refused(vec![(Allow, Condition::Any, source("192.0.2.0/24"))]), allowed);
        assert_eq!(refused(vec![(Allow, Condition::Any, source("10.0.0.0/8"))]), None);
        let both = Condition::All(vec![source("192.0.2.0/24"), Condition::Authenticated]);
        assert_eq!(refused(vec![(Allow, Condition::Any, both)]), allowed);
    }

    #[test]
    fn what_may_still_decide_is_waited_for() {
        use GateAction::{Allow, Deny};
        let both = Condition::All(vec![source("10.0.0.0/8"), Condition::Authenticated]);
        assert_eq!(refused(vec![(Deny, Condition::Any, both)]), None);
        assert_eq!(refused(vec![(Allow, Condition::Any, Condition::Authenticated)]), None);
        // Refused whatever its addresses are: over HTTP that is answered 403.
        assert_eq!(refused(vec![(Deny, Condition::Any, Condition::Any)]), None);
        let nothing = Condition::Not(Box::new(Condition::Any));
        assert_eq!(refused(vec![(Allow, Condition::Any, nothing), (Deny, Condition::Any, source("10.0.0.0/8"))]), None);
    }
}
