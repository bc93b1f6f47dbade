//! Which addresses a registration may claim. Callers are sent to whatever it says, so an address that can't be a workload's
//! own, or that is another's, must not get in.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use mesh_common::identity::Identity;
use mesh_common::names;
use mesh_common::resource::{Key, Object, WorkloadEntry};
use tonic::Status;

use super::is_registered;

type Objects = BTreeMap<Key, Arc<Object>>;

/// From where a registration comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A unix socket, hence this machine.
    Unix,
    Ip(IpAddr),
}

impl Origin {
    /// Of an address as the acceptor gives it: `unix`, or an IP address with a port. What is neither counts as remote.
    pub fn parse(address: &str) -> Self {
        match address.parse::<SocketAddr>() {
            Ok(address) => Self::Ip(address.ip().to_canonical()),
            Err(_) if address == "unix" => Self::Unix,
            Err(_) => Self::Ip(Ipv4Addr::UNSPECIFIED.into()),
        }
    }

    fn is_this_machine(self) -> bool {
        match self {
            Self::Unix => true,
            Self::Ip(ip) => ip.is_loopback(),
        }
    }

    /// Whether the caller shows by its connection that it may well have this address.
    fn has(self, address: IpAddr) -> bool {
        match self {
            Self::Unix => true,
            Self::Ip(ip) => ip == address,
        }
    }
}

/// An address that can be one workload's own, seen from where its peers are. The error is the end of a sentence.
pub(super) fn own(text: &str, origin: Origin) -> Result<IpAddr, String> {
    let address = text.parse::<IpAddr>().map_err(|_| format!("{text:?} is not an IP address"))?.to_canonical();
    let (unspecified, broadcast, link_local) = match address {
        // The whole of 0.0.0.0/8 means "this network".
        IpAddr::V4(v4) => (v4.octets()[0] == 0, v4.is_broadcast(), v4.is_link_local()),
        IpAddr::V6(v6) => (v6.is_unspecified(), false, v6.is_unicast_link_local()),
    };
    let advice = "register the address at which other machines reach this workload";
    if unspecified || address.is_multicast() || broadcast {
        return Err(format!("{address} is no address of one host: {advice}"));
    }
    if link_local {
        return Err(format!("{address} is link-local, and means another host on each link: {advice}"));
    }
    if names::is_virtual(address) {
        return Err(format!("{address} is of the range that the mesh gives to services: {advice}"));
    }
    if address.is_loopback() && !origin.is_this_machine() {
        return Err(format!(
            "{address} is loopback, where each caller reaches itself; only a workload on the machine of mesh-control may \
             register it: {advice}"
        ));
    }
    Ok(address)
}

/// Refuses an entry with the address of a service, or with an address and port that another identity's workload holds.
/// `has_stream` says of a registered entry whether a stream speaks for it: one in its grace time gives way to a caller that
/// shows that it has the address.
pub(super) fn refuse_held(
    identity: &Identity,
    origin: Origin,
    key: &Key,
    entry: &WorkloadEntry,
    objects: &Objects,
    has_stream: impl Fn(&Key) -> bool,
) -> Result<(), Status> {
    for (other, object) in objects {
        match object.as_ref() {
            Object::Service(service) => {
                let given = service.spec.cluster_ip.iter().chain(&service.spec.cluster_ips);
                let given = given.filter_map(|ip| ip.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical());
                if let Some(taken) = given.into_iter().find(|ip| entry.spec.addresses.contains(ip)) {
                    return Err(Status::permission_denied(format!(
                        "{taken} is the clusterIP of {other}: register the address at which other machines reach this workload"
                    )));
                }
            }
            Object::WorkloadEntry(held) if other != key && is_registered(object) => {
                let same = key.namespace == other.namespace && identity.service_account == held.spec.service_account;
                let Some(address) = shared(entry, held).filter(|_| !same) else { continue };
                if has_stream(other) || !origin.has(address) {
                    return Err(Status::permission_denied(format!(
                        "{address} with the same port belongs to {other}, of another service account: register an address \
                         or a port of your own, or end that workload first"
                    )));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// An address at which both have the same port.
fn shared(a: &WorkloadEntry, b: &WorkloadEntry) -> Option<IpAddr> {
    let ports = match (Ports::of(a), Ports::of(b)) {
        (Ports::All, Ports::Some(ports)) | (Ports::Some(ports), Ports::All) => !ports.is_empty(),
        (Ports::All, Ports::All) => true,
        (Ports::Some(a), Ports::Some(b)) => a.iter().any(|port| b.contains(port)),
    };
    let address =
        a.spec.addresses.iter().find(|address| b.spec.addresses.iter().any(|b| b.to_canonical() == **address));
    address.copied().filter(|_| ports)
}

enum Ports {
    /// It lists none, and serves those that its services ask for.
    All,
    Some(Vec<u16>),
}

impl Ports {
    fn of(entry: &WorkloadEntry) -> Self {
        let WorkloadEntry { metadata, spec } = entry;
        // The mesh's own label selects nobody.
        let selectable = !spec.service.is_empty() || metadata.labels.keys().any(|key| !key.starts_with("meshctl.dev/"));
        match spec.ports.is_empty() && selectable {
            true => Self::All,
            false => Self::Some(spec.ports.iter().map(|port| port.port).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_told_apart() {
        assert_eq!(Origin::parse("unix"), Origin::Unix);
        assert!(Origin::parse("unix").is_this_machine() && Origin::parse("127.0.0.1:7").is_this_machine());
        assert!(Origin::parse("[::ffff:127.0.0.1]:7").is_this_machine() && Origin::parse("[::1]:7").is_this_machine());
        assert!(!Origin::parse("10.0.0.1:7").is_this_machine() && !Origin::parse("unix:/x").is_this_machine());
    }

    #[test]
    fn only_addresses_of_one_host_are_taken() {
        let near = [Origin::Unix, Origin::parse("127.0.0.1:7")];
        let far = Origin::parse("10.0.0.9:7");
        for text in ["10.0.0.1", "fd00::1", "240.241.0.1", "::ffff:10.0.0.1", "100.64.0.1"] {
            assert!(own(text, far).is_ok(), "{text}");
        }
        for (text, why) in [
            ("reviews.example.org", "not an IP address"),
            ("0.0.0.0", "one host"),
            ("0.1.2.3", "one host"),
            ("::", "one host"),
            ("224.0.0.1", "one host"),
            ("ff02::1", "one host"),
            ("255.255.255.255", "one host"),
            ("::ffff:255.255.255.255", "one host"),
            ("169.254.169.254", "link-local"),
            ("::ffff:169.254.169.254", "link-local"),
            ("fe80::1", "link-local"),
            ("240.240.0.5", "gives to services"),
            ("fd00:6d65:7368::5", "gives to services"),
        ] {
            for origin in near.into_iter().chain([far]) {
                let refused = own(text, origin).unwrap_err();
                assert!(refused.contains(why), "{text}: {refused}");
            }
        }
        for text in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(own(text, far).unwrap_err().contains("loopback"), "{text}");
            assert!(near.iter().all(|origin| own(text, *origin).is_ok()), "{text}");
        }
    }
}
