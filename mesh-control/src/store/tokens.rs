//! Join tokens: who may become what, for how long and how often.
//!
//! The store keeps a hash of each secret. A use is on the disk before it is granted, so that no crash gives one back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use mesh_common::identity::Identity;
use mesh_common::token::{JoinToken, from_hex, to_hex};
use serde::{Deserialize, Serialize};

use super::db::{Change, Db};
use super::{StoreError, random_bytes};

pub const DEFAULT_TTL: Duration = Duration::from_secs(600);
pub const MAX_TTL: Duration = Duration::from_secs(30 * 24 * 3600);
pub const MAX_USES: u32 = 1_000_000;
/// Tokens alive at the same time.
pub const MAX_TOKENS: usize = 10_000;

pub struct Tokens {
    db: Arc<Db>,
    /// What is on the disk. Never held over a write, so that looking at a token never waits for the disk.
    records: Mutex<BTreeMap<String, Record>>,
    /// Held over a write and the look at the records that it hangs on, so that no use is granted twice.
    writing: Mutex<()>,
}

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error(transparent)]
    Malformed(#[from] mesh_common::token::TokenError),
    /// One sentence for unknown, used up and wrong secret: whoever guesses learns nothing.
    #[error(
        "this join token is not valid (unknown, used up, expired or removed); make a new one with `meshctl token create`"
    )]
    Unknown,
    #[error("this join token expired at {0}; make a new one with `meshctl token create`")]
    Expired(Timestamp),
    #[error("a token may live for at most {} hours and be used at most {MAX_USES} times", MAX_TTL.as_secs() / 3600)]
    Limits,
    #[error("there are {MAX_TOKENS} tokens already; wait until some have expired")]
    TooMany,
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Clone, Serialize, Deserialize)]
struct Record {
    identity: Identity,
    /// SHA-256 of the secret, hex.
    hash: String,
    expires: Timestamp,
    uses_left: u32,
}

impl Tokens {
    pub(super) fn open(db: Arc<Db>, entries: Vec<(String, Vec<u8>)>) -> Result<Self, StoreError> {
        let records = entries
            .into_iter()
            .map(|(id, value)| match serde_json::from_slice(&value) {
                Ok(record) => Ok((id, record)),
                Err(error) => Err(StoreError::Unreadable { key: format!("token {id}"), reason: error.to_string() }),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { db, records: Mutex::new(records), writing: Mutex::default() })
    }

    /// Makes a token for `identity` that can be used `uses` times until `ttl` from `now`; returns it with its end.
    /// `root` is the fingerprint of the root certificate. Blocks until the token is on the disk.
    pub fn create(
        &self,
        identity: &Identity,
        ttl: Duration,
        uses: u32,
        root: [u8; 32],
        now: Timestamp,
    ) -> Result<(JoinToken, Timestamp), TokenError> {
        if ttl.is_zero() || ttl > MAX_TTL || uses == 0 || uses > MAX_USES {
            return Err(TokenError::Limits);
        }
        let expires = now + ttl;
        let token = JoinToken::new(random_bytes()?, random_bytes()?, root);
        let record =
            Record { identity: identity.clone(), hash: to_hex(&token.secret_hash()), expires, uses_left: uses };

        let _writing = self.writing();
        if self.len() >= MAX_TOKENS {
            return Err(TokenError::TooMany);
        }
        self.db.write_tokens(&[record.put(token.id())?])?;
        self.records().insert(token.id().to_owned(), record);
        Ok((token, expires))
    }

    /// Uses a token once. Blocks until the use is on the disk.
    pub fn redeem(&self, text: &str, now: Timestamp) -> Result<Identity, TokenError> {
        let token: JoinToken = text.parse()?;
        let _writing = self.writing();
        let record = self.checked(&token, now)?;
        let used = Record { uses_left: record.uses_left.saturating_sub(1), ..record };
        let identity = used.identity.clone();
        if used.uses_left == 0 {
            self.db.write_tokens(&[(token.id().to_owned(), None)])?;
            self.records().remove(token.id());
        } else {
            self.db.write_tokens(&[used.put(token.id())?])?;
            self.records().insert(token.id().to_owned(), used);
        }
        Ok(identity)
    }

    /// Whom a token stands for, without using it. Never blocks.
    pub fn check(&self, text: &str, now: Timestamp) -> Result<Identity, TokenError> {
        let token: JoinToken = text.parse()?;
        Ok(self.checked(&token, now)?.identity)
    }

    fn checked(&self, token: &JoinToken, now: Timestamp) -> Result<Record, TokenError> {
        let records = self.records();
        let record = records.get(token.id()).ok_or(TokenError::Unknown)?;
        record.check(token, now)?;
        Ok(record.clone())
    }

    /// Forgets tokens that have expired, and returns how many there were.
    pub fn purge(&self, now: Timestamp) -> Result<usize, StoreError> {
        let _writing = self.writing();
        let expired = |(_, record): &(&String, &Record)| record.expires <= now;
        let gone: Vec<Change> = self.records().iter().filter(expired).map(|(id, _)| (id.clone(), None)).collect();
        if !gone.is_empty() {
            self.db.write_tokens(&gone)?;
            self.records().retain(|_, record| record.expires > now);
        }
        Ok(gone.len())
    }

    pub fn len(&self) -> usize {
        self.records().len()
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Record {
    fn check(&self, token: &JoinToken, now: Timestamp) -> Result<(), TokenError> {
        let hash: [u8; 32] = from_hex(&self.hash).ok_or(TokenError::Unknown)?;
        if !same(&hash, &token.secret_hash()) {
            return Err(TokenError::Unknown);
        }
        if self.expires <= now { Err(TokenError::Expired(self.expires)) } else { Ok(()) }
    }

    fn put(&self, id: &str) -> Result<Change, StoreError> {
        let value = serde_json::to_vec(self)
            .map_err(|error| StoreError::Unreadable { key: format!("token {id}"), reason: error.to_string() })?;
        Ok((id.to_owned(), Some(value)))
    }
}

/// Takes the same time wherever the two differ.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}
