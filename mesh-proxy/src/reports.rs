//! Tells the control plane what was counted, which certificate is served, and what its taps want to see. In: counters of
//! [`Telemetry`] and events of its taps, and [`Tls`]. Out: a stream of reports.
//!
//! Nothing here is in a request's way. While there is no control plane, or it takes nothing, no report is made and the
//! counters go on; what they hold by then is in the next one. Taps are open only while the control plane says so.

use std::future::Future;
use std::time::{Duration, UNIX_EPOCH};

use mesh_common::proto::telemetry::reports_client::ReportsClient;
use mesh_common::proto::telemetry::{Certificate, Instruction, Report, Reporter};
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

use crate::control::{Backoff, explain_status};
use crate::telemetry::Telemetry;
use crate::tls::{Served, Tls};

const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// For control planes that know nothing of reports.
const UNWANTED: Duration = Duration::from_secs(60);
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// A tap that the control plane says nothing more of ends after that time.
const TAPS_LAST: Duration = Duration::from_secs(60);
const INTERVALS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// How long the last report may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// How one stream ended.
enum End {
    Told,
    Unwanted,
    Broken { reason: String, worked: bool },
}

/// The task that reports, for as long as the proxy lives.
#[derive(Debug)]
pub struct Reports {
    ending: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Reports {
    pub fn start<D, F>(telemetry: Telemetry, tls: Tls, reporter: Reporter, dial: D) -> Self
    where
        D: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<Channel, String>> + Send + 'static,
    {
        let (ending, ends) = watch::channel(false);
        let source = Source { telemetry, tls, reporter, taken: Instant::now(), served: None };
        Self { ending, task: tokio::spawn(run(source, dial, ends)) }
    }

    /// Tells what has been counted since the last report, if it can be told at once.
    pub async fn end(self) {
        self.ending.send_replace(true);
        // In vain, the numbers of the last second are missing.
        let _ = tokio::time::timeout(FAREWELL, self.task).await;
    }
}

struct Source {
    telemetry: Telemetry,
    tls: Tls,
    reporter: Reporter,
    /// When the counters were last taken.
    taken: Instant,
    /// What the stream was last told of the certificate.
    served: Option<Served>,
}

impl Source {
    /// The first of a stream. No counters are taken before it is certain that somebody takes them.
    fn first(&mut self) -> Report {
        self.served = None;
        Report { reporter: Some(self.reporter.clone()), certificate: self.certificate(), ..Report::default() }
    }

    fn report(&mut self) -> Report {
        let now = Instant::now();
        let covers = now - std::mem::replace(&mut self.taken, now);
        let covers_ms = u64::try_from(covers.as_millis()).unwrap_or(u64::MAX);
        let certificate = self.certificate();
        let series = encoded(&self.telemetry.take_report());
        Report { covers_ms, series, certificate, ..Report::default() }
    }

    /// What taps want to see, and nothing else.
    fn tapped(&self) -> Report {
        let (tapped, not_told) = self.telemetry.taps().take();
        Report { tapped: encoded(&tapped), not_told, ..Report::default() }
    }

    /// Opens the taps of an instruction, and ends all others. Gives when they end by themselves.
    fn tap(&self, instruction: Instruction) -> Option<Instant> {
        let now = Instant::now();
        let lasts = Duration::from_millis(instruction.taps_last_ms.into()).min(TAPS_LAST);
        let ends = (!instruction.taps.is_empty()).then(|| now + lasts);
        self.telemetry.taps().set(instruction.taps, now.into_std());
        ends
    }

    fn end_taps(&self) {
        self.telemetry.taps().set(Vec::new(), Instant::now().into_std());
    }

    /// What is served, if the stream was not told that yet.
    fn certificate(&mut self) -> Option<Certificate> {
        let served = self.tls.served().filter(|served| self.served.as_ref() != Some(served))?;
        let since = served.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let certificate = Certificate {
            leaf: served.leaf.to_vec(),
            since_unix_ms: i64::try_from(since).unwrap_or(i64::MAX),
            failure: served.failure.clone().unwrap_or_default(),
        };
        self.served = Some(served);
        Some(certificate)
    }
}

fn encoded(messages: &[impl Message]) -> Vec<Vec<u8>> {
    messages.iter().map(Message::encode_to_vec).collect()
}

async fn run<D, F>(mut source: Source, dial: D, mut ending: watch::Receiver<bool>)
where
    D: Fn() -> F,
    F: Future<Output = Result<Channel, String>>,
{
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let mut told = false;
    loop {
        let end = stream(&mut source, &dial, &mut ending).await;
        // Nobody is there any more who would see anything.
        source.end_taps();
        let wait = match end {
            End::Told => return,
            End::Unwanted => {
                tracing::debug!("the control plane takes no reports");
                UNWANTED
            }
            End::Broken { reason, worked } => {
                if worked {
                    backoff.reset();
                }
                // Once for each time that it is lost: an outage may be long.
                if worked || !told {
                    tracing::info!(reason, "what flows is not reported; trying again");
                }
                told = true;
                backoff.next(fastrand::f64())
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = ending.wait_for(|it| *it) => return,
        }
    }
}

async fn stream<D, F>(source: &mut Source, dial: &D, ending: &mut watch::Receiver<bool>) -> End
where
    D: Fn() -> F,
    F: Future<Output = Result<Channel, String>>,
{
    let broken = |reason: &str, worked: bool| End::Broken { reason: reason.to_owned(), worked };
    // One report waits at most: whoever does not read the one before gets no other.
    let (reports, receiver) = mpsc::channel(1);
    let opening = async {
        let channel = dial().await.map_err(|reason| broken(&reason, false))?;
        let _ = reports.try_send(source.first());
        let call = ReportsClient::new(channel).stream(ReceiverStream::new(receiver)).await;
        call.map(tonic::Response::into_inner).map_err(|status| match status.code() {
            Code::Unimplemented => End::Unwanted,
            _ => broken(&explain_status(&status), false),
        })
    };
    let mut instructions = match tokio::time::timeout(OPEN_TIMEOUT, opening).await {
        Ok(Ok(instructions)) => instructions,
        Ok(Err(end)) => return end,
        Err(_) => return broken("the control plane did not answer in time", false),
    };
    let mut interval = None;
    let mut earliest = source.taken;
    let mut taps_end = None;
    let taps = source.telemetry.taps().clone();
    loop {
        let due = until(interval.map(|interval| earliest.max(source.taken + interval)));
        let over = until(taps_end);
        tokio::select! {
            instruction = instructions.message() => match instruction {
                Ok(Some(instruction)) => {
                    let wanted = Duration::from_millis(instruction.interval_ms.into());
                    interval = Some(wanted.clamp(INTERVALS.0, INTERVALS.1));
                    taps_end = source.tap(instruction);
                }
                Ok(None) => return broken("the control plane closed the stream", interval.is_some()),
                Err(status) => return broken(&explain_status(&status), interval.is_some()),
            },
            () = due => {
                // Nothing is taken that cannot be sent.
                match reports.try_reserve() {
                    Ok(place) => place.send(source.report()),
                    Err(_) => earliest = Instant::now() + INTERVALS.0,
                }
            }
            () = taps.due() => {
                // What cannot be sent waits, as far as there is room.
                if let Ok(place) = reports.try_reserve() {
                    place.send(source.tapped());
                }
            }
            () = over => {
                source.end_taps();
                taps_end = None;
            }
            _ = ending.wait_for(|it| *it) => break,
        }
    }
    if let Ok(place) = reports.reserve().await {
        let Report { tapped, not_told, .. } = source.tapped();
        place.send(Report { tapped, not_told, ..source.report() });
    }
    drop(reports);
    while let Ok(Some(_)) = instructions.message().await {}
    End::Told
}

/// For ever, if there is no such moment.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
