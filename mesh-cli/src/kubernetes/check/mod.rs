//! What can be wrong with a mesh in a cluster, and how to mend it: told from what the API server has, with no help of the
//! control plane, which may be what is wrong.

mod control;
mod pods;
mod trial;
mod trust;

use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::kubernetes::Cluster;
use crate::views::findings::{Finding, Level};

/// A replica is available before all nodes route its Service to it, and before it has written its root certificates.
const SETTLE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(500);

/// Looks again for a while, as long as something is wrong.
pub async fn settled(cluster: &Cluster) -> Result<Vec<Finding>, Failure> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let found = now(cluster).await?;
        if found.iter().all(|finding| finding.level != Level::Error) || Instant::now() > deadline {
            return Ok(found);
        }
        tokio::time::sleep(POLL).await;
    }
}

pub async fn now(cluster: &Cluster) -> Result<Vec<Finding>, Failure> {
    let mut found = control::definitions(cluster).await?;
    let Some(deployment) = control::deployment(cluster).await? else {
        found.push(Finding::error(
            "mesh-control",
            "it is not installed in this cluster",
            "install it with `meshctl install`",
        ));
        return Ok(found);
    };
    found.extend(control::replicas(cluster, &deployment).await?);
    found.extend(control::plugin(cluster).await?);
    found.extend(trust::webhooks(cluster).await?);
    found.extend(trust::bundles(cluster).await?);
    found.extend(pods::proxies(cluster, &control::version(&deployment)).await?);
    Ok(found)
}
