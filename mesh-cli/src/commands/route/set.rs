//! `route set-weight`, `set-match` and `reset`.

use mesh_common::proto::control::ObjectKey;
use mesh_common::resource::{Kind, Object};
use serde::Serialize;

use super::facts::{Facts, known_service, listed};
use super::{SetMatch, SetWeight, Target};
use crate::commands::Context;
use crate::commands::wait::Waiting;
use crate::failure::Failure;
use crate::kinds;
use crate::objects::{self, Change, Done};
use crate::output::{Format, Table};
use crate::routes::attached::{self, RuleView};
use crate::routes::conditions::Conditions;
use crate::routes::edit::{self, EditError, Left, Matches, Protocol, Split};
use crate::routes::shares::{self, Share, percent};

pub async fn weight(context: &Context, args: SetWeight) -> Result<(), Failure> {
    let job = Job { target: &args.target, shares: &args.shares, conditions: None, force: args.force };
    split(context, &job, &args.waiting).await
}

pub async fn matching(context: &Context, args: SetMatch) -> Result<(), Failure> {
    if args.conditions.is_empty() {
        return Err(Failure::usage("No condition says which requests are meant.").hint(
            "Give --header, --cookie, --query, --path or --method; for all requests, use `meshctl route set-weight`.",
        ));
    }
    let conditions = Some(&args.conditions);
    let job = Job { target: &args.target, shares: &args.shares, conditions, force: args.force };
    split(context, &job, &args.waiting).await
}

pub async fn reset(context: &Context, args: super::Reset) -> Result<(), Failure> {
    let control = context.connect().await?;
    let (namespace, target) = (context.namespace(), &args.target);
    let services = objects::services(&control).await?;
    let mut done = Vec::new();
    // Each attached route is a change of its own: there is seldom more than one.
    let attached = objects::list_kinds(&control, &attached::KINDS, namespace).await?;
    let attached: Vec<Object> = attached.into_iter().map(|s| s.object).collect();
    let candidates = attached::candidates(&attached, namespace, &target.service, target.port, target.route.as_ref());
    if candidates.is_empty() {
        known_service(&services, namespace, &target.service)?;
    }
    for candidate in candidates {
        let key = candidate.key();
        let decide = |objects: &[Object]| {
            let Some(mut object) = objects.iter().find(|o| o.key() == key).cloned() else { return Ok(Change::Nothing) };
            let matches = match args.conditions.is_empty() {
                true => None,
                false => Some(matches_for(&object, &args.conditions)?),
            };
            Ok(match edit::reset(&mut object, &target.service, matches.as_ref()).map_err(cannot_edit)? {
                Left::Nothing => Change::Delete(vec![key.clone()]),
                Left::Same => Change::Nothing,
                Left::Changed => Change::Write(Box::new(object)),
            })
        };
        done.push(objects::change(&control, &[key.kind], namespace, decide).await?);
    }
    let revision = done.iter().filter_map(|d| match d {
        Done::Written(_, written) => Some(written.revision),
        Done::Deleted(_, revision) => Some(*revision),
        Done::Nothing => None,
    });
    let revision = revision.max();
    report_reset(context, &target.service, &done)?;
    match revision {
        Some(revision) => args.waiting.after(context, &control, revision).await,
        None => Ok(()),
    }
}

/// What shall be where.
struct Job<'a> {
    target: &'a Target,
    shares: &'a [Share],
    conditions: Option<&'a Conditions>,
    force: bool,
}

async fn split(context: &Context, job: &Job<'_>, waiting: &Waiting) -> Result<(), Failure> {
    shares::check(job.shares)
        .map_err(|problem| Failure::usage(format!("{}.", crate::failure::sentence(&problem).trim_end_matches('.'))))?;
    let control = context.connect().await?;
    let namespace = context.namespace();
    let facts = Facts::gather(&control, namespace, job.target, job.shares, job.force).await?;
    let mut dropped = Vec::new();
    let decide = |objects: &[Object]| {
        let mut object = pick(objects, &facts, job)?;
        let split = Split { service: job.target.service.clone(), port: facts.port, shares: job.shares.to_vec() };
        dropped = match job.conditions {
            None => edit::set_weights(&mut object, &split),
            Some(conditions) => {
                let matches = matches_for(&object, conditions)?;
                edit::set_match(&mut object, &matches, &split)
            }
        }
        .map_err(cannot_edit)?;
        Ok(Change::Write(Box::new(object)))
    };
    if let Done::Written(object, written) = objects::change(&control, &attached::KINDS, namespace, decide).await? {
        for backend in &dropped {
            let version = edit::version_of(&job.target.service, backend);
            if version.is_none() {
                context
                    .out
                    .note(&format!("warning: {backend}, which was a backend of this rule, gets nothing any more"));
            }
        }
        for warning in &written.result.warnings {
            context.out.note(&format!("warning: {warning}"));
        }
        report_split(context, &job.target.service, &object, &written)?;
        waiting.after(context, &control, written.revision).await?;
    }
    Ok(())
}

/// The route to edit: the one that is there, or a new one.
fn pick(objects: &[Object], facts: &Facts, job: &Job<'_>) -> Result<Object, Failure> {
    let target = job.target;
    let (service, named) = (&target.service, target.route.as_ref());
    let candidates = attached::candidates(objects, &facts.namespace, service, target.port, named);
    match (candidates.as_slice(), named) {
        ([only], _) => Ok((*only).clone()),
        ([], Some(name)) if objects.iter().any(|o| o.metadata().name == name.name) => {
            Err(Failure::refused(format!("The route {} is not attached to the service {service}.", name.name))
                .hint("Its spec.parentRefs must name the Service; `meshctl route list` shows what is attached."))
        }
        ([], _) => new_route(objects, facts, job),
        (several, _) => {
            let names: Vec<String> =
                several.iter().map(|o| format!("{}/{}", o.kind().singular(), o.metadata().name)).collect();
            let message = format!("{} routes are attached to {service}: {}.", several.len(), names.join(", "));
            Err(Failure::refused(message).hint(format!("Say which one is meant, for instance --route {}.", names[0])))
        }
    }
}

fn new_route(objects: &[Object], facts: &Facts, job: &Job<'_>) -> Result<Object, Failure> {
    let service = &job.target.service;
    let Some(port) = facts.port else {
        let message = match facts.ports.as_slice() {
            [] => format!("No port of {service} is known yet."),
            ports => format!("{service} has the ports {}.", listed(ports)),
        };
        return Err(Failure::usage(message).hint("Say which one is meant with --port."));
    };
    let name = match &job.target.route {
        Some(named) => named.name.clone(),
        None if facts.ports.len() > 1 => format!("{service}-{port}"),
        None => service.clone(),
    };
    let protocol = match job.target.route.as_ref().and_then(|r| r.kind) {
        Some(Kind::GrpcRoute) => Protocol::Grpc,
        Some(Kind::TcpRoute) => Protocol::Tcp,
        Some(Kind::UdpRoute) => Protocol::Udp,
        Some(_) => Protocol::Http,
        None => facts.protocol,
    };
    let route = edit::new_route(protocol, &facts.namespace, &name, service, port, facts.ports.len() > 1);
    if objects.iter().any(|o| o.key() == route.key()) {
        return Err(Failure::refused(format!(
            "There is a {} already, and it is attached to something else.",
            route.key()
        ))
        .hint("Give the new route another name with --route NAME."));
    }
    Ok(route)
}

fn matches_for(object: &Object, conditions: &Conditions) -> Result<Matches, Failure> {
    let problem = |message: String| Failure::usage(crate::failure::sentence(&message));
    match object {
        Object::GrpcRoute(_) => conditions.grpc().map(Matches::Grpc).map_err(problem),
        Object::TcpRoute(_) | Object::UdpRoute(_) => Err(cannot_edit(EditError::NoRequests)),
        _ => conditions.http().map(Matches::Http).map_err(problem),
    }
}

fn cannot_edit(error: EditError) -> Failure {
    Failure::refused(format!("This route cannot be edited so: {error}."))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SplitReport<'a> {
    kind: &'a str,
    namespace: &'a str,
    name: &'a str,
    outcome: &'a str,
    revision: u64,
    rules: Vec<super::list::Rule>,
}

fn report_split(context: &Context, service: &str, object: &Object, written: &objects::Written) -> Result<(), Failure> {
    let (out, key, outcome) = (&context.out, object.key(), objects::outcome(&written.result));
    let rules = attached::rules(object);
    if out.format == Format::Name {
        return out.line(&kinds::short(&key));
    }
    if !out.for_people() {
        let rules = rules.into_iter().map(|rule| super::list::Rule::new(service, rule)).collect();
        let (kind, namespace, name) = (key.kind.as_str(), key.namespace.as_str(), key.name.as_str());
        return out.data(&SplitReport { kind, namespace, name, outcome, revision: written.revision, rules });
    }
    out.line(&format!("{key} {outcome} (revision {})", written.revision))?;
    out.table(&split_table(service, &rules))
}

/// The rules of a route that concern a service.
fn split_table(service: &str, rules: &[RuleView]) -> Table {
    let mut table = Table::new(&["REQUESTS", "VERSION", "WEIGHT", "SHARE"]);
    for rule in rules {
        let total: u64 = rule.backends.iter().map(|b| u64::from(b.weight)).sum();
        let all = if rules.len() == 1 { "all" } else { "all others" };
        let requests = if rule.matches.is_empty() { all.to_owned() } else { rule.matches.join(" or ") };
        for backend in &rule.backends {
            let version = match edit::version_of(service, &backend.name) {
                Some("") => "all versions".to_owned(),
                Some(version) => version.to_owned(),
                None => backend.name.clone(),
            };
            let share = percent(backend.weight, total);
            table.row(vec![requests.clone().into(), version.into(), backend.weight.to_string().into(), share.into()]);
        }
    }
    table
}

fn report_reset(context: &Context, service: &str, done: &[Done]) -> Result<(), Failure> {
    let out = &context.out;
    let changed = done.iter().flat_map(|d| match d {
        Done::Written(object, written) => {
            vec![(objects::to_proto(&object.key()), objects::outcome(&written.result))]
        }
        Done::Deleted(keys, _) => keys.iter().map(|key| (key.clone(), "deleted")).collect(),
        Done::Nothing => Vec::new(),
    });
    let changed: Vec<(ObjectKey, &'static str)> = changed.collect();
    match (out.format, changed.as_slice()) {
        (Format::Json | Format::Yaml, _) => {
            let reset = |(key, outcome): &(ObjectKey, &'static str)| Reset {
                kind: key.kind.clone(),
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                outcome,
            };
            out.data(&changed.iter().map(reset).collect::<Vec<_>>())
        }
        (Format::Name, _) => {
            changed.iter().try_for_each(|(key, _)| out.line(&format!("{}/{}", key.kind.to_lowercase(), key.name)))
        }
        (_, []) => out.line(&format!("Nothing splits the traffic of {service}.")),
        (_, some) => {
            some.iter().try_for_each(|(key, outcome)| out.line(&format!("{} {outcome}", objects::name_of(Some(key)))))
        }
    }
}

#[derive(Serialize)]
struct Reset {
    kind: String,
    namespace: String,
    name: String,
    outcome: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(text: &str) -> Share {
        text.parse().unwrap()
    }

    #[test]
    fn shares_are_shown_by_rule() {
        let mut object = edit::new_route(Protocol::Http, "default", "reviews", "reviews", 9080, false);
        let split = Split { service: "reviews".into(), port: None, shares: vec![share("v1=90"), share("v2=10")] };
        edit::set_weights(&mut object, &split).unwrap();
        let text = split_table("reviews", &attached::rules(&object)).render(false, false, None);
        assert_eq!(
            text,
            "REQUESTS  VERSION  WEIGHT  SHARE\nall       v1       90      90 %\nall       v2       10      10 %\n"
        );
    }
}
