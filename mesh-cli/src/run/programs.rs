//! Where the mesh's other programs are: beside this one, or on the PATH.

use std::env;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::failure::{Exit, Failure};
use crate::netns::NOT_FOUND;

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

/// The application's program, looked for as a shell does: before anything is started, because a join token that works once
/// would be gone for a slip of the pen.
pub fn must_exist(program: &OsStr) -> Result<(), Failure> {
    if exists(program, env::var_os("PATH").as_deref()) {
        return Ok(());
    }
    let message = format!("There is no program `{}`.", program.display());
    Err(Failure::with(Exit::Application(NOT_FOUND), message).hint("Nothing was started; the token can still be used."))
}

fn exists(program: &OsStr, path: Option<&OsStr>) -> bool {
    let file = Path::new(program);
    if program.as_bytes().contains(&b'/') {
        return file.exists();
    }
    // Without a PATH, it depends on the system where programs are.
    path.is_none_or(|path| env::split_paths(path).any(|folder| folder.join(file).exists()))
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
    fn an_application_is_looked_for_as_a_shell_does() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("app");
        std::fs::write(&file, "").unwrap();
        let path = folder.path().as_os_str();
        assert!(exists(OsStr::new("app"), Some(path)) && !exists(OsStr::new("app"), Some(OsStr::new("/nonexistent"))));
        assert!(exists(file.as_os_str(), Some(OsStr::new(""))) && !exists(OsStr::new("./no-such-app"), Some(path)));
        assert!(exists(OsStr::new("app"), None));
    }

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
