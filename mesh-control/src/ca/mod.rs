//! The certificate authority of the mesh: an own root, an intermediate below it that signs, and SVIDs for identities
//! that somebody else has proven.
//!
//! In: a public key (in a signing request), an identity, the time. Out: a certificate chain that ends where its issuer
//! ends, at the latest. The names in a request are never looked at.

mod authority;
mod csr;
mod leaf;
mod limit;
mod root;
mod server;
mod service;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use mesh_common::identity::Identity;
use mesh_common::tls::{BACKDATE, SharedBundle};
use mesh_common::token::fingerprint;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use tokio::sync::watch;

use authority::Authority;
use root::Root;

pub use server::{ServerTls, control_identity};
pub use service::CaService;

pub const DEFAULT_TTL: Duration = Duration::from_secs(3600);
pub const MAX_TTL: Duration = Duration::from_secs(24 * 3600);
pub const MIN_TTL: Duration = Duration::from_secs(10);

const ROOT_FILE: &str = "root.pem";
const INTERMEDIATE_FILE: &str = "intermediate.pem";
/// The trust bundle, for people and other programs; never read back.
const BUNDLE_FILE: &str = "bundle.pem";

pub struct Ca {
    trust_domain: String,
    /// `None` where keys are kept elsewhere.
    dir: Option<PathBuf>,
    keys: ArcSwap<Keys>,
    /// Held while they are changed.
    changing: Mutex<()>,
    /// Has changed when they have.
    changes: watch::Sender<()>,
    /// What servers verify their clients by.
    bundle: SharedBundle,
    /// When something was last trusted that is not any more.
    distrust: watch::Sender<Option<Instant>>,
}

/// What certificates hang on at one moment.
struct Keys {
    root: Root,
    intermediate: Arc<Authority>,
}

/// A signed certificate.
#[derive(Clone, Debug)]
pub struct Issued {
    /// DER, the leaf first, then the intermediate; without the root. While that is replaced, there is one more, by which those
    /// who know only the root before verify it.
    pub chain: Vec<Vec<u8>>,
    pub not_after: Timestamp,
}

/// A certificate with its key, for clients that cannot make their own (Envoy gets its by SDS). No `Debug`: it is secret.
#[derive(Clone)]
pub struct KeyPairPem {
    pub chain_pem: String,
    pub key_pem: String,
    pub not_after: Timestamp,
}

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("cannot use {path}: {reason}")]
    Io { path: PathBuf, reason: std::io::Error },
    #[error(
        "{path} holds a private key and others may read it (mode {mode:o}); run `chmod {wanted:o} {path}` and start again"
    )]
    Readable { path: PathBuf, mode: u32, wanted: u32 },
    #[error(
        "{path} is damaged: {reason}; restore it from a backup, or remove the folder that it is in to begin a new mesh"
    )]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "{path} is missing but other files of the certificate authority are there; restore it from a backup, or remove the folder that it is in to begin a new mesh"
    )]
    Missing { path: PathBuf },
    #[error(
        "{path} belongs to the trust domain {found:?}, not {asked:?}; a mesh keeps the trust domain that it began with"
    )]
    TrustDomain { path: PathBuf, found: String, asked: String },
    #[error(
        "the root certificate ended at {0}; remove the folder `ca` in the data folder to begin a new mesh, and join all workloads again"
    )]
    RootExpired(Timestamp),
    #[error("the signing request cannot be used: {0}")]
    Request(String),
    #[error("the identity {0} is not of the trust domain {1}")]
    ForeignIdentity(Identity, String),
    #[error("the identity of the control plane itself: {0}")]
    Identity(#[from] mesh_common::identity::IdentityError),
    #[error(transparent)]
    Tls(#[from] mesh_common::tls::TlsError),
    #[error("the root is being replaced already, since {0}")]
    Rotating(Timestamp),
    #[error("the root is not being replaced")]
    NotRotating,
    #[error("nobody but mesh-control itself has the identity of mesh-control")]
    ControlIdentity,
    #[error("the keys are kept elsewhere")]
    NoFolder,
    #[error("signing failed: {0}")]
    Sign(#[from] rcgen::Error),
    #[error("the system gives no random numbers")]
    Random,
}

impl Ca {
    /// Opens the authority in `dir`, or makes one when the folder holds none. An intermediate past half of its life is
    /// replaced.
    pub fn open(dir: &Path, trust_domain: &str, now: Timestamp) -> Result<Self, CaError> {
        authority::private_dir(dir)?;
        let [root_file, intermediate_file] = [dir.join(ROOT_FILE), dir.join(INTERMEDIATE_FILE)];
        let root = match Root::load(&root_file)? {
            Some(root) => root,
            None if intermediate_file.exists() => return Err(CaError::Missing { path: root_file }),
            None => {
                let root = Root::new(trust_domain, now)?;
                root.save(&root_file)?;
                let until = root.authority.not_after;
                tracing::info!(trust_domain, %until, "made the root certificate of a new mesh");
                root
            }
        };
        root.authority.check_root(&root_file, trust_domain, now)?;
        Self::write_bundle(dir, &root)?;

        let intermediate = match Authority::load(&intermediate_file)? {
            Some(intermediate) if Self::is_current(&root, &intermediate, &intermediate_file)? => intermediate,
            _ => Self::new_intermediate(&root, Some(dir), trust_domain, now)?,
        };
        let ca = Self::of(trust_domain, Some(dir), root, intermediate)?;
        ca.renew(now)?;
        Ok(ca)
    }

    fn of(trust_domain: &str, dir: Option<&Path>, root: Root, intermediate: Authority) -> Result<Self, CaError> {
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            dir: dir.map(Path::to_owned),
            bundle: SharedBundle::new(root.bundle(trust_domain)?),
            keys: ArcSwap::from_pointee(Keys { root, intermediate: Arc::new(intermediate) }),
            changing: Mutex::default(),
            changes: watch::Sender::default(),
            distrust: watch::Sender::default(),
        })
    }

    /// Whether it hangs on the root; false if on the one before, since the process ended in the middle of the change.
    fn is_current(root: &Root, intermediate: &Authority, path: &Path) -> Result<bool, CaError> {
        let signed_by = |issuer| authority::is_signed_by(&intermediate.certificate, issuer);
        match &root.former {
            _ if signed_by(&root.authority.certificate) => Ok(true),
            Some(former) if signed_by(&former.certificate) => Ok(false),
            _ => Err(CaError::Damaged {
                path: path.to_owned(),
                reason: "it was not signed by the root beside it".to_owned(),
            }),
        }
    }

    /// A new authority, and the root and the intermediate with their keys, for whoever keeps them.
    pub fn create(trust_domain: &str, now: Timestamp) -> Result<(Self, [String; 2]), CaError> {
        let root = Root::new(trust_domain, now)?;
        let intermediate = Self::new_intermediate(&root, None, trust_domain, now)?;
        let pem = [root.to_pem(), intermediate.to_pem()];
        Ok((Self::of(trust_domain, None, root, intermediate)?, pem))
    }

    /// What [`create`](Self::create) gave. An intermediate past half of its life is replaced for this process alone: the
    /// root, which is what others trust, is the same for all.
    pub fn from_pem(root: &str, intermediate: &str, trust_domain: &str, now: Timestamp) -> Result<Self, CaError> {
        let [root_name, intermediate_name] = [ROOT_FILE, INTERMEDIATE_FILE].map(Path::new);
        let root = Root::from_pem(root_name, root.as_bytes())?;
        root.authority.check_root(root_name, trust_domain, now)?;
        let mut intermediate = Authority::from_pem(intermediate_name, intermediate.as_bytes())?;
        if !Self::is_current(&root, &intermediate, intermediate_name)? {
            intermediate = Self::new_intermediate(&root, None, trust_domain, now)?;
        }
        let ca = Self::of(trust_domain, None, root, intermediate)?;
        ca.renew(now)?;
        Ok(ca)
    }

    /// Replaces the intermediate when it is past half of its life; call it from time to time. True: it was replaced.
    pub fn renew(&self, now: Timestamp) -> Result<bool, CaError> {
        let _changing = self.changing();
        if !self.keys.load().intermediate.past_half(now) {
            return Ok(false);
        }
        let root = self.keys.load().root.clone();
        let fresh = Self::new_intermediate(&root, self.dir.as_deref(), &self.trust_domain, now)?;
        self.put(Keys { root, intermediate: Arc::new(fresh) });
        Ok(true)
    }

    /// Replaces the root: from now on certificates hang on a new one. The one before is trusted until
    /// [`end_rotation`](Self::end_rotation), or with `at_once` no more. An error of a file leaves all as it was if it is that of
    /// the root; what comes after it is made up for when the files are read again.
    pub fn rotate(&self, now: Timestamp, at_once: bool) -> Result<(), CaError> {
        let dir = self.dir.as_deref().ok_or(CaError::NoFolder)?;
        let _changing = self.changing();
        if let Some(began) = self.rotating_since() {
            return Err(CaError::Rotating(began));
        }
        let mut root = self.keys.load().root.replaced(&self.trust_domain, now)?;
        if at_once {
            root = root.without_former();
        }
        let intermediate = Arc::new(Authority::intermediate(&root.authority, &self.trust_domain, now)?);
        if at_once {
            // The file of the root must not come to stand beside that of an intermediate which it does not know.
            authority::remove(&dir.join(INTERMEDIATE_FILE))?;
        }
        self.put_root(dir, root.clone(), intermediate.clone())?;
        if at_once {
            self.distrust_former();
        }
        intermediate.save(&dir.join(INTERMEDIATE_FILE))?;
        Self::write_bundle(dir, &root)
    }

    /// From now on, the root before is trusted no more.
    pub fn end_rotation(&self) -> Result<(), CaError> {
        let dir = self.dir.as_deref().ok_or(CaError::NoFolder)?;
        let _changing = self.changing();
        let keys = self.keys.load_full();
        if keys.root.former.is_none() {
            return Err(CaError::NotRotating);
        }
        let root = keys.root.without_former();
        self.put_root(dir, root.clone(), keys.intermediate.clone())?;
        self.distrust_former();
        Self::write_bundle(dir, &root)
    }

    /// Since when the root is being replaced, if it is.
    pub fn rotating_since(&self) -> Option<Timestamp> {
        let keys = self.keys.load();
        keys.root.former.as_ref().map(|_| keys.root.authority.not_before + BACKDATE)
    }

    /// Has changed when other certificates are trusted or sign.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Clients are verified by it from now on, and certificates hang on it. An error leaves all as it was.
    fn put_root(&self, dir: &Path, root: Root, intermediate: Arc<Authority>) -> Result<(), CaError> {
        let bundle = root.bundle(&self.trust_domain)?;
        root.save(&dir.join(ROOT_FILE))?;
        self.bundle.store(bundle);
        self.put(Keys { root, intermediate });
        Ok(())
    }

    fn put(&self, keys: Keys) {
        self.keys.store(Arc::new(keys));
        self.changes.send_replace(());
    }

    /// When something was last trusted that is not any more. Whoever was verified before may have been so by that.
    pub fn distrust(&self) -> watch::Receiver<Option<Instant>> {
        self.distrust.subscribe()
    }

    /// After the bundle has changed: whoever is verified from now on is so by the new one.
    fn distrust_former(&self) {
        self.distrust.send_replace(Some(Instant::now()));
    }

    fn write_bundle(dir: &Path, root: &Root) -> Result<(), CaError> {
        authority::write_atomically(&dir.join(BUNDLE_FILE), root.trusted_pem().as_bytes(), 0o644)
    }

    fn new_intermediate(
        root: &Root,
        dir: Option<&Path>,
        trust_domain: &str,
        now: Timestamp,
    ) -> Result<Authority, CaError> {
        let intermediate = Authority::intermediate(&root.authority, trust_domain, now)?;
        if let Some(dir) = dir {
            intermediate.save(&dir.join(INTERMEDIATE_FILE))?;
        }
        tracing::info!(until = %intermediate.not_after, "made an intermediate certificate");
        Ok(intermediate)
    }

    /// Signs the key of a PKCS#10 request (DER) for an identity that the caller has proven. Zero `ttl` is the default;
    /// others are brought between [`MIN_TTL`] and [`MAX_TTL`].
    pub fn sign_csr(&self, csr_der: &[u8], id: &Identity, ttl: Duration, now: Timestamp) -> Result<Issued, CaError> {
        let key = csr::verified_key(csr_der)?;
        self.check_workload(id)?;
        self.sign(&key, id, &[], ttl, now)
    }

    /// Makes a key and a certificate for it.
    pub fn issue_with_key(&self, id: &Identity, ttl: Duration, now: Timestamp) -> Result<KeyPairPem, CaError> {
        self.check_workload(id)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let issued = self.sign(&key, id, &[], ttl, now)?;
        Ok(KeyPairPem {
            chain_pem: issued.chain.iter().map(|der| authority::to_pem("CERTIFICATE", der)).collect(),
            key_pem: key.serialize_pem(),
            not_after: issued.not_after,
        })
    }

    /// mesh-control makes its own: whoever else asks for one has forged what it shows.
    fn check_workload(&self, id: &Identity) -> Result<(), CaError> {
        match control_identity(&self.trust_domain)? == *id {
            true => Err(CaError::ControlIdentity),
            false => Ok(()),
        }
    }

    /// `names` are further subject names (DNS names and addresses), which only the control plane's own certificate has.
    fn sign(
        &self,
        key: &impl rcgen::PublicKeyData,
        id: &Identity,
        names: &[rcgen::SanType],
        ttl: Duration,
        now: Timestamp,
    ) -> Result<Issued, CaError> {
        if id.trust_domain != self.trust_domain {
            return Err(CaError::ForeignIdentity(id.clone(), self.trust_domain.clone()));
        }
        let ttl = if ttl.is_zero() { DEFAULT_TTL } else { ttl.clamp(MIN_TTL, MAX_TTL) };
        let keys = self.keys.load();
        let Keys { root, intermediate } = &**keys;
        let not_after = leaf::whole_seconds(now + ttl).min(intermediate.not_after);
        let certificate = leaf::params(id, names, now - BACKDATE, not_after)?.signed_by(key, &intermediate.issuer)?;
        let chain = [certificate.der(), &intermediate.certificate].into_iter().chain(root.link());
        Ok(Issued { chain: chain.map(|certificate| certificate.to_vec()).collect(), not_after })
    }

    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The trust bundle, DER: the root that certificates hang on first.
    pub fn roots_der(&self) -> Vec<Vec<u8>> {
        self.keys.load().root.trusted().map(|certificate| certificate.to_vec()).collect()
    }

    /// What signs workloads' certificates at the moment, DER.
    pub fn intermediate_der(&self) -> Vec<u8> {
        self.keys.load().intermediate.certificate.to_vec()
    }

    pub fn roots_pem(&self) -> String {
        self.keys.load().root.trusted_pem()
    }

    pub fn intermediate_not_after(&self) -> Timestamp {
        self.keys.load().intermediate.not_after
    }

    pub fn root_not_after(&self) -> Timestamp {
        self.keys.load().root.authority.not_after
    }

    /// What join tokens name.
    pub fn root_fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.keys.load().root.authority.certificate)
    }
}
