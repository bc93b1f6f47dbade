//! What several replicas say, made into what one would say. Pure.

use std::collections::BTreeSet;

use mesh_common::proto::control::{
    Finding, GetStatusResponse, ListCertificatesResponse, ListTrafficResponse, ServiceView, TapAsked, WaitProgress,
};

/// Every replica sees all services; each knows only of its own proxies whether they are connected.
pub fn services(mut answers: Vec<Vec<ServiceView>>) -> Vec<ServiceView> {
    let Some(mut merged) = answers.pop() else { return Vec::new() };
    let connected: BTreeSet<(String, String)> = answers
        .into_iter()
        .flatten()
        .flat_map(|s| s.workloads.into_iter().map(move |w| (s.namespace.clone(), w)))
        .filter(|(_, workload)| workload.connected)
        .map(|(namespace, workload)| (namespace, workload.name))
        .collect();
    for service in &mut merged {
        for workload in &mut service.workloads {
            workload.connected |= connected.contains(&(service.namespace.clone(), workload.name.clone()));
        }
    }
    merged
}

/// How far all of them are, from how far each is; `None`: it has not said yet.
pub fn progress(each: &[Option<WaitProgress>]) -> WaitProgress {
    let mut merged = WaitProgress { done: true, ..WaitProgress::default() };
    for progress in each {
        let Some(progress) = progress else {
            merged.done = false;
            continue;
        };
        merged.proxies += progress.proxies;
        merged.synced += progress.synced;
        merged.done &= progress.done;
        merged.pending.extend(progress.pending.iter().cloned());
        merged.rejected.extend(progress.rejected.iter().cloned());
        merged.elapsed_ms = merged.elapsed_ms.max(progress.elapsed_ms);
    }
    merged
}

/// Each proxy reports to one of them; which side of a call counts is decided by all that report.
pub fn traffic(answers: Vec<ListTrafficResponse>) -> ListTrafficResponse {
    let mut merged = ListTrafficResponse::default();
    for answer in answers {
        merged.traffic.extend(answer.traffic);
        merged.reporting.extend(answer.reporting);
        merged.proxies += answer.proxies;
    }
    merged.reporting.sort_unstable();
    merged.reporting.dedup();
    merged
}

/// Each proxy is asked by one of them.
pub fn asked(each: &[TapAsked]) -> TapAsked {
    let identities: BTreeSet<&String> = each.iter().flat_map(|it| &it.identities).collect();
    TapAsked { proxies: each.iter().map(|it| it.proxies).sum(), identities: identities.into_iter().cloned().collect() }
}

/// Each proxy reports to one of them. The root is the same for all, and told once.
pub fn certificates(answers: Vec<ListCertificatesResponse>) -> ListCertificatesResponse {
    let mut merged = ListCertificatesResponse::default();
    for answer in answers {
        merged.workloads.extend(answer.workloads);
        for authority in answer.authorities {
            if !merged.authorities.contains(&authority) {
                merged.authorities.push(authority);
            }
        }
    }
    merged.authorities.sort_by_key(|authority| authority.role);
    merged
}

/// Findings that all of them have are told once, those of one alone with its name.
pub fn status(answers: Vec<(String, GetStatusResponse)>) -> GetStatusResponse {
    let all = answers.len();
    let mut counted: Vec<(Finding, Vec<String>)> = Vec::new();
    for (name, status) in &answers {
        for finding in &status.findings {
            match counted.iter_mut().find(|(known, _)| known == finding) {
                Some((_, names)) => names.push(name.clone()),
                None => counted.push((finding.clone(), vec![name.clone()])),
            }
        }
    }
    let mut findings: Vec<Finding> = counted
        .into_iter()
        .map(|(finding, names)| match names.len() == all {
            true => finding,
            false => Finding { subject: format!("{} ({})", finding.subject, names.join(", ")), ..finding },
        })
        .collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    let first = answers.into_iter().next().map(|(_, status)| status).unwrap_or_default();
    GetStatusResponse { findings, ..first }
}

#[cfg(test)]
mod tests {
    use mesh_common::proto::control::{AuthorityCertificate, Certificate, Traffic, WorkloadCertificate, WorkloadView};

    use super::*;

    #[test]
    fn a_workload_is_connected_if_one_replica_says_so() {
        let view = |connected: bool| {
            let workload = WorkloadView { name: "web-1".into(), connected, ..WorkloadView::default() };
            vec![ServiceView {
                namespace: "shop".into(),
                name: "web".into(),
                workloads: vec![workload],
                ..Default::default()
            }]
        };
        assert!(services(vec![view(true), view(false)])[0].workloads[0].connected);
        assert!(services(vec![view(false), view(true)])[0].workloads[0].connected);
        assert!(!services(vec![view(false), view(false)])[0].workloads[0].connected);
    }

    #[test]
    fn all_are_done_when_each_is() {
        let of = |proxies: u32, synced: u32, elapsed_ms: u64| {
            Some(WaitProgress { proxies, synced, done: proxies == synced, elapsed_ms, ..WaitProgress::default() })
        };
        let merged = progress(&[of(2, 2, 10), of(3, 3, 40)]);
        assert_eq!((merged.proxies, merged.synced, merged.done, merged.elapsed_ms), (5, 5, true, 40));
        assert!(!progress(&[of(2, 2, 10), of(3, 2, 40)]).done);
        assert!(!progress(&[of(2, 2, 10), None]).done);
    }

    #[test]
    fn who_reports_to_one_replica_reports_to_all() {
        let of = |identity: &str| ListTrafficResponse {
            traffic: vec![Traffic { rate: 1.0, ..Traffic::default() }],
            reporting: vec!["a".to_owned(), identity.to_owned()],
            proxies: 2,
        };
        let merged = traffic(vec![of("c"), of("b")]);
        assert_eq!((merged.traffic.len(), merged.proxies), (2, 4));
        assert_eq!(merged.reporting, ["a", "b", "c"]);
    }

    #[test]
    fn who_is_asked_by_one_replica_is_asked() {
        let of = |proxies, identities: &[&str]| TapAsked {
            proxies,
            identities: identities.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(asked(&[of(2, &["a", "c"]), of(1, &["b", "c"]), TapAsked::default()]), of(3, &["a", "b", "c"]));
    }

    #[test]
    fn what_replicas_have_in_common_is_told_once() {
        let of = |id: &str, role: i32, serial: &str| ListCertificatesResponse {
            workloads: vec![WorkloadCertificate { id: id.into(), ..Default::default() }],
            authorities: [(1, "root"), (role, serial)]
                .map(|(role, serial)| {
                    let certificate = Some(Certificate { serial: serial.into(), ..Default::default() });
                    AuthorityCertificate { role, certificate }
                })
                .into(),
        };
        let merged = certificates(vec![of("a", 3, "x"), of("b", 2, "y")]);
        assert_eq!(merged.workloads.len(), 2);
        let serials: Vec<_> = merged.authorities.iter().map(|it| it.certificate.clone().unwrap().serial).collect();
        assert_eq!(serials, ["root", "y", "x"]);
    }

    #[test]
    fn what_one_replica_alone_finds_has_its_name() {
        let finding = |subject: &str| Finding { subject: subject.into(), ..Finding::default() };
        let of = |name: &str, findings| (name.to_owned(), GetStatusResponse { findings, ..Default::default() });
        let merged = status(vec![of("a", vec![finding("root")]), of("b", vec![finding("root"), finding("proxy x")])]);
        let subjects: Vec<&str> = merged.findings.iter().map(|f| f.subject.as_str()).collect();
        assert_eq!(subjects, ["root", "proxy x (b)"]);
    }
}
