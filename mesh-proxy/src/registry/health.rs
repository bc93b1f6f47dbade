//! Whether the application works, seen from beside it.

use std::io;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use crate::application;

/// While it is not sure that the application works, it is asked often: it starts and ends unannounced.
const SOON: Duration = Duration::from_millis(200);
const STEADY: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Failures in a row that make it unhealthy.
const FAILURES: u32 = 3;

/// How to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// It always counts as healthy.
    None,
    /// The port accepts connections.
    Tcp { port: Option<u16> },
    /// `GET path` is answered with a status from 200 to 399.
    Http { port: Option<u16>, path: String },
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is not a health check; write tcp, http:/PATH or none, with a port after the name if it is not the first one (tcp:9090, http:9090/healthz)"
)]
pub struct CheckError(String);

impl FromStr for Check {
    type Err = CheckError;

    fn from_str(text: &str) -> Result<Self, CheckError> {
        let wrong = || CheckError(text.to_owned());
        let port = |digits: &str| match digits {
            "" => Ok(None),
            digits => digits.parse().ok().filter(|it| *it > 0).map(Some).ok_or_else(wrong),
        };
        match text.split_once(':') {
            None if text == "none" => Ok(Self::None),
            None if text == "tcp" => Ok(Self::Tcp { port: None }),
            None if text == "http" => Ok(Self::Http { port: None, path: "/".to_owned() }),
            Some(("tcp", digits)) if !digits.is_empty() => Ok(Self::Tcp { port: port(digits)? }),
            Some(("http", rest)) => {
                let (digits, path) = rest.split_at(rest.find('/').ok_or_else(wrong)?);
                let printable = path.bytes().all(|b| b.is_ascii_graphic());
                if !printable {
                    return Err(wrong());
                }
                Ok(Self::Http { port: port(digits)?, path: path.to_owned() })
            }
            _ => Err(wrong()),
        }
    }
}

/// What the probes so far mean.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Health {
    healthy: bool,
    failures: u32,
}

impl Health {
    /// Whether the application is healthy, after one more probe.
    pub fn observe(&mut self, success: bool) -> bool {
        if success {
            *self = Self { healthy: true, failures: 0 };
        } else {
            self.failures = self.failures.saturating_add(1);
            self.healthy &= self.failures < FAILURES;
        }
        self.healthy
    }

    /// When to probe next.
    pub fn delay(&self) -> Duration {
        if self.healthy && self.failures == 0 { STEADY } else { SOON }
    }
}

/// Tells `healthy` how the application is, for as long as it runs: at this machine's `own` addresses or by loopback.
/// `first_port` is asked where the check names none.
pub async fn watch(check: Check, own: Vec<IpAddr>, first_port: Option<u16>, healthy: watch::Sender<bool>) {
    let set = |value: bool| {
        healthy.send_if_modified(|it| std::mem::replace(it, value) != value);
    };
    let port = match &check {
        Check::None => None,
        Check::Tcp { port } | Check::Http { port, .. } => port.or(first_port),
    };
    let Some(port) = port else {
        // A workload without a port only calls others.
        set(true);
        return std::future::pending().await;
    };
    let mut state = Health::default();
    loop {
        let probe = tokio::time::timeout(PROBE_TIMEOUT, probe(&check, &own, port));
        set(state.observe(matches!(probe.await, Ok(Ok(true)))));
        tokio::time::sleep(state.delay()).await;
    }
}

async fn probe(check: &Check, own: &[IpAddr], port: u16) -> io::Result<bool> {
    let mut stream = application::connect(own, port).await?;
    let Check::Http { path, .. } = check else { return Ok(true) };
    let address = stream.peer_addr()?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nuser-agent: mesh-proxy-health\r\naccept: */*\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    // `HTTP/1.1 200`
    let mut status = [0; 12];
    stream.read_exact(&mut status).await?;
    Ok(status.starts_with(b"HTTP/1.") && matches!(status[8..10], [b' ', b'2' | b'3']))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn reads_checks() {
        assert_eq!("none".parse(), Ok(Check::None));
        assert_eq!("tcp".parse(), Ok(Check::Tcp { port: None }));
        assert_eq!("tcp:81".parse(), Ok(Check::Tcp { port: Some(81) }));
        assert_eq!("http:/ok?x=1".parse(), Ok(Check::Http { port: None, path: "/ok?x=1".into() }));
        assert_eq!("http:81/".parse(), Ok(Check::Http { port: Some(81), path: "/".into() }));
        for wrong in ["", "tcp:", "tcp:0", "tcp:x", "http:", "http:81", "http:/a b", "http:/a\r\nx: y", "grpc"] {
            assert!(wrong.parse::<Check>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_success_is_enough_and_three_failures_are() {
        let mut health = Health::default();
        assert!(!health.observe(false));
        assert_eq!(health.delay(), SOON);
        assert!(health.observe(true));
        assert_eq!(health.delay(), STEADY);
        assert!(health.observe(false));
        assert_eq!(health.delay(), SOON);
        assert!(health.observe(false));
        assert!(!health.observe(false));
        assert!(!health.observe(false));
        assert!(health.observe(true));
    }

    async fn serve_once(reply: &'static [u8]) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            stream.write_all(reply).await.unwrap();
        });
        port
    }

    #[tokio::test]
    async fn probes_by_http_status() {
        let http = Check::Http { port: None, path: "/".into() };
        for (reply, healthy) in [
            (&b"HTTP/1.1 200 OK\r\n\r\n"[..], true),
            (b"HTTP/1.0 302 Found\r\n\r\n", true),
            (b"HTTP/1.1 404 Not Found\r\n\r\n", false),
            (b"HTTP/1.1 500 Oh\r\n\r\n", false),
            (b"220 mail ready\r\n\r\n", false),
        ] {
            let port = serve_once(reply).await;
            assert_eq!(probe(&http, &[], port).await.unwrap(), healthy);
        }
    }

    #[tokio::test]
    async fn probes_by_connecting() {
        let port = serve_once(b"").await;
        assert!(probe(&Check::Tcp { port: None }, &[], port).await.unwrap());
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port();
        assert!(probe(&Check::Tcp { port: None }, &[], closed).await.is_err());
    }

    #[tokio::test]
    async fn without_a_port_or_a_check_it_is_healthy() {
        for (check, port) in [(Check::None, Some(80)), (Check::Tcp { port: None }, None)] {
            let (sender, mut healthy) = watch::channel(false);
            let watching = tokio::spawn(super::watch(check, Vec::new(), port, sender));
            healthy.wait_for(|it| *it).await.unwrap();
            watching.abort();
        }
    }
}
