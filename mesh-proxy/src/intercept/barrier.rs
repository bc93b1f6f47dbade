//! Policies for the datagrams that come in for the application: a table of its own, which the kernel asks before the
//! application gets any of them.
//!
//! What answers the application's own datagrams is always let in, and so is what stays on this machine.

use ipnet::IpNet;

use super::expression::{Expressions, Side, Transport};
use super::message::Change;
use super::rules::{Hook, chain, delete_table, new_table, rule};
use super::{Error, netlink};
use crate::authorization::datagrams::{Barrier, Rule, Test};

/// The table that holds it.
const TABLE: &str = "mesh-policy";
const INPUT: &str = "input";
/// What has to pass the barriers.
const DATAGRAMS: &str = "datagrams";

/// In place of what was there before, at once. Without barriers there is no table.
pub fn guard_datagrams(barriers: &[Barrier]) -> Result<(), Error> {
    netlink::commit(&changes(barriers)?)
}

fn changes(barriers: &[Barrier]) -> Result<Vec<Change>, Error> {
    const HOOK_INPUT: u32 = 1;
    const PRIORITY_FILTER: i32 = 0;
    let mut changes = delete_table(TABLE);
    if barriers.is_empty() {
        return Ok(changes);
    }
    let loopback = nix::net::if_::if_nametoindex("lo").map_err(|error| Error::Netlink(error.into()))?;
    changes.push(new_table(TABLE));
    changes.push(chain(TABLE, DATAGRAMS, None));
    changes.push(chain(TABLE, INPUT, Some(Hook { hook: HOOK_INPUT, priority: PRIORITY_FILTER, kind: "filter" })));
    changes.push(rule(TABLE, INPUT, Expressions::new().transport(Transport::Udp).goto(DATAGRAMS)));
    changes.push(rule(TABLE, DATAGRAMS, Expressions::new().interface(loopback).accept()));
    changes.push(rule(TABLE, DATAGRAMS, Expressions::new().replies().accept()));
    for (index, barrier) in barriers.iter().enumerate() {
        if !barrier.lets_in {
            let matching = barrier.rules.iter().flat_map(expressions);
            changes.extend(matching.map(|matching| rule(TABLE, DATAGRAMS, matching.drop())));
            continue;
        }
        let name = format!("allow-{index}");
        changes.push(chain(TABLE, &name, None));
        let matching = barrier.rules.iter().flat_map(expressions);
        changes.extend(matching.map(|matching| rule(TABLE, &name, matching.leave())));
        changes.push(rule(TABLE, &name, Expressions::new().drop()));
        changes.push(rule(TABLE, DATAGRAMS, Expressions::new().jump(&name)));
    }
    Ok(changes)
}

/// A rule for each family that it can match.
fn expressions(tests: &Rule) -> Vec<Expressions> {
    [false, true].into_iter().filter_map(|v6| of_family(tests, v6)).collect()
}

fn of_family(tests: &Rule, v6: bool) -> Option<Expressions> {
    let mut all = Expressions::new().family(v6);
    for test in tests {
        all = match test {
            Test::Source(range, within) => of_range(all, Side::Source, *range, *within, v6)?,
            Test::Destination(range, within) => of_range(all, Side::Destination, *range, *within, v6)?,
            Test::Port(range) => all.transport(Transport::Udp).destination_ports(range),
        };
    }
    Some(all)
}

/// No address is in a range of the other family.
fn of_range(all: Expressions, side: Side, range: IpNet, within: bool, v6: bool) -> Option<Expressions> {
    match (matches!(range, IpNet::V6(_)) == v6, within) {
        (true, _) => Some(all.address(side, range, within)),
        (false, false) => Some(all),
        (false, true) => None,
    }
}
