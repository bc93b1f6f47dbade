use std::sync::Arc;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::config::{Authorization, DownstreamTls, NetworkFilter, ServerName, TcpProxy, WeightedClusters};

const LONG: Duration = Duration::from_secs(60);

fn hello(alpn: &[&[u8]], name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|it| it.to_vec()).collect();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
    let mut bytes = vec![];
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// The same handshake message in records of `size` bytes.
fn in_small_records(hello: &[u8], size: usize) -> Vec<u8> {
    let mut out = vec![];
    for part in hello[TLS_RECORD_HEADER..].chunks(size) {
        out.extend_from_slice(&hello[..3]);
        out.extend_from_slice(&u16::try_from(part.len()).unwrap().to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

fn tls(alpn: &[&[u8]]) -> Detected {
    Detected::Tls(Hello { alpn: alpn.iter().map(|it| it.to_vec()).collect(), server_name: None })
}

#[test]
fn client_hellos_say_alpn_and_name() {
    let bytes = hello(&[b"mesh-h2", b"h2"], "reviews.example");
    let expected = Progress::Done(Detected::Tls(Hello {
        alpn: vec![b"mesh-h2".to_vec(), b"h2".to_vec()],
        server_name: Some("reviews.example".into()),
    }));
    assert_eq!(classify(&bytes), expected);
    assert_eq!(classify(&in_small_records(&bytes, 100)), expected);
    let more = [&bytes[..], b"whatever comes after it"].concat();
    assert_eq!(classify(&more), expected);
}

#[test]
fn what_only_looks_like_tls() {
    // A record header, and no client hello in it.
    assert_eq!(classify(b"\x16\x03\x01\x00\x05\x02hello"), Progress::Done(Detected::Raw));
    assert_eq!(classify(b"\x16\x09"), Progress::Done(Detected::Raw));
    // A client hello that is nonsense is TLS that agrees to nothing.
    let nonsense = b"\x16\x03\x01\x00\x08\x01\x00\x00\x04\xff\xff\xff\xff";
    assert_eq!(classify(nonsense), Progress::Done(tls(&[])));
    assert_eq!(classify(b"\x16\x03\x01\x00\x00"), Progress::Done(tls(&[])));
}

#[test]
fn plaintext_protocols() {
    let done = |detected| Progress::Done(detected);
    for (bytes, expected) in [
        (&b"GET / HTTP/1.1\r\n"[..], done(Detected::Http1)),
        (b"GET /a?b HTTP/1.", done(Detected::Http1)),
        (b"M-SEARCH * HTTP/1.1\r\n", done(Detected::Http1)),
        (b"CONNECT a:1 HTTP/1.0", done(Detected::Http1)),
        (b"get /\xc3\xa4 HTTP/1.1", done(Detected::Http1)),
        (HTTP2_PREFACE, done(Detected::Http2)),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00", done(Detected::Http2)),
        (b"", Progress::Silent),
        (b"G", Progress::MoreHttp),
        (b"GET /", Progress::MoreHttp),
        (b"GET / HTT", Progress::MoreHttp),
        (b"PRI * HTTP/2.0\r\n", Progress::MoreHttp),
        (b"PRI * HTTP/2.0\r\nX", done(Detected::Raw)),
        (b"GET /\r\n", done(Detected::Raw)),
        (b"GET / HTTP/2", done(Detected::Raw)),
        (b"GET  / HTTP/1.1", done(Detected::Raw)),
        (b" GET / HTTP/1.1", done(Detected::Raw)),
        (b"PING\r\n", done(Detected::Raw)),
        (b"get key\r\n", done(Detected::Raw)),
        (b"*1\r\n$4\r\nPING\r\n", done(Detected::Raw)),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", done(Detected::Raw)),
        (b"EHLO example.com\r\n", done(Detected::Raw)),
        (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", done(Detected::Raw)),
    ] {
        assert_eq!(classify(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
    }
}

fn beginnings() -> impl Strategy<Value = Vec<u8>> {
    let arbitrary = || prop::collection::vec(any::<u8>(), 0..200);
    let led_by = move |start: Vec<u8>| arbitrary().prop_map(move |rest| [start.clone(), rest].concat());
    let hellos = (1usize..400, 0usize..2000).prop_map(|(size, cut)| {
        let mut bytes = in_small_records(&hello(&[b"mesh-tcp"], "a.b"), size);
        if let Some(byte) = bytes.get_mut(cut) {
            *byte ^= 0x40;
        }
        bytes
    });
    prop_oneof![
        led_by(vec![]),
        led_by(b"\x16\x03\x01".to_vec()),
        led_by(b"\x16\x03\x01\x00\x20\x01".to_vec()),
        led_by(b"PRI * HTTP".to_vec()),
        led_by(b"POST /a".to_vec()),
        hellos,
        "[A-Z]{0,40} [!-~]{0,20} HTTP/[0-9.]{0,4}\r?\n?".prop_map(String::into_bytes),
    ]
}

/// RFC 8446 (5.1) forbids one, and what follows it is no message of its own.
#[test]
fn what_follows_an_empty_record_does_not_matter() {
    let bytes = b"\x16\x03\x01\x00\x00\x05\x00\x00\x01\x03";
    assert_eq!(classify(&bytes[..4]), Progress::MoreTls);
    for end in 5..=bytes.len() {
        assert_eq!(classify(&bytes[..end]), Progress::Done(tls(&[])), "{end}");
    }
}

proptest! {
    #[test]
    fn the_answer_does_not_depend_on_how_bytes_are_cut(bytes in beginnings()) {
        let mut answer: Option<Progress> = None;
        for end in 0..=bytes.len() {
            let progress = classify(&bytes[..end]);
            if let Some(answer) = &answer {
                prop_assert_eq!(answer, &progress, "after {} bytes", end);
            } else if matches!(progress, Progress::Done(_)) {
                answer = Some(progress);
            }
        }
    }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    client.set_nodelay(true).unwrap();
    (client, listener.accept().await.unwrap().0)
}

#[tokio::test]
async fn peeking_leaves_everything_in_the_socket() {
    let (mut client, mut server) = pair().await;
    let bytes = in_small_records(&hello(&[b"mesh-h2"], "a.b"), 50);
    let expected = bytes.clone();
    let sending = tokio::spawn(async move {
        for byte in bytes {
            client.write_u8(byte).await.unwrap();
            tokio::task::yield_now().await;
        }
        client
    });
    let detected = peek(&server, LONG, LONG).await.unwrap();
    assert!(matches!(detected, Detected::Tls(hello) if hello.alpn == [b"mesh-h2"]));
    drop(sending.await.unwrap());
    let mut received = vec![];
    server.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, expected);
}

#[tokio::test]
async fn a_beginning_longer_than_the_first_look() {
    let (mut client, server) = pair().await;
    let line = format!("GET /{} HTTP/1.1\r\n", "a".repeat(10_000));
    client.write_all(line.as_bytes()).await.unwrap();
    assert_eq!(peek(&server, LONG, LONG).await.unwrap(), Detected::Http1);
}

#[tokio::test]
async fn the_end_of_the_stream_ends_the_wait() {
    for (sent, expected) in [(&b""[..], Detected::Raw), (b"GET /", Detected::Raw), (b"\x16\x03\x01\x02", tls(&[]))] {
        let (mut client, server) = pair().await;
        client.write_all(sent).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(peek(&server, LONG, LONG).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn silence_and_unfinished_beginnings_have_their_time() {
    let (_silent, server) = pair().await;
    assert_eq!(peek(&server, Duration::ZERO, LONG).await.unwrap(), Detected::Raw);
    let (mut client, server) = pair().await;
    client.write_all(b"GET").await.unwrap();
    server.readable().await.unwrap();
    assert_eq!(peek(&server, LONG, Duration::from_millis(1)).await.unwrap(), Detected::Raw);
    let (mut client, server) = pair().await;
    client.write_all(b"\x16\x03\x01").await.unwrap();
    server.readable().await.unwrap();
    let error = peek(&server, LONG, Duration::from_millis(1)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

type Chain<'a> = (&'a str, Option<u16>, Option<Transport>, &'a [&'a str]);

fn listener(chains: &[Chain<'_>], default: Option<&str>) -> Listener {
    let chain = |name: &str, matches: ChainMatch| FilterChain {
        tls: (matches.transport == Some(Transport::Tls))
            .then(|| DownstreamTls { require_client_certificate: true, alpn: vec![] }),
        matches,
        filter: NetworkFilter::Tcp(Arc::new(TcpProxy {
            stat_prefix: name.to_owned(),
            authorization: Authorization::default(),
            clusters: WeightedClusters::single(name),
            idle_timeout: Duration::ZERO,
            fault: None,
            hash_source: false,
            limits: None,
        })),
    };
    let of = |(name, destination_port, transport, protocols): &Chain<'_>| {
        let application_protocols = protocols.iter().map(|it| (*it).to_owned()).collect();
        let (destination_port, transport) = (*destination_port, *transport);
        chain(name, ChainMatch { destination_port, transport, application_protocols, ..ChainMatch::default() })
    };
    Listener {
        name: "l".into(),
        chains: chains.iter().map(of).collect(),
        default_chain: default.map(|name| chain(name, ChainMatch::default())),
        udp: None,
    }
}

fn chosen(listener: &Listener, port: u16, detected: &Detected) -> Option<String> {
    chain(listener, port, detected).map(|it| match &it.filter {
        NetworkFilter::Tcp(proxy) => proxy.stat_prefix.clone(),
        NetworkFilter::Http(manager) => manager.stat_prefix.clone(),
    })
}

#[test]
fn strict_ports_take_mutual_tls_only() {
    let mesh_http: &[&str] = &["mesh-h2", "mesh-http/1.1"];
    let strict = listener(
        &[
            ("http", Some(9080), Some(Transport::Tls), mesh_http),
            ("tcp", Some(9080), Some(Transport::Tls), &["mesh-tcp"]),
            ("any", None, None, &[]),
        ],
        None,
    );
    assert!(is_needed(&strict, 9080));
    assert!(!is_needed(&strict, 1));
    assert_eq!(chosen(&strict, 9080, &tls(&[b"mesh-h2"])).as_deref(), Some("http"));
    assert_eq!(chosen(&strict, 9080, &tls(&[b"mesh-tcp"])).as_deref(), Some("tcp"));
    for detected in [Detected::Raw, Detected::Http1, Detected::Http2, tls(&[]), tls(&[b"h2"]), tls(&[b"http/1.1"])] {
        assert_eq!(chosen(&strict, 9080, &detected), None, "{detected:?}");
    }
    assert_eq!(chosen(&strict, 1, &Detected::Raw).as_deref(), Some("any"));
}

#[test]
fn a_strict_port_never_takes_the_chain_for_the_rest() {
    let mixed = listener(&[("mesh", Some(9080), Some(Transport::Tls), &["mesh-h2"])], Some("rest"));
    for detected in [Detected::Raw, Detected::Http1, Detected::Http2, tls(&[]), tls(&[b"h2"])] {
        assert_eq!(chosen(&mixed, 9080, &detected), None, "{detected:?}");
        assert_eq!(chosen(&mixed, 9081, &detected).as_deref(), Some("rest"), "{detected:?}");
    }
}

#[test]
fn permissive_ports_pass_the_rest_on() {
    let permissive = listener(
        &[
            ("mesh", Some(9080), Some(Transport::Tls), &["mesh-h2"]),
            ("other-tls", Some(9080), Some(Transport::Tls), &[]),
            ("plain", Some(9080), Some(Transport::Raw), &[]),
        ],
        None,
    );
    assert_eq!(chosen(&permissive, 9080, &tls(&[b"h2", b"mesh-h2"])).as_deref(), Some("mesh"));
    assert_eq!(chosen(&permissive, 9080, &tls(&[b"h2"])).as_deref(), Some("other-tls"));
    assert_eq!(chosen(&permissive, 9080, &Detected::Http1).as_deref(), Some("plain"));
    assert_eq!(chosen(&permissive, 9081, &Detected::Http1), None);
}

#[test]
fn unknown_outbound_ports_are_http_only_when_the_wire_says_so() {
    let outbound = listener(&[("http", None, None, &["http/1.1", "h2c"])], Some("tcp"));
    assert!(is_needed(&outbound, 80));
    assert_eq!(chosen(&outbound, 80, &Detected::Http1).as_deref(), Some("http"));
    assert_eq!(chosen(&outbound, 80, &Detected::Http2).as_deref(), Some("http"));
    assert_eq!(chosen(&outbound, 80, &Detected::Raw).as_deref(), Some("tcp"));
    // HTTP inside the application's own TLS is not for us to read.
    assert_eq!(chosen(&outbound, 80, &tls(&[b"http/1.1"])).as_deref(), Some("tcp"));
}

/// The listener of a port with TLSRoutes: as the control plane makes it, `rest` being where what they are not for may go.
fn routed(names: &[(&str, &[&str])], rest: &[Chain<'_>], default: Option<&str>) -> Listener {
    let mut listener = listener(rest, default);
    for (name, server_names) in names {
        let mut made = self::listener(&[(name, None, Some(Transport::Tls), &[])], None).chains.remove(0);
        let parse = |name: &&str| match name.strip_prefix('*') {
            Some(suffix) => ServerName::Suffix(suffix.to_owned()),
            None => ServerName::Exact((*name).to_owned()),
        };
        made.matches.server_names = server_names.iter().map(parse).collect();
        listener.chains.insert(0, made);
    }
    listener
}

fn asking(server_name: &str) -> Detected {
    Detected::Tls(Hello { alpn: vec![b"http/1.1".to_vec()], server_name: Some(server_name.to_owned()) })
}

#[test]
fn the_longest_server_name_decides() {
    let names: &[(&str, &[&str])] = &[
        ("any", &["*.example.com"]),
        ("deep", &["*.b.example.com"]),
        ("exact", &["a.example.com", "a.b.example.com"]),
    ];
    let http: Chain<'_> = ("http", None, Some(Transport::Raw), &["http/1.1", "h2c"]);
    let listener = routed(names, &[http, ("tcp", None, Some(Transport::Raw), &[])], None);
    assert!(is_needed(&listener, 443));
    for (asked, expected) in [
        ("a.example.com", Some("exact")),
        ("A.Example.COM", Some("exact")),
        ("b.example.com", Some("any")),
        ("x.b.example.com", Some("deep")),
        ("a.b.example.com", Some("exact")),
        ("x.y.example.com", Some("any")),
        ("example.com", None),
        ("aexample.com", None),
        ("example.org", None),
        ("", None),
    ] {
        assert_eq!(chosen(&listener, 443, &asking(asked)).as_deref(), expected, "{asked}");
    }
    assert_eq!(chosen(&listener, 443, &tls(&[b"http/1.1"])), None);
    assert_eq!(chosen(&listener, 443, &Detected::Http1).as_deref(), Some("http"));
    assert_eq!(chosen(&listener, 443, &Detected::Raw).as_deref(), Some("tcp"));
}

#[test]
fn tls_without_a_route_is_as_other_streams_where_those_have_one() {
    let http: Chain<'_> = ("http", None, Some(Transport::Raw), &["http/1.1", "h2c"]);
    let listener = routed(&[("a", &["a.example.com"])], &[http], Some("tcp"));
    assert_eq!(chosen(&listener, 443, &asking("a.example.com")).as_deref(), Some("a"));
    assert_eq!(chosen(&listener, 443, &asking("b.example.com")).as_deref(), Some("tcp"));
    assert_eq!(chosen(&listener, 443, &tls(&[b"http/1.1"])).as_deref(), Some("tcp"));
    assert_eq!(chosen(&listener, 443, &Detected::Http1).as_deref(), Some("http"));
}

/// A server name never makes up for the transport or for the port: it can't lead around the policy of a port.
#[test]
fn a_server_name_opens_no_port() {
    let mut listener = listener(&[("mesh", Some(9080), Some(Transport::Tls), &["mesh-h2"])], Some("rest"));
    listener.chains[0].matches.server_names = vec![ServerName::Exact("a.example.com".into())];
    assert_eq!(chosen(&listener, 9080, &asking("a.example.com")), None);
    assert_eq!(chosen(&listener, 9080, &asking("b.example.com")), None);
    assert_eq!(chosen(&listener, 9081, &asking("a.example.com")).as_deref(), Some("rest"));
}
