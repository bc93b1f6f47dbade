//! How the requests of a service are spread over its endpoints.

use super::super::{HashCookie, HashKey, LoadBalancer, LocalityPreference, SlowStart};
use super::Errors;
use super::fields::{at_most, is_token, not_zero};

const PATH: &str = "spec.loadBalancer";

pub(super) fn check(errors: &mut Errors, balancer: &LoadBalancer) {
    let policy = balancer.policy.unwrap_or_default();
    let path = format!("{PATH}.hash");
    let useless = !balancer.hash.is_empty() && !policy.hashes();
    errors.add_if(
        useless,
        &path,
        "only `policy: RingHash` and `policy: Maglev` go by a hash; set one of them beside it",
    );
    let missing = balancer.hash.is_empty() && policy.hashes();
    errors.add_if(missing, &path, format!("{policy:?} needs to know what requests have in common that go to the same endpoint: a `header`, a `cookie` or `sourceAddress: true`"));
    at_most(errors, &path, balancer.hash.len(), 8);
    for (i, key) in balancer.hash.iter().enumerate() {
        hash_key(errors, &format!("{path}[{i}]"), key);
        errors.add_if(balancer.hash[..i].contains(key), format!("{path}[{i}]"), "this is there twice");
    }
    if let Some(slow) = &balancer.slow_start {
        slow_start(errors, slow);
        let useless = !policy.starts_slowly();
        let message = format!(
            "{policy:?} gives each endpoint its whole share at once; RoundRobin, LeastRequest and PeakEwma can start slowly"
        );
        errors.add_if(useless, format!("{PATH}.slowStart"), message);
    }
    if let Some(preference) = &balancer.locality {
        locality(errors, preference);
    }
    let wrong = balancer.panic_threshold_percent.is_some_and(|percent| percent > 100);
    errors.add_if(wrong, format!("{PATH}.panicThresholdPercent"), "a percentage from 0 (never) to 100 is needed");
}

fn hash_key(errors: &mut Errors, path: &str, key: &HashKey) {
    let set = [key.header.is_some(), key.cookie.is_some(), key.source_address.is_some()];
    let one = set.into_iter().filter(|set| *set).count() == 1;
    errors.add_if(!one, path, "exactly one of `header`, `cookie` and `sourceAddress` is needed");
    let off = key.source_address == Some(false);
    errors.add_if(off, format!("{path}.sourceAddress"), "this must be true; leave the entry out instead");
    if let Some(name) = &key.header {
        let message = format!("{name:?} is not the name of an HTTP header");
        errors.add_if(!is_token(name), format!("{path}.header"), message);
    }
    if let Some(HashCookie { name, path: of, .. }) = &key.cookie {
        let message = format!("{name:?} is not the name of a cookie");
        errors.add_if(!is_token(name), format!("{path}.cookie.name"), message);
        let fits = |of: &String| {
            of.starts_with('/') && of.len() <= 1024 && of.bytes().all(|b| (0x21..0x7f).contains(&b) && b != b';')
        };
        let wrong = of.as_ref().is_some_and(|of| !fits(of));
        let message = "a path begins with / and has neither spaces nor semicolons";
        errors.add_if(wrong, format!("{path}.cookie.path"), message);
    }
}

fn slow_start(errors: &mut Errors, slow: &SlowStart) {
    let path = format!("{PATH}.slowStart");
    not_zero(errors, &format!("{path}.window"), Some(slow.window));
    let wrong = slow.aggression.is_some_and(|it| !(0.01..=100.0).contains(&it));
    errors.add_if(wrong, format!("{path}.aggression"), "a number from 0.01 to 100 is needed; 1 is a straight line");
    let wrong = slow.min_weight_percent.is_some_and(|it| !(1..=100).contains(&it));
    errors.add_if(wrong, format!("{path}.minWeightPercent"), "a percentage from 1 to 100 is needed");
}

fn locality(errors: &mut Errors, preference: &LocalityPreference) {
    let path = format!("{PATH}.locality.failover");
    at_most(errors, &path, preference.failover.len(), 64);
    for (i, failover) in preference.failover.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let region = |errors: &mut Errors, path: String, name: &str| {
            errors.add_if(!is_locality(name, 1), path, format!("{name:?} is not the name of a region"));
        };
        region(errors, format!("{path}.from"), &failover.from);
        let twice = preference.failover[..i].iter().any(|it| it.from == failover.from);
        errors.add_if(twice, format!("{path}.from"), "this region is there twice; write one list");
        errors.add_if(failover.to.is_empty(), format!("{path}.to"), "at least one region is needed");
        at_most(errors, &format!("{path}.to"), failover.to.len(), 16);
        for (k, to) in failover.to.iter().enumerate() {
            let path = format!("{path}.to[{k}]");
            errors.add_if(failover.to[..k].contains(to) || *to == failover.from, &path, "this region is there already");
            region(errors, path, to);
        }
    }
    let path = format!("{PATH}.locality.weights");
    at_most(errors, &path, preference.weights.len(), 64);
    for (i, weights) in preference.weights.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let locality = |errors: &mut Errors, path: String, name: &str| {
            let message =
                format!("{name:?} is not a locality; write `region`, `region/zone`, `region/zone/sub-zone` or `*`");
            errors.add_if(name != "*" && !is_locality(name, 3), path, message);
        };
        locality(errors, format!("{path}.from"), &weights.from);
        let twice = preference.weights[..i].iter().any(|it| it.from == weights.from);
        errors.add_if(twice, format!("{path}.from"), "this locality is there twice; write one list");
        at_most(errors, &format!("{path}.to"), weights.to.len(), 16);
        let nothing = weights.to.iter().all(|to| to.weight == 0);
        errors.add_if(nothing, format!("{path}.to"), "at least one locality with a weight is needed");
        for (k, to) in weights.to.iter().enumerate() {
            let path = format!("{path}.to[{k}]");
            let twice = weights.to[..k].iter().any(|it| it.locality == to.locality);
            errors.add_if(twice, format!("{path}.locality"), "this locality is there twice");
            locality(errors, format!("{path}.locality"), &to.locality);
            errors.add_if(to.weight > 1000, format!("{path}.weight"), "a weight is at most 1000");
        }
    }
}

fn is_locality(name: &str, parts: usize) -> bool {
    let fits = |part: &str| !part.is_empty() && part != "*" && part.len() <= 63 && !part.contains(char::is_whitespace);
    name.split('/').count() <= parts && name.split('/').all(fits)
}
