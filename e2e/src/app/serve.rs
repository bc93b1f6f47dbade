//! What servers have in common: how they listen, and HTTP of either version with one function that answers.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;

use anyhow::Context;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;

pub async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

pub async fn http<F>(listener: TcpListener, answer: fn(Request<Incoming>) -> F) -> anyhow::Result<()>
where
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answering = answer(request);
                async { Ok::<_, Infallible>(answering.await) }
            });
            let builder = auto::Builder::new(TokioExecutor::new());
            // A client that goes away is none of the server's business.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
