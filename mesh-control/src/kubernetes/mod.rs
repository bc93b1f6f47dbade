//! The control plane in a Kubernetes cluster: the API server is its store, and everything it knows comes from there.
//!
//! In: watches of the API server, tokens of service accounts. Out: the same [`Objects`](crate::objects::Objects) that the
//! store of standalone mode gives, and, from the one replica that leads, what others in the cluster read of the mesh.

mod convert;
mod events;
mod leader;
mod lease;
mod presence;
mod retry;
mod review;
mod secret;
mod source;
mod standing;
mod tables;
mod trust;
mod watch;
pub mod webhook;

pub use convert::ANNOTATION_SOURCE;
pub use leader::lead;
pub use review::Reviewer;
pub use secret::open_ca;
pub use source::Source;
pub use tables::{Standing, View};
