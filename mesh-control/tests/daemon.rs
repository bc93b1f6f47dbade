//! The daemon as its users meet it: started as a process, asked over its sockets, killed and started again.

// The helpers of a test may fail as its body may; clippy's exception covers only functions marked as tests.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use mesh_common::proto::ca::certificate_authority_client::CertificateAuthorityClient;
use mesh_common::proto::ca::{SignRequest, SignResponse};
use mesh_common::proto::control::mesh_client::MeshClient;
use mesh_common::proto::control::*;
use mesh_common::proto::workload::workload_registry_client::WorkloadRegistryClient;
use mesh_common::proto::workload::{RegisterRequest, Registration, WorkloadPort};
use mesh_common::tls::{
    Peers, PinnedVerifier, ServerVerifier, SharedBundle, SharedCertificate, TrustBundle, certified_key, client_config,
};
use mesh_common::token::JoinToken;
use mesh_control::ca::control_identity;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

struct Daemon {
    child: Child,
    data: PathBuf,
    ready: String,
}

impl Daemon {
    fn start(data: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mesh-control"))
            .arg("--data")
            .arg(data)
            .args([
                "--listen-xds",
                "127.0.0.1:0",
                "--listen-plaintext",
                "127.0.0.1:0",
                "--listen-metrics",
                "127.0.0.1:0",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert!(ready.starts_with("READY "), "{ready:?}");
        Self { child, data: data.to_owned(), ready }
    }

    /// The address after `name=` in the line that says ready.
    fn address(&self, name: &str) -> &str {
        self.ready.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).unwrap()
    }

    async fn operator(&self) -> MeshClient<Channel> {
        let path = self.data.join("control.sock");
        let connect = tower::service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
        });
        MeshClient::new(Endpoint::from_static("http://control").connect_with_connector(connect).await.unwrap())
    }

    async fn proxy(&self, tls: rustls::ClientConfig) -> Result<Channel, tonic::transport::Error> {
        let (path, connector) = (self.data.join("proxy.sock"), TlsConnector::from(Arc::new(tls)));
        let connect = tower::service_fn(move |_| {
            let (path, connector) = (path.clone(), connector.clone());
            async move {
                let stream = tokio::net::UnixStream::connect(path).await?;
                let stream = connector.connect("mesh-control".try_into().unwrap(), stream).await?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        Endpoint::from_static("http://proxy").connect_with_connector(connect).await
    }

    fn end(mut self, signal: &str) -> std::process::ExitStatus {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        self.child.wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn token(daemon: &Daemon, service_account: &str) -> String {
    let request = CreateTokenRequest { service_account: service_account.to_owned(), ..CreateTokenRequest::default() };
    daemon.operator().await.create_token(request).await.unwrap().into_inner().token
}

fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

/// Asks for another certificate with nothing but the one from before.
async fn renew(daemon: &Daemon, tls: &rustls::ClientConfig) -> Result<SignResponse, tonic::Status> {
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    let mut ca = CertificateAuthorityClient::new(daemon.proxy(tls.clone()).await.unwrap());
    Ok(ca.sign(SignRequest { csr, ttl_seconds: 0 }).await?.into_inner())
}

/// Joins with a token and returns the TLS settings of the workload that it has become.
async fn join(daemon: &Daemon, token: &str) -> rustls::ClientConfig {
    let parsed: JoinToken = token.parse().unwrap();
    let pinned = Arc::new(PinnedVerifier::new(*parsed.root()));
    let tls = client_config(pinned, Arc::new(SharedCertificate::default()), vec![b"h2".to_vec()]).unwrap();
    let mut ca = CertificateAuthorityClient::new(daemon.proxy(tls).await.unwrap());
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();

    // A request that is wrong costs nothing; the right one uses the token up.
    let garbage = SignRequest { csr: b"garbage".to_vec(), ttl_seconds: 0 };
    assert_eq!(ca.sign(with_token(garbage, token)).await.unwrap_err().code(), Code::InvalidArgument);
    let request = SignRequest { csr, ttl_seconds: 0 };
    assert_eq!(ca.sign(request.clone()).await.unwrap_err().code(), Code::Unauthenticated);
    let signed = ca.sign(with_token(request.clone(), token)).await.unwrap().into_inner();
    assert_eq!(ca.sign(with_token(request, token)).await.unwrap_err().code(), Code::Unauthenticated);

    let roots = signed.roots.into_iter().map(CertificateDer::from).collect();
    let bundle = SharedBundle::new(TrustBundle::new("mesh.local", roots).unwrap());
    let own = SharedCertificate::default();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    own.store(certified_key(signed.chain.into_iter().map(CertificateDer::from).collect(), key).unwrap());
    let verifier = ServerVerifier::new(bundle, Peers::Only(vec![control_identity("mesh.local").unwrap()]));
    client_config(Arc::new(verifier), Arc::new(own), vec![b"h2".to_vec()]).unwrap()
}

fn registration(name: &str) -> RegisterRequest {
    let registration = Registration {
        name: name.to_owned(),
        service: "reviews".to_owned(),
        version: "v1".to_owned(),
        addresses: vec!["10.1.0.1".to_owned()],
        ports: vec![WorkloadPort { port: 9080, protocol: "http".to_owned(), ..WorkloadPort::default() }],
        ..Registration::default()
    };
    RegisterRequest { registration: Some(registration), healthy: true, leaving: false }
}

async fn entries(operator: &mut MeshClient<Channel>) -> Vec<serde_json::Value> {
    let request = ListRequest { kind: "WorkloadEntry".to_owned(), ..ListRequest::default() };
    let objects = operator.list(request).await.unwrap().into_inner().objects;
    objects.iter().map(|text| serde_json::from_str(text).unwrap()).collect()
}

#[tokio::test]
async fn a_workload_joins_registers_survives_a_kill_and_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let daemon = Daemon::start(&data);
    let tls = join(&daemon, &token(&daemon, "reviews").await).await;

    // The certificate is renewed by itself, for the same identity; who has neither it nor a token gets none (see `join`).
    let renewed = renew(&daemon, &tls).await.unwrap();
    assert_eq!(renewed.spiffe_id, "spiffe://mesh.local/ns/default/sa/reviews");

    let mut registry = WorkloadRegistryClient::new(daemon.proxy(tls.clone()).await.unwrap());
    let (send, requests) = tokio::sync::mpsc::channel(4);
    send.send(registration("reviews-v1-a")).await.unwrap();
    let mut answers = registry.register(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    assert_eq!(answer.grace_seconds, 30);
    assert!(!answer.virtual_addresses.is_empty());
    let mut operator = daemon.operator().await;
    let stored = entries(&mut operator).await;
    assert_eq!(stored[0]["spec"]["serviceAccount"], "reviews");
    assert_eq!(stored[0]["metadata"]["name"], "reviews-v1-a");
    let mut unhealthy = registration("reviews-v1-a");
    unhealthy.healthy = false;
    send.send(unhealthy).await.unwrap();
    answers.message().await.unwrap().unwrap();
    assert_eq!(entries(&mut operator).await[0]["spec"]["healthy"], false);

    // Somebody else can't have the name.
    let other = join(&daemon, &token(&daemon, "web").await).await;
    let mut other = WorkloadRegistryClient::new(daemon.proxy(other).await.unwrap());
    let taken = tokio_stream::once(registration("reviews-v1-a"));
    let refused = other.register(taken).await.unwrap().into_inner().message().await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    // Killed and started again: the entry is there, the same certificate is good, and the root is the same.
    daemon.end("-KILL");
    assert!(answers.message().await.is_err());
    let daemon = Daemon::start(&data);
    let mut operator = daemon.operator().await;
    assert_eq!(entries(&mut operator).await.len(), 1);
    assert_eq!(renew(&daemon, &tls).await.unwrap().roots, renewed.roots);
    let mut registry = WorkloadRegistryClient::new(daemon.proxy(tls).await.unwrap());
    let (send, requests) = tokio::sync::mpsc::channel(4);
    send.send(registration("reviews-v1-a")).await.unwrap();
    let mut answers = registry.register(ReceiverStream::new(requests)).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    assert_eq!(entries(&mut operator).await[0]["spec"]["healthy"], true);

    // Leaving takes it out before the stream ends.
    send.send(RegisterRequest { registration: None, healthy: false, leaving: true }).await.unwrap();
    assert!(answers.message().await.unwrap().is_none());
    assert!(entries(&mut operator).await.is_empty());
}

#[tokio::test]
async fn ends_in_good_order_and_keeps_workloads() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("data"));
    let tls = join(&daemon, &token(&daemon, "reviews").await).await;
    let mut registry = WorkloadRegistryClient::new(daemon.proxy(tls).await.unwrap());
    let (send, requests) = tokio::sync::mpsc::channel(4);
    send.send(registration("reviews-v1-a")).await.unwrap();
    let mut answers = registry.register(ReceiverStream::new(requests)).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();

    let data = daemon.data.clone();
    let begun = Instant::now();
    assert!(daemon.end("-TERM").success());
    assert!(begun.elapsed() < Duration::from_secs(5));
    let mut left: Vec<String> =
        std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, ["audit.log", "ca", "lock", "store.redb"]);
    let daemon = Daemon::start(&data);
    assert_eq!(entries(&mut daemon.operator().await).await.len(), 1);
}

#[tokio::test]
async fn strangers_and_garbage_get_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("data"));
    let mut random = fastrand::Rng::with_seed(3);
    let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(20_000).collect();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let inputs = [&b""[..], b"\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", &noise];
    let frames = [&preface[..], &noise[..]].concat();
    for input in inputs.into_iter().chain([&frames[..]]) {
        for name in ["xds", "plaintext", "metrics", "proxy", "control"] {
            let address = daemon.address(name);
            // Writing may fail, since the other side is free to hang up at any byte.
            match address.strip_prefix("unix:") {
                Some(path) => drop(UnixStream::connect(path).unwrap().write_all(input)),
                None => drop(TcpStream::connect(address).unwrap().write_all(input)),
            }
        }
    }

    // Another mesh's certificate is refused in the handshake, and no certificate gets no further than the bundle.
    let other = tempfile::tempdir().unwrap();
    let other = Daemon::start(&other.path().join("data"));
    let foreign = join(&other, &token(&other, "web").await).await;
    assert!(daemon.proxy(foreign).await.is_err());
    let root: JoinToken = token(&daemon, "web").await.parse().unwrap();
    let pinned = Arc::new(PinnedVerifier::new(*root.root()));
    let nobody = client_config(pinned, Arc::new(SharedCertificate::default()), vec![b"h2".to_vec()]).unwrap();
    let channel = daemon.proxy(nobody).await.unwrap();
    let refused = WorkloadRegistryClient::new(channel.clone()).register(tokio_stream::once(registration("a"))).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(MeshClient::new(channel).get_status(GetStatusRequest {}).await.unwrap_err().code(), Code::Unimplemented);

    let mut operator = daemon.operator().await;
    let status = operator.get_status(GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.trust_domain, "mesh.local");
    let previous = operator.set_log_filter(SetLogFilterRequest { filter: "warn".to_owned() }).await.unwrap();
    assert_eq!(previous.into_inner().previous, "info");

    let mut metrics = TcpStream::connect(daemon.address("metrics")).unwrap();
    metrics.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    metrics.read_to_string(&mut text).unwrap();
    assert!(text.contains("mesh_control_connections_refused_total"), "{text}");
}

#[test]
fn says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let daemon = Daemon::start(&data);
    let fails = |data: &Path, arguments: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_mesh-control")).arg("--data").arg(data).args(arguments).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(fails(&data, &[]).contains("another mesh-control"));
    let second = dir.path().join("second");
    let taken = daemon.address("plaintext");
    let error = fails(&second, &["--listen-xds", taken]);
    assert!(error.contains("is in use") && error.contains("--listen-xds"), "{error}");
    assert!(fails(&second, &["--listen-plaintext", "0.0.0.0:1"]).contains("not a loopback address"));
    assert!(fails(&second, &["--log", "a=b=c"]).contains("is not a log filter"));
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = fails(&file, &[]);
    assert_eq!(error.matches("os error").count(), 1, "the cause is there twice or not at all: {error}");
    drop(daemon);
    assert!(fails(&data, &["--trust-domain", "other.example"]).contains("keeps the trust domain"));
    std::fs::write(data.join("store.redb"), "not a store").unwrap();
    let error = fails(&data, &[]);
    assert!(error.contains("store.redb") && !error.contains("panicked"), "{error}");
}
