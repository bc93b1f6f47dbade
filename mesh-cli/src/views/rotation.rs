//! How far the replacement of the root certificate is. Pure; the clock is passed in.

use jiff::Timestamp;
use mesh_common::proto::control::{RotateRootResponse, WorkloadCertificate};
use mesh_common::tls::BACKDATE;
use serde::Serialize;

use crate::output::time::{age, human_duration, until};

/// Those who are behind that are named.
const NAMED: usize = 3;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct View {
    /// `None`: the root is not being replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub began: Option<Timestamp>,
    pub followed: u32,
    pub behind: Vec<Behind>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Behind {
    pub workload: String,
    /// When it renews its certificate, at about half of its life. `None`: it is not known which it serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renews: Option<Timestamp>,
}

pub fn view(found: &RotateRootResponse) -> View {
    let mut behind: Vec<_> =
        found.behind.iter().map(|it| Behind { workload: it.id.clone(), renews: renewal(it) }).collect();
    behind.sort_by_key(|it| (it.renews.is_none(), it.renews));
    View { began: began(found), followed: found.followed, behind }
}

fn began(found: &RotateRootResponse) -> Option<Timestamp> {
    Timestamp::from_second(found.began_unix).ok().filter(|_| found.began_unix > 0)
}

fn renewal(it: &WorkloadCertificate) -> Option<Timestamp> {
    let certificate = it.certificate.as_ref()?;
    let since = match it.since_unix_ms {
        ..=0 => certificate.not_before_unix.checked_add(i64::try_from(BACKDATE.as_secs()).ok()?)?,
        since => since / 1000,
    };
    Timestamp::from_second(since.checked_add(certificate.not_after_unix)? / 2).ok()
}

pub fn begun(found: &RotateRootResponse, now: Timestamp) -> String {
    match began(found) {
        None => "The root is not being replaced.".to_owned(),
        Some(began) => format!(
            "Certificates hang on a new root since {began}, {} ago; the one before is trusted as well.",
            age(began, now)
        ),
    }
}

pub struct Progress {
    /// Changes when there is something new.
    pub counts: String,
    /// What comes next, and when.
    pub next: String,
}

pub fn progress(found: &RotateRootResponse, now: Timestamp) -> Progress {
    let View { followed, behind, .. } = view(found);
    let all = behind.len() + followed as usize;
    let counts = format!("{followed} of {all} workloads have followed");
    let named: Vec<_> = behind.iter().take(NAMED).map(|it| said(it, now)).collect();
    let next = match behind.len().saturating_sub(NAMED) {
        _ if behind.is_empty() => ".".to_owned(),
        0 => format!("; {}.", named.join(", ")),
        more => format!("; {} and {more} more.", named.join(", ")),
    };
    Progress { counts, next }
}

fn said(it: &Behind, now: Timestamp) -> String {
    let name = &it.workload;
    match it.renews.map(|at| until(at, now)) {
        None => format!("{name} does not say which it serves"),
        Some(None) => format!("{name} is to renew now"),
        Some(Some(left)) => format!("{name} renews in about {}", human_duration(left)),
    }
}

#[cfg(test)]
mod tests {
    use mesh_common::proto::control::Certificate;

    use super::*;

    const NOW: i64 = 1_900_000_000;

    fn behind(id: &str, ends: Option<i64>) -> WorkloadCertificate {
        let certificate =
            |end| Certificate { not_before_unix: NOW - 160, not_after_unix: NOW + end, ..Default::default() };
        WorkloadCertificate { id: id.into(), certificate: ends.map(certificate), ..Default::default() }
    }

    #[test]
    fn it_is_told_who_is_behind_and_until_when() {
        let now = Timestamp::from_second(NOW).unwrap();
        assert_eq!(begun(&RotateRootResponse::default(), now), "The root is not being replaced.");
        let mut found = RotateRootResponse {
            began_unix: NOW - 90,
            followed: 2,
            behind: vec![behind("a", None), behind("b", Some(1300)), behind("c", Some(50)), behind("d", Some(1400))],
        };
        let text = |found: &RotateRootResponse| {
            let progress = progress(found, now);
            format!("{}{}", progress.counts, progress.next)
        };
        assert!(begun(&found, now).contains(", 90s ago; the one before is trusted as well."), "{}", begun(&found, now));
        assert_eq!(
            text(&found),
            "2 of 6 workloads have followed; c is to renew now, b renews in about 10m, d renews in about 10m50s and 1 more."
        );
        // By the proxy's own word, where it has given it.
        found.behind[1].since_unix_ms = (NOW - 900) * 1000;
        assert!(text(&found).contains("b renews in about 3m20s"), "{}", text(&found));
        found.behind.truncate(1);
        assert_eq!(text(&found), "2 of 3 workloads have followed; a does not say which it serves.");
        found.behind.clear();
        assert_eq!(text(&found), "2 of 2 workloads have followed.");
        let json = serde_json::to_value(view(&RotateRootResponse::default())).unwrap();
        assert_eq!(json, serde_json::json!({"followed": 0, "behind": []}));
    }
}
