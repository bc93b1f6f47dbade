//! What has to be done because time passes: ends of faults, tokens, workloads and certificates.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use mesh_common::resource::{Kind, Object};

use crate::ca::ServerTls;
use crate::registry::Registry;
use crate::store::{Store, StoreError, blocking};

pub struct House {
    pub store: Store,
    pub registry: Registry,
    pub tls: Arc<ServerTls>,
}

impl House {
    /// Call it once a second or so. What fails is logged, and tried again the next time.
    pub async fn tick(&self, now: Timestamp, instant: Instant) {
        match self.registry.expire(instant).await {
            Ok(gone) => {
                gone.iter().for_each(|key| tracing::info!(workload = %key, "removed, it did not come back in time"))
            }
            Err(error) => tracing::error!(%error, "cannot remove workloads that are gone"),
        }
        match self.registry.mark_lost(instant).await {
            Ok(lost) => lost.iter().for_each(|key| tracing::info!(workload = %key, "has not come back so far")),
            Err(error) => tracing::error!(%error, "cannot mark workloads that are lost"),
        }
        if let Err(error) = self.end_faults(now).await {
            tracing::error!(%error, "cannot remove faults that have expired; proxies end them by themselves");
        }
        let tokens = self.store.tokens();
        if let Err(error) = blocking(move || tokens.purge(now)).await {
            tracing::error!(%error, "cannot remove tokens that have expired; they are refused nevertheless");
        }
        self.tls.keep(now).await;
    }

    async fn end_faults(&self, now: Timestamp) -> Result<(), StoreError> {
        let objects = self.store.current();
        let over: Vec<Arc<Object>> = objects
            .select(Some(Kind::FaultInjection), None, None)
            .filter(|(_, object)| has_expired(object, now))
            .map(|(_, object)| object.clone())
            .collect();
        if over.is_empty() {
            return Ok(());
        }
        let store = self.store.clone();
        let (gone, revision) = blocking(move || store.delete_unchanged(&over)).await?;
        gone.iter().for_each(|key| tracing::info!(object = %key, revision, "removed, its time is over"));
        Ok(())
    }
}

pub(crate) fn has_expired(object: &Object, now: Timestamp) -> bool {
    let Object::FaultInjection(fault) = object else { return false };
    let end = fault.spec.expires_at.as_deref().and_then(|text| text.parse::<Timestamp>().ok());
    end.is_some_and(|end| end <= now)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesh_common::identity::Identity;

    use super::*;
    use crate::ca::{Ca, DEFAULT_TTL};

    fn fault(name: &str, expires: Option<&str>) -> Object {
        let mut json = serde_json::json!({
            "apiVersion": "meshctl.dev/v1alpha1",
            "kind": "FaultInjection",
            "metadata": {"name": name},
            "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "reviews"}], "faults": [{"percent": 50, "reset": {}}]}
        });
        if let Some(expires) = expires {
            json["spec"]["expiresAt"] = expires.into();
        }
        Object::from_json(&json.to_string()).unwrap()
    }

    #[tokio::test]
    async fn what_has_expired_goes() {
        let dir = tempfile::tempdir().unwrap();
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let store = Store::open(&dir.path().join("data")).unwrap();
        let ca = Arc::new(Ca::open(&dir.path().join("ca"), "mesh.local", now).unwrap());
        let tls = Arc::new(ServerTls::new(ca, &[], DEFAULT_TTL, now).unwrap());
        let registry = Registry::new(store.clone(), Instant::now());
        let house = House { store: store.clone(), registry, tls: tls.clone() };
        let faults = ["2030-01-01T00:05:00Z", "2030-01-01T02:00:00+01:00"];
        let objects = vec![fault("a", Some(faults[0])), fault("b", Some(faults[1])), fault("c", None)];
        store.apply(objects, false).unwrap();
        let who = Identity::new("mesh.local", "default", "web").unwrap();
        store.tokens().create(&who, Duration::from_secs(300), 1, [0; 32], now).unwrap();
        let names = || store.current().objects.keys().map(|key| key.name.clone()).collect::<String>();

        house.tick(now, Instant::now()).await;
        assert_eq!((names().as_str(), store.tokens().len()), ("abc", 1));
        let before = tls.not_after();
        house.tick(now + Duration::from_secs(300), Instant::now()).await;
        assert_eq!((names().as_str(), store.tokens().len()), ("bc", 0));
        assert_eq!(tls.not_after(), before);
        house.tick(now + Duration::from_secs(3600), Instant::now()).await;
        assert_eq!(names(), "c");
        assert!(tls.not_after() > before);
    }

    #[tokio::test]
    async fn a_certificate_is_renewed_at_half_of_the_life_that_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let ca = Arc::new(Ca::open(&dir.path().join("ca"), "mesh.local", now).unwrap());
        let tls = Arc::new(ServerTls::new(ca, &[], Duration::from_secs(120), now).unwrap());
        let at = |seconds| now + Duration::from_secs(seconds);
        for (seconds, until) in [(0, 120), (59, 120), (60, 180), (119, 180), (120, 240)] {
            tls.keep(at(seconds)).await;
            assert_eq!(tls.not_after(), at(until), "{seconds}");
        }
    }
}
