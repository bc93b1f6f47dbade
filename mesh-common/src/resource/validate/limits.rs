use super::super::{LimitBy, TrafficLimits};
use super::Errors;
use super::fields::header_name;

/// A bucket this deep, or filled this fast, limits nothing that one workload could take.
const MOST: u32 = 1_000_000;
const LONGEST: u64 = 24 * 3600;

pub(super) fn limits(limits: &TrafficLimits, errors: &mut Errors) {
    let Some(limit) = &limits.requests else { return };
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
