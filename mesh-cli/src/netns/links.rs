//! The devices, addresses and routes of the fabric and of workloads, over rtnetlink.

use std::fs;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::Error;
use super::addresses::{Addresses, GATEWAY, IPV4_PREFIX, IPV6_PREFIX};

const BRIDGE: &str = "mesh0";
const DEVICE: &str = "eth0";

const EOPNOTSUPP: i32 = 95;

/// The fabric's side: loopback and a bridge. To be called in its network namespace.
pub(super) fn make_fabric() -> Result<(), Error> {
    // Forwarding without a route: what has nowhere to go is refused at once instead of being lost in silence.
    set("net/ipv4/ip_forward", "1");
    set("net/ipv6/conf/all/forwarding", "1");
    set("net/ipv6/conf/all/disable_ipv6", "0");
    set("net/ipv6/conf/default/disable_ipv6", "0");
    netlink(async |handle| {
        up(&handle, "lo").await?;
        let bridge = handle.link().add(LinkBridge::new(BRIDGE).build()).execute().await;
        bridge.map_err(|error| missing("make a bridge", "bridge", &error))?;
        add_addresses(&handle, BRIDGE, GATEWAY).await.map(drop)
    })
}

/// A cable from the fabric's bridge, where its end is called `name`, to the workload's namespace. To be called in the
/// fabric's namespace.
pub(super) fn connect(name: &str, workload: &OwnedFd) -> Result<(), Error> {
    let bridge = index(BRIDGE)?;
    netlink(async |handle| {
        let mut peer = LinkUnspec::new_with_name(DEVICE).build();
        peer.attributes.push(LinkAttribute::NetNsFd(workload.as_raw_fd()));
        let pair =
            LinkMessageBuilder::<LinkVeth>::new(name, DEVICE).set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
        let made = handle.link().add(pair.build()).execute().await;
        made.map_err(|error| missing("make a pair of virtual devices", "veth", &error))?;
        let link = LinkUnspec::new_with_name(name).controller(bridge).up().build();
        handle.link().set(link).execute().await.map_err(|error| failed("connect a workload", &error))
    })
}

/// Takes the cable away. To be called in the fabric's namespace.
pub(super) fn disconnect(name: &str) -> Result<(), Error> {
    let index = index(name)?;
    netlink(async |handle| {
        handle.link().del(index).execute().await.map_err(|error| failed("disconnect a workload", &error))
    })
}

/// The workload's side: loopback, addresses, default routes through the bridge. To be called in its namespace. Gives the
/// addresses that it has: there is no IPv6 where the kernel has none.
pub(super) fn make_workload(addresses: Addresses) -> Result<(Ipv4Addr, Option<Ipv6Addr>), Error> {
    set("net/ipv6/conf/all/disable_ipv6", "0");
    set("net/ipv6/conf/default/disable_ipv6", "0");
    // Applications run as an ordinary user but may listen where they would on a machine of their own.
    set("net/ipv4/ip_unprivileged_port_start", "0");
    netlink(async |handle| {
        up(&handle, "lo").await?;
        up(&handle, DEVICE).await?;
        let ipv6 = add_addresses(&handle, DEVICE, addresses).await?;
        let device = index(DEVICE)?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(GATEWAY.ipv4).output_interface(device).build();
        handle.route().add(route).execute().await.map_err(|error| failed("add the default route", &error))?;
        if ipv6 {
            let route = RouteMessageBuilder::<Ipv6Addr>::new().gateway(GATEWAY.ipv6).output_interface(device).build();
            handle.route().add(route).execute().await.map_err(|error| failed("add the IPv6 default route", &error))?;
        }
        Ok((addresses.ipv4, ipv6.then_some(addresses.ipv6)))
    })
}

async fn up(handle: &Handle, device: &str) -> Result<(), Error> {
    let link = LinkUnspec::new_with_name(device).up().build();
    handle.link().set(link).execute().await.map_err(|error| failed(&format!("bring up {device}"), &error))
}

/// True if there is IPv6.
async fn add_addresses(handle: &Handle, device: &str, addresses: Addresses) -> Result<bool, Error> {
    let index = index(device)?;
    let ipv4 = handle.address().add(index, IpAddr::V4(addresses.ipv4), IPV4_PREFIX);
    ipv4.execute().await.map_err(|error| failed(&format!("give {device} its address"), &error))?;
    let mut ipv6 = handle.address().add(index, IpAddr::V6(addresses.ipv6), IPV6_PREFIX);
    // Nobody else can have it: without the usual wait of a second before it may be used.
    ipv6.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    Ok(ipv6.execute().await.is_ok())
}

fn index(device: &str) -> Result<u32, Error> {
    nix::net::if_::if_nametoindex(device).map_err(std::io::Error::from).map_err(Error::system(format!("find {device}")))
}

/// A setting of this thread's network namespace. Where it cannot be changed (a container with a read-only /proc/sys) its
/// default mostly does as well.
fn set(name: &str, value: &str) {
    let _ = fs::write(format!("/proc/sys/{name}"), value);
}

/// Talks rtnetlink in the network namespace of the calling thread.
fn netlink<T, F>(f: impl FnOnce(Handle) -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(Error::system("start talking to the kernel about devices"))?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::system("open a netlink socket"))?;
        tokio::spawn(connection);
        f(handle).await
    })
}

fn failed(what: &str, error: &rtnetlink::Error) -> Error {
    Error::Link { what: what.to_owned(), reason: reason(error) }
}

fn missing(what: &str, module: &'static str, error: &rtnetlink::Error) -> Error {
    match error {
        rtnetlink::Error::NetlinkError(message) if message.raw_code() == -EOPNOTSUPP => {
            Error::Module { what: what.to_owned(), reason: reason(error), module }
        }
        _ => failed(what, error),
    }
}

fn reason(error: &rtnetlink::Error) -> String {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
        other => other.to_string(),
    }
}
