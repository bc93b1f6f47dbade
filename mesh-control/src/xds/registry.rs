//! The streams that are open, and how far each has come.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use mesh_common::names;
use mesh_common::proto::control::{Proxy, ProxyType, WaitProgress, WorkloadCertificate};
use tokio::sync::watch;

use super::node::Client;
use super::secrets::chain;
use super::session::Session;
use super::track::Track;
use super::types::Type;
use super::view::{Protocol, Status};
use crate::auth::Caller;
use crate::certificates;
use crate::snapshot::Snapshot;

/// An open stream whose client has said who it is.
pub(super) struct Connection {
    pub client: Client,
    pub caller: Caller,
    pub protocol: Protocol,
    pub connected_at: Instant,
    session: Mutex<Session>,
}

impl Connection {
    pub fn new(client: Client, caller: Caller, session: Session, connected_at: Instant) -> Self {
        Self { client, caller, protocol: session.protocol(), connected_at, session: Mutex::new(session) }
    }

    /// Never held over an await.
    pub fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn proxy(&self, now: Instant) -> Proxy {
        let session = self.session();
        let tracks = session.tracks().iter().filter(|track| track.subscription().started());
        Proxy {
            id: self.client.node.id.clone(),
            identity: self.caller.identity.as_ref().map(ToString::to_string).unwrap_or_default(),
            service: self.client.scope.service.clone(),
            version: self.client.scope.version.clone(),
            user_agent: self.client.user_agent.clone(),
            protocol: protocol_name(self.protocol).to_owned(),
            connected_unix_ms: unix_ms(self.connected_at, now),
            synced_revision: session.synced_revision(),
            types: tracks.map(|track| proxy_type(track, now)).collect(),
            namespace: self.client.scope.namespace.clone(),
            address: self.caller.address.clone(),
        }
    }

    /// What it got from here, if it has asked for it.
    fn certificate(&self) -> Option<WorkloadCertificate> {
        let (pem, failure) = {
            let session = self.session();
            let track = session.track(Type::Secret);
            let (encoded, status) = track.resources().remove(names::SECRET_IDENTITY)?;
            let failure = match (status, track.nack()) {
                (Status::Synced, _) => String::new(),
                (Status::Error, Some(nack)) => format!("the proxy refused it: {}", nack.message),
                _ => "the proxy has not acknowledged it yet".to_owned(),
            };
            (chain(&encoded.any)?, failure)
        };
        Some(WorkloadCertificate {
            id: self.client.node.id.clone(),
            identity: self.caller.identity.as_ref().map(ToString::to_string).unwrap_or_default(),
            service: names::served_fqdn(&self.client.scope.service, &self.client.scope.namespace),
            version: self.client.scope.version.clone(),
            certificate: Some(certificates::facts_of_pem(&pem)?),
            since_unix_ms: 0,
            failure,
        })
    }
}

pub(super) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Delta => "delta",
        Protocol::StateOfTheWorld => "sotw",
    }
}

fn proxy_type(track: &Track, now: Instant) -> ProxyType {
    let idle = track.in_flight_since().is_none() && !track.has_adds() && !track.has_removals();
    ProxyType {
        r#type: track.ty().short().to_owned(),
        subscribed: count(track.subscribed_count()),
        sent: count(track.sent_count()),
        acked: count(track.acked_count()),
        nack: track.nack().map(|nack| nack.message.clone()).unwrap_or_default(),
        nack_unix_ms: track.nack().map(|nack| unix_ms(nack.at, now)).unwrap_or_default(),
        synced: idle && track.nack().is_none(),
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Clients by how far they are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Standing {
    pub synced: usize,
    /// Something is not acknowledged.
    pub pending: usize,
    /// The last answer about some type was a refusal.
    pub rejected: usize,
    /// Seconds that the oldest response without an answer has been out.
    pub oldest: f64,
}

/// The wall clock's time of a past moment.
pub(super) fn unix_ms(at: Instant, now: Instant) -> i64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let then = wall.saturating_sub(now.saturating_duration_since(at));
    i64::try_from(then.as_millis()).unwrap_or(i64::MAX)
}

pub(super) struct Registry {
    open: Mutex<Open>,
    changes: watch::Sender<()>,
}

#[derive(Default)]
struct Open {
    next: u64,
    connections: BTreeMap<u64, Arc<Connection>>,
}

impl Registry {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { open: Mutex::default(), changes: watch::Sender::new(()) })
    }

    /// The connection is listed for as long as the result lives.
    pub fn register(self: &Arc<Self>, connection: Connection) -> Registration {
        let connection = Arc::new(connection);
        let mut open = self.open();
        open.next += 1;
        let id = open.next;
        open.connections.insert(id, connection.clone());
        metrics::gauge!("mesh_control_xds_streams", "protocol" => protocol_name(connection.protocol)).increment(1.0);
        Registration { registry: self.clone(), id, connection }
    }

    fn notify(&self) {
        self.changes.send_replace(());
    }

    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    pub fn len(&self) -> usize {
        self.open().connections.len()
    }

    pub fn connections(&self) -> Vec<Arc<Connection>> {
        self.open().connections.values().cloned().collect()
    }

    pub fn proxies(&self, now: Instant) -> Vec<Proxy> {
        let mut proxies: Vec<_> = self.connections().iter().map(|connection| connection.proxy(now)).collect();
        proxies.sort_by(|a, b| (&a.id, a.connected_unix_ms).cmp(&(&b.id, b.connected_unix_ms)));
        proxies
    }

    pub fn certificates(&self) -> Vec<WorkloadCertificate> {
        let mut all: Vec<_> = self.connections().iter().filter_map(|connection| connection.certificate()).collect();
        all.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// How far the open streams are with a revision. `over`: whatever happens next, the outcome is known.
    pub fn progress(&self, snapshot: &Snapshot, revision: u64, now: Instant) -> (WaitProgress, bool) {
        let compiled = snapshot.revision >= revision;
        let committed = snapshot.committed(revision);
        let connections = self.connections();
        let mut progress = WaitProgress { revision, proxies: count(connections.len()), ..WaitProgress::default() };
        let mut refused = 0;
        let mut last = committed;
        for connection in &connections {
            let session = connection.session();
            let id = &connection.client.node.id;
            let mut refuses = false;
            for (track, nack) in session.tracks().iter().filter_map(|track| Some((track, track.nack()?))) {
                progress.rejected.push(format!("{id}: {}: {}", track.ty().short(), nack.message));
                refuses |= nack.revision >= revision;
            }
            match session.settled_at(revision) {
                Some(at) if compiled && !refuses => {
                    progress.synced += 1;
                    // Who came later got it at once; that says nothing about the change.
                    if connection.connected_at <= committed {
                        last = last.max(at);
                    }
                }
                _ => {
                    refused += u32::from(refuses);
                    progress.pending.push(id.clone());
                }
            }
        }
        progress.done = compiled && progress.synced == progress.proxies;
        let until = if progress.done { last } else { now };
        let elapsed = if compiled { until.saturating_duration_since(committed) } else { Default::default() };
        progress.elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let over = compiled && progress.synced + refused == progress.proxies;
        (progress, over)
    }

    /// How many clients have the newest snapshot.
    pub fn standing(&self, revision: u64, now: Instant) -> Standing {
        let mut standing = Standing::default();
        for connection in self.connections() {
            let session = connection.session();
            let state = match session.tracks().iter().any(|track| track.nack().is_some()) {
                true => &mut standing.rejected,
                false if session.revision() >= Some(revision) => &mut standing.synced,
                false => &mut standing.pending,
            };
            *state += 1;
            let sent = session.tracks().iter().filter_map(Track::in_flight_since).min();
            let out = sent.map_or(0.0, |sent| now.saturating_duration_since(sent).as_secs_f64());
            standing.oldest = standing.oldest.max(out);
        }
        standing
    }

    /// Clients that have not acknowledged all changes to endpoints up to a revision.
    pub fn behind_with_endpoints(&self, revision: u64) -> Vec<String> {
        let connections = self.connections();
        let behind = connections.iter().filter(|it| it.session().endpoints_acknowledged() < revision);
        behind.map(|connection| connection.client.node.id.clone()).collect()
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Registration {
    registry: Arc<Registry>,
    id: u64,
    pub connection: Arc<Connection>,
}

impl Registration {
    /// Tells waiters that this stream has come further.
    pub fn notify(&self) {
        self.registry.notify();
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.open().connections.remove(&self.id);
        let protocol = protocol_name(self.connection.protocol);
        metrics::gauge!("mesh_control_xds_streams", "protocol" => protocol).decrement(1.0);
        self.registry.notify();
    }
}
