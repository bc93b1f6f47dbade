//! The way back: what carries the mark of datagrams is routed to this machine itself, whatever its address, so that it
//! comes in where it can be handed over. One routing table with one route, and one rule that leads to it, for each family.

use std::io;

use super::message::Attributes;
use super::{Error, netlink};

use mesh_common::names::{DATAGRAM_MARK, port};

const NETLINK_ROUTE: i32 = 0;

/// Ours alone: the number of the port that datagrams are handed to.
const TABLE: u32 = port::OUTBOUND as u32;
/// After the rule for this machine's own addresses, before those of everybody else.
const PRIORITY: u32 = port::OUTBOUND as u32;

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EPERM: i32 = 1;
const EEXIST: i32 = 17;
const EAFNOSUPPORT: i32 = 97;
const EOPNOTSUPP: i32 = 95;

/// The kernel has no such family, or no rules for it.
const UNKNOWN: [i32; 2] = [EAFNOSUPPORT, EOPNOTSUPP];

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const FAMILIES: [(u8, &str); 2] = [(AF_INET, "IPv4"), (AF_INET6, "IPv6")];

/// Adds rule and route; those that are there already stay.
pub(super) fn add() -> Result<(), Error> {
    for (family, name) in FAMILIES {
        let what = format!("route datagrams of the mesh back to this machine ({name})");
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let errnos = [change(RTM_NEWROUTE, flags, &route(family)?)?, change(RTM_NEWRULE, flags, &rule(family))?];
        for errno in errnos {
            // A family that is off has no datagrams either.
            let off: &[i32] = if family == AF_INET6 { &UNKNOWN } else { &[] };
            check(errno, &[&[EEXIST], off].concat(), &what)?;
        }
    }
    Ok(())
}

/// Not an error if there is nothing.
pub(super) fn remove() -> Result<(), Error> {
    for (family, name) in FAMILIES {
        let what = format!("remove the route of datagrams ({name})");
        for errno in [change(RTM_DELRULE, 0, &rule(family))?, change(RTM_DELROUTE, 0, &route(family)?)?] {
            check(errno, &[&[ENOENT, ESRCH], &UNKNOWN[..]].concat(), &what)?;
        }
    }
    Ok(())
}

fn check(errno: i32, fine: &[i32], what: &str) -> Result<(), Error> {
    match errno {
        0 => Ok(()),
        EPERM => Err(Error::Permission),
        errno if fine.contains(&errno) => Ok(()),
        errno => Err(Error::Refused { what: what.to_owned(), error: io::Error::from_raw_os_error(errno) }),
    }
}

/// `fib_rule_hdr`, then its attributes: what has the mark looks into our table.
fn rule(family: u8) -> Vec<u8> {
    const FRA_PRIORITY: u16 = 6;
    const FRA_FWMARK: u16 = 10;
    const FRA_TABLE: u16 = 15;
    const FR_ACT_TO_TBL: u8 = 1;
    const RT_TABLE_UNSPEC: u8 = 0;
    let header = [family, 0, 0, 0, RT_TABLE_UNSPEC, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
    let attributes = Attributes::new()
        .bytes(FRA_PRIORITY, &PRIORITY.to_ne_bytes())
        .bytes(FRA_FWMARK, &DATAGRAM_MARK.to_ne_bytes())
        .bytes(FRA_TABLE, &TABLE.to_ne_bytes());
    [&header[..], attributes.encoded()].concat()
}

/// `rtmsg`, then its attributes: every address is local.
fn route(family: u8) -> Result<Vec<u8>, Error> {
    const RTA_OIF: u16 = 4;
    const RTA_TABLE: u16 = 15;
    const RTPROT_STATIC: u8 = 4;
    const RT_SCOPE_HOST: u8 = 254;
    const RTN_LOCAL: u8 = 2;
    const RT_TABLE_UNSPEC: u8 = 0;
    let loopback = nix::net::if_::if_nametoindex("lo").map_err(|error| Error::Netlink(error.into()))?;
    let header = [family, 0, 0, 0, RT_TABLE_UNSPEC, RTPROT_STATIC, RT_SCOPE_HOST, RTN_LOCAL, 0, 0, 0, 0];
    let attributes = Attributes::new().bytes(RTA_OIF, &loopback.to_ne_bytes()).bytes(RTA_TABLE, &TABLE.to_ne_bytes());
    Ok([&header[..], attributes.encoded()].concat())
}

/// The error number of one change, 0 if it was made.
fn change(kind: u16, flags: u16, body: &[u8]) -> Result<i32, Error> {
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
    // Sequence number, and the kernel fills in the port.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    let answers = netlink::ask(NETLINK_ROUTE, &message)?;
    let answer = answers.first().ok_or_else(|| Error::Netlink(io::Error::other("the kernel does not answer")))?;
    Ok(answer.errno)
}
