//! Where the mesh's other programs are: beside this one, or on the PATH.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// `mesh-proxy`, `mesh-control` and the like.
pub fn find(name: &str) -> Result<PathBuf, Failure> {
    let own = env::current_exe().unwrap_or_default();
    search(name, &own, env::var_os("PATH").as_deref()).ok_or_else(|| {
        Failure::not_found(format!("Cannot find the program `{name}`.")).hint(format!(
            "Put it beside {} or on the PATH (`cargo build --release` builds all of them).",
            own.display()
        ))
    })
}

fn search(name: &str, own: &Path, path: Option<&OsStr>) -> Option<PathBuf> {
    let beside = own.parent().map(Path::to_owned);
    let folders = beside.into_iter().chain(path.into_iter().flat_map(env::split_paths));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_beside_this_one_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        let (own, other) = (folder.path().join("own"), folder.path().join("other"));
        for place in [&own, &other] {
            std::fs::create_dir(place).unwrap();
            std::fs::write(place.join("mesh-proxy"), "").unwrap();
        }
        let path = other.clone().into_os_string();
        assert_eq!(search("mesh-proxy", &own.join("meshctl"), Some(&path)), Some(own.join("mesh-proxy")));
        std::fs::remove_file(own.join("mesh-proxy")).unwrap();
        assert_eq!(search("mesh-proxy", &own.join("meshctl"), Some(&path)), Some(other.join("mesh-proxy")));
        assert_eq!(search("mesh-control", &own.join("meshctl"), Some(&path)), None);
    }
}
