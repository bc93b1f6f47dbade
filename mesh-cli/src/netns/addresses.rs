//! The addresses of a fabric, and who has which. Pure bookkeeping.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

pub(super) const IPV4_PREFIX: u8 = 16;
pub(super) const IPV6_PREFIX: u8 = 64;

/// Addresses of one workload, by its number in the fabric. Number 1 is the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) ipv4: Ipv4Addr,
    pub(super) ipv6: Ipv6Addr,
}

pub(super) const GATEWAY: Addresses = addresses(1);

/// 10.77.0.0/16 and fd00:6d65:7368:4d::/64, apart from the virtual addresses of services.
pub(super) const fn addresses(number: u16) -> Addresses {
    let [high, low] = number.to_be_bytes();
    Addresses {
        ipv4: Ipv4Addr::new(10, 77, high, low),
        ipv6: Ipv6Addr::new(0xfd00, 0x6d65, 0x7368, 0x4d, 0, 0, 0, number),
    }
}

/// Numbers in use. A number is given again as late as possible, because peers may still know its former owner.
#[derive(Debug)]
pub(super) struct Pool {
    taken: BTreeSet<u16>,
    last: u16,
}

impl Pool {
    pub(super) fn new() -> Self {
        Self { taken: BTreeSet::new(), last: 1 }
    }

    /// `None`: all are taken.
    pub(super) fn take(&mut self) -> Option<u16> {
        let usable = 2..=u16::MAX - 1;
        let number =
            (self.last.saturating_add(1)..=*usable.end()).chain(usable).find(|number| !self.taken.contains(number))?;
        self.taken.insert(number);
        self.last = number;
        Some(number)
    }

    pub(super) fn give_back(&mut self, number: u16) {
        self.taken.remove(&number);
    }

    pub(super) fn is_unused(&self) -> bool {
        self.taken.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_never_clash_and_return_late() {
        let mut pool = Pool::new();
        assert_eq!((pool.take(), pool.take(), pool.take()), (Some(2), Some(3), Some(4)));
        pool.give_back(3);
        assert_eq!(pool.take(), Some(5));
        for _ in 6..=u16::MAX - 1 {
            assert!(pool.take().is_some());
        }
        assert_eq!((pool.take(), pool.take()), (Some(3), None));
        for number in 2..=u16::MAX - 1 {
            pool.give_back(number);
        }
        assert!(pool.is_unused());
    }

    #[test]
    fn addresses_follow_the_number() {
        assert_eq!(addresses(258).ipv4, Ipv4Addr::new(10, 77, 1, 2));
        assert_eq!(addresses(258).ipv6.to_string(), "fd00:6d65:7368:4d::102");
    }
}
