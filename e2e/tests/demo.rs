//! The demo does what it says, as root and without, and leaves nothing behind.

#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use mesh_e2e::mesh::{Mesh, User};
use mesh_e2e::process::{Process, eventually};
use nix::sys::signal::Signal;

#[test]
fn the_scenario_is_as_asked_as_root() {
    once(User::Same);
}

#[test]
fn the_scenario_is_as_asked_without_root() {
    once(User::Unprivileged);
}

fn once(user: User) {
    let mesh = Mesh::start(user).unwrap();
    let mut demo = demo(&mesh, &["--once"]);
    let status = demo.wait(Duration::from_secs(120)).unwrap();
    assert!(status.success(), "{}", demo.tail());
    let said = demo.stdout();
    assert!(said.matches("as asked").count() >= 9, "{said}");
    let notes = demo.stderr();
    let first =
        notes.split_once("First good request through the mesh after ").and_then(|(_, rest)| rest.split_once(" s."));
    let first: f64 = first.unwrap_or_else(|| panic!("{notes}")).0.parse().unwrap();
    println!("first good request after {first} s ({user:?})");
    assert!(first < 5.0, "the first good request took {first} s");
}

#[test]
fn the_demo_works_with_meshctl_and_leaves_nothing_behind() {
    let mesh = Mesh::start(User::Same).unwrap();
    let before = host_state();
    let mut demo = demo(&mesh, &["--rate", "50"]);
    let folder = mesh.data().join("demo");
    let meshctl = |args: &[&str]| -> anyhow::Result<String> {
        let mut command = mesh.command("meshctl");
        command.arg("--control").arg(format!("unix:{}", folder.join("control.sock").display()));
        let output = command.args(args).output()?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::ensure!(output.status.success(), "meshctl {}: {error}", args.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    eventually(Duration::from_secs(20), || {
        anyhow::ensure!(demo.running(), "the demo ended: {}", demo.tail());
        anyhow::ensure!(demo.stdout().contains("Ctrl-C ends"), "not ready: {}", demo.tail());
        Ok(())
    })
    .unwrap();
    // What it tells to try, from another terminal.
    eventually(Duration::from_secs(20), || {
        let services = meshctl(&["get", "services"])?;
        anyhow::ensure!(["web", "reviews", "ratings", "stock"].iter().all(|s| services.contains(s)), "{services}");
        meshctl(&["route", "set-weight", "reviews", "v1=90", "v2=10", "--wait"]).map(drop)
    })
    .unwrap();
    meshctl(&["check"]).unwrap();
    assert!(meshctl(&["proxy", "status"]).unwrap().lines().count() > 5);

    demo.signal(Signal::SIGINT).unwrap();
    let status = demo.wait(Duration::from_secs(20)).unwrap();
    assert!(status.success(), "{}", demo.tail());
    eventually(Duration::from_secs(5), || {
        let left = processes(&folder.to_string_lossy());
        anyhow::ensure!(left.is_empty(), "still running: {left:?}");
        let after = host_state();
        anyhow::ensure!(after == before, "before:\n{before}\nafter:\n{after}");
        Ok(())
    })
    .unwrap();
}

fn demo(mesh: &Mesh, args: &[&str]) -> Process {
    let mut command = mesh.command("meshctl");
    command.args(["demo", "--port", "0", "--data"]).arg(mesh.data().join("demo")).args(args);
    Process::start("demo", command, &mesh.logs()).unwrap()
}

/// Interfaces, named namespaces, mounts and firewall rules of the host.
fn host_state() -> String {
    let commands =
        [["ip", "-br", "link"], ["ip", "netns", "list"], ["nft", "list", "ruleset"], ["ip", "route", "list"]];
    let run = |command: &[&str; 3]| {
        let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    commands.iter().map(run).collect::<Vec<_>>().join("\n") + &mounts
}

/// Command lines that name a folder, other than this test's own.
fn processes(folder: &str) -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let texts = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    texts.filter(|text| text.contains(folder)).collect()
}
