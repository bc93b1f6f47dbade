//! The workload's place in the mesh: registered for as long as this runs, healthy while its application is.
//!
//! In: what the proxy was told of its workload, and probes of the application. Out: one registration stream to the
//! control plane, opened again whenever it breaks.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use mesh_common::proto::workload::workload_registry_client::WorkloadRegistryClient;
use mesh_common::proto::workload::{RegisterRequest, Registration, WorkloadPort};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::control::{Backoff, explain_status};

pub mod depart;
pub mod health;

const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the control plane may take to confirm that the workload is gone.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// A port of the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub port: u16,
    /// `http`, `http2`, `grpc`, `tcp`, or empty for detection.
    pub protocol: String,
    /// The service's port.
    pub service_port: u16,
}

/// What is registered.
#[derive(Clone, Debug)]
pub struct Workload {
    pub name: String,
    pub namespace: String,
    pub service: String,
    pub version: String,
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<Port>,
    pub labels: BTreeMap<String, String>,
    pub locality: String,
    pub weight: u32,
}

impl Workload {
    fn registration(&self) -> Registration {
        let port = |it: &Port| WorkloadPort {
            port: it.port.into(),
            protocol: it.protocol.clone(),
            service_port: it.service_port.into(),
            name: String::new(),
        };
        Registration {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            service: self.service.clone(),
            version: self.version.clone(),
            addresses: self.addresses.iter().map(IpAddr::to_string).collect(),
            ports: self.ports.iter().map(port).collect(),
            labels: self.labels.clone(),
            locality: self.locality.clone(),
            weight: self.weight,
        }
    }
}

/// What the control plane makes of the workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It has not answered, or not lately.
    #[default]
    Unknown,
    Registered,
    /// It wants no such workload, for this reason.
    Refused(String),
}

/// Why a stream ended or did not begin.
#[derive(Debug, PartialEq, Eq)]
struct Why {
    reason: String,
    /// The control plane wants no such workload; else nobody knows.
    refused: bool,
}

impl Why {
    fn failed(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), refused: false }
    }

    fn of(status: &Status) -> Self {
        Self { reason: explain_status(status), refused: is_refusal(status.code()) }
    }
}

/// Whether the control plane has decided about the workload and would say the same again. Any other status tells of the moment:
/// the next attempt may fare better, or another replica. That it has too much to do is no decision, and neither is that it
/// doesn't know us: a certificate or a token may be about to be renewed.
fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::AlreadyExists
            // It has no such service.
            | Code::Unimplemented
    )
}

/// How one stream ended.
enum End {
    Left,
    Broken { why: Why, worked: bool },
}

/// Registers the workload until `leaving` turns true (or its sender is gone), then removes it and returns.
pub async fn run<D, F>(
    workload: Workload,
    dial: D,
    mut healthy: watch::Receiver<bool>,
    mut leaving: watch::Receiver<bool>,
    standing: watch::Sender<Standing>,
) where
    D: Fn() -> F,
    F: Future<Output = Result<Channel, String>>,
{
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let mut told = None;
    loop {
        match stream(&workload, &dial, &mut healthy, &mut leaving, &standing).await {
            End::Left => return,
            End::Broken { why, worked } => {
                if worked {
                    backoff.reset();
                }
                // Not again and again: an outage may be long, and each attempt may fail at another place of it. A refusal
                // is something else.
                let reason = why.reason.clone();
                standing.send_replace(if why.refused { Standing::Refused(reason) } else { Standing::Unknown });
                if worked || told.is_none() || why.refused && told.as_ref() != Some(&why) {
                    tracing::warn!(reason = why.reason, "the workload is not registered; trying again");
                    told = Some(why);
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next(fastrand::f64())) => {}
            // Nothing to take back: the control plane removes it when its grace time is over.
            _ = leaving.wait_for(|it| *it) => return,
        }
    }
}

async fn stream<D, F>(
    workload: &Workload,
    dial: &D,
    healthy: &mut watch::Receiver<bool>,
    leaving: &mut watch::Receiver<bool>,
    standing: &watch::Sender<Standing>,
) -> End
where
    D: Fn() -> F,
    F: Future<Output = Result<Channel, String>>,
{
    let broken = |why, worked| End::Broken { why, worked };
    let (requests, receiver) = mpsc::unbounded_channel();
    let first = RegisterRequest {
        registration: Some(workload.registration()),
        healthy: *healthy.borrow_and_update(),
        leaving: false,
    };
    let _ = requests.send(first);
    let opening = async {
        let channel = dial().await.map_err(Why::failed)?;
        let call = WorkloadRegistryClient::new(channel).register(UnboundedReceiverStream::new(receiver)).await;
        call.map(tonic::Response::into_inner).map_err(|status| Why::of(&status))
    };
    let mut responses = tokio::select! {
        opened = tokio::time::timeout(OPEN_TIMEOUT, opening) => match opened {
            Ok(Ok(responses)) => responses,
            Ok(Err(why)) => return broken(why, false),
            Err(_) => return broken(Why::failed("the control plane did not answer in time"), false),
        },
        _ = leaving.wait_for(|it| *it) => return End::Left,
    };
    let mut worked = false;
    loop {
        tokio::select! {
            message = responses.message() => match message {
                Ok(Some(response)) => {
                    if !worked {
                        worked = true;
                        let addresses = response.virtual_addresses.join(", ");
                        tracing::info!(addresses, grace_seconds = response.grace_seconds, "the workload is registered");
                        standing.send_replace(Standing::Registered);
                    }
                }
                Ok(None) => return broken(Why::failed("the control plane closed the stream"), worked),
                Err(status) => return broken(Why::of(&status), worked),
            },
            Ok(()) = healthy.changed() => {
                let healthy = *healthy.borrow_and_update();
                tracing::info!(healthy, "the application's health changed");
                let _ = requests.send(RegisterRequest { registration: None, healthy, leaving: false });
            }
            _ = leaving.wait_for(|it| *it) => break,
        }
    }
    let _ = requests.send(RegisterRequest { registration: None, healthy: false, leaving: true });
    let closed = async { while let Ok(Some(_)) = responses.message().await {} };
    if tokio::time::timeout(LEAVE_TIMEOUT, closed).await.is_err() {
        tracing::warn!("the control plane did not confirm that the workload is gone");
    }
    End::Left
}

#[cfg(test)]
mod tests;
