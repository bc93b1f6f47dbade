//! Signing requests: the public key in one, once the request has proven that its sender holds the private key.

use rcgen::SubjectPublicKeyInfo;
use rustls::crypto::aws_lc_rs;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo as ParsedKey;

use super::CaError;

/// A request is a few hundred bytes; one with a large RSA key, some thousands.
const MAX_BYTES: usize = 16 << 10;

pub(super) fn verified_key(der: &[u8]) -> Result<SubjectPublicKeyInfo, CaError> {
    let refuse = |reason: &str| CaError::Request(reason.to_owned());
    if der.len() > MAX_BYTES {
        return Err(refuse("it is larger than 16 KiB"));
    }
    let (rest, request) =
        X509CertificationRequest::from_der(der).map_err(|_| refuse("it is not a PKCS#10 request in DER"))?;
    if !rest.is_empty() {
        return Err(refuse("it has bytes after its end"));
    }
    let info = &request.certification_request_info;
    let algorithm = request.signature_algorithm.algorithm.to_id_string();
    if !verify(&info.subject_pki, &algorithm, info.raw, &request.signature_value.data) {
        return Err(refuse(
            "its signature is wrong, or of an algorithm that is not known here (ECDSA, Ed25519 and RSA are)",
        ));
    }
    SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|_| refuse("its public key is of an unknown kind"))
}

/// Whether `key` made this signature over `message`. `algorithm` is the signature algorithm's OID in dotted form.
pub(super) fn verify(key: &ParsedKey<'_>, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
    // The algorithms of TLS, from the one provider that all our cryptography comes from. An OID alone does not say which
    // curve or key size is meant; the key's own identifier does, and a wrong pairing verifies nothing.
    let candidates: &[_] = match algorithm {
        "1.2.840.10045.4.3.2" => &[rustls::SignatureScheme::ECDSA_NISTP256_SHA256],
        "1.2.840.10045.4.3.3" => &[rustls::SignatureScheme::ECDSA_NISTP384_SHA384],
        "1.2.840.113549.1.1.11" => &[rustls::SignatureScheme::RSA_PKCS1_SHA256],
        "1.2.840.113549.1.1.12" => &[rustls::SignatureScheme::RSA_PKCS1_SHA384],
        "1.3.101.112" => &[rustls::SignatureScheme::ED25519],
        _ => return false,
    };
    let known = aws_lc_rs::default_provider().signature_verification_algorithms.mapping;
    // `public_key_alg_id` is the content of the AlgorithmIdentifier, without the header of its SEQUENCE.
    let spki = key.raw;
    known
        .iter()
        .filter(|(scheme, _)| candidates.contains(scheme))
        .flat_map(|(_, algorithms)| algorithms.iter())
        .filter(|algorithm| contains(spki, algorithm.public_key_alg_id().as_ref()))
        .any(|algorithm| algorithm.verify_signature(&key.subject_public_key.data, message, signature).is_ok())
}

/// The identifier stands at the start of the key info, after two or three DER headers of two to four bytes each.
fn contains(spki: &[u8], identifier: &[u8]) -> bool {
    spki.windows(identifier.len()).take(10).any(|window| window == identifier)
}
