//! The file under the store: redb, opened with suspicion and written durably.
//!
//! redb trusts its file and may panic on one that something else has altered. Here every call into it is checked:
//! whatever is wrong with the file comes out as a [`StoreError`] that names it.

use std::cell::Cell;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use rustix::fs::FlockOperation;

use super::StoreError;

/// A file beyond this is not one of ours: live data is bounded at a fraction of it.
pub const MAX_FILE_BYTES: u64 = 4 << 30;
/// What redb may keep in memory. All reading happens at start, so more would be wasted.
const CACHE_BYTES: usize = 16 << 20;
const FORMAT: u64 = 1;

const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta");
const OBJECTS: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("objects");
const NOTES: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("notes");
const TOKENS: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("tokens");

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside a call whose panic becomes a [`StoreError`], so that a panic hook may stay silent.
pub fn guarded() -> bool {
    GUARDED.get()
}

pub(super) struct Db {
    // Dropped before the lock, so that the next process finds a closed file.
    database: Option<Database>,
    path: PathBuf,
    _lock: File,
}

/// Everything in the file.
#[derive(Default)]
pub(super) struct Contents {
    pub revision: u64,
    pub objects: Vec<(String, Vec<u8>)>,
    pub tokens: Vec<(String, Vec<u8>)>,
    pub notes: Vec<(String, Vec<u8>)>,
}

/// One change to a table: a value to put, or nothing to remove the key.
pub(super) type Change = (String, Option<Vec<u8>>);

impl Db {
    /// Opens (or begins) the store in `dir`, checks every page of it, and returns all that it holds.
    pub(super) fn open(dir: &Path) -> Result<(Self, Contents), StoreError> {
        create_private_dir(dir)?;
        let lock = lock(dir)?;
        let path = dir.join("store.redb");
        let mut database = Some(open_file(&path)?);
        let contents = guard(&path, || match &database {
            Some(database) => load(database, &path),
            None => Ok(Contents::default()),
        });
        match contents {
            Ok(contents) => Ok((Self { database, path, _lock: lock }, contents)),
            Err(error) => {
                // Closing a file in this state can fail as well, and the first error is the one that counts.
                let _ = close(&path, &mut database);
                Err(error)
            }
        }
    }

    /// Returns once the changes, all of them, are on the disk.
    pub(super) fn write_objects(&self, revision: u64, changes: &[Change]) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.open_table(META)?.insert("revision", revision)?;
            put_all(transaction, OBJECTS, changes)
        })
    }

    pub(super) fn write_tokens(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.write(|transaction| put_all(transaction, TOKENS, changes))
    }

    pub(super) fn write_notes(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.write(|transaction| put_all(transaction, NOTES, changes))
    }

    fn write(&self, change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>) -> Result<(), StoreError> {
        guard(&self.path, || {
            let Some(database) = &self.database else { return Ok(()) };
            // The default durability is what is wanted: commit returns after fsync.
            let transaction = database.begin_write().map_err(|error| self.failure(error))?;
            change(&transaction).map_err(|error| self.failure(error))?;
            transaction.commit().map_err(|error| self.failure(error))
        })
    }

    fn failure(&self, error: impl Into<redb::Error>) -> StoreError {
        failure(&self.path, error)
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        let _ = close(&self.path, &mut self.database);
    }
}

fn put_all(
    transaction: &WriteTransaction,
    table: TableDefinition<'static, &'static str, &'static [u8]>,
    changes: &[Change],
) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(table)?;
    for (key, value) in changes {
        match value {
            Some(value) => table.insert(key.as_str(), value.as_slice())?,
            None => table.remove(key.as_str())?,
        };
    }
    Ok(())
}

fn open_file(path: &Path) -> Result<Database, StoreError> {
    let io = |reason| StoreError::Io { path: path.to_owned(), reason };
    // Made here rather than by redb, so that it is never readable by others.
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(StoreError::NotAFile(path.to_owned()));
    }
    if metadata.size() > MAX_FILE_BYTES {
        return Err(StoreError::Oversized { path: path.to_owned(), bytes: metadata.size() });
    }
    guard(path, || {
        let backend = FileBackend::new(file).map_err(|error| failure(path, error))?;
        Database::builder()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create_with_backend(backend)
            .map_err(|error| failure(path, error))
    })
}

fn load(database: &Database, path: &Path) -> Result<Contents, StoreError> {
    let failed = |error: redb::Error| failure(path, error);
    let begin = || -> Result<(), redb::Error> {
        // All tables exist from here on, so that reading need not tell a new store from an old one.
        let transaction = database.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            if meta.get("format")?.is_none() {
                meta.insert("format", FORMAT)?;
                meta.insert("revision", 0)?;
            }
            transaction.open_table(OBJECTS)?;
            transaction.open_table(TOKENS)?;
            transaction.open_table(NOTES)?;
        }
        Ok(transaction.commit()?)
    };
    begin().map_err(failed)?;

    let read = || -> Result<(u64, Contents), redb::Error> {
        let transaction = database.begin_read()?;
        let meta = transaction.open_table(META)?;
        let number =
            |key| -> Result<u64, redb::Error> { Ok(meta.get(key)?.map(|value| value.value()).unwrap_or_default()) };
        let mut contents = Contents { revision: number("revision")?, ..Contents::default() };
        for (table, list) in
            [(OBJECTS, &mut contents.objects), (TOKENS, &mut contents.tokens), (NOTES, &mut contents.notes)]
        {
            for entry in transaction.open_table(table)?.iter()? {
                let (key, value) = entry?;
                list.push((key.value().to_owned(), value.value().to_owned()));
            }
        }
        Ok((number("format")?, contents))
    };
    match read().map_err(failed)? {
        (FORMAT, contents) => Ok(contents),
        (found, _) => Err(StoreError::Format { path: path.to_owned(), found, known: FORMAT }),
    }
}

/// Runs a call into redb; a panic in it means that the file holds what redb never writes.
fn guard<T>(path: &Path, call: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let outer = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(outer);
    result.unwrap_or_else(|panic| {
        let reason = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "an inner check failed".to_owned());
        Err(StoreError::Corrupt { path: path.to_owned(), reason })
    })
}

fn close(path: &Path, database: &mut Option<Database>) -> Result<(), StoreError> {
    guard(path, || {
        drop(database.take());
        Ok(())
    })
}

fn failure(path: &Path, error: impl Into<redb::Error>) -> StoreError {
    let path = path.to_owned();
    match error.into() {
        redb::Error::Io(reason) if reason.kind() != std::io::ErrorKind::InvalidData => StoreError::Io { path, reason },
        redb::Error::DatabaseAlreadyOpen => StoreError::Locked { dir: path, holder: String::new() },
        redb::Error::PreviousIo => StoreError::Stopped(path),
        other => StoreError::Corrupt { path, reason: other.to_string() },
    }
}

fn create_private_dir(dir: &Path) -> Result<(), StoreError> {
    let io = |reason| StoreError::Io { path: dir.to_owned(), reason };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)
}

/// One process for each data folder: a second one is told who has it.
fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("lock");
    let io = |reason| StoreError::Io { path: path.clone(), reason };
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(io)?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut process = String::new();
        // Only to word the message; a holder that cannot be read is just not named.
        let _ = (&file).take(20).read_to_string(&mut process);
        let process = process.trim();
        let holder = if process.is_empty() { String::new() } else { format!(" (process {process})") };
        return Err(StoreError::Locked { dir: dir.to_owned(), holder });
    }
    file.set_len(0).map_err(io)?;
    file.rewind().map_err(io)?;
    writeln!(file, "{}", std::process::id()).map_err(io)?;
    Ok(file)
}
