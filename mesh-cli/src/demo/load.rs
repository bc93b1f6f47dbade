//! Requests to the shop, as a browser on this machine sends them, and what came of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::failure::{Exit, Failure};

/// Longer than any delay that the demo injects.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone)]
pub(super) struct Client {
    address: SocketAddr,
}

/// What came of some requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// By the version of `reviews` that answered.
    pub(super) versions: BTreeMap<String, u32>,
    pub(super) statuses: BTreeMap<u16, u32>,
    /// Requests without any reply.
    pub(super) lost: u32,
    /// Of replies, sorted.
    pub(super) latencies: Vec<Duration>,
}

impl Tally {
    pub(super) fn requests(&self) -> u32 {
        self.lost + self.statuses.values().sum::<u32>()
    }

    pub(super) fn good(&self) -> u32 {
        self.statuses.get(&200).copied().unwrap_or(0)
    }

    /// In percent of all requests.
    pub(super) fn share(&self, count: u32) -> f64 {
        100.0 * f64::from(count) / f64::from(self.requests().max(1))
    }

    /// `at` from 0 to 1.
    pub(super) fn quantile(&self, at: f64) -> Duration {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let index = (at * self.latencies.len().saturating_sub(1) as f64).round() as usize;
        self.latencies.get(index).copied().unwrap_or_default()
    }

    fn add(&mut self, outcome: Outcome) {
        match outcome {
            Some(reply) => {
                *self.statuses.entry(reply.status.as_u16()).or_default() += 1;
                if let Some(version) = reply.version {
                    *self.versions.entry(version).or_default() += 1;
                }
                self.latencies.push(reply.latency);
            }
            None => self.lost += 1,
        }
    }
}

/// `None`: no reply.
type Outcome = Option<Reply>;

struct Reply {
    status: StatusCode,
    version: Option<String>,
    latency: Duration,
}

impl Client {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address }
    }

    /// Waits until the shop answers.
    pub(super) async fn first_good(&self, patience: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + patience;
        let mut connection = Connection::new(self.address);
        loop {
            let status = connection.get(&[]).await.map(|reply| reply.status);
            if status == Some(StatusCode::OK) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let last = status.map_or_else(|| "nothing".to_owned(), |status| status.to_string());
                return Err(Failure::with(Exit::TimedOut, format!("The shop does not answer (last: {last})."))
                    .hint("The folder `logs` in the demo's data folder tells more."));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends this many requests over some connections at once, and waits for all replies.
    pub(super) async fn send(
        &self,
        requests: u32,
        connections: u32,
        headers: &'static [(&'static str, &'static str)],
    ) -> Tally {
        let left = Arc::new(AtomicU32::new(requests));
        let mut senders = JoinSet::new();
        for _ in 0..connections {
            let (left, mut connection) = (left.clone(), Connection::new(self.address));
            senders.spawn(async move {
                let mut outcomes = Vec::new();
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                    outcomes.push(connection.get(headers).await);
                }
                outcomes
            });
        }
        let mut tally = Tally::default();
        while let Some(outcomes) = senders.join_next().await {
            outcomes.unwrap_or_default().into_iter().for_each(|outcome| tally.add(outcome));
        }
        tally.latencies.sort_unstable();
        tally
    }

    /// Sends requests at a steady rate until dropped; what comes of them is seen in the proxies' metrics.
    pub(super) async fn trickle(&self, rate: u32) {
        // Several, so that slow replies do not hold back the others.
        const CONNECTIONS: u32 = 8;
        let mut senders = JoinSet::new();
        for number in 0..CONNECTIONS {
            let mut connection = Connection::new(self.address);
            let pause = Duration::from_secs(1) * CONNECTIONS / rate.max(1);
            senders.spawn(async move {
                tokio::time::sleep(pause * number / CONNECTIONS).await;
                let mut ticks = tokio::time::interval(pause);
                ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                loop {
                    ticks.tick().await;
                    connection.get(&[]).await;
                }
            });
        }
        while senders.join_next().await.is_some() {}
    }
}

/// A connection that is made when it is needed and kept while it can be.
struct Connection {
    address: SocketAddr,
    sender: Option<SendRequest<Empty<Bytes>>>,
}

impl Connection {
    fn new(address: SocketAddr) -> Self {
        Self { address, sender: None }
    }

    async fn get(&mut self, headers: &[(&'static str, &'static str)]) -> Outcome {
        let started = Instant::now();
        let mut request = Request::get("/api/reviews/1").header(header::HOST, self.address.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::new()).ok()?;
        let exchange = async {
            let mut sender = self.take().await?;
            let reply = sender.send_request(request).await.ok()?;
            let status = reply.status();
            let body = reply.into_body().collect().await.ok()?.to_bytes();
            self.sender = Some(sender);
            Some((status, body))
        };
        let (status, body) = tokio::time::timeout(PATIENCE, exchange).await.ok().flatten()?;
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let version = body.get("version").and_then(|version| version.as_str()).map(str::to_owned);
        Some(Reply { status, version, latency: started.elapsed() })
    }

    async fn take(&mut self) -> Option<SendRequest<Empty<Bytes>>> {
        if let Some(mut sender) = self.sender.take()
            && sender.ready().await.is_ok()
        {
            return Some(sender);
        }
        let stream = TcpStream::connect(self.address).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        Some(sender)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_counts_shares_and_quantiles() {
        let mut tally = Tally::default();
        for i in 1..=99u64 {
            let (status, version) = if i <= 90 { (200, Some("v1".to_owned())) } else { (503, None) };
            let status = StatusCode::from_u16(status).unwrap();
            tally.add(Some(Reply { status, version, latency: Duration::from_millis(i) }));
        }
        tally.add(None);
        assert_eq!((tally.requests(), tally.good(), tally.lost), (100, 90, 1));
        assert!((tally.share(tally.versions["v1"]) - 90.0).abs() < 1e-9);
        assert_eq!(tally.quantile(0.5), Duration::from_millis(50));
        assert_eq!(tally.quantile(1.0), Duration::from_millis(99));
        assert_eq!(Tally::default().quantile(0.99), Duration::ZERO);
    }
}
