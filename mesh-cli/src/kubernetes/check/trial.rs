//! A pod that is never made, to see whether the API server reaches the injector.

use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use mesh_common::names::kubernetes as names;
use serde_json::json;

use crate::failure::Failure;
use crate::install::NAMESPACE;
use crate::kubernetes::{Cluster, webhooks};
use crate::views::findings::Finding;

const SUBJECT: &str = "webhooks";
/// Where the pod would be.
const PLACE: &str = "default";
/// What the API server says of a pod when it refuses it after all webhooks that change pods have answered: Pod Security,
/// quotas, and policies of its own.
const AFTER_INJECTION: [&str; 5] =
    ["violates PodSecurity", "exceeded quota", "failed quota", "insufficient quota", "ValidatingAdmissionPolicy"];

/// Lets the API server call the injector.
pub async fn answering(cluster: &Cluster) -> Finding {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "meshctl-check", "labels": {names::LABEL_INJECTION: "enabled"}},
        "spec": {"containers": [{"name": "check", "image": "none"}]},
    });
    let pod: Pod = match serde_json::from_value(pod) {
        Ok(pod) => pod,
        Err(error) => return Finding::error(SUBJECT, error.to_string(), "report this"),
    };
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    match cluster.namespaced::<Pod>(PLACE).create(&dry_run, &pod).await {
        Ok(pod) => {
            let labels = pod.metadata.labels.unwrap_or_default();
            match labels.get(names::LABEL_PROXY).map(String::as_str) {
                Some("true") => Finding::ok(SUBJECT, "the API server reaches them, and pods get a proxy"),
                _ => Finding::error(SUBJECT, "a pod that asks for a proxy got none", reach()),
            }
        }
        Err(kube::Error::Api(status)) => refused(&status.message),
        Err(error) => {
            let failure = Failure::from(error);
            Finding::error(SUBJECT, failure.message, failure.hint.unwrap_or_else(reach))
        }
    }
}

fn reach() -> String {
    format!(
        "the API server must reach the Service mesh-control in {NAMESPACE}: see `kubectl -n {NAMESPACE} get endpointslices`, \
         and network policies or firewalls between them (port 15017 of the pods)"
    )
}

/// What it says about the mesh that the API server does not take the pod. Others may refuse it for reasons of their own, and
/// are not in the way of the mesh.
fn refused(message: &str) -> Finding {
    let refuser = webhooks::refused_by(message);
    if refuser.is_none() && webhooks::not_called(message).is_some_and(webhooks::is_ours) {
        return Finding::error(SUBJECT, message, reach());
    }
    if refuser.is_some_and(webhooks::is_ours) {
        let remedy = format!(
            "the injector refuses a pod with nothing special about it: see the settings of proxies (`meshctl upgrade \
             --dry-run`) and `kubectl -n {NAMESPACE} logs deployment/mesh-control`"
        );
        return Finding::error(SUBJECT, message, remedy);
    }
    if AFTER_INJECTION.iter().any(|said| message.contains(said)) {
        return Finding::ok(
            SUBJECT,
            "the API server reaches them; something else refuses the pod of this check after that",
        );
    }
    let remedy = match message.contains("cannot create resource") {
        true => format!("try again as somebody who may create pods in the namespace {PLACE}"),
        false => format!(
            "it is not the mesh that refuses the pod of this check (meshctl-check in the namespace {PLACE}, never made): \
             whoever does may leave this pod alone; whether pods get their proxies is told by the other findings"
        ),
    };
    Finding::warning(SUBJECT, format!("they could not be tried: {message}"), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::findings::Level;

    #[test]
    fn only_the_meshs_own_webhooks_are_an_error() {
        let of = |message: &str| refused(message).level;
        let call = |name: &str| {
            format!(
                "Internal error occurred: failed calling webhook \"{name}\": failed to call webhook: Post \
                 \"https://mesh-control.mesh-system.svc:443/inject?timeout=10s\": context deadline exceeded"
            )
        };
        let denial = |name: &str| format!("admission webhook \"{name}\" denied the request: no");
        assert_eq!(of(&call("pod.injector.meshctl.dev")), Level::Error);
        assert_eq!(of(&denial("pod.injector.meshctl.dev")), Level::Error);
        assert_eq!(of(&call("mutate.kyverno.svc-fail")), Level::Warning);
        assert_eq!(of(&denial("validate.kyverno.svc-fail")), Level::Warning);
        // Whatever the reasons of others say about us.
        let quoting = "admission webhook \"validation.gatekeeper.sh\" denied the request: earlier: failed calling \
                       webhook \"pod.injector.meshctl.dev\"";
        assert_eq!(of(quoting), Level::Warning);
        assert_eq!(of("admission webhook \"x.example.com\" does not support dry run"), Level::Warning);
    }

    #[test]
    fn who_refuses_the_pod_after_the_injection_is_not_in_its_way() {
        for message in [
            "pods \"meshctl-check\" is forbidden: violates PodSecurity \"baseline:latest\": non-default capabilities \
             (container \"mesh-init\" must not include \"NET_ADMIN\" in securityContext.capabilities.add)",
            "pods \"meshctl-check\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1",
            "pods \"meshctl-check\" is forbidden: failed quota: q: must specify limits.cpu for: check",
            "pods \"meshctl-check\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no",
        ] {
            assert_eq!(refused(message).level, Level::Ok, "{message}");
        }
    }

    #[test]
    fn the_remedy_is_about_whoever_refuses() {
        let remedy = |message: &str| refused(message).remedy.unwrap_or_default();
        let rights = "pods is forbidden: User \"eve\" cannot create resource \"pods\" in API group \"\" in the namespace \
                      \"default\"";
        assert!(remedy(rights).contains("may create pods"), "{}", remedy(rights));
        let other = remedy("admission webhook \"validate.kyverno.svc-fail\" denied the request: no");
        assert!(other.contains("not the mesh") && !other.contains("rights"), "{other}");
    }
}
