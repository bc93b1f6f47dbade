use super::super::{
    FaultInjectionSpec, MeshConfigSpec, PeerAuthenticationSpec, RETRY_CONDITIONS, Retries, TrafficPolicySpec,
};
use super::fields::{at_most, header_matches, label, not_zero, targets};
use super::{Errors, endpoint_health, limits, load_balancer};

const ROUTED: [&str; 3] = ["Service", "HTTPRoute", "GRPCRoute"];

pub(super) fn traffic(spec: &TrafficPolicySpec, errors: &mut Errors) {
    targets(errors, &spec.target_refs, &ROUTED);
    if let Some(value) = &spec.load_balancer {
        load_balancer::check(errors, value);
    }
    if let Some(timeouts) = &spec.timeouts {
        not_zero(errors, "spec.timeouts.connect", timeouts.connect);
        if let (Some(request), Some(per_try)) = (timeouts.request, timeouts.per_try) {
            let longer = !request.is_zero() && per_try > request;
            errors.add_if(longer, "spec.timeouts.perTry", "one try can't take longer than the whole request");
        }
        let twice = timeouts.per_try.is_some() && spec.retries.as_ref().is_some_and(|r| r.per_try_timeout.is_some());
        errors.add_if(twice, "spec.retries.perTryTimeout", "this is set already, as `timeouts.perTry`");
        let hedge = timeouts.per_try.is_some() && spec.retries.as_ref().is_some_and(|r| r.hedge.is_some());
        errors.add_if(hedge, "spec.retries.hedge", NO_PER_TRY);
    }
    if let Some(value) = &spec.retries {
        retries(errors, "spec.retries", value);
    }
    if let Some(value) = &spec.limits {
        limits::limits(value, errors);
    }
    if let Some(pool) = &spec.connection_pool {
        for (field, value) in [
            ("maxConnections", pool.max_connections),
            ("maxPending", pool.max_pending),
            ("maxRequests", pool.max_requests),
            ("maxRetries", pool.max_retries),
        ] {
            let path = format!("spec.connectionPool.{field}");
            errors.add_if(value == Some(0), path, "zero lets nothing through; leave it out for no limit");
        }
    }
    if let Some(value) = &spec.outlier_detection {
        endpoint_health::outliers(errors, "spec.outlierDetection", value);
    }
    if let Some(value) = &spec.health_check {
        endpoint_health::check(errors, "spec.healthCheck", value);
    }
}

const NO_PER_TRY: &str = "a try that is hedged goes on, so there is no timeout of a try beside `hedge`";

fn retries(errors: &mut Errors, path: &str, retries: &Retries) {
    let many = retries.attempts.is_some_and(|n| n > 100);
    errors.add_if(many, format!("{path}.attempts"), "at most 100 retries are allowed");
    for (i, on) in retries.on.iter().flatten().enumerate() {
        let status = on.parse::<u16>().is_ok_and(|code| (400..=599).contains(&code));
        let known = status || RETRY_CONDITIONS.contains(&on.as_str());
        let message = format!("{on:?} is neither a status from 400 to 599 nor one of {}", RETRY_CONDITIONS.join(", "));
        errors.add_if(!known, format!("{path}.on[{i}]"), message);
    }
    not_zero(errors, &format!("{path}.perTryTimeout"), retries.per_try_timeout);
    let both = retries.hedge.is_some() && retries.per_try_timeout.is_some();
    errors.add_if(both, format!("{path}.hedge"), NO_PER_TRY);
    if let Some(backoff) = &retries.backoff {
        not_zero(errors, &format!("{path}.backoff.base"), Some(backoff.base));
        let shorter = backoff.max.is_some_and(|max| max < backoff.base);
        errors.add_if(shorter, format!("{path}.backoff.max"), "this is less than the base");
    }
    if let Some(budget) = &retries.budget {
        let wrong = !(1..=100).contains(&budget.percent);
        errors.add_if(
            wrong,
            format!("{path}.budget.percent"),
            "a percentage from 1 to 100 is needed (`attempts: 0` turns retries off)",
        );
    }
}

pub(super) fn fault(spec: &FaultInjectionSpec, errors: &mut Errors) {
    targets(errors, &spec.target_refs, &ROUTED);
    errors.add_if(spec.target_refs.is_empty(), "spec.targetRefs", "a fault needs a target");
    errors.add_if(spec.faults.is_empty(), "spec.faults", "there is no fault to inject");
    at_most(errors, "spec.faults", spec.faults.len(), 16);
    at_most(errors, "spec.from", spec.from.len(), 64);
    for (i, from) in spec.from.iter().enumerate() {
        let path = format!("spec.from[{i}]");
        let one = from.service.is_some() != from.service_account.is_some();
        errors.add_if(!one, &path, "either `service` or `serviceAccount` is needed");
        let names =
            [("service", &from.service), ("serviceAccount", &from.service_account), ("namespace", &from.namespace)];
        for (field, name) in names {
            if let Some(name) = name {
                label(errors, &format!("{path}.{field}"), name);
            }
        }
    }
    for (i, fault) in spec.faults.iter().enumerate() {
        let path = format!("spec.faults[{i}]");
        let scaled = fault.percent * 10_000.0;
        let fits = (0.0..=100.0).contains(&fault.percent) && (scaled - scaled.round()).abs() < 1e-6;
        errors.add_if(!fits, format!("{path}.percent"), "a percentage is from 0 to 100 and has at most four decimals");
        let kinds = [fault.delay.is_some(), fault.abort.is_some(), fault.reset.is_some(), fault.throttle.is_some()];
        let one = kinds.into_iter().filter(|set| *set).count() == 1;
        errors.add_if(!one, &path, "exactly one of `delay`, `abort`, `reset` and `throttle` is needed");
        not_zero(errors, &format!("{path}.delay.duration"), fault.delay.map(|d| d.duration));
        if let Some(abort) = fault.abort {
            let wrong = !(200..=599).contains(&abort.http_status);
            errors.add_if(wrong, format!("{path}.abort.httpStatus"), "a status is from 200 to 599");
            let wrong = abort.grpc_status.is_some_and(|code| !(1..=16).contains(&code));
            errors.add_if(
                wrong,
                format!("{path}.abort.grpcStatus"),
                "a gRPC status that means an error is from 1 to 16",
            );
        }
        if let Some(matches) = &fault.matches {
            header_matches(errors, &format!("{path}.match.headers"), &matches.headers);
        }
    }
    if let Some(time) = &spec.expires_at {
        let wrong = time.parse::<jiff::Timestamp>().is_err();
        errors.add_if(
            wrong,
            "spec.expiresAt",
            format!("{time:?} is not an RFC 3339 time, such as 2026-01-31T12:00:00Z"),
        );
    }
}

pub(super) fn peer(spec: &PeerAuthenticationSpec, errors: &mut Errors) {
    targets(errors, &spec.target_refs, &["Service"]);
    for (i, target) in spec.target_refs.iter().enumerate() {
        let path = format!("spec.targetRefs[{i}].sectionName");
        errors.add_if(target.section_name.is_some(), path, "name workload ports in `spec.ports` instead");
    }
    let empty = spec.mode.is_none() && spec.ports.is_empty();
    errors.add_if(empty, "spec", "`mode` or `ports` is needed");
    for port in spec.ports.keys() {
        let wrong = port.parse::<u16>().map_or(true, |p| p == 0 || p.to_string() != *port);
        errors.add_if(wrong, format!("spec.ports.{port}"), "a port is a number from 1 to 65535");
    }
}

pub(super) fn mesh(spec: &MeshConfigSpec, errors: &mut Errors) {
    if let Some(Err(error)) = spec.trust_domain.as_deref().map(crate::identity::check_trust_domain) {
        errors.add("spec.trustDomain", error.to_string());
    }
    if let Some(value) = &spec.retries {
        retries(errors, "spec.retries", value);
    }
}
