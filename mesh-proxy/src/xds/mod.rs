//! The client of the control plane's discovery service: one delta ADS stream for all types.
//!
//! In: names that the [`Store`] was asked for. Out: decoded resources into the store, and an answer to the control
//! plane for each response once it is in force (ACK), or with the reasons why not (NACK). A broken stream changes
//! nothing that is in force: the proxy goes on with what it has, comes back by itself, and says what it has.

use std::future::Future;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use envoy_types::pb::google::rpc::Status as PbStatus;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

use crate::config::decode::decode;
use crate::control::{Backoff, explain_status};
use crate::snapshot::{Store, Subscriptions, Type, Update};

mod node;

pub use node::{NodeInfo, node};

/// How often what is idle is looked for, which is also the resolution of "last used".
const SWEEP: Duration = Duration::from_secs(5);
/// A control plane that accepts the stream but says nothing is not one to wait for.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
const BACKOFF_BASE: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// One response may hold all endpoints of a large mesh.
const MAX_MESSAGE: usize = 64 << 20;
/// Of the reasons in a NACK, in bytes.
const MAX_REASON: usize = 4096;

/// Keeps the store up to date for as long as it runs. `dial` connects to the control plane anew; `connected` is told
/// when the stream opens and when it ends.
pub async fn run<D, F>(store: Store, node: Node, dial: D, connected: impl Fn(bool))
where
    D: Fn() -> F,
    F: Future<Output = Result<Channel, String>>,
{
    let client = async {
        let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_MAX);
        loop {
            let mut session = Session { store: &store, node: &node, answered: false, opened: None };
            let reason = session.run(&dial, &connected).await;
            if session.opened.is_some() {
                connected(false);
            }
            // A control plane with nothing new to say is silent for as long as the stream lives.
            let worked = session.answered || session.opened.is_some_and(|opened| opened.elapsed() > BACKOFF_MAX);
            if worked {
                backoff.reset();
            }
            if store.ended(worked) {
                tracing::warn!(reason, "the control plane cannot be reached; going on with what is here");
            } else if worked {
                tracing::info!(reason, "the stream to the control plane ended; connecting again");
            } else {
                tracing::debug!(reason, "the control plane still cannot be reached");
            }
            tokio::time::sleep(backoff.next(fastrand::f64())).await;
        }
    };
    let sweeper = async {
        let mut every = tokio::time::interval(SWEEP);
        loop {
            every.tick().await;
            store.sweep(Instant::now());
        }
    };
    // Neither ends.
    let ((), ()) = tokio::join!(client, sweeper);
}

/// One stream.
struct Session<'a> {
    store: &'a Store,
    node: &'a Node,
    opened: Option<Instant>,
    /// The control plane has sent something.
    answered: bool,
}

impl Session<'_> {
    /// Returns why it ended.
    async fn run<D, F>(&mut self, dial: &D, connected: &impl Fn(bool)) -> String
    where
        D: Fn() -> F,
        F: Future<Output = Result<Channel, String>>,
    {
        let channel = match dial().await {
            Ok(channel) => channel,
            Err(reason) => return reason,
        };
        let (requests, receiver) = mpsc::unbounded_channel();
        let mut first = self.store.resubscribe();
        while first.is_empty() {
            // A first request without names would ask for everything.
            self.store.wanted().await;
            first = self.store.resubscribe();
        }
        for (index, (ty, names)) in first.into_iter().enumerate() {
            let mut request = subscription(ty, names);
            // Once for the stream.
            request.node = (index == 0).then(|| self.node.clone());
            let _ = requests.send(request);
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let opening = client.delta_aggregated_resources(UnboundedReceiverStream::new(receiver));
        let mut responses = match tokio::time::timeout(OPEN_TIMEOUT, opening).await {
            Err(_) => return "the control plane did not answer in time".to_owned(),
            Ok(Err(status)) => return explain_status(&status),
            Ok(Ok(response)) => response.into_inner(),
        };
        self.opened = Some(Instant::now());
        connected(true);
        self.store.heard();
        tracing::info!("following the control plane");
        loop {
            tokio::select! {
                message = responses.message() => match message {
                    Ok(Some(response)) => {
                        self.answered = true;
                        self.store.heard();
                        let _ = requests.send(self.answer(response));
                    }
                    Ok(None) => return "the control plane closed the stream".to_owned(),
                    Err(status) => return explain_status(&status),
                },
                () = self.store.wanted() => {
                    for (ty, names) in self.store.changes() {
                        let _ = requests.send(subscription(ty, names));
                    }
                }
            }
        }
    }

    /// Puts a response in force, as far as it can be, and says so.
    fn answer(&self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let mut answer = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        };
        let refused = match Type::from_url(&response.type_url) {
            Some(ty) => {
                let (update, refused) = read(ty, response);
                self.store.apply(ty, update);
                refused
            }
            None => vec![format!("resources of the type {:?} were not asked for", response.type_url)],
        };
        let label = Type::from_url(&answer.type_url).map_or("unknown", Type::short);
        let result = if refused.is_empty() { "ack" } else { "nack" };
        metrics::counter!("mesh_xds_responses_total", "type" => label, "result" => result).increment(1);
        if !refused.is_empty() {
            let mut message = refused.join("; ");
            tracing::warn!(ty = label, reason = message, "refused what the control plane sent; what was there stays");
            message.truncate(message.floor_char_boundary(MAX_REASON));
            answer.error_detail = Some(PbStatus { code: Code::InvalidArgument as i32, message, details: Vec::new() });
        }
        answer
    }
}

/// What a response changes, and the reasons why some of it can't be: the others are taken, and what was there before in
/// place of the refused ones stays.
fn read(ty: Type, response: DeltaDiscoveryResponse) -> (Update, Vec<String>) {
    let (version, removed) = (response.system_version_info, response.removed_resources);
    let mut update = Update { version, removed, ..Default::default() };
    let mut refused = Vec::new();
    for item in response.resources {
        // Without a resource it is a sign of life for one that was sent before.
        let Some(any) = item.resource else { continue };
        let decoded = if any.type_url == response.type_url {
            decode(ty, &any.value).map_err(|error| error.to_string())
        } else {
            Err(format!("it is of the type {:?}", any.type_url))
        };
        match decoded {
            Ok(resource) if item.name.is_empty() || item.name == resource.name() => {
                update.resources.push((item.version, resource));
            }
            Ok(resource) => {
                refused.push(format!("{}: its own name is {:?}", item.name, resource.name()));
                update.refused.push(item.name);
            }
            Err(reason) => {
                refused.push(format!("{}: {reason}", item.name));
                update.refused.push(item.name);
            }
        }
    }
    (update, refused)
}

fn subscription(ty: Type, names: Subscriptions) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: ty.url().to_owned(),
        resource_names_subscribe: names.subscribe,
        resource_names_unsubscribe: names.unsubscribe,
        initial_resource_versions: names.versions.into_iter().collect(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests;
