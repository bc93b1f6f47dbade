//! The programs that the demo needs: built with cargo when this one was, taken as they are when it was installed.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::failure::Failure;
use crate::run::find_program;

const PROGRAMS: [&str; 3] = ["mesh-control", "mesh-proxy", "shop"];

/// Makes sure that all of them are there and up to date.
pub(super) async fn programs() -> Result<(), Failure> {
    let own = env::current_exe()?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"));
    if let Some(build) = Build::of(&own, source) {
        build.run().await?;
    }
    PROGRAMS.iter().try_for_each(|program| find_program(program).map(drop))
}

/// A checkout that this program was built in.
#[derive(Debug, PartialEq, Eq)]
struct Build {
    source: PathBuf,
    target: PathBuf,
    profile: String,
}

impl Build {
    /// `None`: this program does not lie where cargo put it, or the source is gone, or it was built for a target that was
    /// named, with flags that are not known here: such programs are used as they are.
    fn of(own: &Path, source: &Path) -> Option<Self> {
        let folder = own.parent().filter(|folder| folder.join("deps").is_dir())?;
        let above = folder.parent()?.file_name()?.to_str()?;
        if above.starts_with(&format!("{}-", env::consts::ARCH)) {
            return None;
        }
        let profile = match folder.file_name()?.to_str()? {
            "debug" => "dev",
            other => other,
        };
        let workspace = source.join("e2e/shop/Cargo.toml").is_file();
        workspace.then(|| Self {
            source: source.to_owned(),
            target: folder.parent().unwrap_or(folder).to_owned(),
            profile: profile.to_owned(),
        })
    }

    /// Cargo knows itself what is missing or stale; it says nothing and takes a moment when nothing is.
    async fn run(&self) -> Result<(), Failure> {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.source).args(["build", "--bins", "--profile", &self.profile, "--target-dir"]);
        cargo.arg(&self.target).stdin(Stdio::null()).stdout(Stdio::null());
        // `cargo run` has set these for the program that it runs, not for another cargo.
        for name in
            env::vars_os().map(|(name, _)| name).filter(|name| belongs_to_cargo(name.to_str().unwrap_or_default()))
        {
            cargo.env_remove(name);
        }
        match cargo.kill_on_drop(true).status().await {
            Ok(status) if status.success() => Ok(()),
            Ok(_) => Err(Failure::new("The programs of the demo cannot be built.")
                .hint(format!("See what cargo says above; `cargo build` in {} repeats it.", self.source.display()))),
            // Perhaps another user's checkout, under sudo: what is built already will do.
            Err(error) => {
                eprintln!("cargo cannot be run ({error}); the programs are used as they are.");
                Ok(())
            }
        }
    }
}

fn belongs_to_cargo(name: &str) -> bool {
    name.starts_with("CARGO_PKG_")
        || name.starts_with("CARGO_BIN_")
        || matches!(name, "CARGO_MANIFEST_DIR" | "CARGO_CRATE_NAME")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_program_in_its_checkout_builds() {
        let folder = tempfile::tempdir().unwrap();
        let (source, target) = (folder.path().join("mesh"), folder.path().join("target"));
        std::fs::create_dir_all(source.join("e2e/shop")).unwrap();
        std::fs::create_dir_all(target.join("debug/deps")).unwrap();
        let own = target.join("debug/meshctl");
        assert_eq!(Build::of(&own, &source), None);
        std::fs::write(source.join("e2e/shop/Cargo.toml"), "").unwrap();
        let build = Build::of(&own, &source).unwrap();
        assert_eq!((build.profile.as_str(), build.target), ("dev", target));
        assert_eq!(Build::of(Path::new("/usr/bin/meshctl"), &source), None);
        let named = folder.path().join("target").join(format!("{}-unknown-linux-gnu", env::consts::ARCH));
        std::fs::create_dir_all(named.join("release/deps")).unwrap();
        assert_eq!(Build::of(&named.join("release/meshctl"), &source), None);
    }
}
