//! The mesh as a plugin of the node's network (CNI 0.3.0 to 1.1.0), for pods that may not have an init container with NET_ADMIN.
//!
//! In: what a container runtime says to a chained plugin, in the environment and on standard input, with the pod's annotations
//! among it. Out: the interception rules in the pod's network, and on standard output the result of the plugin before, or an
//! error for whoever looks at the pod's events. A pod of the mesh whose network cannot be changed does not start.

mod install;

use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use mesh_common::inject::{self, Exclusions};
use mesh_common::names::PROXY_UID;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use crate::intercept::{self, Cidr, Rules};

pub use install::{InstallArgs, check as is_installed, install};

const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Under this name containerd and CRI-O tell the annotations of the pod.
const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

const LOOPBACK_PATIENCE: Duration = Duration::from_secs(2);
const LOOPBACK_POLL: Duration = Duration::from_millis(2);

/// An error as the specification has it.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    code: u32,
    message: String,
}

/// Codes that the specification gives a meaning, and ours from 100 on.
const INCOMPATIBLE_VERSION: u32 = 1;
const INVALID_ENVIRONMENT: u32 = 4;
const IO: u32 = 5;
const UNREADABLE: u32 = 6;
const INVALID_ANNOTATIONS: u32 = 100;
const NO_INTERCEPTION: u32 = 101;

/// Whether a container runtime has started this program.
pub fn is_called() -> bool {
    std::env::var_os("CNI_COMMAND").is_some()
}

/// Does what the runtime asks for. To be called while the program has one thread.
pub fn execute() -> ExitCode {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let netns = Some(variable("CNI_NETNS")).filter(|path| !path.is_empty()).map(PathBuf::from);
    let mut input = String::new();
    let read = std::io::stdin().read_to_string(&mut input);
    let config: Value = serde_json::from_str(&input).unwrap_or_default();
    let version = config["cniVersion"].as_str().unwrap_or("0.3.0").to_owned();
    let answer = match read {
        Ok(_) => run(&variable("CNI_COMMAND"), netns.as_deref(), &config),
        Err(error) => Err(Failure { code: IO, message: format!("standard input cannot be read: {error}") }),
    };
    match answer {
        Ok(Value::Null) => ExitCode::SUCCESS,
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(Failure { code, message }) => {
            println!("{}", json!({ "cniVersion": version, "code": code, "msg": message, "details": "" }));
            ExitCode::FAILURE
        }
    }
}

fn run(command: &str, netns: Option<&Path>, config: &Value) -> Result<Value, Failure> {
    if command == "VERSION" {
        let version = config["cniVersion"].as_str().unwrap_or("1.1.0");
        return Ok(json!({ "cniVersion": version, "supportedVersions": VERSIONS }));
    }
    let Some(version) = config["cniVersion"].as_str() else {
        return Err(Failure { code: UNREADABLE, message: "the configuration has no cniVersion".to_owned() });
    };
    if !VERSIONS.contains(&version) {
        let message = format!("CNI {version} is not spoken here, but {}", VERSIONS.join(", "));
        return Err(Failure { code: INCOMPATIBLE_VERSION, message });
    }
    match command {
        "ADD" => {
            if let Some(exclusions) = exclusions(config)? {
                enter(netns)?;
                add(&exclusions)?;
            }
            match &config["prevResult"] {
                Value::Null => Ok(json!({ "cniVersion": version })),
                before => Ok(before.clone()),
            }
        }
        "CHECK" => {
            if exclusions(config)?.is_some() {
                enter(netns)?;
                check()?;
            }
            Ok(Value::Null)
        }
        // The rules end with the network that they are in.
        "DEL" | "GC" | "STATUS" => Ok(Value::Null),
        other => Err(Failure { code: INVALID_ENVIRONMENT, message: format!("CNI_COMMAND {other:?} is not known") }),
    }
}

/// `None` for a pod that wants nothing of us.
fn exclusions(config: &Value) -> Result<Option<Exclusions>, Failure> {
    let Some(annotations) = config["runtimeConfig"][POD_ANNOTATIONS].as_object() else { return Ok(None) };
    inject::by_cni(annotations).map_err(|error| Failure { code: INVALID_ANNOTATIONS, message: error.to_string() })
}

fn enter(netns: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = netns else {
        return Err(Failure { code: INVALID_ENVIRONMENT, message: "CNI_NETNS is not set".to_owned() });
    };
    let wrong = |error: std::io::Error| Failure {
        code: IO,
        message: format!("the pod's network {} cannot be entered: {error}", path.display()),
    };
    let file = File::open(path).map_err(wrong)?;
    move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))
        .map_err(|error| wrong(error.into()))
}

/// The rules that the init container writes elsewhere, with the same proof that they work.
fn add(exclusions: &Exclusions) -> Result<(), Failure> {
    let failed = |error: intercept::Error| Failure { code: NO_INTERCEPTION, message: error.to_string() };
    let rules = rules(exclusions)?;
    await_loopback().map_err(|error| Failure {
        code: IO,
        message: format!("the pod's network has no loopback address: {error}"),
    })?;
    intercept::apply(&rules).map_err(failed)?;
    intercept::self_test(&rules).map_err(failed)?;
    Ok(())
}

/// The runtime sets the pod's networks up side by side, and the loopback device is one of its own.
fn await_loopback() -> std::io::Result<()> {
    let deadline = Instant::now() + LOOPBACK_PATIENCE;
    loop {
        match UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).or_else(|_| UdpSocket::bind((Ipv6Addr::LOCALHOST, 0))) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::sleep(LOOPBACK_POLL),
        }
    }
}

fn rules(exclusions: &Exclusions) -> Result<Rules, Failure> {
    let mut rules = Rules { exclude_uids: vec![PROXY_UID], ..Rules::default() };
    rules.exclude_inbound_ports.extend(&exclusions.inbound_ports);
    rules.exclude_outbound_ports.clone_from(&exclusions.outbound_ports);
    let cidrs: Result<Vec<Cidr>, String> = exclusions.outbound_cidrs.iter().map(|range| range.parse()).collect();
    rules.exclude_cidrs = cidrs.map_err(|message| Failure { code: INVALID_ANNOTATIONS, message })?;
    Ok(rules)
}

fn check() -> Result<(), Failure> {
    let message = match intercept::is_applied() {
        Ok(true) => return Ok(()),
        Ok(false) => "the pod's network has no interception rules".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Failure { code: NO_INTERCEPTION, message })
}

#[cfg(test)]
mod tests;
