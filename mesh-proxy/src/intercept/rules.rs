//! From [`Rules`] to the changes that bring them into force.

use std::net::{Ipv4Addr, Ipv6Addr};

use mesh_common::names::PRIORITY_TO_APPLICATION;

use super::expression::{Expressions, Transport};
use super::message::{Attributes, Change, Kind, NLM_F_APPEND, NLM_F_CREATE};
use super::{Cidr, Rules, TABLE};

const OUTPUT: &str = "output";
const PREROUTING: &str = "prerouting";
/// What the proxy sends itself.
const OWN: &str = "own";

pub(super) const CHAINS: [&str; 3] = [OWN, OUTPUT, PREROUTING];

const LOOPBACK: [Cidr; 2] = [
    Cidr { address: std::net::IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), prefix: 8 },
    Cidr { address: std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), prefix: 128 },
];

/// Hooks and priorities of `nat` chains that rewrite destinations, as in `linux/netfilter.h`.
const HOOK_PREROUTING: u32 = 0;
const HOOK_OUTPUT: u32 = 3;
const PRIORITY_DNAT: i32 = -100;

/// Deletes the table, if there is one, in a way that older kernels (before 6.3) know: create it, then delete it.
pub(super) fn delete() -> Vec<Change> {
    vec![new_table(), table(Kind::DeleteTable, 0, "delete")]
}

/// The whole table anew.
pub(super) fn replace(rules: &Rules) -> Vec<Change> {
    let mut changes = delete();
    changes.push(new_table());
    changes.push(chain(OWN, None));
    changes.push(chain(OUTPUT, Some(HOOK_OUTPUT)));
    changes.push(chain(PREROUTING, Some(HOOK_PREROUTING)));
    changes.extend(own(rules).into_iter().map(|expressions| rule(OWN, expressions)));
    changes.extend(output(rules).into_iter().map(|expressions| rule(OUTPUT, expressions)));
    changes.extend(prerouting(rules).into_iter().map(|expressions| rule(PREROUTING, expressions)));
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

fn new_table() -> Change {
    table(Kind::NewTable, NLM_F_CREATE, "create")
}

fn table(kind: Kind, flags: u16, verb: &str) -> Change {
    let attributes = Attributes::new().string(1, TABLE);
    Change { kind, flags, attributes, what: format!("{verb} the nf_tables table `inet {TABLE}`"), module: "nf_tables" }
}

fn chain(name: &str, hook: Option<u32>) -> Change {
    const POLICY_ACCEPT: u32 = 1;
    let mut attributes = Attributes::new().string(1, TABLE).string(3, name);
    if let Some(hook) = hook {
        let hook = Attributes::new().u32(1, hook).u32(2, PRIORITY_DNAT.cast_unsigned());
        attributes = attributes.nested(4, hook).u32(5, POLICY_ACCEPT).string(7, "nat");
    }
    Change {
        kind: Kind::NewChain,
        flags: NLM_F_CREATE,
        attributes,
        what: format!("create the chain `{name}`, which rewrites addresses"),
        module: if hook.is_some() { "nft_chain_nat" } else { "nf_tables" },
    }
}

fn rule(chain: &str, expressions: Expressions) -> Change {
    let Expressions { encoded, module } = expressions;
    Change {
        kind: Kind::NewRule,
        flags: NLM_F_CREATE | NLM_F_APPEND,
        attributes: Attributes::new().string(1, TABLE).string(2, chain).nested(4, encoded),
        what: match module {
            "nft_redir" => format!("redirect connections (a rule of the chain `{chain}`)"),
            _ => format!("add a rule to the chain `{chain}`"),
        },
        module,
    }
}
