//! Who a call comes from: what the acceptor learned of the connection, and the join token in the call's metadata.

use jiff::Timestamp;
use mesh_common::identity::Identity;
use tonic::{Request, Status};

use crate::store::{TokenError, Tokens};

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
}

#[derive(Clone, Debug)]
pub struct PeerCertificate {
    pub identity: Identity,
    pub not_after: Timestamp,
}

#[derive(Clone, Debug)]
pub struct Caller {
    pub identity: Option<Identity>,
    pub address: String,
    pub transport: Transport,
}

impl Caller {
    /// The proven identity, or UNAUTHENTICATED.
    pub fn required(&self) -> Result<&Identity, Status> {
        self.identity.as_ref().ok_or_else(|| {
            Status::unauthenticated(
                "no proof of identity: show a certificate of this mesh, or a join token as `authorization: Bearer` metadata",
            )
        })
    }
}

/// Who calls. A certificate goes before a token; a token is counted as used once for each call of this function, hence
/// once for each stream. A token over plaintext is taken only from this machine.
pub fn caller<T>(request: &Request<T>, tokens: &Tokens) -> Result<Caller, Status> {
    identify(request, |token, now| tokens.redeem(token, now))
}

/// Like [`caller`], but a token is only checked and not counted as used: for what must be decided before it is spent.
pub fn claimed<T>(request: &Request<T>, tokens: &Tokens) -> Result<Caller, Status> {
    identify(request, |token, now| tokens.check(token, now))
}

fn identify<T>(
    request: &Request<T>,
    take: impl FnOnce(&str, Timestamp) -> Result<Identity, TokenError>,
) -> Result<Caller, Status> {
    let peer = request
        .extensions()
        .get::<Peer>()
        .ok_or_else(|| Status::internal("the acceptor did not describe this connection"))?;
    let now = Timestamp::now();
    let identity = match &peer.certificate {
        // The handshake checked this once; a connection may live longer than its certificate.
        Some(certificate) if certificate.not_after < now => {
            return Err(Status::unauthenticated(
                "the certificate of this connection has expired: connect again with a new one",
            ));
        }
        Some(certificate) => Some(certificate.identity.clone()),
        None => match bearer(request)? {
            Some(token) => Some(take(token, now).map_err(refusal)?),
            None => None,
        },
    };
    Ok(Caller { identity, address: peer.address.clone(), transport: peer.transport })
}

fn bearer<T>(request: &Request<T>) -> Result<Option<&str>, Status> {
    let Some(value) = request.metadata().get("authorization") else { return Ok(None) };
    let text = value.to_str().map_err(|_| Status::unauthenticated("the `authorization` metadata is not text"))?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token.trim())),
        _ => Err(Status::unauthenticated("the `authorization` metadata must be `Bearer <join token>`")),
    }
}

fn refusal(error: TokenError) -> Status {
    match error {
        TokenError::Store(error) => Status::unavailable(error.to_string()),
        refused => Status::unauthenticated(refused.to_string()),
    }
}
