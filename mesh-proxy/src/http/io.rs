use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A connection that was accepted.
pub trait DownstreamIo: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Makes closing the connection look like a crash to the peer (TCP RST), for injected faults.
    fn reset_on_close(&self);
}

impl DownstreamIo for TcpStream {
    fn reset_on_close(&self) {
        // Nothing to do about a failure: the connection is then closed in the ordinary way.
        let _ = socket2::SockRef::from(self).set_linger(Some(Duration::ZERO));
    }
}

impl DownstreamIo for tokio_rustls::server::TlsStream<TcpStream> {
    fn reset_on_close(&self) {
        self.get_ref().0.reset_on_close();
    }
}
