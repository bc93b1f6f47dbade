//! Connections that stop being HTTP: WebSocket and other upgrades, and tunnels made with CONNECT.

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use super::exchange::Exchange;
use crate::error::{Error, Kind};
use crate::tcp::copy::{Broken, Count, Paces, Stream, copy};

/// Carries bytes between the two connections once both have left HTTP behind.
pub(crate) fn tunnel(downstream: OnUpgrade, upstream: OnUpgrade, mut exchange: Box<Exchange>) {
    let tunnel = exchange.conn.signals.tunnel();
    tokio::spawn(async move {
        match carry(downstream, upstream, &mut exchange).await {
            Ok(()) => exchange.complete(),
            Err(error) => exchange.error = Some(error),
        }
        drop(tunnel);
    });
}

async fn carry(downstream: OnUpgrade, upstream: OnUpgrade, exchange: &mut Exchange) -> Result<(), Error> {
    let upstream = upstream.await.map_err(|e| Error::because(Kind::UpstreamReset, e))?;
    let downstream = downstream.await.map_err(|e| Error::because(Kind::Downstream, e))?;
    let idle = exchange.idle_timeout();
    let idle = (!idle.is_zero()).then_some(idle);
    let paces = Paces { forth: exchange.up(), back: exchange.down.take(), fault: exchange.slowed };
    let copied = copy(&mut TokioIo::new(downstream), &mut TokioIo::new(upstream), idle, paces, exchange).await;
    copied.map_err(|broken| match broken {
        Broken::Downstream(e) => Error::because(Kind::Downstream, e),
        Broken::Upstream(e) => Error::because(Kind::UpstreamReset, e),
        Broken::Idle => Kind::StreamIdle.into(),
    })
}

impl Stream for TokioIo<Upgraded> {}

impl Count for Exchange {
    fn received(&mut self, bytes: u64) {
        self.tunnelled += bytes;
    }

    fn sent(&mut self, bytes: u64) {
        self.response_bytes += bytes;
    }
}
