//! Keeps the kernel's rules for datagrams to the application as the policies have it.

use std::sync::Arc;

use mesh_common::names::LISTENER_INBOUND;

use crate::authorization::datagrams::{Barrier, barriers, closed};
use crate::config::{Authorization, Listener, NetworkFilter};
use crate::intercept::{self, guard_datagrams};
use crate::listen::Context;

/// What was last written.
#[derive(Debug)]
pub struct Guard {
    ctx: Arc<Context>,
    written: Vec<Barrier>,
}

impl Guard {
    /// What the policies of the moment say is in force when this returns. Needs CAP_NET_ADMIN.
    pub async fn begin(ctx: Arc<Context>) -> Result<Self, intercept::Error> {
        let written = of_now(&ctx);
        write(written.clone()).await?;
        Ok(Self { ctx, written })
    }

    /// Follows the policies for as long as it is polled.
    pub async fn follow(mut self) {
        let mut changes = self.ctx.store.listener_changes();
        loop {
            let now = of_now(&self.ctx);
            if now != self.written {
                match write(now.clone()).await {
                    Ok(()) => self.written = now,
                    Err(error) => {
                        tracing::error!(%error, "policies for datagrams cannot be written: none comes in");
                        // Written again with the next change.
                        self.written = vec![closed()];
                        if let Err(error) = write(self.written.clone()).await {
                            tracing::error!(%error, "nor can that be written");
                        }
                    }
                }
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Without a listener the last one goes on, and so do its policies.
fn of_now(ctx: &Context) -> Vec<Barrier> {
    ctx.store.load().listener(LISTENER_INBOUND).map_or_else(Vec::new, |listener| of_listener(listener))
}

/// What stands before byte streams to ports that nobody names: whatever it says of one port, it says by that port.
fn of_listener(listener: &Listener) -> Vec<Barrier> {
    let all = listener.chains.iter().chain(&listener.default_chain);
    let streams = all.filter_map(|chain| match &chain.filter {
        NetworkFilter::Tcp(proxy) => Some((chain.matches.destination_port.is_some(), &proxy.authorization)),
        NetworkFilter::Http(_) => None,
    });
    let authorization: Option<&Authorization> = streams.min_by_key(|(of_port, _)| *of_port).map(|(_, it)| it);
    authorization.map(barriers).unwrap_or_default()
}

async fn write(barriers: Vec<Barrier>) -> Result<(), intercept::Error> {
    match tokio::task::spawn_blocking(move || guard_datagrams(&barriers)).await {
        Ok(written) => written,
        Err(error) => Err(intercept::Error::Netlink(std::io::Error::other(error))),
    }
}
