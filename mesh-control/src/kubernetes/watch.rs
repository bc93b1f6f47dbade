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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;
    use crate::kubernetes::convert::Written;

    const GROUP: &str = "/apis/gateway.networking.k8s.io";

    /// The versions in which an API server has TCPRoutes, of which there is one. Whoever watches them is told nothing, and has
    /// to ask again after a second.
    #[derive(Clone, Default)]
    struct Server(Arc<Mutex<Vec<&'static str>>>);

    impl Server {
        fn serve(&self, versions: &[&'static str]) {
            *self.0.lock().unwrap() = versions.to_vec();
        }

        fn client(&self) -> Client {
            let server = self.clone();
            let answer = move |request: Request<Body>| {
                let server = server.clone();
                async move {
                    let uri = request.uri();
                    let watch = uri.query().is_some_and(|query| query.contains("watch="));
                    if watch {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    let (code, body) = match server.list(uri.path()) {
                        None => (404, "404 page not found".to_owned()),
                        Some(_) if watch => (200, String::new()),
                        Some(list) => (200, list.to_string()),
                    };
                    let response = Response::builder().status(code).body(Body::from(body.into_bytes()));
                    Ok::<_, Infallible>(response.unwrap())
                }
            };
            Client::new(tower::service_fn(answer), "default")
        }

        fn list(&self, path: &str) -> Option<Value> {
            let (version, plural) = path.strip_prefix(GROUP)?.strip_prefix('/')?.split_once('/')?;
            if plural != "tcproutes" || !self.0.lock().unwrap().contains(&version) {
                return None;
            }
            let api_version = format!("gateway.networking.k8s.io/{version}");
            let parents = json!([{"group": "", "kind": "Service", "name": "web"}]);
            let spec = json!({"parentRefs": parents, "rules": [{"backendRefs": [{"name": "web", "port": 70}]}]});
            let metadata = json!({"name": "r", "namespace": "shop", "resourceVersion": "5"});
            let route = json!({"apiVersion": api_version, "kind": "TCPRoute", "metadata": metadata, "spec": spec});
            let metadata = json!({"resourceVersion": "7"});
            Some(json!({"apiVersion": api_version, "kind": "TCPRouteList", "metadata": metadata, "items": [route]}))
        }
    }

    /// The version in which the route was read; "" for a kind that is not there.
    fn read_in((watched, change): (Watched, Change)) -> &'static str {
        assert_eq!(watched, Watched::Kind(Kind::TcpRoute));
        match change {
            Change::Absent => "",
            Change::All(all) => match all.as_slice() {
                [Seen { fact: Some(Fact::Object(Written { api_version, .. })), .. }] => api_version,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_is_followed_once_it_is_there_in_the_newest_version_that_is_served() {
        let server = Server::default();
        let (changes, mut received) = mpsc::channel(1);
        let following = tokio::spawn(custom(server.client(), Kind::TcpRoute, changes));
        let mut next = async || read_in(received.recv().await.unwrap());
        assert_eq!(next().await, "");
        // Nobody is kept waiting for a kind that is not there, and it may come.
        server.serve(&["v1alpha2"]);
        while next().await != "gateway.networking.k8s.io/v1alpha2" {}
        // Served in another version from now on: there is no time in which the objects are gone.
        server.serve(&["v1"]);
        assert_eq!(next().await, "gateway.networking.k8s.io/v1");
        server.serve(&["v1alpha2"]);
        assert_eq!(next().await, "gateway.networking.k8s.io/v1alpha2");
        server.serve(&[]);
        assert_eq!(next().await, "");
        server.serve(&["v1alpha2", "v1"]);
        while next().await != "gateway.networking.k8s.io/v1" {}
        drop(received);
        following.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_that_an_api_server_does_not_know_for_a_moment_is_not_gone() {
        let server = Server::default();
        server.serve(&["v1"]);
        let (changes, mut received) = mpsc::channel(1);
        let following = tokio::spawn(custom(server.client(), Kind::TcpRoute, changes));
        let mut next = async || read_in(received.recv().await.unwrap());
        assert_eq!(next().await, "gateway.networking.k8s.io/v1");
        server.serve(&[]);
        // Longer than a watch lasts here, and shorter than a round.
        tokio::time::sleep(Duration::from_secs(3)).await;
        server.serve(&["v1"]);
        assert_eq!(next().await, "gateway.networking.k8s.io/v1");
        drop(received);
        following.abort();
    }
}
