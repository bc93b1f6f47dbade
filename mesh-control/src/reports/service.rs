//! `mesh.telemetry.v1`: one stream for each proxy.

use std::time::{Duration, Instant};

use mesh_common::identity::Identity;
use mesh_common::proto::telemetry::reports_server::{Reports as Service, ReportsServer};
use mesh_common::proto::telemetry::{Instruction, Report};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Reports;
use super::window::{Refused, Served, StreamId, shortened};
use crate::auth::{Authenticator, Proof};
use crate::certificates;

/// The first message must be there by then.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// Bytes of one report.
const REPORT_BYTES: usize = 4 << 20;

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
    let mut window = reports.window();
    let stream = window.open(identity, &reporter, now).map_err(|refused| status(&refused))?;
    window.add(&stream, first, served, now).map_err(|refused| status(&refused))?;
    Ok(stream)
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
        Refused::LongName | Refused::Certificate => Status::invalid_argument(refused.to_string()),
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
    let mut told = Duration::ZERO;
    loop {
        let interval = reports.window().interval();
        if interval != told {
            let interval_ms = u32::try_from(interval.as_millis()).unwrap_or(u32::MAX);
            // One that reads nothing hears of it later.
            if instructions.try_send(Ok(Instruction { interval_ms })).is_ok() {
                told = interval;
            }
        }
        match requests.message().await {
            Ok(Some(mut report)) => {
                let served = served(identity, &mut report)?;
                reports.window().add(stream, report, served, Instant::now())?;
            }
            Ok(None) | Err(_) => return Ok(()),
        }
    }
}
