//! Waiting until the source has come as far as somebody knows or expects that it will.

use std::sync::Arc;
use std::time::Duration;

use mesh_common::proto::control::{ObjectKey, ObjectVersion};
use mesh_common::resource::Key;
use tokio::sync::watch::Receiver;
use tonic::Status;

use super::convert;
use crate::objects::Objects;

/// Waits until each of these is there at its version or later, or is gone if it has none.
pub(super) async fn seen(
    mut objects: Receiver<Arc<Objects>>,
    wanted: &[ObjectVersion],
    timeout: Duration,
) -> Result<(), Status> {
    let wanted = wanted.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let all = objects.wait_for(|objects| wanted.iter().all(|(key, version)| has(objects, key, *version)));
    match tokio::time::timeout(timeout, all).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(Status::unavailable("mesh-control is stopping")),
        Err(_) => Err(Status::deadline_exceeded("mesh-control has not heard of the change from the API server yet")),
    }
}

/// Waits until there is this revision.
pub(super) async fn made(mut objects: Receiver<Arc<Objects>>, revision: u64, timeout: Duration) -> Result<(), Status> {
    let there = tokio::time::timeout(timeout, objects.wait_for(|objects| objects.revision >= revision)).await;
    let there = there.map(|objects| objects.map(|_| ()));
    let newest = match there {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(_)) => return Err(Status::unavailable("mesh-control is stopping")),
        Err(_) => objects.borrow().revision,
    };
    Err(Status::deadline_exceeded(format!(
        "revision {revision} did not come to be in time: the newest is {newest}; leave it out to wait for that"
    )))
}

fn parse(wanted: &ObjectVersion) -> Result<(Key, Option<u64>), Status> {
    let ObjectVersion { kind, namespace, name, resource_version } = wanted.clone();
    let key = convert::key(&ObjectKey { kind, namespace, name })?;
    let version = convert::given(&resource_version).map(str::parse).transpose();
    let version = version.map_err(|_| {
        Status::invalid_argument(format!("{resource_version:?} is not a resourceVersion that can be compared"))
    })?;
    Ok((key, version))
}

/// Versions of one kind are numbers that grow, so one that was seen later says that this one was seen, whatever became of it.
fn has(objects: &Objects, key: &Key, version: Option<u64>) -> bool {
    let current = objects.objects.get(key);
    let Some(version) = version else { return current.is_none() };
    let current = current.and_then(|object| object.metadata().resource_version.as_deref()?.parse::<u64>().ok());
    current.max(objects.seen.get(&key.kind).copied()).is_some_and(|seen| seen >= version)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use mesh_common::resource::{Kind, Object};
    use tokio::sync::watch;

    use super::*;

    fn objects(version: u64, there: bool) -> Arc<Objects> {
        let json = serde_json::json!({"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 80}]},
            "metadata": {"name": "web", "namespace": "shop", "resourceVersion": version.to_string()}});
        let object = Object::from_json(&json.to_string()).unwrap();
        let objects = there.then(|| (object.key(), Arc::new(object))).into_iter().collect();
        let seen = [(Kind::Service, version)].into();
        Arc::new(Objects { revision: version, objects, committed_at: Instant::now(), seen, accounts: None })
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_waited_for() {
        let wanted = |version: &str| ObjectVersion {
            kind: "Service".to_owned(),
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            resource_version: version.to_owned(),
        };
        let (sender, receiver) = watch::channel(objects(5, true));
        let short = Duration::from_millis(10);
        assert!(seen(receiver.clone(), &[wanted("5")], short).await.is_ok());
        let late = seen(receiver.clone(), &[wanted("5"), wanted("6")], short).await.unwrap_err();
        assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
        assert!(seen(receiver.clone(), &[wanted("")], short).await.is_err());
        assert_eq!(
            seen(receiver.clone(), &[wanted("x")], short).await.unwrap_err().code(),
            tonic::Code::InvalidArgument
        );
        let waiting = tokio::spawn({
            let receiver = receiver.clone();
            async move { seen(receiver, &[wanted("")], Duration::from_secs(5)).await }
        });
        sender.send_replace(objects(7, false));
        assert!(waiting.await.unwrap().is_ok());
        assert!(seen(receiver, &[wanted("6")], short).await.is_ok());
    }
    #[tokio::test(start_paused = true)]
    async fn a_revision_that_is_to_come_is_waited_for() {
        let (sender, receiver) = watch::channel(objects(5, true));
        let begun = tokio::time::Instant::now();
        for past in [0, 4, 5] {
            made(receiver.clone(), past, Duration::ZERO).await.unwrap();
        }
        let waiting = tokio::spawn(made(receiver.clone(), 7, Duration::from_secs(30)));
        for revision in [6, 8] {
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert!(!waiting.is_finished());
            sender.send_replace(objects(revision, true));
        }
        waiting.await.unwrap().unwrap();
        assert_eq!(begun.elapsed(), Duration::from_secs(20));

        let late = made(receiver.clone(), 9, Duration::from_secs(30)).await.unwrap_err();
        assert_eq!((late.code(), begun.elapsed()), (tonic::Code::DeadlineExceeded, Duration::from_secs(50)));
        assert!(late.message().contains("revision 9") && late.message().contains("newest is 8"), "{}", late.message());
        drop(sender);
        assert_eq!(made(receiver, 9, Duration::from_secs(1)).await.unwrap_err().code(), tonic::Code::Unavailable);
    }
}
