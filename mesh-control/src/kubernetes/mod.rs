//! The control plane in a Kubernetes cluster: the API server is its store, and everything it knows comes from there.
//!
//! In: watches of the API server, tokens of service accounts. Out: the same [`Objects`](crate::objects::Objects) that the
//! store of standalone mode gives, and, from the one replica that leads, what others in the cluster read of the mesh.

mod review;

pub use review::Reviewer;
