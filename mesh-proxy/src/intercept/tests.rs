//! The rules in a real kernel. Each test runs itself again in a user and network namespace of its own, and says so when
//! the host allows none.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Duration;

use mesh_common::names::PRIORITY_TO_APPLICATION;
use socket2::{Domain, SockRef, Socket, Type};

use super::*;
use crate::intercept::self_test::Outcome;

/// Set in the run that is inside.
const INSIDE: &str = "MESH_TEST_NAMESPACE";

fn in_namespace(test: &str) -> bool {
    runs_in_namespace(&format!("intercept::tests::{test}"))
}

/// True within the namespace. Outside: runs the test of this path there, and is false.
pub(crate) fn runs_in_namespace(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let may = Command::new("unshare").args(["-Urn", "true"]).output();
    if !may.as_ref().is_ok_and(|output| output.status.success()) {
        skipped(&format!("this host allows no user and network namespaces here ({may:?})"));
        return false;
    }
    enter(test, &["-Urn"]);
    false
}

/// Where everything has to be tested, it is a failure (`e2e/test.sh` says so).
fn skipped(why: &str) {
    assert!(std::env::var_os("MESH_TEST_REQUIRE_NAMESPACES").is_none(), "cannot be tested: {why}");
    println!("SKIPPED: {why}");
}

/// Without a user namespace, so that there are other users than one.
fn in_namespace_of_root(test: &str) {
    if Command::new("unshare").args(["-n", "true"]).output().is_ok_and(|output| output.status.success()) {
        enter(&format!("intercept::tests::{test}"), &["-n"]);
    } else {
        skipped("this host allows no network namespaces here");
    }
}

fn enter(test: &str, namespaces: &[&str]) {
    // A second device with addresses and default routes, as a workload has; nobody answers at its other end.
    let setup = "ip link set lo up && ip link add eth0 type veth peer name eth1 && ip link set eth0 up && ip link set eth1 up \
        && ip addr add 10.77.0.2/16 dev eth0 && ip addr add fd77::2/64 dev eth0 nodad \
        && ip route add default via 10.77.0.1 && ip -6 route add default via fd77::1 \
        && exec \"$0\" --exact \"$1\" --nocapture --test-threads=1";
    let output = Command::new("unshare")
        .args(namespaces)
        .args(["sh", "-c", setup])
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Answers each connection with the name of the port and what the connection was for.
fn serve(listen: &str, name: &'static str) {
    let listener = TcpListener::bind(listen).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let socket = SockRef::from(&stream);
            let local = stream.local_addr().unwrap();
            let original = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
            let original = original.ok().and_then(|address| address.as_socket()).filter(|original| *original != local);
            let text = original.map_or_else(|| name.to_owned(), |original| format!("{name} {original}"));
            stream.write_all(text.as_bytes()).unwrap();
        }
    });
}

fn ask(target: &str, mark: Option<u32>) -> String {
    ask_with(0, target, mark)
}

fn ask_with(priority: u32, target: &str, mark: Option<u32>) -> String {
    let target = address(target);
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None).unwrap();
    socket.set_priority(priority).unwrap();
    if let Some(mark) = mark {
        socket.set_mark(mark).unwrap();
    }
    if let Err(error) = socket.connect_timeout(&target.into(), Duration::from_millis(500)) {
        return error.kind().to_string();
    }
    let mut text = String::new();
    TcpStream::from(socket).read_to_string(&mut text).unwrap();
    text
}

#[test]
fn redirects_what_it_should_and_nothing_else() {
    if !in_namespace("redirects_what_it_should_and_nothing_else") {
        return;
    }
    let rules = Rules {
        exclude_outbound_ports: vec![6000],
        exclude_cidrs: vec!["198.51.100.0/24".parse().unwrap(), "2001:db8:1::/48".parse().unwrap()],
        ..Rules::default()
    };
    apply(&rules).unwrap();
    for (port, name) in
        [(rules.outbound_port, "outbound"), (rules.inbound_port, "inbound"), (9080, "app"), (15021, "ready")]
    {
        serve(&format!("0.0.0.0:{port}"), name);
        serve(&format!("[::1]:{port}"), name);
        serve(&format!("[fd77::2]:{port}"), name);
    }

    // Anywhere: to the outbound port, with the original destination.
    assert_eq!(ask("240.240.0.5:9080", None), "outbound 240.240.0.5:9080");
    assert_eq!(ask("[fd00:6d65:7368::5]:9080", None), "outbound [fd00:6d65:7368::5]:9080");
    // Loopback: left alone.
    assert_eq!(ask("127.0.0.1:9080", None), "app");
    assert_eq!(ask("[::1]:9080", None), "app");
    // The machine's own address, by the application: a call like any other. By the proxy: what a peer would get.
    assert_eq!(ask("10.77.0.2:9080", None), "outbound 10.77.0.2:9080");
    assert_eq!(ask("10.77.0.2:9080", Some(rules.mark)), "inbound 10.77.0.2:9080");
    assert_eq!(ask("[fd77::2]:9080", Some(rules.mark)), "inbound [fd77::2]:9080");
    assert_eq!(ask("10.77.0.2:15021", Some(rules.mark)), "ready");
    // On its way from the proxy to the application; the application itself gains nothing by that.
    assert_eq!(ask_with(PRIORITY_TO_APPLICATION, "10.77.0.2:9080", Some(rules.mark)), "app");
    assert_eq!(ask_with(PRIORITY_TO_APPLICATION, "[fd77::2]:9080", Some(rules.mark)), "app");
    assert_eq!(ask_with(PRIORITY_TO_APPLICATION, "10.77.0.2:9080", None), "outbound 10.77.0.2:9080");
    assert_eq!(ask("127.0.0.1:9080", Some(rules.mark)), "app");
    // Excluded, or the proxy's own: goes out, where nobody answers.
    for target in ["240.240.0.5:6000", "198.51.100.7:80", "[2001:db8:1::7]:80"] {
        assert!(!ask(target, None).contains("outbound"), "{target}");
    }
    assert!(!ask("240.240.0.5:9080", Some(rules.mark)).contains("outbound"));

    remove().unwrap();
    assert_eq!(ask("10.77.0.2:9080", None), "app");
    remove().unwrap();
}

#[test]
fn takes_dns_even_from_loopback_resolvers() {
    if !in_namespace("takes_dns_even_from_loopback_resolvers") {
        return;
    }
    apply(&Rules::default()).unwrap();
    let servers = ["127.0.0.1:15053", "[::1]:15053"].map(|listen| UdpSocket::bind(listen).unwrap());
    for server in servers {
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, peer)) = server.recv_from(&mut buffer) {
                server.send_to(&buffer[..length], peer).unwrap();
            }
        });
    }
    for target in ["127.0.0.53:53", "127.0.0.1:53", "192.0.2.53:53", "[::1]:53", "[2001:db8::53]:53"] {
        let target = address(target);
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let client = UdpSocket::bind(any).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        // A connected socket takes only answers that seem to come from the address that it asked.
        client.connect(target).unwrap();
        client.send(b"question").unwrap();
        let mut buffer = [0; 64];
        let length = client.recv(&mut buffer).unwrap_or_else(|error| panic!("{target}: {error}"));
        assert_eq!(&buffer[..length], b"question");
    }
}

#[test]
fn applying_again_replaces_and_never_adds() {
    if !in_namespace("applying_again_replaces_and_never_adds") {
        return;
    }
    for _ in 0..3 {
        apply(&Rules::default()).unwrap();
    }
    serve("127.0.0.1:15001", "old");
    serve("127.0.0.1:16001", "new");
    assert_eq!(ask("240.240.0.5:80", None), "old 240.240.0.5:80");
    apply(&Rules { outbound_port: 16001, ..Rules::default() }).unwrap();
    assert_eq!(ask("240.240.0.5:80", None), "new 240.240.0.5:80");
}

#[test]
fn the_self_test_tells_working_from_missing_rules() {
    if !in_namespace("the_self_test_tells_working_from_missing_rules") {
        return;
    }
    let rules = Rules::default();
    let missing = self_test(&rules).unwrap_err().to_string();
    assert!(missing.contains("no chain"), "{missing}");
    apply(&rules).unwrap();
    assert_eq!(self_test(&rules).unwrap(), Report { ipv4: Outcome::Works, ipv6: Outcome::Works });
    // It leaves its ports free at once, and can be repeated.
    TcpListener::bind("127.0.0.1:15001").unwrap();
    self_test(&rules).unwrap();
    // Rules that know nothing of what goes to the application.
    let flush = Command::new("nft").args(["list", "chain", "inet", "mesh", "own"]).output();
    if flush.is_ok_and(|output| output.status.success()) {
        let nft = "delete table inet mesh; table inet mesh { chain own { ip daddr 127.0.0.0/8 return; meta l4proto tcp redirect to :15006; }; chain output { type nat hook output priority -100; meta mark 0x6d657368 goto own; meta l4proto udp udp dport 53 redirect to :15053; ip daddr 127.0.0.0/8 return; meta l4proto tcp redirect to :15001; }; chain prerouting { type nat hook prerouting priority -100; }; }";
        let output = Command::new("nft").arg(nft).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let old = self_test(&rules).unwrap_err().to_string();
        assert!(old.contains("comes back to the proxy"), "{old}");
    }
    // What is left alone proves nothing, and is not missed; DNS is redirected all the same.
    let nothing = Rules { exclude_cidrs: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()], ..rules.clone() };
    apply(&nothing).unwrap();
    assert_eq!(self_test(&nothing).unwrap(), Report { ipv4: Outcome::Works, ipv6: Outcome::Works });
    let nothing = Rules { dns_port: None, ..nothing };
    apply(&nothing).unwrap();
    assert_eq!(self_test(&nothing).unwrap(), Report { ipv4: Outcome::Excluded, ipv6: Outcome::Excluded });
    // Rules that redirect elsewhere than this proxy listens.
    apply(&Rules { outbound_port: 16001, ..rules.clone() }).unwrap();
    let elsewhere = self_test(&rules).unwrap_err().to_string();
    assert!(elsewhere.contains("did not arrive at port 15001"), "{elsewhere}");
    apply(&Rules { inbound_port: 16006, ..rules.clone() }).unwrap();
    let elsewhere = self_test(&rules).unwrap_err().to_string();
    assert!(elsewhere.contains("do not arrive at port 15006"), "{elsewhere}");
    // Rules that take only what comes from this machine.
    apply(&rules).unwrap();
    let flushed = Command::new("nft").args(["flush", "chain", "inet", "mesh", "prerouting"]).output();
    if flushed.is_ok_and(|output| output.status.success()) {
        let open = self_test(&rules).unwrap_err().to_string();
        assert!(open.contains("do not arrive at port 15006: no rule of the chain `prerouting`"), "{open}");
    }
}

/// As in a pod: the rules by who may, the proxy by a user of its own without any capability.
#[test]
fn a_proxy_without_rights_is_known_by_its_user() {
    const NAME: &str = "a_proxy_without_rights_is_known_by_its_user";
    if std::env::var_os("MESH_TEST_WITHOUT_RIGHTS").is_some() {
        let rules = Rules::default();
        assert!(!can_mark(rules.mark));
        assert_eq!(own_self_test(&rules).unwrap(), Report { ipv4: Outcome::Works, ipv6: Outcome::Works });
        serve("127.0.0.1:15006", "inbound");
        serve("127.0.0.1:15001", "outbound");
        serve("127.0.0.1:9080", "app");
        assert_eq!(ask("10.77.0.2:9080", None), "inbound 10.77.0.2:9080");
        assert_eq!(ask("127.0.0.1:9080", None), "app");
        serve("10.77.0.2:9081", "pod");
        assert_eq!(ask_with(PRIORITY_TO_APPLICATION, "10.77.0.2:9081", None), "pod");
        assert!(!ask("240.240.0.5:9080", None).contains("outbound"));
        return;
    }
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root has a second user to run as");
        return;
    }
    if std::env::var_os(INSIDE).is_none() {
        in_namespace_of_root(NAME);
        return;
    }
    let as_proxy = |expected: bool| {
        let output = Command::new("setpriv")
            .args([
                "--reuid=1337",
                "--regid=1337",
                "--clear-groups",
                "--inh-caps=-all",
                "--bounding-set=-all",
                "--no-new-privs",
            ])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", &format!("intercept::tests::{NAME}"), "--nocapture"])
            .env("MESH_TEST_WITHOUT_RIGHTS", "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), expected, "{text}");
        text
    };
    let without = as_proxy(false);
    assert!(without.contains("intercept --uid 1337"), "{without}");
    let rules = Rules { exclude_uids: vec![1337], ..Rules::default() };
    apply(&rules).unwrap();
    self_test(&rules).unwrap();
    as_proxy(true);
}

#[test]
fn without_permission_it_says_what_is_needed() {
    // A user namespace without a network namespace of its own: root there, but not over this network.
    if std::env::var_os(INSIDE).is_some() {
        let text = apply(&Rules::default()).unwrap_err().to_string();
        assert!(text.contains("CAP_NET_ADMIN"), "{text}");
        return;
    }
    let output = Command::new("unshare")
        .arg("-Ur")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "intercept::tests::without_permission_it_says_what_is_needed", "--nocapture"])
        .env(INSIDE, "1")
        .output();
    match output {
        Ok(output) if String::from_utf8_lossy(&output.stdout).contains("running 1 test") => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
        other => skipped(&format!("this host allows no user namespaces here ({other:?})")),
    }
}

#[test]
fn cidrs_are_parsed_not_guessed() {
    let parse = |text: &str| text.parse::<Cidr>();
    assert_eq!(parse("10.0.0.0/8"), Ok(Cidr { address: IpAddr::from([10, 0, 0, 0]), prefix: 8 }));
    assert_eq!(parse("10.1.2.3").unwrap().prefix, 32);
    assert_eq!(parse("fd00::/8").unwrap().prefix, 8);
    for bad in ["10.0.0.0/33", "fd00::/129", "ten", "10.0.0.0/", "10.0.0.0/-1"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
    let contains = |range: &str, address: &str| parse(range).unwrap().contains(address.parse().unwrap());
    for (range, address) in
        [("10.1.0.0/16", "10.1.255.1"), ("0.0.0.0/0", "192.0.2.1"), ("::/0", "::1"), ("fd00::/8", "fdff::1")]
    {
        assert!(contains(range, address), "{range} {address}");
    }
    for (range, address) in
        [("10.1.0.0/16", "10.2.0.1"), ("10.1.2.3", "10.1.2.4"), ("::/0", "10.0.0.1"), ("fd00::/8", "fe80::1")]
    {
        assert!(!contains(range, address), "{range} {address}");
    }
}
