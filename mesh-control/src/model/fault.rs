//! Faults, by what they are injected into.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mesh_common::identity::Identity;
use mesh_common::resource::{ByteRate, Fault, FaultInjection, Key, Kind, NamedMatch};

use super::policy::target;
use super::{Condition, Name, Service, Status};

/// One fault for some callers.
#[derive(Debug, PartialEq)]
pub struct FaultRule {
    /// `namespace/name` of the object.
    pub name: String,
    /// Empty: everyone.
    pub callers: Vec<Caller>,
    pub parts_per_million: u32,
    pub kind: FaultKind,
    /// Unix milliseconds.
    pub expires: Option<i64>,
    pub headers: Vec<NamedMatch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    Delay(Duration),
    Abort {
        http: u16,
        grpc: Option<u32>,
    },
    Reset,
    /// What comes back.
    Throttle(ByteRate),
}

#[derive(Debug, PartialEq, Eq)]
pub struct Caller {
    pub namespace: String,
    pub name: CallerName,
}

#[derive(Debug, PartialEq, Eq)]
pub enum CallerName {
    /// What people mean by `--from web`: the service or the service account of that name.
    /// With the workloads that serve it, in its namespace.
    Service {
        name: String,
        workloads: BTreeSet<String>,
    },
    ServiceAccount(String),
}

impl FaultRule {
    /// Whether a caller with this identity, that is this workload or serves this service in this namespace, is to see it.
    pub fn concerns(&self, identity: Option<&Identity>, namespace: &str, service: &str, workload: &str) -> bool {
        let by_account = |ns: &str, name: &str| {
            identity.is_some_and(|identity| identity.namespace == ns && identity.service_account == name)
        };
        self.callers.is_empty()
            || self.callers.iter().any(|caller| match &caller.name {
                CallerName::Service { name, workloads } => {
                    let serves = name == service || workloads.contains(workload);
                    (caller.namespace == namespace && serves) || by_account(&caller.namespace, name)
                }
                CallerName::ServiceAccount(name) => by_account(&caller.namespace, name),
            })
    }
}

/// A target, and the part of it if one is named.
type Target = (Key, Option<String>);

pub(super) struct Faults(BTreeMap<Target, Vec<Arc<FaultRule>>>);

impl Faults {
    pub fn new(
        objects: &[&FaultInjection],
        exists: impl Fn(&Key, Option<&str>) -> bool,
        only_streams: impl Fn(&Key) -> bool,
        services: &BTreeMap<Name, Service>,
        statuses: &mut BTreeMap<Key, Status>,
    ) -> Self {
        let mut faults = Self(BTreeMap::new());
        for object in objects {
            let namespace = object.metadata.namespace_or_default();
            let key = Key::new(Kind::FaultInjection, namespace, &object.metadata.name);
            let conditions = &mut statuses.entry(key).or_default().conditions;
            let rules: Vec<_> =
                object.spec.faults.iter().filter_map(|f| rule(object, f, services)).map(Arc::new).collect();
            for (key, section) in object.spec.target_refs.iter().filter_map(|t| target(namespace, t)) {
                if exists(&key, section.as_deref()) {
                    conditions.push(Condition::accepted());
                    let request = |rule: &Arc<FaultRule>| {
                        matches!(rule.kind, FaultKind::Abort { .. }) || !rule.headers.is_empty()
                    };
                    if only_streams(&key) && rules.iter().any(request) {
                        let message = format!(
                            "{key} carries byte streams: only delays, resets and throttles without `match` apply"
                        );
                        conditions.push(Condition::ignored("NotHttp", message));
                    }
                    faults.0.entry((key, section)).or_default().extend(rules.iter().cloned());
                } else {
                    let part = section.map(|s| format!(" with a part named {s}")).unwrap_or_default();
                    conditions.push(Condition::not_accepted("TargetNotFound", format!("there is no {key}{part}")));
                }
            }
        }
        faults
    }

    /// Faults of an object as a whole and of the part of it with that name.
    pub fn of(&self, key: &Key, section: Option<&str>) -> Vec<Arc<FaultRule>> {
        let whole = self.0.get(&(key.clone(), None));
        let part = section.and_then(|s| self.0.get(&(key.clone(), Some(s.to_owned()))));
        whole.into_iter().chain(part).flatten().cloned().collect()
    }
}

fn rule(object: &FaultInjection, fault: &Fault, services: &BTreeMap<Name, Service>) -> Option<FaultRule> {
    let namespace = object.metadata.namespace_or_default();
    let kind = match (fault.delay, fault.abort, fault.reset, fault.throttle) {
        (Some(delay), ..) => FaultKind::Delay(delay.duration.get()),
        (_, Some(abort), ..) => FaultKind::Abort { http: abort.http_status, grpc: abort.grpc_status },
        (_, _, Some(_), _) => FaultKind::Reset,
        (.., Some(throttle)) => FaultKind::Throttle(throttle.rate),
        _ => return None,
    };
    let caller = |source: &mesh_common::resource::FaultSource| {
        let namespace = source.namespace.clone().unwrap_or_else(|| namespace.to_owned());
        let service = source.service.clone().map(|name| {
            let known = services.get(&Name::new(&namespace, &name)).into_iter().flat_map(|service| &service.workloads);
            let workloads = known.map(|workload| workload.name.name.clone()).collect();
            CallerName::Service { name, workloads }
        });
        let name = service.or_else(|| source.service_account.clone().map(CallerName::ServiceAccount))?;
        Some(Caller { namespace, name })
    };
    let expires = object.spec.expires_at.as_ref().and_then(|t| t.parse::<jiff::Timestamp>().ok());
    Some(FaultRule {
        name: format!("{namespace}/{}", object.metadata.name),
        callers: object.spec.from.iter().filter_map(caller).collect(),
        parts_per_million: fault.parts_per_million(),
        kind,
        expires: expires.map(|t| t.as_millisecond()),
        headers: fault.matches.iter().flat_map(|m| m.headers.clone()).collect(),
    })
}
