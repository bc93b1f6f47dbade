//! The live table: what flows in the shop, from the metrics that its proxies serve on the host's loopback.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::load::Client;
use super::metrics::{self, Counts, Target};
use super::running::Running;
use crate::commands::Context;
use crate::failure::Failure;
use crate::output::{Cell, Table};

const REFRESH: Duration = Duration::from_secs(1);
/// Where the output is no terminal, a table now and then is enough.
const REFRESH_FILE: Duration = Duration::from_secs(10);
/// Rates and quantiles are over so many readings.
const WINDOW: usize = 5;
/// Order of the rows.
const ORDER: [&str; 4] = ["web", "reviews", "ratings", "stock"];

/// Shows the table until a signal ends it.
pub(super) async fn show(context: &Context, running: &mut Running, client: &Client, rate: u32) -> Result<(), Failure> {
    context.out.line(&introduction(running))?;
    let trickle = async {
        match rate {
            0 => std::future::pending().await,
            rate => client.trickle(rate).await,
        }
    };
    tokio::select! {
        ended = table(context, running) => ended,
        () = trickle => Ok(()),
    }
}

async fn table(context: &Context, running: &mut Running) -> Result<(), Failure> {
    let terminal = std::io::stdout().is_terminal();
    let refresh = if terminal { REFRESH } else { REFRESH_FILE };
    let addresses: Vec<_> = running.workloads.iter().map(|workload| workload.sidecar.metrics).collect();
    let mut readings = VecDeque::from([(Instant::now(), read(&addresses).await)]);
    let mut lines = 0;
    loop {
        tokio::time::sleep(refresh).await;
        readings.push_back((Instant::now(), read(&addresses).await));
        if readings.len() > WINDOW {
            readings.pop_front();
        }
        let (Some(first), Some(last)) = (readings.front(), readings.back()) else { continue };
        let mut text = render(context, &first.1, &last.1, last.0 - first.0);
        for ended in running.ended() {
            let _ = writeln!(text, "! {ended}");
        }
        if terminal {
            // Over the table before: up, and clear what is below. `CSI 0 F` would be one line up too.
            if lines > 0 {
                print!("\x1b[{lines}F\x1b[J");
            }
            print!("{text}");
            lines = text.lines().count();
            std::io::stdout().flush()?;
        } else {
            context.out.line(&text)?;
        }
    }
}

fn render(context: &Context, earlier: &Readings, now: &Readings, over: Duration) -> String {
    let mut table = Table::new(&["SERVICE", "VERSION", "REQ/S", "SUCCESS", "P50", "P99", "MTLS"]);
    let mut rows: Vec<_> = between(earlier, now).into_iter().collect();
    rows.retain(|((_, version), counts)| !version.is_empty() || counts.requests + counts.connections > 0.0);
    rows.sort_by_key(|((service, version), _)| {
        (ORDER.iter().position(|known| known == service).unwrap_or(ORDER.len()), service.clone(), version.clone())
    });
    for ((service, version), counts) in rows {
        table.row(row(&service, &version, &counts, over));
    }
    context.out.text(&table)
}

fn row(service: &str, version: &str, counts: &Counts, over: Duration) -> Vec<Cell> {
    let (streams, total, mutual) = match counts.requests > 0.0 || counts.connections == 0.0 {
        true => (false, counts.requests, counts.mutual_tls),
        false => (true, counts.connections, counts.connections_mutual_tls),
    };
    let rate = format!("{:.1}{}", total / over.as_secs_f64().max(0.001), if streams { " conn" } else { "" });
    let percent = |part: f64| 100.0 * part / total;
    let success = match total > 0.0 && !streams {
        false => Cell::dim("-"),
        true if counts.failed == 0.0 => Cell::good("100%"),
        true => Cell::bad(format!("{:.1}%", percent(total - counts.failed))),
    };
    let security = match total > 0.0 {
        false => Cell::dim("-"),
        true if mutual >= total => Cell::good("yes"),
        // Requests that never reached anybody had nothing to encrypt.
        true if version.is_empty() => Cell::dim("-"),
        true => Cell::warn(format!("{:.0}%", percent(mutual))),
    };
    let quantile = |at| counts.quantile(at).map_or_else(|| Cell::dim("-"), |time| milliseconds(time).into());
    let version = if version.is_empty() { "(none)" } else { version };
    vec![service.into(), version.into(), rate.into(), success, quantile(0.5), quantile(0.99), security]
}

pub(super) fn milliseconds(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

/// What each proxy has counted; one that does not answer is left out.
type Readings = BTreeMap<SocketAddr, BTreeMap<Target, Counts>>;

async fn read(addresses: &[SocketAddr]) -> Readings {
    let read = addresses.iter().map(async |address| {
        let text = tokio::time::timeout(REFRESH, get(*address)).await.ok()?.ok()?;
        let mut counts = BTreeMap::new();
        metrics::add(&mut counts, &text);
        Some((*address, counts))
    });
    join_all(read).await.into_iter().flatten().collect()
}

/// What was added between two readings. Of a proxy that is missing in one of them nothing is known.
fn between(earlier: &Readings, now: &Readings) -> BTreeMap<Target, Counts> {
    let mut all = BTreeMap::<Target, Counts>::new();
    for (address, counts) in now {
        let Some(earlier) = earlier.get(address) else { continue };
        for (target, counts) in counts {
            all.entry(target.clone()).or_default().add(&counts.since(earlier.get(target)));
        }
    }
    all
}

/// One proxy's metrics.
pub(super) async fn get(address: SocketAddr) -> anyhow::Result<String> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = http::Request::get("/metrics").header("host", address.to_string()).body(Empty::<Bytes>::new())?;
    let body = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}

fn introduction(running: &Running) -> String {
    let mut text = String::new();
    let web = if running.python { "Python" } else { "Rust" };
    let _ = writeln!(
        text,
        "The shop        http://127.0.0.1:{}/   (JSON: /api/reviews/1; `web` is in {web})",
        running.port
    );
    let _ = writeln!(text, "Prometheus      prometheus --config.file={}", running.prometheus.display());
    let _ = writeln!(text, "  mesh-control  http://{}/metrics", running.control_metrics);
    for workload in &running.workloads {
        let _ = writeln!(text, "  {:<13} http://{}/metrics", workload.part.name(), workload.sidecar.metrics);
    }
    // Found without being told where in the default folder.
    let control = match running.socket.ends_with(".mesh/demo/control.sock") {
        true => String::new(),
        false => format!("  export MESH_CONTROL=unix:{}\n", running.socket.display()),
    };
    let _ = writeln!(
        text,
        "\nTry from another terminal:\n{control}  \
         meshctl route set-weight reviews v1=90 v2=10\n  \
         meshctl route set-match reviews --header end-user=jason v2\n  \
         meshctl fault delay reviews --percent 50 --delay 2s --for 1m --from web\n  \
         meshctl top\n  \
         meshctl topology\n  \
         meshctl proxy status\n  \
         meshctl get services\n\
         Ctrl-C ends the demo and everything that it has started.\n"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_that_misses_a_reading_is_not_counted_from_its_start() {
        let read = |of_first: Option<f64>, of_second: f64| -> Readings {
            let counts = |requests: f64| {
                let buckets = BTreeMap::from([(1000, requests)]);
                BTreeMap::from([(target(), Counts { requests, buckets, ..Counts::default() })])
            };
            let first = of_first.map(|requests| ("127.0.0.1:1".parse().unwrap(), counts(requests)));
            first.into_iter().chain([("127.0.0.1:2".parse().unwrap(), counts(of_second))]).collect()
        };
        fn target() -> Target {
            ("ratings".to_owned(), "v1".to_owned())
        }
        let added = |earlier: &Readings, now: &Readings| {
            let all = between(earlier, now);
            (all[&target()].requests, all[&target()].buckets[&1000])
        };
        let (before, without, after) = (read(Some(9000.0), 100.0), read(None, 110.0), read(Some(9020.0), 120.0));
        assert_eq!(added(&before, &without), (10.0, 10.0));
        assert_eq!(added(&without, &after), (10.0, 10.0));
        assert_eq!(added(&before, &after), (40.0, 40.0));
        // Started anew, it counts from zero.
        assert_eq!(added(&before, &read(Some(5.0), 101.0)), (6.0, 6.0));
    }

    #[test]
    fn rows_say_what_callers_saw() {
        let texts = |counts: &Counts| -> Vec<String> {
            row("reviews", "v1", counts, Duration::from_secs(5)).into_iter().map(|cell| cell.text).collect()
        };
        let counts = Counts { requests: 50.0, failed: 5.0, mutual_tls: 50.0, ..Counts::default() };
        assert_eq!(texts(&counts), ["reviews", "v1", "10.0", "90.0%", "-", "-", "yes"]);
        let streams = Counts { connections: 5.0, connections_mutual_tls: 5.0, ..Counts::default() };
        assert_eq!(texts(&streams), ["reviews", "v1", "1.0 conn", "-", "-", "-", "yes"]);
        assert_eq!(texts(&Counts::default())[2..], ["0.0", "-", "-", "-", "-"]);
    }
}
