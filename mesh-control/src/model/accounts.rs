//! Callers that faults and policies name, and that are not there. They are no mistake: whoever is named may come later. But one
//! that is written wrongly would go unnoticed, since it matches nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_common::identity::Identity;
use mesh_common::resource::{AuthorizationPolicy, AuthorizationSource, FaultInjection, Key, Object};

use super::{Condition, Model, Name};

/// All accounts that a platform has for workloads. Only a platform knows that: elsewhere an account is there once somebody joins
/// with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts(pub BTreeSet<Name>);

impl Model {
    /// Says which callers are not there.
    #[must_use]
    pub fn with_accounts(mut self, accounts: &Accounts, objects: &BTreeMap<Key, Arc<Object>>) -> Self {
        let missing: Vec<(Key, Condition)> = objects
            .iter()
            .filter_map(|(key, object)| {
                let missing = match &**object {
                    Object::FaultInjection(fault) => self.missing_in_fault(accounts, fault),
                    Object::AuthorizationPolicy(policy) => self.missing_in_policy(accounts, policy),
                    _ => return None,
                };
                Some((key.clone(), condition(&missing)?))
            })
            .collect();
        for (key, condition) in missing {
            self.statuses.entry(key).or_default().conditions.push(condition);
        }
        self
    }

    fn missing_in_fault(&self, accounts: &Accounts, fault: &FaultInjection) -> BTreeSet<String> {
        let own = fault.metadata.namespace_or_default();
        let missing = fault.spec.from.iter().filter_map(|source| {
            let namespace = source.namespace.as_deref().unwrap_or(own);
            match (&source.service, &source.service_account) {
                // It stands for the account of that name as well.
                (Some(name), _) if self.service(namespace, name).is_none() && !self.has(accounts, namespace, name) => {
                    Some(format!("Service or ServiceAccount {namespace}/{name}"))
                }
                (None, Some(name)) if !self.has(accounts, namespace, name) => Some(account(namespace, name)),
                _ => None,
            }
        });
        missing.collect()
    }

    fn missing_in_policy(&self, accounts: &Accounts, policy: &AuthorizationPolicy) -> BTreeSet<String> {
        let own = policy.metadata.namespace_or_default();
        let sources = policy.spec.rules.iter().flat_map(|rule| &rule.from);
        let named = sources.flat_map(|source| self.named(own, source));
        let missing = named.filter(|(namespace, name)| !self.has(accounts, namespace, name));
        missing.map(|(namespace, name)| account(&namespace, &name)).collect()
    }

    /// Namespaces and names of the accounts of this mesh that a source names one by one.
    fn named(&self, own: &str, source: &AuthorizationSource) -> Vec<(String, String)> {
        let of_accounts = |text: &String| {
            let (namespace, name) = text.split_once('/').unwrap_or((own, text));
            (namespace.to_owned(), name.to_owned())
        };
        let of_identities = |text: &String| {
            let identity: Identity = text.parse().ok()?;
            (identity.trust_domain == self.trust_domain()).then_some((identity.namespace, identity.service_account))
        };
        let identities = source.identities.iter().chain(&source.not_identities);
        let mut named: Vec<_> = identities.filter_map(of_identities).collect();
        // Beside trust domains these are of whatever cluster has them.
        if source.trust_domains.is_empty() {
            named.extend(source.service_accounts.iter().chain(&source.not_service_accounts).map(of_accounts));
        }
        named
    }

    /// A workload may have an account that the platform does not know: on a machine of its own, or while it outlives it.
    fn has(&self, accounts: &Accounts, namespace: &str, name: &str) -> bool {
        let is = |identity: &Identity| identity.namespace == namespace && identity.service_account == name;
        accounts.0.contains(&Name::new(namespace, name))
            || self.workloads.values().any(|workload| workload.identity.as_ref().is_some_and(is))
    }
}

fn account(namespace: &str, name: &str) -> String {
    format!("ServiceAccount {namespace}/{name}")
}

fn condition(missing: &BTreeSet<String>) -> Option<Condition> {
    let missing = missing.iter().map(String::as_str).collect::<Vec<_>>();
    (!missing.is_empty()).then(|| {
        let message = format!("nobody calls so far as what is not there yet: {}", missing.join(", "));
        Condition::ignored("CallerNotFound", message)
    })
}

#[cfg(test)]
mod tests {
    use mesh_common::resource::{Kind, parse_yaml};

    use super::*;
    use crate::model::{Addresses, Settings, build};

    const SERVICE: &str =
        "{apiVersion: v1, kind: Service, metadata: {name: reviews, namespace: shop}, spec: {ports: [{port: 80}]}}";

    /// What is told of the last of the objects in a cluster with the accounts `shop/web` and `other/web`.
    fn told(texts: &[&str]) -> (Vec<&'static str>, String) {
        let objects = parse_yaml("test", &texts.join("\n---\n")).unwrap();
        let key = objects.last().unwrap().key();
        let objects = objects.into_iter().map(|object| (object.key(), Arc::new(object))).collect();
        let settings = Settings { trust_domain: "mesh.local".to_owned() };
        let accounts = Accounts([Name::new("shop", "web"), Name::new("other", "web")].into());
        let model = build(&objects, &settings, &Addresses::default()).with_accounts(&accounts, &objects);
        let conditions = model.conditions(&key);
        let accepted = conditions.iter().any(|it| it.condition_type == "Accepted" && it.status);
        assert!(accepted, "whoever is named may come: {conditions:?}");
        let problems: Vec<_> = conditions.into_iter().filter(|it| it.is_problem()).collect();
        (problems.iter().map(|it| it.reason).collect(), model.warnings(&key).join("; "))
    }

    fn fault(from: &str) -> String {
        format!(
            "{{apiVersion: meshctl.dev/v1alpha1, kind: FaultInjection, metadata: {{name: f, namespace: shop}}, spec: {{targetRefs: [{{group: '', kind: Service, name: reviews}}], from: [{from}], faults: [{{percent: 1, reset: {{}}}}]}}}}"
        )
    }

    fn policy(source: &str) -> String {
        format!(
            "{{apiVersion: meshctl.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: shop}}, spec: {{rules: [{{from: [{{{source}}}]}}]}}}}"
        )
    }

    #[test]
    fn a_faults_callers_that_are_not_there_are_told() {
        for from in [
            "{serviceAccount: web}",
            "{serviceAccount: web, namespace: other}",
            "{service: web}",
            "{service: reviews}",
            "",
        ] {
            assert_eq!(told(&[SERVICE, &fault(from)]).0, [""; 0], "{from}");
        }
        let (reasons, text) = told(&[SERVICE, &fault("{serviceAccount: nobody}, {service: none, namespace: x}")]);
        assert_eq!(reasons, ["CallerNotFound"]);
        assert!(text.ends_with("yet: Service or ServiceAccount x/none, ServiceAccount shop/nobody"), "{text}");
    }

    #[test]
    fn a_policys_accounts_that_are_not_there_are_told() {
        for source in [
            "serviceAccounts: [web, other/web]",
            "notServiceAccounts: [web]",
            "identities: ['spiffe://mesh.local/ns/shop/sa/web', 'spiffe://mesh.local/ns/x/*', '*', 'spiffe://a.example/ns/x/sa/y']",
            "serviceAccounts: [nobody], trustDomains: [a.example]",
            "namespaces: [nowhere]",
        ] {
            assert_eq!(told(&[&policy(source)]).0, [""; 0], "{source}");
        }
        for (source, name) in [
            ("serviceAccounts: [web, wbe]", "shop/wbe"),
            ("notServiceAccounts: [x/web]", "x/web"),
            ("identities: ['spiffe://mesh.local/ns/shop/sa/wbe']", "shop/wbe"),
            ("notIdentities: ['spiffe://mesh.local/ns/shop/sa/wbe']", "shop/wbe"),
        ] {
            let (reasons, text) = told(&[&policy(source)]);
            assert_eq!(reasons, ["CallerNotFound"], "{source}");
            assert!(text.ends_with(&format!("yet: ServiceAccount {name}")), "{text}");
        }
    }

    #[test]
    fn a_workload_of_an_account_that_the_platform_does_not_know_is_there() {
        let vm = "{apiVersion: meshctl.dev/v1alpha1, kind: WorkloadEntry, metadata: {name: vm, namespace: shop}, spec: {serviceAccount: legacy, mesh: true, addresses: [192.0.2.7], ports: [{port: 80}]}}";
        assert_eq!(told(&[vm, &policy("serviceAccounts: [legacy]")]).0, [""; 0]);
    }

    #[test]
    fn where_no_platform_tells_its_accounts_nobody_is_missing() {
        let objects = parse_yaml("test", &policy("serviceAccounts: [nobody]")).unwrap();
        let objects = objects.into_iter().map(|object| (object.key(), Arc::new(object))).collect();
        let settings = Settings { trust_domain: "mesh.local".to_owned() };
        let model = build(&objects, &settings, &Addresses::default());
        assert_eq!(model.warnings(&Key::new(Kind::AuthorizationPolicy, "shop", "p")), [""; 0]);
    }
}
