//! The root certificate; and while it is replaced, the one before, which is trusted for so long as well.
//!
//! Whoever knows only the former root follows the new one by a certificate between them: the new root's name and key,
//! signed by the former. So nobody has to have heard of the new root before certificates hang on it, and the key of the
//! former is needed no more from the beginning on.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use mesh_common::tls::TrustBundle;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::CaError;
use super::authority::{self, Authority};

#[derive(Clone)]
pub(super) struct Root {
    pub authority: Arc<Authority>,
    pub former: Option<Former>,
}

/// A root that was replaced.
#[derive(Clone)]
pub(super) struct Former {
    pub certificate: CertificateDer<'static>,
    /// The new root, signed by this one.
    pub link: CertificateDer<'static>,
}

impl Root {
    pub(super) fn new(trust_domain: &str, now: Timestamp) -> Result<Self, CaError> {
        Ok(Self { authority: Arc::new(Authority::root(trust_domain, now)?), former: None })
    }

    /// A new root, beside which this one is still trusted.
    pub(super) fn replaced(&self, trust_domain: &str, now: Timestamp) -> Result<Self, CaError> {
        let fresh = Authority::root(trust_domain, now)?;
        let link = fresh.signed_by(&self.authority, trust_domain)?;
        let former = Former { certificate: self.authority.certificate.clone(), link };
        Ok(Self { authority: Arc::new(fresh), former: Some(former) })
    }

    pub(super) fn without_former(&self) -> Self {
        Self { authority: self.authority.clone(), former: None }
    }

    /// What is trusted.
    pub(super) fn trusted(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        std::iter::once(&self.authority.certificate).chain(self.former.as_ref().map(|former| &former.certificate))
    }

    /// What a chain has below the root for those who know only the former one.
    pub(super) fn link(&self) -> Option<&CertificateDer<'static>> {
        self.former.as_ref().map(|former| &former.link)
    }

    /// The certificate and its key, then what is left of the one before: in one file, so that no crash parts them.
    pub(super) fn to_pem(&self) -> String {
        let mut text = self.authority.to_pem();
        for certificate in self.former.iter().flat_map(|former| [&former.certificate, &former.link]) {
            text += &authority::to_pem("CERTIFICATE", certificate);
        }
        text
    }

    pub(super) fn bundle(&self, trust_domain: &str) -> Result<TrustBundle, CaError> {
        Ok(TrustBundle::new(trust_domain, self.trusted().cloned().collect())?)
    }

    pub(super) fn trusted_pem(&self) -> String {
        self.trusted().map(|certificate| authority::to_pem("CERTIFICATE", certificate)).collect()
    }

    /// `path` is where the text is from, for people.
    pub(super) fn from_pem(path: &Path, text: &[u8]) -> Result<Self, CaError> {
        let damaged = |reason: &str| CaError::Damaged { path: path.to_owned(), reason: reason.to_owned() };
        let authority = Authority::from_pem(path, text)?;
        let rest = CertificateDer::pem_slice_iter(text).skip(1).collect::<Result<Vec<_>, _>>();
        let former = match rest.map_err(|_| damaged("one of its certificates cannot be read"))?.as_slice() {
            [] => None,
            [certificate, link] => Some(Former { certificate: certificate.clone(), link: link.clone() }),
            _ => return Err(damaged("beside its certificate and key it may have two certificates, or none")),
        };
        if let Some(Former { certificate, link }) = &former
            && !(authority::is_signed_by(link, certificate) && authority::have_one_key(link, &authority.certificate))
        {
            return Err(damaged("what it has of the root before does not belong to it"));
        }
        Ok(Self { authority: Arc::new(authority), former })
    }

    pub(super) fn load(path: &Path) -> Result<Option<Self>, CaError> {
        authority::read_private(path)?.map(|text| Self::from_pem(path, &text)).transpose()
    }

    pub(super) fn save(&self, path: &Path) -> Result<(), CaError> {
        authority::write_atomically(path, self.to_pem().as_bytes(), 0o600)
    }
}
