//! SPIFFE identities as the mesh writes them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Identity {
    pub trust_domain: String,
    pub namespace: String,
    pub service_account: String,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdentityError {
    #[error("{0:?} is not a SPIFFE ID of the form spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>")]
    Form(String),
    #[error(
        "the trust domain {0:?} may hold only lower-case letters, digits, '.', '-' and '_', and at most 255 of them"
    )]
    TrustDomain(String),
    #[error(
        "{0:?} is not a DNS label (1 to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit)"
    )]
    Label(String),
}

impl Identity {
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, IdentityError> {
        check_trust_domain(trust_domain)?;
        check_label(namespace)?;
        check_label(service_account)?;
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
        })
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || IdentityError::Form(text.to_owned());
        let rest = text.strip_prefix("spiffe://").ok_or_else(form)?;
        let mut parts = rest.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None) => {
                Self::new(domain, namespace, account)
            }
            _ => Err(form()),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl TryFrom<String> for Identity {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Identity> for String {
    fn from(identity: Identity) -> Self {
        identity.to_string()
    }
}

/// SPIFFE ID specification, section 2.1.
pub fn check_trust_domain(text: &str) -> Result<(), IdentityError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if !text.is_empty() && text.len() <= 255 && text.bytes().all(allowed) {
        Ok(())
    } else {
        Err(IdentityError::TrustDomain(text.to_owned()))
    }
}

/// A DNS label, RFC 1123.
pub fn check_label(text: &str) -> Result<(), IdentityError> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let outer = |b: Option<u8>| b.is_some_and(|b| b != b'-');
    let bytes = text.as_bytes();
    let fits = (1..=63).contains(&bytes.len())
        && bytes.iter().copied().all(inner)
        && outer(bytes.first().copied())
        && outer(bytes.last().copied());
    if fits { Ok(()) } else { Err(IdentityError::Label(text.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let identity = Identity::new("mesh.local", "shop", "web").unwrap();
        assert_eq!(identity.to_string(), "spiffe://mesh.local/ns/shop/sa/web");
        assert_eq!(identity.to_string().parse::<Identity>().unwrap(), identity);
    }

    #[test]
    fn refuses_what_is_not_of_the_form() {
        for text in [
            "",
            "spiffe://",
            "spiffe://mesh.local/ns/shop/sa/",
            "spiffe://mesh.local/ns/shop/sa/web/x",
            "spiffe://MESH/ns/shop/sa/web",
            "spiffe://mesh.local/ns/../sa/web",
            "spiffe://mesh.local/ns/shop/sa/web?x",
            "https://mesh.local/ns/shop/sa/web",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }
}
