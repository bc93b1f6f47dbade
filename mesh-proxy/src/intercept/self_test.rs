//! Proof that the redirect works, before the proxy calls itself ready: connections from an unmarked socket to
//! documentation addresses, which nobody else can answer, must arrive at the proxy's ports. What comes from other machines
//! cannot be sent from here; a connection of the proxy's own to this machine's address takes the same rules, and of those for
//! others it is looked whether they are there. A proxy without rights cannot make connections like the application's, since all
//! of its own are left alone; it makes the one that its own rules redirect.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_common::names::PRIORITY_TO_APPLICATION;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Error, Rules, expression, netlink, rules};

const PATIENCE: Duration = Duration::from_secs(2);

/// TEST-NET-1 and the documentation prefix: routed nowhere.
const TARGETS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
const TARGET_PORT: u16 = 9;

/// What was proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub ipv4: Outcome,
    pub ipv6: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Works,
    /// The rules leave the addresses of the test alone, and DNS is not redirected.
    Excluded,
    /// This network namespace cannot send packets of that family anyway.
    Unroutable(String),
}

/// Connects to addresses that only a redirect can answer. To be called before the proxy opens its listeners: it listens on
/// their ports itself. Blocks for 2 seconds at most if all is well or packets are lost, else less.
pub fn self_test(rules: &Rules) -> Result<Report, Error> {
    may_mark(rules)?;
    let chains = rules::CHAINS.iter().chain(rules::UDP_CHAINS.iter().filter(|_| rules.udp));
    for chain in chains {
        if !netlink::chain_exists(chain)? {
            return Err(fail(format!("there is no chain `{chain}` (write the rules first: `mesh-proxy intercept`)")));
        }
    }
    TARGETS.into_iter().try_for_each(|target| lets_pass(rules, target))?;
    takes_peers(rules)?;
    let [ipv4, ipv6] = TARGETS.map(|target| family(rules, target));
    let report = Report { ipv4: ipv4?, ipv6: ipv6? };
    match (&report.ipv4, &report.ipv6) {
        (Outcome::Unroutable(v4), Outcome::Unroutable(v6)) => Err(fail(format!(
            "this network namespace has no default route, so there is nothing to intercept (IPv4: {v4}; IPv6: {v6})"
        ))),
        _ => Ok(report),
    }
}

/// Connections to this machine must arrive at the inbound port.
fn takes_peers(rules: &Rules) -> Result<(), Error> {
    if !netlink::rules(rules::PREROUTING)?.iter().any(|rule| expression::redirects_to(rule, rules.inbound_port)) {
        return Err(fail(format!(
            "connections from other machines do not arrive at port {}: no rule of the chain `{}` leads there; write the rules again (`mesh-proxy intercept`)",
            rules.inbound_port,
            rules::PREROUTING
        )));
    }
    for address in TARGETS.into_iter().filter_map(own_address) {
        arrives(rules.inbound_port, SocketAddr::new(address, TARGET_PORT), Some(rules.mark))?;
    }
    Ok(())
}

/// Without its mark the proxy would be redirected to itself.
fn may_mark(rules: &Rules) -> Result<(), Error> {
    if rules.exclude_uids.contains(&rustix::process::geteuid().as_raw()) {
        return Ok(());
    }
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).map_err(|error| fail(format!("no socket: {error}")))?;
    socket.set_mark(rules.mark).map_err(|error| {
        fail(format!("the proxy may not mark its own traffic ({error}); it needs CAP_NET_ADMIN, or a user of its own that `--uid` names"))
    })
}

/// The test of a proxy that may not mark its traffic, and is known to the rules by its user: what it sends to this
/// machine's own address must arrive at the inbound port. What it cannot see, whoever wrote the rules has tested.
pub fn own_self_test(rules: &Rules) -> Result<Report, Error> {
    TARGETS.into_iter().try_for_each(|target| lets_pass(rules, target))?;
    let mut outcomes = Vec::new();
    for target in TARGETS {
        outcomes.push(match own_address(target) {
            Some(address) => arrives(rules.inbound_port, SocketAddr::new(address, TARGET_PORT), None)?,
            None => Outcome::Unroutable("no address".into()),
        });
    }
    match <[Outcome; 2]>::try_from(outcomes) {
        Ok([Outcome::Unroutable(_), Outcome::Unroutable(_)]) | Err(_) => {
            Err(fail("this network namespace has no address, so there is nothing to intercept".into()))
        }
        Ok([ipv4, ipv6]) => Ok(Report { ipv4, ipv6 }),
    }
}

/// Whether the proxy may mark its traffic (CAP_NET_ADMIN); else the rules must know it by its user.
pub fn can_mark(mark: u32) -> bool {
    Socket::new(Domain::IPV4, Type::STREAM, None).is_ok_and(|socket| socket.set_mark(mark).is_ok())
}

/// The address that connections to the target come from. Nothing is sent.
fn own_address(target: IpAddr) -> Option<IpAddr> {
    let socket = Socket::new(Domain::for_address(SocketAddr::new(target, 53)), Type::DGRAM, None).ok()?;
    socket.connect(&SocketAddr::new(target, 53).into()).ok()?;
    socket.local_addr().ok()?.as_socket().map(|address| address.ip()).filter(|ip| !ip.is_loopback())
}

fn family(rules: &Rules, target: IpAddr) -> Result<Outcome, Error> {
    let excluded = rules.leave_alone(target, TARGET_PORT);
    if !excluded
        && let Outcome::Unroutable(reason) = arrives(rules.outbound_port, SocketAddr::new(target, TARGET_PORT), None)?
    {
        return Ok(Outcome::Unroutable(reason));
    }
    match rules.dns_port {
        // Goes before all that is excluded.
        Some(port) => udp(port, SocketAddr::new(target, 53)),
        None if excluded => Ok(Outcome::Excluded),
        None => Ok(Outcome::Works),
    }
}

/// What the proxy means for the application must not reach the proxy again.
/// Nobody need answer.
fn lets_pass(rules: &Rules, target: IpAddr) -> Result<(), Error> {
    let Some(own) = own_address(target).map(|address| SocketAddr::new(address, TARGET_PORT)) else { return Ok(()) };
    let Some(listener) = bind(Type::STREAM, own, rules.inbound_port)? else { return Ok(()) };
    listener.listen(128).map_err(|error| fail(format!("cannot listen: {error}")))?;
    let Ok(client) = connect(own, Some(rules.mark), Some(PRIORITY_TO_APPLICATION)) else { return Ok(()) };
    reset_on_close(&client);
    let local = client.local_addr().ok();
    listener.set_nonblocking(true).map_err(|error| fail(error.to_string()))?;
    // It was in the queue before the client knew that it is connected.
    while let Ok((accepted, peer)) = listener.accept() {
        reset_on_close(&accepted);
        if Some(peer) == local {
            return Err(fail(format!(
                "what the proxy sends to the application at {} comes back to the proxy: the rules were written by another version; write them again",
                own.ip()
            )));
        }
    }
    Ok(())
}

/// `mark`: the proxy's, if it is a connection of its own; a proxy that may not set it is known by its user.
fn connect(target: SocketAddr, mark: Option<u32>, priority: Option<u32>) -> io::Result<Socket> {
    let client = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    if let Some(mark) = mark {
        let _ = client.set_mark(mark);
    }
    if let Some(priority) = priority {
        client.set_priority(priority)?;
    }
    client.connect_timeout(&target.into(), PATIENCE)?;
    Ok(client)
}

/// Whether a connection to the target arrives at the port. `mark`: see [`connect`].
fn arrives(port: u16, target: SocketAddr, mark: Option<u32>) -> Result<Outcome, Error> {
    let Some(listener) = bind(Type::STREAM, target, port)? else {
        return Ok(Outcome::Unroutable("no loopback address".into()));
    };
    listener.listen(128).map_err(|error| fail(format!("cannot listen: {error}")))?;
    let client = match connect(target, mark, None) {
        Ok(client) => client,
        Err(error) if unroutable(&error) => return Ok(Outcome::Unroutable(error.to_string())),
        Err(error) => {
            return Err(fail(format!(
                "a connection to {target} did not arrive at port {port} ({error}); have the rules been written, for this user (`mesh-proxy intercept --uid {}`)?",
                rustix::process::geteuid().as_raw()
            )));
        }
    };
    reset_on_close(&client);
    let local = client.local_addr().ok().and_then(|address| address.as_socket());
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let Ok((accepted, peer)) = listener.accept() else { continue };
        reset_on_close(&accepted);
        // An application that is already running may connect meanwhile.
        if peer.as_socket() != local {
            continue;
        }
        let original = if target.is_ipv4() { accepted.original_dst_v4() } else { accepted.original_dst_v6() };
        return match original.map(|address| address.as_socket()) {
            Ok(Some(original)) if original == target => Ok(Outcome::Works),
            Ok(original) => Err(fail(format!("a redirected connection to {target} says that it was for {original:?}"))),
            Err(error) => Err(fail(format!("a redirected connection does not tell its original destination: {error}"))),
        };
    }
    Err(fail(format!("a connection to {target} was answered by someone else than port {port}")))
}

fn udp(port: u16, target: SocketAddr) -> Result<Outcome, Error> {
    let Some(server) = bind(Type::DGRAM, target, port)? else {
        return Ok(Outcome::Unroutable("no loopback address".into()));
    };
    let nonce = fastrand::u128(..).to_ne_bytes();
    let send = || -> io::Result<Socket> {
        let client = Socket::new(Domain::for_address(target), Type::DGRAM, Some(Protocol::UDP))?;
        client.connect(&target.into())?;
        (&client).write_all(&nonce)?;
        Ok(client)
    };
    let _client = match send() {
        Ok(client) => client,
        Err(error) if unroutable(&error) => return Ok(Outcome::Unroutable(error.to_string())),
        Err(error) => return Err(fail(format!("cannot send to {target}: {error}"))),
    };
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 512];
    while Instant::now() < deadline {
        match (&server).read(&mut buffer) {
            Ok(length) if buffer[..length] == nonce => return Ok(Outcome::Works),
            _ => {}
        }
    }
    Err(fail(format!("a DNS question to {target} did not arrive at port {port}")))
}

/// A socket on the loopback address of the target's family. `None`: that family is off.
fn bind(kind: Type, target: SocketAddr, port: u16) -> Result<Option<Socket>, Error> {
    let address = match target {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    };
    let bind = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), kind, None)?;
        if kind == Type::STREAM {
            socket.set_reuse_address(true)?;
        }
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    match bind() {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if unroutable(&error) => Ok(None),
        Err(error) => Err(fail(format!("{address} is needed but cannot be had: {error}"))),
    }
}

/// The ports are opened for good right after: nothing of the test may linger there.
fn reset_on_close(socket: &Socket) {
    let _ = socket.set_linger(Some(Duration::ZERO));
}

/// The family is off, has no address, or no route.
fn unroutable(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    matches!(
        error.kind(),
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable | io::ErrorKind::AddrNotAvailable
    ) || error.raw_os_error() == Some(EAFNOSUPPORT)
}

fn fail(reason: String) -> Error {
    Error::SelfTest(reason)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IPv4 {}, IPv6 {}", self.ipv4, self.ipv6)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => f.write_str("intercepted"),
            Self::Excluded => f.write_str("left alone"),
            Self::Unroutable(reason) => write!(f, "not used ({reason})"),
        }
    }
}
