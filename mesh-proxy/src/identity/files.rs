//! Copies of the certificate and the trust bundle, for people to look at. The proxy never reads them.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;

use crate::tls::Svid;

/// Writes `chain.pem` and `roots.pem`, each whole or not at all.
pub(super) fn write(folder: &Path, svid: &Svid) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for (name, certificates) in [("chain.pem", &svid.certificate.cert[..]), ("roots.pem", svid.bundle.roots())] {
        let temporary = folder.join(format!(".{name}.new"));
        fs::write(&temporary, pem(certificates))?;
        fs::rename(&temporary, folder.join(name))?;
    }
    Ok(())
}

pub(crate) fn pem(certificates: &[CertificateDer<'_>]) -> String {
    let mut text = String::new();
    for certificate in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = STANDARD.encode(certificate);
        for start in (0..encoded.len()).step_by(64) {
            let end = encoded.len().min(start + 64);
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}", &encoded[start..end]);
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::pem::PemObject;

    use super::*;
    use crate::tls::tests::Authority;

    #[test]
    fn what_is_written_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let svid = Authority::new().svid("web");
        write(folder.path(), &svid).unwrap();
        let read = |name: &str| -> Vec<CertificateDer<'static>> {
            CertificateDer::pem_file_iter(folder.path().join(name)).unwrap().map(Result::unwrap).collect()
        };
        assert_eq!(read("chain.pem"), svid.certificate.cert);
        assert_eq!(read("roots.pem"), svid.bundle.roots());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
