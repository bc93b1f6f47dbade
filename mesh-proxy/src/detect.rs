//! What a connection speaks, told by its first bytes, which stay in the socket.
//!
//! Detection only chooses among the filter chains that the control plane allows for a port. A client that lies about
//! its protocol, or says nothing, gets the chain of what it showed, or none at all: where only mutual TLS is allowed
//! there is no other chain to fall back to.

use std::io;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

mod learned;

pub use learned::Learned;

use crate::config::{ChainMatch, FilterChain, Listener, Transport};

/// The longest beginning that is looked at. A request line or client hello that goes on after it counts as what it
/// is so far.
const MAX_BYTES: usize = 32 * 1024;
const FIRST_READ: usize = 2 * 1024;

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// No registered HTTP method is longer.
const MAX_METHOD: usize = 32;

const TLS_RECORD_HEADER: usize = 5;
const TLS_RECORD_HANDSHAKE: u8 = 22;
const TLS_CLIENT_HELLO: u8 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detected {
    /// A TLS client hello.
    Tls(Hello),
    Http1,
    /// HTTP/2 without TLS, with prior knowledge.
    Http2,
    /// Something else, or a client that waits for the server to speak.
    Raw,
}

impl Detected {
    /// The name of a plaintext protocol, as filter chains write it.
    pub fn plaintext_protocol(&self) -> Option<&'static [u8]> {
        match self {
            Self::Http1 => Some(b"http/1.1"),
            Self::Http2 => Some(b"h2c"),
            Self::Tls(_) | Self::Raw => None,
        }
    }
}

/// What a client hello asks for. Empty when TLS of our kind could not be agreed on with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    pub alpn: Vec<Vec<u8>>,
    pub server_name: Option<String>,
}

/// What the bytes so far say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    Done(Detected),
    /// A client hello, so far.
    MoreTls,
    /// An HTTP request line or preface, so far.
    MoreHttp,
    /// No byte yet.
    Silent,
}

/// Looks at the first bytes of a connection until it is clear what they are.
///
/// A client that says nothing for `silence` is taken to wait for the server. One that has begun to say something may
/// take until `unfinished` after the first look.
///
/// # Errors
///
/// When the socket fails, or when a client hello does not come to its end in time.
pub async fn peek(stream: &TcpStream, silence: Duration, unfinished: Duration) -> io::Result<Detected> {
    let begun = Instant::now();
    let mut buffer = vec![0; FIRST_READ];
    let mut seen = 0;
    loop {
        let progress = classify(&buffer[..seen]);
        let (patience, incomplete) = match progress {
            Progress::Done(detected) => return Ok(detected),
            Progress::Silent => (silence, Detected::Raw),
            Progress::MoreHttp if seen == MAX_BYTES => return Ok(Detected::Http1),
            Progress::MoreHttp => (unfinished, Detected::Raw),
            Progress::MoreTls => (unfinished, Detected::Tls(Hello::default())),
        };
        if seen == MAX_BYTES {
            return Ok(incomplete);
        }
        if seen == buffer.len() {
            buffer.resize((2 * seen).min(MAX_BYTES), 0);
        }
        match tokio::time::timeout_at(begun + patience, peek_more(stream, &mut buffer, seen)).await {
            Ok(Ok(more)) if more > seen => seen = more,
            Ok(Ok(_)) => return Ok(incomplete),
            Ok(Err(error)) => return Err(error),
            Err(_) if matches!(incomplete, Detected::Tls(_)) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the TLS client hello did not come in time"));
            }
            Err(_) => return Ok(incomplete),
        }
    }
}

/// Waits until there is more to see than `seen` bytes. Returns how many there are; `seen` when there will be no more.
async fn peek_more(stream: &TcpStream, buffer: &mut [u8], seen: usize) -> io::Result<usize> {
    loop {
        let ready = stream.ready(Interest::READABLE).await?;
        let peeked = stream.try_io(Interest::READABLE, || {
            let (_, bytes) = rustix::net::recv(stream, &mut *buffer, rustix::net::RecvFlags::PEEK)?;
            // The bytes stay in the socket, so it stays readable: only by "would block" does the runtime wait for the
            // arrival of others.
            if bytes > seen { Ok(bytes.min(buffer.len())) } else { Err(io::ErrorKind::WouldBlock.into()) }
        });
        match peeked {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if ready.is_read_closed() {
                    return Ok(seen);
                }
            }
            other => return other,
        }
    }
}

/// What these first bytes of a connection are. However they are cut into pieces, the answer is the same once it is
/// [`Progress::Done`].
pub fn classify(bytes: &[u8]) -> Progress {
    let Some(first) = bytes.first() else { return Progress::Silent };
    if *first == TLS_RECORD_HANDSHAKE {
        return classify_tls(bytes);
    }
    let preface = HTTP2_PREFACE.len().min(bytes.len());
    if bytes[..preface] == HTTP2_PREFACE[..preface] {
        return if preface == HTTP2_PREFACE.len() { Progress::Done(Detected::Http2) } else { Progress::MoreHttp };
    }
    classify_http1(bytes)
}

/// `METHOD target HTTP/1.x`, RFC 9112 section 3.
fn classify_http1(bytes: &[u8]) -> Progress {
    let raw = Progress::Done(Detected::Raw);
    let Some(method) = bytes.iter().position(|b| !is_token(*b)) else {
        return if bytes.len() > MAX_METHOD { raw } else { Progress::MoreHttp };
    };
    if method == 0 || method > MAX_METHOD || bytes[method] != b' ' {
        return raw;
    }
    let rest = &bytes[method + 1..];
    let Some(target) = rest.iter().position(|b| *b <= b' ' || *b == 0x7f) else { return Progress::MoreHttp };
    if target == 0 || rest[target] != b' ' {
        return raw;
    }
    let version = &rest[target + 1..];
    const HTTP1: &[u8] = b"HTTP/1.";
    let compared = HTTP1.len().min(version.len());
    match version[..compared] == HTTP1[..compared] {
        false => raw,
        true if compared == HTTP1.len() => Progress::Done(Detected::Http1),
        true => Progress::MoreHttp,
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// RFC 8446 section 5.1: records of content type, legacy version and length.
fn classify_tls(bytes: &[u8]) -> Progress {
    // The version of the record, 3.0 to 3.4, and the type of the first message tell a client hello from chance. What follows an
    // empty record, which is nonsense already, is no message.
    let empty = bytes.get(3..TLS_RECORD_HEADER) == Some(&[0, 0]);
    if bytes.get(1).is_some_and(|major| *major != 3)
        || bytes.get(2).is_some_and(|minor| *minor > 4)
        || bytes.get(TLS_RECORD_HEADER).is_some_and(|kind| *kind != TLS_CLIENT_HELLO && !empty)
    {
        return Progress::Done(Detected::Raw);
    }
    let mut acceptor = rustls::server::Acceptor::default();
    let mut rest = bytes;
    // One whole record at a time, so that the answer does not depend on how much came after the hello.
    loop {
        let Some(length) = rest.get(3..TLS_RECORD_HEADER) else { return Progress::MoreTls };
        let record = TLS_RECORD_HEADER + usize::from(u16::from_be_bytes([length[0], length[1]]));
        let Some((mut record, after)) = rest.split_at_checked(record) else { return Progress::MoreTls };
        while !record.is_empty() {
            if !matches!(acceptor.read_tls(&mut record), Ok(1..)) {
                return Progress::Done(Detected::Tls(Hello::default()));
            }
        }
        match acceptor.accept() {
            Ok(None) => rest = after,
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let alpn = hello.alpn().map(|it| it.map(<[u8]>::to_vec).collect()).unwrap_or_default();
                let server_name = hello.server_name().map(str::to_owned);
                return Progress::Done(Detected::Tls(Hello { alpn, server_name }));
            }
            // TLS that rustls does not speak, for instance of an old client, or broken: not for us, but TLS.
            Err(_) => return Progress::Done(Detected::Tls(Hello::default())),
        }
    }
}

/// Whether connections to `port` must be looked at before their chain is known.
pub fn is_needed(listener: &Listener, port: u16) -> bool {
    for_port(listener, port).any(|FilterChain { matches, .. }| {
        matches.transport.is_some() || !matches.server_names.is_empty() || !matches.application_protocols.is_empty()
    })
}

/// The chain for a connection, by Envoy's rules: the port is decided first, then the server name, the transport, and the
/// application protocol; what is named wins over what is left open, the longer name over the shorter, and a choice made is
/// never taken back. A port that has chains of its own never falls back to the listener's default: that is for ports that
/// nobody named, and may be laxer.
pub fn chain<'a>(listener: &'a Listener, port: u16, detected: &Detected) -> Option<&'a FilterChain> {
    let transport = if matches!(detected, Detected::Tls(_)) { Transport::Tls } else { Transport::Raw };
    let of_name = for_server_name(for_port(listener, port).collect(), detected);
    let named = of_name.iter().any(|it| it.matches.transport == Some(transport));
    let of_transport = || {
        of_name
            .iter()
            .copied()
            .filter(|it| it.matches.transport == Some(transport) || (!named && it.matches.transport.is_none()))
    };
    of_transport()
        .find(|it| speaks(&it.matches, detected))
        .or_else(|| of_transport().find(|it| it.matches.application_protocols.is_empty()))
        .or_else(|| listener.default_chain.as_ref().filter(|_| !names(listener, port)))
}

/// The chains that name the server best, or else those that name none.
fn for_server_name<'a>(mut chains: Vec<&'a FilterChain>, detected: &Detected) -> Vec<&'a FilterChain> {
    if chains.iter().all(|it| it.matches.server_names.is_empty()) {
        return chains;
    }
    let asked = match detected {
        Detected::Tls(hello) => hello.server_name.as_deref().map(str::to_ascii_lowercase),
        _ => None,
    };
    let fits = |it: &FilterChain| match (it.matches.server_names.as_slice(), &asked) {
        ([], _) => Some(0),
        (names, Some(asked)) => names.iter().filter_map(|name| name.fits(asked)).max(),
        (_, None) => None,
    };
    let best = chains.iter().filter_map(|it| fits(it)).max();
    chains.retain(|it| fits(it).is_some() && fits(it) == best);
    chains
}

fn for_port(listener: &Listener, port: u16) -> impl Iterator<Item = &FilterChain> {
    let wanted = names(listener, port).then_some(port);
    listener.chains.iter().filter(move |it| it.matches.destination_port == wanted)
}

/// Whether some chain is for this port alone.
fn names(listener: &Listener, port: u16) -> bool {
    listener.chains.iter().any(|it| it.matches.destination_port == Some(port))
}

/// ALPN of a client hello is about what is inside TLS: it only counts for chains that ask for TLS. A chain that leaves
/// the transport open means what is on the wire.
fn speaks(matches: &ChainMatch, detected: &Detected) -> bool {
    let named = |protocol: &[u8]| matches.application_protocols.iter().any(|it| it.as_bytes() == protocol);
    match detected {
        Detected::Tls(hello) => matches.transport == Some(Transport::Tls) && hello.alpn.iter().any(|it| named(it)),
        plaintext => plaintext.plaintext_protocol().is_some_and(named),
    }
}

#[cfg(test)]
mod tests;
