//! Puts the protobuf descriptors of Envoy's configuration and of our own into the program, so that `meshctl proxy config`
//! can show every field of every resource, also of extensions that this mesh does not use itself.
//!
//! Envoy's descriptors come with the source of the `envoy-types` crate; our own are compiled from `proto/`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use prost::Message;
use prost_types::FileDescriptorSet;

const CRATE: &str = "envoy-types";
const DESCRIPTORS: &str = "src/generated/types.bin";
const OWN: [&str; 2] = ["mesh/extensions/v1/extensions.proto", "mesh/workload/v1/workload.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let lock = manifest.join("../Cargo.lock");
    println!("cargo:rerun-if-changed={}", lock.display());
    let proto = manifest.join("../proto");
    for file in OWN {
        println!("cargo:rerun-if-changed={}", proto.join(file).display());
    }
    let source = source_folder(&locked_version(&fs::read_to_string(&lock)?)?)?;
    let mut set = FileDescriptorSet::decode(fs::read(source.join(DESCRIPTORS))?.as_slice())?;
    // Comments are half of it.
    set.file.iter_mut().for_each(|file| file.source_code_info = None);
    let known: Vec<String> = set.file.iter().map(|file| file.name().to_owned()).collect();
    let own = protox::compile(OWN, [&proto])?.file.into_iter().filter(|file| !known.contains(&file.name().to_owned()));
    set.file.extend(own);
    fs::write(Path::new(&env::var("OUT_DIR")?).join("descriptors.bin"), set.encode_to_vec())?;
    Ok(())
}

fn locked_version(lock: &str) -> Result<String, Box<dyn Error>> {
    let name = format!("name = \"{CRATE}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name).skip(1);
    let version = lines.next().and_then(|line| line.strip_prefix("version = \"")?.strip_suffix('"'));
    Ok(version.ok_or_else(|| format!("Cargo.lock has no version of {CRATE}"))?.to_owned())
}

/// The unpacked crate: where cargo keeps registries, else (vendored, patched) where cargo says.
fn source_folder(version: &str) -> Result<PathBuf, Box<dyn Error>> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let registries = home.map(|home| home.join("registry/src")).and_then(|folder| fs::read_dir(folder).ok());
    let unpacked = registries.into_iter().flatten().flatten().map(|e| e.path().join(format!("{CRATE}-{version}")));
    for folder in unpacked {
        if folder.join(DESCRIPTORS).is_file() {
            return Ok(folder);
        }
    }
    asked_of_cargo(version)
}

fn asked_of_cargo(version: &str) -> Result<PathBuf, Box<dyn Error>> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let output =
        cargo.args(["metadata", "--format-version", "1", "--filter-platform", &env::var("TARGET")?]).output()?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let package = packages.iter().find(|p| p["name"] == CRATE && p["version"] == version);
    let manifest = package.and_then(|p| p["manifest_path"].as_str()).map(Path::new);
    let folder = manifest.and_then(Path::parent).ok_or_else(|| format!("cargo does not know where {CRATE} is"))?;
    Ok(folder.to_owned())
}
