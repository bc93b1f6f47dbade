//! Making and entering namespaces. All of it concerns the calling process or, for network namespaces, the calling thread.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::process::{getegid, geteuid};

use super::Error;

/// Moves this process, which must have one thread, into a new network namespace, with a user namespace around it if that is
/// what it takes. True if it did.
pub(super) fn create_fabric() -> Result<bool, Error> {
    if unshare(CloneFlags::CLONE_NEWNET).is_ok() {
        return Ok(false);
    }
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
        .map_err(io::Error::from)
        .map_err(Error::forbidden("make a user namespace"))?;
    map_ids(&format!("0 {uid} 1"), &format!("0 {gid} 1"))
        .map_err(Error::forbidden("become root in a user namespace"))?;
    Ok(true)
}

/// Makes the caller, in a user namespace where it is root, the user that it was outside again, without any power over the
/// namespaces around it.
pub(super) fn become_user(uid: u32, gid: u32) -> Result<(), Error> {
    unshare(CloneFlags::CLONE_NEWUSER)
        .map_err(io::Error::from)
        .map_err(Error::forbidden("make a user namespace for the application"))?;
    map_ids(&format!("{uid} 0 1"), &format!("{gid} 0 1")).map_err(Error::forbidden("give the application its user id"))
}

fn map_ids(uids: &str, gids: &str) -> io::Result<()> {
    fs::write("/proc/self/uid_map", uids)?;
    // Without this an unprivileged process may not map groups.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", gids)
}

/// A new network namespace, with nothing in it.
pub(super) fn new_network() -> Result<OwnedFd, Error> {
    // In a thread of its own: the caller stays where it is.
    in_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(io::Error::from)
            .map_err(Error::system("make a network namespace"))?;
        let file = File::open("/proc/thread-self/ns/net").map_err(Error::system("open a network namespace"))?;
        Ok(OwnedFd::from(file))
    })
}

/// Does something in another network namespace.
pub(super) fn in_network<T: Send>(network: &OwnedFd, f: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    in_thread(|| {
        enter(network, CloneFlags::CLONE_NEWNET)?;
        f()
    })
}

fn in_thread<T: Send>(f: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    let joined = thread::scope(|scope| scope.spawn(f).join());
    joined.unwrap_or_else(|_| Err(Error::Holder("a thread of it panicked".into())))
}

pub(super) fn enter_user(namespace: &impl AsFd) -> Result<(), Error> {
    enter(namespace, CloneFlags::CLONE_NEWUSER)
}

pub(super) fn enter_network(namespace: &impl AsFd) -> Result<(), Error> {
    enter(namespace, CloneFlags::CLONE_NEWNET)
}

fn enter(namespace: &impl AsFd, kind: CloneFlags) -> Result<(), Error> {
    setns(namespace, kind).map_err(io::Error::from).map_err(Error::system("enter the workload's namespace"))
}

/// Puts files over others, for this process and its children only. A file that does not exist is left so.
pub(super) fn cover(files: &[(&Path, &str)], folders: &[&str]) -> Result<(), Error> {
    let failed = |what: &str| Error::system(format!("{what} in a mount namespace"));
    unshare(CloneFlags::CLONE_NEWNS).map_err(io::Error::from).map_err(failed("start"))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(io::Error::from)
        .map_err(failed("separate mounts"))?;
    for (source, target) in files.iter().filter(|(_, target)| Path::new(target).exists()) {
        mount(Some(*source), *target, none, MsFlags::MS_BIND, none)
            .map_err(io::Error::from)
            .map_err(failed(&format!("replace {target}")))?;
    }
    for folder in folders.iter().filter(|folder| Path::new(folder).is_dir()) {
        mount(Some("none"), *folder, Some("tmpfs"), MsFlags::empty(), none)
            .map_err(io::Error::from)
            .map_err(failed(&format!("hide {folder}")))?;
    }
    Ok(())
}
