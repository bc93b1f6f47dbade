//! The addresses of the control plane's host name, remembered: a proxy that has found it once finds it again while the cluster's
//! DNS is away, as when the node that it runs on is drained.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a name server is waited for by somebody who knows an answer from before.
const PATIENCE: Duration = Duration::from_millis(500);
/// The same for who knows none, and asks again: a question that got lost is not missed before the resolver's five seconds.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);

/// A host name and a port. Clones remember the same.
#[derive(Clone, Debug)]
pub struct Host {
    pub name: String,
    pub port: u16,
    known: Arc<Mutex<Vec<SocketAddr>>>,
}

impl PartialEq for Host {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, self.port) == (&other.name, other.port)
    }
}

impl Eq for Host {}

impl Host {
    pub fn new(name: String, port: u16) -> Self {
        Self { name, port, known: Arc::default() }
    }

    /// Where to connect to, in the order of the answer.
    pub async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let (name, port) = (self.name.clone(), self.port);
        self.answered(async move { Ok(tokio::net::lookup_host((name, port)).await?.collect()) }).await
    }

    /// What `lookup` finds or, if that fails or takes long, what the last one found.
    async fn answered(
        &self,
        lookup: impl Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    ) -> io::Result<Vec<SocketAddr>> {
        let known = self.known();
        // An answer that comes late is for the next one who asks.
        let mut finding = tokio::spawn(self.clone().find(lookup));
        let patience = if known.is_empty() { FIRST_PATIENCE } else { PATIENCE };
        let failure = match tokio::time::timeout(patience, &mut finding).await {
            Ok(Ok(Ok(found))) => return Ok(found),
            Ok(Ok(Err(error))) => error,
            Ok(Err(ended)) => io::Error::other(ended),
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, "the name server did not answer in time"),
        };
        if known.is_empty() {
            return Err(failure);
        }
        tracing::debug!(host = self.name, %failure, "the control plane is looked for where it was before");
        Ok(known)
    }

    async fn find(self, lookup: impl Future<Output = io::Result<Vec<SocketAddr>>>) -> io::Result<Vec<SocketAddr>> {
        let found = lookup.await?;
        if found.is_empty() {
            let reason = format!("the host name {:?} has no address", self.name);
            return Err(io::Error::new(io::ErrorKind::NotFound, reason));
        }
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&found);
        Ok(found)
    }

    fn known(&self) -> Vec<SocketAddr> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(text.split(' ').filter(|it| !it.is_empty()).map(|address| address.parse().unwrap()).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_found_before_helps_where_nothing_is_found_now() {
        let host = Host::new("control.example".to_owned(), 15012);
        fn refused() -> io::Result<Vec<SocketAddr>> {
            Err(io::Error::from(io::ErrorKind::ConnectionRefused))
        }
        // Nothing is known: the answer counts, and one that takes long at the next time.
        assert_eq!(host.answered(async { refused() }).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(host.answered(async { found("") }).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        let slow = async {
            tokio::time::sleep(Duration::from_secs(4)).await;
            found("10.0.0.1:1 10.0.0.2:1")
        };
        let began = tokio::time::Instant::now();
        assert_eq!(host.answered(slow).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed(), FIRST_PATIENCE);
        tokio::time::sleep(Duration::from_secs(4)).await;
        let first = found("10.0.0.1:1 10.0.0.2:1").unwrap();
        for failure in [refused(), found("")] {
            assert_eq!(host.answered(async { failure }).await.unwrap(), first);
        }
        let began = tokio::time::Instant::now();
        assert_eq!(host.clone().answered(std::future::pending()).await.unwrap(), first);
        assert_eq!(began.elapsed(), PATIENCE);
        // It may have moved, and the answer be late.
        let late = async {
            tokio::time::sleep(PATIENCE * 2).await;
            found("10.0.0.9:1")
        };
        assert_eq!(host.answered(late).await.unwrap(), first);
        tokio::time::sleep(PATIENCE * 2).await;
        assert_eq!(host.answered(async { refused() }).await.unwrap(), found("10.0.0.9:1").unwrap());
        let moved = host.clone().answered(async { found("10.0.0.3:1") }).await.unwrap();
        assert_eq!(host.answered(async { refused() }).await.unwrap(), moved);
    }
}
