use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use mesh_common::proto::ca::certificate_authority_server::{CertificateAuthority, CertificateAuthorityServer};
use mesh_common::proto::ca::{GetTrustBundleRequest, GetTrustBundleResponse, SignResponse};
use mesh_common::tls::{ClientVerifier, Peers, SharedBundle, TrustBundle, peer_identity, sha256};
use rcgen::CertificateSigningRequestParams;
use rustls_pki_types::CertificateSigningRequestDer;
use tokio::net::UnixListener;
use tokio_rustls::TlsAcceptor;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::*;
use crate::config::UpstreamTls;
use crate::tls::tests::Authority as TestAuthority;

/// Signs for who shows the token or a certificate, as mesh-control does. The first `failures` calls end in an error.
struct Fake {
    authority: TestAuthority,
    token: Mutex<Option<String>>,
    failures: Arc<AtomicU32>,
    calls: Arc<AtomicU32>,
}

#[tonic::async_trait]
impl CertificateAuthority for Fake {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.fetch_sub(1, Ordering::Relaxed);
            return Err(Status::unavailable("still starting"));
        }
        let bearer = request.metadata().get("authorization");
        if let Some(bearer) = bearer.filter(|it| it.to_str().ok() != Some("Bearer header.claims.signature")) {
            let mut token = self.token.lock().unwrap();
            if token.as_deref().map(|it| format!("Bearer {it}")).as_deref() != bearer.to_str().ok() {
                return Err(Status::unauthenticated("used up: `meshctl token create`"));
            }
            // Unlike a join token, one of a service account can be used again.
            if token.as_deref().is_some_and(|it| it.starts_with("mesh1.")) {
                *token = None;
            }
        } else if bearer.is_none() && request.extensions().get::<Caller>().is_none_or(|caller| caller.0.is_none()) {
            return Err(Status::unauthenticated("neither a token nor a certificate"));
        }
        let csr = CertificateSigningRequestDer::from(request.into_inner().csr);
        let csr = CertificateSigningRequestParams::from_der(&csr).unwrap();
        let key = csr.public_key;
        let leaf = self.authority.leaf_for("web", &key);
        Ok(Response::new(SignResponse {
            chain: vec![leaf],
            roots: vec![self.authority.root()],
            spiffe_id: "spiffe://mesh.local/ns/shop/sa/web".into(),
            not_after: 4_000_000_000,
        }))
    }

    async fn get_trust_bundle(
        &self,
        _: Request<GetTrustBundleRequest>,
    ) -> Result<Response<GetTrustBundleResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

struct Bench {
    folder: tempfile::TempDir,
    root: [u8; 32],
    authority: Authority,
    calls: Arc<AtomicU32>,
    failures: Arc<AtomicU32>,
}

impl Bench {
    fn fail_next(&self) {
        self.failures.store(1, Ordering::Relaxed);
    }
}

/// A control plane on a unix socket; the proxy's token pins `pin`, or its root.
fn start(failures: u32, pin: Option<[u8; 32]>) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let authority = TestAuthority::new();
    let root = sha256(&authority.root());
    let token = JoinToken::new([1; 8], [2; 32], pin.unwrap_or(root));
    let token_file = folder.path().join("token");
    std::fs::write(&token_file, token.reveal()).unwrap();
    std::fs::write(folder.path().join("root.pem"), files::pem(&[authority.root().into()])).unwrap();
    let svid = authority.control();
    let bundle = TrustBundle::new("mesh.local", vec![authority.root().into()]).unwrap();
    let verifier = ClientVerifier::new(SharedBundle::new(bundle), Peers::TrustDomain, false);
    let tls = mesh_common::tls::server_config(Arc::new(verifier), Arc::new(svid), vec![b"h2".to_vec()]).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let path = folder.path().join("proxy.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let failures = Arc::new(AtomicU32::new(failures));
    let fake =
        Fake { authority, token: Mutex::new(Some(token.reveal())), failures: failures.clone(), calls: calls.clone() };
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(socket).await {
                let _ = sender.send(Ok::<_, io::Error>(Connected(stream)));
            }
        }
    });
    let incoming = tokio_stream::wrappers::UnboundedReceiverStream::new(receiver);
    let service = CertificateAuthorityServer::new(fake);
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    let authority = Authority {
        address: Address::Unix(path),
        token_file: Some(token_file),
        trust_bundle: None,
        state_dir: None,
        ttl: Duration::ZERO,
    };
    Bench { folder, root, authority, calls, failures }
}

/// Whose certificate a connection was made with.
#[derive(Clone)]
struct Caller(Option<String>);

/// tonic wants to know of a connection what it is.
struct Connected(tokio_rustls::server::TlsStream<tokio::net::UnixStream>);

impl tonic::transport::server::Connected for Connected {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        let certificates = self.0.get_ref().1.peer_certificates();
        Caller(certificates.and_then(peer_identity).map(|it| it.to_string()))
    }
}

impl tokio::io::AsyncRead for Connected {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl tokio::io::AsyncWrite for Connected {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn the_token_gets_the_first_certificate_and_that_the_next() {
    let bench = start(0, None);
    let tls = Tls::default();
    bench.authority.first(&tls).await.unwrap();
    assert_eq!(tls.identity().unwrap().to_string(), "spiffe://mesh.local/ns/shop/sa/web");
    assert_eq!(tls.expires(), Some(4_000_000_000));
    // Who has neither gets nothing.
    let nobody = client_config(
        Arc::new(PinnedVerifier::new(bench.root)),
        Arc::new(SharedCertificate::default()),
        vec![b"h2".to_vec()],
    );
    let refused = bench.authority.sign(&tls, Arc::new(nobody.unwrap()), None).await.unwrap_err();
    assert!(matches!(refused, IdentityError::Refused { .. }), "{refused}");
    // The token is used up now; its file may go.
    std::fs::remove_file(bench.folder.path().join("token")).unwrap();
    bench.authority.again(&tls).await.unwrap();
    assert_eq!(bench.calls.load(Ordering::Relaxed), 3);
    let any = UpstreamTls { identities: vec![], alpn: vec![], sni: String::new() };
    tls.client(&any, b"mesh-h2").unwrap();
}

#[tokio::test]
async fn a_service_account_token_goes_with_a_trust_bundle() {
    let bench = start(0, None);
    let folder = bench.folder.path();
    std::fs::write(folder.join("token"), "header.claims.signature\n").unwrap();
    let without = bench.authority.first(&Tls::default()).await.unwrap_err();
    assert!(matches!(without, IdentityError::Token { .. }), "{without}");
    let own = Authority { trust_bundle: Some(folder.join("root.pem")), ..bench.authority.clone() };
    let tls = Tls::default();
    own.first(&tls).await.unwrap();
    assert_eq!(tls.identity().unwrap().service_account, "web");
    // The control plane refuses the next call, then takes the token again.
    bench.fail_next();
    own.again(&tls).await.unwrap();
    assert_eq!(bench.calls.load(Ordering::Relaxed), 3);

    // The token is for the control plane's eyes only.
    std::fs::write(folder.join("root.pem"), files::pem(&[TestAuthority::new().root().into()])).unwrap();
    let stranger = own.first(&Tls::default()).await.unwrap_err();
    assert!(matches!(stranger, IdentityError::WrongRoot { .. }), "{stranger}");
    std::fs::write(folder.join("root.pem"), "").unwrap();
    let empty = own.first(&Tls::default()).await.unwrap_err();
    assert!(matches!(empty, IdentityError::TrustBundle { .. }), "{empty}");
    assert_eq!(bench.calls.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn tries_again_while_that_may_help() {
    let bench = start(2, None);
    bench.authority.first(&Tls::default()).await.unwrap();
    assert_eq!(bench.calls.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_used_token_is_not_tried_again_and_the_error_says_what_to_do() {
    let bench = start(0, None);
    bench.authority.first(&Tls::default()).await.unwrap();
    let error = bench.authority.first(&Tls::default()).await.unwrap_err().to_string();
    assert!(error.contains("used up") && error.matches("meshctl token create").count() == 1, "{error}");
    assert_eq!(bench.calls.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn the_token_is_not_shown_to_a_stranger() {
    let bench = start(0, Some([9; 32]));
    let error = bench.authority.first(&Tls::default()).await.unwrap_err();
    assert!(matches!(error, IdentityError::WrongRoot { .. }), "{error}");
    assert_eq!(bench.calls.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn says_what_is_wrong_with_the_token() {
    let bench = start(0, None);
    let path = bench.folder.path().join("token");
    let refusal = async |authority: &Authority| authority.first(&Tls::default()).await.unwrap_err();
    std::fs::write(&path, "mesh1.x").unwrap();
    assert!(matches!(refusal(&bench.authority).await, IdentityError::Token { .. }));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(refusal(&bench.authority).await, IdentityError::TokenFile { .. }));
    let without = Authority { token_file: None, ..bench.authority.clone() };
    assert!(matches!(refusal(&without).await, IdentityError::NoToken));
}

#[test]
fn a_certificate_for_another_key_or_name_is_not_put_in_force() {
    let authority = TestAuthority::new();
    let now = SystemTime::now();
    let other = rcgen::KeyPair::generate().unwrap();
    let response = |key: &KeyRequest, spiffe_id: &str, not_after| {
        let csr = CertificateSigningRequestDer::from(key.csr().to_vec());
        let public = CertificateSigningRequestParams::from_der(&csr).unwrap().public_key;
        let chain = vec![authority.leaf_for("web", &public)];
        assert!(peer_identity(&[chain[0].clone().into()]).is_some());
        SignResponse { chain, roots: vec![authority.root()], spiffe_id: spiffe_id.into(), not_after }
    };
    let web = "spiffe://mesh.local/ns/shop/sa/web";
    let root = sha256(&authority.root());
    let complete = |change: &dyn Fn(&mut SignResponse), pin: &[u8; 32]| {
        let key = KeyRequest::new().unwrap();
        let mut response = response(&key, web, 4_000_000_000);
        change(&mut response);
        key.complete(response, Some(pin), now)
    };
    assert_eq!(complete(&|_| {}, &root).unwrap().identity.to_string(), web);
    assert!(matches!(complete(&|_| {}, &[0; 32]), Err(ResponseError::Root)));
    assert!(matches!(complete(&|it| it.chain.clear(), &root), Err(ResponseError::Empty)));
    assert!(matches!(complete(&|it| it.not_after = 1, &root), Err(ResponseError::Expired)));
    let renamed = |it: &mut SignResponse| it.spiffe_id = "spiffe://mesh.local/ns/shop/sa/admin".into();
    assert!(matches!(complete(&renamed, &root), Err(ResponseError::Identity { .. })));
    let swapped = |it: &mut SignResponse| it.chain = vec![authority.leaf("web", &other)];
    assert!(matches!(complete(&swapped, &root), Err(ResponseError::Tls(_))));
}

#[test]
fn renews_around_half_of_the_life_that_is_left() {
    let hour = Duration::from_secs(3600);
    assert_eq!(renewal_delay(hour, 0.0), Duration::from_secs(1620));
    assert_eq!(renewal_delay(hour, 1.0), Duration::from_secs(1980));
    assert_eq!(renewal_delay(Duration::ZERO, 0.5), Duration::ZERO);
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
    assert_eq!(remaining(160, now), Duration::from_secs(60));
    assert_eq!(remaining(99, now), Duration::ZERO);
    assert_eq!(remaining(-1, now), Duration::ZERO);
}
