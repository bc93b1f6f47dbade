//! The nf_tables expressions that the rules are made of, each by its kernel name.
//!
//! A rule is a list of these: loads into register 1 and comparisons of it, then a verdict or a redirect. A comparison
//! that does not hold ends the rule.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::Cidr;
use super::message::{self, Attributes};

const REGISTER: u32 = 1;
const REGISTER_VERDICT: u32 = 0;

const META_PRIORITY: u32 = 2;
const META_MARK: u32 = 3;
const META_INTERFACE: u32 = 4;
const META_SKUID: u32 = 10;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

const VERDICT_RETURN: i32 = -5;
const VERDICT_GOTO: i32 = -4;
const VERDICT_ACCEPT: i32 = 1;
const VERDICT_DROP: i32 = 0;
const VERDICT_JUMP: i32 = -3;

/// Operators of comparisons.
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;

/// Which of a packet's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

/// Transport protocols, as IP numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Transport {
    Tcp = 6,
    Udp = 17,
}

/// Expressions in order, in the encoding of `NFTA_RULE_EXPRESSIONS`.
#[derive(Clone, Debug, Default)]
pub(super) struct Expressions {
    pub(super) encoded: Attributes,
    /// The module of the rarest expression in it.
    pub(super) module: &'static str,
}

impl Expressions {
    pub(super) fn new() -> Self {
        Self { encoded: Attributes::new(), module: "nf_tables" }
    }

    pub(super) fn priority(self, priority: u32) -> Self {
        self.meta(META_PRIORITY).equals(&priority.to_ne_bytes())
    }

    pub(super) fn mark(self, mark: u32) -> Self {
        self.meta(META_MARK).equals(&mark.to_ne_bytes())
    }

    pub(super) fn uid(self, uid: u32) -> Self {
        self.meta(META_SKUID).equals(&uid.to_ne_bytes())
    }

    pub(super) fn transport(self, transport: Transport) -> Self {
        self.meta(META_L4PROTO).equals(&[transport as u8])
    }

    /// The destination port; what came before must be [`Self::transport`].
    pub(super) fn destination_port(self, port: u16) -> Self {
        const BASE_TRANSPORT: u32 = 2;
        self.payload(BASE_TRANSPORT, 2, 2).equals(&port.to_be_bytes())
    }

    pub(super) fn destination(self, range: &Cidr) -> Self {
        const BASE_NETWORK: u32 = 1;
        match range.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(range.prefix)).unwrap_or(0);
                let network = u32::from(address) & mask;
                self.meta(META_NFPROTO)
                    .equals(&[NFPROTO_IPV4])
                    .payload(BASE_NETWORK, 16, 4)
                    .masked(&mask.to_be_bytes())
                    .equals(&network.to_be_bytes())
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(range.prefix)).unwrap_or(0);
                let network = u128::from(address) & mask;
                self.meta(META_NFPROTO)
                    .equals(&[NFPROTO_IPV6])
                    .payload(BASE_NETWORK, 24, 16)
                    .masked(&mask.to_be_bytes())
                    .equals(&network.to_be_bytes())
            }
        }
    }

    /// The destination is an address of this machine.
    pub(super) fn destination_is_local(mut self) -> Self {
        const RESULT_ADDRESS_TYPE: u32 = 3;
        const FLAG_DESTINATION: u32 = 2;
        const RTN_LOCAL: u32 = 2;
        self.module = "nft_fib_inet";
        let data = Attributes::new().u32(1, REGISTER).u32(2, RESULT_ADDRESS_TYPE).u32(3, FLAG_DESTINATION);
        self.expression("fib", data).equals(&RTN_LOCAL.to_ne_bytes())
    }

    /// Counts packets (of a nat chain: connections), for whoever lists the rules.
    pub(super) fn counter(self) -> Self {
        self.expression("counter", Attributes::new().bytes(1, &0u64.to_be_bytes()).bytes(2, &0u64.to_be_bytes()))
    }

    pub(super) fn leave(self) -> Self {
        self.verdict(Attributes::new().u32(1, VERDICT_RETURN.cast_unsigned()))
    }

    pub(super) fn goto(self, chain: &str) -> Self {
        self.verdict(Attributes::new().u32(1, VERDICT_GOTO.cast_unsigned()).string(2, chain))
    }

    pub(super) fn accept(self) -> Self {
        self.verdict(Attributes::new().u32(1, VERDICT_ACCEPT.cast_unsigned()))
    }

    /// Counts what it drops.
    pub(super) fn drop(self) -> Self {
        self.counter().verdict(Attributes::new().u32(1, VERDICT_DROP.cast_unsigned()))
    }

    pub(super) fn jump(self, chain: &str) -> Self {
        self.verdict(Attributes::new().u32(1, VERDICT_JUMP.cast_unsigned()).string(2, chain))
    }

    /// It came in by the interface with this index.
    pub(super) fn interface(self, index: u32) -> Self {
        self.meta(META_INTERFACE).equals(&index.to_ne_bytes())
    }

    /// It answers what this machine has sent. Not so where connections are not tracked.
    pub(super) fn replies(mut self) -> Self {
        const KEY_DIRECTION: u32 = 1;
        const REPLY: u8 = 1;
        self.module = "nft_ct";
        self.expression("ct", Attributes::new().u32(1, REGISTER).u32(2, KEY_DIRECTION)).equals(&[REPLY])
    }

    pub(super) fn family(self, v6: bool) -> Self {
        self.meta(META_NFPROTO).equals(&[if v6 { NFPROTO_IPV6 } else { NFPROTO_IPV4 }])
    }

    /// The source or destination address is in a range, or is not; what came before must be [`Self::family`] of the same.
    pub(super) fn address(self, side: Side, range: IpNet, within: bool) -> Self {
        const BASE_NETWORK: u32 = 1;
        let bytes = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let (network, mask) = (bytes(range.network()), bytes(range.netmask()));
        let offset = match (side, range) {
            (Side::Source, IpNet::V4(_)) => 12,
            (Side::Destination, IpNet::V4(_)) => 16,
            (Side::Source, IpNet::V6(_)) => 8,
            (Side::Destination, IpNet::V6(_)) => 24,
        };
        let length = u32::try_from(network.len()).unwrap_or(0);
        let loaded = self.payload(BASE_NETWORK, offset, length).masked(&mask);
        if within { loaded.equals(&network) } else { loaded.compare(NOT_EQUAL, &network) }
    }

    /// The destination port is in a range; what came before must be [`Self::transport`].
    pub(super) fn destination_ports(self, range: &RangeInclusive<u16>) -> Self {
        const BASE_TRANSPORT: u32 = 2;
        let loaded = self.payload(BASE_TRANSPORT, 2, 2);
        loaded.compare(AT_LEAST, &range.start().to_be_bytes()).compare(AT_MOST, &range.end().to_be_bytes())
    }

    pub(super) fn set_mark(self, mark: u32) -> Self {
        let value = Attributes::new().bytes(1, &mark.to_ne_bytes());
        let load = Attributes::new().u32(1, REGISTER).nested(2, value);
        self.expression("immediate", load).expression("meta", Attributes::new().u32(2, META_MARK).u32(3, REGISTER))
    }

    /// To the socket of this machine that listens at this port of a loopback address, as it is: with its own destination.
    pub(super) fn hand_over(mut self, port: u16) -> Self {
        /// Of either family.
        const NFPROTO_UNSPECIFIED: u32 = 0;
        self.module = "nft_tproxy";
        let value = Attributes::new().bytes(1, &port.to_be_bytes());
        let load = Attributes::new().u32(1, REGISTER).nested(2, value);
        let tproxy = Attributes::new().u32(1, NFPROTO_UNSPECIFIED).u32(3, REGISTER);
        self.expression("immediate", load).expression("tproxy", tproxy)
    }

    /// To this machine, at another port: 127.0.0.1 or ::1 for what it sends, the receiving interface's address for
    /// what it gets.
    pub(super) fn redirect(mut self, port: u16) -> Self {
        const FLAG_PORT_GIVEN: u32 = 2;
        self.module = "nft_redir";
        let value = Attributes::new().bytes(1, &port.to_be_bytes());
        let load = Attributes::new().u32(1, REGISTER).nested(2, value);
        let redirect = Attributes::new().u32(1, REGISTER).u32(2, REGISTER).u32(3, FLAG_PORT_GIVEN);
        self.expression("immediate", load).expression("redir", redirect)
    }

    fn meta(self, key: u32) -> Self {
        self.expression("meta", Attributes::new().u32(1, REGISTER).u32(2, key))
    }

    fn payload(self, base: u32, offset: u32, length: u32) -> Self {
        self.expression("payload", Attributes::new().u32(1, REGISTER).u32(2, base).u32(3, offset).u32(4, length))
    }

    fn masked(self, mask: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).unwrap_or(0);
        let data = Attributes::new()
            .u32(1, REGISTER)
            .u32(2, REGISTER)
            .u32(3, length)
            .nested(4, Attributes::new().bytes(1, mask))
            .nested(5, Attributes::new().bytes(1, &vec![0; mask.len()]));
        self.expression("bitwise", data)
    }

    fn equals(self, value: &[u8]) -> Self {
        self.compare(EQUAL, value)
    }

    fn compare(self, operator: u32, value: &[u8]) -> Self {
        let data = Attributes::new().u32(1, REGISTER).u32(2, operator).nested(3, Attributes::new().bytes(1, value));
        self.expression("cmp", data)
    }

    fn verdict(self, verdict: Attributes) -> Self {
        let data = Attributes::new().nested(2, verdict);
        self.expression("immediate", Attributes::new().u32(1, REGISTER_VERDICT).nested(2, data))
    }

    fn expression(mut self, name: &str, data: Attributes) -> Self {
        const LIST_ELEMENT: u16 = 1;
        self.encoded = self.encoded.nested(LIST_ELEMENT, Attributes::new().string(1, name).nested(2, data));
        self
    }
}

/// Whether a rule, as the kernel tells it, is a redirect to this port.
pub(super) fn redirects_to(rule: &[u8], port: u16) -> bool {
    let mut loaded = None;
    for (_, element) in message::attributes(rule) {
        let data = message::attribute(element, 2).unwrap_or_default();
        match message::attribute(element, 1) {
            Some(b"immediate\0") => loaded = message::attribute(data, 2).and_then(|it| message::attribute(it, 1)),
            Some(b"redir\0") => return loaded == Some(&port.to_be_bytes()),
            _ => {}
        }
    }
    false
}
