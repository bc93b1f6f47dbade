//! The proxy's identity: a key made here that never leaves the process, and a certificate for it from the control
//! plane's authority, renewed at half of its life.
//!
//! In: a token (a join token, or one of a Kubernetes service account), or the certificate from before. Out: SVIDs, put in force in [`Tls`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_common::proto::ca::SignRequest;
use mesh_common::proto::ca::certificate_authority_client::CertificateAuthorityClient;
use mesh_common::tls::{PinnedVerifier, SharedCertificate, client_config};
use mesh_common::token::{JoinToken, TokenError};
use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tonic::Code;
use tonic::metadata::MetadataValue;

use crate::control::{self, Address, Backoff, explain, explain_status};
use crate::tls::Tls;

mod files;
mod request;

pub(crate) use files::pem;
use request::{KeyRequest, ResponseError};

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
const RENEWAL_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot read the join token in {}: {reason}", path.display())]
    TokenFile { path: PathBuf, reason: io::Error },
    #[error("the join token in {} cannot be used: {reason}", path.display())]
    Token { path: PathBuf, reason: TokenError },
    #[error("the trust bundle in {} cannot be used: {reason}", path.display())]
    TrustBundle { path: PathBuf, reason: String },
    #[error("there is no join token; make one with `meshctl token create` and pass it with --token-file")]
    NoToken,
    #[error(
        "{address} does not hold the root certificate that the join token or the trust bundle names: it is another mesh's control plane, or the token is from a mesh that was set up anew; make a new token with `meshctl token create`, or in Kubernetes restart the pod ({reason})"
    )]
    WrongRoot { address: Address, reason: String },
    /// The reason says what to do about it.
    #[error("the control plane refuses to issue a certificate: {reason}")]
    Refused { reason: String },
    #[error("the control plane at {address} cannot be reached: {reason}")]
    Unreachable { address: Address, reason: String },
    #[error("the control plane could not sign now: {reason}")]
    Busy { reason: String },
    #[error("TLS cannot be set up")]
    Tls(#[from] mesh_common::tls::TlsError),
    #[error("a new key cannot be made")]
    Key(#[from] rcgen::Error),
    #[error("what the control plane sent is not a usable certificate")]
    Response(#[from] ResponseError),
    #[error(transparent)]
    Proxy(#[from] crate::error::Error),
}

impl IdentityError {
    /// Whether it may go away by itself.
    fn passes(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Busy { .. })
    }
}

/// Gets SVIDs and puts them in force.
#[derive(Clone, Debug)]
pub struct Authority {
    pub address: Address,
    pub token_file: Option<PathBuf>,
    /// Roots that the control plane is verified by at first, for tokens that name none.
    pub trust_bundle: Option<PathBuf>,
    /// Folder for copies of the certificates.
    pub state_dir: Option<PathBuf>,
    /// Lifetime to ask for; zero asks for the authority's default.
    pub ttl: Duration,
}

impl Authority {
    /// Gets the first SVID, trying again for as long as that may help. An error says what the user has to do.
    pub async fn first(&self, tls: &Tls) -> Result<(), IdentityError> {
        let mut backoff = Backoff::new(FIRST_BACKOFF.0, FIRST_BACKOFF.1);
        loop {
            match self.with_token(tls).await {
                Ok(()) => return Ok(()),
                Err(error) if error.passes() => {
                    tracing::warn!(error = explain(&error), "no certificate yet; trying again");
                    tokio::time::sleep(backoff.next(fastrand::f64())).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Renews the SVID for as long as it runs.
    pub async fn renew(&self, tls: &Tls) {
        loop {
            let life = remaining(tls.expires().unwrap_or(0), SystemTime::now());
            tokio::time::sleep(renewal_delay(life, fastrand::f64())).await;
            let mut backoff = Backoff::new(RENEWAL_BACKOFF.0, RENEWAL_BACKOFF.1);
            while let Err(error) = self.again(tls).await {
                let left = remaining(tls.expires().unwrap_or(0), SystemTime::now());
                let seconds_left = left.as_secs();
                let error = explain(&error);
                if left.is_zero() {
                    tracing::error!(error, "the certificate has expired and could not be renewed");
                } else {
                    tracing::warn!(error, seconds_left, "the certificate could not be renewed yet");
                }
                tls.not_renewed(error);
                tokio::time::sleep(backoff.next(fastrand::f64())).await;
            }
        }
    }

    /// With the certificate from before, or with a token when that has expired. A token that can be used more than once
    /// helps as well when the control plane does not take the certificate any more.
    async fn again(&self, tls: &Tls) -> Result<(), IdentityError> {
        if remaining(tls.expires().unwrap_or(0), SystemTime::now()).is_zero() {
            return self.with_token(tls).await;
        }
        match self.sign(tls, tls.control()?, None).await {
            Err(error) if self.trust_bundle.is_some() => {
                tracing::debug!(
                    error = explain(&error),
                    "the certificate was not renewed by itself; trying with the token"
                );
                self.with_token(tls).await
            }
            result => result,
        }
    }

    async fn with_token(&self, tls: &Tls) -> Result<(), IdentityError> {
        let token = self.token()?;
        let verifier = match &token {
            Token::Join(token) => PinnedVerifier::new(*token.root()),
            Token::ServiceAccount { roots, .. } => PinnedVerifier::with_roots(roots)?,
        };
        let nobody = Arc::new(SharedCertificate::default());
        let config = client_config(Arc::new(verifier), nobody, vec![b"h2".to_vec()])?;
        self.sign(tls, Arc::new(config), Some(&token)).await
    }

    /// Read each time: it may have been replaced by one that works.
    fn token(&self) -> Result<Token, IdentityError> {
        let path = self.token_file.clone().ok_or(IdentityError::NoToken)?;
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(reason) => return Err(IdentityError::TokenFile { path, reason }),
        };
        match (text.parse(), &self.trust_bundle) {
            (Ok(token), _) => Ok(Token::Join(token)),
            (Err(TokenError::Form), Some(bundle)) => {
                Ok(Token::ServiceAccount { bearer: text.trim().to_owned(), roots: roots(bundle)? })
            }
            (Err(reason), _) => Err(IdentityError::Token { path, reason }),
        }
    }

    async fn sign(&self, tls: &Tls, config: Arc<ClientConfig>, token: Option<&Token>) -> Result<(), IdentityError> {
        let channel = control::dial(&self.address, config).await.map_err(|error| self.connection_error(&error))?;
        let key = KeyRequest::new()?;
        let mut request = tonic::Request::new(SignRequest { csr: key.csr().to_vec(), ttl_seconds: self.ttl.as_secs() });
        request.set_timeout(CALL_TIMEOUT);
        if let Some(token) = token {
            let bearer = format!("Bearer {}", token.bearer());
            let mut value = MetadataValue::try_from(bearer).map_err(|_| IdentityError::NoToken)?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        let call = CertificateAuthorityClient::new(channel).sign(request).await;
        let response = call.map_err(|status| self.status_error(&status))?.into_inner();
        let svid = key.complete(response, token.and_then(Token::pin), SystemTime::now())?;
        tracing::info!(identity = %svid.identity, not_after = svid.not_after, "the proxy has a certificate");
        if let Some(folder) = &self.state_dir
            && let Err(error) = files::write(folder, &svid)
        {
            tracing::warn!(%error, folder = %folder.display(), "the certificate could not be copied into its folder");
        }
        tls.rotate(svid);
        Ok(())
    }

    fn connection_error(&self, error: &tonic::transport::Error) -> IdentityError {
        let reason = explain(error);
        let address = self.address.clone();
        if is_certificate_error(error) {
            IdentityError::WrongRoot { address, reason }
        } else {
            IdentityError::Unreachable { address, reason }
        }
    }

    fn status_error(&self, status: &tonic::Status) -> IdentityError {
        let reason = explain_status(status);
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument => IdentityError::Refused { reason },
            Code::ResourceExhausted | Code::Internal => IdentityError::Busy { reason },
            _ => IdentityError::Unreachable { address: self.address.clone(), reason },
        }
    }
}

/// Proof of what the workload may become, before it has a certificate.
enum Token {
    Join(JoinToken),
    ServiceAccount { bearer: String, roots: Vec<CertificateDer<'static>> },
}

impl Token {
    fn bearer(&self) -> String {
        match self {
            Self::Join(token) => token.reveal(),
            Self::ServiceAccount { bearer, .. } => bearer.clone(),
        }
    }

    /// The root that must be in the bundle that the control plane sends.
    fn pin(&self) -> Option<&[u8; 32]> {
        match self {
            Self::Join(token) => Some(token.root()),
            Self::ServiceAccount { .. } => None,
        }
    }
}

fn roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let wrong = |reason: String| IdentityError::TrustBundle { path: path.to_owned(), reason };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
    let roots = certificates.collect::<Result<Vec<_>, _>>().map_err(|error| wrong(error.to_string()))?;
    match roots.is_empty() {
        true => Err(wrong("there is no certificate in it".to_owned())),
        false => Ok(roots),
    }
}

/// Whether the handshake failed because this side did not accept the other's certificate.
fn is_certificate_error(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        // An `io::Error` shows what it wraps, but not as its source.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = wrapped.and_then(|it| it.downcast_ref()).or_else(|| error.downcast_ref());
        if matches!(tls, Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        next = error.source();
    }
    false
}

fn remaining(not_after: i64, now: SystemTime) -> Duration {
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(not_after).unwrap_or(0));
    end.duration_since(now).unwrap_or_default()
}

/// Half of the life that is left, up to a tenth of it earlier or later, so that proxies that started together do not
/// renew together.
fn renewal_delay(life: Duration, random: f64) -> Duration {
    life.mul_f64(0.45 + 0.1 * random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests;
