//! Images hold the program and nothing that differs from one build to the next, and are no larger than they may be.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use mesh_e2e::cluster::run;

const MESH_IMAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/images/mesh-image");

fn build(program: &Path, out: &Path) -> Output {
    build_with(program, out, &[])
}

fn build_with(program: &Path, out: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(MESH_IMAGE);
    command.args(["build", "--name", "example.com/mesh:1", "--entrypoint", "/mesh", "--user", "1337:1337"]).args(args);
    command.arg("--out").arg(out).arg(format!("{}:/mesh", program.display())).output().unwrap()
}

#[test]
fn the_same_program_gives_the_same_bytes_whenever_it_was_built() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("mesh");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let (first, second) = (folder.path().join("1.tar"), folder.path().join("2.tar"));
    let said = build(&program, &first);
    assert!(said.status.success(), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stdout).contains("MB compressed"), "{said:?}");
    let older = SystemTime::now() - Duration::from_secs(86_400);
    fs::File::options().write(true).open(&program).unwrap().set_modified(older).unwrap();
    assert!(build(&program, &second).status.success());
    assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap(), "two builds differ");

    let text = |archive: &Path, name: &str| run(Command::new("tar").arg("-xOf").arg(archive).arg(name), None).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&text(&first, "manifest.json")).unwrap();
    let blob = |field: &serde_json::Value| field.as_str().unwrap().to_owned();
    let config: serde_json::Value = serde_json::from_str(&text(&first, &blob(&manifest[0]["Config"]))).unwrap();
    assert_eq!((&config["config"]["User"], &config["config"]["Entrypoint"][0]), (&"1337:1337".into(), &"/mesh".into()));
    let known =
        [("x86_64", "amd64"), ("aarch64", "arm64")].into_iter().find(|(arch, _)| *arch == std::env::consts::ARCH);
    assert!(known.is_none_or(|(_, name)| config["architecture"] == name), "{config}");

    run(Command::new("tar").arg("-xf").arg(&first).arg("-C").arg(folder.path()), None).unwrap();
    let layer = folder.path().join(blob(&manifest[0]["Layers"][0]));
    let listed = run(Command::new("tar").arg("-tzf").arg(&layer), None).unwrap();
    assert_eq!(listed.lines().collect::<Vec<_>>(), ["etc/", "tmp/", "etc/group", "etc/passwd", "mesh"]);
}

#[test]
fn what_is_no_program_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("mesh");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let said = build(&script, &folder.path().join("out.tar"));
    assert!(!said.status.success());
    assert!(String::from_utf8_lossy(&said.stderr).contains("not a program for a known machine"), "{said:?}");
    assert!(!folder.path().join("out.tar").exists());
}

#[test]
fn an_image_that_is_too_large_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (program, out) = (std::env::current_exe().unwrap(), folder.path().join("out.tar"));
    let said = build_with(&program, &out, &["--limit", "0.1"]);
    assert!(!said.status.success());
    let error = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(error.contains("example.com/mesh:1 has ") && error.contains("more than the 0.1 MB"), "{error}");
    assert!(!out.exists());
    assert!(build_with(&program, &out, &["--limit", "1000"]).status.success());
}

/// Those that `deploy/images/static-build` has made, if `e2e/test.sh` names them.
fn of_images() -> Vec<PathBuf> {
    let programs = std::env::var_os("MESH_E2E_PROGRAMS").map(PathBuf::from);
    let all = programs.map(|folder| ["mesh-proxy", "mesh-control"].map(|name| folder.join(name)));
    all.into_iter().flatten().collect()
}

#[test]
fn the_programs_of_images_are_linked_with_nothing() {
    for program in of_images() {
        // The interpreter of a dynamic program, and what it has that load for it.
        let said = run(Command::new("readelf").arg("-lWd").arg(&program), None).unwrap();
        assert!(said.contains("LOAD"), "{said}");
        assert!(!said.contains("INTERP") && !said.contains("(NEEDED)"), "{}: {said}", program.display());
    }
}

/// `meshctl` may: it looks for the source there.
#[test]
fn the_programs_of_images_do_not_say_where_they_were_built() {
    let home = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cargo = home("CARGO_HOME").or_else(|| Some(home("HOME")?.join(".cargo"))).unwrap();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for program in of_images() {
        let program = fs::canonicalize(program).unwrap();
        let bytes = fs::read(&program).unwrap();
        // The folder that cargo builds in has one for the target, and in it one for the profile.
        let target = program.ancestors().nth(3).unwrap();
        // Programs that were copied elsewhere have no such folder.
        for folder in [cargo.as_path(), repository, target].into_iter().filter(|folder| folder.parent().is_some()) {
            let folder = format!("{}/", folder.display());
            let found = bytes.windows(folder.len()).position(|it| it == folder.as_bytes());
            let text = |at: usize| String::from_utf8_lossy(&bytes[at..bytes.len().min(at + 200)]).into_owned();
            assert_eq!(found.map(text), None, "{} names {folder}", program.display());
        }
    }
}
