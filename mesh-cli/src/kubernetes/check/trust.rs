//! The roots of the mesh: every namespace has them, and the API server checks the webhooks' certificate by them.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::ListParams;
use mesh_common::names::kubernetes as names;

use super::trial;
use crate::failure::Failure;
use crate::install::NAMESPACE;
use crate::kubernetes::{Cluster, roots};
use crate::views::findings::Finding;

const DAY: i64 = 24 * 60 * 60;
/// Namespaces named in a finding.
const NAMED: usize = 5;

/// The webhooks are there, trust the mesh's root, and answer.
pub async fn webhooks(cluster: &Cluster) -> Result<Vec<Finding>, Failure> {
    let roots = roots::bundle(cluster, NAMESPACE).await?;
    let injector = cluster.all::<MutatingWebhookConfiguration>().get_opt(names::INJECTOR).await?;
    let validator = cluster.all::<ValidatingWebhookConfiguration>().get_opt(names::VALIDATOR).await?;
    let injector = injector.map(|w| w.webhooks.unwrap_or_default().into_iter().map(|w| w.client_config).collect());
    let validator = validator.map(|w| w.webhooks.unwrap_or_default().into_iter().map(|w| w.client_config).collect());
    let mut found = Vec::new();
    for (name, clients) in [(names::INJECTOR, injector), (names::VALIDATOR, validator)] {
        found.extend(trusted(name, clients, roots.as_deref()));
    }
    if found.is_empty() {
        found.push(trial::answering(cluster).await);
    }
    Ok(found)
}

fn trusted(name: &str, clients: Option<Vec<WebhookClientConfig>>, roots: Option<&str>) -> Option<Finding> {
    let Some(clients) = clients else {
        let message = format!("the webhook {name} is not there, so nothing is injected or checked");
        return Some(Finding::error("webhooks", message, "`meshctl install` installs what is missing"));
    };
    let told = |client: &WebhookClientConfig| {
        client.ca_bundle.as_ref().map(|bundle| String::from_utf8_lossy(&bundle.0).trim().to_owned())
    };
    let remedy =
        format!("its leader writes it within seconds; see `kubectl -n {NAMESPACE} logs deployment/mesh-control`");
    for client in &clients {
        match (told(client).filter(|text| !text.is_empty()), roots.map(str::trim)) {
            (None, _) => {
                let message = format!("the webhook {name} has no root certificate yet, so calls of it fail");
                return Some(Finding::error("webhooks", message, remedy));
            }
            (Some(bundle), Some(roots)) if bundle != roots => {
                let message = format!("the webhook {name} trusts another root than the mesh has, so calls of it fail");
                return Some(Finding::error("webhooks", message, remedy));
            }
            _ => {}
        }
    }
    None
}

/// Every namespace has the roots, and they are not about to end.
pub async fn bundles(cluster: &Cluster) -> Result<Vec<Finding>, Failure> {
    let Some(roots) = roots::bundle(cluster, NAMESPACE).await? else {
        let message =
            format!("the ConfigMap {} is not in {NAMESPACE} yet, so proxies cannot start", names::TRUST_BUNDLE);
        let remedy = format!("the control plane writes it; see `kubectl -n {NAMESPACE} logs deployment/mesh-control`");
        return Ok(vec![Finding::error("trust bundle", message, remedy)]);
    };
    let mut found = vec![lifetime(&roots, Timestamp::now())];
    let named = ListParams::default().fields(&format!("metadata.name={}", names::TRUST_BUNDLE));
    let there = cluster.all::<ConfigMap>().list(&named).await?.items.into_iter();
    let same = |map: &ConfigMap| map.data.as_ref().and_then(|d| d.get(names::TRUST_BUNDLE_KEY)) == Some(&roots);
    let there: BTreeSet<String> = there.filter(same).filter_map(|map| map.metadata.namespace).collect();
    let namespaces = cluster.all::<Namespace>().list(&ListParams::default()).await?.items.into_iter();
    let active = |n: &Namespace| n.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Terminating");
    let without: Vec<String> =
        namespaces.filter(active).filter_map(|n| n.metadata.name).filter(|name| !there.contains(name)).collect();
    if !without.is_empty() {
        let more = if without.len() > NAMED { ", ..." } else { "" };
        let named = without.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        let message = format!("{} namespaces have no trust bundle, or an old one: {named}{more}", without.len());
        let remedy = format!("the control plane writes it; see `kubectl -n {NAMESPACE} logs deployment/mesh-control`");
        found.push(Finding::error("trust bundle", message, remedy));
    }
    Ok(found)
}

fn lifetime(roots: &str, now: Timestamp) -> Finding {
    let subject = "root certificate";
    let blocks = x509_parser::pem::Pem::iter_from_buffer(roots.as_bytes()).filter_map(Result::ok);
    let ends = blocks.filter_map(|pem| {
        let certificate = pem.parse_x509().ok()?;
        let validity = certificate.validity();
        Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
    });
    let Some((begins, ends)) = ends.max_by_key(|(_, end)| *end) else {
        return Finding::error(subject, "the trust bundle holds no certificate", "start mesh-control again");
    };
    let date =
        |second: i64| Timestamp::from_second(second).map(|t| t.strftime("%Y-%m-%d").to_string()).unwrap_or_default();
    let now = now.as_second();
    match ends - now {
        _ if begins > now => {
            let message = format!("it is valid from {} on, which is later than this machine's clock", date(begins));
            Finding::error(subject, message, "set the clocks of this machine and of the nodes")
        }
        left if left <= 0 => Finding::error(
            subject,
            format!("it has ended on {}", date(ends)),
            "delete the Secret mesh-ca and start mesh-control and all pods of the mesh again (docs/operations.md)",
        ),
        left if left < 90 * DAY => Finding::warning(
            subject,
            format!("it ends on {}", date(ends)),
            "make a new one in time (docs/operations.md)",
        ),
        _ => Finding::ok(subject, format!("it is valid until {}", date(ends))),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;
    use crate::views::findings::Level;

    #[test]
    fn a_webhook_trusts_what_the_mesh_trusts() {
        let clients = |bundle: Option<&str>| {
            let ca_bundle = bundle.map(|text| ByteString(text.as_bytes().to_vec()));
            Some(vec![WebhookClientConfig { ca_bundle, ..WebhookClientConfig::default() }])
        };
        let told = |clients| trusted("w", clients, Some("ROOT\n")).map(|f| f.message).unwrap_or_default();
        assert_eq!(told(clients(Some("ROOT"))), "");
        assert!(told(clients(Some("OTHER"))).contains("another root"));
        assert!(told(clients(None)).contains("no root certificate yet"));
        assert!(told(None).contains("is not there"));
    }

    #[test]
    fn what_is_no_certificate_is_an_error() {
        assert_eq!(lifetime("", Timestamp::now()).level, Level::Error);
    }
}
