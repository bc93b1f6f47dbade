//! Secrets: what certificates say of themselves. Keys are never shown.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use mesh_common::certificate;
use serde_json::Value;
use x509_parser::pem::Pem;
use x509_parser::prelude::X509Certificate;

use super::text::text;
use super::{Entry, state};
use crate::output::Table;

pub fn table(entries: &[Entry]) -> Table {
    let mut table = Table::new(&["SECRET", "KIND", "SUBJECT", "VALID FROM", "VALID UNTIL", "STATE", "+SERIAL"]);
    for entry in entries {
        let secret = &entry.resource;
        let chain = data(&secret["tls_certificate"]["certificate_chain"]);
        let roots = data(&secret["validation_context"]["trusted_ca"]);
        let (kind, pem) = match (chain, roots) {
            (Some(chain), _) => ("certificate", chain),
            (None, Some(roots)) => ("trust bundle", roots),
            (None, None) => ("other", Vec::new()),
        };
        let mut certificates = certificates(&pem);
        // Of a chain, the leaf is what counts.
        certificates.truncate(if kind == "certificate" { 1 } else { usize::MAX });
        if certificates.is_empty() {
            certificates.push(Certificate::default());
        }
        for certificate in certificates {
            table.row(vec![
                entry.name.clone().into(),
                kind.into(),
                certificate.subject.into(),
                certificate.from.into(),
                certificate.until.into(),
                state(entry),
                certificate.serial.into(),
            ]);
        }
    }
    table
}

/// The content of a data source, where it is in the configuration.
fn data(source: &Value) -> Option<Vec<u8>> {
    match (text(&source["inline_string"]), text(&source["inline_bytes"])) {
        ("", "") => None,
        ("", bytes) => STANDARD.decode(bytes).ok(),
        (string, _) => Some(string.as_bytes().to_vec()),
    }
}

#[derive(Default)]
struct Certificate {
    subject: String,
    from: String,
    until: String,
    serial: String,
}

fn certificates(pem: &[u8]) -> Vec<Certificate> {
    let blocks = Pem::iter_from_buffer(pem).filter_map(Result::ok);
    blocks.filter_map(|block| block.parse_x509().ok().map(|certificate| describe(&certificate))).collect()
}

fn describe(certificate: &X509Certificate<'_>) -> Certificate {
    let time = |seconds: i64| Timestamp::from_second(seconds).map(|t| t.to_string()).unwrap_or_default();
    Certificate {
        subject: certificate::subject(certificate),
        from: time(certificate.validity().not_before.timestamp()),
        until: time(certificate.validity().not_after.timestamp()),
        serial: certificate.raw_serial_as_string(),
    }
}
