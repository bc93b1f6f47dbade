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
pub const PLATFORM_LAG: Duration = Duration::from_secs(3);

/// How things stand with a workload that is to end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nobody is told to call it any more, from this revision on.
    Out(u64),
    /// Its services have nobody else yet.
    Last,
    /// Its proxy ends anyway, and the platform does not know of it.
    Unknown,
}

/// Waits until the platform takes the workload out and, unless its proxy ends anyway, until it is not the last one; not
/// longer than `until`.
pub(super) async fn seen(
    snapshots: &watch::Receiver<Arc<Snapshot>>,
    identity: &Identity,
    request: &DepartRequest,
    until: Instant,
) -> Result<Standing, Status> {
    let name = Name::new(&identity.namespace, &request.name);
    let mut snapshots = snapshots.clone();
    check_owner(&snapshots.borrow().model, identity, &name)?;
    let deadline = if request.ending { until } else { Instant::now() + PLATFORM_LAG };
    let leaving = snapshots.wait_for(|snapshot| leaves(&snapshot.model, &name, request.ending));
    match tokio::time::timeout_at(deadline.into(), leaving).await {
        Ok(Ok(snapshot)) if request.ending => return Ok(Standing::Out(snapshot.revision)),
        Ok(Ok(_)) => {}
        Ok(Err(_)) => return Err(Status::unavailable("mesh-control is stopping")),
        Err(_) if request.ending => return Ok(Standing::Unknown),
        Err(_) => {
            return Err(Status::failed_precondition(format!("{name} is not being ended by the platform: it stays")));
        }
    }
    let replaced = snapshots.wait_for(|snapshot| !snapshot.model.needs(&name));
    match tokio::time::timeout_at(until.into(), replaced).await {
        Ok(Ok(snapshot)) => Ok(Standing::Out(snapshot.revision)),
        Ok(Err(_)) => Err(Status::unavailable("mesh-control is stopping")),
        Err(_) => Ok(Standing::Last),
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

    const TERMINATING: &str = "meshctl.dev/terminating: 'true'";

    /// A snapshot with one pod, if `spec` is not empty.
    fn snapshot(revision: u64, labels: &str, spec: &str) -> Arc<Snapshot> {
        if spec.is_empty() { pods(revision, &[]) } else { pods(revision, &[("pod", labels, spec)]) }
    }

    /// A snapshot with pods: name, labels, spec.
    fn pods(revision: u64, pods: &[(&str, &str, &str)]) -> Arc<Snapshot> {
        let pod = |(name, labels, spec): &(&str, &str, &str)| {
            format!(
                "---\napiVersion: meshctl.dev/v1alpha1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\nspec: {{{spec}, mesh: true}}\n"
            )
        };
        let objects = parse_yaml("test", &pods.iter().map(pod).collect::<String>()).unwrap();
        let objects = objects.into_iter().map(|object: Object| (object.key(), Arc::new(object))).collect();
        let settings = Settings { trust_domain: "mesh.local".to_owned() };
        let model = build(&objects, &settings, &Addresses::default());
        assert_eq!(model.conditions(&Key::new(Kind::WorkloadEntry, "shop", "pod")).len(), 0);
        Arc::new(Snapshot::new(Commit { revision, at: Instant::now() }, &[], model, None))
    }

    fn identity(account: &str) -> Identity {
        Identity::new("mesh.local", "shop", account).unwrap()
    }

    async fn ask(snapshots: &watch::Receiver<Arc<Snapshot>>, ending: bool) -> Result<Standing, Status> {
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
        sender.send_replace(snapshot(2, TERMINATING, &spec));
        assert_eq!(waiting.await.unwrap().unwrap(), Standing::Out(2));
    }

    #[tokio::test]
    async fn the_last_one_of_a_service_waits_for_another() {
        let (sender, snapshots) = watch::channel(snapshot(1, TERMINATING, SERVING));
        assert_eq!(ask(&snapshots, false).await.unwrap(), Standing::Last);
        // A proxy that ends anyway does not.
        assert_eq!(ask(&snapshots, true).await.unwrap(), Standing::Out(1));
        let waiting = tokio::spawn(async move { ask(&snapshots, false).await });
        tokio::task::yield_now().await;
        sender.send_replace(pods(2, &[("pod", TERMINATING, SERVING), ("other", "", SERVING)]));
        assert_eq!(waiting.await.unwrap().unwrap(), Standing::Out(2));
    }

    #[tokio::test]
    async fn a_proxy_that_ends_waits_only_while_somebody_may_call() {
        let (sender, snapshots) = watch::channel(snapshot(1, "", SERVING));
        assert_eq!(ask(&snapshots, true).await.unwrap(), Standing::Unknown);
        sender.send_replace(snapshot(2, "", &format!("{SERVING}, healthy: false")));
        assert_eq!(ask(&snapshots, true).await.unwrap(), Standing::Out(2));
        // A job, which serves nothing.
        sender.send_replace(snapshot(3, "", "serviceAccount: reviews, addresses: [10.0.0.1]"));
        assert_eq!(ask(&snapshots, true).await.unwrap(), Standing::Out(3));
        sender.send_replace(snapshot(4, "", ""));
        assert_eq!(ask(&snapshots, true).await.unwrap(), Standing::Out(4));
    }
}
