//! Secrets for clients that cannot make their own keys: a certificate that is renewed at half of its life, and the roots.

use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::util::pack_any;
use jiff::Timestamp;
use mesh_common::identity::Identity;
use mesh_common::names;
use prost::Message;
use tokio::sync::watch::Receiver;

use crate::ca::{Ca, DEFAULT_TTL};
use crate::snapshot::Encoded;

/// After a failure to issue.
const RETRY: Duration = Duration::from_secs(30);
const REDACTED: &str = "[redacted]";

/// What a stream's client may have at the moment.
#[derive(Clone)]
pub struct Secrets {
    identity: Option<Arc<Encoded>>,
    roots: Arc<Encoded>,
}

impl Secrets {
    pub fn get(&self, name: &str) -> Option<&Arc<Encoded>> {
        match name {
            names::SECRET_IDENTITY => self.identity.as_ref(),
            names::SECRET_ROOTS => Some(&self.roots),
            _ => None,
        }
    }
}

/// Issues the secrets of one stream.
pub struct Issuer {
    ca: Arc<Ca>,
    /// `None`: this client gets the roots alone.
    identity: Option<Identity>,
    current: Secrets,
    /// When there is something to do; `None` before the certificate was asked for.
    due: Option<Instant>,
    /// Of the authority.
    changes: Receiver<()>,
}

impl Issuer {
    pub fn new(ca: Arc<Ca>, identity: Option<Identity>) -> Self {
        let changes = ca.changes();
        let roots = Arc::new(Encoded::new(roots(&ca.roots_pem())));
        Self { ca, identity, current: Secrets { identity: None, roots }, due: None, changes }
    }

    /// Ends when other roots are trusted, which [`Issuer::current`] has then.
    pub async fn changed(&mut self) {
        loop {
            if self.changes.changed().await.is_err() {
                // The authority is held here.
                return std::future::pending().await;
            }
            let roots = Encoded::new(roots(&self.ca.roots_pem()));
            // What signs may be another, below the same roots.
            if roots.version != self.current.roots.version {
                self.current.roots = Arc::new(roots);
                break;
            }
        }
        if self.ca.rotating_since().is_none() {
            // What was issued before may not be trusted any more.
            self.due = None;
        }
    }

    pub fn current(&self) -> Secrets {
        self.current.clone()
    }

    /// When to call [`Issuer::renew`].
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Issues a certificate if there is none yet or it is due; true if that changed anything. `jitter` is between 0 and 1,
    /// and spreads the next renewal over the fifth of the certificate's life around its middle.
    pub fn renew(&mut self, now: Instant, clock: Timestamp, jitter: f64) -> bool {
        let Some(identity) = &self.identity else { return false };
        if self.due.is_some_and(|due| now < due) {
            return false;
        }
        match self.ca.issue_with_key(identity, DEFAULT_TTL, clock) {
            Ok(issued) => {
                let life = Duration::try_from(issued.not_after.duration_since(clock)).unwrap_or_default();
                self.due = Some(now + life.mul_f64(0.4 + 0.2 * jitter.clamp(0.0, 1.0)).max(Duration::from_secs(1)));
                self.current.identity = Some(Arc::new(Encoded::new(own(issued.chain_pem, issued.key_pem))));
                true
            }
            Err(error) => {
                tracing::warn!(%identity, %error, "could not issue a certificate; trying again in 30 s");
                self.due = Some(now + RETRY);
                false
            }
        }
    }
}

fn own(chain_pem: String, key_pem: String) -> Any {
    let certificate = TlsCertificate {
        certificate_chain: Some(inline(chain_pem)),
        private_key: Some(inline(key_pem)),
        ..TlsCertificate::default()
    };
    pack_any(Secret {
        name: names::SECRET_IDENTITY.to_owned(),
        r#type: Some(secret::Type::TlsCertificate(certificate)),
    })
}

fn roots(roots_pem: &str) -> Any {
    let context = CertificateValidationContext { trusted_ca: Some(inline(roots_pem.to_owned())), ..Default::default() };
    pack_any(Secret { name: names::SECRET_ROOTS.to_owned(), r#type: Some(secret::Type::ValidationContext(context)) })
}

fn inline(text: String) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineString(text)), ..DataSource::default() }
}

/// A secret that may be shown: without its private key. Nothing is left of one that cannot be read.
pub fn redacted(any: &Any) -> Any {
    let mut shown = Secret::decode(any.value.as_slice()).unwrap_or_default();
    shown.r#type = match shown.r#type {
        Some(secret::Type::TlsCertificate(mut certificate)) => {
            certificate.private_key = Some(inline(REDACTED.to_owned()));
            Some(secret::Type::TlsCertificate(certificate))
        }
        Some(secret::Type::ValidationContext(context)) => Some(secret::Type::ValidationContext(context)),
        _ => None,
    };
    pack_any(shown)
}

/// The certificates in a secret, PEM, the leaf first; `None` if it has none.
pub fn chain(any: &Any) -> Option<String> {
    match Secret::decode(any.value.as_slice()).ok()?.r#type? {
        secret::Type::TlsCertificate(certificate) => match certificate.certificate_chain?.specifier? {
            Specifier::InlineString(pem) => Some(pem),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer(identity: Option<&str>) -> (tempfile::TempDir, Issuer) {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(&dir.path().join("ca"), "mesh.local", Timestamp::now()).unwrap();
        (dir, Issuer::new(Arc::new(ca), identity.map(|id| id.parse().unwrap())))
    }

    fn text(data: &Option<DataSource>) -> String {
        match data.clone().unwrap().specifier.unwrap() {
            Specifier::InlineString(text) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_certificate_is_renewed_around_half_of_its_life() {
        let (_dir, mut issuer) = issuer(Some("spiffe://mesh.local/ns/shop/sa/web"));
        assert!(issuer.current().get("default").is_none() && issuer.due().is_none());
        let (start, clock) = (Instant::now(), Timestamp::now());
        assert!(issuer.renew(start, clock, 0.5));
        let first = issuer.current().get("default").unwrap().version.clone();
        let due = issuer.due().unwrap() - start;
        assert!((1795..=1805).contains(&due.as_secs()), "{due:?}");
        assert!(!issuer.renew(start + due / 2, clock, 0.5));
        assert!(issuer.renew(start + due, clock + due, 0.0));
        assert_ne!(issuer.current().get("default").unwrap().version, first);
        let due = issuer.due().unwrap() - start - due;
        assert!((1435..=1445).contains(&due.as_secs()), "{due:?}");
    }

    #[tokio::test]
    async fn other_roots_are_told_at_once_and_what_they_do_not_trust_is_replaced() {
        let (_dir, mut issuer) = issuer(Some("spiffe://mesh.local/ns/shop/sa/web"));
        let (now, clock) = (Instant::now(), Timestamp::now());
        assert!(issuer.renew(now, clock, 0.5));
        let trusted = |issuer: &Issuer| {
            let secret = Secret::decode(issuer.current().get("ROOTCA").unwrap().any.value.as_slice()).unwrap();
            let Some(secret::Type::ValidationContext(context)) = secret.r#type else { panic!("{secret:?}") };
            text(&context.trusted_ca).matches("BEGIN CERTIFICATE").count()
        };
        let change = |issuer: &Issuer, end: bool| match end {
            false => issuer.ca.rotate(clock, false).unwrap(),
            true => issuer.ca.end_rotation().unwrap(),
        };
        for (end, roots) in [(false, 2), (true, 1)] {
            change(&issuer, end);
            tokio::time::timeout(Duration::from_secs(20), issuer.changed()).await.unwrap();
            assert_eq!((trusted(&issuer), issuer.renew(now, clock, 0.5)), (roots, end));
        }
    }

    #[test]
    fn who_has_proven_nothing_gets_the_roots_alone() {
        let (_dir, mut issuer) = issuer(None);
        assert!(!issuer.renew(Instant::now(), Timestamp::now(), 0.5));
        let secrets = issuer.current();
        assert!(secrets.get("default").is_none() && secrets.get("other").is_none());
        let roots = Secret::decode(secrets.get("ROOTCA").unwrap().any.value.as_slice()).unwrap();
        let Some(secret::Type::ValidationContext(context)) = roots.r#type else { panic!("{roots:?}") };
        assert!(text(&context.trusted_ca).contains("BEGIN CERTIFICATE"));
    }

    #[test]
    fn a_failure_keeps_what_is_there_and_tries_again() {
        let (_dir, mut issuer) = issuer(Some("spiffe://elsewhere/ns/shop/sa/web"));
        let start = Instant::now();
        assert!(!issuer.renew(start, Timestamp::now(), 0.5));
        assert_eq!(issuer.due(), Some(start + RETRY));
    }

    #[test]
    fn a_key_is_never_shown() {
        let (_dir, mut issuer) = issuer(Some("spiffe://mesh.local/ns/shop/sa/web"));
        issuer.renew(Instant::now(), Timestamp::now(), 0.5);
        let secret = issuer.current().get("default").unwrap().any.clone();
        assert!(String::from_utf8_lossy(&secret.value).contains("PRIVATE KEY"));
        let shown = redacted(&secret);
        assert!(!String::from_utf8_lossy(&shown.value).contains("PRIVATE KEY"));
        assert!(String::from_utf8_lossy(&shown.value).contains("BEGIN CERTIFICATE"));
    }
}
