//! What flows in the mesh, and which certificates are served there, as the proxies report it.
//!
//! In: streams of reports, each from one proxy about itself. Out: the last minute of it, and the newest certificate, for
//! whoever asks; and single requests as they end, for whoever taps them. Nothing is stored, and no configuration depends on it.

mod service;
mod taps;
#[cfg(test)]
mod tests;
mod window;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::Stream;
use mesh_common::proto::control::{ListTrafficResponse, TapAsked, TapRequest, TapResponse, WorkloadCertificate};
use tonic::Status;

pub use service::ReportsService;
use taps::{Reader, Taps};
use window::Window;

/// How often it is looked whether others are asked by now.
const ASKED: Duration = Duration::from_secs(2);

/// The last minute of all proxies that report here, and who taps them. A clone is the same.
#[derive(Clone)]
pub struct Reports {
    window: Arc<Mutex<Window>>,
    taps: Taps,
}

impl Reports {
    pub fn new(now: Instant) -> Self {
        // Proxies may have events for taps of the process before this one.
        let taps = Taps::new(fastrand::u64(..));
        Self { window: Arc::new(Mutex::new(Window::new(now))), taps }
    }

    /// What has been reported in the last `window`, at most a minute.
    pub fn traffic(&self, window: Duration, now: Instant) -> ListTrafficResponse {
        self.window().traffic(window, now)
    }

    /// What the proxies that report here serve.
    pub fn certificates(&self) -> Vec<WorkloadCertificate> {
        self.window().certificates()
    }

    /// What is asked for, as it ends, and the tap's number. It is over when the stream is dropped.
    pub fn tap(
        &self,
        request: TapRequest,
        now: Instant,
    ) -> Result<(u64, impl Stream<Item = Result<TapResponse, Status>> + Send + use<>), Status> {
        let (reports, reader) = (self.clone(), self.taps.open(request, now)?);
        let id = reader.id();
        let stream = async_stream::try_stream! {
            let mut asked = reports.asked(&reader);
            yield TapResponse { asked: Some(asked.clone()), ..TapResponse::default() };
            let mut look = tokio::time::Instant::now() + ASKED;
            loop {
                if let Ok(next) = tokio::time::timeout_at(look, reader.next()).await {
                    let (events, not_shown) = next?;
                    yield TapResponse { events, not_shown, asked: None };
                }
                if tokio::time::Instant::now() >= look {
                    look = tokio::time::Instant::now() + ASKED;
                    let now = reports.asked(&reader);
                    if now != asked {
                        asked = now;
                        yield TapResponse { asked: Some(asked.clone()), ..TapResponse::default() };
                    }
                }
            }
        };
        Ok((id, stream))
    }

    fn asked(&self, reader: &Reader) -> TapAsked {
        let asks = |workload: &str, service: &str, identity: &str| reader.asks(workload, service, identity);
        let (proxies, mut identities) = self.window().reporting(asks);
        identities.sort_unstable();
        TapAsked { proxies: u32::try_from(proxies).unwrap_or(u32::MAX), identities }
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
