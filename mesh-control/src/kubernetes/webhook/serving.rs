//! What is served, over real sockets and TLS.

use std::net::SocketAddr;

use jiff::Timestamp;
use mesh_common::tls::{PinnedVerifier, SharedCertificate, client_config};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::ca::{Ca, DEFAULT_TTL, ServerTls};

struct Server {
    address: SocketAddr,
    tls: ServerTls,
    connector: TlsConnector,
    _dir: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // So long ago that its certificate is to be renewed, and is still valid.
        let begun = Timestamp::now() - DEFAULT_TTL * 2 / 3;
        let ca = Arc::new(Ca::open(&dir.path().join("ca"), "mesh.local", begun).unwrap());
        let tls = ServerTls::new(ca.clone(), &["localhost".to_owned()], DEFAULT_TTL, begun).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, tls.config().unwrap(), WebhookConfig::default()));
        let verifier = Arc::new(PinnedVerifier::new(ca.root_fingerprint()));
        let config = client_config(verifier, Arc::new(SharedCertificate::default()), vec![b"http/1.1".to_vec()]);
        Self { address, tls, connector: Arc::new(config.unwrap()).into(), _dir: dir }
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        self.connector.connect("localhost".try_into().unwrap(), stream).await.unwrap()
    }

    /// On a connection of its own: the status, the head and the body of the answer.
    async fn call(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> (u16, String, String) {
        let mut stream = self.connect().await;
        stream.write_all(&request(method, path, content_type, body)).await.unwrap();
        answer(&mut stream).await
    }
}

fn request(method: &str, path: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: mesh-control\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// One answer, as long as its head says.
async fn answer(stream: &mut TlsStream<TcpStream>) -> (u16, String, String) {
    let mut seen = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&seen).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
            if body.len() >= length.parse::<usize>().unwrap() {
                return (head[9..12].parse().unwrap(), head.to_owned(), body.to_owned());
            }
        }
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).await.unwrap();
        assert_ne!(read, 0, "ended after {text:?}");
        seen.extend_from_slice(&buffer[..read]);
    }
}

fn review(kind: &str, object: Value) -> Vec<u8> {
    let request = json!({"uid": "1", "kind": {"group": "", "version": "v1", "kind": kind}, "operation": "CREATE",
        "namespace": "shop", "object": object});
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).to_string().into_bytes()
}

const JSON: &str = "application/json";

/// Timers go by whole milliseconds.
const ROUNDING: Duration = Duration::from_millis(10);

#[tokio::test]
async fn reviews_are_answered() {
    let server = Server::start().await;
    let pod = json!({"metadata": {}, "spec": {"containers": [{"name": "app"}]}});
    let (status, head, body) =
        server.call("POST", "/inject?timeout=10s", "application/json; charset=utf-8", &review("Pod", pod)).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status, &answer["response"]["uid"], &answer["response"]["patchType"]),
        (200, &json!("1"), &json!("JSONPatch"))
    );
    assert!(head.contains("content-type: application/json"), "{head}");
    // A review of something that is no pod has nothing to change.
    let (status, _, body) = server.call("POST", "/inject", JSON, &review("ConfigMap", json!({"data": {}}))).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &answer["response"]["allowed"], answer["response"].get("patch")), (200, &json!(true), None));
}

#[tokio::test]
async fn what_is_no_review_is_told_so() {
    let server = Server::start().await;
    let good = review("ConfigMap", json!({}));
    for (status, said, method, path, content_type, body) in [
        (404, "/inject and /validate", "POST", "/", JSON, good.as_slice()),
        (404, "/inject and /validate", "POST", "/inject/", JSON, &good),
        (405, "use POST", "GET", "/inject", JSON, b""),
        (405, "use POST", "PUT", "/validate", JSON, &good),
        (415, "application/json", "POST", "/inject", "text/plain", &good),
        (400, "not JSON", "POST", "/inject", JSON, b"{"),
        (400, "not JSON", "POST", "/validate", JSON, b"\xff\xfe"),
        (400, "not JSON", "POST", "/validate", JSON, b""),
        (
            400,
            "AdmissionReview of admission.k8s.io/v1",
            "POST",
            "/inject",
            JSON,
            br#"{"apiVersion": "v1", "kind": "Pod"}"#,
        ),
        (400, "AdmissionReview of admission.k8s.io/v1", "POST", "/validate", JSON, b"[]"),
        (
            400,
            "no request",
            "POST",
            "/inject",
            JSON,
            br#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}"#,
        ),
    ] {
        let (got, head, text) = server.call(method, path, content_type, body).await;
        assert_eq!(got, status, "{method} {path}: {text}");
        assert!(text.contains(said), "{text}");
        assert_eq!(head.contains("allow: POST"), status == 405, "{head}");
    }
}

#[tokio::test]
async fn a_body_may_be_as_large_as_the_api_server_takes_it() {
    let server = Server::start().await;
    let mut body = review("ConfigMap", json!({}));
    body.resize(MAX_BODY, b' ');
    assert_eq!(server.call("POST", "/validate", JSON, &body).await.0, 200);
    body.push(b' ');
    let (status, _, text) = server.call("POST", "/validate", JSON, &body).await;
    assert_eq!((status, text.as_str()), (413, "an AdmissionReview of at most 8 MiB is expected\n"));
}

#[tokio::test]
async fn who_is_slow_is_not_waited_for() {
    let server = Server::start().await;
    // In the handshake.
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    // Between two requests.
    let mut idle = server.connect().await;
    idle.write_all(&request("POST", "/inject", JSON, &review("ConfigMap", json!({})))).await.unwrap();
    assert_eq!(answer(&mut idle).await.0, 200);
    idle.write_all(b"POST /inject HTTP/1.1\r\n").await.unwrap();
    // In the body: that the server asks for it shows that its time runs.
    let mut slow = server.connect().await;
    let head = b"POST /inject HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n";
    slow.write_all(head).await.unwrap();
    assert_eq!(answer(&mut slow).await.0, 100);
    slow.write_all(b"{").await.unwrap();

    tokio::time::pause();
    let begun = Instant::now();
    assert!(silent.read(&mut [0]).await.map_or(true, |read| read == 0));
    assert!(begun.elapsed() <= HANDSHAKE_TIMEOUT + ROUNDING, "{:?}", begun.elapsed());
    let (status, _, text) = answer(&mut slow).await;
    assert_eq!((status, text.as_str()), (408, "the body did not come in time\n"));
    assert!(begun.elapsed() <= BODY_TIMEOUT + ROUNDING, "{:?}", begun.elapsed());
    let mut rest = Vec::new();
    let _ = idle.read_to_end(&mut rest).await;
    assert!(begun.elapsed() <= HEADER_TIMEOUT + ROUNDING && begun.elapsed() > BODY_TIMEOUT, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_who_connects_next() {
    let server = Server::start().await;
    let shown = |stream: &TlsStream<TcpStream>| stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
    let mut before = server.connect().await;
    assert!(server.tls.renew(Timestamp::now()).unwrap());
    let mut after = server.connect().await;
    assert_ne!(shown(&before), shown(&after));
    // Who is connected is served as before.
    for stream in [&mut before, &mut after] {
        stream.write_all(&request("POST", "/validate", JSON, &review("ConfigMap", json!({})))).await.unwrap();
        assert_eq!(answer(stream).await.0, 200);
    }
}

#[tokio::test]
async fn plaintext_is_not_answered() {
    let server = Server::start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&request("POST", "/inject", JSON, b"{}")).await.unwrap();
    let mut seen = Vec::new();
    let _ = stream.read_to_end(&mut seen).await;
    // A TLS alert at most.
    assert!(!seen.starts_with(b"HTTP"), "{seen:?}");
}
