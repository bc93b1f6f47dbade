//! Whether a tap wants to see something. Pure.

use std::ops::RangeInclusive;
use std::time::Duration;

use mesh_common::identity::Identity;
use mesh_common::proto::telemetry::{Direction as Side, TapFilter, TapParty};
use mesh_common::reports::has_failed;
use mesh_common::tap::{MAX_ALTERNATIVES, service_in};

use crate::config::Endpoint;
use crate::listen::{Direction, Downstream};
use crate::telemetry::{LocalWorkload, RequestRecord, TcpRecord};

/// All conditions must be met; one that is empty is.
#[derive(Debug)]
pub(super) struct Filter {
    from: Vec<Party>,
    to: Vec<Party>,
    namespace: String,
    direction: Option<Direction>,
    methods: Vec<String>,
    path: String,
    statuses: Vec<RangeInclusive<u32>>,
    shortest: Duration,
    failed: bool,
}

/// A service or a service account.
#[derive(Debug)]
struct Party {
    name: String,
    namespace: String,
    identities: Vec<Identity>,
}

/// Both ends of a call, as far as they are known here.
struct Call<'a> {
    downstream: &'a Downstream,
    called: &'a str,
    cluster: &'a str,
    endpoint: Option<&'a Endpoint>,
    local: &'a LocalWorkload,
}

impl Filter {
    /// `None` if there is something in it that this proxy does not understand.
    pub(super) fn new(filter: &TapFilter) -> Option<Self> {
        let few = |all: usize| (all <= MAX_ALTERNATIVES).then_some(());
        few(filter.from.len())?;
        few(filter.to.len())?;
        few(filter.methods.len())?;
        few(filter.statuses.len())?;
        let parties = |all: &[TapParty]| all.iter().map(Party::new).collect::<Option<Vec<_>>>();
        let direction = match Side::try_from(filter.direction).ok()? {
            Side::Unspecified => None,
            Side::Inbound => Some(Direction::Inbound),
            Side::Outbound => Some(Direction::Outbound),
        };
        Some(Self {
            from: parties(&filter.from)?,
            to: parties(&filter.to)?,
            namespace: filter.namespace.clone(),
            direction,
            methods: filter.methods.clone(),
            path: filter.path_prefix.clone(),
            statuses: filter.statuses.iter().map(|range| range.first..=range.last).collect(),
            shortest: Duration::from_millis(filter.min_duration_ms),
            failed: filter.failed,
        })
    }

    pub(super) fn takes_request(&self, record: &RequestRecord<'_>, local: &LocalWorkload) -> bool {
        let RequestRecord { downstream, called, cluster, endpoint, .. } = *record;
        let status = |range: &RangeInclusive<u32>| range.contains(&record.status.into());
        record.duration >= self.shortest
            && (!self.failed || has_failed(record.status.into(), record.grpc_status))
            && (self.methods.is_empty() || self.methods.iter().any(|method| method == record.method.as_str()))
            && record.path.split('?').next().is_some_and(|path| path.starts_with(&self.path))
            && (self.statuses.is_empty() || self.statuses.iter().any(status))
            && self.takes_call(&Call { downstream, called, cluster, endpoint, local })
    }

    pub(super) fn takes_stream(&self, record: &TcpRecord<'_>, local: &LocalWorkload) -> bool {
        let TcpRecord { downstream, called, cluster, endpoint, .. } = *record;
        let is_about_http = !self.methods.is_empty() || !self.path.is_empty() || !self.statuses.is_empty();
        !is_about_http
            && record.duration >= self.shortest
            && (!self.failed || !record.flags.is_empty())
            && self.takes_call(&Call { downstream, called, cluster, endpoint, local })
    }

    fn takes_call(&self, call: &Call<'_>) -> bool {
        self.direction.is_none_or(|direction| direction == call.downstream.direction)
            && (self.from.is_empty() || self.from.iter().any(|party| call.is_from(party)))
            && (self.to.is_empty() || self.to.iter().any(|party| call.is_to(party)))
            && (self.namespace.is_empty() || call.is_in(&self.namespace))
    }
}

impl Party {
    fn new(party: &TapParty) -> Option<Self> {
        let identities = party.identities.iter().map(|it| it.parse().ok()).collect::<Option<_>>()?;
        Some(Self { name: party.name.clone(), namespace: party.namespace.clone(), identities })
    }

    fn is(&self, name: &str, namespace: &str) -> bool {
        self.name == name && self.namespace == namespace
    }

    fn is_identity(&self, identity: Option<&Identity>) -> bool {
        identity.is_some_and(|it| self.is(&it.service_account, &it.namespace))
    }

    /// The workload that this proxy speaks for.
    fn is_local(&self, local: &LocalWorkload) -> bool {
        self.is(&local.service, &local.namespace) || self.is_identity(local.identity.as_ref())
    }
}

impl Call<'_> {
    fn is_from(&self, party: &Party) -> bool {
        let peer = self.downstream.identity.as_deref();
        match self.downstream.direction {
            Direction::Outbound => party.is_local(self.local),
            Direction::Inbound => {
                party.is_identity(peer) || peer.is_some_and(|peer| party.identities.iter().any(|it| it == peer))
            }
        }
    }

    fn is_to(&self, party: &Party) -> bool {
        match self.downstream.direction {
            Direction::Inbound => party.is_local(self.local),
            Direction::Outbound => self.destinations().any(|(name, namespace)| party.is(name, namespace)),
        }
    }

    /// The services that an outbound call is about: the one that was called, and those where it led.
    fn destinations(&self) -> impl Iterator<Item = (&str, &str)> {
        let workload = self.endpoint.and_then(|it| it.workload.as_ref());
        let workload = workload.map(|it| (it.service.as_str(), it.namespace.as_str()));
        service_in(self.called).into_iter().chain(service_in(self.cluster)).chain(workload)
    }

    fn is_in(&self, namespace: &str) -> bool {
        let peer = self.downstream.identity.as_deref();
        self.local.namespace == namespace
            || match self.downstream.direction {
                Direction::Inbound => peer.is_some_and(|it| it.namespace == namespace),
                Direction::Outbound => self.destinations().any(|(_, of)| of == namespace),
            }
    }
}
