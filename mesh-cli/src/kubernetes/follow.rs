//! What is followed for a while: it goes on with other replicas when one goes away.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::{self, SelectAll, StreamExt};
use mesh_common::proto::control::watch_event::Type;
use mesh_common::proto::control::{
    ObjectVersion, TapRequest, TapResponse, WaitProgress, WaitRequest, WatchEvent, WatchRequest,
};
use serde_json::Value;
use tokio::time::Instant;
use tonic::Status;

use super::replicas::{Replicas, is_lost};
use super::{merge, objects};

/// Between one replica's end and the next one's beginning there may be none for so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a tap looks for replicas that began after it.
const LOOK: Duration = Duration::from_secs(5);
const ENDED: &str = "mesh-control ended the tap";

/// Changes of objects, as one replica sees them; what has been told is not told again when it is another one.
pub fn watch(
    replicas: Replicas,
    request: WatchRequest,
) -> impl Stream<Item = Result<WatchEvent, Status>> + Send + 'static {
    async_stream::try_stream! {
        let mut told = Told::default();
        loop {
            let open = replicas.any(|replica| {
                let request = request.clone();
                async move { Ok(replica.mesh().watch(request).await?.into_inner()) }
            });
            let mut events = open.await?;
            told.begin();
            let lost = loop {
                match events.next().await {
                    Some(Ok(event)) => for event in told.of(event) {
                        yield event;
                    },
                    Some(Err(status)) if !is_lost(&status) => Err(status)?,
                    Some(Err(status)) => break status,
                    None => break Status::unavailable("mesh-control ended the watch"),
                }
            };
            replicas.find_again(lost, Instant::now() + PATIENCE).await?;
        }
    }
}

/// How far all replicas' proxies are with these objects. Over when all are done, when all others have rejected something, or
/// when time is.
pub fn wait(
    replicas: Replicas,
    objects: Vec<ObjectVersion>,
    timeout: Duration,
) -> impl Stream<Item = Result<WaitProgress, Status>> + Send + 'static {
    async_stream::try_stream! {
        let deadline = Instant::now() + timeout;
        loop {
            let left = u64::try_from(deadline.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u64::MAX);
            let request = WaitRequest { revision: 0, timeout_ms: left.max(1), objects: objects.clone() };
            let open = replicas.each(|replica| {
                let request = request.clone();
                async move { Ok((replica.name.clone(), replica.mesh().wait(request).await?.into_inner())) }
            });
            let (names, streams): (Vec<String>, Vec<_>) = open.await?.into_iter().unzip();
            let mut each: Vec<Option<WaitProgress>> = vec![None; names.len()];
            let numbered = streams.into_iter().enumerate().map(|(index, steps)| {
                let steps = steps.map(Some).chain(stream::iter([None]));
                steps.map(move |step| (index, step))
            });
            let mut steps = numbered.collect::<SelectAll<_>>();
            let lost = loop {
                match steps.next().await {
                    Some((index, Some(Ok(step)))) => {
                        each[index] = Some(step);
                        let merged = merge::progress(&each);
                        if !merged.done {
                            yield merged;
                        } else if replicas.are_all(&names).await {
                            yield merged;
                            return;
                        } else {
                            // Proxies may have gone over to it.
                            break Status::unavailable("another replica of mesh-control began");
                        }
                    }
                    Some((_, Some(Err(status)))) if is_lost(&status) => break status,
                    Some((_, Some(Err(status)))) => Err(status)?,
                    Some((index, None)) => {
                        let over = each[index].as_ref().is_some_and(|last| last.done || !last.rejected.is_empty());
                        if !over && Instant::now() < deadline {
                            break Status::unavailable("mesh-control ended the wait");
                        }
                    }
                    None => return,
                }
            };
            replicas.find_again(lost, deadline.min(Instant::now() + PATIENCE)).await?;
        }
    }
}

/// What the proxies of all replicas tell. A proxy whose replica goes away reports to another one, and the tap goes there too.
pub fn tap(
    replicas: Replicas,
    request: TapRequest,
) -> impl Stream<Item = Result<TapResponse, Status>> + Send + 'static {
    async_stream::try_stream! {
        loop {
            // Each says at once whom it asks; as long as one has not, nobody knows who is asked.
            let open = replicas.each(|replica| {
                let request = request.clone();
                async move {
                    let mut told = replica.mesh().tap(request).await?.into_inner();
                    let first = tokio::time::timeout(LOOK, told.message()).await;
                    let first = first.map_err(|_| Status::unavailable("mesh-control does not say whom it asks"))?;
                    let first = first?.ok_or_else(|| Status::unavailable(ENDED))?;
                    Ok((replica.name.clone(), first, told))
                }
            });
            let (mut names, mut asked, mut streams) = (Vec::new(), Vec::new(), SelectAll::new());
            let mut firsts = Vec::new();
            for (index, (name, mut first, told)) in open.await?.into_iter().enumerate() {
                names.push(name);
                asked.push(first.asked.take().unwrap_or_default());
                firsts.push(first);
                let told = told.map(Some).chain(stream::iter([None]));
                streams.push(told.map(move |told| (index, told)));
            }
            yield TapResponse { asked: Some(merge::asked(&asked)), ..TapResponse::default() };
            for first in firsts {
                yield first;
            }
            let mut look = Instant::now() + LOOK;
            let lost = loop {
                match tokio::time::timeout_at(look, streams.next()).await {
                    Ok(Some((index, Some(Ok(mut response))))) => {
                        if let Some(of_it) = response.asked.take() {
                            asked[index] = of_it;
                            response.asked = Some(merge::asked(&asked));
                        }
                        yield response;
                    }
                    Ok(Some((_, Some(Err(status))))) if !is_lost(&status) => Err(status)?,
                    Ok(Some((_, Some(Err(status))))) => break status,
                    Ok(Some((_, None)) | None) => break Status::unavailable(ENDED),
                    Err(_) => (),
                }
                if Instant::now() >= look {
                    look = Instant::now() + LOOK;
                    if !replicas.are_all(&names).await {
                        // Proxies may have gone over to it.
                        break Status::unavailable("another replica of mesh-control began");
                    }
                }
            };
            // Those that are still there are told by this that nobody reads them any more.
            drop(streams);
            replicas.find_again(lost, Instant::now() + PATIENCE).await?;
        }
    }
}

/// What a watcher has been told, by kind, namespace and name.
#[derive(Default)]
struct Told {
    versions: BTreeMap<Place, u64>,
    /// What the stream that began last has said to be there, until it has said all.
    there: Option<BTreeSet<Place>>,
    synced: bool,
}

type Place = (String, String, String);

impl Told {
    fn begin(&mut self) {
        self.there = Some(BTreeSet::new());
    }

    /// What is news of this.
    fn of(&mut self, event: WatchEvent) -> Vec<WatchEvent> {
        let key = event.key.clone().unwrap_or_default();
        let place = (key.kind, key.namespace, key.name);
        match event.r#type() {
            Type::Applied => {
                let version = version(&event.object);
                let known = self.versions.get(&place).is_some_and(|known| version <= *known);
                if let Some(there) = &mut self.there {
                    there.insert(place.clone());
                    if known {
                        return Vec::new();
                    }
                }
                self.versions.insert(place, version);
                vec![event]
            }
            Type::Deleted => {
                self.versions.remove(&place);
                vec![event]
            }
            Type::Synced => {
                let there = self.there.take().unwrap_or_default();
                let gone: Vec<Place> = self.versions.keys().filter(|place| !there.contains(*place)).cloned().collect();
                let mut news: Vec<WatchEvent> =
                    gone.into_iter().map(|place| self.gone(place, event.revision)).collect();
                if !std::mem::replace(&mut self.synced, true) {
                    news.push(event);
                }
                news
            }
            Type::Unspecified => vec![event],
        }
    }

    fn gone(&mut self, place: Place, revision: u64) -> WatchEvent {
        self.versions.remove(&place);
        let (kind, namespace, name) = place;
        let key = Some(mesh_common::proto::control::ObjectKey { kind, namespace, name });
        WatchEvent { r#type: Type::Deleted.into(), key, object: String::new(), revision }
    }
}

fn version(object: &str) -> u64 {
    let object: Value = serde_json::from_str(object).unwrap_or_default();
    object.pointer("/metadata/resourceVersion").and_then(Value::as_str).map(objects::number).unwrap_or_default()
}
