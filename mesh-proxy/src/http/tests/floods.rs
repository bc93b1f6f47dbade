//! Clients that make much of little: floods of frames, heads that unfold, connections that are held. An attack may cost its own
//! connection; others are served.

use super::*;

const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ENHANCE_YOUR_CALM: u32 = 11;
/// GET http://app.test/, without a name of a header in full (RFC 7541, appendix A).
const GET: &[u8] = b"\x82\x86\x84\x01\x08app.test";
const POST: &[u8] = b"\x83\x86\x84\x01\x08app.test";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn stream_id(number: u32) -> u32 {
    number * 2 + 1
}

/// A connection of HTTP/2 for frames as the test writes them.
async fn raw(proxy: &Proxy, settings: &[u8]) -> TcpStream {
    let mut stream = proxy.raw().await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, settings)).await.unwrap();
    stream
}

/// Kind, stream and payload of the next frame; `None` at the end of the connection.
async fn next_frame(stream: &mut TcpStream) -> Option<(u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    soon(stream.read_exact(&mut head)).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    soon(stream.read_exact(&mut payload)).await.ok()?;
    Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

/// Sends a flood, and reads at the same time so that both can go on. Returns the code of GOAWAY.
async fn flood(proxy: &Proxy, frames: Vec<u8>) -> Option<u32> {
    let stream = raw(proxy, &[]).await;
    let (mut reading, mut writing) = stream.into_split();
    let sending = tokio::spawn(async move {
        let _ = writing.write_all(&frames).await;
        writing
    });
    let mut code = None;
    let mut head = [0; 9];
    while let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(5), reading.read_exact(&mut head)).await {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        if soon(reading.read_exact(&mut payload)).await.is_err() {
            break;
        }
        if head[3] == GOAWAY {
            code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
    }
    drop(sending.await);
    code
}

/// An application that answers `/ok` and nothing else.
async fn silent() -> App {
    App::http1(|request| async move {
        if request.uri().path() != "/ok" {
            std::future::pending::<()>().await;
        }
        reply("ok")
    })
    .await
}

async fn serves_others(proxy: &Proxy) {
    let answer = proxy.get("/ok").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "ok"));
}

#[tokio::test]
async fn cve_2023_44487_rapid_reset() {
    let app = silent().await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let pair = |number| {
        let head = frame(HEADERS, END_STREAM | END_HEADERS, stream_id(number), GET);
        [head, frame(RESET, 0, stream_id(number), &8u32.to_be_bytes())].concat()
    };
    // All at once: more resets than can wait to be looked at.
    assert_eq!(flood(&proxy, (0..1000).flat_map(pair).collect()).await, Some(ENHANCE_YOUR_CALM));
    serves_others(&proxy).await;
    // So slowly that each request begins before it is taken back.
    let mut stream = raw(&proxy, &[]).await;
    let mut sent = 0;
    for number in 0..5000 {
        let head = frame(HEADERS, END_STREAM | END_HEADERS, stream_id(number), GET);
        let ping = frame(PING, 0, 0, b"01234567");
        if stream.write_all(&[head, ping].concat()).await.is_err() {
            break;
        }
        let answered = async {
            while let Some((kind, _, _)) = next_frame(&mut stream).await {
                if kind == PING {
                    return true;
                }
            }
            false
        };
        if !answered.await || stream.write_all(&frame(RESET, 0, stream_id(number), &8u32.to_be_bytes())).await.is_err()
        {
            break;
        }
        sent += 1;
    }
    assert!((900..1100).contains(&sent), "the connection ended after {sent}");
    serves_others(&proxy).await;
}

#[tokio::test]
async fn cve_2025_8671_made_you_reset() {
    let app = silent().await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let pair = |number| {
        let head = frame(HEADERS, END_HEADERS, stream_id(number), POST);
        // A window of more than there can be is an error of the stream (RFC 9113, 6.9.1), for which the server resets it.
        [head, frame(WINDOW_UPDATE, 0, stream_id(number), &0x7fff_ffffu32.to_be_bytes())].concat()
    };
    assert_eq!(flood(&proxy, (0..5000).flat_map(pair).collect()).await, Some(ENHANCE_YOUR_CALM));
    serves_others(&proxy).await;
}

#[tokio::test]
async fn cve_2024_30255_and_rustsec_2024_0332_continuation_flood() {
    let app = silent().await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut frames = frame(HEADERS, END_STREAM, 1, GET);
    (0..10_000).for_each(|_| frames.extend(frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b")));
    assert_eq!(flood(&proxy, frames).await, Some(ENHANCE_YOUR_CALM));
    serves_others(&proxy).await;
}

#[tokio::test]
async fn rustsec_2026_0258_empty_data_flood() {
    let app = silent().await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut frames = frame(HEADERS, END_HEADERS, 1, POST);
    (0..200_000).for_each(|_| frames.extend(frame(0, 0, 1, b"")));
    assert_eq!(flood(&proxy, frames).await, Some(ENHANCE_YOUR_CALM));
    serves_others(&proxy).await;
}

/// Frames that are allowed, however many: they cost the client as much as the proxy.
#[tokio::test]
async fn settings_ping_and_priority_floods_do_not_keep_others_waiting() {
    let app = silent().await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    for one in [
        frame(SETTINGS, 0, 0, &[]),
        frame(PING, 0, 0, b"01234567"),
        frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 7]),
        frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()),
    ] {
        let mut attack = raw(&proxy, &[]).await;
        let frames = one.repeat(1000);
        // Nothing of the answers is read, until the proxy reads no more either.
        let attacking = tokio::spawn(async move {
            for _ in 0..200 {
                let written = tokio::time::timeout(Duration::from_millis(500), attack.write_all(&frames)).await;
                if !matches!(written, Ok(Ok(()))) {
                    return;
                }
            }
        });
        for _ in 0..20 {
            serves_others(&proxy).await;
        }
        attacking.await.unwrap();
        serves_others(&proxy).await;
    }
}

/// The beginning of the response's head on this stream, which tells its status: 200 is `88`, an entry of the static table.
async fn status_of(stream: &mut TcpStream, id: u32) -> Option<String> {
    loop {
        let (kind, of, payload) = next_frame(stream).await?;
        if of == id && kind == HEADERS {
            return Some(payload.iter().take(6).map(|byte| format!("{byte:02x}")).collect());
        }
        if of == id && kind == RESET {
            return Some("reset".to_owned());
        }
    }
}

#[tokio::test]
async fn cve_2026_47774_hpack_bomb() {
    let app = App::named("never").await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    // One header goes into the table, and then comes again by one byte each: far less than the limit on the wire.
    for times in [300, 3000, 16_000, 60_000] {
        let mut stream = raw(&proxy, &[]).await;
        let mut block = [GET, b"\x40\x01a\x01b"].concat();
        block.extend(std::iter::repeat_n(0xbe, times));
        let mut frames = Vec::new();
        let mut pieces = block.chunks(16_000).peekable();
        let mut kind = HEADERS;
        while let Some(piece) = pieces.next() {
            let flags = if pieces.peek().is_none() { END_HEADERS } else { 0 };
            frames.extend(frame(kind, flags | if kind == HEADERS { END_STREAM } else { 0 }, 1, piece));
            kind = CONTINUATION;
        }
        stream.write_all(&frames).await.unwrap();
        let answer = status_of(&mut stream, 1).await;
        // 200 begins so.
        assert!(!answer.as_ref().is_some_and(|it| it.starts_with("88")), "{times}: {answer:?}");
    }
    assert_eq!(app.connections(), 0);
}

async fn with_headers(client: &mut Client2, name: &str, count: usize) -> Answer {
    let mut request = Request::get("http://app.test/").body(full("")).unwrap();
    (0..count).for_each(|i| _ = request.headers_mut().append(http::HeaderName::try_from(name).unwrap(), i.into()));
    client.answer(request).await
}

#[tokio::test]
async fn headers_and_crumbs_of_cookies_are_counted() {
    let app = App::named("ok").await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut client = Client2::connect(proxy.address).await;
    for name in ["cookie", "x-many"] {
        assert_eq!(with_headers(&mut client, name, 90).await.status.as_u16(), 200, "{name}");
        assert_eq!(with_headers(&mut client, name, 300).await.status.as_u16(), 431, "{name}");
    }
    assert_eq!(with_headers(&mut client, "x-large", 2000).await.status.as_u16(), 431);
}

/// Heads within their limits, in as many requests as a connection may have: they are limited together.
#[tokio::test]
async fn the_heads_of_a_connection_are_limited_together() {
    let app = silent().await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let client = Client2::connect(proxy.address).await.0;
    let (sender, mut answers) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..400 {
        let (mut client, sender) = (Client2(client.clone()), sender.clone());
        tokio::spawn(async move {
            let status = with_headers(&mut client, "x-held", 250).await.status;
            let _ = sender.send(status.as_u16());
        });
    }
    // Some 25 KiB each, of 4 MiB.
    for _ in 0..200 {
        assert_eq!(soon(answers.recv()).await, Some(503));
    }
    serves_others(&proxy).await;
}

#[tokio::test]
async fn more_streams_than_a_connection_has_are_refused() {
    let app = silent().await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut stream = raw(&proxy, &[]).await;
    let heads: Vec<u8> =
        (0..1001).flat_map(|number| frame(HEADERS, END_STREAM | END_HEADERS, stream_id(number), GET)).collect();
    stream.write_all(&heads).await.unwrap();
    loop {
        let (kind, id, payload) = next_frame(&mut stream).await.expect("the connection goes on");
        if kind == RESET {
            assert_eq!((id, payload.as_slice()), (stream_id(1000), &7u32.to_be_bytes()[..]));
            break;
        }
    }
}

async fn with_idle_timeout(app: SocketAddr) -> Proxy {
    let resources = [
        Resource::Cluster(Arc::new(cluster("app", UpstreamHttp::Http1))),
        Resource::Endpoints(endpoints("app", vec![endpoint(app)])),
        Resource::Routes(Arc::new(to(forward(&[("app", 1)])))),
    ];
    let options = ProxyOptions { stream_idle_timeout: Duration::from_millis(300), ..ProxyOptions::default() };
    Proxy::new(resources, options).await
}

#[tokio::test]
async fn a_window_that_is_held_shut_keeps_nobody_else_waiting() {
    let app = App::http1(|request| async move {
        reply(if request.uri().path() == "/ok" { b"ok".to_vec() } else { vec![0; 1 << 20] })
    })
    .await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut stream = raw(&proxy, &[0, 4, 0, 0, 0, 0]).await;
    for number in 0..50 {
        stream.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, stream_id(number), GET)).await.unwrap();
    }
    for number in 0..50 {
        // Heads are not held by windows.
        assert_eq!(status_of(&mut stream, stream_id(number)).await.map(|it| it[..2].to_owned()).as_deref(), Some("88"));
        serves_others(&proxy).await;
    }
    drop(stream);
    until("all were given up", || proxy.recorded(&["response_flags=\"DC\""]) == 50).await;
}

#[tokio::test]
async fn slowloris_with_a_body() {
    let app = App::http1(|request| async move {
        let _ = request.into_body().collect().await;
        reply("never")
    })
    .await;
    let proxy = with_idle_timeout(app.address).await;
    let mut stream = proxy.raw().await;
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nx").await.unwrap();
    let mut text = String::new();
    soon(stream.read_to_string(&mut text)).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
}

/// The clock is not that of the wall: nothing else is to be done, so it goes on.
#[tokio::test(start_paused = true)]
async fn slowloris_with_a_head() {
    // One that is refused at its end, one of which nothing has begun, and one that came with the request before it.
    for (beginning, served) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n", 0),
        ("GET / HTTP/1.1\nHost: a\r\n", 0),
        ("\r\n", 0),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n", 1),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\nHost: a\r\n", 1),
    ] {
        slowloris(beginning, served).await;
    }
}

async fn slowloris(beginning: &str, served: usize) {
    let app = App::named("ok").await;
    let proxy = Proxy::simple(UpstreamHttp::Http1, &[app.address]).await;
    let mut stream = proxy.raw().await;
    let begun = tokio::time::Instant::now();
    stream.write_all(beginning.as_bytes()).await.unwrap();
    let mut ended = false;
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        // A byte now and then gives no more time.
        let _ = stream.write_all(b"X: 1\r\n").await;
        let read = tokio::time::timeout(Duration::from_millis(10), stream.read(&mut [0; 500])).await;
        if matches!(read, Ok(Ok(0) | Err(_))) {
            ended = true;
            break;
        }
    }
    assert!(ended && begun.elapsed() < Duration::from_secs(45), "{beginning:?} after {:?}", begun.elapsed());
    assert_eq!(app.connections(), served);
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

async fn p99(proxy: &Proxy) -> Duration {
    let mut client = proxy.http1().await;
    let mut took = Vec::new();
    for _ in 0..300 {
        let begun = std::time::Instant::now();
        assert_eq!(client.get("/ok").await.text(), "ok");
        took.push(begun.elapsed());
    }
    took.sort();
    took[took.len() * 99 / 100]
}

/// In a process that nothing else runs in, of the client, proxy and application together.
#[test]
#[ignore = "run by the one below, in a process of its own"]
fn memory_under_attack() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let app = silent().await;
        let proxy = Arc::new(Proxy::simple(UpstreamHttp::Http1, &[app.address]).await);
        let calm = p99(&proxy).await;
        let get = |number| frame(HEADERS, END_STREAM | END_HEADERS, stream_id(number), GET);
        let reset = |number| [get(number), frame(RESET, 0, stream_id(number), &8u32.to_be_bytes())].concat();
        let bomb = |number| {
            let block = [GET, if number == 0 { &b"\x40\x01a\x01b"[..] } else { b"\xbe" }, &[0xbe; 250]].concat();
            frame(HEADERS, END_STREAM | END_HEADERS, stream_id(number), &block)
        };
        let mut crumbs = frame(HEADERS, END_STREAM, 1, GET);
        (0..5000).for_each(|_| crumbs.extend(frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b")));
        let mut empty = frame(HEADERS, END_HEADERS, 1, POST);
        (0..100_000).for_each(|_| empty.extend(frame(0, 0, 1, b"")));
        for (name, frames) in [
            ("rapid reset", (0..1000).flat_map(reset).collect()),
            ("HPACK bomb in 1000 streams", (0..1000).flat_map(bomb).collect()),
            ("CONTINUATION", crumbs),
            ("empty DATA", empty),
            ("PING", frame(PING, 0, 0, b"01234567").repeat(50_000)),
            ("SETTINGS", frame(SETTINGS, 0, 0, &[]).repeat(50_000)),
            ("PRIORITY", frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 7]).repeat(50_000)),
        ] {
            let before = resident();
            let attacked = proxy.clone();
            let attack = tokio::spawn(async move {
                // Held open for as long as it is looked at, and not read from.
                let mut stream = raw(&attacked, &[]).await;
                let _ = tokio::time::timeout(Duration::from_secs(5), stream.write_all(&frames)).await;
                stream
            });
            let under = p99(&proxy).await;
            let stream = attack.await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
            let more = resident().saturating_sub(before);
            drop(stream);
            println!("{name}: {more} MiB more, p99 of another client {under:?} (calm {calm:?})");
            assert!(more < 32, "{name}: {more} MiB");
        }
    });
}

#[test]
fn an_attack_takes_less_than_32_mib() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "http::tests::floods::memory_under_attack", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}
