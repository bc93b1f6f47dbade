//! Traffic policies: what holds where several say something.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_common::resource::{
    AtATime, Bandwidth, HashKey, HealthCheck, Hedge, Key, Kind, LoadBalancerPolicy, LocalityPreference, MESH_NAMESPACE,
    OutlierDetection, RequestLimit, Retries, Size, SlowStart, TargetRef, TrafficPolicy, TrafficPolicySpec,
};

use super::{Age, Condition, Name, Service, Status};

/// What holds for a service port, or for the requests of a route. `None`: nobody said anything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// With what it hashes.
    load_balancer: Option<(LoadBalancerPolicy, Vec<HashKey>)>,
    slow_start: Option<SlowStart>,
    pub locality: Option<LocalityPreference>,
    panic_percent: Option<u32>,
    request: Option<Duration>,
    per_try: Option<Duration>,
    pub idle: Option<Duration>,
    connect: Option<Duration>,
    attempts: Option<u32>,
    on: Option<Vec<String>>,
    backoff: Option<(Duration, Duration)>,
    budget: Option<(u32, u32)>,
    pub max_connections: Option<u32>,
    pub max_pending: Option<u32>,
    pub max_requests: Option<u32>,
    /// At the server's side.
    pub request_limit: Option<RequestLimit>,
    pub connection_limit: Option<AtATime>,
    pub concurrency_limit: Option<AtATime>,
    pub bandwidth_limit: Option<Bandwidth>,
    pub size_limit: Option<Size>,
    pub max_retries: Option<u32>,
    max_retry_after: Option<Duration>,
    hedge: Option<Hedge>,
    outlier_detection: Option<OutlierDetection>,
    health_check: Option<HealthCheck>,
}

/// Retries that are safe for every request: the server has not seen the one that failed.
const RETRY_ON: [&str; 3] = ["connect-failure", "refused-stream", "reset-before-request"];
/// And for gRPC, the status that means as much.
const RETRY_ON_GRPC: &str = "unavailable";

impl Policy {
    /// Nothing but so many requests at a time.
    pub fn of_requests(max_requests: Option<u32>) -> Self {
        Self { max_requests, ..Self::default() }
    }

    pub fn load_balancer(&self) -> LoadBalancerPolicy {
        self.load_balancer.as_ref().map(|(policy, _)| *policy).unwrap_or_default()
    }

    /// What requests have in common that go to the same endpoint.
    pub fn hash(&self) -> &[HashKey] {
        self.load_balancer.as_ref().map_or(&[], |(_, hash)| hash)
    }

    /// `None` as well with a balancer that has no use for it, which a narrower scope may have chosen.
    pub fn slow_start(&self) -> Option<SlowStart> {
        self.slow_start.filter(|_| self.load_balancer().starts_slowly())
    }

    /// Zero: an endpoint that is not available is never tried, however few are.
    pub fn panic_percent(&self) -> u32 {
        self.panic_percent.unwrap_or(0)
    }

    /// Zero: none.
    pub fn request_timeout(&self) -> Duration {
        self.request.unwrap_or_default()
    }

    /// Zero: none.
    pub fn per_try_timeout(&self) -> Duration {
        self.per_try.unwrap_or_default()
    }

    pub fn connect_timeout(&self) -> Duration {
        self.connect.unwrap_or(Duration::from_secs(5))
    }

    /// Tries after the first one.
    pub fn retries(&self) -> u32 {
        self.attempts.unwrap_or(2)
    }

    pub fn retry_on(&self, grpc: bool) -> Vec<String> {
        match &self.on {
            Some(on) => on.clone(),
            None => RETRY_ON.into_iter().chain(grpc.then_some(RETRY_ON_GRPC)).map(str::to_owned).collect(),
        }
    }

    /// Base and maximum.
    pub fn backoff(&self) -> (Duration, Duration) {
        self.backoff.unwrap_or((Duration::from_millis(25), Duration::from_millis(250)))
    }

    /// Percent of active requests that may be retries, and how many always may.
    pub fn retry_budget(&self) -> (u32, u32) {
        self.budget.unwrap_or((20, 3))
    }

    /// The longest `Retry-After` that a retry waits for; zero: the header is not looked at.
    pub fn max_retry_after(&self) -> Duration {
        self.max_retry_after.unwrap_or(Duration::from_secs(10))
    }

    /// For requests that may be sent twice, as far as anybody knows.
    pub fn hedge(&self) -> Option<Hedge> {
        self.hedge.filter(|hedge| !hedge.after.is_zero() && self.retries() > 0)
    }

    pub fn outlier_detection(&self) -> Option<&OutlierDetection> {
        self.outlier_detection.as_ref().filter(|it| it.is_on())
    }

    pub fn health_check(&self) -> Option<&HealthCheck> {
        self.health_check.as_ref().filter(|it| it.is_on())
    }

    /// Timeouts that a route's rule sets itself.
    pub(super) fn with_timeouts(mut self, request: Option<Duration>, per_try: Option<Duration>) -> Self {
        self.request = request.or(self.request);
        self.per_try = per_try.or(self.per_try);
        self
    }

    /// Retries that a route's rule sets itself.
    pub(super) fn with_retry(mut self, retry: Option<&mesh_common::resource::HttpRouteRetry>) -> Self {
        let Some(retry) = retry else { return self };
        self.attempts = retry.attempts.or(self.attempts);
        if !retry.codes.is_empty() {
            let codes = retry.codes.iter().map(u16::to_string);
            self.on = Some(RETRY_ON.into_iter().map(str::to_owned).chain(codes).collect());
        }
        if let Some(base) = retry.backoff {
            self.backoff = Some((base.get(), base.get().saturating_mul(10)));
        }
        self
    }

    /// The requests of one address go to the same endpoint.
    fn by_source(&mut self) {
        let source = HashKey { source_address: Some(true), ..HashKey::default() };
        self.load_balancer = Some((LoadBalancerPolicy::RingHash, vec![source]));
    }

    /// What a narrower scope says comes before what is there.
    fn overlay(&mut self, spec: &TrafficPolicySpec) {
        let or = |new: Option<Duration>, old: &mut Option<Duration>| *old = new.or(*old);
        if let Some(balancer) = &spec.load_balancer {
            if let Some(policy) = balancer.policy {
                self.load_balancer = Some((policy, balancer.hash.clone()));
            }
            self.slow_start = balancer.slow_start.or(self.slow_start);
            self.locality = balancer.locality.clone().or(self.locality.take());
            self.panic_percent = balancer.panic_threshold_percent.or(self.panic_percent);
        }
        if let Some(timeouts) = &spec.timeouts {
            or(timeouts.request.map(|d| d.get()), &mut self.request);
            or(timeouts.per_try.map(|d| d.get()), &mut self.per_try);
            or(timeouts.idle.map(|d| d.get()), &mut self.idle);
            or(timeouts.connect.map(|d| d.get()), &mut self.connect);
        }
        if let Some(retries) = &spec.retries {
            self.overlay_retries(retries);
        }
        if let Some(pool) = &spec.connection_pool {
            self.max_connections = pool.max_connections.or(self.max_connections);
            self.max_pending = pool.max_pending.or(self.max_pending);
            self.max_requests = pool.max_requests.or(self.max_requests);
            self.max_retries = pool.max_retries.or(self.max_retries);
        }
        if let Some(limit) = spec.limits.as_ref().and_then(|limits| limits.requests.as_ref()) {
            self.request_limit = Some(limit.clone());
        }
        if let Some(limits) = &spec.limits {
            self.connection_limit = limits.connections.or(self.connection_limit);
            self.concurrency_limit = limits.concurrent_requests.or(self.concurrency_limit);
            self.bandwidth_limit = limits.bandwidth.or(self.bandwidth_limit);
            self.size_limit = limits.size.or(self.size_limit);
        }
        // Each as a whole: `{}` turns off what a wider scope says.
        self.outlier_detection = spec.outlier_detection.as_deref().copied().or(self.outlier_detection);
        self.health_check = spec.health_check.as_deref().cloned().or(self.health_check.take());
    }

    fn overlay_retries(&mut self, retries: &Retries) {
        self.attempts = retries.attempts.or(self.attempts);
        self.max_retry_after = retries.max_retry_after.map(|d| d.get()).or(self.max_retry_after);
        self.hedge = retries.hedge.or(self.hedge);
        self.on = retries.on.clone().or(self.on.take());
        self.per_try = retries.per_try_timeout.map(|d| d.get()).or(self.per_try);
        if let Some(backoff) = retries.backoff {
            let base = backoff.base.get();
            self.backoff = Some((base, backoff.max.map_or(base.saturating_mul(10), |max| max.get())));
        }
        if let Some(budget) = retries.budget {
            self.budget = Some((budget.percent, budget.min_concurrency.unwrap_or(3)));
        }
    }
}

/// What a policy is attached to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Mesh,
    Namespace(String),
    /// An object and, if named, a part of it: a Service's port, a route's rule.
    Object(Key, Option<String>),
}

/// All traffic policies, by what they are attached to.
pub(super) struct Policies<'a> {
    defaults: Policy,
    by_scope: BTreeMap<Scope, &'a TrafficPolicySpec>,
}

impl<'a> Policies<'a> {
    pub fn new(
        defaults: Option<&Retries>,
        policies: &[&'a TrafficPolicy],
        exists: impl Fn(&Key, Option<&str>) -> bool,
        statuses: &mut BTreeMap<Key, Status>,
    ) -> Self {
        let mut made = Self { defaults: Policy::default(), by_scope: BTreeMap::new() };
        if let Some(retries) = defaults {
            made.defaults.overlay_retries(retries);
        }
        let mut ordered: Vec<_> = policies.to_vec();
        ordered.sort_by_cached_key(|policy| Age::of(&policy.metadata));
        for policy in ordered {
            let namespace = policy.metadata.namespace_or_default();
            let key = Key::new(Kind::TrafficPolicy, namespace, &policy.metadata.name);
            let status = statuses.entry(key).or_default();
            for scope in scopes(namespace, &policy.spec.target_refs) {
                status.conditions.push(made.attach(scope, &policy.spec, &exists));
            }
            let of_route = policy.spec.target_refs.iter().any(|target| target.kind != "Service");
            let of_cluster = policy.spec.load_balancer.is_some()
                || policy.spec.connection_pool.is_some()
                || policy.spec.limits.is_some()
                || policy.spec.outlier_detection.is_some()
                || policy.spec.health_check.is_some()
                || policy.spec.timeouts.is_some_and(|t| t.connect.is_some())
                || policy.spec.retries.as_ref().is_some_and(|r| r.budget.is_some());
            if of_route && of_cluster {
                let message = "load balancing, connections, limits, the health of endpoints and the retry budget belong to a Service; a route that is a target does not change them";
                status.conditions.push(Condition::ignored("TargetIsRoute", message));
            }
        }
        made
    }

    fn attach(
        &mut self,
        scope: Scope,
        spec: &'a TrafficPolicySpec,
        exists: impl Fn(&Key, Option<&str>) -> bool,
    ) -> Condition {
        if let Scope::Object(key, section) = &scope
            && !exists(key, section.as_deref())
        {
            let part = section.as_ref().map(|s| format!(" with a part named {s}")).unwrap_or_default();
            return Condition::not_accepted("TargetNotFound", format!("there is no {key}{part}"));
        }
        if self.by_scope.contains_key(&scope) {
            return Condition::not_accepted("Conflicted", "an older TrafficPolicy has the same target");
        }
        self.by_scope.insert(scope, spec);
        Condition::accepted()
    }

    /// For calls to a port of this service.
    pub fn for_port(&self, service: &Service, port_name: &str) -> Policy {
        let mut policy = self.defaults.clone();
        let overlay = |policy: &mut Policy, scope: Scope| {
            if let Some(spec) = self.by_scope.get(&scope) {
                policy.overlay(spec);
            }
        };
        overlay(&mut policy, Scope::Mesh);
        overlay(&mut policy, Scope::Namespace(service.name.namespace.clone()));
        // The Service says so itself: narrower than its namespace, and wider than what is attached to it.
        if service.sticky {
            policy.by_source();
        }
        for name in service.version_of.iter().chain([&service.name.name]) {
            let key = Key::new(Kind::Service, &service.name.namespace, name);
            overlay(&mut policy, Scope::Object(key.clone(), None));
            if !port_name.is_empty() {
                overlay(&mut policy, Scope::Object(key, Some(port_name.to_owned())));
            }
        }
        policy
    }

    /// For requests that match a rule of this route.
    pub fn for_rule(&self, base: &Policy, route: &Key, rule: Option<&str>) -> Policy {
        let mut policy = base.clone();
        for section in [None, rule.map(str::to_owned)].into_iter().take(1 + usize::from(rule.is_some())) {
            if let Some(spec) = self.by_scope.get(&Scope::Object(route.clone(), section)) {
                policy.overlay(spec);
            }
        }
        policy
    }
}

fn scopes(namespace: &str, targets: &[TargetRef]) -> Vec<Scope> {
    if !targets.is_empty() {
        let object = |(key, section)| Scope::Object(key, section);
        return targets.iter().filter_map(|t| target(namespace, t)).map(object).collect();
    }
    vec![if namespace == MESH_NAMESPACE { Scope::Mesh } else { Scope::Namespace(namespace.to_owned()) }]
}

/// The object that a policy of this namespace is attached to, and the part of it.
pub(super) fn target(namespace: &str, target: &TargetRef) -> Option<(Key, Option<String>)> {
    let kind = Kind::parse(&target.kind).ok()?;
    Some((Key::new(kind, namespace, &target.name), target.section_name.clone()))
}

/// The name of a target that is a service.
pub(super) fn service_name(key: &Key) -> Name {
    Name::new(&key.namespace, &key.name)
}
