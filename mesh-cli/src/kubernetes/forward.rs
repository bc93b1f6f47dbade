//! A connection to a port on a pod's loopback, through the API server and the pod's node; and why there is none.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use k8s_openapi::api::core::v1::Pod;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::Cluster;
use crate::failure::{Exit, Failure, sentence};

/// Where it leads to.
#[derive(Clone, Debug)]
pub struct Target {
    pub namespace: String,
    pub pod: String,
    pub port: u16,
}

/// Why there is no connection.
pub enum NoForward {
    /// There is no such pod any more.
    Gone(Failure),
    Failed(Failure),
}

impl From<NoForward> for Failure {
    fn from(none: NoForward) -> Self {
        let (NoForward::Gone(failure) | NoForward::Failed(failure)) = none;
        failure
    }
}

/// What the node has said when it could not connect, or not any more: it says so after the connection to it was made.
#[derive(Clone, Debug)]
pub struct Said {
    target: Target,
    reason: Arc<OnceLock<String>>,
}

impl Said {
    pub fn failure(&self) -> Option<Failure> {
        let Target { namespace, pod, port } = &self.target;
        let reason = self.reason.get()?;
        Some(if reason.contains("connection refused") {
            Failure::with(Exit::Unreachable, format!("Nothing listens on port {port} in the pod {namespace}/{pod}."))
                .hint(format!("`kubectl -n {namespace} logs {pod} --all-containers` tells what its programs do."))
        } else {
            self.target.unreachable(reason)
        })
    }
}

impl Target {
    pub async fn connect(&self, cluster: &Cluster) -> Result<(Forwarded, Said), NoForward> {
        let Self { namespace, pod, port } = self;
        let forwarder = cluster.namespaced::<Pod>(namespace).portforward(pod, &[*port]).await;
        let mut forwarder = forwarder.map_err(|error| self.refused(error))?;
        let (stream, error) = (forwarder.take_stream(*port), forwarder.take_error(*port));
        let stream = stream.ok_or_else(|| NoForward::Failed(self.unreachable("the API server forwards nothing")))?;
        let said = Said { target: self.clone(), reason: Arc::default() };
        let error = error.map(|error| Box::pin(error) as Pin<Box<dyn Future<Output = _> + Send>>);
        Ok((Forwarded { stream, error, reason: said.reason.clone() }, said))
    }

    fn refused(&self, error: kube::Error) -> NoForward {
        let Self { namespace, pod, .. } = self;
        let status = match error {
            kube::Error::Api(status) => status,
            error => return NoForward::Failed(error.into()),
        };
        match status.code {
            404 => NoForward::Gone(
                Failure::with(Exit::Unreachable, format!("The pod {namespace}/{pod} is gone."))
                    .hint("If it was replaced a moment ago, try again."),
            ),
            403 => NoForward::Failed(
                Failure::with(
                    Exit::Unreachable,
                    format!("You may not forward ports of pods in {namespace}: {}", sentence(&status.message)),
                )
                .hint(format!(
                    "This needs the right to get and create pods/portforward there; `kubectl -n {namespace} auth can-i get \
                     pods/portforward`, and the same with `create`, tell whether you have it."
                )),
            ),
            401 | 429 | 503 | 504 => NoForward::Failed(kube::Error::Api(status).into()),
            _ => NoForward::Failed(self.unreachable(&status.message)),
        }
    }

    fn unreachable(&self, reason: &str) -> Failure {
        let Self { namespace, pod, port } = self;
        let message = format!("Port {port} of the pod {namespace}/{pod} cannot be reached: {}", sentence(reason));
        Failure::with(Exit::Unreachable, message)
            .hint(format!("`kubectl -n {namespace} get pod {pod} -o wide` shows how the pod is, and on which node."))
    }
}

/// Ends with an error when the node says that there is no connection.
pub struct Forwarded {
    stream: DuplexStream,
    error: Option<Pin<Box<dyn Future<Output = Option<String>> + Send>>>,
    reason: Arc<OnceLock<String>>,
}

impl AsyncRead for Forwarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = &mut self.error
            && let Poll::Ready(said) = error.as_mut().poll(cx)
        {
            self.error = None;
            if let Some(reason) = said {
                let _ = self.reason.set(reason.clone());
                return Poll::Ready(Err(io::Error::other(reason)));
            }
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Forwarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
