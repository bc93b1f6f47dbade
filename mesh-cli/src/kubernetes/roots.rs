//! The root certificates of a cluster's mesh, as its namespaces have them.

use k8s_openapi::api::core::v1::ConfigMap;
use mesh_common::certificate;
use mesh_common::names::kubernetes as names;
use x509_parser::pem::Pem;

use super::Cluster;
use crate::failure::Failure;

/// The trust bundle of a namespace, as PEM.
pub async fn bundle(cluster: &Cluster, namespace: &str) -> Result<Option<String>, Failure> {
    let map = cluster.namespaced::<ConfigMap>(namespace).get_opt(names::TRUST_BUNDLE).await?;
    Ok(map.and_then(|map| map.data?.remove(names::TRUST_BUNDLE_KEY)))
}

/// Of the first root that names one (SPIFFE X.509-SVID, section 3.2).
pub fn trust_domain(bundle: &str) -> Option<String> {
    let mut blocks = Pem::iter_from_buffer(bundle.as_bytes()).filter_map(Result::ok);
    blocks.find_map(|pem| certificate::trust_domain(&pem.parse_x509().ok()?))
}

/// A root of the trust domain `a.example`, valid for a hundred years.
#[cfg(test)]
pub const OF_A_EXAMPLE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBlDCCATqgAwIBAgIUUjTesLOKxw3pIhVhXl/0mD2kLtUwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEcm9vdDAgFw0yNjExMjgwMTE3MzBaGA8yMTI2MTEwNDAxMTcz
MFowDzENMAsGA1UEAwwEcm9vdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABLWh
ljEMFLwNh6qzpOkBk7nBGkqp+/iCEuoY5EVi5Izjnzi10NYE0yf+2nAM/+TxdQMz
ypsKWP9SeG71tRIa8ZijcjBwMB0GA1UdDgQWBBS8gUNAplp4NGwEVEzDy4XfvmII
qjAfBgNVHSMEGDAWgBS8gUNAplp4NGwEVEzDy4XfvmIIqjAPBgNVHRMBAf8EBTAD
AQH/MB0GA1UdEQQWMBSGEnNwaWZmZTovL2EuZXhhbXBsZTAKBggqhkjOPQQDAgNI
ADBFAiEAjgIgQTDKzZmefysALSlzmsM1nyVXk0tuhlMviwoa+k8CIFr0QCVclR7/
xs2gfTuK8h79gcN10WLyUR4wCSYWEJVy
-----END CERTIFICATE-----
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_says_of_which_trust_domain_it_is() {
        assert_eq!(trust_domain(OF_A_EXAMPLE).as_deref(), Some("a.example"));
        assert_eq!(trust_domain(&format!("junk\n{OF_A_EXAMPLE}")).as_deref(), Some("a.example"));
        assert_eq!(trust_domain("junk"), None);
    }
}
