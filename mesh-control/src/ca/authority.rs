//! A certificate that signs others, with its key, in memory and in its file.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use mesh_common::certificate;
use mesh_common::tls::BACKDATE;
use rcgen::{BasicConstraints, CertificateParams, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::{CaError, csr, leaf};

const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const INTERMEDIATE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
const MAX_FILE_BYTES: u64 = 64 << 10;

pub(super) struct Authority {
    pub certificate: CertificateDer<'static>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn root(trust_domain: &str, now: Timestamp) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let [not_before, not_after] = [now - BACKDATE, now + ROOT_LIFE].map(leaf::whole_seconds);
        let params = root_params(trust_domain, not_before, not_after)?;
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { certificate, not_before, not_after, issuer: Issuer::new(params, key) })
    }

    /// This root, as one that hangs on another.
    pub(super) fn signed_by(&self, root: &Self, trust_domain: &str) -> Result<CertificateDer<'static>, CaError> {
        let not_after = self.not_after.min(root.not_after);
        let params = root_params(trust_domain, self.not_before, not_after)?;
        Ok(params.signed_by(self.issuer.key(), &root.issuer)?.der().clone())
    }

    pub(super) fn intermediate(root: &Self, trust_domain: &str, now: Timestamp) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let not_before = leaf::whole_seconds(now - BACKDATE);
        let not_after = leaf::whole_seconds(now + INTERMEDIATE_LIFE).min(root.not_after);
        // The time in the name keeps two intermediates of one root apart, as chain builders want it.
        let name = format!("Mesh intermediate of {trust_domain}, {not_before}");
        let params =
            leaf::authority_params(&name, trust_domain, BasicConstraints::Constrained(0), not_before, not_after)?;
        let certificate = params.signed_by(&key, &root.issuer)?.der().clone();
        Ok(Self { certificate, not_before, not_after, issuer: Issuer::new(params, key) })
    }

    /// Reads `path`, or nothing when there is no such file.
    pub(super) fn load(path: &Path) -> Result<Option<Self>, CaError> {
        read_private(path)?.map(|text| Self::from_pem(path, &text)).transpose()
    }

    /// Reads certificate and key; `path` is where they are from, for people.
    pub(super) fn from_pem(path: &Path, text: &[u8]) -> Result<Self, CaError> {
        let damaged = |reason: &str| CaError::Damaged { path: path.to_owned(), reason: reason.to_owned() };
        let certificate = CertificateDer::from_pem_slice(text).map_err(|_| damaged("it holds no certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(text).map_err(|_| damaged("it holds no private key"))?;
        let key = KeyPair::from_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| damaged("its private key is not an ECDSA P-256 key"))?;
        let (not_before, not_after) = {
            let parsed = parse(&certificate).ok_or_else(|| damaged("its certificate cannot be read"))?;
            if !parsed.is_ca() {
                return Err(damaged("its certificate is not one of an authority"));
            }
            if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
                return Err(damaged("its private key does not belong to its certificate"));
            }
            let time = |seconds| Timestamp::from_second(seconds).map_err(|_| damaged("its validity is out of range"));
            (time(parsed.validity().not_before.timestamp())?, time(parsed.validity().not_after.timestamp())?)
        };
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|_| damaged("its certificate cannot be used to sign"))?;
        Ok(Self { certificate, not_before, not_after, issuer })
    }

    /// Certificate and key in one file, so that no crash parts them.
    pub(super) fn save(&self, path: &Path) -> Result<(), CaError> {
        write_atomically(path, self.to_pem().as_bytes(), 0o600)
    }

    /// Certificate and key.
    pub(super) fn to_pem(&self) -> String {
        format!("{}{}", self.certificate_pem(), self.issuer.key().serialize_pem())
    }

    pub(super) fn check_root(&self, path: &Path, trust_domain: &str, now: Timestamp) -> Result<(), CaError> {
        let found = self.trust_domain().unwrap_or_default();
        if found != trust_domain {
            return Err(CaError::TrustDomain { path: path.to_owned(), found, asked: trust_domain.to_owned() });
        }
        if self.not_after <= now { Err(CaError::RootExpired(self.not_after)) } else { Ok(()) }
    }

    pub(super) fn past_half(&self, now: Timestamp) -> bool {
        let half = self.not_before.as_second() / 2 + self.not_after.as_second() / 2;
        now.as_second() >= half
    }

    pub(super) fn certificate_pem(&self) -> String {
        to_pem("CERTIFICATE", &self.certificate)
    }

    fn trust_domain(&self) -> Option<String> {
        certificate::trust_domain(&parse(&self.certificate)?)
    }
}

fn root_params(trust_domain: &str, not_before: Timestamp, not_after: Timestamp) -> Result<CertificateParams, CaError> {
    // The time in the name keeps roots apart that are trusted side by side.
    let name = format!("Mesh root of {trust_domain}, {not_before}");
    leaf::authority_params(&name, trust_domain, BasicConstraints::Unconstrained, not_before, not_after)
}

/// Whether this certificate's signature was made with the key of that one.
pub(super) fn is_signed_by(certificate: &CertificateDer<'static>, issuer: &CertificateDer<'static>) -> bool {
    let (Some(certificate), Some(issuer)) = (parse(certificate), parse(issuer)) else { return false };
    csr::verify(
        issuer.public_key(),
        &certificate.signature_algorithm.algorithm.to_id_string(),
        certificate.tbs_certificate.as_ref(),
        &certificate.signature_value.data,
    )
}

pub(super) fn have_one_key(one: &CertificateDer<'static>, other: &CertificateDer<'static>) -> bool {
    match (parse(one), parse(other)) {
        (Some(one), Some(other)) => one.public_key().raw == other.public_key().raw,
        _ => false,
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'static>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(certificate).ok().map(|(_, parsed)| parsed)
}

/// Makes the folder if need be, and refuses one that others can enter.
pub(super) fn private_dir(dir: &Path) -> Result<(), CaError> {
    let io = |reason| CaError::Io { path: dir.to_owned(), reason };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
    check_private(dir, std::fs::metadata(dir).map_err(io)?.permissions().mode(), 0o700)
}

/// What is in the file; nothing when there is no such file. Refuses one that others may read.
pub(super) fn read_private(path: &Path) -> Result<Option<Vec<u8>>, CaError> {
    let io = |reason| CaError::Io { path: path.to_owned(), reason };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    check_private(path, file.metadata().map_err(io)?.permissions().mode(), 0o600)?;
    let mut text = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut text).map_err(io)?;
    Ok(Some(text))
}

fn check_private(path: &Path, mode: u32, wanted: u32) -> Result<(), CaError> {
    let mode = mode & 0o7777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(CaError::Readable { path: path.to_owned(), mode, wanted }) }
}

/// It may have been gone already.
pub(super) fn remove(path: &Path) -> Result<(), CaError> {
    remove_file(path).map_err(|reason| CaError::Io { path: path.to_owned(), reason })
}

fn remove_file(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The file has either its old content or, whole, its new one, whatever happens.
pub(super) fn write_atomically(path: &Path, content: &[u8], mode: u32) -> Result<(), CaError> {
    let write = || -> std::io::Result<()> {
        let fresh = path.with_extension("new");
        // A rest of an interrupted write would keep its mode, which may be another.
        remove_file(&fresh)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        match path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|reason| CaError::Io { path: path.to_owned(), reason })
}

pub(super) fn to_pem(label: &str, der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let lines = encoded.as_bytes().chunks(64).map(String::from_utf8_lossy).collect::<Vec<_>>().join("\n");
    format!("-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n")
}
