//! Events for people who look at a route or a policy: it is in force no more as it is written, or it is again. `status` says
//! the same, but only to those who think of reading it.
//!
//! In: statuses that were written. Out: Events of `events.k8s.io/v1`, beside the object. They are of no consequence for the
//! mesh, so nothing waits for them, and what is too much is left out.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use mesh_common::names::kubernetes::CONTROLLER;
use mesh_common::resource::Key;
use serde_json::Value;
use tokio::sync::mpsc;

use super::Standing;
use super::standing::list;

/// Events that are waiting to be written.
const QUEUE: usize = 256;
/// Between two of them, so that thousands of objects that change at once don't keep the API server busy.
const PAUSE: Duration = Duration::from_millis(50);
const TIMEOUT: Duration = Duration::from_secs(5);
/// The API server takes no longer notes.
const MAX_NOTE: usize = 1024;
const TYPES: [&str; 2] = ["Accepted", "ResolvedRefs"];

/// That a condition of an object became another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Transition {
    pub condition: String,
    pub well: bool,
    pub reason: String,
    pub message: String,
}

/// What became worse, or well again, by writing `fresh` over the status that the object has. What was never said to be well
/// counts as well: that an object is accepted at once is no event. A route's parents are looked at one by one.
pub(super) fn transitions(standing: &Standing, fresh: &Value) -> BTreeSet<Transition> {
    let before = statements(&standing.status);
    let mut transitions = BTreeSet::new();
    for (place, now) in statements(fresh) {
        let well = now["status"] == "True";
        let old = before.iter().find(|(of, old)| *of == place && old["type"] == now["type"]);
        let was_well = old.is_none_or(|(_, old)| old["status"] == "True");
        if well != was_well {
            let text = |field: &str| now[field].as_str().unwrap_or_default().to_owned();
            transitions.insert(Transition {
                condition: text("type"),
                well,
                reason: text("reason"),
                message: text("message"),
            });
        }
    }
    transitions
}

/// The conditions that matter here, each with the parent that it is about.
fn statements(status: &Value) -> Vec<(Value, Value)> {
    let whole = list(status, "conditions").into_iter().map(|condition| (Value::Null, condition));
    let ours = list(status, "parents").into_iter().filter(|parent| parent["controllerName"] == CONTROLLER);
    let of_parents = ours.flat_map(|parent| {
        let reference = parent["parentRef"].clone();
        list(&parent, "conditions").into_iter().map(move |condition| (reference.clone(), condition))
    });
    let all = whole.chain(of_parents);
    all.filter(|(_, condition)| TYPES.iter().any(|known| condition["type"] == *known)).collect()
}

/// Where events are handed in.
#[derive(Clone)]
pub(super) struct Events(mpsc::Sender<(ObjectReference, Event)>);

impl Events {
    /// The other half writes them for as long as it is polled.
    pub fn new(client: Client, instance: String) -> (Self, impl Future<Output = ()>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: Some(instance) };
        (Self(sender), write(Recorder::new(client, reporter), receiver))
    }

    /// Never waits. The status was written, so nobody else tells of the same transitions.
    pub fn tell(&self, key: &Key, standing: &Standing, transitions: BTreeSet<Transition>) {
        for transition in transitions {
            if self.0.try_send((reference(key, standing), event(transition))).is_err() {
                tracing::debug!(object = %key, "too many events at once; one is left out");
            }
        }
    }
}

async fn write(recorder: Recorder, mut events: mpsc::Receiver<(ObjectReference, Event)>) {
    while let Some((object, event)) = events.recv().await {
        match tokio::time::timeout(TIMEOUT, recorder.publish(&event, &object)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(object = object.name, %error, "cannot write an event"),
            Err(_) => tracing::debug!(object = object.name, "an event could not be written in time"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn reference(key: &Key, standing: &Standing) -> ObjectReference {
    ObjectReference {
        api_version: Some(standing.api_version.to_owned()),
        kind: Some(key.kind.as_str().to_owned()),
        namespace: Some(key.namespace.clone()),
        name: Some(key.name.clone()),
        uid: standing.uid.clone(),
        ..ObjectReference::default()
    }
}

fn event(transition: Transition) -> Event {
    let Transition { condition, well, reason, message } = transition;
    let mut note = match (well, message.is_empty()) {
        (false, true) => format!("{condition} is false"),
        (false, false) => message,
        (true, _) => format!("{condition} is true again"),
    };
    let end = (0..=MAX_NOTE.min(note.len())).rev().find(|end| note.is_char_boundary(*end)).unwrap_or_default();
    note.truncate(end);
    let type_ = if well { EventType::Normal } else { EventType::Warning };
    Event { type_, reason, note: Some(note), action: "Reconcile".to_owned(), secondary: None }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::{Request, Response};
    use http_body_util::BodyExt;
    use kube::client::Body;
    use mesh_common::resource::Kind;
    use serde_json::json;

    use super::*;

    fn condition(of: &str, status: &str, reason: &str, message: &str) -> Value {
        json!({"type": of, "status": status, "reason": reason, "message": message})
    }

    fn policy(condition: Value) -> Value {
        json!({"conditions": [condition]})
    }

    fn standing(status: Value) -> Standing {
        Standing { uid: Some("u-1".to_owned()), api_version: "meshctl.dev/v1alpha1", status, ..Standing::default() }
    }

    #[test]
    fn only_what_turns_is_told() {
        let good = policy(condition("Accepted", "True", "Accepted", ""));
        let bad = policy(condition("Accepted", "False", "TargetNotFound", "no service a"));
        let of = |before: &Value, fresh: &Value| {
            transitions(&standing(before.clone()), fresh).into_iter().collect::<Vec<_>>()
        };
        // New and well, still well, still bad if for another reason: nothing.
        assert!(of(&Value::Null, &good).is_empty() && of(&good, &good).is_empty());
        assert!(of(&bad, &policy(condition("Accepted", "False", "Invalid", "x"))).is_empty());
        for before in [&Value::Null, &good] {
            let [told] = of(before, &bad).try_into().unwrap();
            assert_eq!(
                (told.well, told.reason.as_str(), told.message.as_str()),
                (false, "TargetNotFound", "no service a")
            );
        }
        let [told] = of(&bad, &good).try_into().unwrap();
        assert_eq!((told.well, told.reason.as_str()), (true, "Accepted"));
        let other = policy(condition("FullyApplied", "False", "UnknownField", "spec.x"));
        assert!(of(&good, &other).is_empty());
    }

    #[test]
    fn a_routes_parents_are_told_apart() {
        let parent = |name: &str, controller: &str, status: &str| {
            json!({"parentRef": {"name": name}, "controllerName": controller,
                "conditions": [condition("ResolvedRefs", status, "BackendNotFound", "no service b")]})
        };
        let before = json!({"parents": [parent("a", CONTROLLER, "True"), parent("b", CONTROLLER, "False"), parent("c", "x", "True")]});
        let fresh = json!({"parents": [parent("a", CONTROLLER, "False"), parent("b", CONTROLLER, "False"), parent("c", "x", "False")]});
        assert_eq!(transitions(&standing(before), &fresh).len(), 1);
        // Two parents that say the same are one event.
        let fresh = json!({"parents": [parent("a", CONTROLLER, "False"), parent("b", CONTROLLER, "False")]});
        assert_eq!(transitions(&standing(Value::Null), &fresh).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn events_are_written_beside_the_object_and_never_waited_for() {
        let written: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let seen = written.clone();
        let answer = move |request: Request<Body>| {
            let seen = seen.clone();
            async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await?.to_bytes();
                seen.lock().unwrap().push((path, serde_json::from_slice(&body)?));
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Response::new(Body::from(body.to_vec())))
            }
        };
        let (events, writing) = Events::new(Client::new(tower::service_fn(answer), "default"), "pod-1".to_owned());
        let key = Key::new(Kind::TrafficPolicy, "shop", "p");
        let bad = policy(condition("Accepted", "False", "TargetNotFound", &"ä".repeat(MAX_NOTE)));
        let told = transitions(&standing(Value::Null), &bad);
        // Nobody writes them yet, and there are more than are kept.
        for _ in 0..2 * QUEUE {
            events.tell(&key, &standing(Value::Null), told.clone());
        }
        drop(events);
        writing.await;
        let written = written.lock().unwrap();
        // The same again is counted in the first, and written no second time.
        assert_eq!(written.len(), QUEUE);
        let (path, event) = &written[0];
        assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/shop/events");
        assert_eq!(
            (&event["type"], &event["reason"], &event["action"]),
            (&json!("Warning"), &json!("TargetNotFound"), &json!("Reconcile"))
        );
        assert_eq!(
            event["regarding"],
            json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": "TrafficPolicy", "namespace": "shop", "name": "p", "uid": "u-1"})
        );
        assert_eq!((&event["reportingController"], &event["reportingInstance"]), (&json!(CONTROLLER), &json!("pod-1")));
        assert_eq!(event["note"].as_str().unwrap().len(), MAX_NOTE);
        assert_eq!(written[1].0, format!("{path}/{}", event["metadata"]["name"].as_str().unwrap()));
        assert_eq!(written[1].1["series"]["count"], 2);
    }
}
