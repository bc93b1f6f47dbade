//! Whether the API server has a kind, and in which versions: kinds come and go with their definitions. No I/O but the question
//! at the end.

use std::time::Duration;

use http::Request;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIGroup;
use kube::api::{ApiResource, GroupVersionKind};
use kube::{Client, Error};
use mesh_common::resource::Kind;
use tokio::time::Instant;

/// Between two looks at the versions that an API server has of a kind which is not there in any that is known here.
const LOOK: Duration = Duration::from_secs(60);

/// Where objects of a kind are, in this version.
pub(super) fn resource(kind: Kind, api_version: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind.as_str()), kind.plural())
}

/// What rounds of looking for a kind, in each version that is known here, came to.
#[derive(Debug, Default)]
pub(super) struct Presence {
    /// It was there at some time.
    was_there: bool,
    /// Rounds without it since then.
    without: u32,
}

impl Presence {
    /// It was there, and is not any more in that version.
    pub fn lost(&mut self) {
        *self = Self { was_there: true, without: 0 };
    }

    /// A round has ended. True: there are no objects of this kind. One that was there is gone only when it stays so for a
    /// second round: an API server that has just started may not know it yet, and one whose definition has changed may serve
    /// it in another version from now on.
    pub fn is_gone(&mut self) -> bool {
        self.without = self.without.saturating_add(1);
        !self.was_there || self.without > 1
    }
}

/// What was said of a kind that is there only in versions which are not known here: once, and again when it is other ones.
#[derive(Debug, Default)]
pub(super) struct Unknown {
    next: Option<Instant>,
    told: Vec<String>,
}

impl Unknown {
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = self.next.is_none_or(|next| now >= next);
        if due {
            self.next = Some(now + LOOK);
        }
        due
    }

    /// The sentence to say about the versions that are served, if it was not said yet.
    pub fn tell(&mut self, kind: Kind, served: Vec<String>) -> Option<String> {
        // It has come meanwhile, and the next round finds it.
        let known = served.iter().any(|version| kind.api_versions().contains(&version.as_str()));
        let served = if known { Vec::new() } else { served };
        if served == self.told {
            return None;
        }
        self.told = served;
        let served = self.told.join(", ");
        let known = kind.api_versions().join(" or ");
        (!self.told.is_empty()).then(|| {
            format!(
                "the API server has {kind} as {served}, and here it is known as {known}: its objects are without effect and get \
                 no status; `meshctl check` says what to do"
            )
        })
    }
}

/// Versions in which the API server serves a kind.
pub(super) async fn served(client: &Client, kind: Kind) -> kube::Result<Vec<String>> {
    let request = Request::get(format!("/apis/{}", kind.group())).body(Vec::new()).map_err(Error::HttpError)?;
    let group: APIGroup = match client.request(request).await {
        // There is nothing at all of this group.
        Err(Error::Api(status)) if status.code == 404 => return Ok(Vec::new()),
        answer => answer?,
    };
    let mut served = Vec::new();
    for version in group.versions {
        let there = client.list_api_group_resources(&version.group_version).await?;
        if there.resources.iter().any(|resource| resource.name == kind.plural()) {
            served.push(version.group_version);
        }
    }
    Ok(served)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_that_was_never_there_is_absent_at_once_and_one_that_was_in_the_second_round() {
        let mut presence = Presence::default();
        assert_eq!([(); 3].map(|()| presence.is_gone()), [true; 3]);
        presence.lost();
        assert_eq!([(); 3].map(|()| presence.is_gone()), [false, true, true]);
        // It has come again, in another version perhaps, and goes again.
        presence.lost();
        assert_eq!([(); 2].map(|()| presence.is_gone()), [false, true]);
    }

    #[test]
    fn versions_that_are_not_known_are_told_once() {
        let mut unknown = Unknown::default();
        let versions = |versions: &[&str]| versions.iter().map(|v| format!("gateway.networking.k8s.io/{v}")).collect();
        assert_eq!(unknown.tell(Kind::GrpcRoute, versions(&[])), None);
        let told = unknown.tell(Kind::GrpcRoute, versions(&["v1alpha2"])).unwrap();
        assert!(told.contains("GRPCRoute as gateway.networking.k8s.io/v1alpha2, "), "{told}");
        assert_eq!(unknown.tell(Kind::GrpcRoute, versions(&["v1alpha2"])), None);
        assert!(unknown.tell(Kind::GrpcRoute, versions(&["v1alpha2", "v2"])).is_some());
        // Once one is known, there is nothing to say, and later there may be again.
        assert_eq!(unknown.tell(Kind::GrpcRoute, versions(&["v1", "v1alpha2"])), None);
        assert!(unknown.tell(Kind::GrpcRoute, versions(&["v1alpha2"])).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn versions_are_looked_at_now_and_then() {
        let mut unknown = Unknown::default();
        assert!(unknown.is_due(Instant::now()) && !unknown.is_due(Instant::now()));
        assert!(unknown.is_due(Instant::now() + LOOK));
    }
}
