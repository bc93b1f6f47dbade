use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::balance::ewma::Latency;
use super::check::{Checked, Standing};
use super::http2::Flow;
use super::outlier::Record;
use super::{http1, http2};
use crate::application;
use crate::listen::{Direction, Downstream};

/// How long an endpoint is passed over that has asked its callers to go elsewhere: until then the control plane should have
/// taken it out.
const LEAVING: Duration = Duration::from_secs(5);

/// An endpoint's connections. Outlives the snapshots that the endpoint is in.
#[derive(Debug)]
pub(crate) struct Host {
    pub(super) address: SocketAddr,
    /// Connections to it carry mutual TLS.
    pub(super) secure: bool,
    /// Of the application behind this proxy, where its first caller wanted it: connections go there, and only then to
    /// `address`, which is a loopback address.
    application: OnceLock<Option<SocketAddr>>,
    pub(super) http1: http1::Pool,
    pub(super) http2: http2::Pool,
    /// For requests whose responses are taken slowly.
    pub(super) http2_paced: http2::Pool,
    /// Requests and byte streams that it serves now.
    load: AtomicUsize,
    /// It is not an endpoint any more: what is in flight ends in peace, and no connection is kept.
    retired: AtomicBool,
    pub(super) retires: Arc<Notify>,
    created: Instant,
    /// Until when it is better passed over, in milliseconds after `created`; 0 for most.
    leaving_until: AtomicU64,
    /// Since when it is an endpoint that serves, in milliseconds after `created`; [`IDLE`] while it is not.
    serving_since: AtomicU64,
    pub(super) latency: Latency,
    /// What came of its requests.
    pub(super) record: Record,
    pub(super) checked: Checked,
}

/// Of an endpoint that the control plane says is not healthy.
const IDLE: u64 = u64::MAX;

impl Host {
    pub(super) fn new(address: SocketAddr, secure: bool) -> Self {
        let created = Instant::now();
        Self {
            address,
            secure,
            application: OnceLock::new(),
            http1: http1::Pool::default(),
            http2: http2::Pool::default(),
            http2_paced: http2::Pool::default(),
            load: AtomicUsize::new(0),
            retired: AtomicBool::new(false),
            retires: Arc::default(),
            created,
            leaving_until: AtomicU64::new(0),
            serving_since: AtomicU64::new(0),
            latency: Latency::default(),
            record: Record::new(created),
            checked: Checked::default(),
        }
    }

    /// Takes note of where a peer called the application, if that is what this host is.
    pub(super) fn called(&self, downstream: &Downstream) {
        if downstream.direction == Direction::Outbound {
            return;
        }
        self.application.get_or_init(|| {
            let wanted = downstream.original_destination.ip();
            let own = self.address.ip().is_loopback() && application::is_own(wanted);
            own.then(|| SocketAddr::new(wanted, self.address.port()))
        });
    }

    /// Where the application was called.
    pub(super) fn application(&self) -> Option<SocketAddr> {
        self.application.get().copied().flatten()
    }

    pub(super) fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Returns when it is not an endpoint any more.
    pub(super) async fn until_retired(&self) {
        let retires = self.retires.notified();
        if !self.is_retired() {
            retires.await;
        }
    }

    /// It has asked for no more requests, in peace.
    pub(super) fn leaves(&self) {
        let until = self.created.elapsed() + LEAVING;
        self.leaving_until.store(u64::try_from(until.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn is_leaving(&self) -> bool {
        let until = self.leaving_until.load(Ordering::Relaxed);
        until > 0 && self.created.elapsed() < Duration::from_millis(until)
    }

    /// Takes note of whether it serves, as the control plane has it. One that serves again starts anew.
    pub(super) fn serves(&self, healthy: bool) {
        let now = u64::try_from(self.created.elapsed().as_millis()).unwrap_or(IDLE - 1);
        if !healthy {
            self.serving_since.store(IDLE, Ordering::Relaxed);
        } else {
            let _ = self.serving_since.compare_exchange(IDLE, now, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Since when it serves without a break.
    pub(super) fn serving_since(&self) -> Instant {
        match self.serving_since.load(Ordering::Relaxed) {
            IDLE => Instant::now(),
            since => self.created + Duration::from_millis(since),
        }
    }

    /// Nothing speaks against giving it a request.
    pub(super) fn is_available(&self) -> bool {
        self.checked.standing() == Standing::Good && !self.is_leaving() && !self.is_ejected()
    }

    pub(super) fn is_ejected(&self) -> bool {
        self.record.is_ejected(Instant::now)
    }

    pub(super) fn is_connected(&self) -> bool {
        !(self.http1.is_empty() && self.http2.is_empty() && self.http2_paced.is_empty())
    }

    pub(super) fn http2(&self, flow: Flow) -> &http2::Pool {
        match flow {
            Flow::Free => &self.http2,
            Flow::Paced => &self.http2_paced,
        }
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.retires.notify_waiters();
        self.checked.end();
        self.http1.clear();
        self.http2.clear();
        self.http2_paced.clear();
    }
}

/// Counts as load of the host until it is dropped.
#[derive(Debug)]
pub(crate) struct Load(pub(super) Arc<Host>);

impl Load {
    pub(super) fn new(host: Arc<Host>) -> Self {
        host.load.fetch_add(1, Ordering::Relaxed);
        Self(host)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.load.fetch_sub(1, Ordering::Relaxed);
    }
}
