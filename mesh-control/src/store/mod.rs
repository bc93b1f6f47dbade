//! The embedded store of standalone mode: objects by key, versioned, and join tokens; all of it durable.
//!
//! In: batches of objects, each batch taken whole or not at all. Out: an immutable picture of all objects after each
//! commit, to whoever watches.

mod db;
mod tokens;

use std::path::PathBuf;

use rustls::crypto::aws_lc_rs;

pub use db::guarded;
pub use tokens::{DEFAULT_TTL, MAX_TTL, TokenError, Tokens};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot use {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the store file {path} is damaged ({reason}); restore it from a backup, or move it away to begin with an empty store")]
    Corrupt { path: PathBuf, reason: String },
    #[error("{0} is not a regular file; move it away, mesh-control keeps its store there")]
    NotAFile(PathBuf),
    #[error("the store file {path} has {bytes} bytes, more than a store can have ({}); it is not one of mesh-control: move it away", db::MAX_FILE_BYTES)]
    Oversized { path: PathBuf, bytes: u64 },
    #[error("the store file {path} has format {found}, and this mesh-control knows {known}; use the version that wrote it")]
    Format { path: PathBuf, found: u64, known: u64 },
    #[error("another mesh-control{holder} is using {dir}; stop it, or give this one another folder with --data")]
    Locked { dir: PathBuf, holder: String },
    #[error("an earlier write to {0} failed and the store takes no more; free space on the disk or mend it, then restart mesh-control")]
    Stopped(PathBuf),
    #[error("the store holds {key}, which cannot be read ({reason}); was it written by a newer mesh-control?")]
    Unreadable { key: String, reason: String },
    #[error("the system gives no random numbers")]
    Random,
}

/// From the system's source, fit for secrets.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut bytes = [0; N];
    aws_lc_rs::default_provider().secure_random.fill(&mut bytes).map_err(|_| StoreError::Random)?;
    Ok(bytes)
}
