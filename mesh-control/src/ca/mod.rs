//! The certificate authority of the mesh: an own root, an intermediate below it that signs, and SVIDs for identities
//! that somebody else has proven.
//!
//! In: a public key (in a signing request), an identity, the time. Out: a certificate chain that ends where its issuer
//! ends, at the latest. The names in a request are never looked at.

mod authority;
mod csr;
mod leaf;
mod limit;
mod server;
mod service;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use mesh_common::identity::Identity;
use mesh_common::token::fingerprint;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};

use authority::Authority;

pub use server::{ServerTls, control_identity};
pub use service::CaService;

pub const DEFAULT_TTL: Duration = Duration::from_secs(3600);
pub const MAX_TTL: Duration = Duration::from_secs(24 * 3600);
pub const MIN_TTL: Duration = Duration::from_secs(10);
/// How far the beginning of a certificate lies back, for machines whose clocks are behind.
pub const BACKDATE: Duration = Duration::from_secs(60);

const ROOT_FILE: &str = "root.pem";
const INTERMEDIATE_FILE: &str = "intermediate.pem";
/// The trust bundle, for people and other programs; never read back.
const BUNDLE_FILE: &str = "bundle.pem";

pub struct Ca {
    trust_domain: String,
    /// `None` where keys are kept elsewhere.
    dir: Option<PathBuf>,
    root: Authority,
    intermediate: ArcSwap<Authority>,
}

/// A signed certificate.
#[derive(Clone, Debug)]
pub struct Issued {
    /// DER, the leaf first, then the intermediate; without the root.
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
        let root = match Authority::load(&root_file)? {
            Some(root) => root,
            None if intermediate_file.exists() => return Err(CaError::Missing { path: root_file }),
            None => {
                let root = Authority::root(trust_domain, now)?;
                root.save(&root_file)?;
                tracing::info!(trust_domain, until = %root.not_after, "made the root certificate of a new mesh");
                root
            }
        };
        root.check_root(&root_file, trust_domain, now)?;
        authority::write_atomically(&dir.join(BUNDLE_FILE), root.certificate_pem().as_bytes(), 0o644)?;

        let intermediate = match Authority::load(&intermediate_file)? {
            Some(intermediate) => {
                intermediate.check_issued_by(&root, &intermediate_file)?;
                intermediate
            }
            None => Self::new_intermediate(&root, Some(dir), trust_domain, now)?,
        };
        let ca = Self {
            trust_domain: trust_domain.to_owned(),
            dir: Some(dir.to_owned()),
            root,
            intermediate: ArcSwap::from_pointee(intermediate),
        };
        ca.renew(now)?;
        Ok(ca)
    }

    /// A new authority, and the root and the intermediate with their keys, for whoever keeps them.
    pub fn create(trust_domain: &str, now: Timestamp) -> Result<(Self, [String; 2]), CaError> {
        let root = Authority::root(trust_domain, now)?;
        let intermediate = Self::new_intermediate(&root, None, trust_domain, now)?;
        let pem = [root.to_pem(), intermediate.to_pem()];
        let trust_domain = trust_domain.to_owned();
        Ok((Self { trust_domain, dir: None, root, intermediate: ArcSwap::from_pointee(intermediate) }, pem))
    }

    /// What [`create`](Self::create) gave. An intermediate past half of its life is replaced for this process alone: the
    /// root, which is what others trust, is the same for all.
    pub fn from_pem(root: &str, intermediate: &str, trust_domain: &str, now: Timestamp) -> Result<Self, CaError> {
        let [root_name, intermediate_name] = [ROOT_FILE, INTERMEDIATE_FILE].map(Path::new);
        let root = Authority::from_pem(root_name, root.as_bytes())?;
        root.check_root(root_name, trust_domain, now)?;
        let intermediate = Authority::from_pem(intermediate_name, intermediate.as_bytes())?;
        intermediate.check_issued_by(&root, intermediate_name)?;
        let trust_domain = trust_domain.to_owned();
        let ca = Self { trust_domain, dir: None, root, intermediate: ArcSwap::from_pointee(intermediate) };
        ca.renew(now)?;
        Ok(ca)
    }

    /// Replaces the intermediate when it is past half of its life; call it from time to time. True: it was replaced.
    pub fn renew(&self, now: Timestamp) -> Result<bool, CaError> {
        if !self.intermediate.load().past_half(now) {
            return Ok(false);
        }
        let fresh = Self::new_intermediate(&self.root, self.dir.as_deref(), &self.trust_domain, now)?;
        self.intermediate.store(Arc::new(fresh));
        Ok(true)
    }

    fn new_intermediate(
        root: &Authority,
        dir: Option<&Path>,
        trust_domain: &str,
        now: Timestamp,
    ) -> Result<Authority, CaError> {
        let intermediate = Authority::intermediate(root, trust_domain, now)?;
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
        self.sign(&key, id, &[], ttl, now)
    }

    /// Makes a key and a certificate for it.
    pub fn issue_with_key(&self, id: &Identity, ttl: Duration, now: Timestamp) -> Result<KeyPairPem, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let issued = self.sign(&key, id, &[], ttl, now)?;
        Ok(KeyPairPem {
            chain_pem: issued.chain.iter().map(|der| authority::to_pem("CERTIFICATE", der)).collect(),
            key_pem: key.serialize_pem(),
            not_after: issued.not_after,
        })
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
        let intermediate = self.intermediate.load();
        let not_after = leaf::whole_seconds(now + ttl).min(intermediate.not_after);
        let certificate = leaf::params(id, names, now - BACKDATE, not_after)?.signed_by(key, &intermediate.issuer)?;
        Ok(Issued { chain: vec![certificate.der().to_vec(), intermediate.certificate.to_vec()], not_after })
    }

    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The trust bundle, DER.
    pub fn roots_der(&self) -> Vec<Vec<u8>> {
        vec![self.root.certificate.to_vec()]
    }

    /// What signs workloads' certificates at the moment, DER.
    pub fn intermediate_der(&self) -> Vec<u8> {
        self.intermediate.load().certificate.to_vec()
    }

    pub fn roots_pem(&self) -> String {
        self.root.certificate_pem()
    }

    pub fn intermediate_not_after(&self) -> Timestamp {
        self.intermediate.load().not_after
    }

    pub fn root_not_after(&self) -> Timestamp {
        self.root.not_after
    }

    /// What join tokens name.
    pub fn root_fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.root.certificate)
    }
}
