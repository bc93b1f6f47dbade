//! Envoy's RBAC filters -> [`Gate`].

use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::envoy::config::rbac::v3::permission::Rule;
use envoy_types::pb::envoy::config::rbac::v3::principal::Identifier;
use envoy_types::pb::envoy::config::rbac::v3::rbac::Action;
use envoy_types::pb::envoy::config::rbac::v3::{Permission, Policy as PbPolicy, Principal, Rbac};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use envoy_types::pb::envoy::r#type::matcher::v3::{PathMatcher, path_matcher};
use envoy_types::pb::google::protobuf::Any;
use ipnet::IpNet;

use super::{At, Decoded, Rejected, each, jwt, matching, unless, unpack};
use crate::config::{Condition, Gate, GateAction, Policy, StringMatch};

/// How deep conditions may lie in each other: those of a policy need five levels.
const MAX_DEPTH: usize = 16;

/// The gates of an HTTP filter, and what the names of those that only look begin with in its metadata; `None` if it is of another type.
pub(super) fn http(any: &Any) -> Option<Decoded<(Vec<Gate>, String)>> {
    let decode = |pb: HttpRbac| {
        unless(pb.matcher.is_some(), "matcher", "is not supported")?;
        unless(pb.shadow_matcher.is_some(), "shadow_matcher", "is not supported")?;
        Ok((gates(pb.rules, pb.shadow_rules)?, pb.shadow_rules_stat_prefix))
    };
    Some(unpack::<HttpRbac>(any)?.and_then(decode))
}

/// The same of a network filter.
pub(super) fn network(any: &Any) -> Option<Decoded<Vec<Gate>>> {
    let decode = |pb: NetworkRbac| {
        unless(pb.matcher.is_some(), "matcher", "is not supported")?;
        unless(pb.shadow_matcher.is_some(), "shadow_matcher", "is not supported")?;
        unless(pb.delay_deny.is_some(), "delay_deny", "is not supported")?;
        gates(pb.rules, pb.shadow_rules)
    };
    Some(unpack::<NetworkRbac>(any)?.and_then(decode))
}

fn gates(rules: Option<Rbac>, shadow: Option<Rbac>) -> Decoded<Vec<Gate>> {
    let enforced = rules.map(|pb| gate(pb, false).at("rules")).transpose()?;
    let dry = shadow.map(|pb| gate(pb, true).at("shadow_rules")).transpose()?;
    Ok(enforced.into_iter().chain(dry).collect())
}

fn gate(pb: Rbac, dry_run: bool) -> Decoded<Gate> {
    let action = match Action::try_from(pb.action) {
        Ok(Action::Allow) => GateAction::Allow,
        Ok(Action::Deny) => GateAction::Deny,
        Ok(Action::Log) => GateAction::Audit,
        Err(_) => return Err(Rejected::field("action", "only ALLOW, DENY and LOG are supported")),
    };
    unless(dry_run && action == GateAction::Audit, "action", "LOG refuses nothing that could be tried")?;
    unless(pb.audit_logging_options.is_some(), "audit_logging_options", "is not supported")?;
    let mut policies: Vec<_> = pb.policies.into_iter().collect();
    policies.sort_by(|(a, _), (b, _)| a.cmp(b));
    let policies = policies.into_iter().map(|(name, pb)| {
        let field = format!("policies[{name:?}]");
        policy(name, pb).at(field)
    });
    Ok(Gate { action, dry_run, policies: policies.collect::<Decoded<_>>()? })
}

fn policy(name: String, pb: PbPolicy) -> Decoded<Policy> {
    let conditional = pb.condition.is_some() || pb.checked_condition.is_some() || pb.cel_config.is_some();
    unless(conditional, "condition", "is not supported")?;
    unless(pb.permissions.is_empty(), "permissions", "must not be empty")?;
    unless(pb.principals.is_empty(), "principals", "must not be empty")?;
    Ok(Policy {
        name,
        permissions: each("permissions", pb.permissions, |pb| permission(pb, MAX_DEPTH))?,
        principals: each("principals", pb.principals, |pb| principal(pb, MAX_DEPTH))?,
    })
}

fn permission(pb: Permission, depth: usize) -> Decoded<Condition> {
    let depth = deeper(depth)?;
    let all = |field: &str, rules: Vec<Permission>| some(field, rules, |pb| permission(pb, depth));
    Ok(match pb.rule {
        Some(Rule::Any(true)) => Condition::Any,
        Some(Rule::AndRules(set)) => Condition::All(all("and_rules.rules", set.rules)?),
        Some(Rule::OrRules(set)) => Condition::OneOf(all("or_rules.rules", set.rules)?),
        Some(Rule::NotRule(rule)) => Condition::Not(Box::new(permission(*rule, depth).at("not_rule")?)),
        Some(Rule::Header(pb)) => Condition::Header(matching::header(pb).at("header")?),
        Some(Rule::UrlPath(pb)) => Condition::Path(path(pb).at("url_path")?),
        Some(Rule::DestinationIp(pb)) => Condition::Destination(range(&pb).at("destination_ip")?),
        Some(Rule::DestinationPort(number)) => {
            let number = port(i64::from(number)).at("destination_port")?;
            Condition::Port(number..=number)
        }
        Some(Rule::DestinationPortRange(pb)) => {
            // Its end is not part of it.
            let start = port(i64::from(pb.start)).at("destination_port_range.start")?;
            let end = port(i64::from(pb.end) - 1).at("destination_port_range.end")?;
            Condition::Port(start..=end)
        }
        Some(_) => return Err(Rejected::new("only any, and, or, not, header, url_path and destination are supported")),
        None => return Err(Rejected::new("a rule is needed")),
    })
}

fn principal(pb: Principal, depth: usize) -> Decoded<Condition> {
    let depth = deeper(depth)?;
    let all = |field: &str, ids: Vec<Principal>| some(field, ids, |pb| principal(pb, depth));
    Ok(match pb.identifier {
        Some(Identifier::Any(true)) => Condition::Any,
        Some(Identifier::AndIds(set)) => Condition::All(all("and_ids.ids", set.ids)?),
        Some(Identifier::OrIds(set)) => Condition::OneOf(all("or_ids.ids", set.ids)?),
        Some(Identifier::NotId(id)) => Condition::Not(Box::new(principal(*id, depth).at("not_id")?)),
        Some(Identifier::Header(pb)) => Condition::Header(matching::header(pb).at("header")?),
        Some(Identifier::UrlPath(pb)) => Condition::Path(path(pb).at("url_path")?),
        // The newer form of it is not known to Envoys that are in use.
        #[allow(deprecated)]
        Some(Identifier::Metadata(pb)) => Condition::Claim(jwt::claim(pb).at("metadata")?),
        Some(Identifier::DirectRemoteIp(pb)) => Condition::Source(range(&pb).at("direct_remote_ip")?),
        Some(Identifier::Authenticated(pb)) => match pb.principal_name {
            None => Condition::Authenticated,
            Some(pb) => Condition::Identity(matching::string(&pb).at("authenticated.principal_name")?),
        },
        Some(_) => {
            return Err(Rejected::new(
                "only any, and, or, not, authenticated, direct_remote_ip, header, metadata and url_path are supported",
            ));
        }
        None => return Err(Rejected::new("an identifier is needed")),
    })
}

fn deeper(depth: usize) -> Decoded<usize> {
    depth.checked_sub(1).ok_or_else(|| Rejected::new("conditions are too deep in each other"))
}

/// At least one: no condition at all would be all of them.
fn some<P, T>(field: &str, all: Vec<P>, decode: impl Fn(P) -> Decoded<T>) -> Decoded<Vec<T>> {
    unless(all.is_empty(), field, "must not be empty")?;
    each(field, all, decode)
}

fn path(pb: PathMatcher) -> Decoded<StringMatch> {
    match pb.rule {
        Some(path_matcher::Rule::Path(pb)) => matching::string(&pb).at("path"),
        None => Err(Rejected::field("path", "is needed")),
    }
}

fn port(number: i64) -> Decoded<u16> {
    u16::try_from(number).map_err(|_| Rejected::new("must be 0 to 65535"))
}

fn range(pb: &CidrRange) -> Decoded<IpNet> {
    let address: IpAddr = pb
        .address_prefix
        .parse()
        .map_err(|_| Rejected::field("address_prefix", format_args!("{:?} is not an IP address", pb.address_prefix)))?;
    // Envoy's default is zero: any address.
    let length = pb.prefix_len.as_ref().map_or(0, |it| it.value);
    let long = || Rejected::field("prefix_len", format_args!("{length} is longer than an address"));
    IpNet::new(address, u8::try_from(length).map_err(|_| long())?).map_err(|_| long())
}
