use std::os::unix::fs::PermissionsExt;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_stream::StreamExt;
use tonic::transport::server::Connected;

use super::*;
use crate::auth::Transport;

async fn door(limits: Limits) -> (Door, std::net::SocketAddr) {
    let listener = bind_tcp("127.0.0.1:0".parse().unwrap(), "--listen-plaintext").await.unwrap();
    let address = listener.local_addr().unwrap();
    let listener = Listener::Tcp(listener);
    (Door { name: "test", listener, tls: None, transport: Transport::Loopback, limits }, address)
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[tokio::test]
async fn hands_on_what_speaks_http2() {
    let (door, address) = door(Limits::default()).await;
    let mut incoming = door.incoming();
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(&[PREFACE, b"frames"].concat()).await.unwrap();
    let mut connection = incoming.next().await.unwrap().unwrap();
    assert_eq!(connection.connect_info().address, client.local_addr().unwrap().to_string());
    let mut seen = vec![0; PREFACE.len() + 6];
    connection.read_exact(&mut seen).await.unwrap();
    assert_eq!(seen, [PREFACE, b"frames"].concat());
    connection.write_all(b"answer").await.unwrap();
    drop(connection);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
}

/// Whether the server closes the connection (by FIN or RST) before anything comes of it.
async fn is_closed(mut client: TcpStream) -> bool {
    client.read(&mut [0]).await.map_or(true, |read| read == 0)
}

#[tokio::test]
async fn closes_what_does_not() {
    let (door, address) =
        door(Limits { connections: 2, handshake: Duration::from_millis(50), ..Limits::default() }).await;
    let mut incoming = door.incoming();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n\r\nXX", &[0; 4096]] {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(garbage).await.unwrap();
        assert!(is_closed(client).await);
    }
    // One that says nothing, or stops in the middle.
    let silent = TcpStream::connect(address).await.unwrap();
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(&PREFACE[..5]).await.unwrap();
    assert!(is_closed(silent).await && is_closed(slow).await);

    // The limit holds for connections that are served, and is free again when they end.
    let connect = || async {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(PREFACE).await.unwrap();
        client
    };
    let (_first, _second) = (connect().await, connect().await);
    let [served, other] = [incoming.next().await.unwrap(), incoming.next().await.unwrap()];
    assert!(is_closed(connect().await).await);
    drop((served, other));
    let _third = connect().await;
    incoming.next().await.unwrap().unwrap();
}

#[tokio::test]
async fn who_only_looks_whether_somebody_listens_is_not_refused() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let numbers = recorder.handle();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let (door, address) = door(Limits::default()).await;
    let mut incoming = door.incoming();
    // Says nothing and goes, as `meshctl` does when it looks for a control plane.
    drop(TcpStream::connect(address).await.unwrap());
    let mut half = TcpStream::connect(address).await.unwrap();
    half.write_all(&PREFACE[..5]).await.unwrap();
    half.shutdown().await.unwrap();
    assert!(is_closed(half).await);
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(PREFACE).await.unwrap();
    let _served = incoming.next().await.unwrap().unwrap();
    // Of the two that were not served, the one that began to speak.
    let rendered = numbers.render();
    let refused = rendered.lines().find(|line| line.starts_with("mesh_control_connections_refused_total{"));
    assert_eq!(
        refused,
        Some("mesh_control_connections_refused_total{listener=\"test\",reason=\"handshake\"} 1"),
        "{rendered}"
    );
}

#[tokio::test]
async fn sockets_replace_only_what_is_stale() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    drop(bind_unix(&path, 0o600).unwrap());
    let listener = bind_unix(&path, 0o600).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let _client = UnixStream::connect(&path).await.unwrap();
    listener.accept().await.unwrap();
    remove(&path).unwrap();
    remove(&path).unwrap();

    std::fs::write(&path, "notes").unwrap();
    assert!(matches!(bind_unix(&path, 0o600), Err(SocketError::NotASocket(_))));
    let long = dir.path().join("x".repeat(100)).join("control.sock");
    assert!(matches!(bind_unix(&long, 0o600), Err(SocketError::TooLong(_))));

    let taken = bind_tcp("127.0.0.1:0".parse().unwrap(), "--listen-xds").await.unwrap();
    let error = bind_tcp(taken.local_addr().unwrap(), "--listen-xds").await.unwrap_err().to_string();
    assert!(error.contains("in use") && error.contains("--listen-xds"), "{error}");
}
