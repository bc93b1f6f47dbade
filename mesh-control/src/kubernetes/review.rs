//! Whose a service account's token is: asked of the API server by TokenReview, remembered for a short time.
//!
//! What can be known of a token without asking (that it is none, is for somebody else, or is over) is known here first, so
//! that its bearer hears a reason and a flood of nonsense does not reach the API server.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::{Api, ObjectMeta, PostParams};
use mesh_common::identity::Identity;
use mesh_common::names::TOKEN_AUDIENCE;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tonic::Status;

use crate::auth::Bearer;

/// A revoked token is taken for as long as this. A proxy shows its token a few times in a row and then no more.
const REMEMBERED: Duration = Duration::from_secs(30);
const MAX_REMEMBERED: usize = 10_000;
/// Questions that are open at the API server.
const AT_ONCE: usize = 32;
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_TOKEN_BYTES: usize = 16 << 10;
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";

/// Asks the API server. A clone is the same.
#[derive(Clone)]
pub struct Reviewer {
    shared: Arc<Shared>,
}

struct Shared {
    reviews: Api<TokenReview>,
    trust_domain: String,
    open: Semaphore,
    /// By SHA-256 of the token.
    known: Mutex<HashMap<[u8; 32], (Bearer, Instant)>>,
}

impl Reviewer {
    pub fn new(client: kube::Client, trust_domain: &str) -> Self {
        let shared = Shared {
            reviews: Api::all(client),
            trust_domain: trust_domain.to_owned(),
            open: Semaphore::new(AT_ONCE),
            known: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Who bears the token; UNAUTHENTICATED with the reason, or UNAVAILABLE when the API server does not say.
    pub async fn review(&self, token: &str) -> Result<Bearer, Status> {
        inspect(token, Timestamp::now()).map_err(Status::unauthenticated)?;
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.known(&hash, Instant::now()) {
            return Ok(known);
        }
        let status = tokio::time::timeout(TIMEOUT, self.ask(token)).await;
        let status =
            status.map_err(|_| Status::unavailable("the API server did not say in time whose the token is"))?;
        let bearer = verdict(&status?, &self.shared.trust_domain).map_err(Status::unauthenticated)?;
        self.remember(hash, &bearer, Instant::now());
        Ok(bearer)
    }

    async fn ask(&self, token: &str) -> Result<TokenReviewStatus, Status> {
        let _permit = self.shared.open.acquire().await.map_err(|_| Status::internal("the semaphore is closed"))?;
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]) };
        let review = TokenReview { metadata: ObjectMeta::default(), spec, status: None };
        let answer = self.shared.reviews.create(&PostParams::default(), &review).await;
        match answer {
            Ok(review) => Ok(review.status.unwrap_or_default()),
            Err(error) => {
                tracing::error!(%error, "the API server did not review a token");
                Err(Status::unavailable(
                    "the API server did not say whose the token is; the log of mesh-control says why",
                ))
            }
        }
    }

    fn known(&self, hash: &[u8; 32], now: Instant) -> Option<Bearer> {
        let known = self.shared.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(hash).filter(|(_, until)| now < *until).map(|(bearer, _)| bearer.clone())
    }

    fn remember(&self, hash: [u8; 32], bearer: &Bearer, now: Instant) {
        let mut known = self.shared.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (_, until)| now < *until);
        if known.len() < MAX_REMEMBERED {
            known.insert(hash, (bearer.clone(), now + REMEMBERED));
        }
    }
}

/// The claims of a JWT that matter here. Nobody has verified them.
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    aud: Audience,
    exp: Option<i64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Default for Audience {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

/// Refuses what the API server would refuse as well, with a better reason.
fn inspect(token: &str, now: Timestamp) -> Result<(), String> {
    let claims = || -> Option<Claims> {
        let mut parts = token.split('.');
        let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
    };
    let Some(claims) = claims() else {
        return Err("the token is not one of a Kubernetes service account".to_owned());
    };
    let audiences = match &claims.aud {
        Audience::One(audience) => std::slice::from_ref(audience),
        Audience::Many(audiences) => audiences,
    };
    if !audiences.iter().any(|audience| audience == TOKEN_AUDIENCE) {
        return Err(format!(
            "the token is for the audience {audiences:?}, not {TOKEN_AUDIENCE:?}; project one with that audience into the pod"
        ));
    }
    match claims.exp {
        Some(exp) if exp <= now.as_second() => {
            let end = Timestamp::from_second(exp).map(|end| end.to_string()).unwrap_or_default();
            Err(format!("the token expired at {end}; the kubelet renews it in its file, which must be read again"))
        }
        _ => Ok(()),
    }
}

/// What the API server's answer means.
fn verdict(status: &TokenReviewStatus, trust_domain: &str) -> Result<Bearer, String> {
    if status.authenticated != Some(true) {
        let reason = status.error.as_deref().unwrap_or("it gives no reason");
        return Err(format!("the API server does not take the token: {reason}"));
    }
    // An API server that knows nothing of audiences leaves them out, and then nothing was checked.
    if !status.audiences.as_deref().unwrap_or_default().iter().any(|audience| audience == TOKEN_AUDIENCE) {
        return Err(format!("the API server does not confirm that the token is for the audience {TOKEN_AUDIENCE:?}"));
    }
    let user = status.user.as_ref();
    let name = user.and_then(|user| user.username.as_deref()).unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, account)) = account else {
        return Err(format!("the token is {name:?}'s, which is no service account"));
    };
    let identity = Identity::new(trust_domain, namespace, account)
        .map_err(|error| format!("the service account {namespace}/{account} cannot have an identity: {error}"))?;
    let extra = user.and_then(|user| user.extra.as_ref()).and_then(|extra| extra.get(POD_NAME));
    Ok(Bearer { identity, pod: extra.and_then(|names| names.first()).cloned() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn token(claims: serde_json::Value) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    #[test]
    fn what_is_known_to_be_wrong_is_not_asked() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let end = now.as_second() + 60;
        assert_eq!(inspect(&token(json!({"aud": ["mesh-control"], "exp": end})), now), Ok(()));
        assert_eq!(inspect(&token(json!({"aud": "mesh-control", "exp": end})), now), Ok(()));
        for (text, reason) in [
            ("mesh1.abc", "not one of a Kubernetes service account"),
            ("a.b.c", "not one of a Kubernetes service account"),
            (&token(json!({"aud": ["https://kubernetes.default.svc"], "exp": end})), "for the audience"),
            (&token(json!({"exp": end})), "for the audience"),
            (&token(json!({"aud": ["mesh-control"], "exp": now.as_second()})), "expired at 2030-01-01T00:00:00Z"),
        ] {
            let error = inspect(text, now).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_verdict_needs_the_audience_and_a_service_account() {
        let good = json!({
            "authenticated": true,
            "audiences": ["mesh-control"],
            "user": {
                "username": "system:serviceaccount:shop:reviews",
                "uid": "9b0a",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"],
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["reviews-v1-5d9c7b"],
                    "authentication.kubernetes.io/pod-uid": ["77"],
                },
            },
        });
        let read = |json: &serde_json::Value| verdict(&serde_json::from_value(json.clone()).unwrap(), "mesh.local");
        let bearer = read(&good).unwrap();
        assert_eq!(bearer.identity.to_string(), "spiffe://mesh.local/ns/shop/sa/reviews");
        assert_eq!(bearer.pod.as_deref(), Some("reviews-v1-5d9c7b"));

        let mut unconfirmed = good.clone();
        unconfirmed["audiences"] = json!(null);
        assert!(read(&unconfirmed).unwrap_err().contains("does not confirm"));
        let mut person = good.clone();
        person["user"]["username"] = json!("admin");
        assert!(read(&person).unwrap_err().contains("no service account"));
        let forged = json!({"authenticated": false, "error": "invalid bearer token"});
        assert!(read(&forged).unwrap_err().contains("invalid bearer token"));
    }
}
