//! Bytes that no server should be hurt by: random ones, and broken HTTP, HTTP/2, TLS and DNS.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

/// Sends each payload over a connection of its own, waits a moment for what comes back, and closes.
/// How a server answers is its own affair, but it must take every connection; the caller looks at whether it still works.
pub fn tcp(address: SocketAddr) -> anyhow::Result<()> {
    for payload in payloads() {
        let stream = match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
            Ok(stream) => stream,
            // Taken, and ended before this side has looked.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot connect to {address}")),
        };
        let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
        let _ = stream.set_write_timeout(Some(Duration::from_millis(200)));
        throw(stream, &payload);
    }
    Ok(())
}

pub fn unix(path: &Path) -> anyhow::Result<()> {
    for payload in payloads() {
        let stream = UnixStream::connect(path).with_context(|| format!("cannot connect to {}", path.display()))?;
        let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
        let _ = stream.set_write_timeout(Some(Duration::from_millis(200)));
        throw(stream, &payload);
    }
    Ok(())
}

pub fn udp(address: SocketAddr) -> std::io::Result<()> {
    let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    for payload in payloads() {
        let _ = socket.send_to(payload.get(..payload.len().min(1400)).unwrap_or_default(), address);
    }
    Ok(())
}

fn throw(mut stream: impl Read + Write, payload: &[u8]) {
    let _ = stream.write_all(payload);
    let _ = stream.read(&mut [0; 4096]);
}

fn payloads() -> Vec<Vec<u8>> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut all: Vec<Vec<u8>> = (0..60).map(|i| random.bytes(1 + i * i * 8)).collect();
    all.extend([
        b"".to_vec(),
        b"\0".to_vec(),
        b"GET".to_vec(),
        b"GET / HTTP/1.1\r\n".to_vec(),
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello".to_vec(),
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n".to_vec(),
        b"GET  /  HTTP/1.1\r\n Host: x\r\n\r\n".to_vec(),
        [b"GET /".to_vec(), vec![b'a'; 200_000], b" HTTP/1.1\r\n\r\n".to_vec()].concat(),
        [b"GET / HTTP/1.1\r\n".to_vec(), b"a: b\r\n".repeat(50_000), b"\r\n".to_vec()].concat(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), random.bytes(4000)].concat(),
        // A SETTINGS frame of the greatest length, and a HEADERS frame on stream 0.
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x04\0\0\0\0\0".to_vec(), random.bytes(100)].concat(),
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x04\x01\x04\0\0\0\0".to_vec(), random.bytes(4)]
            .concat(),
        // TLS: a ClientHello cut short, one that promises more than there is, and an alert.
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec(),
        [b"\x16\x03\x01\xff\xff\x01\0\xff\xff\x03\x03".to_vec(), random.bytes(300)].concat(),
        b"\x15\x03\x03\0\x02\x02\x28".to_vec(),
        // DNS: a question whose name points at itself, with the length that TCP puts before it.
        b"\0\x12\x12\x34\x01\0\0\x01\0\0\0\0\0\0\xc0\x0c\0\x01\0\x01".to_vec(),
        b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\xc0\x0c\0\x01\0\x01".to_vec(),
        b"\x12\x34\x01\0\xff\xff\xff\xff\xff\xff\xff\xff\x3fa".to_vec(),
    ]);
    all
}

/// The same bytes in every run (xorshift64).
struct Random(u64);

impl Random {
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut next = || {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.to_le_bytes()[0]
        };
        (0..count).map(|_| next()).collect()
    }
}
