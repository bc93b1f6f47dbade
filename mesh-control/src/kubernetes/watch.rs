//! One watch of the API server: lists in pages, then follows with bookmarks, and begins again with backoff and jitter.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use kube::api::{Api, DynamicObject};
use kube::runtime::watcher::{self, Event};
use kube::{Client, Resource, ResourceExt};
use mesh_common::resource::Kind;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::convert::{self, Fact};
use super::presence::{self, Presence, Unknown};
use super::retry;
use super::tables::{Change, Seen, Watched};

/// When to look again for a kind that was not installed.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

pub(super) type Changes = mpsc::Sender<(Watched, Change)>;

/// Follows a kind that every API server has.
pub(super) async fn builtin<K>(api: Api<K>, watched: Watched, convert: fn(&K) -> Option<Fact>, changes: Changes)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    while !matches!(follow(api.clone(), watched, convert, &changes).await, End::Closed) {
        pause().await;
    }
}

/// Follows a kind that a CustomResourceDefinition brings, or will bring: in the newest version that is served, of those that
/// are known here.
pub(super) async fn custom(client: Client, kind: Kind, changes: Changes) {
    let (mut presence, mut unknown) = (Presence::default(), Unknown::default());
    loop {
        for api_version in kind.api_versions() {
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &presence::resource(kind, api_version));
            let convert = move |object: &DynamicObject| convert::object(kind, api_version, object);
            match follow(api, Watched::Kind(kind), convert, &changes).await {
                End::Missing => {}
                End::Closed => return,
                End::Lost => presence.lost(),
            }
        }
        if presence.is_gone() {
            if changes.send((Watched::Kind(kind), Change::Absent)).await.is_err() {
                return;
            }
            if unknown.is_due(Instant::now()) {
                match presence::served(&client, kind).await {
                    Ok(served) => {
                        unknown.tell(kind, served).into_iter().for_each(|told| tracing::warn!("{told}"));
                    }
                    Err(error) => tracing::debug!(%kind, %error, "cannot see in which versions it is served"),
                }
            }
        }
        pause().await;
    }
}

async fn pause() {
    tokio::time::sleep(LOOK_AGAIN.mul_f64(1.0 + fastrand::f64() / 2.0)).await;
}

enum End {
    /// The API server does not know the kind.
    Missing,
    /// It knew the kind, and does no more.
    Lost,
    Closed,
}

async fn follow<K>(api: Api<K>, watched: Watched, convert: impl Fn(&K) -> Option<Fact>, changes: &Changes) -> End
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = retry::events(api).boxed();
    let mut listing = Vec::new();
    let (mut listed, mut well) = (false, true);
    loop {
        let event = match events.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return End::Closed,
            Err(error) if is_missing(&error) => return if listed { End::Lost } else { End::Missing },
            Err(error) => {
                if well {
                    tracing::warn!(?watched, %error, "the watch broke; what is known stays, and it is tried again");
                }
                well = false;
                continue;
            }
        };
        let change = match event {
            Event::Init => {
                listing.clear();
                continue;
            }
            Event::InitApply(object) => {
                listing.push(seen(&object, convert(&object)));
                continue;
            }
            Event::InitDone => {
                if !well {
                    tracing::info!(?watched, "the watch is back");
                }
                (listed, well) = (true, true);
                Change::All(std::mem::take(&mut listing))
            }
            Event::Apply(object) => Change::Put(seen(&object, convert(&object))),
            Event::Delete(object) => Change::Gone(seen(&object, None)),
        };
        if changes.send((watched, change)).await.is_err() {
            return End::Closed;
        }
    }
}

fn is_missing(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    matches!(error, InitialListFailed(kube::Error::Api(status)) | WatchStartFailed(kube::Error::Api(status)) if status.code == 404)
}

fn seen<K: Resource>(object: &K, fact: Option<Fact>) -> Seen {
    let version = object.resource_version().and_then(|version| version.parse().ok());
    Seen {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        resource_version: version.unwrap_or_default(),
        fact,
    }
}
