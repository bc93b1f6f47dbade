//! Which certificates are served, and whether they are renewed in time. Pure; the clock is passed in.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use mesh_common::names::served_fqdn;
use mesh_common::proto::control::authority_certificate::Role;
use mesh_common::proto::control::{
    AuthorityCertificate, Certificate, ListCertificatesResponse, Proxy, WorkloadCertificate,
};
use mesh_common::tls::ROOT_ENDS_SOON;
use serde::Serialize;

use super::traffic::short;
use crate::output::time::{age, human_duration, until};
use crate::output::{Cell, Table};

/// Renewals are due at about half of a certificate's life. When less than this part of it is left, something is wrong.
const LATE: u32 = 4;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct View {
    pub workloads: Vec<Workload>,
    pub authorities: Vec<Authority>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    pub workload: String,
    pub namespace: String,
    pub identity: String,
    pub service: String,
    pub version: String,
    #[serde(flatten)]
    pub certificate: Option<Facts>,
    /// When it was last renewed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served_since: Option<Timestamp>,
    /// Why the last attempt to renew it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    pub status: Status,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Authority {
    pub authority: &'static str,
    #[serde(flatten)]
    pub certificate: Facts,
    pub status: Status,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    pub subject: String,
    pub serial: String,
    pub issuer: String,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Status {
    Ok,
    /// The last attempt to renew it failed.
    Failing,
    /// It should have been renewed by now.
    Late,
    Expired,
    /// The proxy does not say.
    Unknown,
}

impl Status {
    fn of(life: Duration, ends: Timestamp, failing: bool, now: Timestamp) -> Self {
        match until(ends, now) {
            None => Self::Expired,
            Some(_) if failing => Self::Failing,
            Some(left) if left < life / LATE => Self::Late,
            Some(_) => Self::Ok,
        }
    }

    fn cell(self) -> Cell {
        match self {
            Self::Ok => Cell::good("ok"),
            Self::Failing => Cell::warn("not renewed"),
            Self::Late => Cell::warn("late"),
            Self::Expired => Cell::bad("EXPIRED"),
            Self::Unknown => Cell::dim("unknown"),
        }
    }
}

/// What is known of each connected proxy's certificate, and of those above.
pub fn view(proxies: &[Proxy], answer: &ListCertificatesResponse, now: Timestamp) -> View {
    let mut workloads: BTreeMap<(String, String), Workload> = BTreeMap::new();
    // A proxy whose stream was lost may have a second one already.
    for proxy in proxies {
        let known = workload(&proxy.id, &proxy.identity, served_fqdn(&proxy.service, &proxy.namespace), &proxy.version);
        workloads.insert((proxy.id.clone(), proxy.identity.clone()), known);
    }
    for told in &answer.workloads {
        workloads.insert((told.id.clone(), told.identity.clone()), certified(told, now));
    }
    let authorities = answer.authorities.iter().filter_map(|told| authority(told, now)).collect();
    View { workloads: workloads.into_values().collect(), authorities }
}

fn workload(id: &str, identity: &str, service: String, version: &str) -> Workload {
    let (name, namespace) = id.rsplit_once('.').unwrap_or((id, ""));
    Workload {
        workload: name.to_owned(),
        namespace: namespace.to_owned(),
        identity: identity.to_owned(),
        service,
        version: version.to_owned(),
        certificate: None,
        served_since: None,
        failure: None,
        status: Status::Unknown,
    }
}

fn certified(told: &WorkloadCertificate, now: Timestamp) -> Workload {
    let mut workload = workload(&told.id, &told.identity, told.service.clone(), &told.version);
    let Some(facts) = told.certificate.as_ref().and_then(facts) else { return workload };
    let since = (told.since_unix_ms > 0).then(|| Timestamp::from_millisecond(told.since_unix_ms).ok()).flatten();
    let life = until(facts.not_after, since.unwrap_or(facts.not_before)).unwrap_or_default();
    workload.status = Status::of(life, facts.not_after, !told.failure.is_empty(), now);
    workload.served_since = since;
    workload.failure = Some(told.failure.clone()).filter(|failure| !failure.is_empty());
    workload.certificate = Some(facts);
    workload
}

fn authority(told: &AuthorityCertificate, now: Timestamp) -> Option<Authority> {
    let certificate = told.certificate.as_ref().and_then(facts)?;
    let life = until(certificate.not_after, certificate.not_before).unwrap_or_default();
    // Nothing renews a root.
    let (authority, life) = match told.role() {
        Role::Root => ("root", ROOT_ENDS_SOON * LATE),
        // Of no consequence: it goes.
        Role::FormerRoot => ("former root", Duration::ZERO),
        Role::Intermediate => ("intermediate", life),
        Role::ControlPlane => ("control plane", life),
        Role::Unspecified => return None,
    };
    let status = Status::of(life, certificate.not_after, false, now);
    Some(Authority { authority, certificate, status })
}

fn facts(of: &Certificate) -> Option<Facts> {
    Some(Facts {
        subject: of.subject.clone(),
        serial: of.serial.clone(),
        issuer: of.issuer.clone(),
        not_before: Timestamp::from_second(of.not_before_unix).ok()?,
        not_after: Timestamp::from_second(of.not_after_unix).ok()?,
    })
}

/// What needs somebody, in sentences.
pub fn warnings(view: &View, now: Timestamp) -> Vec<String> {
    let workloads = view.workloads.iter().filter_map(|it| {
        let ends = ends(it.certificate.as_ref()?.not_after, now);
        let name = format!("{}.{}", it.workload, it.namespace);
        let why = it.failure.as_ref().map(|failure| format!(": {failure}")).unwrap_or_default();
        match it.status {
            Status::Ok | Status::Unknown => None,
            Status::Failing => Some(format!("{name}: its certificate {ends}, and could not be renewed{why}")),
            Status::Late => Some(format!("{name}: its certificate {ends}, and should have been renewed by now")),
            Status::Expired => Some(format!("{name}: its certificate {ends}{why}")),
        }
    });
    let authorities = view.authorities.iter().filter(|it| it.status != Status::Ok).map(|it| {
        let ends = ends(it.certificate.not_after, now);
        match it.authority {
            "root" => format!("the root certificate {ends}: `meshctl certs rotate-root` replaces it; in Kubernetes, docs/operations.md says how"),
            "former root" => format!(
                "the root certificate that is being replaced {ends}, and whoever has no certificate of the new one is not trusted: `meshctl certs rotate-root` goes on with it"
            ),
            other => format!("the certificate of the {other} {ends}, and should have been renewed by now: see mesh-control's log"),
        }
    });
    workloads.chain(authorities).collect()
}

fn ends(end: Timestamp, now: Timestamp) -> String {
    match until(end, now) {
        Some(left) => format!("ends in {}", human_duration(left)),
        None => format!("ended {} ago", age(end, now)),
    }
}

fn left(end: Timestamp, now: Timestamp) -> String {
    until(end, now).map_or_else(|| format!("{} ago", age(end, now)), human_duration)
}

pub fn workloads(view: &View, namespace: &str, now: Timestamp) -> Table {
    let mut table = Table::new(&[
        "WORKLOAD",
        "SERVICE",
        "VERSION",
        "IDENTITY",
        "RENEWED",
        "ENDS IN",
        "STATUS",
        "+SERIAL",
        "+ISSUER",
        "+SERVED SINCE",
        "+VALID UNTIL",
    ]);
    for it in &view.workloads {
        let of = |text: &dyn Fn(&Facts) -> String| it.certificate.as_ref().map(text).unwrap_or_default();
        table.row(vec![
            format!("{}.{}", it.workload, it.namespace).into(),
            short(&it.service, namespace).into(),
            it.version.clone().into(),
            it.identity.clone().into(),
            it.served_since.map(|since| format!("{} ago", age(since, now))).unwrap_or_default().into(),
            of(&|facts| left(facts.not_after, now)).into(),
            it.status.cell(),
            of(&|facts| facts.serial.clone()).into(),
            of(&|facts| facts.issuer.clone()).into(),
            it.served_since.map(|since| since.to_string()).unwrap_or_default().into(),
            of(&|facts| facts.not_after.to_string()).into(),
        ]);
    }
    table
}

pub fn authorities(view: &View, now: Timestamp) -> Table {
    let mut table = Table::new(&["AUTHORITY", "ISSUER", "ENDS IN", "STATUS", "+SERIAL", "+SUBJECT", "+VALID UNTIL"]);
    for Authority { authority, certificate, status } in &view.authorities {
        table.row(vec![
            (*authority).into(),
            certificate.issuer.clone().into(),
            left(certificate.not_after, now).into(),
            status.cell(),
            certificate.serial.clone().into(),
            certificate.subject.clone().into(),
            certificate.not_after.to_string().into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_900_000_000;
    const HOUR: i64 = 3600;

    fn now() -> Timestamp {
        Timestamp::from_second(NOW).unwrap()
    }

    fn certificate(since: i64, end: i64) -> Option<Certificate> {
        Some(Certificate {
            subject: "spiffe://mesh.local/ns/shop/sa/web".into(),
            serial: "4a:01".into(),
            issuer: "CN=Mesh intermediate".into(),
            not_before_unix: NOW + since - 60,
            not_after_unix: NOW + end,
        })
    }

    fn told(name: &str, since: i64, end: i64, failure: &str) -> WorkloadCertificate {
        WorkloadCertificate {
            id: format!("{name}.shop"),
            identity: "spiffe://mesh.local/ns/shop/sa/web".into(),
            service: "web.shop.svc.cluster.local".into(),
            version: "v1".into(),
            certificate: certificate(since, end),
            since_unix_ms: (NOW + since) * 1000,
            failure: failure.into(),
        }
    }

    fn proxy(id: &str) -> Proxy {
        Proxy {
            id: id.into(),
            identity: "spiffe://mesh.local/ns/shop/sa/web".into(),
            namespace: "shop".into(),
            service: "web".into(),
            version: "v1".into(),
            ..Proxy::default()
        }
    }

    #[test]
    fn it_is_told_in_time_whose_certificate_is_not_renewed() {
        let workloads = vec![
            told("web-1", -100, HOUR - 100, ""),
            told("web-2", -2800, 800, ""),
            told("web-3", -1900, 1700, "the control plane is away"),
            told("web-4", -4000, -400, "the control plane is away"),
        ];
        let answer = ListCertificatesResponse { workloads, ..Default::default() };
        let view = view(&[proxy("web-1.shop"), proxy("web-1.shop"), proxy("web-9.shop")], &answer, now());
        let statuses: Vec<_> = view.workloads.iter().map(|it| (it.workload.as_str(), it.status)).collect();
        let expected = [
            ("web-1", Status::Ok),
            ("web-2", Status::Late),
            ("web-3", Status::Failing),
            ("web-4", Status::Expired),
            ("web-9", Status::Unknown),
        ];
        assert_eq!(statuses, expected);
        let warnings = warnings(&view, now());
        assert_eq!(
            warnings,
            [
                "web-2.shop: its certificate ends in 13m20s, and should have been renewed by now",
                "web-3.shop: its certificate ends in 28m20s, and could not be renewed: the control plane is away",
                "web-4.shop: its certificate ended 6m ago: the control plane is away",
            ]
        );
        let text = workloads_text(&view);
        assert!(
            text.contains("web-1.shop  web      v1       spiffe://mesh.local/ns/shop/sa/web  100s ago  58m20s"),
            "{text}"
        );
        let last = text.lines().last().unwrap();
        assert!(last.starts_with("web-9.shop  web") && last.ends_with("unknown"), "{text}");
    }

    fn workloads_text(view: &View) -> String {
        workloads(view, "shop", now()).render(false, false, None)
    }

    #[test]
    fn it_is_told_in_time_what_all_hang_on() {
        let day = 24 * HOUR;
        let of = |role: Role, end: i64| AuthorityCertificate { role: role.into(), certificate: certificate(-day, end) };
        let authorities = vec![of(Role::Root, 170 * day), of(Role::Intermediate, day), of(Role::ControlPlane, HOUR)];
        let view = view(&[], &ListCertificatesResponse { authorities, ..Default::default() }, now());
        let found: Vec<_> = view.authorities.iter().map(|it| (it.authority, it.status)).collect();
        let expected = [("root", Status::Late), ("intermediate", Status::Ok), ("control plane", Status::Late)];
        assert_eq!(found, expected);
        let warnings = warnings(&view, now());
        assert!(warnings[0].starts_with("the root certificate ends in 170d"), "{warnings:?}");
        assert!(warnings[1].starts_with("the certificate of the control plane ends in 1h,"), "{warnings:?}");
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["authorities"][0]["notAfter"], (now() + Duration::from_secs(170 * 86_400)).to_string());
    }
}
