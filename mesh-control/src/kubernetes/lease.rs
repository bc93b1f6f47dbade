//! Who leads: whoever holds the Lease. Judged by this machine's clock alone, so that clocks need not agree. Who ends gives it
//! back.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, Error};
use mesh_common::resource::MESH_NAMESPACE;
use tokio::time::Instant;

const NAME: &str = "mesh-control";
/// A lease that has not changed for so long is anybody's.
const DURATION: Duration = Duration::from_secs(15);
/// A holder that could not renew for so long stops leading, well before others may begin.
const GIVE_UP: Duration = Duration::from_secs(10);

/// What is known of the lease.
pub(super) struct Election {
    leases: Api<Lease>,
    me: String,
    watch: Watch,
}

/// The lease as it was seen, and since when.
#[derive(Default)]
struct Watch {
    seen: Option<(String, Instant)>,
    held: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Create,
    /// Write it, as its new holder or again as its old one.
    Take,
    Wait,
}

impl Watch {
    fn step(&mut self, lease: Option<(&str, Option<&str>)>, me: &str, now: Instant) -> Step {
        let Some((version, holder)) = lease else { return Step::Create };
        let since = match &self.seen {
            Some((seen, since)) if seen == version => *since,
            _ => {
                self.seen = Some((version.to_owned(), now));
                now
            }
        };
        let free = holder.is_none_or(|holder| holder.is_empty() || holder == me);
        if free || now.duration_since(since) >= DURATION { Step::Take } else { Step::Wait }
    }

    fn leads(&self, now: Instant) -> bool {
        self.held.is_some_and(|since| now.duration_since(since) < GIVE_UP)
    }
}

impl Election {
    pub fn new(client: Client, me: String) -> Self {
        Self { leases: Api::namespaced(client, MESH_NAMESPACE), me, watch: Watch::default() }
    }

    /// Call it every few seconds. Whether this replica leads.
    pub async fn run(&mut self) -> bool {
        // A renewal counts from when it was asked for.
        let begun = Instant::now();
        match self.attempt(begun).await {
            Ok(true) => self.watch.held = Some(begun),
            Ok(false) => self.watch.held = None,
            Err(error) => tracing::debug!(%error, "cannot renew the lease"),
        }
        self.watch.leads(Instant::now())
    }

    /// How long this replica leads without a renewal, if it does.
    pub fn left(&self) -> Option<Duration> {
        self.watch.held.map(|since| GIVE_UP.saturating_sub(since.elapsed()))
    }

    /// Gives the lease back if it is held, so that another replica need not wait until it is old.
    pub async fn release(&mut self) -> Result<(), Error> {
        self.watch.held = None;
        // A renewal that was given up may still arrive in between.
        for _ in 0..2 {
            let Some(lease) = self.leases.get_opt(NAME).await? else { return Ok(()) };
            let mine = lease.spec.as_ref().filter(|spec| spec.holder_identity.as_deref() == Some(&self.me));
            let Some(spec) = mine else { return Ok(()) };
            let free = Lease { spec: Some(released(spec)), ..lease };
            match self.leases.replace(NAME, &PostParams::default(), &free).await {
                Err(Error::Api(status)) if status.code == 409 => {}
                result => return result.map(|_| ()),
            }
        }
        Ok(())
    }

    async fn attempt(&mut self, now: Instant) -> Result<bool, Error> {
        let lease = self.leases.get_opt(NAME).await?;
        let known = lease.as_ref().map(|lease| {
            let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
            (lease.metadata.resource_version.as_deref().unwrap_or_default(), holder)
        });
        let step = self.watch.step(known, &self.me, now);
        let parameters = PostParams::default();
        let result = match (step, lease) {
            (Step::Wait, _) => return Ok(false),
            (Step::Take, Some(lease)) => {
                let fresh = Lease { spec: Some(self.spec(lease.spec.as_ref())), ..lease };
                self.leases.replace(NAME, &parameters, &fresh).await
            }
            _ => {
                let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
                self.leases.create(&parameters, &Lease { metadata, spec: Some(self.spec(None)) }).await
            }
        };
        match result {
            Ok(_) => Ok(true),
            // Somebody else was faster.
            Err(Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let mine = before.filter(|spec| spec.holder_identity.as_deref() == Some(&self.me));
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: mine.and_then(|spec| spec.acquire_time.clone()).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if mine.is_some() { transitions } else { transitions + 1 }),
            ..LeaseSpec::default()
        }
    }
}

/// Nobody's, in the way in which client-go writes it: replicas of any version understand it.
fn released(spec: &LeaseSpec) -> LeaseSpec {
    let now = MicroTime(Timestamp::now());
    LeaseSpec {
        holder_identity: None,
        lease_duration_seconds: Some(1),
        acquire_time: Some(now.clone()),
        renew_time: Some(now),
        lease_transitions: spec.lease_transitions,
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex};

    use http::{Method, Request, Response, StatusCode};
    use http_body_util::BodyExt;
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// An API server that has one Lease, or none, and holds to its versions.
    #[derive(Clone, Default)]
    pub struct Server(Arc<Mutex<(u64, Option<Value>)>>, Arc<Mutex<Mood>>);

    #[derive(Clone, Copy, Default)]
    pub enum Mood {
        #[default]
        Well,
        Refuses,
        Hangs,
    }

    impl Server {
        pub fn client(&self) -> Client {
            let server = self.clone();
            let answer = move |request: Request<Body>| {
                let server = server.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    let (status, answer) = match server.mood() {
                        Mood::Well => server.answer(&head.method, &body),
                        Mood::Refuses => (StatusCode::SERVICE_UNAVAILABLE, Value::Null),
                        Mood::Hangs => std::future::pending().await,
                    };
                    let response = Response::builder().status(status);
                    Ok::<_, Box<dyn std::error::Error + Send + Sync>>(
                        response.body(Body::from(answer.to_string().into_bytes()))?,
                    )
                }
            };
            Client::new(tower::service_fn(answer), MESH_NAMESPACE)
        }

        pub fn becomes(&self, mood: Mood) {
            *self.1.lock().unwrap() = mood;
        }

        fn mood(&self) -> Mood {
            *self.1.lock().unwrap()
        }

        pub fn lease(&self) -> Option<Value> {
            self.0.lock().unwrap().1.clone()
        }

        pub fn holder(&self) -> Option<String> {
            self.lease()?["spec"]["holderIdentity"].as_str().map(str::to_owned)
        }

        fn answer(&self, method: &Method, body: &[u8]) -> (StatusCode, Value) {
            let refusal = |status: StatusCode| {
                let reason = if status == StatusCode::CONFLICT { "Conflict" } else { "NotFound" };
                let said = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status.as_u16(),
                    "reason": reason, "message": ""});
                (status, said)
            };
            let mut state = self.0.lock().unwrap();
            if *method == Method::GET {
                return state.1.clone().map_or_else(|| refusal(StatusCode::NOT_FOUND), |lease| (StatusCode::OK, lease));
            }
            let mut lease: Value = serde_json::from_slice(body).unwrap();
            let given = lease["metadata"]["resourceVersion"].clone();
            let current =
                state.1.as_ref().map(|lease| lease["metadata"]["resourceVersion"].clone()).unwrap_or_default();
            if given != current {
                return refusal(StatusCode::CONFLICT);
            }
            state.0 += 1;
            lease["metadata"]["resourceVersion"] = state.0.to_string().into();
            state.1 = Some(lease.clone());
            (StatusCode::OK, lease)
        }
    }

    #[tokio::test]
    async fn who_ends_gives_the_lease_back() {
        let server = Server::default();
        let [mut a, mut b] = ["a", "b"].map(|me| Election::new(server.client(), me.to_owned()));
        assert!(a.run().await && !b.run().await && a.run().await);
        // Not held, not given back.
        b.release().await.unwrap();
        assert_eq!(server.holder().as_deref(), Some("a"));

        a.release().await.unwrap();
        let spec = server.lease().unwrap()["spec"].clone();
        assert_eq!(
            (spec.get("holderIdentity"), &spec["leaseDurationSeconds"], &spec["leaseTransitions"]),
            (None, &json!(1), &json!(1))
        );
        assert!(b.run().await && !a.run().await);
        let spec = server.lease().unwrap()["spec"].clone();
        assert_eq!(
            (&spec["holderIdentity"], &spec["leaseDurationSeconds"], &spec["leaseTransitions"]),
            (&json!("b"), &json!(15), &json!(2))
        );
    }

    #[test]
    fn a_lease_is_taken_when_its_holder_is_silent() {
        let (start, mut watch) = (Instant::now(), Watch::default());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(watch.step(None, "a", at(0)), Step::Create);
        assert_eq!(watch.step(Some(("1", Some("a"))), "a", at(1)), Step::Take);
        assert_eq!(watch.step(Some(("1", Some(""))), "b", at(1)), Step::Take);
        let mut other = Watch::default();
        assert_eq!(other.step(Some(("1", Some("a"))), "b", at(0)), Step::Wait);
        assert_eq!(other.step(Some(("2", Some("a"))), "b", at(10)), Step::Wait);
        assert_eq!(other.step(Some(("2", Some("a"))), "b", at(24)), Step::Wait);
        assert_eq!(other.step(Some(("2", Some("a"))), "b", at(25)), Step::Take);
    }

    #[test]
    fn a_holder_stops_before_another_may_begin() {
        let start = Instant::now();
        let watch = Watch { held: Some(start), ..Watch::default() };
        assert!(watch.leads(start + Duration::from_secs(9)));
        assert!(!watch.leads(start + GIVE_UP));
        assert!(GIVE_UP < DURATION);
    }
}
