//! What stands in a certificate of a workload, and in those above it.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use mesh_common::identity::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    SanType, SerialNumber,
};

use super::CaError;

/// An SVID: no subject, one URI name, usable on both sides of a connection.
pub(super) fn params(
    id: &Identity,
    names: &[SanType],
    not_before: Timestamp,
    not_after: Timestamp,
) -> Result<CertificateParams, CaError> {
    let mut params = base(not_before, not_after)?;
    params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
    params.subject_alt_names.extend_from_slice(names);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// A certificate that signs others. Its URI name is the trust domain's (SPIFFE X.509-SVID, section 3.2).
pub(super) fn authority_params(
    common_name: &str,
    trust_domain: &str,
    constraints: BasicConstraints,
    not_before: Timestamp,
    not_after: Timestamp,
) -> Result<CertificateParams, CaError> {
    let mut params = base(not_before, not_after)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn base(not_before: Timestamp, not_after: Timestamp) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = system_time(not_before).into();
    params.not_after = system_time(not_after).into();
    params.serial_number = Some(serial()?);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Certificates know no fractions of a second.
pub(super) fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// In whole seconds; what lies before 1970 becomes 1970.
fn system_time(time: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time.as_second()).unwrap_or_default())
}

/// Random, positive and not zero (RFC 5280, section 4.1.2.2).
fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes: [u8; 16] = crate::store::random_bytes().map_err(|_| CaError::Random)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
