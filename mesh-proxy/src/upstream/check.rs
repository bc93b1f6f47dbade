//! Active health checks: each endpoint of a cluster in use is asked whether it works, by the way that requests go.
//!
//! [`Verdict`] is what the answers mean, with no I/O. [`Checked`] is an endpoint's part of it, read for each request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, TE, USER_AGENT};
use http::uri::{Authority, PathAndQuery};
use http::{Method, StatusCode};
use mesh_common::names::{ALPN_H2, ALPN_TCP};
use prost::Message;
use tokio::task::AbortHandle;

use super::cluster::{State, Target, View};
use super::host::Host;
use super::own::{grpc_frame, grpc_message, read, request};
use super::{Flow, Version};
use crate::config::{CheckKind, HealthCheck, HttpCheck};
use crate::error::{Error, Kind};
use crate::http::RequestBody;
use crate::probe::{HealthCheckRequest, HealthCheckResponse, SERVING};
use crate::retry::grpc_status;

/// Whatever the interval is.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);
const GRPC_PATH: &str = "/grpc.health.v1.Health/Check";
const AGENT: HeaderValue = HeaderValue::from_static("mesh-proxy-health");

/// What came of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Good,
    Bad,
    /// So bad that it needs no second one.
    Hopeless,
}

/// What the checks so far say.
#[derive(Debug, Default)]
struct Verdict {
    healthy: Option<bool>,
    /// Answers in a row that speak against it.
    against: u32,
}

impl Verdict {
    /// Whether the endpoint is healthy, after one more check. The first one decides by itself.
    fn observe(&mut self, check: &HealthCheck, answer: Answer) -> bool {
        let good = answer == Answer::Good;
        let Some(healthy) = self.healthy else { return *self.healthy.insert(good) };
        if good == healthy {
            self.against = 0;
            return healthy;
        }
        self.against += 1;
        let needed = if good { check.healthy_threshold } else { check.unhealthy_threshold };
        if self.against >= needed || answer == Answer::Hopeless {
            *self = Self { healthy: Some(good), against: 0 };
        }
        self.healthy == Some(true)
    }
}

/// How an endpoint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It passes, or is not checked.
    Good = 0,
    /// There is no answer yet.
    Unknown = 1,
    Failing = 2,
}

/// An endpoint's health checks.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// The standing in the lowest two bits, above them the number of the checker that may change it: one that was replaced
    /// has no say any more.
    standing: AtomicU64,
    checker: Mutex<Option<Checker>>,
}

#[derive(Debug)]
struct Checker {
    check: Arc<HealthCheck>,
    task: AbortHandle,
}

impl Checked {
    pub(super) fn standing(&self) -> Standing {
        match self.standing.load(Ordering::Relaxed) & 3 {
            0 => Standing::Good,
            1 => Standing::Unknown,
            _ => Standing::Failing,
        }
    }

    /// Has the host checked like this from now on, if it isn't already.
    pub(super) fn begin(&self, check: &Arc<HealthCheck>, host: &Arc<Host>, state: &Weak<State>) {
        let mut checker = self.checker.lock().unwrap_or_else(PoisonError::into_inner);
        if checker.as_ref().is_some_and(|it| it.check == *check) {
            return;
        }
        let number = self.replace(checker.take(), Standing::Unknown);
        let task = tokio::spawn(watch(state.clone(), host.clone(), check.clone(), number)).abort_handle();
        *checker = Some(Checker { check: check.clone(), task });
    }

    pub(super) fn end(&self) {
        let checker = self.checker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if checker.is_some() {
            self.replace(checker, Standing::Good);
        }
    }

    /// The number of the next checker.
    fn replace(&self, former: Option<Checker>, standing: Standing) -> u64 {
        if let Some(former) = former {
            former.task.abort();
        }
        let number = (self.standing.load(Ordering::Relaxed) >> 2) + 1;
        self.standing.store(number << 2 | standing as u64, Ordering::Relaxed);
        number
    }

    /// The standing before, unless the checker has been replaced.
    fn set(&self, number: u64, standing: Standing) -> Option<Standing> {
        let before = self.standing();
        let of_ours = |value: u64| (value >> 2 == number).then_some(number << 2 | standing as u64);
        self.standing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, of_ours).ok().map(|_| before)
    }
}

/// Checks a host for as long as it is one of the cluster.
async fn watch(state: Weak<State>, host: Arc<Host>, check: Arc<HealthCheck>, number: u64) {
    let mut verdict = Verdict::default();
    loop {
        let Some(view) = state.upgrade().map(|state| state.latest()) else { return };
        if let Some(answer) = ask(&view, &host, &check).await {
            let healthy = verdict.observe(&check, answer);
            view.tally.checked(answer == Answer::Good);
            let standing = if healthy { Standing::Good } else { Standing::Failing };
            let Some(before) = host.checked.set(number, standing) else { return };
            if before != standing {
                let (cluster, endpoint) = (&view.cluster.name, host.address);
                tracing::info!(%cluster, %endpoint, healthy, "the health of an endpoint has changed");
            }
            let ends = view.cluster.health.outliers.as_ref().is_some_and(|it| it.ends_with_check);
            if ends && answer == Answer::Good {
                host.record.pardon();
            }
        }
        drop(view);
        if host.is_retired() {
            return;
        }
        tokio::time::sleep(wait(&check, fastrand::f64())).await;
    }
}

/// From the end of one check to the next. `random` is in `0.0..1.0`.
fn wait(check: &HealthCheck, random: f64) -> Duration {
    check.interval.saturating_add(check.jitter.mul_f64(random)).max(SHORTEST_WAIT)
}

/// `None`: it could not be asked for reasons of our own.
async fn ask(view: &Arc<View>, host: &Arc<Host>, check: &HealthCheck) -> Option<Answer> {
    let target = view.target(host)?;
    let answer = async {
        match &check.kind {
            CheckKind::Tcp => tcp(view, host).await,
            CheckKind::Http(http) => by_http(&target, http).await,
            CheckKind::Grpc { service, authority } => by_grpc(&target, service, authority).await,
        }
    };
    match tokio::time::timeout(check.timeout, answer).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) if error.kind == Kind::Overflow => None,
        Ok(Err(error)) => {
            tracing::debug!(cluster = %view.cluster.name, endpoint = %host.address, %error, "a health check failed");
            Some(Answer::Bad)
        }
        Err(_) => Some(Answer::Bad),
    }
}

async fn tcp(view: &View, host: &Host) -> Result<Answer, Error> {
    let alpn = view.cluster.tls.as_ref().map(|tls| tls.alpn.as_slice()).unwrap_or_default();
    let streams = alpn.iter().any(|it| it == ALPN_TCP);
    view.connector.connect(host, if streams { ALPN_TCP } else { ALPN_H2 }).await?;
    Ok(Answer::Good)
}

async fn by_http(target: &Target, check: &HttpCheck) -> Result<Answer, Error> {
    let version = if target.is_proxy() || check.http2 { Version::Http2 } else { Version::Http1 };
    let mut request = request(target, version, check.http2, &check.host, &check.path, RequestBody::empty())?;
    *request.method_mut() = Method::GET;
    request.headers_mut().insert(USER_AGENT, AGENT);
    let response = target.send(request, version, Flow::Free).await.map_err(|failed| failed.error)?;
    let (head, body) = response.into_parts();
    read(body).await?;
    let status = head.status.as_u16();
    Ok(if check.expected.iter().any(|it| it.contains(&status)) {
        Answer::Good
    } else if check.retriable.iter().any(|it| it.contains(&status)) {
        Answer::Bad
    } else {
        Answer::Hopeless
    })
}

async fn by_grpc(target: &Target, service: &str, authority: &Authority) -> Result<Answer, Error> {
    let body = RequestBody::full(grpc_frame(&HealthCheckRequest { service: service.to_owned() }));
    let mut request = request(target, Version::Http2, true, authority, &PathAndQuery::from_static(GRPC_PATH), body)?;
    *request.method_mut() = Method::POST;
    request.headers_mut().insert(USER_AGENT, AGENT);
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    let response = target.send(request, Version::Http2, Flow::Free).await.map_err(|failed| failed.error)?;
    let (head, body) = response.into_parts();
    let (answer, trailers) = read(body).await?;
    let status = trailers.as_ref().and_then(grpc_status).or_else(|| grpc_status(&head.headers));
    let good = head.status == StatusCode::OK && status == Some(0) && serves(answer);
    Ok(if good { Answer::Good } else { Answer::Bad })
}

/// Whether the only message in it says so.
fn serves(answer: Bytes) -> bool {
    let message = grpc_message(answer);
    message.is_some_and(|it| HealthCheckResponse::decode(it).is_ok_and(|it| it.status == SERVING))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> HealthCheck {
        HealthCheck {
            kind: CheckKind::Tcp,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            jitter: Duration::from_secs(2),
            unhealthy_threshold: 3,
            healthy_threshold: 2,
        }
    }

    #[test]
    fn the_first_answer_decides_and_then_it_takes_as_many_in_a_row() {
        use Answer::{Bad, Good, Hopeless};
        let verdicts = |answers: &[Answer]| -> Vec<bool> {
            let mut verdict = Verdict::default();
            answers.iter().map(|answer| verdict.observe(&check(), *answer)).collect()
        };
        assert_eq!(verdicts(&[Good, Bad, Bad, Good, Bad, Bad, Bad]), [true, true, true, true, true, true, false]);
        assert_eq!(verdicts(&[Bad, Good, Bad, Good, Good]), [false, false, false, false, true]);
        assert_eq!(verdicts(&[Good, Hopeless, Good, Good]), [true, false, false, true]);
    }

    #[test]
    fn checks_are_an_interval_apart_or_a_little_more() {
        assert_eq!(wait(&check(), 0.0).as_secs(), 10);
        assert_eq!(wait(&check(), 0.5).as_secs(), 11);
        let hasty = HealthCheck { interval: Duration::from_nanos(1), jitter: Duration::ZERO, ..check() };
        assert_eq!(wait(&hasty, 0.5), SHORTEST_WAIT);
    }

    #[test]
    fn a_checker_that_was_replaced_has_no_say() {
        let checked = Checked::default();
        let first = checked.replace(None, Standing::Unknown);
        assert_eq!(checked.set(first, Standing::Good), Some(Standing::Unknown));
        let second = checked.replace(None, Standing::Unknown);
        assert_eq!(checked.set(first, Standing::Failing), None);
        assert_eq!(checked.standing(), Standing::Unknown);
        assert_eq!(checked.set(second, Standing::Failing), Some(Standing::Unknown));
        assert_eq!(checked.standing(), Standing::Failing);
    }

    #[test]
    fn what_serves() {
        assert!(serves(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1])));
        assert!(!serves(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 2])));
        for wrong in [&[][..], &[0, 0, 0, 0, 0], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 3, 8, 1]] {
            assert!(!serves(Bytes::copy_from_slice(wrong)), "{wrong:?}");
        }
    }
}
