//! Applications for the tests, which know nothing of the mesh: servers that say who they are, and clients that count.

pub mod authorize;
pub mod collector;
pub mod echo;
pub mod garbage;
pub mod load;
pub mod peer;
mod serve;
pub mod sign;
pub mod tls;
