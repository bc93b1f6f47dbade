//! Why there is no namespace, and what to do about it.

use std::fs;
use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this host forbids what a mesh without root needs (cannot {what}: {error}). {remedy}")]
    Forbidden { what: &'static str, error: io::Error, remedy: String },
    #[error("cannot {what}: {error}")]
    System { what: String, error: io::Error },
    #[error("the kernel cannot {what} ({reason}); as root, try `modprobe {module}`")]
    Module { what: String, reason: String, module: &'static str },
    #[error("cannot {what}: {reason}")]
    Link { what: String, reason: String },
    #[error("the data folder {path} cannot be used: {error}", path = path.display())]
    Data { path: PathBuf, error: io::Error },
    #[error("the process that holds the mesh's network ended: {0}")]
    Holder(String),
    /// In the holder's own words.
    #[error("{0}")]
    Told(String),
    #[error("all addresses of the mesh's network are taken")]
    Full,
}

impl Error {
    pub(super) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::System { what, error }
    }

    /// A failed `unshare` or a failed write of an id map, told apart by the settings that cause it.
    pub(super) fn forbidden(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Forbidden { what, remedy: remedy(&|path| fs::read_to_string(path).ok()), error }
    }
}

const NEXT: &str = "Or run it as root (`sudo`)";

/// `read` gives the text of a file below /proc/sys.
fn remedy(read: &dyn Fn(&str) -> Option<String>) -> String {
    let setting = |path: &str| read(path).and_then(|text| text.trim().parse::<u64>().ok());
    if setting("/proc/sys/user/max_user_namespaces") == Some(0) {
        return format!(
            "User namespaces are off here. Allow them with `sudo sysctl -w user.max_user_namespaces=15000`. {NEXT}"
        );
    }
    if setting("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        return format!(
            "User namespaces are for root only here. Allow them with `sudo sysctl -w kernel.unprivileged_userns_clone=1`. {NEXT}"
        );
    }
    if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        return format!(
            "AppArmor restricts user namespaces here, as Ubuntu does since 23.10. Allow them until the next start with `sudo sysctl -w \
             kernel.apparmor_restrict_unprivileged_userns=0`. {NEXT}"
        );
    }
    format!(
        "This looks like a container or a seccomp filter that blocks `unshare`. Give the container the capabilities SYS_ADMIN and \
         NET_ADMIN, or a seccomp profile that allows user namespaces. {NEXT}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_names_the_setting_that_forbids() {
        let with = |name: &'static str, value: &'static str| {
            remedy(&move |path: &str| path.ends_with(name).then(|| value.to_owned()))
        };
        assert!(with("max_user_namespaces", "0\n").contains("user.max_user_namespaces=15000"));
        assert!(with("unprivileged_userns_clone", "0\n").contains("kernel.unprivileged_userns_clone=1"));
        assert!(with("restrict_unprivileged_userns", "1\n").contains("AppArmor"));
        assert!(with("max_user_namespaces", "9000\n").contains("container"));
    }
}
