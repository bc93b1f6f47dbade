//! Datagrams of the application to virtual addresses. In: what the redirect hands over, with its own destination. Out: the
//! same datagrams at an endpoint of the service, and the endpoint's at the client.
//!
//! Nothing secures datagrams between proxies: there is no mutual TLS for them. At the endpoint, policies decide by addresses
//! and ports alone ([`guard`]).
//!
//! Memory is bounded: by the number of sessions, and by what all datagrams that wait have together.

mod guard;
mod packet;
mod session;
mod socket;
mod table;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_common::names::is_virtual;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::listen::{self, Context, Phase};
use crate::telemetry::UdpDrop;

pub use guard::Guard;
use session::{Datagram, Session};
pub use socket::UdpSockets;
use socket::{MAX_DATAGRAM, Received, Receiver, Replies};
use table::{Key, Table};

/// How often to look for sessions whose time is over.
const SWEEP: Duration = Duration::from_secs(1);
/// Datagrams of one session that may wait, for example for the control plane's first answer about its destination.
const WAITING: usize = 64;
/// Bytes of all datagrams that wait.
const WAITING_BYTES: usize = 16 << 20;

/// What all sessions share.
struct Datagrams {
    ctx: Arc<Context>,
    table: Mutex<Table<mpsc::Sender<Datagram>>>,
    replies: Replies,
    room: Arc<Semaphore>,
    began: Instant,
}

/// Takes the datagrams that the redirect hands over, until the proxy ends.
pub async fn serve(sockets: UdpSockets, ctx: Arc<Context>) {
    let UdpSockets { receivers, replies } = sockets;
    let ending = ctx.reached(Phase::Ending);
    let shared = Arc::new(Datagrams {
        table: Mutex::new(Table::new(ctx.settings.max_udp_sessions, session::UNKNOWN_IDLE)),
        replies,
        room: Arc::new(Semaphore::new(WAITING_BYTES)),
        began: Instant::now(),
        ctx,
    });
    let mut tasks = JoinSet::new();
    for receiver in receivers {
        tasks.spawn(shared.clone().receive(receiver));
    }
    tasks.spawn(shared.clone().sweep());
    ending.await;
    tasks.shutdown().await;
    // Sessions end when the table has them no more.
    shared.table().clear();
}

impl Datagrams {
    async fn receive(self: Arc<Self>, receiver: Receiver) {
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            match receiver.receive(&mut buffer).await {
                Ok(Some(received)) => self.take(received, &buffer[..received.length]),
                // Sent to the proxy itself.
                Ok(None) => self.ctx.telemetry.udp_dropped(UdpDrop::NoRoute),
                Err(error) => {
                    tracing::debug!(%error, "receiving a datagram failed");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    }

    /// Hands a datagram to its session, or to a new one. Never waits.
    fn take(self: &Arc<Self>, received: Received, payload: &[u8]) {
        if let Err(why) = self.hand_over(received.client, received.destination, payload) {
            self.ctx.telemetry.udp_dropped(why);
        }
    }

    fn hand_over(self: &Arc<Self>, client: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Result<(), UdpDrop> {
        let key = Key { client: listen::plain(client), destination: listen::plain(destination) };
        if !is_virtual(key.destination.ip()) {
            return Err(UdpDrop::NoRoute);
        }
        // An empty datagram takes room too.
        let size = u32::try_from(payload.len().max(64)).unwrap_or(u32::MAX);
        let room = self.room.clone().try_acquire_many_owned(size).map_err(|_| UdpDrop::Queue)?;
        let mut datagram = Datagram { payload: payload.to_vec(), _room: room };
        let now = self.now();
        let mut table = self.table();
        if let Some(session) = table.find(&key, now) {
            match session.try_send(datagram) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(_)) => return Err(UdpDrop::Queue),
                // It has ended, and is just about to say so.
                Err(TrySendError::Closed(unsent)) => datagram = unsent,
            }
        }
        let (sender, receiver) = mpsc::channel(WAITING);
        // There is room in a queue that is new.
        let _ = sender.try_send(datagram);
        let life = table.begin(key, sender, now).ok_or(UdpDrop::Overflow)?;
        drop(table);
        tokio::spawn(Session::new(key, life, self.clone()).run(receiver));
        Ok(())
    }

    async fn sweep(self: Arc<Self>) {
        let mut every = tokio::time::interval(SWEEP);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            self.table().sweep(self.now());
        }
    }

    /// The table's clock.
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn table(&self) -> MutexGuard<'_, Table<mpsc::Sender<Datagram>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
