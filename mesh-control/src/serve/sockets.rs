//! Listening sockets, with errors that say what to do.

use std::fs::Permissions;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener};

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("{address} is in use by another program; stop that one, or choose another address with {option}")]
    InUse { address: SocketAddr, option: &'static str },
    #[error("not allowed to listen on {address}; choose a port above 1023 with {option}")]
    Forbidden { address: SocketAddr, option: &'static str },
    #[error("cannot listen on {address} (see {option}): {reason}")]
    Tcp { address: SocketAddr, option: &'static str, reason: io::Error },
    #[error("{0} is in the way and is not a socket; move it")]
    NotASocket(PathBuf),
    #[error("{0} is too long for a socket (107 bytes at most); choose a shorter folder with --data")]
    TooLong(PathBuf),
    #[error("cannot listen on {path}: {reason}")]
    Unix { path: PathBuf, reason: io::Error },
}

/// `option` is what the user changes to get another address.
pub async fn bind_tcp(address: SocketAddr, option: &'static str) -> Result<TcpListener, SocketError> {
    TcpListener::bind(address).await.map_err(|reason| match reason.kind() {
        ErrorKind::AddrInUse => SocketError::InUse { address, option },
        ErrorKind::PermissionDenied => SocketError::Forbidden { address, option },
        _ => SocketError::Tcp { address, option, reason },
    })
}

/// Replaces a socket that an earlier process left; the lock on the data folder says that no other one serves it. The
/// socket has its mode before anybody can see it under its name.
pub fn bind_unix(path: &Path, mode: u32) -> Result<UnixListener, SocketError> {
    let fresh = path.with_extension("new");
    if fresh.as_os_str().len() > 107 {
        return Err(SocketError::TooLong(path.to_owned()));
    }
    for path in [path, &fresh] {
        if path.symlink_metadata().is_ok_and(|metadata| !metadata.file_type().is_socket()) {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
    }
    let bind = || {
        remove(&fresh)?;
        let listener = UnixListener::bind(&fresh)?;
        std::fs::set_permissions(&fresh, Permissions::from_mode(mode))?;
        std::fs::rename(&fresh, path)?;
        Ok(listener)
    };
    bind().map_err(|reason| SocketError::Unix { path: path.to_owned(), reason })
}

/// Removes a socket file, if it is there.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
