//! What in a cluster has the proxy: pods, and the templates that `meshctl inject` has put it into.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DynamicObject, ListParams};
use mesh_common::inject::{ANNOTATION_INJECTED, is_by_webhook, templates};
use mesh_common::names::kubernetes::LABEL_PROXY;
use serde_json::Value;

use crate::failure::Failure;
use crate::kubernetes::{Cluster, resource};

/// Kinds whose templates may be changed in place.
const CHANGEABLE: [(&str, &str); 4] =
    [("apps/v1", "Deployment"), ("apps/v1", "StatefulSet"), ("apps/v1", "DaemonSet"), ("batch/v1", "CronJob")];
/// Kinds that can only be made anew.
const FIXED: [(&str, &str); 2] = [("batch/v1", "Job"), ("v1", "Pod")];

#[derive(Default)]
pub struct Injected {
    pub pods: usize,
    /// Namespaces with pods that the webhook has put the proxy into.
    pub by_webhook: BTreeSet<String>,
    /// Namespaces with templates that have it.
    pub by_hand: BTreeMap<String, ByHand>,
}

#[derive(Debug, Default, PartialEq)]
pub struct ByHand {
    /// Whether some can be changed in place.
    pub changeable: bool,
    /// `job/x`
    pub fixed: Vec<String>,
}

impl Injected {
    pub fn is_empty(&self) -> bool {
        self.pods == 0 && self.by_hand.is_empty()
    }
}

pub async fn injected(cluster: &Cluster) -> Result<Injected, Failure> {
    let mut found = Injected::default();
    let proxied = ListParams::default().labels(&format!("{LABEL_PROXY}=true"));
    for pod in cluster.all::<Pod>().list_metadata(&proxied).await?.items {
        found.pods += 1;
        if pod.annotations().get(ANNOTATION_INJECTED).is_some_and(|record| is_by_webhook(record)) {
            found.by_webhook.extend(pod.metadata.namespace);
        }
    }
    for (kinds, changeable) in [(&CHANGEABLE[..], true), (&FIXED[..], false)] {
        for (version, kind) in kinds {
            let all = cluster.dynamic(&resource::of(version, kind), None).list(&ListParams::default()).await?;
            all.items.into_iter().for_each(|object| by_hand(&mut found.by_hand, version, kind, changeable, object));
        }
    }
    Ok(found)
}

fn by_hand(found: &mut BTreeMap<String, ByHand>, version: &str, kind: &str, changeable: bool, object: DynamicObject) {
    // What another object has made goes with it, or comes to its own end.
    if !object.owner_references().is_empty() {
        return;
    }
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let Ok(mut json) = serde_json::to_value(object) else { return };
    // The items of a list do not say what they are.
    (json["apiVersion"], json["kind"]) = (version.into(), kind.into());
    let has_proxy = templates(&json).iter().any(|template| {
        let metadata = json.pointer(&template.pointer).and_then(|pod| pod.get("metadata"));
        let record = metadata.and_then(|it| it.get("annotations")?.get(ANNOTATION_INJECTED)).and_then(Value::as_str);
        record.is_some_and(|record| !is_by_webhook(record))
    });
    if has_proxy {
        let in_namespace = found.entry(namespace).or_default();
        match changeable {
            true => in_namespace.changeable = true,
            false => in_namespace.fixed.push(format!("{}/{name}", kind.to_ascii_lowercase())),
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_common::inject::{InjectConfig, Outcome, admit, inject};
    use serde_json::json;

    use super::*;

    fn judged(version: &str, kind: &str, changeable: bool, object: Value) -> BTreeMap<String, ByHand> {
        let mut found = BTreeMap::new();
        by_hand(&mut found, version, kind, changeable, serde_json::from_value(object).unwrap());
        found
    }

    #[test]
    fn templates_are_found_that_have_the_proxy_by_hand() {
        let plain = json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "app"}]}});
        let Ok(Outcome::Injected(with)) = inject(&plain, &InjectConfig::default()) else { panic!() };
        let by_webhook = admit(&plain, &InjectConfig::default(), "k").unwrap().pod;
        let metadata = json!({"name": "a", "namespace": "shop"});
        let cron = |pod: &Value| {
            let jobs = json!({"spec": {"template": pod}});
            judged("batch/v1", "CronJob", true, json!({"metadata": metadata, "spec": {"jobTemplate": jobs}}))
        };
        assert_eq!(cron(&with)["shop"], ByHand { changeable: true, fixed: vec![] });
        assert!(cron(&plain).is_empty());
        let job = |metadata: &Value| {
            judged("batch/v1", "Job", false, json!({"metadata": metadata, "spec": {"template": with}}))
        };
        assert_eq!(job(&metadata)["shop"].fixed, ["job/a"]);
        let mut owned = metadata.clone();
        owned["ownerReferences"] = json!([{"apiVersion": "batch/v1", "kind": "CronJob", "name": "a", "uid": "u"}]);
        assert!(job(&owned).is_empty());
        let pod = |pod: &Value| {
            let mut pod = pod.clone();
            pod["metadata"]["name"] = "a".into();
            pod["metadata"]["namespace"] = "shop".into();
            judged("v1", "Pod", false, pod)
        };
        assert_eq!(pod(&with)["shop"].fixed, ["pod/a"]);
        // The webhook's are in a template of nobody's.
        assert!(pod(&by_webhook).is_empty());
    }
}
