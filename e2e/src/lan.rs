//! Hosts on one machine: network namespaces joined by a bridge that stands in a namespace of its own. Needs root.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, ensure};

pub struct Lan {
    hub: String,
    hosts: Vec<String>,
}

impl Lan {
    /// Hosts `0..count`, with the addresses `10.98.0.1..`.
    pub fn new(count: u8) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("me{}n{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut lan = Self { hub: format!("{prefix}hub"), hosts: Vec::new() };
        let hub = lan.hub.clone();
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &hub, "addr", "add", "10.98.0.254/24", "dev", "bridge"])?;
        ip(&["-n", &hub, "link", "set", "bridge", "up"])?;
        for index in 0..count {
            let (host, port) = (format!("{prefix}h{index}"), format!("p{index}"));
            ip(&["netns", "add", &host])?;
            lan.hosts.push(host.clone());
            ip(&["link", "add", "eth0", "netns", &host, "type", "veth", "peer", "name", &port, "netns", &hub])?;
            ip(&["-n", &hub, "link", "set", &port, "master", "bridge", "up"])?;
            ip(&["-n", &host, "link", "set", "lo", "up"])?;
            ip(&["-n", &host, "addr", "add", &format!("{}/24", Self::address(index)), "dev", "eth0"])?;
            ip(&["-n", &host, "link", "set", "eth0", "up"])?;
            ip(&["-n", &host, "route", "add", "default", "via", "10.98.0.254"])?;
        }
        Ok(lan)
    }

    pub fn address(host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 98, 0, host + 1)
    }

    /// A command that runs on a host.
    pub fn on(&self, host: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.hosts[host]]).arg(program);
        command
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for name in self.hosts.iter().chain([&self.hub]) {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

fn ip(args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(args).output().context("cannot start `ip`")?;
    ensure!(output.status.success(), "ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(())
}
