//! Mutual TLS by SPIFFE identity.

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::Identity;

/// The SPIFFE ID in the leaf, the first of `certs`: its only URI name, in the mesh's form.
pub fn peer_identity(certs: &[CertificateDer<'_>]) -> Option<Identity> {
    let (_, leaf) = X509Certificate::from_der(certs.first()?).ok()?;
    let mut uris = leaf
        .extensions()
        .iter()
        .filter_map(|e| match e.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().ok(),
        _ => None,
    }
}
