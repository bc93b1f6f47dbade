//! The doors of mesh-control: sockets, TLS, and the limits that keep strangers from doing harm.
//!
//! In: connections from anybody. Out: HTTP/2 connections with what is known of the peer, handed to gRPC services.

mod accept;
mod connection;
mod sockets;
#[cfg(test)]
mod tests;

use std::time::Duration;

use tonic::transport::Server;

pub use accept::{Door, DoorTls, Limits, Listener};
pub use connection::Connection;
pub use sockets::{SocketError, bind_tcp, bind_unix, remove};

/// The settings that all gRPC servers here share.
pub fn grpc() -> Server {
    Server::builder()
        // A peer that is gone without a word is noticed within this time.
        .http2_keepalive_interval(Some(Duration::from_secs(15)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .http2_max_header_list_size(32 << 10)
        .max_concurrent_streams(256)
        .http2_max_pending_accept_reset_streams(Some(64))
        .http2_max_local_error_reset_streams(Some(256))
}
