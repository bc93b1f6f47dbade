//! Load shedding: whether the proxy itself is short of memory or of processor time, so that new requests are refused
//! instead of failing those that are under way.
//!
//! In: the memory that the process holds, and how late its tasks run. Out: one flag, which the data path reads.

mod memory;
mod trip;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::telemetry::Telemetry;
use trip::Trip;

pub use memory::limit_of_cgroup;

/// How often either is looked at.
const INTERVAL: Duration = Duration::from_millis(100);

/// What there may be too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scarce {
    Memory,
    Cpu,
}

impl Scarce {
    const ALL: [Self; 2] = [Self::Memory, Self::Cpu];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
        }
    }

    fn bit(self) -> u8 {
        match self {
            Self::Memory => 1,
            Self::Cpu => 2,
        }
    }
}

/// Shared by all connections.
#[derive(Debug, Default)]
pub struct Overload(AtomicU8);

impl Overload {
    /// What is short, if anything: one load where nothing is.
    pub fn scarce(&self) -> Option<Scarce> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            bits => Scarce::ALL.into_iter().find(|it| bits & it.bit() != 0),
        }
    }

    pub fn set(&self, what: Scarce, is_scarce: bool) {
        if is_scarce {
            self.0.fetch_or(what.bit(), Ordering::Relaxed);
        } else {
            self.0.fetch_and(!what.bit(), Ordering::Relaxed);
        }
    }
}

/// How much is too much; `None`: not looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverloadLimits {
    /// Bytes that the process may hold.
    pub memory: Option<u64>,
    /// How late tasks may run, on average.
    pub lag: Option<Duration>,
}

/// Looks after both for as long as the proxy runs. `data`: the runtime of the traffic.
pub fn watch(overload: &Arc<Overload>, limits: OverloadLimits, telemetry: &Telemetry, data: &Handle) {
    for what in Scarce::ALL {
        telemetry.overloaded(what, false);
    }
    if let Some(limit) = limits.memory {
        let (overload, telemetry) = (overload.clone(), telemetry.clone());
        // By the runtime that does not carry the traffic.
        tokio::spawn(async move {
            let mut trip = Trip::of_memory(limit);
            loop {
                if let Some(held) = memory::held() {
                    told(&overload, &telemetry, Scarce::Memory, trip.take(held));
                }
                tokio::time::sleep(INTERVAL).await;
            }
        });
    }
    if let Some(most) = limits.lag {
        let (overload, telemetry) = (overload.clone(), telemetry.clone());
        data.spawn(async move {
            let mut trip = Trip::of_lag(most);
            loop {
                let began = Instant::now();
                tokio::time::sleep(INTERVAL).await;
                let lag = began.elapsed().saturating_sub(INTERVAL);
                told(&overload, &telemetry, Scarce::Cpu, trip.take_lag(lag));
            }
        });
    }
}

/// Sets the flag where that is something new.
fn told(overload: &Overload, telemetry: &Telemetry, what: Scarce, changed: Option<bool>) {
    let Some(is_scarce) = changed else { return };
    overload.set(what, is_scarce);
    telemetry.overloaded(what, is_scarce);
    if is_scarce {
        tracing::warn!(short_of = what.as_str(), "new requests are refused");
    } else {
        tracing::info!(short_of = what.as_str(), "new requests are taken again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_is_enough() {
        let overload = Overload::default();
        assert_eq!(overload.scarce(), None);
        overload.set(Scarce::Cpu, true);
        overload.set(Scarce::Memory, true);
        overload.set(Scarce::Memory, false);
        assert_eq!(overload.scarce(), Some(Scarce::Cpu));
        overload.set(Scarce::Cpu, false);
        assert_eq!(overload.scarce(), None);
    }

    /// The whole way: a runtime whose only thread is kept busy is told from one that is not.
    #[test]
    fn a_runtime_that_is_kept_busy_is_short_of_processor_time() {
        let data = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let telemetry = Telemetry::new(crate::telemetry::TelemetryOptions::default()).unwrap();
        let overload = Arc::new(Overload::default());
        let limits = OverloadLimits { memory: None, lag: Some(Duration::from_millis(50)) };
        watch(&overload, limits, &telemetry, data.handle());
        let until = |what: Option<Scarce>| {
            let began = Instant::now();
            while overload.scarce() != what {
                assert!(began.elapsed() < Duration::from_secs(20), "never {what:?}");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        let busy = data.spawn(async {
            loop {
                std::thread::sleep(Duration::from_millis(300));
                tokio::task::yield_now().await;
            }
        });
        until(Some(Scarce::Cpu));
        assert!(telemetry.render().contains("mesh_proxy_overloaded{resource=\"cpu\"} 1"));
        busy.abort();
        until(None);
        assert!(telemetry.render().contains("mesh_proxy_overloaded{resource=\"cpu\"} 0"));
    }

    #[tokio::test]
    async fn a_process_that_holds_more_than_it_may_is_short_of_memory() {
        let telemetry = Telemetry::new(crate::telemetry::TelemetryOptions::default()).unwrap();
        let held = memory::held().unwrap();
        assert!(held > 1 << 20, "{held}");
        for (limit, expected) in [(held / 2, Some(Scarce::Memory)), (held * 100, None)] {
            let overload = Arc::new(Overload::default());
            let limits = OverloadLimits { memory: Some(limit), lag: None };
            watch(&overload, limits, &telemetry, &Handle::current());
            tokio::time::sleep(INTERVAL / 2).await;
            assert_eq!(overload.scarce(), expected);
        }
    }
}
