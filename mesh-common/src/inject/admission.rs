//! What the webhook makes of a pod that is to be created, and of the same pod again when others have changed it meanwhile.

use serde_json::{Map, Value};

use super::containers::{PROBES, VOLUMES};
use super::record::Record;
use super::{CONTAINER_INIT, InjectConfig, InjectError, Outcome, Skipped, inject_into, probes, uninject};
use crate::names::kubernetes::CONTAINER_PROXY;

#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    /// What the pod is to be.
    pub pod: Value,
    /// Why it is without the proxy, if it is.
    pub skipped: Option<Skipped>,
}

/// Injects the proxy, and again if others have changed the pod after the webhook has seen it: containers that they have added
/// get what the others have, and what they have changed, also in the proxy's own containers, stays. What is injected by
/// `meshctl inject` is left alone, since that may have been told something else than the webhook is. `key` is random.
pub fn admit(pod: &Value, config: &InjectConfig, key: &str) -> Result<Admission, InjectError> {
    let record = Record::read(pod)?;
    let mut before = uninject(pod)?;
    if record.as_ref().is_some_and(|record| !record.is_by_webhook()) {
        return Ok(Admission { pod: pod.clone(), skipped: None });
    }
    // The arguments are this version's, so the image must be, too.
    let record = record.filter(Record::is_ours);
    let again = record.is_some();
    let key = record.as_ref().map(Record::key).filter(|key| !key.is_empty()).unwrap_or(key);
    if again {
        keep_changes(&mut before, pod);
    }
    match inject_into(before.clone(), config, Record::by_webhook(key))? {
        Outcome::Injected(mut injected) => {
            if again {
                keep_own(&mut injected, pod);
            }
            Ok(Admission { pod: injected, skipped: None })
        }
        Outcome::Skipped(reason) => Ok(Admission { pod: before, skipped: Some(reason) }),
    }
}

/// What others have made of probes and hooks.
fn keep_changes(before: &mut Value, now: &Value) {
    for field in ["containers", "initContainers"] {
        each(before, field, |name, container| {
            if let Some(now) = find(now, field, name).and_then(Value::as_object) {
                probes::keep_changes(container, now);
            }
        });
    }
}

/// What others have made of the proxy's own containers and volumes, such as another registry, but for what is ours to say.
fn keep_own(injected: &mut Value, now: &Value) {
    each(injected, "initContainers", |name, container| {
        let own = [CONTAINER_INIT, CONTAINER_PROXY].contains(&name);
        let Some(now) = find(now, "initContainers", name).and_then(Value::as_object).filter(|_| own) else { return };
        let fresh = std::mem::replace(container, now.clone());
        if let Some(args) = fresh.get("args") {
            container.insert("args".to_owned(), args.clone());
        }
        keep_env(container, &fresh);
    });
    each(injected, "volumes", |name, volume| {
        if let Some(now) = find(now, "volumes", name).and_then(Value::as_object).filter(|_| VOLUMES.contains(&name)) {
            volume.clone_from(now);
        }
    });
}

/// Our variables are ours, and what others have added stays.
fn keep_env(container: &mut Map<String, Value>, fresh: &Map<String, Value>) {
    let Some(Value::Array(fresh)) = fresh.get("env") else { return };
    let theirs = container.remove("env");
    let is_theirs =
        |variable: &&Value| variable["name"] != PROBES && !fresh.iter().any(|it| it["name"] == variable["name"]);
    let theirs = theirs.as_ref().and_then(Value::as_array).into_iter().flatten().filter(is_theirs);
    let env: Vec<Value> = fresh.iter().chain(theirs).cloned().collect();
    container.insert("env".to_owned(), env.into());
}

fn each(pod: &mut Value, field: &str, mut change: impl FnMut(&str, &mut Map<String, Value>)) {
    let items = pod.pointer_mut(&format!("/spec/{field}")).and_then(Value::as_array_mut);
    for item in items.into_iter().flatten().filter_map(Value::as_object_mut) {
        if let Some(name) = item.get("name").and_then(Value::as_str).map(str::to_owned) {
            change(&name, item);
        }
    }
}

fn find<'a>(pod: &'a Value, field: &str, name: &str) -> Option<&'a Value> {
    let items = pod.pointer(&format!("/spec/{field}")).and_then(Value::as_array);
    items.into_iter().flatten().find(|item| item.get("name").and_then(Value::as_str) == Some(name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Value {
        json!({
            "metadata": {"labels": {"app": "a"}},
            "spec": {"containers": [{
                "name": "app", "image": "app:1", "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"path": "/live", "port": 80}, "periodSeconds": 3},
            }]},
        })
    }

    fn admitted(pod: &Value) -> Value {
        admit(pod, &InjectConfig::default(), "secret").unwrap().pod
    }

    fn sidecar() -> Value {
        json!({"name": "agent", "image": "agent:1", "readinessProbe": {"tcpSocket": {"port": 8200}}})
    }

    fn push(pod: &mut Value, field: &str, item: Value) {
        pod.pointer_mut(&format!("/spec/{field}")).unwrap().as_array_mut().unwrap().push(item);
    }

    #[test]
    fn nothing_new_changes_nothing() {
        let once = admitted(&pod());
        assert_ne!(once, pod());
        assert_eq!(admitted(&once), once);
        assert_eq!(uninject(&once).unwrap(), pod());
    }

    #[test]
    fn containers_that_others_add_after_us_are_as_if_they_had_come_before() {
        let mut late = admitted(&pod());
        push(&mut late, "containers", sidecar());
        let mut early = pod();
        push(&mut early, "containers", sidecar());
        assert_eq!(admitted(&late), admitted(&early));
        // Ours come first again.
        let init = json!({"name": "first", "image": "first:1"});
        let mut late = admitted(&pod());
        late["spec"]["initContainers"].as_array_mut().unwrap().insert(0, init.clone());
        let mut early = pod();
        early["spec"]["initContainers"] = json!([init]);
        let expected = admitted(&early);
        assert_eq!(admitted(&late)["spec"], expected["spec"]);
        assert_eq!(admitted(&late)["spec"]["initContainers"][1]["name"], CONTAINER_PROXY);
    }

    #[test]
    fn what_others_have_changed_stays() {
        let mut changed = admitted(&pod());
        let proxy = &mut changed["spec"]["initContainers"][1];
        proxy["image"] = "mirror.example/mesh-proxy:1".into();
        proxy["env"].as_array_mut().unwrap().push(json!({"name": "HTTP_PROXY", "value": "http://x"}));
        let app = &mut changed["spec"]["containers"][0];
        app["livenessProbe"]["periodSeconds"] = 30.into();
        app["startupProbe"] = json!({"exec": {"command": ["true"]}});
        app["lifecycle"]["postStart"] = json!({"httpGet": {"path": "/started", "port": 80}});
        push(&mut changed, "containers", sidecar());

        let again = admitted(&changed);
        let proxy = &again["spec"]["initContainers"][1];
        assert_eq!(proxy["image"], "mirror.example/mesh-proxy:1");
        let env = |name: &str| proxy["env"].as_array().unwrap().iter().find(|it| it["name"] == name).cloned();
        assert!(env("HTTP_PROXY").is_some());
        let probes = env(PROBES).unwrap()["value"].as_str().unwrap().to_owned();
        assert!(["/live", "/started", "8200"].iter().all(|it| probes.contains(it)), "{probes}");
        let app = &again["spec"]["containers"][0];
        assert_eq!(
            app["livenessProbe"],
            json!({"httpGet": {"path": "/app-health/app/livez", "port": 15021}, "periodSeconds": 30})
        );
        assert_eq!(app["startupProbe"], json!({"exec": {"command": ["true"]}}));
        assert_eq!(app["lifecycle"]["postStart"]["httpGet"]["path"], "/app-health/app/poststart/secret");
        // Asked once more, it keeps the key.
        assert_eq!(admit(&again, &InjectConfig::default(), "other").unwrap().pod, again);
        assert_eq!(app["lifecycle"]["preStop"]["httpGet"]["path"], "/drain");
        assert_eq!(again["spec"]["containers"][1]["readinessProbe"]["httpGet"]["path"], "/app-health/agent/readyz");

        // The way back leads to what they wanted.
        let back = uninject(&again).unwrap();
        assert_eq!(back["spec"]["containers"][0]["livenessProbe"]["httpGet"]["path"], "/live");
        assert_eq!(back["spec"]["containers"][0]["livenessProbe"]["periodSeconds"], 30);
        assert_eq!(back["spec"]["containers"][1], sidecar());
    }

    #[test]
    fn what_may_not_have_the_proxy_any_more_loses_it() {
        let mut changed = admitted(&pod());
        changed["spec"]["hostNetwork"] = true.into();
        let again = admit(&changed, &InjectConfig::default(), "secret").unwrap();
        assert_eq!(again.skipped, Some(Skipped::HostNetwork));
        let mut expected = pod();
        expected["spec"]["hostNetwork"] = true.into();
        assert_eq!(again.pod, expected);
    }

    #[test]
    fn what_meshctl_has_injected_is_left_alone() {
        let Ok(Outcome::Injected(mut by_meshctl)) = super::super::inject(&pod(), &InjectConfig::default()) else {
            panic!("not injected")
        };
        push(&mut by_meshctl, "containers", sidecar());
        assert_eq!(admitted(&by_meshctl), by_meshctl);
    }

    #[test]
    fn another_version_makes_its_own() {
        let mut old = admitted(&pod());
        let annotation = &mut old["metadata"]["annotations"]["meshctl.dev/injected"];
        *annotation = annotation.as_str().unwrap().replace(env!("CARGO_PKG_VERSION"), "0.0.1").into();
        old["spec"]["initContainers"][1]["image"] = "mesh-proxy:0.0.1".into();
        assert_eq!(admitted(&old), admitted(&pod()));
    }
}
