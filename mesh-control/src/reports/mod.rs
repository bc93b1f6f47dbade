//! What flows in the mesh, and which certificates are served there, as the proxies report it.
//!
//! In: streams of reports, each from one proxy about itself. Out: the last minute of it, and the newest certificate, for
//! whoever asks. Nothing is stored, and no configuration depends on it.

mod service;
#[cfg(test)]
mod tests;
mod window;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_common::proto::control::{ListTrafficResponse, WorkloadCertificate};

pub use service::ReportsService;
use window::Window;

/// The last minute of all proxies that report here. A clone is the same.
#[derive(Clone)]
pub struct Reports(Arc<Mutex<Window>>);

impl Reports {
    pub fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(Window::new(now))))
    }

    /// What has been reported in the last `window`, at most a minute.
    pub fn traffic(&self, window: Duration, now: Instant) -> ListTrafficResponse {
        self.window().traffic(window, now)
    }

    /// What the proxies that report here serve.
    pub fn certificates(&self) -> Vec<WorkloadCertificate> {
        self.window().certificates()
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
