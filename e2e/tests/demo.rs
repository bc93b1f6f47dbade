//! The demo does what it says, as root and without, and leaves nothing behind.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mesh_e2e::as_root_and_without;
use mesh_e2e::mesh::{Mesh, User};
use mesh_e2e::process::{Process, eventually};
use nix::sys::signal::Signal;

as_root_and_without!(the_scenario_is_as_asked, the_demo_works_with_meshctl_and_leaves_nothing_behind);

fn the_scenario_is_as_asked(user: User) {
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

/// A fault that is not of its scenario, on the way to the shop itself: the scene that it falls into is off, by name and by exit
/// code, and no other.
#[test]
fn a_scene_that_is_off_is_named_and_fails() {
    let mesh = Mesh::start(User::Same).unwrap();
    let mut demo = demo(&mesh, &["--once"]);
    // A scene of five seconds or more, of which one failed request would do. The next one begins by clearing all faults.
    eventually(Duration::from_secs(60), || {
        anyhow::ensure!(demo.running(), "the demo ended: {}", demo.tail());
        anyhow::ensure!(demo.stderr().contains("$ meshctl fault delay"), "not there yet: {}", demo.tail());
        Ok(())
    })
    .unwrap();
    meshctl(&mesh, &["fault", "abort", "web", "--percent", "100", "--status", "500", "--for", "1m"]).unwrap();
    let status = demo.wait(Duration::from_secs(120)).unwrap();
    assert_eq!(status.code(), Some(1), "{}", demo.tail());
    let said = demo.stdout();
    let off: Vec<_> = said.lines().filter(|line| line.ends_with("OFF")).collect();
    assert!(matches!(off[..], [line] if line.starts_with("delay 50%")), "{said}");
    assert_eq!(said.matches("as asked").count(), 8, "{said}");
    assert!(demo.stderr().contains("1 of 9 scenes are not as asked."), "{}", demo.tail());
}

/// All want the same ports, and each takes others when another one was quicker.
#[test]
fn demos_that_start_at_once_do_not_meet() {
    let mesh = Mesh::start(User::Same).unwrap();
    let mut demos = ["one", "two", "three"].map(|name| demo_in(&mesh, name, &["--rate", "10"]));
    let mut addresses = Vec::new();
    for demo in &mut demos {
        let said = ready(demo);
        let found = said.split("http://").skip(1).filter_map(|rest| rest.split('/').next()).map(str::to_owned);
        addresses.extend(found);
    }
    let different: std::collections::BTreeSet<_> = addresses.iter().collect();
    // The shop, the control plane and six proxies.
    assert_eq!((addresses.len(), different.len()), (24, 24), "{addresses:?}");
    demos.iter().for_each(|demo| demo.signal(Signal::SIGINT).unwrap());
    for demo in &mut demos {
        assert!(demo.wait(Duration::from_secs(20)).unwrap().success(), "{}", demo.tail());
    }
}

fn the_demo_works_with_meshctl_and_leaves_nothing_behind(user: User) {
    let mut mesh = Mesh::start(user).unwrap();
    // Other programs write into the real ones meanwhile.
    for (variable, name) in [("TMPDIR", "tmp"), ("XDG_RUNTIME_DIR", "run")] {
        let folder = mesh.data().join(name);
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        mesh.environment.push((variable, folder.display().to_string()));
    }
    let folder = mesh.data().join("demo");
    let before = host_state(&mesh);
    let mut demo = demo(&mesh, &["--rate", "50"]);
    let said = ready(&mut demo);
    // Which there is wherever the tests are.
    assert!(said.contains("`web` is in Python"), "{said}");
    addresses_answer(&said, &folder);
    // A row for each version of each service, with mutual TLS all over.
    let table = eventually(Duration::from_secs(30), || {
        let said = demo.stdout();
        let rows: Vec<Vec<String>> = said
            .lines()
            .skip_while(|line| !line.starts_with("SERVICE"))
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect())
            .take_while(|row: &Vec<String>| !row.is_empty())
            .collect();
        anyhow::ensure!(rows.len() > 1, "no table yet: {said}");
        Ok(rows)
    })
    .unwrap();
    assert_eq!(table[0], ["SERVICE", "VERSION", "REQ/S", "SUCCESS", "P50", "P99", "MTLS"]);
    let names: Vec<_> = table[1..].iter().map(|row| row[0].as_str()).collect();
    assert_eq!(names, ["web", "reviews", "reviews", "ratings", "stock"], "{table:?}");
    assert!(table[1..].iter().all(|row| row.len() == 7 && row[6] == "yes"), "{table:?}");
    assert!(table[1..5].iter().all(|row| row[3] == "100%"), "{table:?}");

    // What it tells to try, from another terminal.
    let said = demo.stdout();
    let (_, try_these) = said.split_once("Try from another terminal:\n").unwrap();
    let commands: Vec<_> = try_these.lines().filter_map(|line| line.trim().strip_prefix("meshctl ")).collect();
    assert_eq!(commands.len(), 7, "{said}");
    for command in commands {
        let printed = meshctl(&mesh, &command.split(' ').collect::<Vec<_>>()).unwrap();
        assert!(!printed.trim().is_empty(), "{command}");
        if ["get services", "top", "topology"].contains(&command) {
            assert!(["web", "reviews", "ratings", "stock"].iter().all(|s| printed.contains(s)), "{printed}");
        } else if command == "proxy status" {
            assert!(printed.lines().count() > 5, "{printed}");
        }
    }
    meshctl(&mesh, &["wait"]).unwrap();
    meshctl(&mesh, &["check"]).unwrap();

    demo.signal(Signal::SIGINT).unwrap();
    let status = demo.wait(Duration::from_secs(20)).unwrap();
    assert!(status.success(), "{}", demo.tail());
    eventually(Duration::from_secs(5), || {
        let left = processes(&folder.to_string_lossy());
        anyhow::ensure!(left.is_empty(), "still running: {left:?}");
        let after = host_state(&mesh);
        anyhow::ensure!(after == before, "before:\n{before}\nafter:\n{after}");
        Ok(())
    })
    .unwrap();
}

/// What it tells to open in a browser, and to scrape, one by one or by the configuration that it has written.
fn addresses_answer(said: &str, folder: &Path) {
    let get = |url: &str| {
        let output = Command::new("curl").args(["-sSf", "-m", "10", url]).output().unwrap();
        assert!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let urls: Vec<_> = said.split_whitespace().filter(|word| word.starts_with("http://")).collect();
    let (shop, scraped): (Vec<_>, Vec<_>) = urls.into_iter().partition(|url| !url.ends_with("/metrics"));
    assert!(get(shop[0]).contains("<html"), "{shop:?}");
    assert_eq!(scraped.len(), 7, "{said}");
    let prometheus = fs::read_to_string(folder.join("prometheus.yml")).unwrap();
    for url in scraped {
        let program = if get(url).contains("mesh_control_snapshot_revision") { "mesh-control" } else { "mesh-proxy" };
        let target = url.trim_start_matches("http://").trim_end_matches("/metrics");
        let job = prometheus.split("job_name: ").find(|job| job.contains(target)).unwrap_or_default();
        assert!(job.starts_with(program), "{target} of {program}: {prometheus}");
    }
    let check = Command::new("promtool").args(["check", "config"]).arg(folder.join("prometheus.yml")).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}

/// On the demo's control plane.
fn meshctl(mesh: &Mesh, args: &[&str]) -> anyhow::Result<String> {
    let mut command = mesh.command("meshctl");
    command.arg("--control").arg(format!("unix:{}", mesh.data().join("demo/control.sock").display()));
    let output = command.args(args).output()?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(output.status.success(), "meshctl {}: {error}", args.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn demo(mesh: &Mesh, args: &[&str]) -> Process {
    demo_in(mesh, "demo", args)
}

/// In a folder of this name.
fn demo_in(mesh: &Mesh, name: &str, args: &[&str]) -> Process {
    let mut command = mesh.command("meshctl");
    command.args(["demo", "--port", "0", "--data"]).arg(mesh.data().join(name)).args(args);
    Process::start(name, command, &mesh.logs()).unwrap()
}

/// What a demo prints before its first table.
fn ready(demo: &mut Process) -> String {
    eventually(Duration::from_secs(20), || {
        anyhow::ensure!(demo.running(), "the demo ended: {}", demo.tail());
        let said = demo.stdout();
        anyhow::ensure!(said.contains("Ctrl-C ends"), "not ready: {}", demo.tail());
        Ok(said)
    })
    .unwrap()
}

/// Interfaces, named namespaces, mounts, firewall and routing rules of the host, and the files of the demo's user outside of
/// the demo's folder.
fn host_state(mesh: &Mesh) -> String {
    let commands = [
        "ip -br link",
        "ip netns list",
        "nft list ruleset",
        "ip route list table all",
        "ip -6 route list table all",
        "ip rule list",
        "ip -6 rule list",
    ];
    let run = |command: &&str| {
        let words: Vec<_> = command.split(' ').collect();
        let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
        format!("{command}:\n{}", String::from_utf8_lossy(&output.stdout))
    };
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let demo = mesh.data().join("demo");
    let mut files = Vec::new();
    list(&mesh.data(), &demo, &mut files);
    for shared in ["/tmp", "/run", "/dev/shm"] {
        let names = fs::read_dir(shared).unwrap().flatten().map(|entry| entry.path());
        // Those of other tests are named by them.
        files.extend(names.filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.contains("mesh") && !name.starts_with("mesh-e2e-")
        }));
    }
    files.sort();
    commands.iter().map(run).collect::<Vec<_>>().join("\n") + &mounts + &format!("{files:#?}")
}

/// All below a folder but one.
fn list(folder: &Path, but: &Path, files: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).filter(|path| path != but) {
        if path.is_dir() {
            list(&path, but, files);
        }
        files.push(path);
    }
}

/// Command lines that name a folder, other than this test's own.
fn processes(folder: &str) -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let texts = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    texts.filter(|text| text.contains(folder)).collect()
}
