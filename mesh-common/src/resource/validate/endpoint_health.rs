use super::super::{Duration, HealthCheck, HttpCheck, OutlierDetection};
use super::Errors;
use super::fields::{at_most, not_zero};

/// What is more often is load, not a check.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

pub(super) fn outliers(errors: &mut Errors, path: &str, spec: &OutlierDetection) {
    let idle = !spec.is_on() && *spec != OutlierDetection::default();
    errors.add_if(
        idle,
        path,
        "one of `consecutive5xx`, `consecutiveGatewayFailures` and `successRate` is needed; with nothing at all it is off",
    );
    for (field, value) in [
        ("consecutive5xx", spec.consecutive_5xx),
        ("consecutiveGatewayFailures", spec.consecutive_gateway_failures),
        ("successRate.minHosts", spec.success_rate.and_then(|it| it.min_hosts)),
        ("successRate.minRequests", spec.success_rate.and_then(|it| it.min_requests)),
    ] {
        errors.add_if(value == Some(0), format!("{path}.{field}"), "this must be more than zero");
    }
    let deviations = spec.success_rate.and_then(|it| it.deviations);
    let wrong = deviations.is_some_and(|it| !(0.1..=10.0).contains(&it));
    errors.add_if(wrong, format!("{path}.successRate.deviations"), "a number from 0.1 to 10 is needed");
    not_zero(errors, &format!("{path}.interval"), spec.interval);
    not_zero(errors, &format!("{path}.baseEjectionTime"), spec.base_ejection_time);
    let base = spec.base_ejection_time.unwrap_or_default();
    let shorter = spec.max_ejection_time.is_some_and(|max| max.is_zero() || max < base);
    errors.add_if(shorter, format!("{path}.maxEjectionTime"), "this is less than `baseEjectionTime`, or zero");
    let wrong = spec.max_ejection_percent.is_some_and(|it| !(1..=99).contains(&it));
    errors.add_if(
        wrong,
        format!("{path}.maxEjectionPercent"),
        "a percentage from 1 to 99 is needed: some must be left",
    );
}

pub(super) fn check(errors: &mut Errors, path: &str, spec: &HealthCheck) {
    let kinds = [spec.http.is_some(), spec.grpc.is_some(), spec.tcp.is_some()];
    let count = kinds.into_iter().filter(|set| *set).count();
    let wrong = count > 1 || count == 0 && *spec != HealthCheck::default();
    errors.add_if(wrong, path, "exactly one of `http`, `grpc` and `tcp` is needed; with nothing at all it is off");
    if let Some(check) = &spec.http {
        http(errors, &format!("{path}.http"), check);
    }
    if let Some(check) = &spec.grpc {
        let fits = check.service.len() <= 256 && check.service.bytes().all(|b| b.is_ascii_graphic());
        errors.add_if(!fits, format!("{path}.grpc.service"), "this is not the name of a gRPC service");
    }
    let often = spec.interval.is_some_and(|it| it < SHORTEST_INTERVAL);
    errors.add_if(often, format!("{path}.interval"), "this must be at least 100ms");
    not_zero(errors, &format!("{path}.timeout"), spec.timeout);
    for (field, value) in
        [("unhealthyThreshold", spec.unhealthy_threshold), ("healthyThreshold", spec.healthy_threshold)]
    {
        errors.add_if(value == Some(0), format!("{path}.{field}"), "this must be more than zero");
    }
}

fn http(errors: &mut Errors, path: &str, check: &HttpCheck) {
    let fits = check.path.starts_with('/')
        && check.path.len() <= 1024
        && check.path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    errors.add_if(!fits, format!("{path}.path"), "a path begins with `/` and has no blanks and no `#`");
    if let Some(host) = &check.host {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b".-:[]_".contains(&b);
        let fits = (1..=260).contains(&host.len()) && host.bytes().all(allowed);
        errors.add_if(!fits, format!("{path}.host"), "this is not a host");
    }
    at_most(errors, &format!("{path}.statuses"), check.statuses.len(), 64);
    for (i, status) in check.statuses.iter().enumerate() {
        let wrong = !(200..=599).contains(status);
        errors.add_if(wrong, format!("{path}.statuses[{i}]"), "a status is from 200 to 599");
    }
}
