//! When a workload that a platform discovers counts as leaving: its proxy's word alone is not enough.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_common::identity::Identity;
use mesh_common::proto::workload::DepartRequest;
use tokio::sync::watch;
use tonic::Status;

use crate::model::{Model, Name};
use crate::snapshot::Snapshot;

/// How much earlier than this control plane others, such as a kubelet, may have heard that a workload is to end.
const PLATFORM_LAG: Duration = Duration::from_secs(3);

/// Waits until the platform takes the workload out. Gives the revision that is without it, or `None` when a proxy that
/// ends anyway has waited until `until` for nothing.
pub(super) async fn seen(
    snapshots: &watch::Receiver<Arc<Snapshot>>,
    identity: &Identity,
    request: &DepartRequest,
    until: Instant,
) -> Result<Option<u64>, Status> {
    let name = Name::new(&identity.namespace, &request.name);
    let mut snapshots = snapshots.clone();
    check_owner(&snapshots.borrow().model, identity, &name)?;
    let deadline = if request.ending { until } else { Instant::now() + PLATFORM_LAG };
    let leaving = snapshots.wait_for(|snapshot| leaves(&snapshot.model, &name, request.ending));
    match tokio::time::timeout_at(deadline.into(), leaving).await {
        Ok(Ok(snapshot)) => Ok(Some(snapshot.revision)),
        Ok(Err(_)) => Err(Status::unavailable("mesh-control is stopping")),
        Err(_) if request.ending => Ok(None),
        Err(_) => Err(Status::failed_precondition(format!("{name} is not being ended by the platform: it stays"))),
    }
}

fn check_owner(model: &Model, identity: &Identity, name: &Name) -> Result<(), Status> {
    let owner = model.workload(&name.namespace, &name.name).and_then(|workload| workload.identity.as_ref());
    match owner {
        Some(owner) if owner != identity => {
            Err(Status::permission_denied(format!("{name} belongs to another service account")))
        }
        _ => Ok(()),
    }
}

/// A proxy that ends anyway is waited for only as long as somebody may call its workload.
fn leaves(model: &Model, name: &Name, ending: bool) -> bool {
    match model.workload(&name.namespace, &name.name) {
        Some(workload) => workload.is_terminating() || ending && !(workload.healthy && model.serves(name)),
        None => ending,
    }
}

#[cfg(test)]
mod tests {
    use mesh_common::resource::{Key, Kind, Object, parse_yaml};
    use tonic::Code;

    use super::*;
    use crate::model::{Addresses, Settings, build};
    use crate::snapshot::Commit;

    const SERVING: &str = "service: reviews, serviceAccount: reviews, addresses: [10.0.0.1], ports: [{port: 9080}]";

    /// A snapshot with one pod, if `spec` is not empty.
    fn snapshot(revision: u64, labels: &str, spec: &str) -> Arc<Snapshot> {
        let text = format!(
            "apiVersion: meshctl.dev/v1alpha1\nkind: WorkloadEntry\nmetadata: {{name: pod, namespace: shop, labels: {{{labels}}}}}\nspec: {{{spec}, mesh: true}}\n"
        );
        let objects = if spec.is_empty() { Vec::new() } else { parse_yaml("test", &text).unwrap() };
        let objects = objects.into_iter().map(|object: Object| (object.key(), Arc::new(object))).collect();
        let settings = Settings { trust_domain: "mesh.local".to_owned() };
        let model = build(&objects, &settings, &Addresses::default());
        assert_eq!(model.conditions(&Key::new(Kind::WorkloadEntry, "shop", "pod")).len(), 0);
        Arc::new(Snapshot::new(Commit { revision, at: Instant::now() }, &[], model, None))
    }

    fn identity(account: &str) -> Identity {
        Identity::new("mesh.local", "shop", account).unwrap()
    }

    async fn ask(snapshots: &watch::Receiver<Arc<Snapshot>>, ending: bool) -> Result<Option<u64>, Status> {
        let request = DepartRequest { name: "pod".to_owned(), wait_ms: 0, ending };
        seen(snapshots, &identity("reviews"), &request, Instant::now() + Duration::from_millis(20)).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxys_word_alone_takes_no_pod_out() {
        let (_sender, snapshots) = watch::channel(snapshot(1, "", SERVING));
        assert_eq!(ask(&snapshots, false).await.unwrap_err().code(), Code::FailedPrecondition);
        let request = DepartRequest { name: "pod".to_owned(), ..DepartRequest::default() };
        let refused = seen(&snapshots, &identity("web"), &request, Instant::now()).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        let (_sender, nobody) = watch::channel(snapshot(1, "", ""));
        assert_eq!(ask(&nobody, false).await.unwrap_err().code(), Code::FailedPrecondition);
    }

    #[tokio::test]
    async fn the_platform_may_say_so_a_little_later() {
        let (sender, snapshots) = watch::channel(snapshot(1, "", SERVING));
        let waiting = tokio::spawn(async move { ask(&snapshots, false).await });
        tokio::task::yield_now().await;
        let spec = format!("{SERVING}, healthy: false");
        sender.send_replace(snapshot(2, "meshctl.dev/terminating: 'true'", &spec));
        assert_eq!(waiting.await.unwrap().unwrap(), Some(2));
    }

    #[tokio::test]
    async fn a_proxy_that_ends_waits_only_while_somebody_may_call() {
        let (sender, snapshots) = watch::channel(snapshot(1, "", SERVING));
        assert_eq!(ask(&snapshots, true).await.unwrap(), None);
        sender.send_replace(snapshot(2, "", &format!("{SERVING}, healthy: false")));
        assert_eq!(ask(&snapshots, true).await.unwrap(), Some(2));
        // A job, which serves nothing.
        sender.send_replace(snapshot(3, "", "serviceAccount: reviews, addresses: [10.0.0.1]"));
        assert_eq!(ask(&snapshots, true).await.unwrap(), Some(3));
        sender.send_replace(snapshot(4, "", ""));
        assert_eq!(ask(&snapshots, true).await.unwrap(), Some(4));
    }
}
