//! What certificates say of themselves, for people.

use jiff::Timestamp;
use mesh_common::certificate;
use mesh_common::proto::control::{AuthorityCertificate, Certificate, authority_certificate::Role};
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;

use crate::ca::{Ca, ServerTls};

/// `None`: it is none.
pub fn facts(der: &[u8]) -> Option<Certificate> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(Certificate {
        subject: certificate::subject(&certificate),
        serial: certificate.raw_serial_as_string(),
        issuer: certificate.issuer().to_string(),
        not_before_unix: certificate.validity().not_before.timestamp(),
        not_after_unix: certificate.validity().not_after.timestamp(),
    })
}

/// Of the first certificate in it.
pub fn facts_of_pem(pem: &str) -> Option<Certificate> {
    let (first, _) = Pem::read(std::io::Cursor::new(pem.as_bytes())).ok()?;
    facts(&first.contents)
}

/// What all workloads hang on.
pub fn authorities(ca: &Ca, tls: &ServerTls) -> Vec<AuthorityCertificate> {
    let roots = [Role::Root, Role::FormerRoot].into_iter().zip(ca.roots_der());
    let own = tls.certificate_der().map(|der| (Role::ControlPlane, der));
    let all = roots.chain([(Role::Intermediate, ca.intermediate_der())]).chain(own);
    all.map(|(role, der)| AuthorityCertificate { role: role.into(), certificate: facts(&der) }).collect()
}

/// Whether it is that of a workload of this identity.
pub fn is_of(certificate: &Certificate, identity: &str) -> bool {
    certificate.subject == identity && Timestamp::from_second(certificate.not_after_unix).is_ok()
}

/// The X.509 name of its holder, as `issuer` has it in those that it signs.
pub fn distinguished_name(der: &[u8]) -> Option<String> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate.subject().to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use mesh_common::identity::Identity;

    use super::*;
    use crate::ca::DEFAULT_TTL;

    #[test]
    fn a_certificate_is_what_was_issued() {
        let dir = tempfile::tempdir().unwrap();
        let now: Timestamp = "2030-01-02T03:04:05Z".parse().unwrap();
        let ca = Arc::new(Ca::open(&dir.path().join("ca"), "mesh.local", now).unwrap());
        let web = Identity::new("mesh.local", "shop", "web").unwrap();
        let issued = ca.issue_with_key(&web, Duration::from_secs(600), now).unwrap();
        let found = facts_of_pem(&issued.chain_pem).unwrap();
        assert!(
            is_of(&found, "spiffe://mesh.local/ns/shop/sa/web") && !is_of(&found, "spiffe://mesh.local/ns/a/sa/web")
        );
        assert_eq!((found.not_before_unix, found.not_after_unix), (now.as_second() - 60, now.as_second() + 600));
        assert_eq!(found.issuer, "CN=Mesh intermediate of mesh.local, 2030-01-02T03:03:05Z");
        assert_eq!(found.serial.split(':').count(), 16, "{}", found.serial);

        let tls = ServerTls::new(ca.clone(), &["localhost".to_owned()], DEFAULT_TTL, now).unwrap();
        let all = authorities(&ca, &tls);
        let ends: Vec<_> = all.iter().map(|it| (it.role(), it.certificate.as_ref().unwrap().not_after_unix)).collect();
        let expected = [
            (Role::Root, ca.root_not_after().as_second()),
            (Role::Intermediate, ca.intermediate_not_after().as_second()),
            (Role::ControlPlane, tls.not_after().as_second()),
        ];
        assert_eq!(ends, expected);
        assert_eq!(facts(b"no certificate"), None);
        assert_eq!(facts_of_pem("no certificate"), None);
    }
}
