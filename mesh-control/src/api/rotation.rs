//! The replacement of the root: who has followed it, whether it may end, and its steps.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use mesh_common::names::served_fqdn;
use mesh_common::proto::control::rotate_root_request::Step;
use mesh_common::proto::control::{Proxy, RotateRootResponse, WorkloadCertificate};
use mesh_common::resource::MESH_NAMESPACE;
use tonic::Status;

use crate::ca::{Ca, CaError, ServerTls};
use crate::certificates;
use crate::registry::GRACE;
use crate::store::Store;
use crate::trail::{Subject, Verb};

/// Who serves a certificate that hangs on the new root, and who does not yet: of the connected, and of those that are known to
/// be somewhere (by their node ids) and may come back.
pub(super) fn progress(
    ca: &Ca,
    proxies: &[Proxy],
    certificates: Vec<WorkloadCertificate>,
    away: impl Iterator<Item = String>,
) -> RotateRootResponse {
    let Some(began) = ca.rotating_since() else { return RotateRootResponse::default() };
    let issuer = certificates::distinguished_name(&ca.intermediate_der()).unwrap_or_default();
    let follows = |it: &WorkloadCertificate| {
        // Of one that was sent from here it is told too that it is not in force. Proxies tell of later ones that they did not get.
        let in_force = it.since_unix_ms > 0 || it.failure.is_empty();
        in_force && it.certificate.as_ref().is_some_and(|certificate| certificate.issuer == issuer)
    };
    let mut all: BTreeMap<(String, String), WorkloadCertificate> = BTreeMap::new();
    for workload in certificates {
        let key = (workload.id.clone(), workload.identity.clone());
        // A stream that was lost may have a second one already, and what is not there yet counts.
        if all.get(&key).is_none_or(follows) {
            all.insert(key, workload);
        }
    }
    // Whoever has no identity has no certificate either.
    for proxy in proxies.iter().filter(|proxy| !proxy.identity.is_empty()) {
        all.entry((proxy.id.clone(), proxy.identity.clone())).or_insert_with(|| WorkloadCertificate {
            id: proxy.id.clone(),
            identity: proxy.identity.clone(),
            service: served_fqdn(&proxy.service, &proxy.namespace),
            version: proxy.version.clone(),
            ..WorkloadCertificate::default()
        });
    }
    for id in away {
        let is_here = all.range((id.clone(), String::new())..).next().is_some_and(|((known, _), _)| *known == id);
        if !is_here {
            all.insert((id.clone(), String::new()), WorkloadCertificate { id, ..WorkloadCertificate::default() });
        }
    }
    let (followed, behind): (Vec<_>, Vec<_>) = all.into_values().partition(follows);
    let followed = u32::try_from(followed.len()).unwrap_or(u32::MAX);
    RotateRootResponse { began_unix: began.as_second(), followed, behind }
}

/// Whether nobody is cut off by the end, as far as can be known.
pub(super) fn may_end(behind: usize, up: Duration) -> Result<(), Status> {
    if behind > 0 {
        return Err(Status::failed_precondition(format!(
            "{behind} workloads have no certificate of the new root yet, and nobody would trust them"
        )));
    }
    if up < GRACE {
        return Err(Status::failed_precondition(
            "mesh-control has just started, and workloads may not have come back yet: that takes half a minute at most",
        ));
    }
    Ok(())
}

/// Waits for the disk.
pub(super) fn take(
    step: Step,
    force: bool,
    behind: usize,
    ca: &Ca,
    tls: &ServerTls,
    store: &Store,
) -> Result<(), CaError> {
    let (now, before) = (Timestamp::now(), ca.roots_der());
    let taken = match step {
        Step::Unspecified => return Ok(()),
        Step::Begin => ca.rotate(now, force),
        Step::End => ca.end_rotation(),
    };
    // Something may have changed although the end of it failed.
    let after = ca.roots_der();
    for made in after.iter().filter(|root| !before.contains(root)) {
        store.write_down_thing(
            Verb::Create,
            subject(made),
            serde_json::json!({"until": ca.root_not_after().to_string(), "force": force}),
        );
        tracing::info!(until = %ca.root_not_after(), "certificates hang on a new root");
    }
    for gone in before.iter().filter(|root| !after.contains(root)) {
        store.write_down_thing(Verb::Delete, subject(gone), serde_json::json!({"behind": behind, "force": force}));
        tracing::info!(behind, "the root before is trusted no more");
    }
    if let Err(error) = tls.renew(now) {
        tracing::error!(%error, "cannot renew the server's certificate yet");
    }
    taken
}

fn subject(root: &[u8]) -> Subject {
    let name = certificates::facts(root).map(|it| it.serial).unwrap_or_default();
    Subject { kind: "RootCertificate".to_owned(), namespace: MESH_NAMESPACE.to_owned(), name }
}

#[cfg(test)]
mod tests {
    use mesh_common::identity::Identity;
    use mesh_common::proto::control::Certificate;

    use super::*;
    use crate::ca::DEFAULT_TTL;

    #[test]
    fn who_has_followed_a_new_root_is_told_by_who_signed() {
        let dir = tempfile::tempdir().unwrap();
        let now: Timestamp = "2030-01-02T03:04:05Z".parse().unwrap();
        let later = now + Duration::from_secs(60);
        let ca = Ca::open(&dir.path().join("ca"), "mesh.local", now).unwrap();
        let web = Identity::new("mesh.local", "shop", "web").unwrap();
        let issued = |at| certificates::facts_of_pem(&ca.issue_with_key(&web, DEFAULT_TTL, at).unwrap().chain_pem);
        let serves = |id: &str, certificate: &Option<Certificate>, failure: &str, since_unix_ms| WorkloadCertificate {
            id: id.to_owned(),
            identity: web.to_string(),
            certificate: certificate.clone(),
            failure: failure.to_owned(),
            since_unix_ms,
            ..WorkloadCertificate::default()
        };
        let proxy = |id: &str, identity: &Identity| Proxy {
            id: id.to_owned(),
            identity: identity.to_string(),
            ..Proxy::default()
        };
        let mut proxies = ["a", "b", "c", "d", "f", "g", "h"].map(|id| proxy(id, &web)).to_vec();
        proxies.push(Proxy { id: "plain".to_owned(), ..Proxy::default() });
        // However late it was made, it hangs on the root before.
        let (old, away) = (issued(later), || ["b", "e"].map(str::to_owned).into_iter());
        assert_eq!(progress(&ca, &proxies, vec![serves("a", &old, "", 1)], away()), RotateRootResponse::default());
        ca.rotate(later, false).unwrap();
        let new = issued(later);
        let served = vec![
            serves("a", &old, "", 1),
            serves("b", &new, "", 1),
            serves("c", &new, "", 1),
            serves("c", &old, "", 1),
            serves("c", &new, "", 1),
            // Sent, and not acknowledged.
            serves("f", &new, "the proxy has not acknowledged it yet", 0),
            serves("g", &new, "", 0),
            serves("h", &new, "a later renewal failed", 1),
        ];
        let found = progress(&ca, &proxies, served, away());
        let behind: Vec<_> = found.behind.iter().map(|it| (it.id.as_str(), it.certificate.is_some())).collect();
        assert_eq!((found.began_unix, found.followed), (later.as_second(), 3));
        assert_eq!(behind, [("a", true), ("c", true), ("d", false), ("e", false), ("f", true)]);
    }

    #[test]
    fn it_ends_when_all_are_there_and_have_followed() {
        assert!(may_end(0, GRACE).is_ok());
        assert!(may_end(1, GRACE).is_err_and(|it| it.message().starts_with("1 workloads have no certificate")));
        assert!(may_end(0, GRACE - Duration::from_secs(1)).is_err_and(|it| it.message().contains("just started")));
    }
}
