//! Envoy xDS v3: aggregated discovery (delta and state of the world), and the client status service beside it.
//!
//! In: subscriptions, acknowledgements and rejections of proxies, and snapshots. Out: responses that bring each proxy
//! to the newest snapshot in an order that never breaks it, and the status of every proxy.

pub mod session;
pub mod subscription;
pub mod track;
pub mod types;
mod wire;

pub use types::Type;
