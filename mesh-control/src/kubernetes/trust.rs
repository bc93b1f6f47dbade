//! The mesh's root where others need it: a ConfigMap in each namespace, and the webhooks' `caBundle`.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::{Client, Error, ResourceExt};
use mesh_common::names::kubernetes::{INJECTOR, TRUST_BUNDLE, TRUST_BUNDLE_KEY, VALIDATOR};
use serde_json::json;

pub(super) const MANAGER: &str = "mesh-control";

/// Writes the ConfigMap into every namespace where it is missing or says something else.
pub(super) async fn publish(client: &Client, root: &str) -> Result<(), Error> {
    let namespaces = Api::<Namespace>::all(client.clone()).list_metadata(&ListParams::default()).await?;
    let named = ListParams::default().fields(&format!("metadata.name={TRUST_BUNDLE}"));
    let maps = Api::<ConfigMap>::all(client.clone()).list(&named).await?;
    let good = |map: &ConfigMap| {
        map.data.as_ref().and_then(|data| data.get(TRUST_BUNDLE_KEY)).is_some_and(|text| text == root)
    };
    let have: BTreeMap<String, bool> =
        maps.items.iter().map(|map| (map.namespace().unwrap_or_default(), good(map))).collect();
    for namespace in &namespaces.items {
        let name = namespace.name_any();
        if namespace.metadata.deletion_timestamp.is_some() || have.get(&name) == Some(&true) {
            continue;
        }
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": TRUST_BUNDLE}, "data": {TRUST_BUNDLE_KEY: root}});
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &name);
        if let Err(error) = maps.patch(TRUST_BUNDLE, &PatchParams::apply(MANAGER).force(), &Patch::Apply(map)).await {
            tracing::warn!(namespace = name, %error, "cannot write the trust bundle; pods there cannot start");
        }
    }
    Ok(())
}

/// Lets the API server trust the webhooks, where they are installed.
pub(super) async fn certify(client: &Client, root: &str) -> Result<(), Error> {
    let injectors: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    if let Some(injector) = injectors.get_opt(INJECTOR).await? {
        let hooks = injector.webhooks.iter().flatten().map(|hook| (&hook.name, &hook.client_config.ca_bundle));
        if let Some(patch) = patch(hooks, root) {
            injectors.patch(INJECTOR, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        }
    }
    let validators: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    if let Some(validator) = validators.get_opt(VALIDATOR).await? {
        let hooks = validator.webhooks.iter().flatten().map(|hook| (&hook.name, &hook.client_config.ca_bundle));
        if let Some(patch) = patch(hooks, root) {
            validators.patch(VALIDATOR, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        }
    }
    Ok(())
}

fn patch<'a>(
    hooks: impl Iterator<Item = (&'a String, &'a Option<ByteString>)>,
    root: &str,
) -> Option<serde_json::Value> {
    let other =
        |(_, bundle): &(&String, &Option<ByteString>)| bundle.as_ref().is_none_or(|bundle| bundle.0 != root.as_bytes());
    let bundle = ByteString(root.as_bytes().to_vec());
    let hooks: Vec<_> =
        hooks.filter(other).map(|(name, _)| json!({"name": name, "clientConfig": {"caBundle": bundle}})).collect();
    (!hooks.is_empty()).then(|| json!({"webhooks": hooks}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written() {
        let (good, bad) = (Some(ByteString(b"root".to_vec())), Some(ByteString(b"old".to_vec())));
        let names = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let hooks = [(&names[0], &good), (&names[1], &bad), (&names[2], &None)];
        let made = patch(hooks.into_iter(), "root").unwrap();
        assert_eq!(made["webhooks"][0], json!({"name": "b", "clientConfig": {"caBundle": "cm9vdA=="}}));
        assert_eq!(made["webhooks"].as_array().unwrap().len(), 2);
        assert_eq!(patch([(&names[0], &good)].into_iter(), "root"), None);
    }
}
