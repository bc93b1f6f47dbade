//! Hosts on one machine: network namespaces joined by a bridge that stands in one of its own, without root in a user namespace
//! around them all. They have no names, and end with the processes that hold them.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};

use crate::mesh::User;

pub struct Lan {
    user: User,
    hub: Holder,
    hosts: Vec<Holder>,
}

impl Lan {
    /// Hosts `0..count`, with the addresses `10.98.0.1..`.
    pub fn new(user: User, count: u8) -> anyhow::Result<Self> {
        let mut around = command(user, "unshare");
        around.args((user == User::Unprivileged).then_some("--map-root-user"));
        let mut lan = Self { user, hub: Holder::start(around)?, hosts: Vec::new() };
        let hub = lan.hub.0.id();
        lan.ip(hub, "link add bridge type bridge")?;
        lan.ip(hub, "addr add 10.98.0.254/24 dev bridge")?;
        lan.ip(hub, "link set bridge up")?;
        for index in 0..count {
            let host = Holder::start(lan.within(hub, "unshare"))?;
            let id = host.0.id();
            lan.hosts.push(host);
            lan.ip(hub, &format!("link add p{index} type veth peer name eth0 netns {id}"))?;
            lan.ip(hub, &format!("link set p{index} master bridge up"))?;
            lan.ip(id, "link set lo up")?;
            lan.ip(id, &format!("addr add {}/24 dev eth0", Self::address(index)))?;
            lan.ip(id, "link set eth0 up")?;
            lan.ip(id, "route add default via 10.98.0.254")?;
        }
        Ok(lan)
    }

    pub fn address(host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 98, 0, host + 1)
    }

    /// A command that runs on a host.
    pub fn on(&self, host: usize, program: impl AsRef<OsStr>) -> Command {
        self.within(self.hosts[host].0.id(), program)
    }

    /// In the namespaces of a process.
    fn within(&self, id: u32, program: impl AsRef<OsStr>) -> Command {
        let mut command = command(self.user, "nsenter");
        if self.user == User::Unprivileged {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.args(["--net", "--target", &id.to_string(), "--"]).arg(program);
        command
    }

    fn ip(&self, id: u32, args: &str) -> anyhow::Result<()> {
        let output = self.within(id, "ip").args(args.split(' ')).output().context("cannot start `nsenter`")?;
        ensure!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

fn command(user: User, program: &str) -> Command {
    let mut command = Command::new(program);
    if let Some(id) = user.id() {
        command.uid(id).gid(id);
    }
    command
}

/// A process in a network namespace of its own, which ends when its standard input does.
struct Holder(Child);

impl Holder {
    /// By a command that starts `unshare`.
    fn start(mut unshare: Command) -> anyhow::Result<Self> {
        unshare.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = Self(unshare.spawn().context("cannot start `unshare`")?);
        // What comes back has been in there.
        let (stdin, stdout) = (holder.0.stdin.as_mut(), holder.0.stdout.as_mut());
        stdin.context("no standard input")?.write_all(b"\n")?;
        stdout.context("no standard output")?.read_exact(&mut [0]).context("`unshare` made no network namespace")?;
        Ok(holder)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
