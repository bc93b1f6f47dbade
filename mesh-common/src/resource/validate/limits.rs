use super::super::{AtATime, Bandwidth, ByteSize, LimitBy, RequestLimit, TrafficLimits};
use super::Errors;
use super::fields::header_name;

/// A bucket this deep, or filled this fast, limits nothing that one workload could take.
const MOST: u32 = 1_000_000;
const LONGEST: u64 = 24 * 3600;
/// What the proxies take of a head at all.
const MOST_OF_HEAD: u64 = 64 << 10;

pub(super) fn limits(limits: &TrafficLimits, errors: &mut Errors) {
    if let Some(limit) = &limits.requests {
        requests(limit, errors);
    }
    if let Some(limit) = &limits.bandwidth {
        bandwidth(limit, errors);
    }
    let head = limits.size.and_then(|size| size.headers).map_or(0, ByteSize::bytes);
    errors.add_if(head > MOST_OF_HEAD, "spec.limits.size.headers", "the proxies take 64Ki of headers at most");
    for (field, limit) in [("connections", &limits.connections), ("concurrentRequests", &limits.concurrent_requests)] {
        if let Some(limit) = limit {
            at_a_time(&format!("spec.limits.{field}"), limit, errors);
        }
    }
}

fn bandwidth(limit: &Bandwidth, errors: &mut Errors) {
    let each = limit.per_caller();
    for (field, all, each) in [("up", limit.up, each.up), ("down", limit.down, each.down)] {
        let more = all.zip(each).is_some_and(|(all, each)| each > all);
        let path = format!("spec.limits.bandwidth.perCaller.{field}");
        errors.add_if(more, path, "this is more than all callers together may have");
    }
}

fn at_a_time(path: &str, limit: &AtATime, errors: &mut Errors) {
    for (field, value) in [("max", limit.max), ("perCaller", limit.per_caller)] {
        let path = format!("{path}.{field}");
        errors.add_if(value == Some(0), path, "zero lets nothing through; leave it out for no limit");
    }
    let more = limit.max.zip(limit.per_caller).is_some_and(|(max, each)| each > max);
    errors.add_if(more, format!("{path}.perCaller"), "this is more than all callers together may have");
}

fn requests(limit: &RequestLimit, errors: &mut Errors) {
    let path = |field: &str| format!("spec.limits.requests.{field}");
    let fits = |n: u32| (1..=MOST).contains(&n);
    errors.add_if(!fits(limit.rate), path("rate"), format!("a rate is from 1 to {MOST}"));
    errors.add_if(!fits(limit.burst()) && fits(limit.rate), path("burst"), format!("a burst is from 1 to {MOST}"));
    let per = limit.per();
    let whole = per.subsec_nanos() == 0 && (1..=LONGEST).contains(&per.as_secs());
    errors.add_if(!whole, path("per"), "whole seconds are needed, from 1s to 24h");
    match (limit.by, &limit.header) {
        (Some(LimitBy::Header), Some(name)) => drop(header_name(errors, &path("header"), name)),
        (Some(LimitBy::Header), None) => errors.add(path("header"), "`by: Header` needs one"),
        (_, Some(_)) => errors.add(path("header"), "this goes with `by: Header` only"),
        (_, None) => {}
    }
}
