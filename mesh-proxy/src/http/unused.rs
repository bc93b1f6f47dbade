//! When an HTTP/2 connection has had no request for too long. HTTP/1.1 waits for its next request by itself; here requests
//! come side by side, so it is looked at now and then whether there was any, which costs the requests nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::connection::Connection;

/// Looks this often in the time that a connection may be unused, so that it ends at most a quarter later.
const LOOKS: u32 = 4;

/// Ends when the connection was without a request for its idle timeout. `holders`: references to it besides those of its
/// requests and the one given here.
pub(crate) async fn unused(conn: Arc<Connection>, holders: usize) {
    let timeout = conn.manager.idle_timeout;
    if timeout.is_zero() {
        return std::future::pending().await;
    }
    let interval = (timeout / LOOKS).max(Duration::from_millis(1));
    let mut since = Instant::now();
    loop {
        tokio::time::sleep(interval).await;
        let busy = Arc::strong_count(&conn) > holders + 1;
        if conn.signals.has_served() || busy {
            since = Instant::now();
        } else if since.elapsed() >= timeout {
            return;
        }
    }
}
