//! Copies of requests to another cluster, whose answers nobody waits for.
//!
//! In: the head of a request and what its body brings as it is read. Out: the same request with `-shadow` added to its
//! host. A mirror never delays or fails the request: one that cannot keep up is cut off.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;

use crate::config::Mirror;
use crate::error::Error;
use crate::http::{Connection, Head, RequestBody, Upload};
use crate::trace::Trace;
use crate::upstream::Flow;

/// The most time that a mirrored request may take.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Sends a copy if the mirror's share says so. The body is copied from here on, so nothing of it may have been read.
pub(crate) fn send(
    mirror: &Mirror,
    head: &Head,
    upload: Option<&Upload>,
    trace: Option<&mut Trace>,
    conn: &Arc<Connection>,
) {
    if !mirror.share.hit(mirror.parts_per_million) {
        return;
    }
    let body = upload.map_or_else(RequestBody::empty, RequestBody::copy_of);
    let mut head = head.copy();
    head.shadow();
    if let Some(trace) = trace {
        trace.tell_apart(&mut head.headers);
    }
    let (conn, cluster) = (conn.clone(), mirror.cluster.clone());
    tokio::spawn(async move {
        let outcome = tokio::time::timeout(TIMEOUT, copy(head, body, &conn, &cluster)).await;
        if let Ok(Err(error)) = outcome {
            tracing::debug!(%cluster, %error, "a mirrored request failed");
        }
    });
}

async fn copy(mut head: Head, body: RequestBody, conn: &Connection, cluster: &str) -> Result<(), Error> {
    let view = conn.ctx.upstreams.view(cluster).await?;
    let _in_use = view.usage.request(&view.cluster.limits)?;
    let target = view.choose(&conn.downstream, &[], None)?;
    let version = head.version_for(&target);
    let request = head.request(body, &target, version, false)?;
    let mut response = target.send(request, version, Flow::Free).await.map_err(|failed| failed.error)?;
    // Read to the end, so that the connection can be used again.
    while let Some(frame) = response.frame().await {
        frame.map_err(|(error, _)| error)?;
    }
    Ok(())
}
