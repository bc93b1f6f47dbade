//! From [`Rules`] to the changes that bring them into force.

use std::net::{Ipv4Addr, Ipv6Addr};

use mesh_common::names::{DATAGRAM_MARK, PRIORITY_TO_APPLICATION, VIRTUAL_RANGES};

use super::expression::{Expressions, Transport};
use super::message::{Attributes, Change, Kind, NLM_F_APPEND, NLM_F_CREATE};
use super::{Cidr, Rules, TABLE};

const OUTPUT: &str = "output";
pub(super) const PREROUTING: &str = "prerouting";
/// What the proxy sends itself.
const OWN: &str = "own";

/// Datagrams of the application, before they are routed, and the same when they come back in.
const DATAGRAMS: &str = "datagrams";
const ARRIVING_DATAGRAMS: &str = "arriving-datagrams";

pub(super) const CHAINS: [&str; 3] = [OWN, OUTPUT, PREROUTING];
/// Where datagrams are handed over as well.
pub(super) const UDP_CHAINS: [&str; 2] = [DATAGRAMS, ARRIVING_DATAGRAMS];

const LOOPBACK: [Cidr; 2] = [
    Cidr { address: std::net::IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), prefix: 8 },
    Cidr { address: std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), prefix: 128 },
];

/// Hooks and priorities as in `linux/netfilter.h`.
const HOOK_PREROUTING: u32 = 0;
const HOOK_OUTPUT: u32 = 3;
const PRIORITY_DNAT: i32 = -100;
const PRIORITY_MANGLE: i32 = -150;

/// A chain that the kernel calls.
#[derive(Clone, Copy)]
pub(super) struct Hook {
    pub(super) hook: u32,
    pub(super) priority: i32,
    /// What it does to packets, by the kernel's word: `nat`, `route` or `filter`.
    pub(super) kind: &'static str,
}

/// Deletes the table, if there is one, in a way that older kernels (before 6.3) know: create it, then delete it.
pub(super) fn delete() -> Vec<Change> {
    delete_table(TABLE)
}

pub(super) fn delete_table(name: &str) -> Vec<Change> {
    vec![new_table(name), table(name, Kind::DeleteTable, 0, "delete")]
}

/// The whole table anew.
pub(super) fn replace(rules: &Rules) -> Vec<Change> {
    let mut changes = delete();
    changes.push(new_table(TABLE));
    changes.push(chain(TABLE, OWN, None));
    changes.push(chain(TABLE, OUTPUT, Some(Hook { hook: HOOK_OUTPUT, priority: PRIORITY_DNAT, kind: "nat" })));
    changes.push(chain(TABLE, PREROUTING, Some(Hook { hook: HOOK_PREROUTING, priority: PRIORITY_DNAT, kind: "nat" })));
    changes.extend(own(rules).into_iter().map(|expressions| rule(TABLE, OWN, expressions)));
    changes.extend(output(rules).into_iter().map(|expressions| rule(TABLE, OUTPUT, expressions)));
    changes.extend(prerouting(rules).into_iter().map(|expressions| rule(TABLE, PREROUTING, expressions)));
    if rules.udp {
        let out = Hook { hook: HOOK_OUTPUT, priority: PRIORITY_MANGLE, kind: "route" };
        let back = Hook { hook: HOOK_PREROUTING, priority: PRIORITY_MANGLE, kind: "filter" };
        changes.push(chain(TABLE, DATAGRAMS, Some(out)));
        changes.push(chain(TABLE, ARRIVING_DATAGRAMS, Some(back)));
        changes.extend(datagrams(rules).into_iter().map(|expressions| rule(TABLE, DATAGRAMS, expressions)));
        let arriving = arriving_datagrams(rules).into_iter();
        changes.extend(arriving.map(|expressions| rule(TABLE, ARRIVING_DATAGRAMS, expressions)));
    }
    changes
}

/// The proxy calls the machine's own address when the application calls a service that it is part of. Such a packet never
/// passes prerouting, so it is taken to the inbound port here: what waits there speaks mutual TLS, the application does not.
/// What it means for the application has a priority of its own.
fn own(rules: &Rules) -> Vec<Expressions> {
    let mut chain: Vec<_> = LOOPBACK.iter().map(|range| Expressions::new().destination(range).leave()).collect();
    chain.push(Expressions::new().priority(PRIORITY_TO_APPLICATION).leave());
    chain.extend(inbound(rules));
    chain
}

fn output(rules: &Rules) -> Vec<Expressions> {
    let mut chain = vec![Expressions::new().mark(rules.mark).goto(OWN)];
    chain.extend(rules.exclude_uids.iter().map(|uid| Expressions::new().uid(*uid).goto(OWN)));
    if let Some(port) = rules.dns_port {
        for transport in [Transport::Udp, Transport::Tcp] {
            chain.push(Expressions::new().transport(transport).destination_port(53).counter().redirect(port));
        }
    }
    chain
        .extend(LOOPBACK.iter().chain(&rules.exclude_cidrs).map(|range| Expressions::new().destination(range).leave()));
    chain.extend(
        rules
            .exclude_outbound_ports
            .iter()
            .map(|port| Expressions::new().transport(Transport::Tcp).destination_port(*port).leave()),
    );
    chain.push(Expressions::new().transport(Transport::Tcp).counter().redirect(rules.outbound_port));
    chain
}

fn prerouting(rules: &Rules) -> Vec<Expressions> {
    inbound(rules)
}

/// TCP to this machine goes to the inbound port, but for the excluded ports and the proxy's own. A connection to the
/// inbound port itself must not look redirected: the proxy would call itself.
fn inbound(rules: &Rules) -> Vec<Expressions> {
    let mut excluded = rules.exclude_inbound_ports.clone();
    excluded.extend([rules.inbound_port, rules.outbound_port]);
    excluded.sort_unstable();
    excluded.dedup();
    let mut chain: Vec<_> = excluded
        .into_iter()
        .map(|port| Expressions::new().transport(Transport::Tcp).destination_port(port).leave())
        .collect();
    chain.push(
        Expressions::new().transport(Transport::Tcp).destination_is_local().counter().redirect(rules.inbound_port),
    );
    chain
}

/// UDP to virtual addresses gets a mark, by which it is routed back to this machine ([`super::routing`]). All other UDP is left
/// alone.
fn datagrams(rules: &Rules) -> Vec<Expressions> {
    let udp = || Expressions::new().transport(Transport::Udp);
    let mut chain = vec![Expressions::new().mark(rules.mark).leave()];
    chain.extend(rules.exclude_uids.iter().map(|uid| Expressions::new().uid(*uid).leave()));
    // It is redirected already.
    chain.extend(rules.dns_port.map(|_| udp().destination_port(53).leave()));
    chain.extend(rules.exclude_cidrs.iter().map(|range| Expressions::new().destination(range).leave()));
    chain.extend(rules.exclude_outbound_ports.iter().map(|port| udp().destination_port(*port).leave()));
    let ranges = VIRTUAL_RANGES.map(|(address, prefix)| Cidr { address, prefix });
    chain.extend(ranges.iter().map(|range| udp().destination(range).counter().set_mark(DATAGRAM_MARK)));
    chain
}

/// Where no proxy listens they go no further: a socket of the application would get what is meant for others.
fn arriving_datagrams(rules: &Rules) -> [Expressions; 2] {
    let marked = || Expressions::new().mark(DATAGRAM_MARK).transport(Transport::Udp);
    [marked().hand_over(rules.outbound_port).accept(), marked().drop()]
}

pub(super) fn new_table(name: &str) -> Change {
    table(name, Kind::NewTable, NLM_F_CREATE, "create")
}

fn table(name: &str, kind: Kind, flags: u16, verb: &str) -> Change {
    let attributes = Attributes::new().string(1, name);
    Change { kind, flags, attributes, what: format!("{verb} the nf_tables table `inet {name}`"), module: "nf_tables" }
}

pub(super) fn chain(table: &str, name: &str, hook: Option<Hook>) -> Change {
    const POLICY_ACCEPT: u32 = 1;
    let mut attributes = Attributes::new().string(1, table).string(3, name);
    if let Some(Hook { hook, priority, kind }) = hook {
        let hook = Attributes::new().u32(1, hook).u32(2, priority.cast_unsigned());
        attributes = attributes.nested(4, hook).u32(5, POLICY_ACCEPT).string(7, kind);
    }
    Change {
        kind: Kind::NewChain,
        flags: NLM_F_CREATE,
        attributes,
        what: match hook {
            Some(Hook { kind: "nat", .. }) => format!("create the chain `{name}`, which rewrites addresses"),
            _ => format!("create the chain `{name}`"),
        },
        module: match hook {
            Some(Hook { kind: "nat", .. }) => "nft_chain_nat",
            _ => "nf_tables",
        },
    }
}

pub(super) fn rule(table: &str, chain: &str, expressions: Expressions) -> Change {
    let Expressions { encoded, module } = expressions;
    Change {
        kind: Kind::NewRule,
        flags: NLM_F_CREATE | NLM_F_APPEND,
        attributes: Attributes::new().string(1, table).string(2, chain).nested(4, encoded),
        what: match module {
            "nft_tproxy" => format!("hand datagrams over (a rule of the chain `{chain}`)"),
            "nft_redir" => format!("redirect connections (a rule of the chain `{chain}`)"),
            _ => format!("add a rule to the chain `{chain}`"),
        },
        module,
    }
}
