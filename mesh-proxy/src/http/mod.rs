//! HTTP: a downstream connection comes in, its requests go to upstream clusters and the responses go back.
//!
//! [`serve`] reads requests with hyper; [`pipeline`] says what happens to each. Bodies are streamed in both directions:
//! the next piece is read when the last one has been taken.

mod connection;
mod cors;
mod deadline;
mod drain;
mod exchange;
mod framing;
mod gathered;
mod head;
mod hedge;
mod io;
mod load;
mod paced;
mod pipeline;
mod reply;
mod request_body;
mod response_body;
#[cfg(test)]
pub(crate) mod tests;
mod timer;
mod unused;
mod upgrade;

pub(crate) use connection::Connection;
pub use connection::serve;
pub(crate) use connection::{serve_application, serve_peer};
pub(crate) use exchange::Exchange;
pub(crate) use gathered::Gathered;
pub(crate) use head::concerns_connection;
pub(crate) use head::{Head, remove_hop_by_hop};
pub use io::DownstreamIo;
pub(crate) use request_body::{BodyError, REPLAY_LIMIT, RequestBody, Upload};
