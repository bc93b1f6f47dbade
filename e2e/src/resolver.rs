//! A DNS server in the place of the host's resolver, for a mesh whose programs see a resolv.conf of their own. Needs root.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;

use anyhow::Context;
use tempfile::TempDir;

use crate::mesh::User;

/// What a client without EDNS takes over UDP.
const PLAIN_UDP: usize = 512;
/// How many addresses names that begin with `many` have: far too many for UDP.
pub const MANY: u16 = 300;

/// Answers every question for addresses, until the test ends.
pub struct Resolver {
    folder: TempDir,
}

impl Resolver {
    pub fn start() -> anyhow::Result<Self> {
        // Port 53, where resolv.conf means it, at an address for each test.
        let [high, low] = (std::process::id() as u16).to_be_bytes();
        static STARTED: AtomicU8 = AtomicU8::new(0);
        let second = 53 + STARTED.fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::from((Ipv4Addr::new(127, second, high, low.max(1)), 53));
        let (udp, tcp) = (UdpSocket::bind(address), TcpListener::bind(address));
        let (udp, tcp) = (udp.context("port 53 needs root")?, tcp?);
        thread::spawn(move || serve_udp(&udp));
        thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                thread::spawn(move || serve_tcp(stream));
            }
        });
        let folder = tempfile::Builder::new().prefix("mesh-e2e-resolver-").tempdir()?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        fs::write(folder.path().join("resolv.conf"), format!("nameserver {}\n", address.ip()))?;
        Ok(Self { folder })
    }

    /// The same command, with this as its machine's resolver, by this user.
    pub fn used_by(&self, user: User, command: &Command) -> Command {
        let mut wrapped = Command::new("unshare");
        wrapped.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\""]);
        wrapped.arg(self.resolv_conf());
        if let Some(id) = user.id() {
            wrapped.args(["setpriv", "--clear-groups", &format!("--reuid={id}"), &format!("--regid={id}"), "--"]);
        }
        wrapped.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            wrapped.current_dir(folder);
        }
        wrapped
    }

    fn resolv_conf(&self) -> PathBuf {
        self.folder.path().join("resolv.conf")
    }
}

fn serve_udp(socket: &UdpSocket) {
    let mut buffer = [0; 4096];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
        if let Some(mut reply) = reply(&buffer[..length]) {
            if reply.len() > PLAIN_UDP {
                // "Cut off", with the question only.
                reply.truncate(question_end(&buffer[..length]).unwrap_or(12));
                reply[2] |= 0x02;
                reply[6..8].fill(0);
            }
            let _ = socket.send_to(&reply, peer);
        }
    }
}

fn serve_tcp(mut stream: TcpStream) {
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        if stream.read_exact(&mut query).is_err() {
            return;
        }
        let Some(reply) = reply(&query) else { return };
        let framed = [&(reply.len() as u16).to_be_bytes()[..], &reply].concat();
        if stream.write_all(&framed).is_err() {
            return;
        }
    }
}

/// The whole answer to a query for one name.
fn reply(query: &[u8]) -> Option<Vec<u8>> {
    let end = question_end(query)?;
    let asks_for_ipv4 = query[end - 4..end - 2] == [0, 1];
    let count = match () {
        () if !asks_for_ipv4 => 0,
        () if query[13..].starts_with(b"many") => MANY,
        () => 1,
    };
    let mut reply = query[..end].to_vec();
    (reply[2], reply[3]) = (0x81, 0x80);
    reply[6..8].copy_from_slice(&count.to_be_bytes());
    reply[8..12].fill(0);
    for number in 0..count {
        // The name of the question, A, IN, one second, four bytes from 198.18.0.0/15.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 198, 18]);
        reply.extend(number.to_be_bytes());
    }
    Some(reply)
}

fn question_end(query: &[u8]) -> Option<usize> {
    let mut at = 12;
    while *query.get(at)? != 0 {
        at += 1 + usize::from(query[at]);
    }
    query.get(..at + 5).map(<[u8]>::len)
}
