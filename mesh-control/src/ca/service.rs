//! `mesh.ca.v1`: signs what an authenticated caller asks for, in the caller's own name.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use mesh_common::proto::ca::certificate_authority_server::CertificateAuthority;
use mesh_common::proto::ca::{GetTrustBundleRequest, GetTrustBundleResponse, SignRequest, SignResponse};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::limit::RateLimit;
use super::{Ca, CaError, csr};
use crate::auth::{Authenticator, Proof};

/// One identity may be that of many workloads that all start at the same time.
const BURST: u32 = 500;
const PER_SECOND: u32 = 20;

pub struct CaService {
    ca: Arc<Ca>,
    auth: Authenticator,
    limit: RateLimit,
    distrust: watch::Receiver<Option<Instant>>,
}

impl CaService {
    pub fn new(ca: Arc<Ca>, auth: Authenticator) -> Self {
        let distrust = ca.distrust();
        Self { ca, auth, limit: RateLimit::new(BURST, PER_SECOND), distrust }
    }
}

#[tonic::async_trait]
impl CertificateAuthority for CaService {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        // A request that cannot be signed must not cost a single-use token, nor may one that comes too often.
        csr::verified_key(&request.get_ref().csr).map_err(status)?;
        let proof = Proof::of(&request)?;
        let claimed = self.auth.claimed(&proof).await?;
        self.limit.take(claimed.required()?, Instant::now()).map_err(|wait| {
            Status::resource_exhausted(format!("too many signing requests by this identity; try again in {wait:.1?}"))
        })?;
        let caller = self.auth.caller(&proof).await?;
        let identity = caller.required()?;

        let SignRequest { csr, ttl_seconds } = request.get_ref();
        let issued =
            self.ca.sign_csr(csr, identity, Duration::from_secs(*ttl_seconds), Timestamp::now()).map_err(status)?;
        // What is trusted no more must not become what is trusted. Asked last: it may have ended meanwhile.
        let distrusted = *self.distrust.borrow();
        if proof.verified().zip(distrusted).is_some_and(|(verified, distrusted)| verified <= distrusted) {
            return Err(Status::unauthenticated("a root was replaced since this connection began: connect again"));
        }
        metrics::counter!("mesh_control_certificates_issued_total").increment(1);
        tracing::info!(%identity, peer = caller.address, until = %issued.not_after, "issued a certificate");
        Ok(Response::new(SignResponse {
            chain: issued.chain,
            roots: self.ca.roots_der(),
            spiffe_id: identity.to_string(),
            not_after: issued.not_after.as_second(),
        }))
    }

    async fn get_trust_bundle(
        &self,
        _request: Request<GetTrustBundleRequest>,
    ) -> Result<Response<GetTrustBundleResponse>, Status> {
        Ok(Response::new(GetTrustBundleResponse {
            trust_domain: self.ca.trust_domain().to_owned(),
            roots: self.ca.roots_der(),
        }))
    }
}

fn status(error: CaError) -> Status {
    match error {
        CaError::Request(_) => Status::invalid_argument(error.to_string()),
        CaError::ForeignIdentity(..) | CaError::ControlIdentity => Status::permission_denied(error.to_string()),
        _ => {
            tracing::error!(%error, "signing failed");
            Status::internal("signing failed; the log of mesh-control says why")
        }
    }
}
