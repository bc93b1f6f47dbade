//! Who a call comes from: what the acceptor learned of the connection, and the token in the call's metadata.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use jiff::Timestamp;
use mesh_common::identity::Identity;
use tonic::{Request, Status};

use crate::kubernetes::Reviewer;
use crate::store::{TokenError, Tokens, blocking};

/// How a connection came in. What it may do hangs on this as much as on its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TLS, over TCP or over `DATA/proxy.sock`.
    Tls,
    /// Plaintext from this machine.
    Loopback,
    /// `DATA/control.sock`, which only the mesh's operator can open.
    Unix,
}

/// What is known of a connection; our acceptors put it into the extensions of each of its requests.
#[derive(Clone, Debug)]
pub struct Peer {
    /// `127.0.0.1:40112`, or `unix` for a socket that has no address.
    pub address: String,
    pub transport: Transport,
    /// From the client certificate, whose chain the handshake verified.
    pub certificate: Option<PeerCertificate>,
    /// Whether it has proven an identity, by its certificate or by a token in one of its calls. Clones share it.
    pub proven: Proven,
    /// The process at the other end of a unix socket, where it can be seen from here.
    pub process: Option<i32>,
    /// The user that it runs as, by the kernel's word.
    pub user: Option<u32>,
}

impl Peer {
    pub fn new(address: String, transport: Transport, certificate: Option<PeerCertificate>) -> Self {
        let proven = Proven::default();
        if certificate.is_some() {
            proven.set();
        }
        Self { address, transport, certificate, proven, process: None, user: None }
    }
}

/// Set once, for as long as a connection lives. The first calls of a connection come after it was accepted, so this is told
/// from where calls are looked at to where the connection is kept.
#[derive(Clone, Debug, Default)]
pub struct Proven(Arc<AtomicBool>);

impl Proven {
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug)]
pub struct PeerCertificate {
    pub identity: Identity,
    pub not_after: Timestamp,
    /// When the handshake began that verified it, by what was trusted then.
    pub verified: Instant,
}

#[derive(Clone, Debug)]
pub struct Caller {
    pub identity: Option<Identity>,
    /// The pod that its token was made for, where that is known.
    pub pod: Option<String>,
    pub address: String,
    pub transport: Transport,
    /// The process at the other end of a unix socket, where it can be seen from here.
    pub process: Option<i32>,
}

impl Caller {
    /// The proven identity, or UNAUTHENTICATED.
    pub fn required(&self) -> Result<&Identity, Status> {
        self.identity.as_ref().ok_or_else(|| {
            Status::unauthenticated(
                "no proof of identity: show a certificate of this mesh, or a token as `authorization: Bearer` metadata",
            )
        })
    }
}

/// What stands behind the tokens of callers that have no certificate yet. A clone is the same.
#[derive(Clone)]
pub enum Authenticator {
    /// Join tokens of the store.
    Tokens(Arc<Tokens>),
    /// Tokens of Kubernetes' service accounts.
    Reviewer(Reviewer),
}

/// What a call shows of its caller, taken out of the request so that it can be looked at while the request waits.
pub struct Proof {
    peer: Peer,
    token: Option<String>,
}

impl Proof {
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("the acceptor did not describe this connection"))?;
        let token = match peer.certificate {
            Some(_) => None,
            None => bearer(request)?.map(str::to_owned),
        };
        Ok(Self { peer, token })
    }

    /// When the certificate of its connection was verified, if it has one.
    pub fn verified(&self) -> Option<Instant> {
        self.peer.certificate.as_ref().map(|it| it.verified)
    }
}

/// What a token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    pub identity: Identity,
    /// The pod that the token was made for, where it says so.
    pub pod: Option<String>,
}

impl Authenticator {
    /// Who calls. A certificate goes before a token; a join token is counted as used once for each call of this function,
    /// hence once for each stream. A token over plaintext is taken only from this machine.
    pub async fn caller(&self, proof: &Proof) -> Result<Caller, Status> {
        self.identify(proof, true).await
    }

    /// Like [`caller`](Self::caller), but a token is only checked and not counted as used: for what must be decided before
    /// it is spent.
    pub async fn claimed(&self, proof: &Proof) -> Result<Caller, Status> {
        self.identify(proof, false).await
    }

    async fn identify(&self, proof: &Proof, spend: bool) -> Result<Caller, Status> {
        let (peer, now) = (&proof.peer, Timestamp::now());
        let bearer = match (&peer.certificate, &proof.token) {
            // The handshake checked this once; a connection may live longer than its certificate.
            (Some(certificate), _) if certificate.not_after < now => {
                return Err(Status::unauthenticated(
                    "the certificate of this connection has expired: connect again with a new one",
                ));
            }
            (Some(certificate), _) => Some(Bearer { identity: certificate.identity.clone(), pod: None }),
            (None, Some(token)) => Some(self.bearer(token, spend, now).await?),
            (None, None) => None,
        };
        if bearer.is_some() {
            peer.proven.set();
        }
        let (identity, pod) = bearer.map_or((None, None), |bearer| (Some(bearer.identity), bearer.pod));
        let Peer { address, transport, process, .. } = peer;
        Ok(Caller { identity, pod, address: address.clone(), transport: *transport, process: *process })
    }

    async fn bearer(&self, token: &str, spend: bool, now: Timestamp) -> Result<Bearer, Status> {
        match self {
            Self::Tokens(tokens) => {
                let mut identity = tokens.check(token, now).map_err(refusal)?;
                if spend {
                    // Waits for the disk, so on a thread that may; and only for tokens that are good, so that strangers can't
                    // fill those threads. The use is counted even if the caller goes away meanwhile.
                    let (tokens, token) = (tokens.clone(), token.to_owned());
                    identity = blocking(move || tokens.redeem(&token, now)).await.map_err(refusal)?;
                }
                Ok(Bearer { identity, pod: None })
            }
            Self::Reviewer(reviewer) => reviewer.review(token).await,
        }
    }
}

fn bearer<T>(request: &Request<T>) -> Result<Option<&str>, Status> {
    let Some(value) = request.metadata().get("authorization") else { return Ok(None) };
    let text = value.to_str().map_err(|_| Status::unauthenticated("the `authorization` metadata is not text"))?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token.trim())),
        _ => Err(Status::unauthenticated("the `authorization` metadata must be `Bearer <token>`")),
    }
}

fn refusal(error: TokenError) -> Status {
    match error {
        TokenError::Store(error) => Status::unavailable(error.to_string()),
        refused => Status::unauthenticated(refused.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::Store;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_use_is_granted_to_one_of_many_that_come_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Store::open(dir.path()).unwrap().tokens().clone();
        let web = Identity::new("mesh.local", "shop", "web").unwrap();
        let auth = Authenticator::Tokens(tokens.clone());
        for uses in [1, 3] {
            let now = Timestamp::now();
            let (token, _) = tokens.create(&web, Duration::from_secs(60), uses, [0; 32], now).unwrap();
            let calls: Vec<_> = (0..50)
                .map(|_| {
                    let peer = Peer::new("10.0.0.1:7".to_owned(), Transport::Tls, None);
                    let (auth, proof) = (auth.clone(), Proof { peer, token: Some(token.reveal()) });
                    tokio::spawn(async move { (auth.caller(&proof).await, proof.peer.proven.is_set()) })
                })
                .collect();
            let mut granted = 0;
            for call in calls {
                match call.await.unwrap() {
                    (Ok(caller), proven) => {
                        assert_eq!((caller.required().unwrap(), proven), (&web, true));
                        granted += 1;
                    }
                    (Err(status), proven) => {
                        assert_eq!((status.code(), proven), (tonic::Code::Unauthenticated, false));
                    }
                }
            }
            assert_eq!(granted, uses);
        }
        assert!(tokens.is_empty());
    }
}
