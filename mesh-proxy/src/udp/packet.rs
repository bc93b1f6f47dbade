//! Replies as IP packets: a datagram that comes from an address which is no machine's.

use std::net::{IpAddr, SocketAddr};

const UDP: u8 = 17;
const HOPS: u8 = 64;
const UDP_HEADER: usize = 8;

/// `None`: it does not fit into a packet, or the addresses are of two families.
pub(super) fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(UDP_HEADER + payload.len()).ok()?;
    let mut udp = Vec::with_capacity(usize::from(length));
    udp.extend_from_slice(&from.port().to_be_bytes());
    udp.extend_from_slice(&to.port().to_be_bytes());
    udp.extend_from_slice(&length.to_be_bytes());
    udp.extend_from_slice(&[0, 0]);
    udp.extend_from_slice(payload);
    let (header, pseudo) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            const HEADER: u16 = 20;
            const DO_NOT_FRAGMENT: [u8; 2] = [0x40, 0];
            let mut header = vec![0x45, 0];
            header.extend_from_slice(&HEADER.checked_add(length)?.to_be_bytes());
            header.extend_from_slice(&[0, 0]);
            header.extend_from_slice(&DO_NOT_FRAGMENT);
            // The kernel fills in the checksum of the header.
            header.extend_from_slice(&[HOPS, UDP, 0, 0]);
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
            let mut pseudo = [from.octets(), to.octets()].concat();
            pseudo.extend_from_slice(&[0, UDP]);
            pseudo.extend_from_slice(&length.to_be_bytes());
            (header, pseudo)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend_from_slice(&length.to_be_bytes());
            header.extend_from_slice(&[UDP, HOPS]);
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
            let mut pseudo = [from.octets(), to.octets()].concat();
            pseudo.extend_from_slice(&u32::from(length).to_be_bytes());
            pseudo.extend_from_slice(&[0, 0, 0, UDP]);
            (header, pseudo)
        }
        _ => return None,
    };
    let sum = checksum(&[&pseudo, &udp]);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    Some([header, udp].concat())
}

/// RFC 768: the complement of the one's complement sum; zero would mean that there is none. Every part but the last has an
/// even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !u16::try_from(sum).unwrap_or(0) {
        0 => 0xffff,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn headers_are_those_of_the_rfcs() {
        let packet = datagram(at("10.0.0.1:53"), at("10.0.0.2:4660"), b"abc").unwrap();
        assert_eq!(packet.len(), 31);
        assert_eq!(packet[..4], [0x45, 0, 0, 31]);
        assert_eq!(packet[12..20], [10, 0, 0, 1, 10, 0, 0, 2]);
        assert_eq!(packet[20..26], [0, 53, 0x12, 0x34, 0, 11]);
        assert_eq!(packet[28..], *b"abc");
        let packet = datagram(at("[fd00::1]:53"), at("[fd00::2]:4660"), b"abc").unwrap();
        assert_eq!(packet[..8], [0x60, 0, 0, 0, 0, 11, 17, 64]);
        assert_eq!(packet.len(), 51);
    }

    /// With its checksum in it, everything sums up to all ones.
    #[test]
    fn the_checksum_makes_the_sum_whole() {
        for payload in [&b""[..], b"a", b"ab", &[0xff; 999]] {
            let packet = datagram(at("[fd00::1]:53"), at("[fd00::2]:4660"), payload).unwrap();
            let mut pseudo = packet[8..40].to_vec();
            pseudo.extend_from_slice(&[0, 0, packet[4], packet[5], 0, 0, 0, 17]);
            // What is left to complement is zero, which is written as all ones.
            assert_eq!(checksum(&[&pseudo, &packet[40..]]), 0xffff, "{payload:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_no_packet() {
        assert!(datagram(at("10.0.0.1:1"), at("10.0.0.2:1"), &[0; 65_507]).is_some());
        assert!(datagram(at("10.0.0.1:1"), at("10.0.0.2:1"), &[0; 65_508]).is_none());
        assert!(datagram(at("[::1]:1"), at("[::1]:1"), &[0; 65_527]).is_some());
        assert!(datagram(at("[::1]:1"), at("[::1]:1"), &[0; 65_528]).is_none());
        assert!(datagram(at("10.0.0.1:1"), at("[::1]:1"), b"").is_none());
    }
}
