//! Differential framing: the same broken HTTP/1 through the proxy to servers with four other parsers. Whatever the client
//! sends, no server may see a request that the proxy has not counted.
//!
//! Streams are made of a seed that is printed, and each goes to all four. `MESH_FRAMING_COUNT` is how many are sent in all (ten
//! thousand, or a million for the long form), `MESH_FRAMING_SEED` makes those of another run again. Each names itself in the paths
//! of its requests.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use super::*;
use crate::telemetry::AccessLog;

const COUNT: u64 = 10_000;
const AT_ONCE: usize = 32;
/// After so much silence the client goes on to its next stream.
const SILENCE: Duration = Duration::from_millis(50);

/// What servers are known to disagree about.
const HEADERS: [&str; 30] = [
    "Content-Length: 0",
    "Content-Length: 5",
    "Content-Length: 48",
    "Content-Length: +5",
    "Content-Length: 5, 5",
    "Content-Length: 0x5",
    "Content-Length : 5",
    "Content-Length:5",
    "Content_Length: 5",
    "content-length:\t5 ",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: Chunked",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: identity, chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding:\x0bchunked",
    "Transfer-Encoding: \"chunked\"",
    "Transfer_Encoding: chunked",
    "Transfer-Encoding:\r\n chunked",
    "X: y\r\n Transfer-Encoding: chunked",
    "X: y\rTransfer-Encoding: chunked",
    "X: y\nTransfer-Encoding: chunked",
    "X: y\0",
    "Connection: close",
    "Connection: Content-Length",
    "Connection: Transfer-Encoding, keep-alive",
    "Connection: upgrade\r\nUpgrade: websocket",
    "Expect: 100-continue",
    "Host: other",
];
const BYTES: &[u8] = b"\r\n\0\t \x0b\x0c:;,\"#?/\\%0aA\x7f\x80\xff";
const LINE_ENDS: [&[u8]; 6] = [b"\n", b"\r", b"\r\n\r\n", b"\n\r\n", b"\r\r\n", b""];

/// The streams of this number, as an attacker might write it.
fn stream(seed: u64, number: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut bytes = well_formed(&mut random, number);
    for _ in 0..random.usize(0..4) {
        mutate(&mut random, &mut bytes);
    }
    bytes
}

fn well_formed(random: &mut fastrand::Rng, number: u64) -> Vec<u8> {
    let inner = format!("GET /{number}/inner HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut text = String::new();
    for part in 0..random.u32(1..4) {
        let path = format!("/{number}/{part}");
        text += &match random.u32(0..9) {
            0 => format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"),
            1 => format!("HEAD {path} HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n"),
            2 => format!("GET http://a{path} HTTP/1.1\r\nHost: a\r\n\r\n"),
            3 => format!(
                "GET {path} HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: {}\r\n\r\n{inner}",
                inner.len()
            ),
            4 => format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
            5 | 6 => format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{inner}", inner.len()),
            _ => format!(
                "POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n{:x}\r\n{inner}\r\n0\r\nX-Sum: 1\r\n\r\n",
                inner.len()
            ),
        };
    }
    text += &format!("GET /{number}/last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    text.into_bytes()
}

fn mutate(random: &mut fastrand::Rng, bytes: &mut Vec<u8>) {
    let ends: Vec<usize> = bytes.windows(2).enumerate().filter(|(_, it)| *it == b"\r\n").map(|(at, _)| at).collect();
    let Some(&end) = random.choice(&ends) else { return };
    let at = random.usize(0..bytes.len());
    match random.u32(0..10) {
        0..=3 => {
            let header = HEADERS[random.usize(0..HEADERS.len())];
            let line = format!("\r\n{header}");
            bytes.splice(end..end, line.into_bytes());
        }
        4 | 5 => _ = bytes.splice(end..end + 2, LINE_ENDS[random.usize(0..LINE_ENDS.len())].to_vec()),
        6 => bytes.insert(at, BYTES[random.usize(0..BYTES.len())]),
        7 => bytes[at] = BYTES[random.usize(0..BYTES.len())],
        8 => _ = bytes.remove(at),
        _ => {
            let piece = bytes[at..(at + random.usize(1..30)).min(bytes.len())].to_vec();
            bytes.splice(end..end, piece);
        }
    }
}

/// A server's process, and where it writes the path of each request.
struct Server {
    process: Child,
    log: PathBuf,
    address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const NODE: &str = "const log = require('fs').openSync(process.argv[1], 'a');
require('http').createServer((request, response) => {
  require('fs').writeSync(log, request.url + '\\n');
  request.resume();
  request.on('end', () => response.end('ok'));
}).listen(Number(process.argv[2]), '127.0.0.1');";

impl Server {
    async fn start(name: &str, folder: &Path) -> Self {
        let address = nowhere().await;
        let (port, log) = (address.port(), folder.join(format!("{name}.log")));
        std::fs::write(&log, "").unwrap();
        let mut output = Stdio::null();
        let config = folder.join(format!("{name}.conf"));
        let mut command = match name {
            "nginx" => {
                let text = format!(
                    "daemon off; master_process off; pid {0}/nginx.pid; error_log {0}/nginx.error; events {{}}
                     http {{ log_format path escape=none '$request_uri'; access_log {1} path; keepalive_requests 1000000;
                     client_body_temp_path {0}; proxy_temp_path {0}; fastcgi_temp_path {0}; uwsgi_temp_path {0}; scgi_temp_path {0};
                     server {{ listen 127.0.0.1:{port}; location / {{ return 200 ok; }} }} }}",
                    folder.display(),
                    log.display()
                );
                std::fs::write(&config, text).unwrap();
                let mut command = Command::new("nginx");
                command.arg("-c").arg(&config);
                command
            }
            "haproxy" => {
                let text = format!(
                    "global\n log stdout format raw local0\ndefaults\n mode http\n log global\n option dontlognull\n timeout client 30s\n timeout http-request 30s\n timeout connect 5s\n timeout server 30s\nfrontend all\n bind 127.0.0.1:{port}\n log-format %HU\n http-request return status 200 content-type text/plain string ok\n"
                );
                std::fs::write(&config, text).unwrap();
                output = std::fs::File::options().append(true).open(&log).unwrap().into();
                let mut command = Command::new("haproxy");
                command.arg("-db").arg("-f").arg(&config);
                command
            }
            _ => {
                let mut command = Command::new("node");
                command.args(["-e", NODE]).arg(&log).arg(port.to_string());
                command
            }
        };
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let process =
            command.env("PATH", path).stdin(Stdio::null()).stdout(output).stderr(Stdio::null()).spawn().unwrap();
        let server = Self { process, log, address };
        for _ in 0..1000 {
            if TcpStream::connect(address).await.is_ok() {
                return server;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{name} does not listen");
    }
}

/// How often each path is among them; what has other characters than these paths have is told apart by nobody.
fn counted<'a>(paths: impl Iterator<Item = &'a str>) -> HashMap<&'a str, usize> {
    let mut counts = HashMap::new();
    for path in paths {
        let plain = !path.is_empty() && path.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'/');
        *counts.entry(if plain { path } else { "?" }).or_default() += 1;
    }
    counts
}

/// What was seen more often than counted. A server that does not like a request's method says no path: that may be any that it
/// has not seen.
fn uncounted<'a>(seen: &HashMap<&'a str, usize>, proxy: &HashMap<&str, usize>) -> Vec<(&'a str, usize)> {
    let counted = |path: &str| proxy.get(path).copied().unwrap_or_default();
    let not_seen = |(path, times): (&&str, &usize)| times.saturating_sub(seen.get(path).copied().unwrap_or_default());
    let more = |(path, times): (&&'a str, &usize)| {
        let allowed = if *path == "?" {
            counted("?") + proxy.iter().filter(|(path, _)| **path != "?").map(not_seen).sum::<usize>()
        } else {
            counted(path)
        };
        let more = times.saturating_sub(allowed);
        (more > 0).then_some((*path, more))
    };
    seen.iter().filter_map(more).collect()
}

#[test]
fn a_request_too_many_is_noticed() {
    let proxy = counted(["/1/0", "/1/last", "/2/%41"].into_iter());
    assert_eq!(uncounted(&counted(["/1/0", "/2/%41"].into_iter()), &proxy), []);
    assert_eq!(uncounted(&counted(["/1/0", "/1/inner"].into_iter()), &proxy), [("/1/inner", 1)]);
    assert_eq!(uncounted(&counted(["/1/0", "/1/0"].into_iter()), &proxy), [("/1/0", 1)]);
    assert_eq!(uncounted(&counted(["/1/0", "/1/last", "*", "-"].into_iter()), &proxy), [("?", 1)]);
}

async fn send(proxy: SocketAddr, bytes: &[u8]) {
    let Ok(mut stream) = TcpStream::connect(proxy).await else { return };
    let mut piece = [0; 4096];
    let exchange = async {
        // The proxy may have had enough of it before the end.
        let _ = stream.write_all(bytes).await;
        while let Ok(Ok(1..)) = tokio::time::timeout(SILENCE, stream.read(&mut piece)).await {}
    };
    let _ = tokio::time::timeout(Duration::from_secs(5), exchange).await;
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|it| it.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_server_sees_a_request_that_the_proxy_has_not_counted() {
    let missing = ["nginx", "haproxy", "node"].into_iter().find(|name| {
        let paths = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        !std::env::split_paths(&paths).any(|folder| folder.join(name).is_file())
    });
    if let Some(name) = missing {
        assert!(std::env::var_os("MESH_TEST_REQUIRE_NAMESPACES").is_none(), "there is no {name}");
        return eprintln!("skipped: there is no {name}");
    }
    let sent = setting("MESH_FRAMING_COUNT").unwrap_or(COUNT);
    let count = sent / 4;
    let seed = setting("MESH_FRAMING_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("MESH_FRAMING_SEED={seed} MESH_FRAMING_COUNT={sent}");
    let folder = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(String::new()));
    let log = seen.clone();
    let hyper = App::http1(move |request| {
        *log.lock().unwrap() += &format!("{}\n", request.uri());
        async move {
            let _ = request.into_body().collect().await;
            reply("ok")
        }
    })
    .await;
    let mut servers = Vec::new();
    for name in ["nginx", "haproxy", "node"] {
        servers.push(Server::start(name, folder.path()).await);
    }
    let mut proxies = Vec::new();
    for (name, address) in ["hyper", "nginx", "haproxy", "node"]
        .into_iter()
        .zip([hyper.address].into_iter().chain(servers.iter().map(|it| it.address)))
    {
        let resources = [
            Resource::Cluster(Arc::new(cluster("app", UpstreamHttp::Http1))),
            Resource::Endpoints(endpoints("app", vec![endpoint(address)])),
            Resource::Routes(Arc::new(to(forward(&[("app", 1)])))),
        ];
        let telemetry = TelemetryOptions {
            access_log: AccessLog::Json,
            access_log_file: Some(folder.path().join(format!("proxy.{name}"))),
            ..TelemetryOptions::default()
        };
        let proxy = Proxy::new(resources, ProxyOptions { telemetry, ..ProxyOptions::default() }).await;
        let idle = Arc::strong_count(&proxy.ctx);
        proxies.push((name, proxy, idle));
    }
    let next = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let addresses: Vec<_> = proxies.iter().map(|(_, proxy, _)| proxy.address).collect();
    let clients: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let (next, addresses) = (next.clone(), addresses.clone());
            tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let bytes = stream(seed, number);
                    let [a, b, c, d] = addresses[..] else { unreachable!() };
                    tokio::join!(send(a, &bytes), send(b, &bytes), send(c, &bytes), send(d, &bytes));
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let read = |path: &Path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
    let observed = |name: &str| match name {
        "hyper" => seen.lock().unwrap().clone(),
        name => read(&servers[["nginx", "haproxy", "node"].iter().position(|it| *it == name).unwrap()].log),
    };
    for (name, proxy, idle) in &proxies {
        // The proxy goes on with what a client has sent, whatever became of that. After an upgrade that it did not take, node is
        // silent about what is wrong in the next request for as long as it keeps the connection.
        let ended = async {
            while Arc::strong_count(&proxy.ctx) > *idle {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(3 * SOON, ended).await.expect("took too long");
        // Servers write a request's line at its end; one that was broken off ends when its connection does.
        let mut lines = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = observed(name).lines().count();
            if std::mem::replace(&mut lines, now) == now {
                break;
            }
        }
        let seen = observed(name);
        proxy.ctx.telemetry.flush(Duration::from_secs(10));
        let dropped = proxy.ctx.telemetry.render();
        assert!(
            !dropped.lines().any(|it| it.contains("access_log_dropped") && !it.starts_with('#') && !it.ends_with(" 0"))
        );
        let text = read(&folder.path().join(format!("proxy.{name}")));
        let logged: Vec<serde_json::Value> = text.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
        let forwarded = logged.iter().filter(|it| it["upstream_host"].is_string());
        let by_proxy = counted(forwarded.clone().map(|it| it["path"].as_str().unwrap_or_default()));
        let by_server = counted(seen.lines());
        let (all, refused) = (seen.lines().count(), logged.iter().filter(|it| it["response_code"] == 400).count());
        println!("{name}: saw {all} requests, of {} that the proxy sent on; it refused {refused}", forwarded.count());
        let more = uncounted(&by_server, &by_proxy);
        let about =
            |path: &str| logged.iter().filter(|it| it["path"] == path).map(ToString::to_string).collect::<Vec<_>>();
        let lines: Vec<_> = more.iter().flat_map(|(path, _)| about(path)).collect();
        assert!(
            more.is_empty(),
            "{name} saw what the proxy has not counted, with MESH_FRAMING_SEED={seed}: {more:?}; {lines:#?}"
        );
        // Both happen a lot, or nothing was tried.
        assert!(all as u64 > count / 2 && refused as u64 > count / 20, "{name}");
    }
}
