//! Hedging: a second try is sent while the first one is still under way, and the first answer wins. Who loses is
//! cancelled.
//!
//! Only requests whose body has come to its end and is kept can be sent twice at once. Each further try is a retry: one of
//! the policy's, and of the cluster's budget while it lasts.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Response;

use super::exchange::Exchange;
use super::pipeline::{Ended, Next, Tries, make_request};
use super::request_body::RequestBody;
use crate::config::RetryPolicy;
use crate::error::Error;
use crate::retry;
use crate::upstream::{Failed, Held, Target, UpstreamBody, View};

/// Whether the policy hedges such a request. An upgrade has one owner, and so has a body that waits for 100 (Continue).
pub(super) fn is_wanted(exchange: &Exchange, policy: &RetryPolicy) -> bool {
    let head = &exchange.head;
    policy.hedges && policy.retries > 0 && !policy.per_try_timeout.is_zero() && head.upgrade.is_none() && !head.expects
}

/// A try that is under way, with the retry that it is.
type Try = Pin<Box<dyn Future<Output = Tried> + Send>>;

struct Tried {
    /// Which one it was.
    number: u32,
    target: Target,
    began: Instant,
    outcome: Result<Response<UpstreamBody>, Failed>,
}

#[allow(clippy::large_enum_variant)] // Taken apart as soon as it is made.
enum Event {
    Tried(Tried),
    /// Nobody has answered in that time.
    Late,
}

/// Sends the request, and again whenever nobody has answered in the time of a try, until there is a response to take or
/// nothing more to try.
pub(super) async fn tries(
    exchange: &mut Exchange,
    policy: &RetryPolicy,
    view: &Arc<View>,
    key: Option<u64>,
) -> Result<Response<UpstreamBody>, Ended> {
    let mut tries = Tries::new(policy);
    let mut flight = FuturesUnordered::<Try>::new();
    let first = exchange.upload.as_ref().map(|upload| upload.body(None)).unwrap_or_else(RequestBody::empty);
    flight.push(send(exchange, view, key, &mut tries, first, None)?);
    loop {
        let event = next(exchange, policy, &mut flight).await?;
        let Tried { number, target, began, outcome } = match event {
            Event::Late => {
                // Until its body has come, nobody can answer anyway.
                if let Some(body) = copy(exchange)
                    && let Some(held) = tries.take_another(view)
                {
                    flight.push(send(exchange, view, key, &mut tries, body, Some(held))?);
                }
                continue;
            }
            Event::Tried(tried) => tried,
        };
        exchange.target = Some(target);
        let which = (number, began);
        if !flight.is_empty() && !is_final(policy, &outcome) {
            // Another one may still do better. This one counts for its endpoint all the same.
            tries.observe(exchange, outcome, which);
            continue;
        }
        match tries.next(exchange, policy, view, outcome, which) {
            Next::Done(result) => return result,
            Next::AtOnce => (),
            Next::After(wait) => {
                let waited = exchange.deadline.limit(exchange.upload.as_ref(), Box::pin(tokio::time::sleep(wait)));
                waited.await?;
            }
        }
        let again = exchange.upload.as_ref().map(|upload| upload.body(None)).unwrap_or_else(RequestBody::empty);
        flight.push(send(exchange, view, key, &mut tries, again, None)?);
    }
}

/// An answer that is not to be tried again.
fn is_final(policy: &RetryPolicy, outcome: &Result<Response<UpstreamBody>, Failed>) -> bool {
    outcome.as_ref().is_ok_and(|answer| !retry::on_response(&policy.on, answer.status(), answer.headers()))
}

/// The whole request once more, if all of it is here.
fn copy(exchange: &Exchange) -> Option<RequestBody> {
    match &exchange.upload {
        None => Some(RequestBody::empty()),
        Some(upload) => upload.whole(),
    }
}

/// Begins a try at an endpoint that has none of this request, if there is one.
fn send(
    exchange: &mut Exchange,
    view: &Arc<View>,
    key: Option<u64>,
    tries: &mut Tries,
    body: RequestBody,
    held: Option<Held>,
) -> Result<Try, Error> {
    let target = view.choose(&exchange.conn.downstream, &tries.tried, key)?;
    tries.tried.push(target.address());
    let began = Instant::now();
    exchange.tries(target.address(), began);
    let number = exchange.attempts;
    exchange.deadline.begin_try(Duration::ZERO, began);
    let (version, flow) = (exchange.head.version_for(&target), exchange.flow());
    let told = (&exchange.deadline, exchange.trace.as_ref());
    let request = make_request(&mut exchange.head, told, body, &target, version, true)?;
    Ok(Box::pin(async move {
        let _held = held;
        let outcome = target.send(request, version, flow).await;
        Tried { number, target, began, outcome }
    }))
}

/// What happens next, as long as the request has time.
async fn next(
    exchange: &mut Exchange,
    policy: &RetryPolicy,
    flight: &mut FuturesUnordered<Try>,
) -> Result<Event, Error> {
    let late = tokio::time::sleep(policy.per_try_timeout);
    let event = async {
        tokio::select! {
            biased;
            Some(tried) = flight.next() => Event::Tried(tried),
            () = late => Event::Late,
        }
    };
    Ok(exchange.deadline.limit(exchange.upload.as_ref(), event).await?)
}
