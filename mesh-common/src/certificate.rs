//! What certificates say of themselves (SPIFFE X.509-SVID).

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

/// Its first URI, which is the SPIFFE ID of those of a mesh; else its subject.
pub fn subject(certificate: &X509Certificate<'_>) -> String {
    uris(certificate).next().map_or_else(|| certificate.subject().to_string(), str::to_owned)
}

/// Of a root or an intermediate, whose SPIFFE ID is nothing but that.
pub fn trust_domain(certificate: &X509Certificate<'_>) -> Option<String> {
    uris(certificate).find_map(|uri| uri.strip_prefix("spiffe://")).map(str::to_owned)
}

fn uris<'a>(certificate: &'a X509Certificate<'_>) -> impl Iterator<Item = &'a str> {
    let names = certificate.subject_alternative_name().ok().flatten();
    names.into_iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    })
}
