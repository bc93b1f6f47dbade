//! A control plane that cannot read its store says so and ends; it neither changes the file nor begins anew.

#![allow(clippy::unwrap_used)]

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::time::Duration;

use mesh_e2e::mesh::{Mesh, User};
use mesh_e2e::process::Process;

#[test]
fn a_store_that_cannot_be_read_is_refused_and_left_as_it_is() {
    let mut mesh = Mesh::start(User::Same).unwrap();
    mesh.apply("apiVersion: v1\nkind: Service\nmetadata: {name: kept}\nspec: {ports: [{port: 9080}]}\n").unwrap();
    mesh.control.take().unwrap().end().unwrap();
    let file = mesh.data().join("store.redb");
    let good = fs::read(&file).unwrap();

    let mut overwritten = good.clone();
    let middle = overwritten.len() / 2;
    overwritten[..middle].fill(0xa5);
    for (what, bytes) in [
        ("overwritten", overwritten),
        ("cut off", good[..good.len() / 3].to_vec()),
        ("another program's", b"SQLite format 3\0".repeat(1000)),
    ] {
        fs::write(&file, &bytes).unwrap();
        refused(&mesh, "is damaged", &file);
        assert!(fs::read(&file).unwrap() == bytes, "{what}: the file was changed");
    }

    // Sparse: it only looks large.
    fs::write(&file, &good).unwrap();
    OpenOptions::new().write(true).open(&file).unwrap().set_len(5 << 30).unwrap();
    refused(&mesh, "more than a store can have", &file);
    assert_eq!(fs::metadata(&file).unwrap().len(), 5 << 30);

    // Nothing was lost: with the file from the backup all is as it was.
    fs::write(&file, &good).unwrap();
    mesh.start_control().unwrap();
    assert!(mesh.meshctl(&["get", "service", "kept", "-o", "yaml"]).unwrap().contains("port: 9080"));
}

/// It ends by itself, with an error that names the file, what is wrong and what to do.
fn refused(mesh: &Mesh, reason: &str, file: &Path) {
    let mut command = mesh.command("mesh-control");
    command.args(["--mode", "standalone", "--data"]).arg(mesh.data());
    for port in ["--listen-xds", "--listen-plaintext", "--listen-metrics"] {
        command.args([port, "127.0.0.1:0"]);
    }
    let mut control = Process::start("refused", command, &mesh.logs()).unwrap();
    let status = control.wait(Duration::from_secs(10)).unwrap();
    let said = control.stderr();
    assert_eq!(status.code(), Some(1), "{}", control.tail());
    assert!(said.contains(reason) && said.contains(&*file.to_string_lossy()), "{said}");
    assert!(said.contains("move it away"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}
