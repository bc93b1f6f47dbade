//! What can be wrong with the store or with what is asked of it.

use std::path::PathBuf;

use mesh_common::resource::Key;

use super::db::MAX_FILE_BYTES;
use super::{MAX_BATCH, MAX_OBJECT_BYTES, MAX_TOTAL_BYTES};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot use {path}: {reason}")]
    Io { path: PathBuf, reason: std::io::Error },
    #[error(
        "the store file {path} is damaged ({reason}); restore it from a backup, or move it away to begin with an empty store"
    )]
    Corrupt { path: PathBuf, reason: String },
    #[error("{0} is not a regular file; move it away, mesh-control keeps its store there")]
    NotAFile(PathBuf),
    #[error(
        "the store file {path} has {bytes} bytes, more than a store can have ({MAX_FILE_BYTES}); it is not one of mesh-control: move it away"
    )]
    Oversized { path: PathBuf, bytes: u64 },
    #[error(
        "the store file {path} has format {found}, and this mesh-control knows {known}; use the version that wrote it"
    )]
    Format { path: PathBuf, found: u64, known: u64 },
    #[error("another mesh-control{holder} is using {dir}; stop it, or give this one another folder with --data")]
    Locked { dir: PathBuf, holder: String },
    #[error(
        "an earlier write to {0} failed and the store takes no more; free space on the disk or mend it, then restart mesh-control"
    )]
    Stopped(PathBuf),
    #[error("the store holds {key}, which cannot be read ({reason}); was it written by a newer mesh-control?")]
    Unreadable { key: String, reason: String },
    #[error("the store was stopped in the middle of a change; it was not made, or will be found after a restart")]
    Interrupted,
    #[error("the system gives no random numbers")]
    Random,

    #[error(
        "{key} has changed meanwhile: it has resourceVersion {current}, not {given}; get it again and repeat the change, or leave out metadata.resourceVersion to replace it"
    )]
    Conflict { key: Key, given: String, current: String },
    #[error("{key} does not exist any more, but a resourceVersion is given; leave that out to create it anew")]
    Vanished { key: Key },
    #[error("{0} does not exist")]
    NotFound(Key),
    #[error("{0} is there twice in one request; name each object once")]
    Twice(Key),
    #[error("{key} has {bytes} bytes as JSON, and an object may have {MAX_OBJECT_BYTES}; split it")]
    TooLarge { key: Key, bytes: usize },
    #[error("{0} objects in one request, and there may be {MAX_BATCH}; split the request")]
    Batch(usize),
    #[error("the store may hold {MAX_TOTAL_BYTES} bytes of objects, and would hold more; delete some first")]
    Full,
}
