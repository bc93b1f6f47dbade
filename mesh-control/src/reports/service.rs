//! `mesh.telemetry.v1`: one stream for each proxy.

use std::time::{Duration, Instant};

use mesh_common::identity::Identity;
use mesh_common::proto::telemetry::reports_server::{Reports as Service, ReportsServer};
use mesh_common::proto::telemetry::{Instruction, Report, Reporter, Series};
use mesh_common::reports::MAX_SERIES;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Reports;
use super::window::{Counted, Refused, Served, StreamId, shortened};
use crate::auth::{Authenticator, Proof};
use crate::certificates;

/// The first message must be there by then.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// Bytes of one report. As many series as one may have, with names as long as they get, are a megabyte and a half. An empty one is
/// two bytes, and 24 before it is read; more than [`MAX_REPORTED_SERIES`] are not.
pub(super) const REPORT_BYTES: usize = 2 << 20;
/// With those for what is beyond.
const MAX_REPORTED_SERIES: usize = MAX_SERIES + 4;
/// How long a proxy goes on with a tap that it hears nothing more of, and how often it does hear of it.
const TAPS_LAST: Duration = Duration::from_secs(30);
const TAPS_RENEWED: Duration = Duration::from_secs(10);
/// When one that reads nothing is told again.
const AGAIN: Duration = Duration::from_secs(1);

type Instructions = mpsc::Sender<Result<Instruction, Status>>;

pub struct ReportsService {
    reports: Reports,
    auth: Authenticator,
}

impl ReportsService {
    pub fn server(reports: Reports, auth: Authenticator) -> ReportsServer<Self> {
        ReportsServer::new(Self { reports, auth }).max_decoding_message_size(REPORT_BYTES)
    }
}

#[tonic::async_trait]
impl Service for ReportsService {
    type StreamStream = ReceiverStream<Result<Instruction, Status>>;

    async fn stream(&self, request: Request<Streaming<Report>>) -> Result<Response<Self::StreamStream>, Status> {
        let caller = self.auth.caller(&Proof::of(&request)?).await?;
        let identity = caller.required()?.clone();
        let (instructions, stream) = mpsc::channel(2);
        tokio::spawn(serve(self.reports.clone(), identity, request.into_inner(), instructions));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

async fn serve(reports: Reports, identity: Identity, mut requests: Streaming<Report>, instructions: Instructions) {
    let stream = match open(&reports, &identity, &mut requests).await {
        Ok(stream) => stream,
        Err(status) => {
            tracing::debug!(%identity, status = status.message(), "takes no reports");
            let _ = instructions.send(Err(status)).await;
            return;
        }
    };
    if let Err(refused) = follow(&reports, &identity, &stream, &mut requests, &instructions).await {
        let _ = instructions.send(Err(status(&refused))).await;
    }
    reports.window().close(&stream);
}

async fn open(reports: &Reports, identity: &Identity, requests: &mut Streaming<Report>) -> Result<StreamId, Status> {
    let first = tokio::time::timeout(FIRST_MESSAGE, requests.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("the first report did not come in time"))??;
    let mut first = first.ok_or_else(|| Status::invalid_argument("the stream ended before the first report"))?;
    let reporter = first.reporter.take();
    let reporter = reporter.ok_or_else(|| Status::invalid_argument("the first report must say whose it is"))?;
    let now = Instant::now();
    let served = served(identity, &mut first).map_err(|refused| status(&refused))?;
    let counted = counted(first.covers_ms, &first.series).map_err(|refused| status(&refused))?;
    let mut window = reports.window();
    let stream = window.open(identity, &reporter, now).map_err(|refused| status(&refused))?;
    window.add(&stream, counted, served, now).map_err(|refused| status(&refused))?;
    Ok(stream)
}

/// What a report has counted, if it is no more than a proxy may count.
fn counted(covers_ms: u64, series: &[Vec<u8>]) -> Result<Counted, Refused> {
    if series.len() > MAX_REPORTED_SERIES {
        return Err(Refused::Counted);
    }
    let series = series.iter().map(|bytes| Series::decode(&**bytes)).collect::<Result<_, _>>();
    Ok(Counted { covers_ms, series: series.map_err(|_| Refused::Counted)? })
}

/// What a report says of the certificate, which must be the reporter's.
fn served(identity: &Identity, report: &mut Report) -> Result<Option<Served>, Refused> {
    let Some(told) = report.certificate.take() else { return Ok(None) };
    let found = certificates::facts(&told.leaf).filter(|found| certificates::is_of(found, &identity.to_string()));
    let certificate = found.ok_or(Refused::Certificate)?;
    Ok(Some(Served { certificate, since_unix_ms: told.since_unix_ms, failure: shortened(told.failure) }))
}

fn status(refused: &Refused) -> Status {
    match refused {
        Refused::LongName | Refused::Certificate | Refused::Counted => Status::invalid_argument(refused.to_string()),
        Refused::TooMany => Status::resource_exhausted(refused.to_string()),
        Refused::Replaced => Status::aborted(refused.to_string()),
    }
}

/// Until the stream ends.
async fn follow(
    reports: &Reports,
    identity: &Identity,
    stream: &StreamId,
    requests: &mut Streaming<Report>,
    instructions: &Instructions,
) -> Result<(), Refused> {
    let mut told = None;
    let mut due = Instant::now();
    let mut taps = reports.taps.changes();
    let who = reports.window().reporter(stream).ok_or(Refused::Replaced)?;
    loop {
        let interval = reports.window().interval();
        let wanted = reports.taps.of(&who);
        let now = Instant::now();
        let is_news = told.as_ref().is_none_or(|(last, open)| *last != interval || *open != wanted);
        if is_news || (!wanted.is_empty() && now >= due) {
            let milliseconds = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
            let (interval_ms, taps_last_ms) = (milliseconds(interval), milliseconds(TAPS_LAST));
            // One that reads nothing hears of it later.
            due = match instructions.try_send(Ok(Instruction { interval_ms, taps: wanted.clone(), taps_last_ms })) {
                Ok(()) => {
                    told = Some((interval, wanted.clone()));
                    now + TAPS_RENEWED
                }
                Err(_) => now + AGAIN,
            };
        }
        // A stream without taps is told of a new interval at its next report.
        let is_told = told.as_ref().is_some_and(|(_, open)| *open == wanted);
        let again = async {
            match wanted.is_empty() && is_told {
                true => std::future::pending().await,
                false => tokio::time::sleep_until(due.into()).await,
            }
        };
        tokio::select! {
            message = requests.message() => match message {
                Ok(Some(report)) => take(reports, identity, &who, stream, report)?,
                Ok(None) | Err(_) => return Ok(()),
            },
            Ok(()) = taps.changed() => {}
            () = again => {}
        }
    }
}

fn take(
    reports: &Reports,
    identity: &Identity,
    who: &Reporter,
    stream: &StreamId,
    mut report: Report,
) -> Result<(), Refused> {
    let now = Instant::now();
    let served = served(identity, &mut report)?;
    let counted = counted(report.covers_ms, &report.series)?;
    // Also tells whether another stream has taken over.
    reports.window().add(stream, counted, served, now)?;
    reports.taps.deliver(who, &report.tapped, &report.not_told, now);
    Ok(())
}
